"""``adaptive-spec heads``: draft heads, and what they are worth."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from adaptive_spec.cli.generate import check_machine
from adaptive_spec.cli.output import print_json, progress, results

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]

heads = typer.Typer(help="Draft heads: measure one by decoding with it.", no_args_is_help=True)


@heads.callback()
def _root() -> None:
    """Draft heads."""


@heads.command()
def report(
    name: Annotated[str, typer.Argument(help="Folder of a head.")],
    prompts: Annotated[
        str, typer.Option(help="FILE.jsonl with a prompt a line, humaneval or chat.")
    ],
    model: Annotated[
        str, typer.Option(help="Catalogue name, Hugging Face folder or hub id.")
    ] = "smollm2-135m",
    limit: Annotated[int, typer.Option(help="Prompts: the first N.")] = 10,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens per request.")] = 64,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's own choice.")] = None,
    json: Json = False,
) -> None:
    """Tokens per step by budget, acceptance by depth and rank, and how true the branches are."""
    check_machine(dtype, threads)
    with progress(quiet=True) as show:
        show("starting torch", None)
        import torch

        from adaptive_spec.training import report as reporting

        if threads is not None:
            torch.set_num_threads(threads)
        found = reporting.report(
            name,
            model,
            prompts,
            limit=limit,
            max_new_tokens=max_new_tokens,
            dtype=dtype,
            tell=show,
        )
    if json:
        print_json(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    for name, unit in (("tau_by_budget", "tokens/step"), ("acceptance_by_depth", "accepted")):
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(name.replace("_", " ").replace("tau", "tokens per step"))
        table.add_column(unit, justify="right")
        for key, value in found[name].items():
            table.add_row(key, f"{value:.2f}")
        results.print(table)
    for kind, gap in found["faithfulness"].items():
        hits = ", ".join(f"{d}: {h:.0%}" for d, h in found["branch_hits"].get(kind, {}).items())
        results.print(f"branches 2 to 5, {kind}: gap {gap:.1f} nats; best child right at {hits}")
    share, coverage = found["draft_share"], found["coverage"]
    results.print(f"a draft takes {share:.1%} of a plain step; {coverage:.1%} of tokens are known")
