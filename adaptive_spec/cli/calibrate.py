"""``adaptive-spec calibrate``: what verification costs on this machine, measured on a grid.

Optional: decoding learns the same from its own steps. A stored calibration spares it the first of
them, and its error shows how well the latency model fits this machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from adaptive_spec.cli.generate import check_machine
from adaptive_spec.cli.output import print_json, progress, results
from adaptive_spec.errors import ArgumentError, DecodingError
from adaptive_spec.options import about

if TYPE_CHECKING:
    from adaptive_spec.profilers.calibration import Calibration, Point


def calibrate(
    model: Annotated[
        str, typer.Option(help="Catalogue name, Hugging Face folder or hub id.")
    ] = "smollm2-135m",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's own choice.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; by default one in the user's cache.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure what trees cost on this machine, fit the latency model, and store both."""
    check_machine(dtype, threads)
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ArgumentError("out", str(out), "a file in a folder that exists")
    with progress(quiet=True) as show:
        from adaptive_spec import models

        with about("--model", model):
            models.resolve(model, progress=show)
        show("starting torch", None)
        import torch

        from adaptive_spec.calibrating import CONTEXTS, Stand, live_errors, measure_grid
        from adaptive_spec.profilers.calibration import save
        from adaptive_spec.profilers.fitting import fit
        from adaptive_spec.profilers.hardware import fingerprint, peaks
        from adaptive_spec.profilers.latency import LiveLatency
        from adaptive_spec.profilers.roofline import Roofline
        from adaptive_spec.target import Target

        if threads is not None:
            torch.set_num_threads(threads)
        loaded, _ = models.load(model, dtype, progress=show)
        target = Target(loaded)
        facts, used = target.architecture, torch.get_num_threads()
        fits = [context for context in CONTEXTS if context <= facts.context_limit - 128]
        roofline = Roofline(facts, peaks(facts, used))
        stand = Stand(target)
        points = measure_grid(
            stand, fits or [facts.context_limit // 2], tell=lambda f: show("measuring the grid", f)
        )
        show("decoding-like steps for the live model", None)
        live = live_errors(stand, LiveLatency(roofline))
        found = fit(facts, peaks(facts, used), points, fingerprint(facts, used))
    path = _default_path(model, dtype, used) if out is None else out
    failed = None
    try:
        save(path, found)
    except OSError as error:  # what was measured is shown all the same
        failed = f"{path} cannot be written: {error.strerror}"
    curve = [
        [nodes, context, seconds, _predicted(roofline, found, nodes, context)]
        for nodes, context, seconds in points
    ]
    facts_out: dict[str, Any] = {
        "mape_live_20": live[0],
        "mape_live_100": live[1],
        "mape_offline": found.errors.held_out,
        "curve": curve,
        "path": None if failed else str(path),
        "fingerprint": dict(found.fingerprint),
    }
    if json:
        print_json(facts_out)
    else:
        _show(facts_out, points)
    if failed:
        raise DecodingError(failed)


def _predicted(roofline: Any, found: Calibration, nodes: int, context: int) -> float:
    """What decoding would predict, were it to start from this calibration."""
    import numpy as np

    from adaptive_spec.profilers.latency import LiveLatency
    from adaptive_spec.types import Work

    latency = LiveLatency(roofline, calibration=found)
    return float(latency.predict(Work(np.array([nodes]), 1, context)).verify[0])


def _default_path(model: str, dtype: str, threads: int) -> Path:
    from adaptive_spec.user_cache import cache_home

    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in model)
    return cache_home() / "calibrations" / f"{name}-{dtype}-{threads}.json"


def _show(facts: dict[str, Any], points: list[Point]) -> None:
    contexts = sorted({context for _, context, _ in points})
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("nodes", justify="right")
    for context in contexts:
        table.add_column(f"ms at {context}", justify="right")
        table.add_column("predicted", justify="right", style="dim")
    for size in sorted({nodes for nodes, _, _ in points}):
        cells = []
        for context in contexts:
            row = next(r for r in facts["curve"] if r[:2] == [size, context])
            cells += [f"{1e3 * row[2]:.1f}", f"{1e3 * row[3]:.1f}"]
        table.add_row(str(size), *cells)
    results.print(table)
    results.print(
        f"mean absolute error: live model after 20 steps {facts['mape_live_20']:.1%}, "
        f"after 100 {facts['mape_live_100']:.1%}; fit on sizes left out {facts['mape_offline']:.1%}"
    )
    if facts["path"] is not None:
        results.print(f"stored: {facts['path']}", soft_wrap=True, markup=False)
        results.print("use it with --set calibration=PATH", markup=False)
