"""Records of a budget log that may have been cut, edited or made up, as typed facts.

Whatever stands in the file, a value here has its type: what has not is None (or empty) and counted
by ``Fields.odd``. Names are those of docs/log.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeVar

from adaptive_spec.budget_log import PARTS
from adaptive_spec.log_reader import Record

T = TypeVar("T")

FORWARD: Final = tuple(part for part in PARTS if part != "update")
"""Parts of a timed step; updates run between steps."""
MULTIPLIERS: Final = ("draft", "verify_base", "verify_slope", "host")
COUNTERS: Final = ("draft_faults", "controller_faults", "memory_retries", "nonfinite_retries")
MOST: Final = 1e15
"""No figure of a log is larger, so that sums of figures stay finite."""


@dataclass(frozen=True, slots=True)
class Step:
    """A ``step`` record without its arrays."""

    request: str
    time: float | None
    step: int | None
    step_group: int | None
    context: int | None
    pool_slots: int | None
    policy: str | None
    drafters: list[str]
    offered: int | None
    size: int | None
    theta: float | None
    expected_tokens: float | None
    expected_seconds: float | None
    multipliers: dict[str, float] | None
    accepted_tokens: int | None
    emitted: int | None
    seconds: dict[str, float]
    reason: str
    faults: list[str]

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _NAMES}

    @property
    def total(self) -> float | None:
        """Seconds of the step, updates left out."""
        known = [self.seconds[part] for part in FORWARD if part in self.seconds]
        return sum(known) if known else None

    @property
    def forward(self) -> Hashable:
        """What steps of one forward have in common. Every decoder numbers its own forwards, and
        several may write to one log; their seconds tell them apart."""
        if self.step_group is None:
            return (self.request, self.step, self.time)
        return (self.step_group, self.pool_slots, tuple(self.seconds.items()))


_NAMES = tuple(field.name for field in fields(Step))


@dataclass(frozen=True, slots=True)
class End:
    """A ``request`` record: how a turn ended. Without values it stands for the missing record."""

    time: float | None = None
    policy: str | None = None
    drafters: list[str] = field(default_factory=list)
    new_tokens: int | None = None
    finish_reason: str | None = None
    finish_detail: str | None = None
    seconds: float | None = None
    num_steps: int | None = None
    num_draft_tokens: int | None = None
    mean_acceptance_length: float | None = None
    prefill_seconds: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)


class Fields:
    """A record that is looked at with suspicion."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self.odd = 0
        """Values asked for that are missing, or of a type or size that they cannot have."""

    def take(
        self, name: str, kind: Callable[[object], T | None], nullable: bool = False
    ) -> T | None:
        """The value as ``kind`` has it, else None."""
        value = self._record.get(name)
        taken = None if value is None else kind(value)
        self.odd += taken is None and not (nullable and value is None)
        return taken

    def numbers(self, name: str, keys: Iterable[str]) -> dict[str, float]:
        """The numbers under ``keys`` in a field that holds an object."""
        inner = Fields(self.take(name, _mapping) or {})
        found = {key: inner.take(key, _number, nullable=True) for key in keys}
        self.odd += inner.odd
        return {key: value for key, value in found.items() if value is not None}


def read_step(request: str, fields: Fields) -> Step:
    """The step in a ``step`` record."""
    take = fields.take
    corrected = take("multipliers", _mapping, nullable=True) is not None
    return Step(
        request=request,
        time=take("time", _number),
        step=take("step", _count),
        step_group=take("step_group", _count),
        context=take("context", _count),
        pool_slots=take("pool_slots", _count),
        policy=take("policy", _text),
        drafters=take("drafters", _texts) or [],
        offered=take("offered", _count),
        size=take("size", _count),
        theta=take("theta", _number, nullable=True),
        expected_tokens=take("expected_tokens", _number, nullable=True),
        expected_seconds=take("expected_seconds", _number, nullable=True),
        multipliers=fields.numbers("multipliers", MULTIPLIERS) if corrected else None,
        accepted_tokens=take("accepted_tokens", _count),
        emitted=take("emitted", _count),
        seconds=fields.numbers("seconds", PARTS),
        reason=take("reason", _text) or "",
        faults=take("faults", _texts) or [],
    )


def read_end(fields: Fields) -> End:
    """The end of a turn in a ``request`` record."""
    take = fields.take
    parts = {part: take(f"{part}_seconds", _number) for part in FORWARD}
    counters = {name: take(name, _count) for name in COUNTERS}
    return End(
        time=take("time", _number),
        policy=take("policy", _text),
        drafters=take("drafters", _texts) or [],
        new_tokens=take("new_tokens", _count),
        finish_reason=take("finish_reason", _text),
        finish_detail=take("finish_detail", _text),
        seconds=take("seconds", _number),
        num_steps=take("num_steps", _count),
        num_draft_tokens=take("num_draft_tokens", _count),
        mean_acceptance_length=take("mean_acceptance_length", _number, nullable=True),
        prefill_seconds=take("prefill_seconds", _number),
        parts={name: value for name, value in parts.items() if value is not None},
        counters={name: value for name, value in counters.items() if value is not None},
    )


def _number(value: object) -> float | None:
    """Every quantity of the log is 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= MOST else None


def _count(value: object) -> int | None:
    found = _number(value)
    return int(found) if found is not None and math.floor(found) == found else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: object) -> list[str] | None:
    """A list of words; what is no word in it is named by its type rather than lost."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return None
    return [v if isinstance(v, str) else f"({type(v).__name__})" for v in value]


def _mapping(value: object) -> Record | None:
    return value if isinstance(value, dict) else None
