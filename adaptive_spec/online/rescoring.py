"""What a corrector makes of lessons: the same arithmetic as drafting, with gradients.

A candidate's score moves by the inner product of its key and the branch's query
(``heads.branches``), so a lesson costs C products of r numbers. Scores of tokens that are no
candidates stay as they were when they were drafted.

Legend: n lessons, C candidates, r rank, u different candidates of the batch.
"""

from __future__ import annotations

import numpy as np
import torch

from adaptive_spec.heads.corrector import Corrector
from adaptive_spec.heads.head import Head
from adaptive_spec.online.lessons import Batch
from adaptive_spec.types import Floats


def log_chances(
    corrector: Corrector,
    head: Head,
    batch: Batch,
    keys: torch.Tensor,
    bias: torch.Tensor | None,
    where: torch.Tensor,
) -> torch.Tensor:
    """[n, C + 1] log-probabilities of the candidates, and of all other tokens together.

    Args:
        corrector: one that adds a bias to the scores (``LowRank`` and its kin).
        keys: [u, r] of the batch's candidates; bias: [u] of them, None for 0.
        where: [n, C] the row of each.
    """
    states = corrector.states(batch.path, head.embed(batch.path).float())
    state = states[torch.arange(len(batch)), batch.depth]
    query = corrector.query(state, corrector.gates(batch.hidden.float()))
    assert query is not None
    moved = torch.bmm(keys[where], query[:, :, None])[:, :, 0]
    if bias is not None:
        moved = moved + bias[where]
    scores = (batch.scores + moved) / batch.heat[:, None]
    return torch.cat([scores, batch.rest[:, None]], dim=1).log_softmax(dim=1)


def divergence(found: torch.Tensor, batch: Batch, off_path: float) -> torch.Tensor:
    """Cross-entropy with the target over candidates and rest, nodes not visited weighing less.

    A visited node is one whose prefix was valid: text that was written. The mean is over weights.
    """
    rest = (1.0 - batch.wanted.sum(dim=1, keepdim=True)).clamp(min=0.0)
    wanted = torch.cat([batch.wanted, rest], dim=1)
    each = -(wanted * found).sum(dim=1)
    weight = torch.where(batch.tree >= 0, 1.0, off_path)
    return (weight * each).sum() / weight.sum()


def expected_lengths(found: torch.Tensor, batch: Batch) -> Floats:
    """Per tree with visited nodes: draft tokens that a chain drawn from the head would be right in.

    The sum over depths of the product of what the written tokens were given: a lower bound of what
    trees gain, without the noise of counting hits.
    """
    chance = torch.where(
        batch.right >= 0, found.gather(1, batch.right.clamp(min=0)[:, None])[:, 0].exp(), 0.0
    )
    chances, trees = chance.double().cpu().numpy(), batch.tree.cpu().numpy()
    visited = np.flatnonzero(trees >= 0)
    cuts = np.flatnonzero(np.diff(trees[visited])) + 1
    parts = np.split(chances[visited], cuts)
    return np.array([np.cumprod(part).sum() for part in parts])
