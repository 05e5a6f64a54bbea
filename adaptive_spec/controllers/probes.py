"""Looks above the sizes that are executed, now and then, at a bounded price.

What a smaller tree costs and brings is known from the one that is executed, more or less; what a
larger one costs is a guess once none was executed for long. If that guess is too high, nobody will
ever find out: so the next size is tried when it has become stale and enough time has been saved up.
"""

from __future__ import annotations

import numpy as np

from adaptive_spec.controllers.guard import PROBE_SHARE
from adaptive_spec.types import Floats

STALE = 40
"""Steps after which the cost of a size is a guess."""
MOST_SAVED = 0.5
"""Time for probes that can be saved up, in plain steps."""


class UpwardProbes:
    """When to execute more than seems to pay. Sizes count by powers of two of the rows."""

    def __init__(self) -> None:
        self._saved, self._step = 0.0, 0
        self._last = np.full(16, -STALE)  # step at which a size of each bucket was executed

    def size(self, best: int, tokens: Floats, seconds: Floats, theta: float) -> int:
        """The size to execute instead of ``best``: the same, but for a probe.

        Args:
            tokens, seconds, theta: as for ``Adaptive.choose``.
        """
        self._step += 1
        self._saved = min(self._saved + PROBE_SHARE, MOST_SAVED)
        larger = 2 * best + 1
        if larger < len(tokens) and self._is_stale(larger):
            spent, won = seconds[larger] - seconds[best], tokens[larger] - tokens[best]
            loss = float((spent - won / theta) / seconds[0])
            if loss <= self._saved:
                self._saved -= max(loss, 0.0)
                best = larger
        self._last[_bucket(best)] = self._step
        return best

    def _is_stale(self, size: int) -> bool:
        return bool(self._step - self._last[_bucket(size) :].max() > STALE)


def _bucket(size: int) -> int:
    return min((size + 1).bit_length() - 1, 15)
