"""Fits a calibrated roofline with residuals to measured forwards (BASTION, arXiv 2605.29727).

Legend: n measured points, K residual knots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from adaptive_spec.errors import CalibrationError
from adaptive_spec.profilers import residuals
from adaptive_spec.profilers.calibration import Calibration, Errors, Point
from adaptive_spec.profilers.hardware import Fingerprint, Peaks
from adaptive_spec.profilers.residuals import STEEP
from adaptive_spec.profilers.roofline import ROW_SHARE, Coefficients, Roofline, bound
from adaptive_spec.types import Architecture, Bools, Floats

LEAST_SIZES = 2
"""Different sizes without which there is no curve."""
_RIDGE = 1e-3
"""Weight of "no constant seconds": which share of a cost is constant and which grows with the bytes
cannot be told from one context alone."""
_SOFT = 0.1
"""Relative error beyond which a point counts less (soft_l1)."""
_NOISE = 0.05
"""Standard deviation of a measured point's logarithm, for the shrinking of residuals."""


@dataclass(frozen=True, slots=True)
class _Table:
    """The points as arrays [n], and the roofline's terms of their forwards and of plain ones."""

    nodes: Floats
    seconds: Floats
    memory: Floats
    compute: Floats
    plain_memory: Floats
    plain_compute: Floats

    def part(self, keep: Bools) -> _Table:
        return _Table(*(getattr(self, name)[keep] for name in self.__slots__))

    def modelled(self, by: Coefficients) -> Floats:
        """[n] seconds as ``Roofline.shape`` gives them: base plus slope."""
        plain = bound(by, self.plain_memory, self.plain_compute)
        return bound(by, self.memory, self.compute) + self.nodes * plain * ROW_SHARE


def fit(
    facts: Architecture,
    peaks: Peaks,
    points: Sequence[Point],
    fingerprint: Fingerprint,
) -> Calibration:
    """The calibrated roofline and residuals that explain ``points`` best in relative terms.

    Args:
        points: forwards of one request, of at least two sizes; two contexts or more are needed to
            tell constant seconds from those that grow with the context.
        fingerprint: what the points are valid for.

    Raises:
        CalibrationError: too few sizes, or a point that is no measurement.
    """
    for i, (nodes, context, seconds) in enumerate(points):
        if not (0 < seconds < math.inf and nodes >= 0 and context >= 0):
            raise CalibrationError(f"points[{i}]", f"{points[i]} is no measurement")
    table = _table(Roofline(facts, peaks), points)
    sizes = np.unique(table.nodes)
    if len(sizes) < LEAST_SIZES:
        problem = f"{len(sizes)} different sizes, at least {LEAST_SIZES} are needed"
        raise CalibrationError("points", problem)
    coefficients = _coefficients(table, _starts(table))
    found = _residuals(table, coefficients)
    missed = np.concatenate([_left_out(table, size, coefficients) for size in sizes])
    raw = table.modelled(Coefficients()) / table.seconds
    return Calibration(
        fingerprint=fingerprint,
        coefficients=coefficients,
        residuals=tuple(found.tolist()),
        points=tuple(points),
        errors=Errors(
            raw=float(np.mean(np.abs(raw / np.median(raw) - 1))),
            fit=float(np.mean(_errors(table, coefficients, found))),
            held_out=float(np.mean(missed)),
        ),
    )


def _table(roofline: Roofline, points: Sequence[Point]) -> _Table:
    nodes, contexts, seconds = np.array(points, dtype=np.float64).reshape(-1, 3).T
    terms = np.empty((4, len(points)))
    for context in np.unique(contexts):
        here = contexts == context
        terms[0, here], terms[1, here] = roofline.terms(nodes[here] + 1, int(context))
        terms[2, here], terms[3, here] = roofline.terms(np.ones(int(here.sum())), int(context))
    return _Table(nodes, seconds, *terms)


def _starts(table: _Table) -> list[Coefficients]:
    """Where to begin: bounded by memory, by arithmetic, and as the peaks say."""
    memory = float(np.median(table.seconds / table.memory))
    compute = float(np.median(table.seconds / table.compute))
    largest = table.nodes == table.nodes.max()
    steep = float(np.median(table.seconds[largest] / table.compute[largest]))
    return [
        Coefficients(a_m=memory, a_c=compute / 10),
        Coefficients(a_m=memory / 10, a_c=compute),
        Coefficients(a_m=memory, a_c=steep),
    ]


def _coefficients(table: _Table, starts: Sequence[Coefficients]) -> Coefficients:
    """The best of the least-squares solutions from ``starts``; all coefficients are positive."""
    unit = float(np.median(table.seconds))

    def misses(values: Floats) -> Floats:
        modelled = table.modelled(_scaled(values, unit))
        pull = _RIDGE * values[[1, 3]]
        return np.concatenate((modelled / table.seconds - 1, pull))

    best_cost, best = math.inf, starts[0]
    for start in starts:
        first = np.array([start.a_m, start.b_m / unit, start.a_c, start.b_c / unit])
        found = least_squares(
            misses,
            np.maximum(first, 1e-9),
            bounds=(0.0, np.inf),
            x_scale=np.maximum(first, 0.1),
            loss="soft_l1",
            f_scale=_SOFT,
            max_nfev=200,
        )
        if found.cost < best_cost:
            best_cost, best = float(found.cost), _scaled(found.x, unit)
    return best


def _scaled(values: Floats, unit: float) -> Coefficients:
    a_m, b_m, a_c, b_c = values.tolist()
    return Coefficients(a_m, b_m * unit, a_c, b_c * unit)


def _residuals(table: _Table, coefficients: Coefficients) -> Floats:
    """[K] shrunken residuals of the points."""
    errors = np.log(table.seconds / table.modelled(coefficients))
    found = residuals.shrunken(table.nodes + 1, errors, _NOISE)
    return np.clip(found, -STEEP, STEEP)


def _errors(table: _Table, coefficients: Coefficients, found: Floats) -> Floats:
    """[n] absolute relative errors of the corrected curve."""
    curve = residuals.factors(found, table.nodes + 1)
    missed: Floats = np.abs(table.modelled(coefficients) * curve / table.seconds - 1)
    return missed


def _left_out(table: _Table, size: float, start: Coefficients) -> Floats:
    """Errors at ``size`` of a fit that did not see it."""
    rest, test = table.part(table.nodes != size), table.part(table.nodes == size)
    coefficients = _coefficients(rest, [start])
    return _errors(test, coefficients, _residuals(rest, coefficients))
