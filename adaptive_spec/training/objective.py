"""What a head is trained for: forward KL to the target at every slot, corrected and not.

The corrected distribution of slot j is conditioned on the true tokens up to its position, as it is
on a node's own branch when drafting; it learns from the first step on, together with the slot's
own distribution, which only chooses the candidates. Forward KL, because a distribution that misses
what the target might say is worse than one that is too wide (JetSpec loses a third with reverse
KL). Later slots matter less, because they are reached less often.

Legend: B sequences, A blocks of b slots, n slots drawn for the loss, V the draft vocabulary, H
hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from adaptive_spec.heads.blocks import answers
from adaptive_spec.heads.head import Head
from adaptive_spec.training.batches import Batch

BASE_SHARE = 4
"""The uncorrected distribution is looked at in every so-manieth slot of the draw."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How the parts of the loss are weighed.

    Attributes:
        base: of the slot's own, uncorrected distribution, where there is a corrector.
        token: of the cross-entropy with the token that was written.
        reach: slots over which interest in them falls by e.
        slots: slots that the loss looks at, drawn by interest.
    """

    base: float = 0.3
    token: float = 0.1
    reach: float = 4.0
    slots: int = 1024


def loss(
    head: Head, batch: Batch, weights: Weights, luck: torch.Generator
) -> dict[str, torch.Tensor]:
    """``total`` to be minimised, and its parts, per slot of the draw."""
    said = answers(head, batch)
    picked = _draw(batch.valid, weights, luck)
    hidden, states = said.hidden[picked], said.states[picked]
    truth, token = target(head, batch, picked)
    known = _draft_id(head, token)
    wanted = _wanted(truth, known, weights.token)
    corrected = _entropy(head.logits(hidden, states), wanted)
    if head.config.corrector == "none":
        return {"total": corrected, "corrected": corrected, "base": corrected}
    some = max(len(hidden) // BASE_SHARE, 1)  # the first of a draw are a draw themselves
    base = _entropy(head.logits(hidden[:some]), wanted[:some])
    return {"total": corrected + weights.base * base, "corrected": corrected, "base": base}


def target(
    head: Head, batch: Batch, picked: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, V] the target's probabilities within the draft vocabulary, and [n] the written tokens."""
    row = picked[0]
    with torch.no_grad():
        final = batch.final[row, batch.after(0)[picked]].to(head.output.dtype)
        truth = (final @ head.output.T).float().softmax(dim=-1)
    return truth, batch.tokens[row, batch.after(1)[picked]]


def _draw(valid: torch.Tensor, weights: Weights, luck: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Indices [n] into [B, A, b]: valid slots, earlier ones more often, none twice."""
    interest = valid * torch.exp(-torch.arange(valid.shape[2]) / weights.reach)
    count = min(weights.slots, int(valid.sum()))
    flat = torch.multinomial(interest.flatten(), count, generator=luck)
    return torch.unravel_index(flat, valid.shape)


def _draft_id(head: Head, token: torch.Tensor) -> torch.Tensor:
    """[n] draft ids, -100 for tokens that cannot be drafted."""
    if head.draft_ids is None:
        return token
    place = head.draft_rows(token).clamp(max=len(head.draft_ids) - 1)
    return torch.where(head.draft_ids[place] == token, place, -100)


class _Entropy(torch.autograd.Function):
    """Mean over rows of ``sum(wanted) * logsumexp(scores) - wanted . scores``.

    Cross-entropy without writing down log-probabilities: its gradient is ``sum(wanted) *
    softmax(scores) - wanted``.
    """

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        shifted = scores.float() - scores.amax(dim=-1, keepdim=True).float()
        inner = torch.dot(wanted.flatten(), shifted.flatten())
        powers, total = shifted.exp_(), wanted.sum(dim=-1)
        summed = powers.sum(dim=-1)  # torch's own logsumexp is many times slower on a CPU
        ctx.save_for_backward(powers, wanted, total / summed)
        ctx.dtype = scores.dtype
        return (torch.dot(total, summed.log()) - inner) / len(wanted)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        powers, wanted, scale = ctx.saved_tensors
        slope = (powers * scale[:, None]).sub_(wanted)
        return slope.mul_(grads[0] / len(slope)).to(ctx.dtype), None


def _wanted(truth: torch.Tensor, known: torch.Tensor, token: float) -> torch.Tensor:
    """[n, V] the target's probabilities, and ``token`` times the mean one-hot of the written."""
    rows = (known >= 0).nonzero()[:, 0]
    if len(rows):
        truth[rows, known[rows]] += token * len(truth) / len(rows)
    return truth


def _entropy(scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the target's distribution, and some with the written token."""
    found: torch.Tensor = _Entropy.apply(scores, wanted)  # type: ignore[no-untyped-call]
    return found
