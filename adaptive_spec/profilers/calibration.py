"""A measured latency curve: what it is, and the file that keeps it.

A calibration is a better start, never a precondition. It is valid for the hardware, dtype, thread
count, versions and model that it was measured with and refused for any other. The file is JSON
(numbers and names, no code) and has room for what the live models learned since.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from adaptive_spec.errors import CalibrationError
from adaptive_spec.profilers import stored
from adaptive_spec.profilers.hardware import Fingerprint
from adaptive_spec.profilers.residuals import KNOTS, STEEP
from adaptive_spec.profilers.roofline import Coefficients

FORMAT, VERSION = "adaptive-spec calibration", 1
MOST_BYTES = 4 << 20
"""Larger files are not read."""
MOST_POINTS = 100_000
_HUGE = 1e12
MOST_ROWS = 1 << 30


Point = tuple[int, int, float]
"""A measured forward of a single request: draft nodes, context in slots, seconds."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean absolute relative errors."""

    raw: float
    """Of the uncalibrated roofline, scaled by its best factor."""
    fit: float
    """On the points of the fit."""
    held_out: float
    """On sizes that were left out of the fit, one size at a time."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A measured latency curve, what it is valid for, and what was learned on top of it."""

    fingerprint: Fingerprint
    coefficients: Coefficients
    residuals: tuple[float, ...]
    """[K] by knot, see ``residuals``."""
    points: tuple[Point, ...]
    errors: Errors
    latency: Mapping[str, Any] = field(default_factory=dict)
    """State of a live latency model, empty if none was kept."""
    acceptance: Mapping[str, Any] = field(default_factory=dict)
    """State of an acceptance model, empty if none was kept; its owner checks it."""


def save(path: str | Path, calibration: Calibration) -> None:
    """Write to ``path``; whoever reads meanwhile sees the old file or the new one.

    Raises:
        CalibrationError: a state holds something that is not plain JSON, or is too large.
        OSError: the file cannot be written.
    """
    path = Path(path)
    content = {"format": FORMAT, "version": VERSION, **asdict(calibration)}
    try:
        text = json.dumps(content, allow_nan=False, indent=1)
    except (TypeError, ValueError, RecursionError) as error:
        raise CalibrationError("latency or acceptance", f"is not plain JSON ({error})") from error
    if len(text) >= MOST_BYTES:
        problem = f"would have {len(text)} bytes, allowed are {MOST_BYTES}"
        raise CalibrationError(str(path), problem)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        fresh.write_text(text + "\n", encoding="ascii")
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def load(path: str | Path, fingerprint: Mapping[str, str | int]) -> Calibration:
    """Read what was measured under ``fingerprint``.

    Raises:
        CalibrationError: the file cannot be read, is damaged, or was measured under another
            fingerprint; the message names the field, both values and the way out.
    """
    path = Path(path)
    content = _read(path)
    if content.get("format") != FORMAT:
        problem = f"is {stored.shown(content.get('format'))}, not {FORMAT!r}, in {path}"
        raise CalibrationError("format", problem)
    stored.version(content, VERSION)
    return Calibration(
        fingerprint=_same(stored.member(content, "fingerprint"), fingerprint, path),
        coefficients=_coefficients(stored.member(content, "coefficients")),
        residuals=tuple(stored.numbers(content, "residuals", "", -STEEP, STEEP, len(KNOTS))),
        points=_points(stored.entries(content, "points")),
        errors=Errors(**_floats(stored.member(content, "errors"), "errors", Errors)),
        latency=stored.member(content, "latency"),
        acceptance=stored.member(content, "acceptance"),
    )


def _floats(values: Mapping[str, Any], where: str, kind: type[Any]) -> dict[str, float]:
    """The fields of a dataclass of numbers that are not negative."""
    return {f.name: stored.number(values, f.name, where, 0.0, _HUGE) for f in fields(kind)}


def _coefficients(values: Mapping[str, Any]) -> Coefficients:
    found = _floats(values, "coefficients", Coefficients)
    if max(found.values()) <= 0:
        raise CalibrationError("coefficients", "are all zero")
    return Coefficients(**found)


def _same(found: Mapping[str, Any], expected: Mapping[str, str | int], path: Path) -> Fingerprint:
    """The stored fingerprint, if it is the expected one in every field."""
    for name in [*expected, *(name for name in found if name not in expected)]:
        there, here = found.get(name), expected.get(name)
        if isinstance(there, bool) or there != here:
            problem = f"is {stored.shown(there)} in {path}, but {stored.shown(here)} here"
            raise CalibrationError(f"fingerprint.{name}", problem)
    return dict(expected)


def _points(values: list[Any]) -> tuple[Point, ...]:
    if len(values) > MOST_POINTS:
        raise CalibrationError("points", f"has {len(values)} entries, allowed are {MOST_POINTS}")
    points = []
    for i, value in enumerate(values):
        where = f"points[{i}]"
        nodes, context, seconds = stored.array(value, where, 3)
        points.append(
            (
                stored.as_whole(nodes, where, 0, MOST_ROWS),
                stored.as_whole(context, where, 0, MOST_ROWS),
                stored.as_number(seconds, where, 1e-12, _HUGE),
            )
        )
    return tuple(points)


def _read(path: Path) -> Mapping[str, Any]:
    """The JSON object in ``path``; every way in which there is none is a CalibrationError."""
    try:
        if not path.is_file():
            raise CalibrationError(str(path), "is not a file")
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise CalibrationError(str(path), f"has more than {MOST_BYTES} bytes")
        content = json.loads(raw.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except CalibrationError:
        raise
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        problem = f"cannot be read ({type(error).__name__}: {str(error)[:200]})"
        raise CalibrationError(str(path), problem) from error
    return stored.mapping(content, str(path))


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is out of range")
    return value
