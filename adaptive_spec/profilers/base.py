"""The two profiler protocols and their null objects.

The decoder owns one of each. Until something is measured the null objects stand in, and the log
fields that they would fill are null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.types import Floats, Labels, Seconds, StepSeconds, Work


class Latency(Protocol):
    """Seconds of a packed step, from live timings."""

    def predict(self, work: Work) -> Seconds | None:
        """Seconds by part for every entry of ``work.nodes``; None while nothing is known."""
        ...

    def observe(self, work: Work, seconds: StepSeconds) -> None:
        """One executed step; ``work.nodes`` has one entry."""
        ...

    def multipliers(self) -> Mapping[str, float] | None:
        """Live multipliers by part (draft, verify_base, verify_slope, host); None if none."""
        ...


class Acceptance(Protocol):
    """Probability that an edge of a candidate tree is accepted."""

    def calibrate(self, tree: CandidateTree, temperature: float) -> Floats:
        """[N] probability in [0, 1] that node i is the target's choice, given its parent."""
        ...

    def combine(self, several: Sequence[Floats], temperature: float) -> Floats:
        """[N] probability of edges that several drafters propose.

        Args:
            several: per drafter [N] calibrated probability, NaN where it did not propose the edge.
        """
        ...

    def observe(self, tree: CandidateTree, labels: Labels, temperature: float) -> None:
        """What the target said of every edge of one verified tree."""
        ...

    def observe_combined(
        self, several: Sequence[Floats], labels: Labels, temperature: float
    ) -> None:
        """The same for edges that several drafters proposed."""
        ...


class NullLatency:
    """Knows nothing about time."""

    def predict(self, work: Work) -> Seconds | None:
        return None

    def observe(self, work: Work, seconds: StepSeconds) -> None:
        return None

    def multipliers(self) -> Mapping[str, float] | None:
        return None


class NullAcceptance:
    """Takes the drafter's own probabilities at face value."""

    def calibrate(self, tree: CandidateTree, temperature: float) -> Floats:
        return np.exp(tree.logq)

    def combine(self, several: Sequence[Floats], temperature: float) -> Floats:
        best: Floats = np.fmax.reduce(list(several))
        return best

    def observe(self, tree: CandidateTree, labels: Labels, temperature: float) -> None:
        return None

    def observe_combined(
        self, several: Sequence[Floats], labels: Labels, temperature: float
    ) -> None:
        return None
