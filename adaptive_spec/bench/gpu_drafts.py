"""Candidates, children, peaks and the walk against torch on a device.

Legend: P places, V vocabulary, C candidates, M rows or nodes, r rank, K children of a node.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from adaptive_spec.bench.side_by_side import judged, timed
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.kernels import reference
from adaptive_spec.kernels.layout import Layout
from adaptive_spec.walk import walk as on_host

BOUND = 1e-4
"""Of figures that are float32 whatever the scores are."""
COUNT, BEST, RANK = 64, 8, 160


def scores(rows: int, vocab: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """[rows, vocab], with many ties in half precision."""
    made = torch.Generator().manual_seed(rows)
    return (4.0 * torch.randn(rows, vocab, generator=made)).to(device, dtype)


def candidates(
    device: torch.device, dtype: torch.dtype, repeats: int, places: int, vocab: int
) -> dict[str, Any]:
    """Ids, ties included, and what the others amount to."""
    from adaptive_spec.kernels import candidates as kernels

    logits, heat = scores(places, vocab, device, dtype), torch.ones(places, device=device)

    def plain() -> tuple[torch.Tensor, ...]:
        numbers = logits.float()
        chance = numbers.log_softmax(dim=-1)
        entropy = -(chance.exp() * chance).sum(dim=-1)
        best, ids = numbers.topk(COUNT, dim=-1)
        return best, ids, entropy

    got = kernels.candidates(logits, heat, COUNT)
    want = reference.candidates(logits, heat, COUNT)
    whole = logits.double().logsumexp(dim=-1)
    pairs = [
        (got.scores, want.scores),
        (got.entropy, want.entropy),
        ((got.rest - whole).exp(), (want.rest - whole).exp()),
    ]
    found = timed(device, lambda: kernels.candidates(logits, heat, COUNT), plain, repeats)
    wrong = int((got.ids != want.ids).sum())
    return {"kernel": "candidates", "rows": places, **found, **judged(pairs, BOUND, wrong)}


def children(
    device: torch.device, dtype: torch.dtype, repeats: int, nodes: int, vocab: int
) -> dict[str, Any]:
    """Of nodes of 6 places; an id is wrong if its chance is not that of its rank."""
    from adaptive_spec.kernels import candidates as kernels

    places = 6
    made, heat = torch.Generator().manual_seed(2), torch.ones(places, device=device)
    found = reference.candidates(scores(places, vocab, device, dtype), heat, COUNT)
    place = torch.randint(places, (nodes,), generator=made).int().to(device)
    query = (torch.randn(nodes, RANK, generator=made) / RANK**0.5).to(device)
    table = torch.randn(vocab, RANK, generator=made).to(device, dtype)
    scale = torch.ones(nodes, 2, device=device)
    keys = table[found.ids.long()].float()

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        where = place.long()
        moved = torch.bmm(query[:, None], keys[where].transpose(1, 2))[:, 0]
        score = found.scores[where] + moved
        total = torch.logaddexp(score.logsumexp(dim=-1), found.rest[where])
        chance, order = (score - total[:, None]).topk(BEST, dim=-1)
        return chance, found.ids[where].gather(1, order)

    def kernel() -> Any:
        return kernels.children(place, query, scale, found, table, heat, BEST)

    got = kernel()
    want = reference.children(place, query, scale, found, table, heat, COUNT)
    hit = got.ids[:, :, None] == want.ids[:, None]
    own = torch.where(hit, want.chance[:, None], -torch.inf).amax(dim=-1)
    wrong = int((~((own - got.chance).abs() <= BOUND * own.abs().clamp(min=1.0))).sum())
    pairs = [(got.chance, want.chance[:, :BEST]), (got.margin, want.margin)]
    spent = timed(device, kernel, plain, repeats)
    return {"kernel": "children", "nodes": nodes, **spent, **judged(pairs, BOUND, wrong)}


def peaks(
    device: torch.device, dtype: torch.dtype, repeats: int, rows: int, vocab: int
) -> dict[str, Any]:
    """The largest score of every row, and its lowest id."""
    from adaptive_spec.kernels.walk import peaks as kernel

    logits = scores(rows, vocab, device, dtype)
    (got, ids), (want, lowest) = kernel(logits), reference.peaks(logits)
    found = timed(device, lambda: kernel(logits), lambda: logits.max(dim=-1), repeats)
    wrong = int((ids != lowest).sum())
    return {"kernel": "peaks", "rows": rows, **found, **judged([(got, want)], 0.0, wrong)}


def walk(
    device: torch.device, repeats: int, layout: Layout, trees: list[CandidateTree]
) -> dict[str, Any]:
    """Against the host, which reads the tokens and walks down every tree."""
    from adaptive_spec.kernels.walk import walk as kernel

    token, parent = layout.rows.cpu().numpy()
    choice = np.full(len(token), -5, dtype=np.int32)
    for row in np.flatnonzero(parent >= 0):  # every row but a leaf's leads to its last child
        choice[parent[row]] = token[row]
    top, firsts = torch.from_numpy(choice).to(device), layout.starts[:-1].tolist()

    def ours() -> torch.Tensor:
        return kernel(top, layout.rows[0], layout.rows[1], layout.starts, layout.widest)

    def theirs() -> torch.Tensor:
        host = top.cpu().numpy()
        order = np.zeros(len(host), dtype=np.int32)
        for tree, first in zip(trees, firsts, strict=True):
            rows = host[first:]
            walked = on_host(tree, lambda node, rows=rows: int(rows[1 + node]))  # type: ignore[misc]
            for step, (node, _) in enumerate(walked, 1):
                order[first + 1 + node] = step
        return torch.from_numpy(order)

    got, want = ours(), theirs()
    wrong = int((got.cpu() != want).sum())
    found = timed(device, ours, theirs, repeats)
    return {"kernel": "walk", "rows": len(token), **found, **judged([(got, want)], 0.0, wrong)}
