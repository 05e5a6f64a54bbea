"""``adaptive-spec bench --suite stream:NAME``: rules of online updates on a long run of requests.

With ``--out`` the folder holds ``stream.json``, written anew after every batch, and
``throughput.png``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from adaptive_spec.cli.output import progress

if TYPE_CHECKING:
    from adaptive_spec.bench.settings import BenchSettings
    from adaptive_spec.bench.stream_result import StreamResult

DATA, PICTURE = "stream.json", "throughput.png"
COLUMNS = (
    "tokens/s", "against never", "90 %", "last quarter", "kept", "tried", "learning",
    "accepted first", "last",
)  # fmt: skip


def stream(settings: BenchSettings, tokens: int, as_json: bool) -> None:
    """Run it, and print a table or JSON."""
    from adaptive_spec import pictures
    from adaptive_spec.bench.streams import run_stream

    folder = None if settings.out is None else _folder(settings.out)

    def keep(so_far: StreamResult) -> None:
        if folder is not None:
            data = json.dumps(so_far.as_dict(), allow_nan=False)
            pictures.save(folder / DATA, data.encode())

    with progress(quiet=True) as show:
        result = run_stream(settings, tokens, show, keep)
    keep(result)
    if folder is not None:
        pictures.save(folder / PICTURE, picture(settings.suite, result))
    if as_json:
        print(json.dumps(result.as_dict(), allow_nan=False))
    else:
        _table(result, settings.out)


def picture(title: str, result: StreamResult) -> bytes:
    """Cumulative throughput, every kept update marked, and acceptance length along the stream."""
    from adaptive_spec.bench.stream_result import progress_lines
    from adaptive_spec.pictures import Chart, charts

    speeds, marks, lengths = {}, {}, {}
    for name, x, y in progress_lines(result):
        course = result.courses[name]
        speeds[name] = (x, y)
        kept = [i for i, n in enumerate(course.updates) if n > (course.updates[i - 1] if i else 0)]
        marks[name] = ([x[i] for i in kept], [y[i] for i in kept])
        width = max(len(x) // 20, 1)
        places = range(0, len(x) - width + 1, width)
        lengths[name] = (
            [x[i + width - 1] for i in places],
            [
                sum(course.tokens[i : i + width]) / max(sum(course.steps[i : i + width]), 1)
                for i in places
            ],
        )
    panels = [
        Chart("cumulative throughput (dots: updates)", "tokens", "tokens/s", speeds, marks=marks),
        Chart("acceptance length", "tokens", "tokens per forward", lengths),
    ]
    return charts(title, panels)


def _folder(out: str) -> Path:
    from adaptive_spec.errors import ArgumentError

    folder = Path(os.path.expanduser(out))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError("--out", out, f"a folder to write to ({error.strerror})") from error
    return folder


def _table(result: StreamResult, out: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 160
    table = Table()
    table.add_column("contestant", no_wrap=True)
    plain = any(row.versus_plain is not None for row in result.rows)
    for name in (*COLUMNS, *(("against plain", "90 %") if plain else ())):
        table.add_column(name, justify="right")
    for row in result.rows:
        cells = [
            f"{row.tokens_per_second:.2f}",
            f"{row.versus_never:.3f}x",
            f"{row.low:.3f} .. {row.high:.3f}",
            f"{row.versus_never_last:.3f}x",
            str(row.updates),
            str(row.trials),
            f"{row.update_seconds:.1f} s",
            f"{row.acceptance_length_first:.2f}",
            f"{row.acceptance_length_last:.2f}",
        ]
        if row.versus_plain is not None:
            cells += [f"{row.versus_plain:.3f}x", f"{row.plain_low:.3f} .. {row.plain_high:.3f}"]
        table.add_row(escape(row.name), *cells)
    console.print(table)
    if drift := result.facts.get("drift"):
        before, after = drift["perplexity"]
        loops = " -> ".join(f"{part['loop_rate']:.2f}" for part in result.facts["parts"])
        typer.echo(
            f"the target changed: perplexity {before:.2f} -> {after:.2f}, texts that run in "
            f"circles {loops}"
        )
        for name, share in drift.get("recovered", {}).items():
            typer.echo(f"  {name}: {share:.0%} of the head's lost acceptance length is back")
    if out is not None:
        typer.echo(f"folder: {out}")
