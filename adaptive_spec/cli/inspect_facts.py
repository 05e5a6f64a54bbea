"""What a budget log says, request by request: the figures of ``inspect``.

A step's seconds are those of its whole forward, and requests that shared a forward repeat them.
That is right for what one request waited for; over several requests every forward counts once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from adaptive_spec.budget_log import PARTS
from adaptive_spec.cli.inspect_records import (
    COUNTERS,
    FORWARD,
    End,
    Fields,
    Step,
    read_end,
    read_step,
)
from adaptive_spec.cli.inspect_updates import Updates
from adaptive_spec.errors import LogError
from adaptive_spec.log_reader import LogReader, Record

N = TypeVar("N", int, float)

OPEN: Final = "open"
"""Finish of a request whose end the log does not hold."""
_NO_END = End()


@dataclass(slots=True)
class Turn:
    """Steps and the record of their end, which also counts the steps whose records are gone."""

    steps: list[Step] = field(default_factory=list)
    end: End = _NO_END

    @property
    def ended(self) -> bool:
        return self.end is not _NO_END

    @property
    def num_steps(self) -> int:
        return _first(self.end.num_steps, len(self.steps))

    @property
    def new_tokens(self) -> int:
        return _first(self.end.new_tokens, sum(step.emitted or 0 for step in self.steps))

    @property
    def emitted(self) -> float:
        """Tokens of its steps."""
        mean = self.end.mean_acceptance_length
        return self.new_tokens if mean is None else mean * self.num_steps

    @property
    def drafted(self) -> int:
        return _first(self.end.num_draft_tokens, sum(step.size or 0 for step in self.steps))

    @property
    def interval(self) -> tuple[float, float] | None:
        """From when to when, in Unix seconds; before its end is known, first to last step."""
        if self.ended:
            time, seconds = self.end.time, self.end.seconds
            return None if time is None or seconds is None else (time - seconds, time)
        times = [(step.time, step.total or 0.0) for step in self.steps if step.time is not None]
        if not times:
            return None
        return min(time - seconds for time, seconds in times), max(time for time, _ in times)

    @property
    def seconds(self) -> float | None:
        if self.ended:
            return self.end.seconds
        return self.interval and self.interval[1] - self.interval[0]

    def part(self, name: str) -> float:
        """Seconds of one part of its forwards."""
        seen = sum(step.seconds.get(name, 0.0) for step in self.steps)
        return _first(self.end.parts.get(name), seen)


@dataclass(slots=True)
class Request:
    """Everything that the log says of one request."""

    id: str
    turns: list[Turn] = field(default_factory=list)

    def running(self) -> Turn:
        """The turn that has not ended."""
        if not self.turns or self.turns[-1].ended:
            self.turns.append(Turn())
        return self.turns[-1]

    @property
    def steps(self) -> list[Step]:
        return [step for turn in self.turns for step in turn.steps]

    @property
    def ends(self) -> list[End]:
        return [turn.end for turn in self.turns if turn.ended]

    @property
    def policies(self) -> list[str]:
        """In the order of their first use."""
        named = [step.policy for step in self.steps] + [end.policy for end in self.ends]
        return list(dict.fromkeys(name for name in named if name is not None))

    @property
    def finish(self) -> str:
        """How the last turn ended."""
        turn = self.turns[-1]
        return turn.end.finish_reason or "unknown" if turn.ended else OPEN

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by part of the forwards that it took part in."""
        return {part: sum(turn.part(part) for turn in self.turns) for part in PARTS}

    def row(self) -> dict[str, Any]:
        """Its row of the table, as plain values."""
        turns, steps = self.turns, self.steps
        count = sum(turn.num_steps for turn in turns)
        sizes = [step.size for step in steps if step.size is not None]
        named = [step.drafters for step in steps] + [end.drafters for end in self.ends]
        timed = [(turn.new_tokens, turn.seconds) for turn in turns if turn.seconds is not None]
        seconds = sum(taken for _, taken in timed)
        prefills = [end.prefill_seconds for end in self.ends if end.prefill_seconds is not None]
        counters: Counter[str] = Counter()
        for end in self.ends:
            counters.update(end.counters)
        return {
            "request": self.id,
            "policies": self.policies,
            "drafters": list(dict.fromkeys(name for names in named for name in names)),
            "turns": len(turns),
            "num_steps": count,
            "steps_in_log": len(steps),
            "new_tokens": sum(turn.new_tokens for turn in turns),
            "budget_mean": ratio(sum(turn.drafted for turn in turns), count),
            "budget_min": min(sizes, default=None),
            "budget_max": max(sizes, default=None),
            "mean_acceptance_length": ratio(sum(turn.emitted for turn in turns), count),
            "seconds": seconds if timed else None,
            "tokens_per_second": ratio(sum(tokens for tokens, _ in timed), seconds),
            "prefill_seconds": sum(prefills) if prefills else None,
            "shares": shares(self.parts),
            "finish_reason": self.finish,
            "finish_detail": turns[-1].end.finish_detail,
            **{name: counters[name] for name in COUNTERS},
        }


