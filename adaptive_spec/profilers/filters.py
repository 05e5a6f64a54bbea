"""Recursive least squares with forgetting, on relative errors.

Forgetting is a random walk of the parameters instead of exponential forgetting: with the latter the
direction that never varies (base against slope, if one size runs for long) winds up or falls back
to the prior within some thirty steps, and the next noisy measurement decides alone. Here doubt
grows slowly and stays below the prior's. The multipliers are estimated as they are, not as
logarithms: the curve is linear in them, so nothing depends on the point at which it was linearised
(with logarithms a slope that was first thought ten times too steep took a hundred steps to come
down).

Legend: K residual knots, P = 2 + K parameters: the base and slope multipliers, then the residuals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from adaptive_spec.profilers import residuals
from adaptive_spec.profilers.roofline import Shape, Spot
from adaptive_spec.types import Floats

COMMON, APART = 1.0, 0.7
"""Doubt of the multipliers relative to their size, at most: shared by both, and of each alone."""
FLAT = 0.25
"""A slope multiplier smaller than this share of the base's is doubted as if it were so large."""
UNSET = 3.0
"""Standard deviation of the level's logarithm before the first measurement."""
WALK_CURVE, WALK_LEVEL = 0.004, 0.02
"""Variance that a step adds, as a share of the noise's: settled gains of about 0.06 and 0.13."""
LIMIT = 1e12
"""Largest multiplier, and largest divisor."""
STRIDE = 3.0
"""By how much one measurement may multiply or divide a multiplier."""
HASTE_COMMON, HASTE_APART, HASTE_RESIDUAL = 3.0, 2.0, 0.5
"""Doubt relative to errors that lasted: of the multipliers together (a drift), of each alone (which
may be a small part of what was measured), of the residuals. Results hardly depend on them."""
STEEPEST = 1e3
"""Largest ratio of the base multiplier to the slope's."""
CLIP = 3.0
"""Errors beyond this many standard deviations count as this many."""
NOISE, NOISE_LEAST = 0.1, 0.02
"""Standard deviation of one measurement's logarithm: at first, and at least."""
NOISE_CURVE, NOISE_LEVEL = 0.22, 0.5
"""The same, at most: a threefold slowdown must stand out from verification's noise."""
NOISE_GAIN, OUTLIER = 0.03, 2.0
"""How fast the noise is learned; an outlier counts as so many deviations."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A measurement against what was predicted."""

    error: float
    """Logarithm of measured over predicted seconds."""
    spread: float
    """Standard deviation that was to be expected of it."""
    gain: Floats | None = None
    """[P] covariance of the parameters with the prediction."""


