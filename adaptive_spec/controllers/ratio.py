"""``ratio``: the size with the most expected tokens per second of this one step."""

from __future__ import annotations

import numpy as np

from adaptive_spec.controllers.adaptive import Adaptive
from adaptive_spec.errors import ArgumentError
from adaptive_spec.types import Floats


class BestRatio(Adaptive):
    """Maximises A(N) / t(N) over all executable sizes.

    The published rule (BASTION, arXiv 2605.29727; CaDDTree, arXiv 2606.01813), here with live
    times, calibrated values and a scan instead of a stop at the first node that does not pay.
    """

    def __init__(self, argument: str | None = None) -> None:
        if argument is not None:
            raise ArgumentError("policy", f"ratio:{argument}", "ratio takes no argument")
        super().__init__(horizon=1.0)

    def choose(self, tokens: Floats, seconds: Floats, theta: float) -> tuple[int, str]:
        rates = tokens / seconds
        best, most = int(np.argmax(rates)), len(tokens) - 1
        if most == 0:
            return best, "ratio: nothing was drafted"
        return best, f"ratio: {best} of {most} nodes give the most, {rates[best]:.1f} tokens/s"
