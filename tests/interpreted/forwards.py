"""Random packed forwards over a fragmented pool, with poison wherever nobody may look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from adaptive_spec.cache import SlotPool
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.kernels.layout import Layout, Layouts
from adaptive_spec.packing import PackedBatch, pack, tree_part, visible

POISON = float("nan")


def random_tree(luck: np.random.Generator, nodes: int, tokens: int = 1000) -> CandidateTree:
    """Any parents; siblings carry different tokens."""
    parent = np.array([luck.integers(-1, node) for node in range(nodes)], dtype=np.int64)
    token = np.zeros(nodes, dtype=np.int64)
    for above in range(-1, nodes):
        below = np.flatnonzero(parent == above)
        token[below] = luck.choice(tokens, len(below), replace=False)
    zero = np.zeros(nodes, dtype=np.int64)
    return CandidateTree(token, parent, np.zeros(nodes), zero, zero)


@dataclass
class Forward:
    """Inputs of one attention, and the mask that says the same."""

    batch: PackedBatch
    pool: SlotPool
    layout: Layout
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor

    def mask(self, window: int | None = None) -> torch.Tensor:
        position, slots = self.pool.position.copy(), self.batch.slots
        position[slots] = self.batch.positions[: len(slots)]
        return torch.from_numpy(visible(self.batch, self.pool.owner, position, window))


def forward(
    seed: int,
    contexts: Sequence[int],
    nodes: Sequence[int],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    size: int = 64,
    dtype: torch.dtype = torch.float32,
    fill: int = 0,
) -> Forward:
    """Requests that grew by turns, with holes between their slots."""
    luck = np.random.default_rng(seed)
    pool = SlotPool(16, 8192)
    owners, left = [pool.join() for _ in contexts], list(contexts)
    while any(left):
        one = int(luck.integers(len(left)))
        if more := min(left[one], int(luck.integers(1, 9))):
            slots, have = pool.reserve(2 * more)[::2], len(pool.slots(owners[one]))
            pool.commit(owners[one], slots, np.arange(have, have + more))
            left[one] -= more
    trees = [random_tree(luck, size) for size in nodes]
    parts = [
        tree_part(owner, 1, length, tree)
        for owner, length, tree in zip(owners, contexts, trees, strict=True)
    ]
    batch = pack(parts, luck.permutation(pool.reserve(sum(map(len, trees)) + len(trees))), fill)
    used = [*np.flatnonzero(pool.owner >= 0).tolist(), *batch.slots.tolist()]
    made = torch.Generator().manual_seed(seed)
    key = torch.full((kv_heads, len(pool), size), POISON, dtype=dtype)
    value = key.clone()
    for tensor in (key, value):
        tensor[:, used] = torch.randn(kv_heads, len(used), size, generator=made).to(dtype)
    query = torch.randn(heads, len(batch.tokens), size, generator=made).to(dtype)
    layout = Layouts(torch.device("cpu"), heads // kv_heads).lay(pool, batch)
    return Forward(batch, pool, layout, query, key, value)
