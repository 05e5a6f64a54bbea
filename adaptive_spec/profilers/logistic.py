"""Bayesian logistic regression that learns online, forgets, and follows a change of text.

Legend: N observations of a batch, K coefficients.

The posterior is a Gaussian, mean [K] and precision [K, K]. A batch is absorbed by one Newton step
from the current mean, after what was known has faded towards the prior:

    precision <- f * precision + (1 - f) * prior + X' W X
    mean      <- mean + precision^-1 (X' w (y - p) + (1 - f) * prior * (prior mean - mean))

with W = w p (1 - p) and f = exp(-sum(w) / memory): memory counts weighted observations, so a step
that taught little forgets little, and the prior itself never fades. This is the extended Kalman
filter in information form with stabilised forgetting (Kulhavy and Zarrop 1993), or in other words
a refit from decayed sufficient statistics.

How long to remember is a bet on how soon the text changes. While recent residuals lean to one side
by more than chance allows, memory is short; else it is long. A false alarm costs little, since it
lasts only as long as the lean.

Predictions allow for what is not known yet: log-odds are shrunk by 1 / sqrt(1 + pi/8 variance)
(MacKay 1992), but only where that lowers the probability, since over-confidence is what costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptive_spec.errors import ArgumentError
from adaptive_spec.types import Floats

MEMORY = 2000.0
"""Weighted observations until evidence counts 1/e: some hundred steps of text."""
WINDOWS = (25.0, 100.0)
"""Weighted observations over which a lean is judged, and that are remembered while it lasts."""
ALARM = 3.0
"""Standard deviations from which on residuals lean."""
STRIDE = 1.0
"""Most that one batch may move any of its own log-odds: a Newton step can overshoot."""
LEASH = 8.0
"""Most that a coefficient may ever leave its prior mean by."""
CEILING = 0.995
"""No probability above it: every drafter errs sometimes, and trees multiply probabilities."""


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
        self._lean, self._noise = np.zeros((2, 2)), np.zeros((2, 2))

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
        residual, curvature = w * (y - p), w * p * (1.0 - p)
        leans = (self._lean**2 > ALARM**2 * self._noise).any(axis=1)
        memory = min((window for window, far in zip(WINDOWS, leans, strict=True) if far), default=MEMORY)
        keep, pull = np.exp(-total / memory), 1.0 - np.exp(-total / MEMORY)
        self._precision = (
            keep * self._precision + pull * self._rest + X.T @ (X * curvature[:, None])
        )
        self._covariance = _inverse(self._precision)
        home = pull * self._prior * (self._start - self._mean)
        step = self._covariance @ (X.T @ residual + home)
        far = float(np.abs(X @ step).max())
        mean = self._mean + step * min(1.0, STRIDE / max(far, STRIDE))
        self._mean = np.clip(mean, self._start - LEASH, self._start + LEASH)
        recent, lead = np.exp(-total / np.array(WINDOWS))[:, None], X[:, :2]
        self._lean = recent * self._lean + residual @ lead
        self._noise = recent**2 * self._noise + (w * curvature) @ lead**2

    def state(self) -> dict[str, Any]:
        """What was learned, as plain JSON values."""
        return {
            "mean": self._mean.tolist(),
            "precision": self._precision.tolist(),
            "lean": self._lean.tolist(),
            "noise": self._noise.tolist(),
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
        lean = _numbers(state, name, "lean", (2, 2))
        noise = _numbers(state, name, "noise", (2, 2))
        if (np.abs(mean - self._start) > LEASH * (1 + 1e-9)).any():
            raise ArgumentError(f"{name}.mean", mean.tolist(), f"within {LEASH} of the prior mean")
        if (noise < 0).any():
            raise ArgumentError(f"{name}.noise", noise.tolist(), "variances, at least 0")
        try:
            if not np.allclose(precision, precision.T):
                raise np.linalg.LinAlgError
            np.linalg.cholesky(precision)
        except np.linalg.LinAlgError as error:
            allowed = "must be symmetric and positive definite"
            raise ArgumentError(f"{name}.precision", "matrix", allowed) from error
        self._mean, self._precision, self._lean, self._noise = mean, precision, lean, noise
        self._covariance = _inverse(precision)


def log_odds(p: Floats, least: float) -> Floats:
    """Log-odds of probabilities, which are kept ``least`` away from 0 and 1."""
    inside = np.clip(p, least, 1.0 - least)
    answer: Floats = np.log(inside / (1.0 - inside))
    return answer


def _sigmoid(odds: Floats) -> Floats:
    answer: Floats = 1.0 / (1.0 + np.exp(-np.clip(odds, -40.0, 40.0)))
    return answer


def _inverse(precision: Floats) -> Floats:
    answer: Floats = np.linalg.inv(precision)
    return answer


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
