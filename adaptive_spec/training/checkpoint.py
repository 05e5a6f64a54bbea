"""What a run needs to go on: weights, moments of the optimiser and counts, of one moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from adaptive_spec.errors import HeadError, TrainingError
from adaptive_spec.heads.head import Head
from adaptive_spec.heads.store import WEIGHTS, fill, read_weights, save_head

LAST, STATE, MOMENTS = "last", "state.json", "state.safetensors"


def save(
    folder: Path,
    counts: dict[str, Any],
    head: Head,
    target: dict[str, Any],
    learner: torch.optim.Optimizer,
) -> None:
    """Write LAST, MOMENTS and STATE, each whole, the counts last.

    Raises:
        TrainingError: there is no room, or the folder cannot be written.
    """
    moments = {
        f"{index}.{name}": value
        for index, entry in learner.state_dict()["state"].items()
        for name, value in entry.items()
    }
    state = {**counts, "target": target, "head": head.config.as_dict()}
    try:
        save_head(folder / LAST, head, target, counts, dtype=torch.float32)
        fresh = folder / f".{MOMENTS}.tmp"
        save_file(moments, fresh)
        fresh.replace(folder / MOMENTS)
        fresh = folder / f".{STATE}.tmp"
        fresh.write_text(json.dumps(state), encoding="utf-8")
        fresh.replace(folder / STATE)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write to {folder}: {error}") from error


def load(
    folder: Path, head: Head, target: dict[str, Any], learner: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Put what ``save`` wrote into ``head`` and ``learner``; the counts, or None without a run.

    Raises:
        TrainingError: it was begun for another target or another head, or is damaged.
    """
    if not (folder / STATE).exists():
        return None
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        for name, mine in (("target", target), ("head", head.config.as_dict())):
            if state[name] != mine:
                raise TrainingError(
                    f"{folder} holds a run for another {name}; choose another folder"
                )
        if state["step"]:
            weights = read_weights(folder / LAST / WEIGHTS)
            ids = weights.pop("draft_ids", None)
            moments = load_file(folder / MOMENTS)
            fill(head, weights)
            if head.draft_ids is not None and ids is not None:
                head.draft_ids.copy_(ids)
            _restore(learner, moments)
    except (OSError, ValueError, KeyError, TypeError, HeadError, SafetensorError) as error:
        raise TrainingError(f"{folder} cannot be taken up: {error}") from error
    return state


def _restore(learner: torch.optim.Optimizer, moments: dict[str, torch.Tensor]) -> None:
    known = learner.state_dict()
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in moments.items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = value
    learner.load_state_dict({**known, "state": entries})
