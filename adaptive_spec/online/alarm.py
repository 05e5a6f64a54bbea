"""Whether a head has come to be wrong more often than it expects: text or target has changed.

What is accepted says little about that, because texts differ by more than a changed target costs.
A head that knows its target is as sure of its guesses as the target bears out, on easy and on hard
text alike; so the signal is by how much it is surer (its overconfidence). On the shipped head means
over eight trees differ from text to text by 0.07 around 0, and a target that was turned until a
quarter of the tokens per forward were lost moves them by 0.21 (docs/decisions.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence

import numpy as np

STRETCH = 8
"""Trees of one request whose values make one: trees of a text are alike, so single ones say less
than they seem to. What is over of short texts is put together."""
REST = ""
"""Name of what is over."""


class Stretches:
    """Means over stretches of one request each."""

    TURNS = 8
    """Steps without a request after which it is taken to be over: requests may take turns."""

    def __init__(self) -> None:
        self._open: dict[str, list[float]] = {}
        self._step, self._heard = 0, dict[str, int]()
        self.ended: list[float] = []
        """Whoever reads them empties it."""

    def observe(self, values: Mapping[str, float], present: Collection[str]) -> None:
        """Values of requests, those that are not finite left out, and all requests of the step."""
        self._step += 1
        self._heard |= dict.fromkeys(present, self._step)
        for gone in [name for name, at in self._heard.items() if self._step - at > self.TURNS]:
            del self._heard[gone]
            self._add(REST, self._open.pop(gone, []))
        for name, value in values.items():
            if np.isfinite(value):
                self._add(name, [value])

    def _add(self, name: str, values: list[float]) -> None:
        found = [*self._open.pop(name, []), *values]
        if len(found) >= STRETCH:
            self.ended.append(float(np.mean(found)))
        else:
            self._open[name] = found


class Alarm:
    """Compares the newest stretches with those before them.

    Args:
        pause: seconds of decoding in which there is no second alarm; twice as long after each that
            led to nothing, up to ``LONGEST`` times. What rises meanwhile and stays is heard then.
    """

    NEW, MEMORY = 12, 256
    """Stretches that are compared, and about how many of those before them are remembered."""
    SEEN = 16
    """Of those before, at least: their deviation is known by then."""
    RISE, LEAST = 3.5, 0.04
    """Standard errors between them at which something has changed, and the least rise."""
    UNSURE = 8.0
    """Stretches after which the deviation of those before is only known to within a factor."""
    LONGEST = 16.0

    def __init__(self, pause: float) -> None:
        self._first = self._pause = pause
        self._calm = 0.0
        self._new: deque[float] = deque()
        self._begin()

    def _begin(self) -> None:
        self._seen, self._mean, self._variance = 0, 0.0, 0.0

    def risen(self, stretches: Sequence[float], seconds: float) -> float:
        """By how much overconfidence has risen, if that counts, else 0.

        Args:
            stretches: that have ended since this was asked last. seconds: of decoding so far.
        """
        found = max((self._risen(value) for value in stretches), default=0.0)
        if not found or seconds < self._calm:
            return 0.0
        self._calm = seconds + self._pause
        self._pause = min(2.0 * self._pause, self.LONGEST * self._first)
        self._begin()
        return found

    def led_somewhere(self) -> None:
        """Something was won since the last alarm."""
        self._pause = self._first

    def _risen(self, value: float) -> float:
        self._new.append(value)
        if len(self._new) <= self.NEW:
            return 0.0
        old = self._new.popleft()
        if self._seen >= self.SEEN and (more := self._more()) > 0.0:
            return more  # ``old`` may be of the new time already: not to be compared with
        self._seen += 1
        rate = max(1.0 / self.MEMORY, 1.0 / self._seen)
        off = old - self._mean
        self._mean += rate * off
        self._variance += rate * ((1.0 - rate) * off**2 - self._variance)
        return 0.0

    def _more(self) -> float:
        """The rise, 0 where it may be chance. Either side's deviation is its own: text may come to
        vary more without a change of its mean."""
        more = float(np.mean(self._new)) - self._mean
        newest = (self._variance * 3.0 + float(np.var(self._new, ddof=1))) / 4.0 / self.NEW
        error = np.sqrt(newest + self._variance / min(self._seen, self.MEMORY))
        unsure = 1.0 + self.UNSURE / self._seen
        return more if more > max(self.RISE * unsure * error, self.LEAST) else 0.0
