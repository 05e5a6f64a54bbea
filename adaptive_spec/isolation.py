"""Receivers behind a wall: what raises is skipped, counted, and named once."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Faults:
    """Exceptions that were swallowed so that decoding goes on."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        """By receiver."""

    def tell(self, receiver: str, call: Callable[..., Any], *facts: Any) -> None:
        """Call, and never fail."""
        try:
            call(*facts)
        except Exception as error:
            self.skip(receiver, error)

    def skip(self, receiver: str, error: Exception) -> None:
        """Count a receiver's exception; the first one warns."""
        self.count[receiver] += 1
        if self.count[receiver] == 1:
            warn_softly(f"{receiver} failed and is skipped: {type(error).__name__}: {error}")


def warn_softly(message: str) -> None:
    """Warn, but never break a step, also where warnings are errors."""
    with suppress(Exception):
        warnings.warn(message, RuntimeWarning, stacklevel=3)
