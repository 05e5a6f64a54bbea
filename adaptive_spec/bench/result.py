"""What a benchmark run returns: plain values, ready for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant in one dtype; what the figures mean: ``adaptive_spec.bench.statistics``."""

    name: str
    policy: str | None
    drafter: str | None
    suite: str
    dtype: str
    temperature: float
    threads: int
    batch: int
    tokens_per_second: float
    speedup: float
    low: float
    high: float
    acceptance_length: float | None
    identical: int
    near_ties: int
    mismatches: int
    tokens_compared: int
    requests: int
    controller_share: float | None
    nodes_per_step: float | None
    peak_memory_ratio: float | None = None
    """Only where memory was measured."""
    versus_baseline: float | None = None
    """Speed relative to the named baseline, and its interval; only where one was named."""
    versus_low: float | None = None
    versus_high: float | None = None
    kernels: bool | None = None
    """Triton kernels attended until the end; None on a CPU, and for those that are not ours."""


@dataclass(frozen=True, slots=True)
class BenchResult:
    """All rows, and the machine they were measured on."""

    rows: tuple[Row, ...]
    machine: dict[str, Any]
    out: str | None = None
    """Folder of the bundle."""
    memory: bool = False
    baseline: bool = False

    @property
    def mismatches(self) -> int:
        """Requests whose text differs from plain's beyond a near-tie."""
        return sum(row.mismatches for row in self.rows)

    @property
    def best_plain(self) -> Row:
        """Plain decoding in the dtype that is fastest here: what a user has without any of this."""
        plain = [row for row in self.rows if row.name == "plain"]
        return max(plain, key=lambda row: row.tokens_per_second)

    def table(self) -> list[dict[str, Any]]:
        """The rows as dicts, with the optional columns only where they were asked for."""
        left_out = set() if self.memory else {"peak_memory_ratio"}
        if not self.baseline:
            left_out |= {"versus_baseline", "versus_low", "versus_high"}
        if all(row.kernels is None for row in self.rows):
            left_out |= {"kernels"}
        return [{k: v for k, v in asdict(row).items() if k not in left_out} for row in self.rows]

    def as_dict(self) -> dict[str, Any]:
        """What ``bench --json`` prints."""
        return {"rows": self.table(), "machine": self.machine}
