"""What a roofline misses: real curves are staircases. Relative residuals by size, shrunken.

A residual is a logarithm, attached to knots at powers of two of the rows of a forward and linear in
between on the scale of log2(rows), so the curve has no cliffs; below the first and above the last
knot it is constant. Rows count, not nodes per request: they are what a kernel sees. A priori
residuals are 0 with neighbours alike, so a size that never ran inherits from those that did, and
few measurements move it little (Gaussian process regression; Rasmussen and Williams 2006, ch. 2).

Legend: K knots, n measurements.
"""

from __future__ import annotations

import math

import numpy as np

from adaptive_spec.types import Floats

STEEP = 3.0
"""Largest absolute residual that is believed of a stored curve."""
KNOTS: Floats = np.arange(10.0)
"""[K] log2 of 1, 2, 4, ... 512 rows."""
SPREAD = 0.15
"""Standard deviation of a residual before anything is measured."""
REACH = 3.0
"""Knots over which residuals are alike."""
DIP = -math.log(0.9)
"""A curve may fall by this much below that of a smaller size, not more: noise in the residuals
must not make large trees look cheaper than small ones."""


def prior() -> Floats:
    """[K, K] covariance of the residuals before anything is measured."""
    apart = np.abs(KNOTS[:, None] - KNOTS[None, :])
    covariance: Floats = SPREAD**2 * np.exp(-apart / REACH)
    return covariance


def knot(rows: float) -> tuple[int, float]:
    """The knot below a forward of ``rows`` rows, and how far after it, 0 to 1."""
    place = min(max(math.log2(rows), 0.0), float(KNOTS[-1]))
    below = min(int(place), len(KNOTS) - 2)
    return below, place - below


def eased(residuals_K: Floats) -> Floats:
    """[K] residuals that never fall more than ``DIP`` below those of smaller sizes.

    On a curve that does not fall by itself, the corrected curve is then nowhere below 0.9 of its
    value at any smaller size: between knots a residual is no lower than the lower of its knots.
    """
    floor = np.maximum.accumulate(residuals_K) - DIP
    raised: Floats = np.maximum(residuals_K, floor)
    return raised


def factors(residuals_K: Floats, rows: Floats) -> Floats:
    """[n] by what a curve is multiplied at forwards of ``rows`` [n] rows."""
    curve: Floats = np.exp(np.interp(np.log2(rows), KNOTS, residuals_K))
    return curve


def shrunken(rows: Floats, errors: Floats, noise: float) -> Floats:
    """[K] residuals that explain ``errors`` as far as their number and spread warrant.

    Args:
        rows: [n] rows of the measured forwards.
        errors: [n] logarithms of measured over modelled seconds.
        noise: standard deviation of one measurement's logarithm.
    """
    weights_nK = np.zeros((len(rows), len(KNOTS)))
    for i, count in enumerate(rows.tolist()):
        below, after = knot(count)
        weights_nK[i, below], weights_nK[i, below + 1] = 1.0 - after, after
    covariance = prior()
    spread = weights_nK @ covariance @ weights_nK.T + noise**2 * np.eye(len(rows))
    residuals_K: Floats = covariance @ weights_nK.T @ np.linalg.solve(spread, errors)
    return residuals_K
