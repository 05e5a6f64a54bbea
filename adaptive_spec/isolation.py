"""Receivers behind a wall: what raises is skipped, counted, and named once."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from adaptive_spec.filling import Filling
from adaptive_spec.profilers.base import Latency
from adaptive_spec.types import Seconds, StepSeconds, Work


class Faults:
    """Exceptions that were swallowed so that decoding goes on."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        """By receiver."""

    def tell(self, receiver: str, call: Callable[..., Any], *facts: Any) -> None:
        """Call, and never fail."""
        try:
            call(*facts)
        except Exception as error:
            self.skip(receiver, error)

    def skip(self, receiver: str, error: Exception) -> None:
        """Count a receiver's exception; the first one warns."""
        self.count[receiver] += 1
        if self.count[receiver] == 1:
            warn_softly(f"{receiver} failed and is skipped: {type(error).__name__}: {error}")


class WalledLatency:
    """A latency model that policies may ask without risk: one that fails knows nothing.

    It is asked about, and told of, what is executed.
    """

    def __init__(self, latency: Latency, faults: Faults, filling: Filling) -> None:
        self._latency, self._faults, self._filling = latency, faults, filling

    def predict(self, work: Work) -> Seconds | None:
        try:
            return self._latency.predict(self._filling.executed(work))
        except Exception as error:
            self._faults.skip("latency", error)
            return None

    def observe(self, work: Work, seconds: StepSeconds) -> None:
        work = self._filling.executed(work)
        self._faults.tell("latency", self._latency.observe, work, seconds)

    def multipliers(self) -> Mapping[str, float] | None:
        try:
            return self._latency.multipliers()
        except Exception as error:
            self._faults.skip("latency", error)
            return None


def warn_softly(message: str) -> None:
    """Warn, but never break a step, also where warnings are errors."""
    with suppress(Exception):
        warnings.warn(message, RuntimeWarning, stacklevel=3)
