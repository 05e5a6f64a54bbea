"""``adaptive-spec bench``: options into settings, the result into a table or JSON.

Only the result goes to stdout; progress goes to stderr. Exit code 1 says that a text differs from
plain decoding's beyond a near-tie.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from adaptive_spec.cli.output import progress, remark

if TYPE_CHECKING:
    from adaptive_spec.bench.result import BenchResult, Row

DEFAULT_LIMIT = 10
DISTURBED = (
    "remark: speeds mix the steps before and after the change, and every contestant has its own "
    "step count; the log in the bundle tells both apart"
)
WIDTH = 160
"""Columns of the table where there is no terminal to ask."""
_WHO, _WHAT, _HOW, _OUT = "Contestants", "Prompts and sampling", "Measurement", "Output"


def bench(
    model: Annotated[
        str, typer.Option(help="Catalogue name, Hugging Face folder or hub id.")
    ] = "smollm2-135m",
    suite: Annotated[
        str,
        typer.Option(
            help="humaneval, chat, FILE.jsonl, or stream:stationary, stream:domains, "
            "stream:target-drift, stream:adversarial.",
            rich_help_panel=_WHAT,
        ),
    ] = "humaneval",
    limit: Annotated[
        int, typer.Option(help="Prompts: the first N.", rich_help_panel=_WHAT)
    ] = DEFAULT_LIMIT,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens per request.", rich_help_panel=_WHAT)
    ] = 128,
    dtype: Annotated[
        str, typer.Option(help="float32 or bfloat16, or both.", rich_help_panel=_WHAT)
    ] = "float32",
    temperature: Annotated[float, typer.Option(help="0 is greedy.", rich_help_panel=_WHAT)] = 0.0,
    top_p: Annotated[float, typer.Option(help="In (0, 1].", rich_help_panel=_WHAT)] = 1.0,
    seed: Annotated[
        int, typer.Option(help="Request i samples with SEED + i.", rich_help_panel=_WHAT)
    ] = 0,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="No token ends a text.", rich_help_panel=_WHAT)
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="No chat template.", rich_help_panel=_WHAT)
    ] = False,
    tokens: Annotated[
        int, typer.Option(help="Of every part of a stream.", rich_help_panel=_WHAT)
    ] = 15_000,
    updates: Annotated[
        str | None,
        typer.Option(
            help="never,cost-aware,...: rules of online updates, as a further factor.",
            rich_help_panel=_WHO,
        ),
    ] = None,
    policies: Annotated[
        str | None,
        typer.Option(help="NAME,NAME:ARG,...; plain always runs.", rich_help_panel=_WHO),
    ] = None,
    drafters: Annotated[
        str | None, typer.Option(help="NAME,NAME,...", rich_help_panel=_WHO)
    ] = None,
    peers: Annotated[
        str | None, typer.Option(help="hf, hf-prompt-lookup:N", rich_help_panel=_WHO)
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Contestant whose ratio is printed too; best:fixed is the best fixed budget.",
            rich_help_panel=_WHO,
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="KEY=a,b: a config key as a further factor.", rich_help_panel=_WHO),
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="Preset name or TOML file.", rich_help_panel=_WHO)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.field=value", rich_help_panel=_WHO),
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="Times every prompt is run.", rich_help_panel=_HOW)
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(help="torch threads.", rich_help_panel=_HOW)
    ] = None,
    batch: Annotated[
        int, typer.Option(help="Requests decoded together.", rich_help_panel=_HOW)
    ] = 1,
    disturb: Annotated[
        str | None,
        typer.Option(
            help="threads=K@S: K threads from each contestant's decoding step S on.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    memory: Annotated[
        bool,
        typer.Option("--memory", help="Peak memory too, in own processes.", rich_help_panel=_HOW),
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(help="Folder of the bundle; replaces one there.", rich_help_panel=_OUT),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_OUT)
    ] = False,
) -> None:
    """Compare policies and drafters on the same prompts, turn by turn in one process."""
    from adaptive_spec.bench.runner import run_bench
    from adaptive_spec.bench.settings import BenchSettings, Disturbance, Vary, split
    from adaptive_spec.bench.streams import PREFIX
    from adaptive_spec.cli.bench_stream import stream

    factors = [*(vary or ())]
    streams = suite.startswith(PREFIX)
    if updates is not None or streams:
        factors.append(f"online.updates={updates or 'never,cost-aware'}")
    settings = BenchSettings(
        model=model,
        suite=suite,
        limit=limit,
        max_new_tokens=max_new_tokens,
        dtypes=split(dtype),
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        repeats=repeats,
        threads=threads,
        batch=batch,
        policies=None if policies is None else split(policies),
        drafters=None if drafters is None else split(drafters),
        peers=split(peers or ""),
        baseline=baseline,
        vary=tuple(Vary.parse(text) for text in factors),
        disturb=None if disturb is None else Disturbance.parse(disturb),
        memory=memory,
        ignore_eos=ignore_eos,
        config=config,
        overrides=tuple(overrides or ()),
        raw=raw,
        out=out,
    )
    if streams:
        stream(settings, tokens, as_json)
        return
    with progress(quiet=True) as show:
        result = run_bench(settings, show)
    if disturb is not None:
        remark(DISTURBED)
    if as_json:
        print(json.dumps(result.as_dict(), allow_nan=False))
    else:
        _print_table(result)
    if result.mismatches:
        raise typer.Exit(1)


def _print_table(result: BenchResult) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    table = Table()
    table.add_column("contestant", no_wrap=True)
    table.add_column("dtype")
    for name in ("tokens/s", "speed-up", "90 %", "accepted", "nodes", "controller"):
        table.add_column(name, justify="right")
    several = len({row.dtype for row in result.rows}) > 1
    if several:
        table.add_column("against best plain", justify="right")
    table.add_column("text against plain's")
    if result.baseline:
        table.add_column("against baseline", justify="right")
    if result.memory:
        table.add_column("memory", justify="right")
    for row in result.rows:
        cells = [
            escape(row.name),
            row.dtype,
            f"{row.tokens_per_second:.2f}",
            f"{row.speedup:.2f}x",
            f"{row.low:.2f} .. {row.high:.2f}",
            _number(row.acceptance_length, ".2f"),
            _number(row.nodes_per_step, ".1f"),
            _number(row.controller_share, ".1%"),
        ]
        if several:
            best = result.best_plain.tokens_per_second
            cells.append(f"{row.tokens_per_second / best:.2f}x")
        cells.append(_text(row))
        if result.baseline:
            cells.append(
                f"{row.versus_baseline:.2f}x ({row.versus_low:.2f} .. {row.versus_high:.2f})"
            )
        if result.memory:
            cells.append(_number(row.peak_memory_ratio, ".2f", "x"))
        table.add_row(*cells)
    console.print(table)
    if result.out is not None:
        console.print(f"bundle: {result.out}", soft_wrap=True, highlight=False, markup=False)


def _number(value: float | None, shape: str, unit: str = "") -> str:
    return "-" if value is None else format(value, shape) + unit


def _text(row: Row) -> str:
    """``identical``, or what was found instead."""
    if row.identical == row.requests:
        return "identical"
    parts = [f"{row.identical} of {row.requests} identical"]
    parts += [f"{row.near_ties} near-ties"] if row.near_ties else []
    parts += [f"[bold red]{row.mismatches} mismatches[/]"] if row.mismatches else []
    return ", ".join(parts)
