"""The three doors: ``generate``, ``custom_generate``, and stepwise sessions.

All three let transformers itself prepare the call (``model.generate`` with a callable), so that
arguments mean what they mean there; what cannot be honoured is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.generation.stopping_criteria import StoppingCriteriaList

from adaptive_spec.arguments import (
    check_inputs,
    check_model_inputs,
    check_supported,
    check_values,
)
from adaptive_spec.build import build_drafters, build_log, build_models, save_models
from adaptive_spec.config import ConfigLike, load_config
from adaptive_spec.decoder import Decoder
from adaptive_spec.drafters.base import Drafter
from adaptive_spec.drafters.registry import DraftContext
from adaptive_spec.errors import ArgumentError, CacheError, DecodingError, UnsupportedError
from adaptive_spec.models import load
from adaptive_spec.outputs import assemble
from adaptive_spec.row_rules import row_rules, stop_string_criteria, without_stop_strings
from adaptive_spec.sampling import derive_seed
from adaptive_spec.session import Rules, Session
from adaptive_spec.target import Target, refuse


@dataclass(frozen=True, slots=True)
class _Call:
    """A call as transformers prepared it, one entry of ``rules`` and ``prompts`` per row."""

    input_ids: torch.Tensor
    prompts: list[list[int]]
    rules: list[Rules]
    options: Any


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
            drafter = build_drafters(resolved, draft_context(model))
        drafters = list(drafter) if isinstance(drafter, Sequence) else [drafter]
        names = [one.name for one in drafters]
        if not names or len(set(names)) < len(names):
            raise ArgumentError("drafter", names, "at least one, each with a name of its own")
        target = Target(model, [tap for one in drafters for tap in one.taps])
        models = build_models(resolved, target.architecture, torch.get_num_threads(), names)
        foreign = parts.keys() & {"latency", "acceptance"}
        self._models = None if foreign else models
        parts = {"latency": models[0], "acceptance": models[1], **parts}
        parts.setdefault("log", build_log(resolved))
        super().__init__(target, resolved, drafters, **parts)

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
        kwargs, cap = self._checked(inputs, seed, kwargs, tokenizer)
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
        kwargs, cap = self._checked(row, seed, kwargs, tokenizer)
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

    def _checked(
        self, inputs: Any, seed: int | None, kwargs: dict[str, Any], tokenizer: Any
    ) -> tuple[dict[str, Any], int | None]:
        """Refuse bad arguments; returns what to hand to transformers, and a cap of 0 if asked."""
        if inputs is None and kwargs.get("input_ids") is None:
            raise ArgumentError("input_ids", None, "a prompt needs at least one token")
        ids = inputs if inputs is not None else kwargs["input_ids"]
        if isinstance(ids, torch.Tensor) and ids.shape[-1] == 0:
            raise ArgumentError("input_ids", [], "a prompt needs at least one token")
        options = kwargs.get("generation_config")
        given = {k: v for k, v in vars(options).items() if v is not None} if options else {}
        values = {**given, **kwargs, "seed": seed}
        check_inputs(kwargs)
        check_supported(values)
        check_values(values, self.target.architecture.vocab)
        passed = dict(kwargs)
        strings = passed.pop("stop_strings", None) or getattr(options, "stop_strings", None)
        if strings:
            if options is not None and options.stop_strings is not None:
                passed["generation_config"] = without_stop_strings(options)
            mine = stop_string_criteria(strings, tokenizer)
            passed["stopping_criteria"] = StoppingCriteriaList(
                [*(passed.get("stopping_criteria") or []), *mine]
            )
        if passed.get("max_new_tokens") == 0:
            return {**passed, "max_new_tokens": 1}, 0
        return passed, None

    def prepared(
        self,
        input_ids: torch.Tensor,
        processors: Any,
        criteria: Sequence[Any],
        options: Any,
        seed: int | None,
        cap: int | None,
        inputs: Mapping[str, Any],
    ) -> _Call:
        """Split a prepared batch into requests; refuses what cannot be honoured."""
        facts = self.target.architecture
        check_model_inputs(inputs)
        check_supported(vars(options))
        model_default = {"top_k"}  # transformers clamps its own default to the vocabulary
        named = {k: v for k, v in vars(options).items() if k not in model_default}
        check_values({**named, "seed": seed}, facts.vocab)
        mask = inputs.get("attention_mask")
        seen = torch.ones_like(input_ids) if mask is None else mask
        if seen.shape != input_ids.shape:
            raise ArgumentError("attention_mask", tuple(seen.shape), "expected [rows, tokens]")
        places = (seen.long().cumsum(-1) - 1).clamp(min=0)
        positions = inputs.get("position_ids")
        if positions is not None and not torch.equal(positions[seen != 0], places[seen != 0]):
            raise UnsupportedError("position_ids other than a count of the unmasked tokens")
        if options.do_sample and seed is None:
            seed = int(torch.randint(0, 2**63 - 1, ()))
        rows = len(input_ids)
        prompts = [ids[on != 0].tolist() for ids, on in zip(input_ids, seen, strict=True)]
        rules = [
            row_rules(
                padded=input_ids[row],
                prompt=prompts[row],
                row=row,
                rows=rows,
                processors=processors,
                criteria=criteria,
                options=options,
                seed=derive_seed(seed, row) if options.do_sample and seed is not None else None,
                context_limit=facts.context_limit,
                cap=cap,
            )
            for row in range(rows)
        ]
        return _Call(input_ids, prompts, rules, options)

    def decode(self, call: _Call, streamer: Any) -> Any:
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
        call = self.decoder.prepared(
            input_ids,
            logits_processor,
            [*stopping_criteria, *self.criteria],
            generation_config,
            self.seed if seed is None else seed,
            self.cap,
            model_kwargs,
        )
        return self.run(call)

    def run(self, call: _Call) -> Any:
        return self.decoder.decode(call, self.streamer)


@dataclass(slots=True)
class _Capture(_Bound):
    """Keeps the prepared call instead of decoding it."""

    call: _Call | None = None

    def run(self, call: _Call) -> Any:
        self.call = call
        return call.input_ids


def draft_context(model: Any) -> DraftContext:
    """What drafters may ask of a target and its surroundings."""

    def load_like(name: str) -> tuple[Any, Any]:
        dtype = str(model.dtype).removeprefix("torch.")
        return load(name, dtype, str(model.device))

    def tokenizer() -> Any:
        try:
            return AutoTokenizer.from_pretrained(model.config.name_or_path)
        except (OSError, ValueError):  # a model made in memory, or a folder without a tokenizer
            return None

    return DraftContext(model, load_like, tokenizer)
