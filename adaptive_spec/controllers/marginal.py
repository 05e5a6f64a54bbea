"""``marginal``: grow the tree until the next nodes cost more time than they bring tokens."""

from __future__ import annotations

from math import inf, isfinite

import numpy as np

from adaptive_spec.controllers.adaptive import Adaptive
from adaptive_spec.errors import ArgumentError
from adaptive_spec.types import Floats

DEFAULT_HORIZON = 48.0


class MarginalGain(Adaptive):
    """Maximises A(N) - theta * t(N) over all executable sizes.

    ``theta`` is the going rate of the text, so the rule maximises tokens per second over the
    horizon and not of the single step (Dinkelbach 1967: the best ratio of sums is found by
    maximising the difference at the going ratio). On a convex cost curve this is growing best-first
    until the marginal gain falls below the marginal cost; real curves are staircases, so all sizes
    are scanned.

    Args:
        argument: horizon in steps, 1 or more, or ``inf``; None for 48.
    """

    def __init__(self, argument: str | None = None) -> None:
        super().__init__(DEFAULT_HORIZON if argument is None else _horizon(argument))

    def choose(self, tokens: Floats, seconds: Floats, theta: float) -> tuple[int, str]:
        value = tokens - theta * seconds
        best = int(np.argmax(value))
        return best, _words(best, tokens, seconds, theta)


def _words(best: int, tokens: Floats, seconds: Floats, theta: float) -> str:
    most = len(tokens) - 1
    if most == 0:
        return "marginal: nothing was drafted"
    if best == most:
        return f"marginal: all {most} nodes pay at {theta:.1f} tokens/s"
    gain = tokens[best + 1] - tokens[best]
    cost = theta * (seconds[best + 1] - seconds[best])
    return (
        f"marginal: {best} of {most} nodes pay at {theta:.1f} tokens/s; "
        f"the next brings {gain:.3f} tokens, its time is worth {cost:.3f}"
    )


def _horizon(text: str) -> float:
    try:
        steps = float(text)
    except ValueError:
        steps = 0.0
    if not (steps >= 1 and (isfinite(steps) or steps == inf)):
        allowed = "marginal:H takes a horizon of H steps, 1 or more, or inf"
        raise ArgumentError("policy", f"marginal:{text}", allowed)
    return steps
