"""The live latency model: a roofline, corrected by what the last steps took.

Policies only use ratios between predicted seconds. So a step that is far off changes no prediction
until it is confirmed (``changes``); then all parts move in the same observation, and parts that
moved alike are moved by the same number: while everything slows down alike, and right after, the
ratios between predicted seconds stay what they were. Where sizes did not jump alike or errors last,
the shares of base, slope and residuals are doubted, so a jump of one of them alone is found within
a few steps of differing sizes.

Legend: N entries of ``Work.nodes``. Parts: verify, host, and one per drafter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptive_spec.errors import CalibrationError
from adaptive_spec.profilers import stored
from adaptive_spec.profilers.changes import CumulativeSums, Suspects, common_jump, far_off, middle
from adaptive_spec.profilers.filters import (
    LIMIT,
    NOISE_CURVE,
    NOISE_LEAST,
    NOISE_LEVEL,
    Curve,
    Judged,
    Level,
)
from adaptive_spec.profilers.residuals import KNOTS, STEEP
from adaptive_spec.profilers.roofline import Roofline
from adaptive_spec.profilers.samples import DRAFT, HOST, LEAST, VERIFY, Sample, host_units, take
from adaptive_spec.types import Seconds, StepSeconds, Work

if TYPE_CHECKING:
    from adaptive_spec.profilers.calibration import Calibration

VERSION = 1
PRIOR_DRAFT, PRIOR_HOST = 0.2e-3, 0.25e-3
"""Seconds of a drafter's call, and of a unit of host work, before the first measurement."""
COLD = math.log(2.0)
"""The first forward of a size may compile or tune: dropped if it is too slow by this logarithm."""
UNIFORM, SPLIT = 1.5, 0.3
"""Steps whose errors are within so many standard deviations of the jump jumped alike; if they did
not, it is doubted by this share of the jump how base and slope share it."""
KNOWN = 0.05
"""Share of the prior covariance that a stored calibration or state leaves."""


