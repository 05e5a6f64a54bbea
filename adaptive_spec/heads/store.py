"""A head on disk: ``config.json`` and ``model.safetensors`` in a folder, and nothing that runs.

A head belongs to one target. What it was made for is written down and compared when it is loaded:
the target's shape, and a digest of its weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adaptive_spec.errors import HeadError
from adaptive_spec.heads.config import (
    CONFIG,
    FORMAT,
    VERSION,
    WEIGHTS,
    HeadConfig,
    read_config,
)
from adaptive_spec.heads.head import Head
from adaptive_spec.heads.shelf import find

TARGET = ("model_type", "layers", "hidden", "vocab", "digest")
"""What a head of our own must know of its target."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What weights may be stored in."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A head and what is known about it."""

    head: Head
    target: Mapping[str, Any]
    """Facts and digest of the target that it was made for."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Data, steps and results, for the model card."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the head in bfloat16, see ``save_head``."""
        save_head(folder, self.head, self.target, self.training)

    @staticmethod
    def from_pretrained(name: str | Path) -> Stored:
        """Read a head of our own format: a folder, a name of the shelf or a hub id."""
        return load_head(name if os.path.exists(Path(name) / CONFIG) else find(str(name)))


def save_head(
    folder: str | Path,
    head: Head,
    target: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a head; files are replaced one by one, the weights first.

    Raises:
        HeadError: there is something else in the folder. OSError: it cannot be written.
    """
    place = Path(folder)
    check_place(place)
    place.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (value.to(dtype) if value.is_floating_point() else value.to(torch.int32)).contiguous()
        for name, value in head.state_dict().items()
    }
    about = {
        "format": FORMAT,
        "version": VERSION,
        "head": head.config.as_dict(),
        "target": dict(target),
        "training": dict(training or {}),
    }
    write_tensors(place / WEIGHTS, weights)
    fresh = place / f".{CONFIG}.tmp"
    fresh.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    fresh.replace(place / CONFIG)


def check_place(folder: Path) -> None:
    """Refuse a folder whose files of these names are not a head's of ours (a model's, say).

    Raises:
        HeadError: they are not. NotADirectoryError: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(str(folder))
    if not any((folder / name).exists() for name in (CONFIG, WEIGHTS)):
        return
    try:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        ours = isinstance(about, dict) and about.get("format") == FORMAT
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise HeadError("folder", str(folder), "one that is new, or holds a head of this format")


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], about: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all.

    Raises:
        OSError, SafetensorError: there is no room, or the folder cannot be written.
    """
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        save_file(dict(tensors), fresh, metadata=about)
        fresh.replace(path)
    except (OSError, SafetensorError):
        fresh.unlink(missing_ok=True)
        raise


def load_head(folder: str | Path, dtype: torch.dtype = torch.float32) -> Stored:
    """Read a head of our own format, on the CPU.

    Raises:
        HeadError: a file is missing or damaged, a field, name or shape is wrong; it is named.
    """
    about = read_config(folder)
    for name, wanted in (("format", FORMAT), ("version", VERSION)):
        if about.get(name) != wanted:
            raise HeadError(name, about.get(name), f"only {wanted!r} can be read")
    for name in about.keys() - {"format", "version", "head", "target", "training"}:
        raise HeadError(name, about[name], "no such field")
    for name in ("head", "target"):
        if not isinstance(about.get(name), dict):
            raise HeadError(name, type(about.get(name)).__name__, "a JSON object")
    config = HeadConfig.read(about["head"])
    for name in TARGET:
        if about["target"].get(name) is None:
            raise HeadError(f"target.{name}", None, "it is missing")
    weights = read_weights(Path(folder) / WEIGHTS)
    ids = weights.pop("draft_ids", None)
    if ids is not None and (ids.is_floating_point() or ids.dtype == torch.bool):
        raise HeadError("draft_ids", str(ids.dtype), "whole numbers")
    head = build(config, weights, None if ids is None else ids.long())
    training = about.get("training")
    known = training if isinstance(training, dict) else {}
    return Stored(head.to(dtype).eval(), about["target"], known)


def build(
    config: HeadConfig, weights: Mapping[str, torch.Tensor], ids: torch.Tensor | None = None
) -> Head:
    """A head of ``config`` with ``weights``; memory is taken only if their shapes fit.

    Raises:
        HeadError: see ``fill``.
    """
    with torch.device("meta"):
        _check(Head(config, ids), weights)
    head = Head(config, ids)
    fill(head, weights)
    return head


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file.

    Raises:
        HeadError: it is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise HeadError(WEIGHTS, str(path), f"cannot be read: {error}") from None


def fill(head: Head, weights: Mapping[str, torch.Tensor]) -> None:
    """Put ``weights`` into ``head``; every one must be there, of its shape, finite, and no more.

    Raises:
        HeadError: one is not; it is named.
    """
    _check(head, weights)
    for name, given in weights.items():
        if not bool(torch.isfinite(given.float()).all()):
            raise HeadError(name, str(given.dtype), "finite floating-point numbers")
    head.load_state_dict(dict(weights), strict=False)


def _check(head: Head, weights: Mapping[str, torch.Tensor]) -> None:
    own = {name: value for name, value in head.state_dict().items() if name != "draft_ids"}
    for name in sorted(own.keys() ^ weights.keys()):
        raise HeadError(name, "tensor", "missing" if name in own else "unknown to this config")
    for name, value in own.items():
        given = weights[name]
        if given.shape != value.shape:
            raise HeadError(name, tuple(given.shape), f"expected {tuple(value.shape)}")
        if given.dtype not in DTYPES:
            raise HeadError(name, str(given.dtype), "float32, bfloat16 or float16")
