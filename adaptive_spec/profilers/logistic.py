"""Bayesian logistic regression that learns online, forgets, and follows a change of text.

Legend: N observations of a batch, K coefficients.

The posterior is a Gaussian, mean [K] and precision [K, K]. A batch is absorbed by one Newton step
from the current mean, after what was known has faded towards the prior:

    precision <- f * precision + (1 - f) * prior + X' W X
    mean      <- mean + precision^-1 (X' w (y - p) + (1 - f) * prior * (prior mean - mean))

with W = w p (1 - p) and f = exp(-sum(w) / MEMORY): memory counts weighted observations, so a step
that taught little forgets little, and the prior itself never fades. This is the extended Kalman
filter in information form with stabilised forgetting (Kulhavy and Zarrop 1993), or in other words
a refit from decayed sufficient statistics.

How long to remember is a bet on how soon the text changes. While the residuals of a recent window
lean to one side by more than chance allows, no more than half of it is remembered. The prior is
then only a weak brake on certainty and draws the mean no faster than before: else a drafter that
is never right would be drawn back to its own opinion for ever. A false alarm costs little, since
it lasts only as long as the lean.

Predictions allow for what is not known yet: log-odds are shrunk by 1 / sqrt(1 + pi/8 variance)
(MacKay 1992), but only where that lowers the probability, since over-confidence is what costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from typing import Any

import numpy as np

from adaptive_spec.errors import ArgumentError
from adaptive_spec.types import Floats

MEMORY = 2000.0
"""Weighted observations until evidence counts 1/e: some hundred steps of text."""
WINDOWS = (25.0, 100.0)
"""Weighted observations over which a lean is judged; half as many are remembered while it lasts."""
ALARM = 3.0
"""Standard deviations from which on residuals lean."""
SURPRISE = 0.25
"""Added to the variance: where all is nearly certain, one surprise is not yet a lean."""
BROAD = 0.25
"""Share of the prior's precision that is kept while residuals lean."""
STRIDE = 1.0
"""Most that one batch may move any of its own log-odds: a Newton step can overshoot."""
LEASH = 8.0
"""Most that a coefficient may ever leave its prior mean by."""
CEILING = 0.995
"""No probability above it: every drafter errs sometimes, and trees multiply probabilities."""

_FADING = -np.outer(1.0 / np.array(WINDOWS), [1.0, 1.0, 2.0, 2.0])


