"""How good a head is on held-out text: how far its best guesses agree with what was written."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adaptive_spec.errors import TrainingError
from adaptive_spec.heads.blocks import answers
from adaptive_spec.heads.head import Head
from adaptive_spec.training.batches import batch_of
from adaptive_spec.training.generating import Written

ANCHORS, SEQUENCES = 16, 8


@dataclass(frozen=True, slots=True)
class Measured:
    """Agreement with the written tokens, along the true path."""

    accepted: tuple[float, ...]
    """Per slot, how often its best corrected guess is the written token."""
    acceptance_length: float
    """1 + tokens until the first wrong guess, on average."""
    base_acceptance_length: float
    """The same of the uncorrected guesses."""
    coverage: float
    """Share of the written tokens that can be drafted at all."""
    error: float
    """Standard error of ``acceptance_length`` over texts."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "accepted": [round(value, 4) for value in self.accepted],
            "acceptance_length": round(self.acceptance_length, 4),
            "base_acceptance_length": round(self.base_acceptance_length, 4),
            "coverage": round(self.coverage, 4),
            "error": round(self.error, 4),
        }


@torch.no_grad()
def measure(head: Head, texts: Sequence[Written], seed: int = 0) -> Measured:
    """Compare the head's guesses with what was written, at the same anchors every time.

    Raises:
        TrainingError: no text is long enough to hold a block.
    """
    luck, size = random.Random(seed), head.config.block
    usable = [text for text in texts if len(text.tokens) - text.prompt >= size + 2]
    if not usable:
        raise TrainingError(f"no held-out answer has the {size + 2} tokens that a block needs")
    hits, base_hits, covered, total, valid = [], [], 0, 0, []
    for first in range(0, len(usable), SEQUENCES):
        some = usable[first : first + SEQUENCES]
        batch = batch_of(some, ANCHORS, size, head.config.causal, luck)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            said = answers(head, batch)
            best = head.logits(said.hidden, said.states).argmax(dim=-1)
            base = head.logits(said.hidden).argmax(dim=-1)
        rows = torch.arange(len(some))[:, None, None]
        truth = batch.tokens[rows, batch.after(1)]
        hits.append((head.target_ids(best) == truth) & batch.valid)
        base_hits.append((head.target_ids(base) == truth) & batch.valid)
        valid.append(batch.valid)
        known = truth[batch.valid]
        covered += (
            len(known) if head.draft_ids is None else int(torch.isin(known, head.draft_ids).sum())
        )
        total += len(known)
    per_text = torch.cat([_runs(one).mean(dim=1) for one in hits])
    all_hits, all_base = torch.cat(hits).flatten(0, 1), torch.cat(base_hits).flatten(0, 1)
    count = torch.cat(valid).flatten(0, 1).sum(dim=0).clamp(min=1)
    return Measured(
        accepted=tuple((all_hits.sum(dim=0) / count).tolist()),
        acceptance_length=1.0 + float(_runs(all_hits).mean()),
        base_acceptance_length=1.0 + float(_runs(all_base).mean()),
        coverage=covered / max(total, 1),
        error=float(per_text.std(correction=0)) / math.sqrt(len(per_text)),
    )


def _runs(hits: torch.Tensor) -> torch.Tensor:
    """[..., b] -> [...] length of the run of hits that a block begins with."""
    return hits.long().cumprod(dim=-1).sum(dim=-1).double()
