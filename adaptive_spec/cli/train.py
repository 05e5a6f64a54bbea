"""``adaptive-spec train``: a draft head for a model, from text that the model writes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adaptive_spec.cli.generate import check_machine
from adaptive_spec.cli.output import print_json, progress, remark, results
from adaptive_spec.options import about


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; an earlier run goes on there.")],
    model: Annotated[
        str, typer.Option(help="Catalogue name, Hugging Face folder or hub id.")
    ] = "smollm2-135m",
    config: Annotated[Path | None, typer.Option(help="TOML file with the run's settings.")] = None,
    begin: Annotated[
        Path | None, typer.Option(help="Head to begin with, optimiser and data being fresh.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's own choice.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Train a draft head: the model writes, the head learns; interrupt it and go on any time."""
    check_machine("bfloat16", threads)
    from adaptive_spec.training.settings import load_training_config

    with about("--config", None if config is None else str(config)):
        settings = load_training_config(config)
    with progress() as show:
        show("starting torch", None)
        import torch

        from adaptive_spec.training import run

        if threads is not None:
            torch.set_num_threads(threads)
        found = run.train(model, out, settings, show, None if begin is None else str(begin))
    facts = {"out": str(out), **found.as_dict()}
    if json:
        print_json(facts)
        return
    results.print(
        f"acceptance length on held-out text: {found.acceptance_length:.2f} "
        f"(uncorrected {found.base_acceptance_length:.2f})"
    )
    results.print(f"head: {out / 'head'}", soft_wrap=True, markup=False)
    remark("the log of the run is in log.jsonl beside it")