@dataclass(slots=True)
class Facts:
    """A whole log, its arrays left out."""

    requests: dict[str, Request] = field(default_factory=dict)
    updates: Updates = field(default_factory=Updates)
    skipped: int = 0
    """Lines that are no record, and records that belong to no request."""
    unknown_schema: dict[int, int] = field(default_factory=dict)
    odd: int = 0
    """Fields that are missing, or hold what they cannot hold."""
    forwards: Counter[Hashable] = field(default_factory=Counter)
    """How many steps shared each forward."""

    def add(self, record: Record) -> None:
        """Take in the next record."""
        fields, name = Fields(record), record.get("request")
        if record["kind"] == "update":
            self.updates.add(record)
        elif not isinstance(name, str) or not name:
            self.skipped += 1
        else:
            turn = self.requests.setdefault(name, Request(name)).running()
            if record["kind"] == "step":
                step = read_step(name, fields)
                turn.steps.append(step)
                self.forwards[step.forward] += 1
            else:
                turn.end = read_end(fields)
        self.odd += fields.odd

    def totals(self) -> dict[str, Any]:
        """Over all requests: every forward once, and time in which several ran once."""
        requests = self.requests.values()
        turns = [turn for request in requests for turn in request.turns]
        timed = [(turn.new_tokens, span) for turn in turns if (span := turn.interval) is not None]
        seconds = _union(span for _, span in timed)
        once = {step.forward: step.seconds for turn in turns for step in turn.steps}
        parts = {part: sum(s.get(part, 0.0) for s in once.values()) for part in PARTS}
        return {
            "requests": len(requests),
            "open": sum(request.finish == OPEN for request in requests),
            "num_steps": sum(turn.num_steps for turn in turns),
            "forwards_in_log": len(once),
            "forward_seconds": sum(parts[part] for part in FORWARD),
            "new_tokens": sum(turn.new_tokens for turn in turns),
            "seconds": seconds,
            "tokens_per_second": ratio(sum(tokens for tokens, _ in timed), seconds),
            "shares": shares(parts),
            "updates": self.updates.as_dict(),
        }


def read_facts(path: str) -> Facts:
    """Read a log and the files that it was rotated to. Raises LogError."""
    reader, facts = LogReader(path, rotated=True), Facts()
    try:
        for record in reader:
            facts.add(record)
    except LogError:
        raise
    except OSError as error:
        raise LogError(f"cannot read the budget log {path!r}: {error}") from error
    facts.skipped += reader.skipped
    facts.unknown_schema = dict(reader.unknown_schema)
    return facts


def ratio(part: float, whole: float) -> float | None:
    """``part / whole``, None where that says nothing."""
    found = part / whole if whole else math.inf
    return found if math.isfinite(found) else None


def shares(parts: dict[str, float]) -> dict[str, float] | None:
    """Each part over their sum."""
    whole = sum(parts.values())
    return {name: value / whole for name, value in parts.items()} if whole else None


def _first(known: N | None, otherwise: N) -> N:
    """What an end record says, else what its steps add up to."""
    return otherwise if known is None else known


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds that lie in any of the spans."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(end - max(begin, reached), 0.0)
        reached = max(reached, end)
    return total
