"""Log text and figures as a terminal may show them."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_spec.budget_log import MAX_WORDS
from adaptive_spec.cli.inspect_records import Step


def clean(text: str, most: int = MAX_WORDS) -> str:
    """At most ``most`` characters; controls, escapes and marks of direction become visible."""
    shown = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def figure(value: float | None, digits: int = 1) -> str:
    """A number that never needs much room; - for none."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if value < 1e7 else f"{value:.3g}"


def milliseconds(seconds: float | None) -> str:
    """Without the unit."""
    return figure(None if seconds is None else 1e3 * seconds)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def label(step: Step) -> str:
    """The number of a step, if the log has it."""
    return "?" if step.step is None else str(step.step)


def runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of every stretch of consecutive positions."""
    found: list[tuple[int, int]] = []
    for position in positions:
        if found and position == found[-1][1] + 1:
            found[-1] = (found[-1][0], position)
        else:
            found.append((position, position))
    return found


def places(steps: Sequence[Step], positions: Sequence[int], most: int = 5) -> str:
    """Numbers of the steps at these positions: ``3, 12-30 and 4 more``."""
    stretches = runs(positions)
    words = [
        label(steps[a]) if a == b else f"{label(steps[a])}-{label(steps[b])}"
        for a, b in stretches[:most]
    ]
    rest = sum(b - a + 1 for a, b in stretches[most:])
    return ", ".join(words) + (f" and {rest} more" if rest else "")
