"""``adaptive-spec bench-gpu``: kernels against torch on a GPU, then decoding with and without them;
``--paper`` prints what attention should cost, which needs no GPU."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adaptive_spec.cli.output import progress
from adaptive_spec.errors import UnsupportedError

if TYPE_CHECKING:
    from adaptive_spec.bench.result import BenchResult

HEADINGS = ("requests", "nodes", "context", "GB kernel", "GB masks", "TFLOP kernel", "TFLOP masks")


def bench_gpu(
    model: Annotated[
        str, typer.Option(help="Catalogue name, Hugging Face folder or hub id.")
    ] = "smollm2-135m",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    suite: Annotated[str, typer.Option(help="Prompts, as of `bench`.")] = "chat",
    limit: Annotated[int, typer.Option(help="Prompts: the first N.")] = 10,
    paper: Annotated[
        bool, typer.Option("--paper", help="Costs computed for published GPUs instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure the Triton kernels on this machine's GPU, alone and in decoding."""
    from adaptive_spec.bench import gpu

    if paper:
        rows, drafts = list(gpu.paper()), list(gpu.paper_of_drafts())
        if as_json:
            print(json.dumps({"paper": rows, "drafts": drafts}))
        else:
            _paper(rows)
            print()
            _paper_of_drafts(drafts)
        return
    import torch

    from adaptive_spec.bench.runner import run_bench
    from adaptive_spec.bench.settings import BenchSettings, Vary
    from adaptive_spec.cli.generate import check_machine
    from adaptive_spec.kernels.here import in_use, missing

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_machine(dtype, None)
    if lack := missing(device):
        raise UnsupportedError(f"bench-gpu: no kernels here: {lack}; --paper needs no GPU")
    settings = BenchSettings(
        model=model,
        suite=suite,
        limit=limit,
        dtypes=(dtype,),
        policies=("plain", "fixed:16", "marginal"),
        vary=(Vary.parse("kernels=auto,off"),),
        device=str(device),
    )
    with progress(quiet=True) as show:
        show("kernels", None)
        found = gpu.measured(device, getattr(torch, dtype))
        decoded = run_bench(settings, show)
    if as_json:
        print(json.dumps({"device": in_use(device), "kernels": found, **decoded.as_dict()}))
    else:
        _measured(in_use(device), found, decoded)
    if failing := [row for row in found if row["fails"]]:
        for row in failing:
            message = f"{_about(row)} is not what torch computes: see difference and wrong ids"
            print(message, file=sys.stderr)
    if failing or decoded.mismatches:
        raise typer.Exit(1)


def _paper(rows: list[dict[str, Any]]) -> None:
    """As Markdown, which is what ``docs/kernels.md`` holds."""
    from adaptive_spec.bench.gpu import GPUS

    _heading([*HEADINGS, *(f"{gpu} ms, kernel / masks" for gpu in GPUS)])
    for row in rows:
        cells = [row["requests"], row["nodes"], f"{row['context'] // 1024}k"]
        cells += [f"{row[f'{name}_gb']:.3g}" for name in ("kernel", "masks")]
        cells += [f"{row[f'{name}_tflop']:.3g}" for name in ("kernel", "masks")]
        cells += [_pair(row[gpu]) for gpu in GPUS]
        print(f"| {' | '.join(map(str, cells))} |")


def _paper_of_drafts(rows: list[dict[str, Any]]) -> None:
    from adaptive_spec.bench.gpu import GPUS

    about = ["shape", "kernel", "requests"]
    _heading([*about, "MB", "Gop", "KB carried", *(f"{gpu} us, kernel / torch" for gpu in GPUS)])
    for row in rows:
        cells = [row[name] for name in about]
        cells += [_pair(row[name]) for name in ("mb", "gop", "kb_carried", *GPUS)]
        print(f"| {' | '.join(map(str, cells))} |")


def _heading(names: list[str]) -> None:
    print(f"| {' | '.join(names)} |")
    print("|" + "---|" * len(names))


def _pair(pair: list[float | None]) -> str:
    """A figure of each route, or that there is no room for it."""
    ours, theirs = ("no room" if one is None else f"{one:.3g}" for one in pair)
    return ours if ours == theirs == "no room" else f"{ours} / {theirs}"


def _about(row: dict[str, Any]) -> str:
    """The kernel and the sizes it was measured at."""
    sizes = ("requests", "nodes", "context", "rows")
    return f"{row['kernel']} ({', '.join(f'{row[k]} {k}' for k in sizes if k in row)})"


def _measured(device: str, kernels: list[dict[str, Any]], decoded: BenchResult) -> None:
    print(device)
    for row in kernels:
        print(
            f"{_about(row)}: {row['kernel_ms']:.3f} ms, torch {row['torch_ms']:.3f} ms "
            f"({row['ratio']:.2f}x), difference {row['difference']:.1e} of {row['bound']:.1e}, "
            f"{row['wrong_ids']} wrong ids{', FAILS' if row['fails'] else ''}"
        )
        if on_paper := row.get("paper_ms"):
            print("  on paper: " + ", ".join(f"{one} {ms:.3f} ms" for one, ms in on_paper.items()))
    for one in decoded.rows:
        path = "kernels" if one.kernels else "masks"
        print(
            f"{one.name} (ended on {path}): {one.tokens_per_second:.1f} tokens/s, "
            f"{one.speedup:.2f}x of plain ({one.low:.2f} to {one.high:.2f}), "
            f"{one.mismatches} texts differ"
        )
