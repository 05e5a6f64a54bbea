"""The budget log, schema 1: one JSON line per step, request and update. Every field: docs/log.md.

The log explains decisions after the fact, so it must never take part in one. Opening may fail
(LogError); after that nothing does: what cannot be written is dropped, counted in ``dropped`` and
warned about once.

Legend: N verified draft nodes (the root is not one of them).
"""

from __future__ import annotations

import errno
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import time as now
from typing import Any, Final, Literal, TypeVar

from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.errors import ArgumentError, LogError
from adaptive_spec.log_file import LineFile, encode
from adaptive_spec.types import Floats, Ints, Outcome, RequestStats

SCHEMA: Final = 1
KINDS: Final = ("step", "request", "update")
PARTS: Final = ("draft", "verify", "sample", "host", "update")
MAX_WORDS: Final = 500
"""Characters kept of a reason or a fault: an exception may carry a whole tensor in its text."""

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Where the log goes and how much it holds: at most ``files * max_bytes`` on disk.

    Raises ArgumentError for a value out of range.
    """

    path: str
    detail: bool = True
    """Write the arrays over nodes and sizes, which replay needs."""
    text: bool = False
    """Write token ids, from which the text can be read."""
    max_bytes: int = 16 << 20
    files: int = 3

    def __post_init__(self) -> None:
        if not self.path or "\0" in self.path:
            raise ArgumentError("log.path", self.path, "the name of a file")
        if self.max_bytes < 4096:
            raise ArgumentError("log.max_bytes", self.max_bytes, "at least 4096 bytes per file")
        if self.files < 1:
            raise ArgumentError("log.files", self.files, "at least 1 file")


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One request in one forward: the decision, what it was based on, and what came of it."""

    outcome: Outcome
    step_group: int
    """Number of the forward; requests with the same number shared it."""
    pool_slots: int
    """High-water mark of the slot pool during the forward."""
    policy: str
    drafters: Sequence[str]
    """Names that ``tree.drafter`` points into."""
    tree: CandidateTree
    """The N verified nodes, best first."""
    depth: Ints
    survival: Floats
    accepted: Ints | Sequence[int]
    """Indices of the accepted nodes along the path, the root left out."""
    emitted_tokens: Sequence[int] = ()
    """Written only where the settings ask for text."""
    multipliers: Mapping[str, float] | None = None
    """Of the latency model: draft, verify_base, verify_slope, host."""
    noise: Literal["keyed", "coupled"] | None = None
    head_version: int | str | None = None
    update_arm: str | None = None
    faults: Sequence[str] = ()
    time: float = field(default_factory=now)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A finished request."""

    request: str
    seed: int | None
    temperature: float
    prompt_tokens: int
    new_tokens: int
    policy: str
    drafters: Sequence[str]
    finish_reason: str
    finish_detail: str
    seconds: float
    """Wall seconds of the request, prefill included."""
    stats: RequestStats
    time: float = field(default_factory=now)


class NullLog:
    """The log of a decoder that keeps none."""

    path: str | None = None
    dropped: int = 0

    def step(self, record: StepRecord) -> None: ...

    def request(self, record: RequestRecord) -> None: ...

    def update(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class BudgetLog:
    """Appends records to ``path``. Safe to share between threads; ``close`` may be called twice.

    Raises LogError if the file cannot be opened for appending, is a symbolic link, or is no
    regular file. An existing file gets mode 0600.
    """

    def __init__(self, settings: LogSettings) -> None:
        self.settings = settings
        self.dropped = 0
        """Records that could not be written."""
        self._guard = threading.Lock()
        try:
            self._file = LineFile(settings.path, settings.max_bytes, settings.files)
        except OSError as error:
            why = error.strerror or str(error)
            if error.errno == errno.ELOOP:
                why = "it is a symbolic link, and a log is not written through one"
            raise LogError(f"cannot write the budget log {settings.path!r}: {why}") from error
        self.path = self._file.path

    def step(self, record: StepRecord) -> None:
        self._write(self._step_fields, record)

    def request(self, record: RequestRecord) -> None:
        self._write(_request_fields, record)

    def update(self, record: Mapping[str, Any]) -> None:
        """``record`` holds plain values; ``schema``, ``kind`` and ``time`` are added."""
        self._write(_update_fields, record)

    def close(self) -> None:
        with self._guard:
            self._file.close()

    def _step_fields(self, record: StepRecord) -> dict[str, Any]:
        outcome, tree = record.outcome, record.tree
        decision, seconds = outcome.decision, outcome.seconds
        fields: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": "step",
            "time": record.time,
            "request": outcome.features.request,
            "step": outcome.features.step,
            "step_group": record.step_group,
            "context": outcome.features.context,
            "pool_slots": record.pool_slots,
            "policy": record.policy,
            "drafters": list(record.drafters),
            "offered": outcome.offered,
            "size": decision.size,
            "theta": decision.theta,
            "expected_tokens": decision.expected_tokens,
            "expected_seconds": decision.expected_seconds,
            "multipliers": record.multipliers,
            "accepted_tokens": outcome.accepted,
            "emitted": outcome.emitted,
            "seconds": {part: round(getattr(seconds, part), 7) for part in PARTS},
            "reason": decision.reason[:MAX_WORDS],
            "noise": record.noise,
            "head_version": record.head_version,
            "update_arm": record.update_arm,
            "faults": [fault[:MAX_WORDS] for fault in record.faults],
        }
        if self.settings.detail:
            predicted = decision.predicted
            fields["predicted"] = None if predicted is None else _short(predicted)
            fields["parent"] = tree.parent.tolist()
            fields["depth"] = record.depth.tolist()
            fields["rank"] = tree.rank.tolist()
            fields["drafter"] = tree.drafter.tolist()
            fields["logq"] = _short(tree.logq.tolist())
            fields["survival"] = _short(record.survival.tolist())
            fields["accepted"] = list(record.accepted)
            if self.settings.text:
                fields["token"] = tree.token.tolist()
        if self.settings.text:
            fields["emitted_tokens"] = list(record.emitted_tokens)
        return fields

    def _write(self, fields: Callable[[Record], dict[str, Any]], record: Record) -> None:
        try:
            line = encode(fields(record))
            with self._guard:
                self._file.append(line)
        except Exception as error:  # never fatal: a log must not stop what it describes
            with self._guard:
                self.dropped += 1
                first = self.dropped == 1
            if first:
                with suppress(Exception):  # warnings may be turned into errors
                    warnings.warn(
                        f"budget log {self.path!r}: a record was dropped ({error!r:.200}); "
                        "further ones are only counted",
                        RuntimeWarning,
                        stacklevel=3,
                    )


def open_log(settings: LogSettings | None) -> BudgetLog | NullLog:
    """The log that the settings ask for; none for None. Raises LogError."""
    return NullLog() if settings is None else BudgetLog(settings)


def _request_fields(record: RequestRecord) -> dict[str, Any]:
    rate = record.new_tokens / record.seconds if record.seconds > 0 else None
    return {
        "schema": SCHEMA,
        "kind": "request",
        "time": record.time,
        "request": record.request,
        "seed": record.seed,
        "temperature": record.temperature,
        "prompt_tokens": record.prompt_tokens,
        "new_tokens": record.new_tokens,
        "policy": record.policy,
        "drafters": list(record.drafters),
        "finish_reason": record.finish_reason,
        "finish_detail": record.finish_detail[:MAX_WORDS],
        "seconds": record.seconds,
        "tokens_per_second": rate,
        **record.stats.as_dict(),
    }


def _update_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    head = {"schema": SCHEMA, "kind": "update"}
    return {**head, "time": now(), **record, **head}


def _short(values: Sequence[float]) -> list[float]:
    """Six significant digits: enough for every use of the log, at a third of the length."""
    return [float(f"{value:.6g}") for value in values]