class Curve:
    """Verification seconds: live multipliers of base and slope, and residuals by size.

    The first measurement sets the level of both multipliers. Later on they share an error in
    proportion while sizes do not vary.

    Args:
        residuals_K: residuals to begin with, 0 if not given; with them the level counts as known.
        doubt: share of the prior covariance to begin with.
    """

    def __init__(self, residuals_K: Floats | None = None, doubt: float = 1.0) -> None:
        self.known = False
        """The level was set."""
        self._prior = residuals.prior()
        knots = np.zeros(len(residuals.KNOTS)) if residuals_K is None else residuals_K
        self.restore(1.0, 1.0, knots, NOISE**2, doubt)
        self.known = residuals_K is not None

    def restore(
        self, base: float, slope: float, residuals_K: Floats, variance: float, doubt: float
    ) -> None:
        """Go on from parameters and noise, with a share of the prior covariance."""
        self.base, self.slope, self.residuals, self.variance = base, slope, residuals_K, variance
        self.known = True
        size = 2 + len(residuals_K)
        self._covariance = np.zeros((size, size))
        self._covariance[2:, 2:] = self._prior * doubt
        self._doubt(COMMON**2 * doubt, APART**2 * doubt)

    def seconds(self, shape: Shape) -> Floats:
        """[N] predicted seconds; none below 0.9 of a smaller size's among them."""
        slope = np.maximum(self.slope * shape.slope, self.base * shape.least)
        curve = (self.base * shape.base + slope) * residuals.factors(self.residuals, shape.rows)
        return residuals.eased(curve, shape.rows)

    def judge(self, spot: Spot, seconds: float) -> Judged:
        """One measured size against the prediction."""
        predicted = self.base * spot.base + self.slope * spot.slope
        knot, after = residuals.knot(spot.rows)
        gradient = np.zeros(len(self._covariance))
        gradient[0], gradient[1] = spot.base / predicted, spot.slope / predicted
        gradient[2 + knot], gradient[3 + knot] = 1.0 - after, after
        residual = (1.0 - after) * self.residuals[knot] + after * self.residuals[knot + 1]
        gain = self._covariance @ gradient
        variance = self.variance + float(gradient @ gain) + (0.0 if self.known else UNSET**2)
        return Judged(math.log(seconds / predicted) - float(residual), math.sqrt(variance), gain)

    def learn(self, spot: Spot, seconds: float, judged: Judged | None = None) -> float:
        """Take in one measured size; returns its error in standard deviations, clipped.

        Args:
            judged: what ``judge`` says of it, if that is at hand.
        """
        judged = judged or self.judge(spot, seconds)
        if not self.known:
            self.known = True
            self._scale(math.exp(judged.error))
            judged = self.judge(spot, seconds)
        assert judged.gain is not None
        standard = clipped(judged.error / judged.spread)
        ratio = math.exp(standard * judged.spread)
        # Noise is relative to the true level, taken in the middle of predicted and measured.
        variance = self.variance * ratio + judged.spread**2 - self.variance
        step = judged.gain * ((ratio - 1.0) / variance)
        self._covariance -= judged.gain[:, None] * (judged.gain / variance)
        self._bend(step, 1, self.slope, least=self.base / STEEPEST)
        self._bend(step, 0, self.base, least=0.0)
        self.base = _within(self.base + float(step[0]))
        self.slope = _within(self.slope + float(step[1]))
        self.residuals = np.clip(self.residuals + step[2:], -residuals.STEEP, residuals.STEEP)
        walk = WALK_CURVE * self.variance
        self._covariance *= 1.0 - walk
        self._covariance[2:, 2:] += walk * self._prior
        self._doubt(walk * COMMON**2, walk * APART**2)
        self.variance = adapted(self.variance, standard, NOISE_CURVE)
        return standard

    def shift(self, jump: float, doubt: float) -> None:
        """Scale base and slope by e^jump, with so much doubt how they share it (relative)."""
        self._scale(math.exp(jump))
        self._doubt(0.0, doubt**2)
        self._covariance[2:, 2:] += self._prior * doubt**2

    def hasten(self, error: float) -> None:
        """Errors of about ``error`` have lasted: doubt what could explain them."""
        self._doubt((HASTE_COMMON * error) ** 2, (HASTE_APART * error) ** 2)
        share = min(HASTE_RESIDUAL * error / residuals.SPREAD, 1.0)
        self._covariance[2:, 2:] += self._prior * share**2

    def blur(self) -> None:
        """A measurement was an outlier: there is more noise than was thought."""
        self.variance = adapted(self.variance, OUTLIER, NOISE_CURVE)

    def _bend(self, step: Floats, which: int, now: float, least: float) -> None:
        """Keep a multiplier from moving too far at once or below ``least``; the other parameters
        follow as far as they hang together with it (the nearest allowed step in the metric of the
        covariance)."""
        low, high = max(now / STRIDE, least) - now, now * STRIDE - now
        excess = step[which] - min(max(step[which], min(low, 0.0)), high)
        if excess:
            column = self._covariance[:, which]
            step -= column * (excess / column[which])

    def _doubt(self, common: float, apart: float) -> None:
        """Add relative variances to the multipliers."""
        base, slope = self.base, max(self.slope, FLAT * self.base)
        self._covariance[0, 0] += base * base * (common + apart)
        self._covariance[1, 1] += slope * slope * (common + apart)
        self._covariance[0, 1] += base * slope * common
        self._covariance[1, 0] = self._covariance[0, 1]

    def _scale(self, factor: float) -> None:
        """Multiply both multipliers."""
        self.base, self.slope = _within(self.base * factor), _within(self.slope * factor)
        self._covariance[:2] *= factor
        self._covariance[:, :2] *= factor


class Level:
    """Seconds of a part that one number describes: the same filter with one parameter.

    Args:
        seconds: expected before anything is measured.
        doubt: standard deviation of the logarithm of that.
    """

    def __init__(self, seconds: float, doubt: float = 2.0) -> None:
        self.seconds = self.prior = seconds
        self.variance = NOISE**2
        self._most = self._doubt = doubt**2

    def restore(self, seconds: float, variance: float, doubt: float) -> None:
        """Go on from stored values; ``doubt`` is the share of the prior variance."""
        self.seconds, self.variance, self._doubt = seconds, variance, self._most * doubt

    def judge(self, seconds: float) -> Judged:
        """A measurement against the prediction."""
        return Judged(math.log(seconds / self.seconds), math.sqrt(self.variance + self._doubt))

    def learn(self, judged: Judged) -> None:
        """Take in one measurement."""
        standard = clipped(judged.error / judged.spread)
        gain = self._doubt / judged.spread
        self._scale(gain * standard)
        self._doubt = min(self._doubt - gain * gain + WALK_LEVEL * self.variance, self._most)
        self.variance = adapted(self.variance, standard, NOISE_LEVEL)

    def shift(self, jump: float, doubt: float) -> None:
        """Scale by e^jump, with so much more doubt (standard deviation of the logarithm)."""
        self._scale(jump)
        self._doubt = min(self._doubt + doubt**2, self._most)

    def hasten(self, error: float) -> None:
        """Errors of about ``error`` have lasted: doubt the level by so much."""
        self._doubt = min(self._doubt + error**2, self._most)

    def blur(self) -> None:
        """A measurement was an outlier: there is more noise than was thought."""
        self.variance = adapted(self.variance, OUTLIER, NOISE_LEVEL)

    def _scale(self, jump: float) -> None:
        self.seconds = self.prior * _within(self.seconds / self.prior * math.exp(jump))


def clipped(standard: float) -> float:
    """An error in standard deviations, with the largest cut."""
    return min(max(standard, -CLIP), CLIP)


def adapted(variance: float, standard: float, most: float) -> float:
    """The noise's variance after an error of ``standard`` deviations, within its bounds."""
    moved = variance * (1.0 + NOISE_GAIN * (standard * standard - 1.0))
    return min(max(moved, NOISE_LEAST**2), most**2)


def _within(multiplier: float) -> float:
    return min(max(multiplier, 1.0 / LIMIT), LIMIT)
