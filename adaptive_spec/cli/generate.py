"""``adaptive-spec generate``: one prompt, one answer, streamed as it is decoded.

All options are checked before anything heavy is imported or loaded. The text goes to stdout, one
line about the run to stderr; with ``--json`` stdout holds one object instead.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptive_spec.arguments import check_values
from adaptive_spec.cli.output import TextStream, print_json, progress, remark
from adaptive_spec.errors import ArgumentError, DecodingError
from adaptive_spec.options import about, layered, origin

if TYPE_CHECKING:
    from adaptive_spec.config import Config
    from adaptive_spec.session import Session

ANY_VOCAB = 1 << 31
"""Bound of --top-k until the model is known; the decoder checks it again."""


def generate(
    model: Annotated[
        str, typer.Option(help="Catalogue name, Hugging Face folder or hub id.")
    ] = "smollm2-135m",
    prompt: Annotated[str | None, typer.Option(help="What the user says.")] = None,
    prompt_file: Annotated[
        str | None, typer.Option(help="Read the prompt from a file; - is stdin.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it stands: no chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling; off by default.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Best K only; off by default.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Fixes a sampled text; drawn if not given.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's own choice.")] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the end token.")
    ] = False,
    policy: Annotated[str | None, typer.Option(help="See `adaptive-spec policies`.")] = None,
    drafter: Annotated[str | None, typer.Option(help="See `adaptive-spec policies`.")] = None,
    config: Annotated[str | None, typer.Option(help="Preset name or TOML file.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.field=value; may be repeated.")
    ] = None,
    log: Annotated[str | None, typer.Option(help="Write the budget log to this file.")] = None,
    head: Annotated[
        str | None, typer.Option(help="Draft with this head: name, folder or hub id.")
    ] = None,
    save_head: Annotated[
        str | None, typer.Option(help="Keep the head in this folder as it is at the end.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Generate a text. It is what plain decoding would give, whatever the policy."""
    sampling = _sampling(max_new_tokens, temperature, top_p, top_k, seed)
    check_machine(dtype, threads)
    text = _prompt(prompt, prompt_file)
    settings = resolve_config(
        config, set_ or [], policy=policy, drafter=drafter, log=log, head=head
    )
    if save_head is not None:
        _check_place(save_head)
    with progress() as show:
        from adaptive_spec import models
        from adaptive_spec.build import build_log

        with about(*origin("log.path", "--log", log, config, set_ or [])):
            log_file = build_log(settings)
        with about("--model", model):
            models.resolve(model, progress=show)
        show("starting torch", None)
        import torch

        from adaptive_spec.hf import AdaptiveDecoder
        from adaptive_spec.prompts import encode

        if threads is not None:
            torch.set_num_threads(threads)
        target, tokenizer = models.load(model, dtype, progress=show)
        if ignore_eos:  # suppressing the token instead would change the text
            target.generation_config.eos_token_id = None
        ids = encode(tokenizer, text, raw)
        decoder = AdaptiveDecoder(target, settings, log=log_file)
        heads = [one for one in decoder.drafting.drafters if getattr(one, "stored", None)]
        for option, given in (("--head", head), ("--save-head", save_head)):
            if given is not None and not heads:
                allowed = f"{decoder.config.drafter} drafts without a head"
                raise ArgumentError(option, given, allowed)
    began = time.perf_counter()
    with decoder:
        with decoder.start(ids, attention_mask=torch.ones_like(ids), **sampling) as session:
            _stream(session, None if json else TextStream(tokenizer))
            seconds = time.perf_counter() - began
        if save_head is not None:
            _save_head(decoder, save_head)
    facts = _facts(session, seconds)
    if json:
        answer = tokenizer.decode(session.generated, skip_special_tokens=True)
        print_json({"text": answer, "tokens": session.generated, **facts})
    else:
        remark(_summary(facts, decoder.log.path))
    if session.finish_reason == "error":
        raise DecodingError(
            f"the text ends early: {facts['stats']['finish_detail']}", [session.generated]
        ) from session.error


def _check_place(folder: str) -> None:
    """Before anything is loaded: a place where a head cannot be kept is refused."""
    from adaptive_spec.heads.store import check_place

    with about("--save-head", folder):
        try:
            check_place(Path(folder).expanduser())
        except OSError as error:
            raise ArgumentError("save_head", folder, f"a folder, not a file: {error}") from error


def _save_head(decoder: Any, folder: str) -> None:
    from safetensors import SafetensorError

    with about("--save-head", folder):
        try:
            decoder.save_head(os.path.expanduser(folder))
        except (OSError, SafetensorError) as error:
            raise ArgumentError("save_head", folder, f"it cannot be written: {error}") from error


