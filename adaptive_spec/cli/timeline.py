"""One request as a picture: what was decided at every step, and what came of it.

Panels share the step axis; steps with faults and steps before which an update ran are marked in
all of them. A panel that the log has no numbers for is left out and named at the bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from adaptive_spec.cli.inspect_records import MULTIPLIERS, Step
from adaptive_spec.pictures import ascii_only, figure, png
from adaptive_spec.types import Bools, Floats

WINDOW: Final = 16
"""Steps of the running mean."""
SPREAD: Final = 5.0
"""Largest over median from which on seconds are drawn on a logarithmic axis."""
DOTS: Final = 60
"""Most steps that are drawn with a dot each."""
_BLUE, _ORANGE, _GREEN, _GREY, _RED, _PURPLE = (
    "tab:blue", "tab:orange", "tab:green", "0.6", "tab:red", "tab:purple",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One line of a panel; NaN where the log says nothing."""

    label: str
    values: Floats
    color: str
    style: dict[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        return bool(np.isfinite(self.values).any())


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Series over the same steps, in the same unit."""

    name: str
    unit: str
    series: Sequence[Series]
    log: bool = False

    @property
    def known(self) -> bool:
        return any(series.known for series in self.series)


def render(title: str, steps: Sequence[Step]) -> bytes:
    """The timeline of at least one step, as a PNG."""
    wanted = panels(steps)
    shown, missing = [panel for panel in wanted if panel.known], absent(wanted)
    x = axis(steps)
    with figure(12, 1.2 + 2.1 * max(len(shown), 1)) as made:
        rows = made.subplots(max(len(shown), 1), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(rows, shown, strict=False):
            _draw(axes, x, panel)
        for axes in rows:
            first = axes is rows[0]  # one legend is enough
            _mark(axes, x[_faulty(steps)], _RED, "fault" if first else "")
            _mark(axes, x[_updated(steps)], _PURPLE, "update" if first else "")
        for axes, panel in zip(rows, shown, strict=False):
            axes.set_ylabel(panel.unit)
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")
        note = f"\nnot in the log: {', '.join(missing)}" if missing else ""
        made.suptitle(ascii_only(title), parse_math=False)
        made.supxlabel(f"step{note}", fontsize="medium")
        return png(made)


def panels(steps: Sequence[Step]) -> list[Panel]:
    """All that a timeline may show."""

    def column(value: Callable[[Step], float | None], scale: float = 1.0) -> Floats:
        found = (value(step) for step in steps)
        return np.array([np.nan if v is None else scale * v for v in found], dtype=np.float64)

    dots: dict[str, Any] = {"linestyle": "none", "marker": ".", "markersize": 5}
    emitted = column(lambda s: s.emitted)
    expected, realised = column(lambda s: s.expected_seconds, 1e3), column(lambda s: s.total, 1e3)
    colors = (_GREY, _BLUE, _ORANGE, _GREEN)
    rates = [
        Series(name, column(partial(_positive, name)), color)
        for name, color in zip(MULTIPLIERS, colors, strict=True)
    ]
    return [
        Panel(
            "context",
            "tokens, slots",
            (
                Series("pool slots", column(lambda s: s.pool_slots), _GREY),
                Series("context", column(lambda s: s.context), _BLUE),
            ),
        ),
        Panel(
            "budget",
            "draft nodes",
            (
                Series("offered", column(lambda s: s.offered), _GREY),
                Series("chosen", column(lambda s: s.size), _BLUE),
                Series("accepted", column(lambda s: s.accepted_tokens), _GREEN, dots),
            ),
        ),
        Panel(
            "tokens",
            "tokens per step",
            (
                Series("realised", emitted, _GREY, dots),
                Series(f"realised, mean of {WINDOW}", running_mean(emitted), _BLUE),
                Series("expected", column(lambda s: s.expected_tokens), _ORANGE),
            ),
        ),
        Panel(
            "seconds",
            "ms per step",
            (Series("realised", realised, _BLUE), Series("expected", expected, _ORANGE)),
            log=_wide(realised),
        ),
        Panel("multipliers", "correction", rates, log=True),
    ]


def absent(wanted: Sequence[Panel]) -> list[str]:
    """What the log has no numbers for: whole panels, and series of the others."""
    names = []
    for panel in wanted:
        gone = [f"{panel.name} ({series.label})" for series in panel.series if not series.known]
        names += gone if panel.known else [panel.name]
    return names


def axis(steps: Sequence[Step]) -> Floats:
    """Step numbers where they rise, else the steps counted from 0."""
    numbers = np.array([np.nan if s.step is None else s.step for s in steps], dtype=np.float64)
    rising = bool((np.diff(numbers) > 0).all()) and bool(np.isfinite(numbers).all())
    return numbers if rising else np.arange(len(steps), dtype=np.float64)


def running_mean(values: Floats, window: int = WINDOW) -> Floats:
    """[N] mean of the last ``window`` known values; NaN before the first."""
    known = np.isfinite(values)
    sums = np.cumsum(np.where(known, values, 0.0))
    counts = np.cumsum(known).astype(np.float64)
    sums[window:] = sums[window:] - sums[:-window]
    counts[window:] = counts[window:] - counts[:-window]
    mean: Floats = np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
    return mean


def _draw(axes: Any, x: Floats, panel: Panel) -> None:
    if panel.log:
        from matplotlib.ticker import LogFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
    dot = {"marker": "."} if len(x) <= DOTS else {}
    for series in panel.series:
        if series.known:
            style = {"linewidth": 1.2, **dot, **series.style}
            axes.plot(x, series.values, color=series.color, label=series.label, **style)
    axes.grid(alpha=0.3)


def _mark(axes: Any, x: Floats, color: str, label: str) -> None:
    """Upright lines through the whole panel."""
    if len(x):
        across = axes.get_xaxis_transform()
        axes.vlines(x, 0, 1, transform=across, color=color, alpha=0.5, linewidth=0.8, label=label)


def _faulty(steps: Sequence[Step]) -> Bools:
    return np.array([bool(step.faults) for step in steps], dtype=np.bool_)


def _updated(steps: Sequence[Step]) -> Bools:
    return np.array([step.seconds.get("update", 0.0) > 0 for step in steps], dtype=np.bool_)


def _positive(name: str, step: Step) -> float | None:
    """A multiplier, which a logarithmic axis can show."""
    return (step.multipliers or {}).get(name) or None


def _wide(values: Floats) -> bool:
    """Whether a logarithmic axis is needed, and possible."""
    known = values[np.isfinite(values)]
    if not len(known) or known.min() <= 0:
        return False
    return bool(known.max() > SPREAD * np.median(known))
