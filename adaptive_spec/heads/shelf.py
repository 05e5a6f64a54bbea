"""The heads that ship with the package, and how a head is found: by name, folder or hub id."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from adaptive_spec.errors import CatalogueError, HeadError
from adaptive_spec.heads.config import CONFIG, WEIGHTS, check_target, read_config
from adaptive_spec.registry import HUB_ID

SHELF = Path(__file__).resolve().parent / "shipped"


@dataclass(frozen=True, slots=True)
class Listing:
    """One line of ``adaptive-spec heads``: plain values only."""

    name: str
    """The target's name in the catalogue."""
    parameters: int
    bytes: int
    layers: int
    block: int
    draft_vocab: int | None
    corrector: str
    steps: int | None
    """Of training."""
    acceptance_length: float | None
    """Of its best guesses in a chain, on held-out training text."""
    path: str


def listing() -> list[Listing]:
    """The heads on the shelf."""
    return [_about(SHELF / name) for name in names()]


def names() -> list[str]:
    """Names of the heads on the shelf, sorted."""
    return sorted(path.parent.name for path in SHELF.glob(f"*/{CONFIG}"))


def find(name: str) -> Path:
    """The folder of a head.

    Args:
        name: of a head on the shelf, a folder, or a hub id ``org/name``.

    Raises:
        HeadError: none of the three. CatalogueError: the hub does not give it.
    """
    if name in names():
        return SHELF / name
    folder = os.path.expanduser(name)
    if os.path.exists(folder):  # Path.exists raises for names that no file can have
        return Path(folder)
    if HUB_ID.fullmatch(name):
        return _download(name)
    known = ", ".join(names()) or "none"
    raise HeadError(
        "head", name, f"a head of `adaptive-spec heads` ({known}), a folder or a hub id"
    )


def made_for(model: Any) -> str | None:
    """The head on the shelf that was made for the weights of ``model``; None if there is none."""
    from adaptive_spec.heads.digest import digest  # these bring torch, which a list does not need
    from adaptive_spec.model_facts import describe

    facts, mine = describe(model), None
    for name in names():
        target = read_config(SHELF / name).get("target", {})
        try:
            check_target(target, facts)
        except HeadError:
            continue
        mine = digest(model) if mine is None else mine
        if target.get("digest") == mine:
            return name
    return None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # of the hub's library, of its HTTP client, of the disk
        reason = " ".join(str(error).split())
        raise CatalogueError(f"head {name!r}: the hub does not give it: {reason}") from None


def _about(folder: Path) -> Listing:
    about = read_config(folder)
    head, training = about["head"], about.get("training", {})
    with safe_open(folder / WEIGHTS, framework="np") as file:
        tensors = [name for name in file.keys() if name != "draft_ids"]  # noqa: SIM118
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in tensors)
    return Listing(
        name=folder.name,
        parameters=parameters,
        bytes=(folder / WEIGHTS).stat().st_size,
        layers=head["layers"],
        block=head["block"],
        draft_vocab=head["draft_vocab"],
        corrector=head["corrector"],
        steps=training.get("step"),
        acceptance_length=training.get("held_out", {}).get("acceptance_length"),
        path=str(folder),
    )
