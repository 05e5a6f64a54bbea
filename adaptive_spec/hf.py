"""The three doors: ``generate``, ``custom_generate``, and stepwise sessions.

All three let transformers itself prepare the call (``model.generate`` with a callable), so that
arguments mean what they mean there; what cannot be honoured is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from adaptive_spec.arguments import check_values
from adaptive_spec.build import (
    build_drafters,
    build_learner,
    build_log,
    build_models,
    save_models,
    settle,
)
from adaptive_spec.calls import Call, checked, prepared
from adaptive_spec.config import ConfigLike, load_config
from adaptive_spec.decoder import Decoder
from adaptive_spec.drafters.base import Drafter
from adaptive_spec.drafters.registry import DraftContext
from adaptive_spec.errors import ArgumentError, CacheError, DecodingError, UnsupportedError
from adaptive_spec.heads.store import save_head
from adaptive_spec.model_facts import refuse
from adaptive_spec.models import load
from adaptive_spec.outputs import assemble
from adaptive_spec.row_rules import stop_string_criteria
from adaptive_spec.selfcheck import self_check
from adaptive_spec.session import Session
from adaptive_spec.target import Target


class AdaptiveDecoder(Decoder):
    """Generates what ``model`` alone would generate, in fewer forwards.

    Args:
        model: a Hugging Face causal language model in eval mode.
        config: preset name, path, dict or ``Config``; None for the default preset.
        drafter: an object to draft with, or several, instead of the config's.
        parts: further parts of ``Decoder``: controllers, latency, acceptance, learner, log, clock.
    """

    def __init__(
        self,
        model: Any,
        config: ConfigLike = None,
        *,
        drafter: Drafter | Sequence[Drafter] | None = None,
        **parts: Any,
    ) -> None:
        resolved = load_config(config)
        refuse(model)
        if drafter is None:
            resolved = settle(resolved, model)
            with torch.inference_mode(False):  # a head may learn, whatever mode this is made in
                drafter = build_drafters(resolved, draft_context(model, resolved.kernels == "auto"))
        drafters = list(drafter) if isinstance(drafter, Sequence) else [drafter]
        names = [one.name for one in drafters]
        if not names or len(set(names)) < len(names):
            raise ArgumentError("drafter", names, "at least one, each with a name of its own")
        if "learner" not in parts:
            parts["learner"] = build_learner(resolved, drafters)
        taps = [tap for one in drafters for tap in one.taps]
        target = Target(model, taps, kernels=resolved.kernels == "auto")
        try:
            if resolved.self_check:  # first, because what the target costs depends on its outcome
                self_check(target)
            models = build_models(resolved, target.architecture, torch.get_num_threads(), names)
            foreign = parts.keys() & {"latency", "acceptance"}
            self._models = None if foreign else models
            parts = {"latency": models[0], "acceptance": models[1], **parts}
            parts.setdefault("log", build_log(resolved))
            super().__init__(target, resolved, drafters, checked=True, **parts)
        except BaseException:
            target.close()
            raise

    def save_learned(self, path: str | Path) -> None:
        """Store what was learned of machine and drafters; ``calibration=path`` starts from it.

        Raises:
            CalibrationError, OSError: it cannot be written.
            UnsupportedError: the decoder was given models of latency or acceptance from outside.
        """
        if self._models is None:
            raise UnsupportedError("save_learned with models of latency or acceptance of your own")
        facts, threads = self.target.architecture, torch.get_num_threads()
        with self._lock:
            save_models(path, self.config, facts, threads, self._models)

    def save_head(self, folder: str | Path) -> None:
        """Store the draft head as it is now; ``causal_parallel={"head": folder}`` drafts with it.

        What was learned while serving is gone with the decoder unless it is saved.

        Raises:
            UnsupportedError: no drafter of this decoder has a head that was read from disk.
            OSError, SafetensorError: it cannot be written.
        """
        stored = [
            found for one in self.drafting.drafters if (found := getattr(one, "stored", None))
        ]
        if not stored:
            raise UnsupportedError("save_head without a causal_parallel drafter of this config")
        (head,) = stored
        version, updates = self.learner.head_version, getattr(self.learner, "updates", 0)
        about = {**head.training, "served": {"updates": updates, "version": version}}
        with self._lock:
            save_head(folder, head.head, head.target, about, dtype=torch.float32)

    # -- door 1 ------------------------------------------------------------------------------

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *,
        seed: int | None = None,
        streamer: Any = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> Any:
        """``model.generate`` with the same arguments and return types, and a ``seed``.

        Raises:
            ArgumentError: a value out of range; UnsupportedError: an argument that is refused.
            DecodingError: the target failed; ``sequences`` holds what was verified.
        """
        vocab = self.target.architecture.vocab
        kwargs, cap = checked(inputs, seed, kwargs, tokenizer, vocab)
        call = _Bound(self, streamer=streamer, seed=seed, cap=cap)
        return self.target.model.generate(inputs, custom_generate=call, **kwargs)

    # -- door 2 ------------------------------------------------------------------------------

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        seed: int | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """What ``model.generate(..., custom_generate=decoder)`` calls."""
        return _Bound(self)(
            model,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            seed=seed,
            **model_kwargs,
        )

    def bind(
        self,
        *,
        streamer: Any = None,
        tokenizer: Any = None,
        stop_strings: str | Sequence[str] | None = None,
    ) -> _Bound:
        """A ``custom_generate`` with what transformers does not hand to a callable."""
        check_values({"stop_strings": stop_strings}, self.target.architecture.vocab)
        return _Bound(
            self, streamer=streamer, criteria=stop_string_criteria(stop_strings, tokenizer)
        )

    # -- door 3 ------------------------------------------------------------------------------

    def start(
        self,
        input_ids: torch.Tensor | Sequence[int],
        *,
        policy: str | None = None,
        request_id: str | None = None,
        seed: int | None = None,
        streamer: Any = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> Session:
        """Open a session for one prompt; arguments as for ``generate``.

        Args:
            input_ids: [T] or [1, T].
            policy: policy name for this session; None for the config's.
            request_id: what the log calls this request; None for a name of its own.

        Without ``attention_mask`` every token counts, also where it is the pad token.
        """
        ids = torch.as_tensor(input_ids)
        if ids.dtype.is_floating_point and ids.numel():
            raise ArgumentError("input_ids", str(ids.dtype), "token ids are whole numbers")
        row = ids.reshape(1, -1).long().to(self.target.device)
        if ids.dim() > 2 or (ids.dim() == 2 and ids.shape[0] != 1):
            raise ArgumentError("input_ids", tuple(ids.shape), "a session takes one prompt")
        kwargs.setdefault("attention_mask", torch.ones_like(row))
        vocab = self.target.architecture.vocab
        kwargs, cap = checked(row, seed, kwargs, tokenizer, vocab)
        if (kwargs.get("num_return_sequences") or 1) > 1:
            raise UnsupportedError("num_return_sequences: start one session per sequence")
        capture = _Capture(self, seed=seed, cap=cap)
        self.target.model.generate(row, custom_generate=capture, **kwargs)
        assert capture.call is not None
        rules = replace(capture.call.rules[0], streamer=streamer)
        if streamer is not None:
            streamer.put(row.cpu())
        return self.open_session(capture.call.prompts[0], rules, policy, request_id)

    # -- shared ------------------------------------------------------------------------------

    def decode(self, call: Call, streamer: Any) -> Any:
        """Decode all rows packed together and return what transformers would return."""
        if streamer is not None:
            if len(call.prompts) > 1:
                raise UnsupportedError("streamer with more than one row")
            streamer.put(call.input_ids.cpu())
        sessions: list[Session] = []
        try:
            for prompt, rules in zip(call.prompts, call.rules, strict=True):
                sessions.append(self.open_session(prompt, replace(rules, streamer=streamer)))
            while live := [session for session in sessions if not session.finished]:
                self.step(live)
            failed = [i for i, session in enumerate(sessions) if session.finish_reason == "error"]
            if failed:
                finish = sessions[failed[0]].finish
                raise DecodingError(
                    f"row {failed[0]} ended early: {finish.detail if finish else ''}",
                    [session.generated for session in sessions],
                ) from sessions[failed[0]].error
            return assemble(call.input_ids, call.options, sessions)
        except CacheError as error:
            kept = [session.generated for session in sessions]
            raise DecodingError(f"the cache is too small: {error}", kept) from error
        finally:
            for session in sessions:
                session.close()


@dataclass(slots=True)
class _Bound:
    """A ``custom_generate`` callable for one call."""

    decoder: AdaptiveDecoder
    streamer: Any = None
    criteria: Sequence[Any] = ()
    seed: int | None = None
    cap: int | None = None

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        seed: int | None = None,
        **model_kwargs: Any,
    ) -> Any:
        if model is not self.decoder.target.model:
            raise UnsupportedError("this decoder was made for another model object")
        call = prepared(
            input_ids,
            logits_processor,
            [*stopping_criteria, *self.criteria],
            generation_config,
            self.seed if seed is None else seed,
            self.cap,
            model_kwargs,
            self.decoder.target.architecture,
            model.generation_config.top_k,
        )
        return self.run(call)

    def run(self, call: Call) -> Any:
        return self.decoder.decode(call, self.streamer)


@dataclass(slots=True)
class _Capture(_Bound):
    """Keeps the prepared call instead of decoding it."""

    call: Call | None = None

    def run(self, call: Call) -> Any:
        self.call = call
        return call.input_ids


def draft_context(model: Any, kernels: bool = True) -> DraftContext:
    """What drafters may ask of a target and its surroundings."""

    def load_like(name: str) -> tuple[Any, Any]:
        dtype = str(model.dtype).removeprefix("torch.")
        return load(name, dtype, str(model.device))

    def tokenizer() -> Any:
        try:
            return AutoTokenizer.from_pretrained(model.config.name_or_path)
        except (OSError, ValueError):  # a model made in memory, or a folder without a tokenizer
            return None

    return DraftContext(model, load_like, tokenizer, kernels)
