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
DIP = 0.9
"""A curve may fall to this share of its value at a smaller size, not lower: noise in the residuals
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


def factors(residuals_K: Floats, rows: Floats) -> Floats:
    """[n] by what a curve is multiplied at forwards of ``rows`` [n] rows."""
    curve: Floats = np.exp(np.interp(np.log2(rows), KNOTS, residuals_K))
    return curve


def eased(seconds: Floats, rows: Floats) -> Floats:
    """[n] a curve raised where it falls below ``DIP`` of its value at a smaller size.

    Args:
        seconds: [n] the curve at forwards of ``rows`` [n] rows, in any order.
    """
    if (rows[1:] >= rows[:-1]).all():
        raised: Floats = np.maximum(seconds, DIP * np.maximum.accumulate(seconds))
        return raised
    order = np.argsort(rows, kind="stable")
    raised = np.empty_like(seconds)
    raised[order] = eased(seconds[order], rows[order])
    return raised


def shrunken(rows: Floats, errors: Floats, noise: float) -> Floats:
    """[K] residuals that explain ``errors`` as far as their number and spread warrant.

    Measurements far from the median of their size count as noisier, in proportion.

    Args:
        rows: [n] rows of the measured forwards.
        errors: [n] logarithms of measured over modelled seconds.
        noise: standard deviation of one measurement's logarithm.
    """
    weights_nK, apart = np.zeros((len(rows), len(KNOTS))), np.zeros(len(rows))
    for count in np.unique(rows):
        here = rows == count
        below, after = knot(float(count))
        weights_nK[here, below], weights_nK[here, below + 1] = 1.0 - after, after
        apart[here] = np.abs(errors[here] - np.median(errors[here]))
    covariance = prior()
    doubt = np.diag(np.maximum(noise, apart / 2) ** 2)
    spread = weights_nK @ covariance @ weights_nK.T + doubt
    residuals_K: Floats = covariance @ weights_nK.T @ np.linalg.solve(spread, errors)
    return residuals_K