def resolve_config(source: str | None, overrides: list[str], **flags: str | None) -> Config:
    """The config of a run: preset or file, then --set, then the flags; all names looked up."""
    from adaptive_spec.build import find_drafters
    from adaptive_spec.config import load_config
    from adaptive_spec.controllers.registry import CONTROLLERS
    from adaptive_spec.online.policies import find_rule

    values = layered(source, overrides).model_dump()
    names = {name: flags.get(name) for name in ("policy", "drafter")}
    values.update({name: given for name, given in names.items() if given is not None})
    if flags.get("log") is not None:
        values["log"]["path"] = flags["log"]
    if flags.get("head") is not None:
        values["causal_parallel"]["head"] = flags["head"]
    settings = load_config(values)
    with about(*origin("policy", "--policy", names["policy"], source, overrides)):
        entry, argument = CONTROLLERS.find(settings.policy)
        entry.factory(argument)
    with about(*origin("drafter", "--drafter", names["drafter"], source, overrides)):
        find_drafters(settings)
    with about(*origin("online.updates", "", None, source, overrides)):
        find_rule(settings.online.updates)
    return settings


def check_machine(dtype: str, threads: int | None) -> None:
    """Raise ArgumentError for a number format or a number of threads that cannot be."""
    from adaptive_spec.bench.settings import most_threads
    from adaptive_spec.models import DTYPES

    if dtype not in DTYPES:
        raise ArgumentError("dtype", dtype, f"expected {' or '.join(DTYPES)}")
    most = most_threads()
    if threads is not None and not 1 <= threads <= most:
        raise ArgumentError(
            "threads", threads, f"expected a whole number, 1 to {most} (cores of this machine)"
        )


def _sampling(
    max_new_tokens: int,
    temperature: float,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
) -> dict[str, Any]:
    """The arguments of ``start``; top-k is off unless given, whatever transformers' default is."""
    sample = temperature > 0
    values: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": sample}
    drawn = {"top_p": top_p, "top_k": top_k, "seed": seed}
    check_values({**values, **drawn, "temperature": temperature}, ANY_VOCAB)
    if not sample:
        for name, value in drawn.items():
            if value is not None:
                remark(f"note: --{name.replace('_', '-')} has no effect at --temperature 0")
        return values
    return {
        **values,
        "temperature": temperature,
        "top_p": 1.0 if top_p is None else top_p,
        "top_k": top_k or 0,
        "seed": seed,
    }


def _prompt(text: str | None, file: str | None) -> str:
    """The prompt from whichever of the two options was given."""
    if text is not None and file is not None:
        raise ArgumentError("prompt_file", file, "give either --prompt or --prompt-file, not both")
    if text is not None:
        return text
    if file is None:
        raise ArgumentError("prompt", None, "give --prompt TEXT or --prompt-file FILE (- is stdin)")
    try:
        data = (
            sys.stdin.buffer.read() if file == "-" else Path(os.path.expanduser(file)).read_bytes()
        )
        return data.decode("utf-8")
    except OSError as error:
        raise ArgumentError("prompt_file", file, f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ArgumentError("prompt_file", file, f"expected UTF-8 text ({error})") from error


def _stream(session: Session, stream: TextStream | None) -> None:
    """Decode to the end; the text appears on stdout as soon as it is certain."""
    for tokens in session:
        if stream is not None:
            sys.stdout.write(stream.push(tokens))
            sys.stdout.flush()
    if stream is not None:
        sys.stdout.write(stream.end() + "\n")
        sys.stdout.flush()


def _facts(session: Session, seconds: float) -> dict[str, Any]:
    """What ``--json`` says beside text and tokens: names as in the log's request record."""
    assert session.finish is not None
    new = len(session.generated)
    stats = {
        "seed": session.rules.seed,
        "temperature": session.rules.sampler.temperature,
        "prompt_tokens": session.prompt_length,
        "new_tokens": new,
        "policy": session.policy,
        "drafter": session.decoder.config.drafter,
        "finish_detail": session.finish.detail,
        **session.stats.as_dict(),
    }
    return {
        "finish_reason": session.finish.reason,
        "seconds": seconds,
        "tokens_per_second": new / seconds if seconds > 0 else None,
        "stats": stats,
    }


def _summary(facts: dict[str, Any], log: str | None) -> str:
    stats = facts["stats"]
    steps = stats["num_steps"]
    parts = [
        f"{stats['new_tokens']} tokens in {facts['seconds']:.1f} s",
        f"{facts['tokens_per_second'] or 0:.1f} tokens/s",
    ]
    if steps:
        parts.append(f"acceptance length {stats['mean_acceptance_length']:.2f}")
        parts.append(f"{stats['num_draft_tokens'] / steps:.1f} nodes per step")
    parts.append(f"{stats['policy']} with {stats['drafter']}")
    if stats["seed"] is not None:
        parts.append(f"seed {stats['seed']}")
    parts.append(f"ended by {stats['finish_detail']}")
    if log:
        parts.append(f"log {log}")
    return " · ".join(parts)
