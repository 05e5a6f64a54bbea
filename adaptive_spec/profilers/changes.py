"""Has the machine changed, or was it an outlier? Nothing is believed until it is confirmed.

A measurement that is far off is held back: nobody learns from it. Three that are off in the same
part and direction, without an ordinary one of comparable size in between, are a change. What
nothing confirms is an outlier. Small deviations that last are found by a cumulative sum (Page
1954).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from adaptive_spec.profilers.filters import Judged
from adaptive_spec.profilers.samples import VERIFY, Sample

FAR, SIGMAS, SHARE = math.log(1.5), 4.0, 0.05
"""A part is far off beyond this logarithm and so many standard deviations, and if what it is off by
is at least this share of the step."""
MOVED, ALIKE = 0.2, 0.1
"""Verification moved if the median of its errors in a confirmed change is beyond the first; parts
whose median differs from its by less than the second moved with it."""
CONFIRM = 3
"""Deviations in one direction that make a change."""
MEMORY = 12
"""Measurements after which a deviation that nothing confirmed is forgotten."""
OCTAVE = 2.0
"""Forwards whose rows differ by at most this factor are of comparable size."""
SLACK, ALARM = 0.5, 5.0
"""Of the sums of errors, in standard deviations: a lasting deviation of two is found after four.
Normal noise gives a false alarm about every 500 steps, which only speeds learning up for a while.
"""
SCATTER, SCATTER_ALARM = 2.0, 14.0
"""Of the sum of squared errors: sizes that err by three deviations to either side, as after a
change of the slope alone, are found after three steps."""


def far_off(sample: Sample, judged: Mapping[str, Judged]) -> dict[str, int]:
    """The parts that are far off by a notable share of the step, and in which direction."""
    seconds = sample.seconds
    expected = {part: seconds[part] * math.exp(-each.error) for part, each in judged.items()}
    notable = SHARE * sum(expected.values())
    return {
        part: 1 if each.error > 0 else -1
        for part, each in judged.items()
        if abs(each.error) > max(FAR, SIGMAS * each.spread)
        and abs(seconds[part] - expected[part]) > notable
    }


@dataclass(frozen=True, slots=True)
class Jump:
    """By how much a part moved in a confirmed change."""

    error: float
    """Median of its errors, as a logarithm."""
    spread: float
    """Median of what was to be expected of them."""

    def nearest(self, *candidates: float) -> float:
        """The nearest candidate if it explains the jump, else the jump itself."""
        best = min(candidates, key=lambda candidate: abs(candidate - self.error))
        return best if abs(best - self.error) <= max(ALIKE, 2 * self.spread) else self.error


def middle(window: Sequence[Mapping[str, Judged]], part: str) -> Jump:
    """The jump of a part, from the samples of ``window`` in which it occurs."""
    errors = [judged[part] for judged in window if part in judged]
    return Jump(median(each.error for each in errors), median(each.spread for each in errors))


def common_jump(jumps: Mapping[str, Jump]) -> float:
    """By how much verification and all that moved like it moved, 0 if verification did not.

    The mean of their jumps, each weighted by its precision: what differs between them is noise.
    """
    moved = jumps[VERIFY].error
    if abs(moved) <= MOVED:
        return 0.0
    alike = [jump for jump in jumps.values() if jump.nearest(moved, 0.0) == moved]
    weights = [1.0 / jump.spread**2 for jump in alike]
    return sum(w * jump.error for w, jump in zip(weights, alike, strict=True)) / sum(weights)


@dataclass(slots=True)
class _Held:
    sample: Sample
    signs: dict[str, int]
    age: int = 0


@dataclass(slots=True)
class Suspects:
    """Samples that were held back."""

    _held: list[_Held] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, sample: Sample, signs: Mapping[str, int]) -> list[Sample]:
        """Hold ``sample`` back.

        Args:
            signs: the parts that are far off, and in which direction (1 or -1).

        Returns:
            The samples that together confirm a change, oldest first; empty while there is none.
        """
        for held in self._held:
            for part, sign in signs.items():
                if held.signs.get(part) == -sign:
                    del held.signs[part]
        self._settle()
        self._held.append(_Held(sample, dict(signs)))
        for part, sign in signs.items():
            agreeing = [held.sample for held in self._held if held.signs.get(part) == sign]
            if len(agreeing) >= CONFIRM:
                self._held.clear()
                return agreeing
        return []

    def refute(self, sample: Sample) -> list[str]:
        """An ordinary sample contradicts what was held of its parts, for verification only what was
        held at a comparable size.

        Returns:
            The parts that were contradicted, once for every sample that was held: outliers.
        """
        outliers = []
        for held in self._held:
            for part in sample.seconds.keys() & held.signs.keys():
                if part != VERIFY or _comparable(sample, held.sample):
                    del held.signs[part]
                    outliers.append(part)
        self._settle()
        return outliers

    def _settle(self) -> None:
        """One step later: forget what is refuted or old."""
        for held in self._held:
            held.age += 1
        self._held = [held for held in self._held if held.signs and held.age < MEMORY]


def _comparable(one: Sample, other: Sample) -> bool:
    rows = sorted((one.spot.rows, other.spot.rows))
    return rows[1] <= OCTAVE * rows[0]


class CumulativeSums:
    """Sums of standardised errors, upwards and downwards, and of their squares."""

    def __init__(self) -> None:
        self._up = self._down = self._scatter = 0.0
        self.size = 0.0
        """Root mean square of the last few errors."""

    def alarm(self, error: float, standard: float) -> bool:
        """Add an error; True if errors have leaned to one side, or been large, for too long.

        After an alarm half of each sum stays, so a drift that goes on is soon found again.

        Args:
            error: as a logarithm.
            standard: in standard deviations.
        """
        self.size = math.sqrt(0.7 * self.size**2 + 0.3 * error**2)
        self._up = max(0.0, self._up + standard - SLACK)
        self._down = max(0.0, self._down - standard - SLACK)
        self._scatter = max(0.0, self._scatter + standard * standard - SCATTER)
        if max(self._up, self._down) <= ALARM and self._scatter <= SCATTER_ALARM:
            return False
        self._up, self._down, self._scatter = self._up / 2, self._down / 2, self._scatter / 2
        return True

    def reset(self) -> None:
        """Forget everything, after a change that was dealt with."""
        self._up = self._down = self._scatter = 0.0
