"""What every kernel computes, in plain torch: for tests, and for reading first."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from adaptive_spec.kernels.facts import LEAST, Candidates, Children


def tree_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of rows over slots under a dense mask.

    Args:
        query: [heads, M, d]; key, value: [kv_heads, S, d]. mask: [M, S] bool (``packing.visible``).

    Returns:
        [M, heads, d] in the query's dtype, computed in float64.
    """
    group = query.shape[0] // key.shape[0]
    keys, values = (part.double().repeat_interleave(group, dim=0) for part in (key, value))
    scores = query.double() @ keys.transpose(1, 2) * scale
    chance = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return (chance @ values).transpose(0, 1).to(query.dtype).contiguous()


def candidates(logits: torch.Tensor, heat: torch.Tensor, count: int) -> Candidates:
    """As ``kernels.candidates.candidates``."""
    scores = logits.float() + 0.0
    ranked, ids = scores.sort(dim=-1, descending=True, stable=True)
    hot = ranked.double() / heat[:, None]
    whole, chance = hot.logsumexp(dim=-1), hot.softmax(dim=-1)
    least = whole + math.log(LEAST)
    return Candidates(
        scores=ranked[:, :count].contiguous(),
        ids=ids[:, :count].int(),
        rest=torch.maximum(hot[:, count:].logsumexp(dim=-1), least).float(),
        entropy=torch.special.entr(chance).sum(dim=-1).float(),
    )


def children(
    place: torch.Tensor,
    query: torch.Tensor,
    scale: torch.Tensor,
    found: Candidates,
    table: torch.Tensor,
    heat: torch.Tensor,
    best: int,
    *,
    noise: torch.Tensor | None = None,
    unseen: torch.Tensor | None = None,
    sharpness: float = 1.0,
) -> Children:
    """As ``kernels.candidates.children``."""
    where = place.long()
    ids = found.ids[where]
    moved = (table[ids.long()].double() * query.double()[:, None]).sum(dim=-1)
    score = found.scores[where].double() * scale[:, :1] + moved * scale[:, 1:]
    score = score / heat[where, None]
    total = torch.logaddexp(score.logsumexp(dim=-1), found.rest[where].double())
    logq = score - total[:, None]
    leading = logq.topk(2, dim=-1).values
    if noise is not None:
        score = sharpness * (logq + noise[where])
        whole = score.logsumexp(dim=-1)
        others = found.rest if unseen is None else unseen
        missed = (others[where].double() - total - whole / sharpness).exp()
        logq = score - (whole + missed)[:, None]
    chance, order = logq.sort(dim=-1, descending=True, stable=True)
    return Children(
        chance=chance[:, :best].clamp(max=0.0).float(),
        ids=ids.gather(1, order[:, :best]),
        margin=(leading[:, 0] - leading[:, 1]).float(),
    )


def peaks(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``kernels.walk.peaks``."""
    scores = logits.float()
    best = scores.amax(dim=-1)
    hit = (scores == best[:, None]) | scores.isnan()
    return best, hit.int().argmax(dim=-1).int()


def walk(
    top: torch.Tensor, token: torch.Tensor, parent: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    """As ``kernels.walk.walk``."""
    order = torch.zeros(len(parent), dtype=torch.int32)
    for first, end in pairwise(starts.tolist()):
        path, rows = [first], range(first, end)
        while hits := [r for r in rows if parent[r] == path[-1] and token[r] == top[path[-1]]]:
            path.append(hits[0])
        order[path] = torch.arange(1, len(path) + 1, dtype=torch.int32)
    return order
