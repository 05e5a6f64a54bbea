"""Where the seconds of a step went."""

from __future__ import annotations

import time
from collections.abc import Callable

from adaptive_spec.types import StepSeconds

Clock = Callable[[], float]
"""Seconds from any origin, never going back."""

monotonic: Clock = time.perf_counter


class Laps:
    """Splits the time since it was made into named parts; what is not named is host time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = clock()
        self._seconds: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """Everything since the last mark was spent on ``part``."""
        now = self._clock()
        self._seconds[part] = self._seconds.get(part, 0.0) + (now - self._last)
        self._last = now

    def seconds(self) -> StepSeconds:
        """The parts so far; the open rest is host time."""
        self.mark("host")
        taken = dict.fromkeys(("draft", "verify", "sample", "host"), 0.0) | self._seconds
        return StepSeconds(taken["draft"], taken["verify"], taken["sample"], taken["host"])
