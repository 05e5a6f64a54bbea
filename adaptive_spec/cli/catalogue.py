"""``adaptive-spec models`` and ``adaptive-spec policies``: what there is to choose from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from adaptive_spec.cli.output import print_json, progress, results
from adaptive_spec.registry import Registry

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]

models = typer.Typer(
    help="List the models that one command fetches, or fetch one.", invoke_without_command=True
)


DeviceInfo = Annotated[
    bool, typer.Option("--device-info", help="Which device, and whether Triton kernels run on it.")
]


@models.callback()
def _list(context: typer.Context, json: Json = False, device_info: DeviceInfo = False) -> None:
    if context.invoked_subcommand is not None:
        return
    if device_info:
        _device(json)
        return
    from adaptive_spec.models import listing

    entries = listing()
    if json:
        print_json({"models": [asdict(entry) for entry in entries]})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "licence", "size", "context", "download", "on this machine"):
        table.add_column(heading, no_wrap=True)
    for entry in entries:
        table.add_row(
            entry.name,
            entry.licence,
            f"{entry.parameters / 1e6:.0f}M",
            f"{entry.context} tokens",
            f"{entry.download_bytes / 1e6:.0f} MB",
            "yes" if entry.fetched else "no",
        )
    results.print(table)
    results.print()
    for entry in entries:
        results.print(f"{entry.name}: {entry.description}", soft_wrap=True)
        if entry.fetched:
            results.print(f"  {entry.path}", soft_wrap=True, style="dim", markup=False)
        else:
            results.print(f"  get it with: adaptive-spec models fetch {entry.name}", style="dim")
    results.print("A Hugging Face folder or a hub id org/name works wherever a name does.")


def _device(json: bool) -> None:
    """What a model would run on here: the first GPU, or else the CPU."""
    import torch

    from adaptive_spec.kernels.here import in_use, missing

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if json:
        lack = missing(device)
        print_json({"device": device.type, "kernels": lack is None, "reason": lack})
    else:
        results.print(in_use(device), soft_wrap=True, markup=False)


@models.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A name of `adaptive-spec models`.")],
    json: Json = False,
) -> None:
    """Download a model, check it and convert it, unless that is done already."""
    from adaptive_spec.models import fetch_target

    with progress() as show:
        path = fetch_target(name, show)
    if json:
        print_json({"name": name, "path": str(path)})
    else:
        results.print(str(path), soft_wrap=True, markup=False)


def policies(json: Json = False) -> None:
    """List policies (how much to draft and verify) and drafters (who guesses)."""
    from adaptive_spec.controllers.registry import CONTROLLERS
    from adaptive_spec.drafters.registry import DRAFTERS

    controllers, drafters = _entries(CONTROLLERS), _entries(DRAFTERS)
    if json:
        print_json({"policies": controllers, "drafters": drafters})
        return
    for title, entries in (("policy", controllers), ("drafter", drafters)):
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(title, no_wrap=True, style="green", min_width=10)
        table.add_column("what it does")
        for entry in entries:
            table.add_row(entry["name"], entry["summary"])
        results.print(table)
        results.print()
    results.print("Choose with --policy NAME[:ARG] and --drafter NAME, or in a config file.")


def _entries(registry: Registry[T]) -> list[dict[str, Any]]:
    return [{"name": entry.name, "summary": entry.summary} for entry in registry.entries()]
