"""What became of an update that was kept: what trees accepted after it, against before it.

An update is judged on what was held out before it is taken over; this looks at decoding itself
afterwards. A few hundred trees tell a collapse from noise, not a gain of a per cent, so an update
is only undone if acceptance fell by many standard errors.

Legend: n trees.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one update, or of some that followed each other closely."""

    arm: str
    """Names of the arms, joined by plus signs."""
    gain: float
    """Draft tokens accepted per tree, after it less before it."""
    error: float
    """Standard error of ``gain``, if trees were independent."""
    before: Weights | None
    """The weights to go back to; None where it stays."""


class Review:
    """Watches one update at a time; those that come before its verdict are judged with it, and the
    weights to go back to are those before the first: else a row of bad updates would never be."""

    TREES = 256
    """Before and after, at most and at least."""
    FALL = 4.0
    """Standard errors of a fall after which an update is undone: trees of one text are alike."""

    def __init__(self) -> None:
        self._before: deque[int] = deque(maxlen=self.TREES)
        self._after: list[int] = []
        self._arm: str | None = None
        self._weights: Weights = {}

    def tree(self, accepted: int) -> None:
        """A tree was verified."""
        if self._arm is None:
            self._before.append(accepted)
        else:
            self._after.append(accepted)

    @property
    def before(self) -> Weights | None:
        """The weights before the updates that are watched; None while there are none."""
        return None if self._arm is None else self._weights

    def begin(self, arm: str, before: Weights) -> None:
        """An update of ``arm`` was taken over; ``before`` are the weights until then."""
        if self._arm is None:
            self._arm, self._weights, self._after = arm, before, []
        elif arm not in self._arm.split("+"):
            self._arm = f"{self._arm}+{arm}"

    def end(self) -> None:
        """Nothing is watched any more."""
        self._arm, self._weights, self._after = None, {}, []

    def verdict(self) -> Verdict | None:
        """Of the update that is watched, once enough trees were seen; then it is watched no more.

        The weights before it are let go of as well.
        """
        if self._arm is None or len(self._after) < self.TREES:
            return None
        arm, weights, before, after = self._arm, self._weights, list(self._before), self._after
        self.end()
        self._before.extend(after)
        if len(before) < self.TREES // 4:
            return None
        gain = float(np.mean(after) - np.mean(before))
        error = float(np.sqrt(np.var(after) / len(after) + np.var(before) / len(before)))
        return Verdict(arm, gain, error, weights if gain < -self.FALL * error else None)
