"""Tries sizes that were not executed for long, now and then, at a bounded price.

What a smaller tree *brings* is known from the one that is executed; what it *costs* is not, and
neither is what a larger one costs. If all steps have about the same size, base and slope of the
cost cannot be told apart, and a wrong guess about the sizes that nobody runs is never corrected:
plain decoding may be much cheaper than thought. So a decoder's first steps include a plain one, at
any price, because everything is measured against it. Later, time is saved up, a little of it with
every step, and spent on sizes that say something new: half of it on plain steps, half on a notably
larger size, or half as much.

Legend: N nodes.
"""

from __future__ import annotations

import math

import numpy as np

from adaptive_spec.controllers.guard import PROBE_SHARE
from adaptive_spec.types import Floats

STALE, PLAIN = 20, 120
"""Steps after which it is a guess what other sizes cost; after which it is what a plain step does,
which is the dearest to try where drafts are good."""
SAVED, MOST_SAVED = 0.5, 2.0
"""Time for probes of either kind, in plain steps: what a decoder starts with, and what can be saved
up."""
WARM_UP = 3
"""Steps that are no measurements yet."""
OTHER = 1.25
"""Ratio of two sizes from which on one says something about the other."""
LONGER = 20
"""Steps between two drafts that are longer than needed, so that a larger size can be tried."""


class TimeProbes:
    """When to execute another size than the best."""

    def __init__(self) -> None:
        self.short = False
        """A larger size is of interest, but less was drafted."""
        self._plain_saved = self._saved = SAVED
        self._step, self._lengthened = 0, -LONGER
        self._sizes: list[int] = []  # of the last PLAIN steps
        self._larger = False  # what the last probe of the other sizes was

    def size(self, best: int, worth: Floats, seconds: Floats) -> int:
        """The size to execute instead of ``best``: the same, but for a probe.

        Args:
            worth: [N+1] seconds that the expected tokens of every size are worth.
            seconds: [N+1] predicted seconds of the step for every size.
        """
        self._step += 1
        share = PROBE_SHARE / 2
        self._plain_saved = min(self._plain_saved + share, MOST_SAVED)
        self._saved = min(self._saved + share, MOST_SAVED)
        chosen, self.short = best, False
        if self._step == WARM_UP + 1:
            chosen = 0
        elif self._step > WARM_UP:
            value = worth - seconds
            chosen = self._probe(best, (value[best] - value) / seconds[0], seconds)
        if self._step > WARM_UP:
            self._sizes = [*self._sizes[1 - PLAIN :], chosen]
        return chosen

    def _probe(self, best: int, loss: Floats, seconds: Floats) -> int:
        """A size of interest, if there is time for it. Sizes that cost the same are alike.

        Args:
            loss: [N+1] what every size costs against the best, in plain steps.
        """
        if best and 0 not in self._sizes and loss[0] <= self._plain_saved:
            self._plain_saved -= max(float(loss[0]), 0.0)
            return 0
        larger, smaller = self._upwards(best, loss), self._downwards(best)
        first, other = (smaller, larger) if self._larger else (larger, smaller)  # by turns
        size = other if first is None else first
        if size is None or seconds[size] == seconds[best] or loss[size] > self._saved:
            return best
        self._saved -= max(float(loss[size]), 0.0)
        self._larger = size > best
        return size

    def _downwards(self, best: int) -> int | None:
        """Half as much, if nothing notably smaller ran of late but for plain steps."""
        smaller = any(0 < size * OTHER <= best for size in self._sizes[-STALE:])
        return None if smaller or best < 2 else best // 2

    def _upwards(self, best: int, loss: Floats) -> int | None:
        """The largest affordable size up to twice the best, if nothing larger ran of late."""
        least = math.ceil(OTHER * best + 1)
        if max(self._sizes[-STALE:], default=0) >= least:
            return None
        if len(loss) <= least and self._step - self._lengthened >= LONGER:
            self.short, self._lengthened = True, self._step
        affordable = np.flatnonzero(loss[least : 2 * best + 2] <= self._saved)
        return least + int(affordable[-1]) if len(affordable) else None
