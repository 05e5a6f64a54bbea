"""How fast decoding goes, for the rules of ``policies``."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_spec.online.base import Feedback
from adaptive_spec.online.policies import View

STRETCH = 32
"""Trees of one request whose acceptance is told as one number: trees of a text are alike, so single
ones say less than they seem to."""
OPEN = 256
"""Requests whose present stretch is remembered."""


class Pace:
    """Rates over time that was spent decoding, the last hundred steps counting most.

    The time between two steps counts if a request took part in both, else nobody waited; and if it
    is not far longer than usual, else its user was away.
    """

    KEEP = 0.99
    LONG = 20.0
    """Times as long as usual, and a second: a pause."""

    def __init__(self) -> None:
        self._seconds = self._steps = self._tokens = self._trees = self._whole = 0.0
        self._last = 0.0
        self._present: set[str] = set()
        self._open: dict[str, tuple[int, int]] = {}
        self.stretches: list[float] = []
        """Draft tokens per tree of stretches that have ended; whoever reads them empties it."""

    def step(self, now: float, feedback: Sequence[Feedback]) -> None:
        """A step ended, with whatever came between it and the step before."""
        if not feedback:
            return
        present = {one.request for one in feedback}
        passed = now - self._last
        usual = self._seconds / self._steps if self._steps else passed
        if present & self._present and passed <= self.LONG * usual + 1.0:
            self._whole += passed
            self._seconds = self.KEEP * self._seconds + passed
            self._steps = self.KEEP * self._steps + 1.0
            self._tokens = self.KEEP * self._tokens + sum(len(one.tokens) for one in feedback)
            self._trees = self.KEEP * self._trees + len(feedback)
        for one in feedback:
            self._stretch(one.request, len(one.path) - 1)
        self._last, self._present = now, present

    def _stretch(self, request: str, accepted: int) -> None:
        trees, tokens = self._open.pop(request, (0, 0))
        trees, tokens = trees + 1, tokens + accepted
        if trees == STRETCH:
            self.stretches.append(tokens / trees)
            return
        self._open[request] = trees, tokens
        if len(self._open) > OPEN:
            del self._open[next(iter(self._open))]

    @property
    def trees_per_second(self) -> float:
        return self._trees / self._seconds if self._seconds > 0 else 0.0

    def view(self, trees: int) -> View:
        """For a rule, after so many verified trees."""
        return View(
            trees=trees,
            tokens_per_second=self._tokens / self._seconds if self._seconds > 0 else 0.0,
            trees_per_second=self.trees_per_second,
            seconds=self._whole,
            stretches=tuple(self.stretches),
        )
