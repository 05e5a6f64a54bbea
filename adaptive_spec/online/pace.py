"""How fast decoding goes, for the rules of ``policies``."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from adaptive_spec.online.base import Feedback
from adaptive_spec.online.rules import View


class Pace:
    """Rates over time that was spent decoding, the last hundred steps counting most.

    The time between two steps counts if a request of the later one took part in one of the last
    few, else nobody waited; and if it is not far longer than usual, else its user was away.
    """

    KEEP = 0.99
    LONG = 20.0
    """Times as long as usual, and a second: a pause."""
    TURNS = 8
    """Steps, in which requests may take turns."""

    def __init__(self) -> None:
        self._seconds = self._steps = self._tokens = self._trees = self._whole = 0.0
        self._last = 0.0
        self._present: deque[set[str]] = deque(maxlen=self.TURNS)

    def step(self, now: float, feedback: Sequence[Feedback]) -> None:
        """A step ended, with whatever came between it and the step before."""
        if not feedback:
            return
        present = {one.request for one in feedback}
        passed = now - self._last
        usual = self._seconds / self._steps if self._steps else passed
        if present & set().union(*self._present) and passed <= self.LONG * usual + 1.0:
            self._whole += passed
            self._seconds = self.KEEP * self._seconds + passed
            self._steps = self.KEEP * self._steps + 1.0
            self._tokens = self.KEEP * self._tokens + sum(len(one.tokens) for one in feedback)
            self._trees = self.KEEP * self._trees + len(feedback)
        self._last = now
        self._present.append(present)

    @property
    def trees_per_second(self) -> float:
        return self._trees / self._seconds if self._seconds > 0 else 0.0

    def view(self, trees: int, overconfidence: Sequence[float] = ()) -> View:
        """For a rule, after so many verified trees."""
        return View(
            trees=trees,
            tokens_per_second=self._tokens / self._seconds if self._seconds > 0 else 0.0,
            trees_per_second=self.trees_per_second,
            seconds=self._whole,
            packed=self._trees / self._steps if self._steps else 1.0,
            overconfidence=tuple(overconfidence),
        )
