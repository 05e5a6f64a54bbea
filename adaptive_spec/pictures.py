"""Drawing without a display and whatever the user's settings say; files written whole."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Chart:
    """One panel of lines: name -> x and y."""

    title: str
    x: str
    y: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    log_x: bool = False
    marks: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None
    """Dots on the lines, which then have none of their own."""


@contextmanager
def figure(width: float, height: float) -> Iterator[Any]:
    """A figure in inches, in matplotlib's own default style."""
    import matplotlib as mpl
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.style.context("default"):
        mpl.rcParams["agg.path.chunksize"] = 10_000  # Agg refuses longer wild paths
        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(made)
        yield made


def png(made: Any) -> bytes:
    """The figure as a PNG; to be called while it is open."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def charts(title: str, panels: Sequence[Chart]) -> bytes:
    """Panels side by side, as a PNG."""
    with figure(4.4 * len(panels), 3.6) as made:
        row = made.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(row, panels, strict=True):
            for name, (x, y) in panel.lines.items():
                dots = None if panel.marks is not None else "."
                (line,) = axes.plot(x, y, marker=dots, label=name, linewidth=1.2)
                if panel.marks is not None and name in panel.marks:
                    axes.plot(*panel.marks[name], "o", color=line.get_color(), markersize=4)
            if panel.log_x:
                axes.set_xscale("log", base=2)
            axes.set_title(panel.title, fontsize="medium")
            axes.set_xlabel(panel.x)
            axes.set_ylabel(panel.y)
            axes.grid(alpha=0.3)
            if len(panel.lines) > 1:
                axes.legend(fontsize="small")
        made.suptitle(ascii_only(title), parse_math=False)
        return png(made)


def save(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises OSError."""
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def ascii_only(text: str) -> str:
    """What every font has."""
    return text.encode("ascii", "backslashreplace").decode("ascii")
