"""What the arms have in common: a trial never touches what drafts.

A trial changes a copy, judges it on what was held out, and says what came of it; only then, between
two steps, is the copy taken over or thrown away. It goes on in short pieces, so that a deadline or
a thread of its own can hold it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from adaptive_spec.types import Floats

CLIP = 1.0
"""Largest norm of a gradient."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trial."""

    gain: float
    """Draft tokens per tree that the new weights expect more on what was held out."""
    error: float
    """Standard error of ``gain`` over trees."""
    kept: bool
    reason: str
    failed: bool = False
    """There is no judgement: something was not finite, or raised."""

    @staticmethod
    def of(more: Floats) -> Outcome:
        """Judged by what every tree or window [n] gains: better by more than one standard error,
        or not. The error is ``inf`` where it cannot be known.
        """
        if not np.isfinite(more).all():
            return NOT_FINITE
        error = float(more.std(ddof=1)) / np.sqrt(len(more)) if len(more) > 1 else np.inf
        gain = float(more.mean()) if len(more) else 0.0
        kept = gain > error
        return Outcome(gain, float(error), kept, "better" if kept else "no better")


NOT_FINITE = Outcome(0.0, 0.0, False, "not finite", failed=True)


def failure(error: BaseException | None = None) -> Outcome:
    """A trial that ended without an outcome, and what ended it."""
    words = "failed" if error is None else f"failed: {type(error).__name__}: {error}"
    return Outcome(0.0, 0.0, False, words[:200], failed=True)


class Arm(Protocol):
    """One way to change what is drafted."""

    name: str
    needs_passages: bool
    """It learns from texts with their taps, and not from lessons."""
    moves_head: bool
    """It changes weights of the head, and not something beside it."""

    def pieces(self) -> Iterator[Outcome | None] | None:
        """A trial, whose last piece is its outcome; None while there is too little to learn from.

        Between two pieces anything may wait; nothing that drafts is changed by any of them.
        """
        ...

    def settle(self, kept: bool) -> None:
        """Take the copy over, or make it what the weights are; between two steps."""
        ...


def limited(weights: Sequence[torch.Tensor], also: float = 0.0) -> bool:
    """Clip the gradients of ``weights`` together; whether they and ``also`` are finite."""
    norm = torch.nn.utils.clip_grad_norm_([w for w in weights if w.grad is not None], CLIP)
    return bool(np.isfinite(float(norm) + also))
