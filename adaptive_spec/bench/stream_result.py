"""What came of a stream: a row and a course per contestant, and how they are made of its runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class StreamRow:
    """One contestant. Tokens per second and ratios count prefills and learning; the interval is a
    90 % bootstrap over batches."""

    name: str
    tokens_per_second: float
    versus_never: float
    low: float
    high: float
    updates: int
    """Trials that were kept."""
    trials: int
    update_seconds: float
    break_even_tokens: float | None
    """Tokens after which a kept update of median worth has paid for itself, by its own estimate."""
    acceptance_length_first: float
    """Of the first quarter of the batches; before the drift, where there is one."""
    acceptance_length_last: float
    """Of the last quarter."""
    identical: int
    """Requests whose text is the first contestant's (in reduced precision ties may fall apart)."""
    requests: int
    versus_never_last: float = 1.0
    """As ``versus_never``, of the last quarter of the batches: what learning comes to."""
    last_low: float = 1.0
    last_high: float = 1.0
    versus_plain: float | None = None
    plain_low: float | None = None
    plain_high: float | None = None


@dataclass(slots=True)
class Course:
    """How one contestant got through the stream, batch by batch."""

    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    """Kept so far."""


@dataclass(frozen=True, slots=True)
class StreamResult:
    """All rows, and what they were measured on."""

    rows: tuple[StreamRow, ...]
    courses: dict[str, Course]
    facts: dict[str, Any]
    """Of the stream: parts with their batches, and what a drift did to the target."""
    machine: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """What ``bench --json`` prints."""
        courses = {name: asdict(course) for name, course in self.courses.items()}
        return {
            "rows": [asdict(row) for row in self.rows],
            "stream": self.facts,
            "courses": courses,
            "machine": self.machine,
        }


def length(course: Course, where: slice) -> float:
    """Tokens per forward of a request, in some of the batches."""
    return sum(course.tokens[where]) / max(sum(course.steps[where]), 1)


def progress_lines(result: StreamResult) -> Iterator[tuple[str, list[float], list[float]]]:
    """Per contestant: tokens so far, and how fast they were written on average."""
    for name, course in result.courses.items():
        tokens = np.cumsum(course.tokens)
        yield name, tokens.tolist(), (tokens / np.cumsum(course.seconds)).tolist()
