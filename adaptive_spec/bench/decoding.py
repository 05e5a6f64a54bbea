"""One contestant decodes one batch, and the clock runs.

Wall seconds go from before a request is opened (prefill included) until its memory is given back.
Legend: B requests of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from adaptive_spec.bench.contestants import PLAIN, Contestant, NoDrafter
from adaptive_spec.bench.settings import Disturbance
from adaptive_spec.budget_log import BudgetLog, NullLog
from adaptive_spec.errors import DecodingError
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.profilers.clock import Clock, monotonic


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that are decoded together."""

    index: int
    ids: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]
    """One per request; unused at temperature 0."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What came of a batch: plain values."""

    tokens: tuple[tuple[int, ...], ...]
    """New tokens of every request."""
    seconds: float
    """Wall seconds of the batch, prefill included."""
    loop_seconds: float | None = None
    """Wall seconds of the decode loop; None for peers, as are all of the following."""
    model_seconds: float | None = None
    """Of these, the forwards and the choice of tokens, which plain decoding needs as well."""
    steps: int | None = None
    """Target forwards after the prefill, summed over the requests."""
    draft_nodes: int | None = None
    first_step: int | None = None
    """Packed steps that the contestant had done before this batch, warm-up left out."""
    stats: tuple[dict[str, Any], ...] = ()


class Runner(Protocol):
    """A contestant on a loaded model."""

    def run(self, batch: Batch, label: str, options: dict[str, Any]) -> Decoded:
        """Decode; ``options`` are those of ``generate``, ``label`` names the run in the log."""
        ...


@dataclass(slots=True)
class Threads:
    """The threads that one contestant has, and when that changes.

    Contestants take turns, so each has its own count of steps and its own threads: to every one of
    them it looks as if the machine had changed at its step S, while noise still hits all alike.
    """

    count: int
    disturb: Disturbance | None = None
    steps: int = 0

    def enter(self) -> None:
        """Before a batch."""
        if torch.get_num_threads() != self.count:
            torch.set_num_threads(self.count)

    def step(self) -> None:
        """Before a decoding step."""
        self.steps += 1
        if self.disturb is not None and self.steps == self.disturb.step:
            self.count = self.disturb.threads
            torch.set_num_threads(self.count)


@dataclass(slots=True)
class Ours:
    """A contestant of this package: one decoder, whose state no other contestant sees."""

    decoder: AdaptiveDecoder
    threads: Threads
    clock: Clock = field(default=monotonic)

    def run(self, batch: Batch, label: str, options: dict[str, Any]) -> Decoded:
        self.threads.enter()
        first = self.threads.steps
        began, sessions = self.clock(), []
        try:
            for name, prompt, seed in zip(batch.ids, batch.prompts, batch.seeds, strict=True):
                row = torch.tensor([prompt])
                keyed = seed if options.get("do_sample") else None
                session = self.decoder.start(
                    row, request_id=f"{label}/{name}", seed=keyed, **options
                )
                sessions.append(session)
            loop = self.clock()
            while live := [session for session in sessions if not session.finished]:
                self.threads.step()
                self.decoder.step(live)
            looped = self.clock() - loop
        finally:
            for session in sessions:
                session.close()
        seconds = self.clock() - began
        for session in sessions:
            if session.finish_reason == "error":
                detail = session.finish.detail if session.finish else ""
                raise DecodingError(f"{session.id}: {detail}") from session.error
        # Who took most steps took part in all, and its counters hold the seconds of whole steps.
        longest = max((session.stats for session in sessions), key=lambda stats: stats.steps)
        return Decoded(
            tokens=tuple(tuple(session.generated) for session in sessions),
            seconds=seconds,
            loop_seconds=looped,
            model_seconds=(
                longest.verify_seconds + longest.sample_seconds + longest.draft_model_seconds
            ),
            steps=sum(session.stats.steps for session in sessions),
            draft_nodes=sum(session.stats.num_draft_tokens for session in sessions),
            first_step=first,
            stats=tuple(
                {"finish_reason": session.finish_reason, **session.stats.as_dict()}
                for session in sessions
            ),
        )


@dataclass(slots=True)
class Peer:
    """Hugging Face's own ``generate``, plain or with prompt lookup; one request at a time."""

    model: Any
    lookup: int | None
    threads: Threads
    clock: Clock = field(default=monotonic)

    def run(self, batch: Batch, label: str, options: dict[str, Any]) -> Decoded:
        self.threads.enter()
        extra = {} if self.lookup is None else {"prompt_lookup_num_tokens": self.lookup}
        (prompt,) = batch.prompts
        began = self.clock()
        row = torch.tensor([prompt], device=self.model.device)
        ids = self.model.generate(row, attention_mask=torch.ones_like(row), **options, **extra)
        tokens = tuple(ids[0, len(prompt) :].tolist())
        return Decoded(tokens=(tokens,), seconds=self.clock() - began)


def runner(
    contestant: Contestant,
    model: Any,
    *,
    threads: Threads,
    log: BudgetLog | NullLog,
    self_check: bool,
) -> Runner:
    """The contestant on ``model``; ``self_check`` once per model is enough."""
    config = contestant.config
    if config is None:
        return Peer(model, contestant.lookup, threads)
    if not self_check:
        config = config.model_copy(update={"self_check": False})
    drafter = NoDrafter() if contestant.policy == PLAIN else None
    return Ours(AdaptiveDecoder(model, config, drafter=drafter, log=log), threads)


def ignore_end(model: Any) -> None:
    """Make no token end a text, for every contestant alike and at no cost.

    ``min_new_tokens`` would add a logits processor, which is slow and not what users run.
    """
    model.generation_config.eos_token_id = None
