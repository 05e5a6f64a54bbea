"""What a rule of updates sees, and what it says.

A rule is asked after every step, sees how decoding goes, and says whether a trial is worth its
time; it is told what became of the trials it asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

ARMS = ("full", "corrector", "calibrator")
"""What can be tried on a head; a schedule takes the first one that the head allows."""
RECALL = "recall"
"""The arm that remembers answers of requests that have ended: it leaves the head alone."""
EVERY_ARM = (*ARMS, RECALL)


@dataclass(frozen=True, slots=True)
class View:
    """How decoding goes."""

    trees: int
    """Verified so far."""
    tokens_per_second: float
    """Of late, updates included; 0 while unknown."""
    trees_per_second: float
    seconds: float
    """Of decoding so far; time without requests does not count."""
    overconfidence: tuple[float, ...] = ()
    """Of the head, in those stretches of requests that have ended since the rule was asked last
    (``alarm``)."""
    packed: float = 1.0
    """Trees of a step, which is as many requests."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """A decision that a rule came to, for the log."""

    arm: str | None
    """What to try; None to skip."""
    reason: str
    expected_gain: float | None = None
    """Tokens per second."""
    expected_cost: float | None = None
    """Seconds of the trial."""
    anew: bool = False
    """Text or target has changed: what is remembered is of another time."""


class UpdateRule(Protocol):
    """Says when an update is tried."""

    arms: tuple[str, ...]
    """Those that it may ask for, if the head allows them."""
    several: bool
    """It asks for more than the first one that the head allows."""
    sparse: int
    """One tree and one request in so many is watched as long as nothing has happened."""

    def ask(self, view: View, arms: Sequence[str]) -> Opinion | None:
        """What to try now, of ``arms``; None where there was nothing to decide."""
        ...

    def told(self, arm: str, gain: float, error: float, seconds: float) -> None:
        """What a trial brought: draft tokens per tree, 0 if it was not kept, with their standard
        error, and what it took."""
        ...

    def reviewed(self, stays: bool) -> None:
        """What decoding itself showed of the trials that were kept since the last review."""
        ...
