"""The going rate of a text: tokens per second of its recent steps, at today's prices.

What a second is worth depends on what else could be done with it, so a marginal node is weighed
against the rate at which the text is being decoded anyway: a ratio of sums over recent steps, not
the sum of their ratios (the reward rate of a renewal process). Seconds are those that the latency
model predicts *now* for the sizes that were executed: a machine that becomes slower for everything
alike scales them all, and no decision changes.
"""

from __future__ import annotations

import numpy as np

from adaptive_spec.types import Floats

START_STEPS = 2.0
"""Weight of the plain rate that a request starts with, in steps."""


class GoingRate:
    """Decayed tokens over decayed seconds of one request.

    Args:
        horizon: steps of memory; infinity forgets nothing, 1 knows the last step only.
    """

    def __init__(self, horizon: float) -> None:
        self._keep = 1.0 - 1.0 / horizon
        self._tokens = START_STEPS
        self._steps = np.zeros(64)  # decayed count of steps by packed nodes per request
        self._steps[0] = START_STEPS
        self._drafts = 0.0

    @property
    def largest(self) -> int:
        """Largest size that still counts."""
        return int(np.flatnonzero(self._steps)[-1])

    def observe(self, tokens: int, nodes: int, drafted: bool) -> None:
        """One step that emitted ``tokens``, whose forward had ``nodes`` nodes per request."""
        if nodes >= len(self._steps):
            self._steps = np.append(self._steps, np.zeros(nodes))
        self._steps *= self._keep
        self._steps[self._steps < 1e-6] = 0.0  # an infinite tail would keep ``largest`` for ever
        self._steps[nodes] += 1.0
        self._tokens = self._tokens * self._keep + tokens
        self._drafts = self._drafts * self._keep + drafted

    def tokens_per_second(self, seconds: Floats, draft: float) -> float:
        """The rate at today's prices.

        Args:
            seconds: [> largest] predicted seconds of a step by nodes per request, draft left out.
            draft: predicted seconds of drafting.
        """
        known = min(len(seconds), len(self._steps))
        spent = float(self._steps[:known] @ seconds[:known]) + self._drafts * draft
        return self._tokens / spent if spent > 0 else 0.0
