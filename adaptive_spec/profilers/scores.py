"""How good probabilities are: Brier score, expected calibration error, area under the ROC curve.

Pure functions of equal-long arrays: ``p`` [N] predicted probabilities, ``y`` [N] labels in [0, 1]
(soft ones count as a share of both outcomes), ``w`` [N] weights, None for all alike. Entries that
are not finite, and entries without weight, are left out: an unknown label is NaN. What nothing is
known about scores NaN. Acceptance models are scored with ``w`` = visited parents.
"""

from __future__ import annotations

import numpy as np

from adaptive_spec.errors import ArgumentError
from adaptive_spec.types import Floats


def brier(p: Floats, y: Floats, w: Floats | None = None) -> float:
    """Weighted mean squared error of the probabilities (Brier 1950); 0 is best.

    Raises:
        ArgumentError: the arrays differ in shape.
    """
    p, y, w = _known(p, y, w)
    return float(w @ (p - y) ** 2 / w.sum()) if len(w) else float("nan")


def expected_calibration_error(
    p: Floats, y: Floats, w: Floats | None = None, bins: int = 10
) -> float:
    """Weighted mean over ``bins`` equal bins of [0, 1] of |mean p - mean y|; 0 is best.

    Source: Naeini, Cooper and Hauskrecht 2015.

    Raises:
        ArgumentError: the arrays differ in shape, or ``bins`` is below 1.
    """
    if bins < 1:
        raise ArgumentError("bins", bins, "at least 1")
    p, y, w = _known(p, y, w)
    if not len(w):
        return float("nan")
    place = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    gap = np.bincount(place, weights=w * (p - y), minlength=bins)
    return float(np.abs(gap).sum() / w.sum())


def auc(p: Floats, y: Floats, w: Floats | None = None) -> float:
    """Probability that an accepted edge is ranked above a rejected one; ties count half.

    Returns:
        1 for a perfect order, 0.5 for a blind one, NaN if only one outcome occurs.

    Raises:
        ArgumentError: the arrays differ in shape.
    """
    p, y, w = _known(p, y, w)
    levels, place = np.unique(p, return_inverse=True)
    good = np.bincount(place, weights=w * y, minlength=len(levels))
    bad = np.bincount(place, weights=w * (1.0 - y), minlength=len(levels))
    pairs = good.sum() * bad.sum()
    if not pairs > 0:
        return float("nan")
    below = np.cumsum(bad) - bad
    return float(good @ (below + bad / 2) / pairs)


def _known(p: Floats, y: Floats, w: Floats | None) -> tuple[Floats, Floats, Floats]:
    """The finite entries with weight."""
    weight = np.ones(p.shape) if w is None else np.asarray(w, dtype=np.float64)
    for name, array in (("y", y), ("w", weight)):
        if array.shape != p.shape:
            raise ArgumentError(f"{name}.shape", array.shape, f"the shape of p, {p.shape}")
    keep = np.isfinite(p) & np.isfinite(y) & np.isfinite(weight) & (weight > 0)
    return p[keep], y[keep], weight[keep]
