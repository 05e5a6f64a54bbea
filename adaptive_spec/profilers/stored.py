"""Values read back from JSON: each checked, and named where it is wrong.

Every function raises CalibrationError, never anything else, whatever the JSON holds. ``field`` is
the path to ``values``, empty at the top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adaptive_spec.errors import CalibrationError


def mapping(value: object, field: str) -> Mapping[str, Any]:
    """``value`` if it is a JSON object."""
    if not isinstance(value, Mapping):
        raise CalibrationError(field, f"is {shown(value)}, not an object")
    return value


def member(values: Mapping[str, Any], name: str, field: str = "") -> Mapping[str, Any]:
    """The JSON object ``values[name]``."""
    return mapping(_entry(values, name, field), _joined(field, name))


def array(value: object, where: str, length: int | None = None) -> list[Any]:
    """``value`` if it is a JSON array, of ``length`` entries where that is given."""
    if not isinstance(value, list):
        raise CalibrationError(where, f"is {shown(value)}, not an array")
    if length is not None and len(value) != length:
        raise CalibrationError(where, f"has {len(value)} entries, not {length}")
    return value


def entries(values: Mapping[str, Any], name: str, field: str = "") -> list[Any]:
    """The JSON array ``values[name]``."""
    return array(_entry(values, name, field), _joined(field, name))


def number(values: Mapping[str, Any], name: str, field: str, low: float, high: float) -> float:
    """The finite number ``values[name]`` within [low, high]."""
    return as_number(_entry(values, name, field), _joined(field, name), low, high)


def numbers(
    values: Mapping[str, Any], name: str, field: str, low: float, high: float, length: int
) -> list[float]:
    """The array ``values[name]`` of ``length`` finite numbers within [low, high]."""
    where = _joined(field, name)
    found = array(_entry(values, name, field), where, length)
    return [as_number(value, f"{where}[{i}]", low, high) for i, value in enumerate(found)]


def as_number(value: object, where: str, low: float, high: float) -> float:
    """``value`` if it is a finite number within [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CalibrationError(where, f"is {shown(value)}, not a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not (math.isfinite(found) and low <= found <= high):
        raise CalibrationError(where, f"is {shown(value)}, allowed is {low:g} to {high:g}")
    return found


def as_whole(value: object, where: str, low: int, high: int) -> int:
    """``value`` if it is a whole number within [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise CalibrationError(where, f"is {shown(value)}, not a whole number")
    return int(as_number(value, where, low, high))


def version(values: Mapping[str, Any], known: int, field: str = "") -> None:
    """Nothing, if ``values["version"]`` is the one that is ``known``."""
    found = _entry(values, "version", field)
    if isinstance(found, bool) or found != known:
        problem = f"is {shown(found)}, this program reads {known}"
        raise CalibrationError(_joined(field, "version"), problem)


def shown(value: object) -> str:
    """A value for a message: ASCII, and short whatever it is."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an integer of too many digits, a nest too deep
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _entry(values: Mapping[str, Any], name: str, field: str) -> Any:
    if name not in values:
        raise CalibrationError(_joined(field, name), "is missing")
    return values[name]


def _joined(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name
