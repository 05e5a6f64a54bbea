"""Tries sizes that were not executed for long, now and then, at a bounded price.

What a smaller tree *brings* is known from the one that is executed; what it *costs* is not, and
neither is what a larger one costs. If all steps have about the same size, base and slope of the
cost cannot be told apart, and a wrong guess about the sizes that nobody runs is never corrected:
plain decoding may be much cheaper than thought. So a decoder's first steps include a plain one, at
any price, because everything is measured against it. Later, time is saved up, a little of it with
every step, and spent on sizes that say something new: none at all, a notably larger one, or half as
much. What surprises is tried again.

Legend: N nodes.
"""

from __future__ import annotations

import math

import numpy as np

from adaptive_spec.controllers.guard import PROBE_SHARE
from adaptive_spec.profilers.changes import CONFIRM
from adaptive_spec.types import Floats

STALE, PLAIN = 20, 120
"""Steps after which it is a guess what other sizes cost; after which it is what a plain step does,
which is the dearest to try where drafts are good."""
SAVED, MOST_SAVED = 1.0, 4.0
"""Time for probes in plain steps: what a decoder starts with, and what can be saved up."""
WARM_UP = 3
"""Steps that are no measurements yet."""
SURPRISE = 1.1
"""Ratio of measured and predicted seconds beyond which a probe is to be confirmed."""
OTHER = 1.25
"""Ratio of two sizes from which on one says something about the other."""


class TimeProbes:
    """When to execute another size than the best."""

    def __init__(self) -> None:
        self._saved, self._step = SAVED, 0
        self.short = False
        """A larger size is of interest, but less was drafted."""
        self._sizes: list[int] = []  # of the last PLAIN steps
        self._probed: int | None = None  # what the last step tried
        self._again: int | None = None  # what is to be tried once more
        self._surprises = 0  # probes in a row that were far off

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
            self._sizes = [*self._sizes[1 - PLAIN :], chosen]
        self._probed = chosen if chosen != best else None
        return chosen

    def observe(self, seconds: float, expected: float) -> None:
        """What the last step took, and what it was to take (0 if unknown).

        If it was a probe and that is far off, it is tried again, with an ordinary step in between:
        a latency model believes what it sees several times, and only of sizes that do not agree.
        """
        if self._probed is not None:
            far = expected > 0 and not expected < seconds * SURPRISE < expected * SURPRISE**2
            self._surprises = self._surprises + 1 if far else 0
            self._again = self._probed if 0 < self._surprises < CONFIRM else None

    def _probe(self, best: int, loss: Floats, seconds: Floats) -> int:
        """The first size of interest that there is time for. Sizes that cost the same are alike.

        Args:
            loss: [N+1] what every size costs against the best, in plain steps.
        """
        wanted = (self._again, self._plain(), self._upwards(best, loss), self._downwards(best))
        for size in wanted if self._probed is None else ():
            if size is None or size >= len(loss) or seconds[size] == seconds[best]:
                continue
            if loss[size] <= self._saved:
                self._saved -= max(float(loss[size]), 0.0)
                return size
        return best

    def _plain(self) -> int | None:
        return None if 0 in self._sizes else 0

    def _downwards(self, best: int) -> int | None:
        """Half as much, if nothing notably smaller ran of late but for plain steps."""
        smaller = any(0 < size * OTHER <= best for size in self._sizes[-STALE:])
        return None if smaller or best < 2 else best // 2

    def _upwards(self, best: int, loss: Floats) -> int | None:
        """The largest affordable size up to twice the best, if nothing larger ran of late."""
        least = math.ceil(OTHER * best + 1)
        if max(self._sizes[-STALE:], default=0) >= least:
            self.short = False
            return None
        self.short = len(loss) <= least
        affordable = np.flatnonzero(loss[least : 2 * best + 2] <= self._saved)
        return least + int(affordable[-1]) if len(affordable) else None
