"""What a trained head says about itself: a model card, and the curves of its training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptive_spec.heads.config import CARD, read_config
from adaptive_spec.pictures import Chart, charts, save

CURVES = "curves.png"

_CARD = """\
---
license: apache-2.0
library_name: adaptive-spec
---

# Draft head for {model}

A causal-parallel draft head of adaptive-spec: it proposes the next {depth} tokens in one forward,
and the target verifies them, so that the text is exactly what the target writes without it.

| | |
|---|---|
| target | {model} (`{model_type}`, {target_layers} layers, hidden size {hidden}) |
| weights of the target | `{digest}` (digest of a sample) |
| head | {layers}, block {block}, taps {taps}, corrector `{corrector}` (rank {rank}) |
| drafted tokens | {vocab} |
| steps | {step}, {minutes:.0f} minutes on a CPU |
| text learned from | {written:,} answer tokens, written by the target itself |
{begun}| chain on held-out text | {length:.2f} tokens per step ({base:.2f} without the corrector) |

## Data

Every answer was written by the target. The prompts, in the shares that the settings ask for: tasks
about the documented functions of Python's standard library ({code:.0%}), questions that the target
asked itself ({chat:.0%}) and sums from templates ({arithmetic:.0%}). Prompts that share a run of
eight words with HumanEval or MT-Bench were left out; no benchmark was used for training or for
choosing settings.

## Curves

![Training]({curves})

## Licence

Apache-2.0. What the target's licence says of text that it wrote holds beside it.
"""


def write_card(folder: Path, model: str, log: Path) -> None:
    """Write README.md and the curves of the run beside a head.

    Args:
        folder: of the head, saved. log: lines of its training run.

    Raises:
        OSError: the folder cannot be written. HeadError: it holds no head.
    """
    about = read_config(folder)
    head, target, training = about["head"], about["target"], about["training"]
    data, held = training["config"]["data"], training["held_out"]
    lines = read_log(log)
    last = [line for line in lines if line["step"] <= training["step"]] or lines
    vocab, begun = head["draft_vocab"], training.get("begun")
    text = _CARD.format(
        model=model,
        model_type=target["model_type"],
        target_layers=target["layers"],
        hidden=target["hidden"],
        digest=target["digest"],
        depth=head["block"] if head["ahead"] else head["block"] - 1,
        layers="1 layer" if head["layers"] == 1 else f"{head['layers']} layers",
        block=head["block"],
        taps=", ".join(map(str, head["taps"])),
        corrector=head["corrector"],
        rank=head["rank"],
        vocab="all"
        if vocab is None
        else f"the {vocab:,} most frequent ({held['coverage']:.1%} of what is written)",
        step=training["step"],
        minutes=last[-1]["seconds"] / 60,
        written=last[-1]["written_tokens"],
        begun=f"| begun with | a head of {begun.get('step', 0)} steps |\n" if begun else "",
        length=held["acceptance_length"],
        base=held["base_acceptance_length"],
        code=data["code"],
        chat=data["chat"],
        arithmetic=data["arithmetic"],
        curves=CURVES,
    )
    save(folder / CARD, text.encode())
    save(folder / CURVES, curves(f"head for {model}", lines))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The checks of a run, oldest first; a line that was cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def curves(title: str, lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Loss, chain length and acceptance per slot over the steps of a run, as a PNG."""
    steps = [line["step"] for line in lines]

    def column(name: str) -> tuple[list[int], list[float]]:
        return steps, [line.get(name, float("nan")) for line in lines]

    slots = len(lines[-1]["accepted"])
    by_slot = {
        f"slot {slot + 1}": (steps, [line["accepted"][slot] for line in lines])
        for slot in range(slots)
    }
    losses = {"corrected": column("corrected"), "uncorrected": column("base")}
    lengths = {
        "corrected": column("acceptance_length"),
        "uncorrected": column("base_acceptance_length"),
    }
    panels = [
        Chart("loss", "steps", "nats per slot", losses),
        Chart("chain on held-out text", "steps", "tokens per step", lengths),
        Chart("best guess right, by slot", "steps", "share", by_slot),
    ]
    return charts(title, panels)