class Logistic:
    """P(y = 1 | x) = sigmoid(x . coefficients), refitted batch by batch.

    Columns 0 and 1 of every design matrix are the intercept and the log-odds to be corrected: the
    lean of residuals is judged on these two.

    Args:
        mean: [K] prior mean of the coefficients.
        spread: [K] prior standard deviation, above 0.
    """

    def __init__(self, mean: Floats, spread: Floats) -> None:
        self._start = mean
        self._prior = spread**-2.0
        self._rest = np.diag(self._prior)
        self._mean = mean.copy()
        self._precision = self._rest.copy()
        self._covariance = _inverse(self._precision)
        self._lean = np.zeros(_FADING.shape)
        """[windows, 4] faded sums of residuals on columns 0 and 1, and their variances."""

    def probability(self, X: Floats) -> Floats:
        """[N] probabilities in [0, CEILING] for finite rows ``X`` [N, K]."""
        odds = X @ self._mean
        variance = ((X @ self._covariance) * X).sum(axis=1)
        humble = odds / np.sqrt(1.0 + (np.pi / 8.0) * variance)
        answer: Floats = np.minimum(_sigmoid(np.minimum(odds, humble)), CEILING)
        return answer

    def update(self, X: Floats, y: Floats, w: Floats) -> None:
        """Learn from rows ``X`` [N, K] with labels ``y`` and weights ``w`` [N], all in [0, 1].

        Everything must be finite; a row that is to teach nothing has weight 0.
        """
        total = float(w.sum())
        if not total > 0:
            return
        p = _sigmoid(X @ self._mean)
        gradient = X.T @ (w * (y - p))
        information = X.T @ (X * (w * (p - p * p))[:, None])
        keep, pull = exp(-total / self._memory()), 1.0 - exp(-total / MEMORY)
        brake = max(pull, BROAD * (1.0 - keep))
        self._precision = keep * self._precision + brake * self._rest + information
        self._covariance = _inverse(self._precision)
        step = self._covariance @ (gradient + pull * self._prior * (self._start - self._mean))
        far = float(np.abs(X @ step).max())
        mean = self._mean + step * (STRIDE / max(far, STRIDE))
        self._mean = np.minimum(np.maximum(mean, self._start - LEASH), self._start + LEASH)
        news = (gradient[0], gradient[1], information[0, 0], information[1, 1])
        self._lean = self._lean * np.exp(total * _FADING) + np.array(news)

    def _memory(self) -> float:
        """Observations to remember: fewer while the residuals of a window lean."""
        memory = MEMORY
        for window, (a, b, noise_a, noise_b) in zip(WINDOWS, self._lean.tolist(), strict=True):
            limit = ALARM**2 * (1.0 + SURPRISE / (noise_a + 1e-9))
            if a * a > limit * noise_a or b * b > limit * noise_b:
                memory = min(memory, window / 2.0)
        return memory

    def state(self) -> dict[str, Any]:
        """What was learned, as plain JSON values."""
        return {
            "mean": self._mean.tolist(),
            "precision": self._precision.tolist(),
            "lean": self._lean.tolist(),
        }

    def restore(self, state: Mapping[str, Any], name: str) -> None:
        """Take over what ``state`` returned; predictions are then bit-identical.

        Args:
            name: what the errors call this state.

        Raises:
            ArgumentError: a field is missing, of the wrong shape, not finite, or not a precision.
        """
        size = len(self._start)
        mean = _numbers(state, name, "mean", (size,))
        precision = _numbers(state, name, "precision", (size, size))
        lean = _numbers(state, name, "lean", _FADING.shape)
        if (np.abs(mean - self._start) > LEASH * (1 + 1e-9)).any():
            raise ArgumentError(f"{name}.mean", mean.tolist(), f"within {LEASH} of the prior mean")
        if (lean[:, 2:] < 0).any():
            raise ArgumentError(f"{name}.lean", lean.tolist(), "variances, at least 0")
        try:
            if not np.allclose(precision, precision.T):
                raise np.linalg.LinAlgError
            np.linalg.cholesky(precision)
        except np.linalg.LinAlgError as error:
            allowed = "must be symmetric and positive definite"
            raise ArgumentError(f"{name}.precision", "matrix", allowed) from error
        self._mean, self._precision, self._lean = mean, precision, lean
        self._covariance = _inverse(precision)


def log_odds(p: Floats, least: float) -> Floats:
    """Log-odds of probabilities, which are kept ``least`` away from 0 and 1."""
    inside = np.clip(p, least, 1.0 - least)
    answer: Floats = np.log(inside / (1.0 - inside))
    return answer


def _sigmoid(odds: Floats) -> Floats:
    answer: Floats = 1.0 / (1.0 + np.exp(-np.maximum(odds, -40.0)))
    return answer


def _inverse(precision: Floats) -> Floats:
    return np.linalg.inv(precision).astype(np.float64, copy=False)


def _numbers(state: Mapping[str, Any], name: str, key: str, shape: tuple[int, ...]) -> Floats:
    """A finite array of the given shape out of a state."""
    allowed = f"finite numbers of shape {shape}"
    try:
        values = np.array(state[key], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise ArgumentError(f"{name}.{key}", f"{type(error).__name__}: {error}", allowed) from error
    if values.shape != shape:
        raise ArgumentError(f"{name}.{key}", f"shape {values.shape}", allowed)
    if not np.isfinite(values).all():
        raise ArgumentError(f"{name}.{key}", "not finite", allowed)
    return values
