"""Where the seconds of a step went."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from adaptive_spec.types import StepSeconds

Clock = Callable[[], float]
"""Seconds from any origin, never going back."""

monotonic: Clock = time.perf_counter


class Laps:
    """Splits the time since it was made into named parts; what is not named is host time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = clock()
        self._seconds: dict[str, float] = {}

    def mark(self, part: str, spent: float | None = None) -> None:
        """Everything since the last mark was spent on ``part``.

        Args:
            spent: seconds of ``part`` where a timer knows better; the rest was host time.
        """
        now = self._clock()
        passed = now - self._last
        known = passed if spent is None else min(max(spent, 0.0), passed)
        self._seconds[part] = self._seconds.get(part, 0.0) + known
        self._seconds["host"] = self._seconds.get("host", 0.0) + (passed - known)
        self._last = now

    def seconds(self) -> StepSeconds:
        """The parts so far; the open rest is host time."""
        self.mark("host")
        parts: dict[str, Any] = dict(self._seconds)
        return StepSeconds(**parts)


class Timer(Protocol):
    """Times work on a device: ``start`` -> the work -> ``stop`` -> ``seconds``; may be reused."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def seconds(self) -> float:
        """Seconds between the last ``start`` and ``stop``; waits for the device where it must."""
        ...


class HostTimer:
    """For devices on which a call returns when its work is done."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._began = self._ended = 0.0

    def start(self) -> None:
        self._began = self._clock()

    def stop(self) -> None:
        self._ended = self._clock()

    def seconds(self) -> float:
        return self._ended - self._began


class CudaTimer:
    """By events in a device's current stream: the host waits neither at ``start`` nor at ``stop``.

    Args:
        event: makes a timing event, as ``torch.cuda.Event`` with ``enable_timing=True``.
        stream: the device's current stream, whichever device is current.
    """

    def __init__(self, event: Callable[[], Any], stream: Callable[[], Any]) -> None:
        self._began, self._ended, self._stream = event(), event(), stream

    def start(self) -> None:
        self._began.record(self._stream())

    def stop(self) -> None:
        self._ended.record(self._stream())

    def seconds(self) -> float:
        self._ended.synchronize()
        return float(self._began.elapsed_time(self._ended)) / 1e3


def device_timer(device: Any, clock: Clock = monotonic) -> Timer:
    """The timer for a ``torch.device``: events on ``cuda``, ``clock`` elsewhere.

    Torch is not imported: who has a model on a GPU has loaded it.
    """
    torch = sys.modules.get("torch")
    if device.type == "cuda" and torch is not None:
        event = partial(torch.cuda.Event, enable_timing=True)
        return CudaTimer(event, partial(torch.cuda.current_stream, device))
    return HostTimer(clock)
