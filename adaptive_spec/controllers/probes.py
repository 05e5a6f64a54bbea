"""Looks above the sizes that are executed, now and then, at a bounded price.

What a smaller tree costs and brings is known from the one that is executed, more or less; what a
larger one costs is a guess once none was executed for long. If that guess is too high, nobody will
ever find out: so when nothing larger ran for a while, time that was saved up is spent on it.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from adaptive_spec.controllers.guard import PROBE_SHARE
from adaptive_spec.types import Floats

STALE = 40
"""Steps after which the cost of a size is a guess."""
LARGER = 1.25
"""Nodes over those of a size from which on another one counts as larger."""
MOST_SAVED = 0.5
"""Time for probes that can be saved up, in plain steps."""


class UpwardProbes:
    """When to execute more than seems to pay."""

    def __init__(self) -> None:
        self._saved = 0.0
        self._executed: deque[int] = deque([0], maxlen=STALE)

    def size(self, best: int, tokens: Floats, seconds: Floats, theta: float) -> int:
        """The size to execute instead of ``best``: the same, but for a probe.

        Args:
            tokens, seconds, theta: as for ``Adaptive.choose``.
        """
        self._saved = min(self._saved + PROBE_SHARE, MOST_SAVED)
        if max(self._executed) < LARGER * best + 1:
            larger = slice(best + 1, 2 * best + 2)
            spent, won = seconds[larger] - seconds[best], tokens[larger] - tokens[best]
            loss = (spent - won / theta) / seconds[0]
            affordable = np.flatnonzero(loss <= self._saved)
            if len(affordable):
                step = int(affordable[-1])
                self._saved -= max(float(loss[step]), 0.0)
                best += 1 + step
        self._executed.append(best)
        return best
