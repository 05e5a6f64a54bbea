"""``adaptive-spec heads``: draft heads, and what they are worth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from adaptive_spec.arguments import check_whole
from adaptive_spec.cli.generate import check_machine
from adaptive_spec.cli.output import print_json, progress, remark, results

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]

heads = typer.Typer(
    help="List the draft heads that ship, or measure one by decoding with it.",
    invoke_without_command=True,
)


@heads.callback()
def _list(context: typer.Context, json: Json = False) -> None:
    if context.invoked_subcommand is not None:
        return
    from adaptive_spec.heads.shelf import listing

    entries = listing()
    if json:
        print_json({"heads": [asdict(entry) for entry in entries]})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("target", "size", "parameters", "layers", "block", "corrector", "chain"):
        table.add_column(heading, no_wrap=True)
    for entry in entries:
        length = entry.acceptance_length
        table.add_row(
            entry.name,
            f"{entry.bytes / 1e6:.1f} MB",
            f"{entry.parameters / 1e6:.1f}M",
            str(entry.layers),
            str(entry.block),
            entry.corrector,
            "-" if length is None else f"{length:.2f} tokens/step",
        )
    results.print(table)
    results.print("A target uses its head by itself; another: --drafter causal_parallel:FOLDER.")


@heads.command()
def report(
    name: Annotated[
        str, typer.Argument(help="A name of `adaptive-spec heads`, a folder or a hub id.")
    ],
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
    against: Annotated[
        str | None, typer.Option(help="Head of the same size, trained without a corrector.")
    ] = None,
    png: Annotated[Path, typer.Option(help="File for the curves.")] = Path("head.png"),
    json: Json = False,
) -> None:
    """Tokens per step by budget, acceptance by depth and rank, and how true the branches are."""
    check_machine(dtype, threads)
    check_sizes(limit, max_new_tokens)
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
            against=against,
        )
    if json:
        print_json(found)
    else:
        _show(found)
    _draw(png, reporting.picture(name, found))


def check_sizes(limit: float = 1, max_new_tokens: float = 1) -> None:
    """Raise ArgumentError for a number of prompts or tokens that cannot be."""
    check_whole("limit", limit, 1)
    check_whole("max_new_tokens", max_new_tokens, 1)


def _draw(path: Path, picture: bytes) -> None:
    """Write the curves; exit code 1 if that fails, after the figures were printed."""
    from adaptive_spec.pictures import save

    try:
        save(path, picture)
    except OSError as error:
        remark(f"error: --png {path}: cannot be written ({error.strerror or error})")
        raise typer.Exit(1) from error
    remark(f"curves: {path}")


def _show(found: dict[str, Any]) -> None:
    for name, unit in (("tau_by_budget", "tokens/step"), ("acceptance_by_depth", "accepted")):
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(name.replace("_", " ").replace("tau", "tokens per step"))
        table.add_column(unit, justify="right")
        for key, value in found[name].items():
            table.add_row(key, f"{value:.2f}")
        results.print(table)
    for kind, gap in found["faithfulness"].items():
        if gap is None:
            continue
        shares = found["branch_hits"].get(kind) or {}
        hits = ", ".join(f"depth {depth} {share:.0%}" for depth, share in shares.items())
        results.print(f"branches 2 to 5, {kind}: gap {gap:.1f} nats; best child right: {hits}")
    results.print(f"branches were followed at {found['branch_places']} places of plain's texts")
    share, coverage = found["draft_share"], found["coverage"]
    results.print(f"a draft takes {share:.1%} of a plain step; {coverage:.1%} of tokens are known")