class LiveLatency:
    """Predicts and learns the seconds of packed steps. Implements ``Latency``; never answers None.

    Args:
        roofline: the shape to begin with, on this device.
        calibration: a measured shape in place of the theoretical one, and what was learned on it.
        priors: seconds per call expected of drafters, by name.
        warmup: steps to drop at first.

    Raises:
        CalibrationError: the calibration's stored state is damaged.
    """

    def __init__(
        self,
        roofline: Roofline,
        *,
        calibration: Calibration | None = None,
        priors: Mapping[str, float] | None = None,
        warmup: int = 2,
    ) -> None:
        self._roofline, self._curve = roofline, Curve()
        if calibration is not None:
            self._roofline = replace(roofline, coefficients=calibration.coefficients)
            self._curve = Curve(np.array(calibration.residuals), KNOWN)
        self._priors = dict(priors or {})
        self._levels = {HOST: Level(PRIOR_HOST)}
        self._warmup, self._seen = warmup, set[int]()
        self._suspects, self._sums = Suspects(), CumulativeSums()
        self.ignored = 0
        """Observations that are no measurements: zero, negative or not finite seconds."""
        self.cold = 0
        """First calls that were dropped."""
        self.held = 0
        """Observations far off that were held back; outliers unless a change confirmed them."""
        self.changes = 0
        """Confirmed changes."""
        if calibration is not None and calibration.latency:
            self.restore(calibration.latency)

    def predict(self, work: Work) -> Seconds:
        """Seconds by part, each [N]; the drafters' seconds are the same for every entry."""
        shape = self._roofline.shape(work.nodes, work.requests, work.context)
        draft = sum(self._drafting(name) for name in work.drafters)
        return Seconds(
            draft=np.full(len(work.nodes), draft),
            verify=self._curve.seconds(shape),
            host=self._levels[HOST].seconds * host_units(work.nodes, work.requests),
        )

    def observe(self, work: Work, seconds: StepSeconds) -> None:
        """Learn from one executed step. What is no measurement is ignored and counted."""
        sample = take(work, seconds, self._roofline, self._drafting)
        if sample is None:
            self.ignored += 1
        elif self._is_cold(sample):
            self.cold += 1
        elif signs := far_off(sample, judged := self._judge(sample)):
            self.held += 1
            if window := self._suspects.hold(sample, signs):
                self._rebase(window)
        else:
            for part in self._suspects.refute(sample):
                (self._curve if part == VERIFY else self._levels[part]).blur()
            self._learn(sample, judged)

    def multipliers(self) -> dict[str, float]:
        """Current over expected seconds: of all measured drafters together, of the roofline's base
        and slope, and of the host."""
        host = self._levels[HOST]
        drafts = [level for part, level in self._levels.items() if part != HOST]
        expected = sum(level.prior for level in drafts)
        return {
            "draft": sum(level.seconds for level in drafts) / expected if drafts else 1.0,
            "verify_base": self._curve.base,
            "verify_slope": self._curve.slope,
            "host": host.seconds / host.prior,
        }

    def _drafting(self, name: str) -> float:
        """Seconds expected of a drafter's call."""
        level = self._levels.get(DRAFT + name)
        return self._prior(name) if level is None else level.seconds

    def _prior(self, name: str) -> float:
        return max(self._priors.get(name, PRIOR_DRAFT), LEAST)

    def _level(self, part: str) -> Level:
        """The level of a part; drafters get theirs when they are first measured."""
        if part not in self._levels:
            self._levels[part] = Level(self._prior(part.removeprefix(DRAFT)))
        return self._levels[part]

    def _is_cold(self, sample: Sample) -> bool:
        """One of the first steps, or the first of its size if it took far too long."""
        rows = int(sample.spot.rows)
        new = rows not in self._seen
        self._seen.add(rows)
        if self._warmup > 0:
            self._warmup -= 1
            return True
        if not (new and self._curve.known):
            return False
        return self._curve.judge(sample.spot, sample.seconds[VERIFY]).error > COLD

    def _judge(self, sample: Sample) -> dict[str, Judged]:
        """Every part of a step against its prediction."""
        judged = {VERIFY: self._curve.judge(sample.spot, sample.seconds[VERIFY])}
        for part in sample.seconds:
            if part != VERIFY:
                judged[part] = self._level(part).judge(sample.per_unit(part))
        return judged

    def _learn(self, sample: Sample, judged: Mapping[str, Judged]) -> None:
        """An ordinary step: every part learns."""
        standard = self._curve.learn(sample.spot, sample.seconds[VERIFY], judged[VERIFY])
        for part, each in judged.items():
            if part != VERIFY:
                self._levels[part].learn(each)
        if self._sums.alarm(judged[VERIFY].error, standard):
            self._curve.hasten(self._sums.size)
            for level in self._levels.values():
                level.hasten(self._sums.size)

    def _rebase(self, window: list[Sample]) -> None:
        """A confirmed change: every part jumps by the median of its own errors in ``window``.

        Parts that moved about as verification did move with it exactly, by what all of them say
        together; so do drafters that were not asked, a slower machine being the likelier reason.
        Parts that hardly moved stay.
        """
        self.changes += 1
        self._sums.reset()
        judged = [self._judge(sample) for sample in window]
        parts = dict.fromkeys(part for each in judged for part in each)
        own = {part: middle(judged, part) for part in parts}
        moved = common_jump(own)
        for part, level in self._levels.items():
            if part not in own:
                level.shift(moved, abs(moved) / 2)
            else:
                jump = own[part].nearest(moved, 0.0)
                level.shift(jump, own[part].spread / 2 if jump else 0.0)
        if moved:
            verify = [each[VERIFY] for each in judged]
            alike = all(abs(each.error - moved) <= UNIFORM * each.spread for each in verify)
            self._curve.shift(moved, 0.0 if alike else SPLIT * min(abs(moved), 1.0))
            for sample in window:
                self._curve.learn(sample.spot, sample.seconds[VERIFY])

    def state(self) -> dict[str, Any]:
        """What was learned, as plain JSON values."""
        return {
            "version": VERSION,
            "verify": {
                "base": self._curve.base,
                "slope": self._curve.slope,
                "residuals": self._curve.residuals.tolist(),
                "variance": self._curve.variance,
            },
            "levels": {
                part: {"seconds": level.seconds, "variance": level.variance}
                for part, level in self._levels.items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned, with some doubt. Nothing changes if this raises.

        Raises:
            CalibrationError: an entry is missing, of the wrong type or out of range.
        """
        stored.version(stored.mapping(state, "state"), VERSION, "state")
        verify = stored.member(state, "verify", "state")
        base, slope = (
            stored.number(verify, name, "state.verify", 1 / LIMIT, LIMIT)
            for name in ("base", "slope")
        )
        knots = stored.numbers(verify, "residuals", "state.verify", -STEEP, STEEP, len(KNOTS))
        low, high = NOISE_LEAST**2, NOISE_CURVE**2
        variance = stored.number(verify, "variance", "state.verify", low, high)
        levels = {}
        for part, found in stored.member(state, "levels", "state").items():
            field = f"state.levels.{part}"
            if part != HOST and not part.startswith(DRAFT):
                raise CalibrationError(field, f"is neither {HOST!r} nor a drafter")
            values = stored.mapping(found, field)
            seconds = stored.number(values, "seconds", field, 1e-18, 1e18)
            levels[part] = seconds, stored.number(values, "variance", field, low, NOISE_LEVEL**2)
        self._curve.restore(base, slope, np.array(knots), variance, KNOWN)
        for part, (seconds, noise) in levels.items():
            self._level(part).restore(seconds, noise, KNOWN)
