"""What a budget log says about updates of the draft head."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from adaptive_spec.cli.inspect_text import clean, figure
from adaptive_spec.log_reader import Record

SKIP: Final = "skip"
ARMS: Final = ("full", "corrector", "calibrator")
REASON = 80
"""Characters shown of a reason."""


@dataclass(slots=True)
class Arm:
    """What became of the trials of one arm."""

    tried: int = 0
    kept: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Updates:
    """All decisions of a log; arms of unknown names count together."""

    arms: dict[str, Arm] = field(default_factory=dict)
    skipped: int = 0
    last: str = ""
    """The reason of the newest decision."""

    def add(self, record: Record) -> None:
        """Take in the next record, whatever it holds."""
        name, reason = record.get("arm"), record.get("decision")
        if isinstance(reason, str):
            self.last = clean(reason, REASON)
        if name == SKIP:
            self.skipped += 1
            return
        arm = self.arms.setdefault(name if name in ARMS else "other", Arm())
        arm.tried += 1
        arm.kept += record.get("kept") is True
        cost = record.get("realised_cost")
        if isinstance(cost, (int, float)) and math.isfinite(cost) and cost > 0:
            arm.seconds += cost

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        arms = {name: asdict(arm) for name, arm in self.arms.items()}
        return {"arms": arms, "skipped": self.skipped}

    def line(self) -> str | None:
        """One line; None without a decision."""
        parts = [
            f"{name} {arm.kept} of {arm.tried} kept in {figure(arm.seconds, 2)} s"
            for name, arm in self.arms.items()
        ]
        if self.skipped:
            parts.append(f"skipped {self.skipped}")
        if not parts:
            return None
        return f"updates of the head: {', '.join(parts)}" + (
            f"; the last reason: {self.last}" if self.last else ""
        )
