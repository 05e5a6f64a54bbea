"""What a budget log says about updates of the draft head."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from adaptive_spec.cli.inspect_text import clean, figure
from adaptive_spec.log_reader import Record
from adaptive_spec.online.rules import EVERY_ARM

SKIP: Final = "skip"
REVIEW: Final = "review"
REASON = 80
"""Characters shown of a reason."""


@dataclass(slots=True)
class Arm:
    """What became of the trials of one arm."""

    tried: int = 0
    kept: int = 0
    seconds: float = 0.0
    expected_seconds: float = 0.0
    """What the rule thought that they would take; 0 where it thought nothing."""
    expected_gain: float = 0.0
    """Tokens per second that they were thought to bring, added up."""
    gain: float = 0.0
    """Draft tokens per tree that those kept promised on what was held out, added up."""


@dataclass(slots=True)
class Updates:
    """All decisions of a log; arms of unknown names count together."""

    arms: dict[str, Arm] = field(default_factory=dict)
    skipped: int = 0
    realised: list[float] = field(default_factory=list)
    """Tokens per second that updates brought, as decoding itself showed afterwards."""
    undone: int = 0
    alarms: int = 0
    """Times that text or target were seen to have changed."""
    last: str = ""
    """The reason of the newest decision."""

    def add(self, record: Record) -> None:
        """Take in the next record, whatever it holds."""
        name, reason = record.get("arm"), record.get("decision")
        if isinstance(reason, str):
            self.last = clean(reason, REASON)
        self.alarms += record.get("alarm") is True
        if name == SKIP:
            self.skipped += 1
            return
        if name == REVIEW:
            self.undone += record.get("kept") is False
            self.realised.append(_number(record, "realised_gain"))
            return
        arm = self.arms.setdefault(name if name in EVERY_ARM else "other", Arm())
        arm.tried += 1
        arm.kept += (kept := record.get("kept") is True)
        arm.seconds += max(_number(record, "realised_cost"), 0.0)
        arm.expected_seconds += max(_number(record, "expected_cost"), 0.0)
        arm.expected_gain += _number(record, "expected_gain")
        arm.gain += _number(record, "gain") if kept else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        arms = {name: asdict(arm) for name, arm in self.arms.items()}
        more = {"realised": self.realised, "undone": self.undone, "alarms": self.alarms}
        return {"arms": arms, "skipped": self.skipped, **more}

    def line(self) -> str | None:
        """One line; None without a decision."""
        parts = [
            f"{name} {arm.kept} of {arm.tried} kept in {figure(arm.seconds, 2)} s"
            + (f" (thought: {figure(arm.expected_seconds, 2)} s)" if arm.expected_seconds else "")
            + (f", promising {figure(arm.gain, 3)} tokens per tree" if arm.gain else "")
            for name, arm in self.arms.items()
        ]
        if self.realised:
            mean = sum(self.realised) / len(self.realised)
            parts.append(f"looked at afterwards: {figure(mean, 2)} tokens/s each")
        if self.undone:
            parts.append(f"undone {self.undone}")
        if self.alarms:
            parts.append(f"alarms {self.alarms}")
        if self.skipped:
            parts.append(f"skipped {self.skipped}")
        if not parts:
            return None
        return f"updates of the head: {', '.join(parts)}" + (
            f"; the last reason: {self.last}" if self.last else ""
        )


def _number(record: Record, name: str) -> float:
    """A finite number of a record, or 0."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0.0
    return float(value) if math.isfinite(value) else 0.0
