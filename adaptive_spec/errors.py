"""Every error the package raises on purpose: one root, the matching built-in as second parent.

Messages name the field, the value, the allowed range and the way out.
"""

from __future__ import annotations


class AdaptiveSpecError(Exception):
    """Root of all errors of this package.

    Attributes:
        option: flag and value of the command line that it is about, where that is known.
    """

    option: tuple[str, str] | None = None


class ArgumentError(AdaptiveSpecError, ValueError):
    """A value given to a call is outside its range; raised before the model runs."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}={value!r} is not valid: {allowed}")
        self.field, self.value, self.allowed = field, value, allowed


class ConfigError(AdaptiveSpecError, ValueError):
    """A config file, dict or override has an unknown key or a value out of range."""


class UnknownNameError(AdaptiveSpecError, KeyError):
    """A policy, drafter, preset or catalogue name that no registry knows."""

    def __str__(self) -> str:
        return str(self.args[0])


class UnsupportedError(AdaptiveSpecError, NotImplementedError):
    """An argument or a model that cannot be served exactly, refused by name."""


class TreeError(AdaptiveSpecError, ValueError):
    """A draft tree that breaks its own rules; raised before the forward."""


class CacheError(AdaptiveSpecError, RuntimeError):
    """The slot pool is full, or its counts do not add up."""


class SessionError(AdaptiveSpecError, RuntimeError):
    """A session was used after it finished or was closed, or belongs to another decoder."""


class SamplingError(AdaptiveSpecError, ValueError):
    """The processors left no token to choose from."""


class DecodingError(AdaptiveSpecError, RuntimeError):
    """A request ended early because of a fault in the target.

    Attributes:
        sequences: per row, the verified new tokens (nothing that was verified is lost).
    """

    def __init__(self, message: str, sequences: list[list[int]] | None = None) -> None:
        super().__init__(message)
        self.sequences = sequences or []


class CatalogueError(AdaptiveSpecError, RuntimeError):
    """A model or data set could not be fetched, checked or converted."""


class LogError(AdaptiveSpecError, OSError):
    """A budget log cannot be opened; raised at construction only, never while decoding."""


class CalibrationError(AdaptiveSpecError, ValueError):
    """A calibration or a stored state of the latency model that must not be used.

    Attributes:
        field: the first field that is wrong.
    """

    def __init__(self, field: str, problem: str) -> None:
        way_out = "run `adaptive-spec calibrate` to measure again"
        super().__init__(f"calibration field {field!r}: {problem}; {way_out}")
        self.field, self.problem = field, problem


class HeadError(AdaptiveSpecError, ValueError):
    """A draft head whose config or weights are not sound, or not for this target."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"head: {field}={value!r}: {allowed}")
        self.field = field


class TrainingError(AdaptiveSpecError, RuntimeError):
    """Training cannot begin or go on: no data, no room on the disk, another target."""
