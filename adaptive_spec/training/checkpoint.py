"""What a run needs to go on, in one file: weights, moments of the optimiser and counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from adaptive_spec.errors import HeadError, TrainingError
from adaptive_spec.heads.config import HeadConfig
from adaptive_spec.heads.head import Head
from adaptive_spec.heads.store import fill, write_tensors

STATE = "state.safetensors"
_HEAD, _MOMENT = "head.", "moment."


def save(
    folder: Path,
    counts: dict[str, Any],
    head: Head,
    target: dict[str, Any],
    learner: torch.optim.Optimizer,
) -> None:
    """Write STATE whole or not at all.

    Raises:
        TrainingError: there is no room, or the folder cannot be written.
    """
    tensors = {f"{_HEAD}{name}": value.contiguous() for name, value in head.state_dict().items()}
    for index, entry in learner.state_dict()["state"].items():
        tensors |= {f"{_MOMENT}{index}.{name}": value for name, value in entry.items()}
    about = {"counts": counts, "target": target, "head": head.config.as_dict()}
    try:
        write_tensors(folder / STATE, tensors, {"about": json.dumps(about)})
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write to {folder}: {error}") from error


def load(
    folder: Path, head: Head, target: dict[str, Any], learner: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Put what ``save`` wrote into ``head`` and ``learner``; the counts, or None without a run.

    Raises:
        TrainingError: it was begun for another target or another head, or is damaged.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        known = HeadConfig.read(about["head"])
        for name, same in (
            ("target", about["target"] == target),
            ("head", known.shape == head.config.shape),
        ):
            if not same:
                raise TrainingError(
                    f"{folder} holds a run for another {name}; choose another folder"
                )
        weights = {
            name.removeprefix(_HEAD): value
            for name, value in tensors.items()
            if name.startswith(_HEAD)
        }
        ids = weights.pop("draft_ids", None)
        fill(head, weights)
        if head.draft_ids is not None and ids is not None:
            head.draft_ids.copy_(ids)
        head.config = known
        _restore(learner, tensors)
        counts: dict[str, Any] = about["counts"]
    except (OSError, ValueError, KeyError, TypeError, HeadError, SafetensorError) as error:
        raise TrainingError(f"{folder} cannot be taken up: {error}") from error
    return counts


def _restore(learner: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    known, entries = learner.state_dict(), dict[int, dict[str, torch.Tensor]]()
    for key, value in tensors.items():
        if key.startswith(_MOMENT):
            index, _, name = key.removeprefix(_MOMENT).partition(".")
            entries.setdefault(int(index), {})[name] = value
    if entries:
        learner.load_state_dict({**known, "state": entries})
