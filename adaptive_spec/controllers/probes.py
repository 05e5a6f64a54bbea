"""Tries sizes that were not executed for long, now and then, at a bounded price.

What a smaller tree *brings* is known from the one that is executed; what it *costs* is not, and
neither is what a larger one costs. If all steps have about the same size, base and slope of the
cost cannot be told apart, and a wrong guess about the sizes that nobody runs is never corrected:
plain decoding may be much cheaper than thought. So a decoder's first steps include a plain one, at
any price, because everything is measured against it. Later, time is saved up, a little of it with
every step, and spent on a size that has become stale: none at all, the next larger, or half as
much.

Legend: sizes are in one bucket if size + 1 has as many binary digits.
"""

from __future__ import annotations

import numpy as np

from adaptive_spec.controllers.guard import PROBE_SHARE
from adaptive_spec.types import Floats

STALE = 40
"""Steps after which the cost of a bucket of sizes is a guess."""
SAVED, MOST_SAVED = 1.0, 4.0
"""Time for probes in plain steps: what a decoder starts with, and what can be saved up."""
WARM_UP = 3
"""Steps that are no measurements yet."""
LARGER = 1.25
"""Nodes over those of a size from which on another one counts as larger."""


class TimeProbes:
    """When to execute another size than the best."""

    def __init__(self) -> None:
        self._saved, self._step = SAVED, 0
        self._last = np.full(16, -STALE)  # step at which a size of each bucket was executed
        self._largest: list[int] = []  # sizes of the last STALE steps

    def size(self, best: int, worth: Floats, seconds: Floats) -> int:
        """The size to execute instead of ``best``: the same, but for a probe.

        Args:
            worth: [N+1] seconds that the expected tokens of every size are worth.
            seconds: [N+1] predicted seconds of the step for every size.
        """
        self._step += 1
        self._saved = min(self._saved + PROBE_SHARE, MOST_SAVED)
        chosen = best
        if self._step == WARM_UP + 1:
            chosen = 0
        elif self._step > WARM_UP:
            value = worth - seconds
            chosen = self._probe(best, (value[best] - value) / seconds[0], seconds)
        if self._step > WARM_UP:
            self._last[_bucket(chosen)] = self._step
        self._largest = [*self._largest[1 - STALE :], chosen]
        return chosen

    def _probe(self, best: int, loss: Floats, seconds: Floats) -> int:
        """The first stale size that there is time for. Sizes that cost the same are executed alike.

        Args:
            loss: [N+1] what every size costs against the best, in plain steps.
        """
        for size in (0, self._upwards(best, loss), best // 2):
            stale = self._step - self._last[_bucket(size)] > STALE
            known = seconds[size] == seconds[best] or not (stale or size > best)
            if not known and loss[size] <= self._saved:
                self._saved -= max(float(loss[size]), 0.0)
                return size
        return best

    def _upwards(self, best: int, loss: Floats) -> int:
        """The largest affordable size up to twice the best, if nothing larger ran of late."""
        if max(self._largest, default=0) >= LARGER * best + 1:
            return best
        affordable = np.flatnonzero(loss[best + 1 : 2 * best + 2] <= self._saved)
        return best + 1 + int(affordable[-1]) if len(affordable) else best


def _bucket(size: int) -> int:
    return min((size + 1).bit_length() - 1, 15)
