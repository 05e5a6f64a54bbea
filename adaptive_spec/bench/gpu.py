"""Kernels against plain torch on a device, and their cost on paper.

Legend: R requests, M rows, S slots, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from adaptive_spec.bench import gpu_drafts as kernels
from adaptive_spec.bench.side_by_side import judged, timed
from adaptive_spec.cache import SlotPool
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.kernels import cost
from adaptive_spec.kernels import cost_of_drafts as drafts
from adaptive_spec.kernels.layout import Layout, Layouts
from adaptive_spec.packing import PackedBatch, pack, tree_part, visible
from adaptive_spec.profilers.hardware import memory, published
from adaptive_spec.types import Architecture, Ints

PAPER = Architecture(
    model_type="llama", layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128,
    intermediate=14336, vocab=128256, context_limit=131072, windows=(None,) * 32, experts=0,
    experts_per_token=0, tied_embeddings=False, dtype="bfloat16", device="cuda",
    parameters=8_030_261_248, grouped=True,
)  # fmt: skip
"""The shape of Llama 3.1 8B."""
GPUS = ("h100", "a100", "l4")
REQUESTS, NODES, CONTEXTS = (1, 8, 64), (16, 64, 256), (1024, 8192, 32768, 131072)


@dataclass(frozen=True, slots=True)
class Shape:
    """A forward to be measured."""

    requests: int
    nodes: int
    context: int
    heads: int = 32
    kv_heads: int = 8
    size: int = 128


SHAPES = tuple(
    Shape(requests, nodes, context)
    for requests, nodes, context in (
        (1, 16, 1024),
        (1, 64, 8192),
        (1, 256, 32768),
        (8, 64, 1024),
        (8, 16, 8192),
        (64, 16, 1024),
    )
)


def paper() -> Iterator[dict[str, Any]]:
    """Cost of attention by kernel and under masks, for every size: milliseconds of all layers, None
    where weights, keys, values, masks and copies do not fit."""
    for requests, nodes, context in product(REQUESTS, NODES, CONTEXTS):
        kernel = cost.by_kernel(PAPER, requests, nodes, context)
        masks = cost.by_masks(PAPER, requests, nodes, context)
        row: dict[str, Any] = {"requests": requests, "nodes": nodes, "context": context}
        for name, one in (("kernel", kernel), ("masks", masks)):
            row |= {f"{name}_gb": one.bytes / 1e9, f"{name}_tflop": one.flops / 1e12}
        for gpu in GPUS:
            room, peaks = memory(gpu), published(gpu)
            row[gpu] = [
                1e3 * one.seconds(peaks) if one.held <= room else None for one in (kernel, masks)
            ]
        yield row


def paper_of_drafts() -> Iterator[dict[str, Any]]:
    """Cost of candidates, children, peaks and walk by kernel and by torch: microseconds."""
    kinds = (drafts.candidates, drafts.children, drafts.peaks, drafts.walk)
    for draft, kind, requests in product(drafts.DRAFTS, kinds, REQUESTS):
        pair = kind(draft, requests)
        row: dict[str, Any] = {"shape": draft.name, "kernel": kind.__name__, "requests": requests}
        row["mb"] = [one.bytes / 1e6 for one in pair]
        row["gop"] = [one.flops / 1e9 for one in pair]
        row["kb_carried"] = [one.carried / 1e3 for one in pair]
        for gpu in GPUS:
            row[gpu] = [1e6 * one.seconds(drafts.vector(gpu)) for one in pair]
        yield row


ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
"""How far attention of two routes may be apart, relative above 1."""
PIECE = 8
"""Most slots that lie next to each other in a pool that was in use for long."""


def measured(
    device: torch.device, dtype: torch.dtype, shapes: Sequence[Shape] = SHAPES, repeats: int = 20
) -> list[dict[str, Any]]:
    """Every kernel against torch: median milliseconds, and whether they agree.

    The mask of torch's route lies ready on the device; making and uploading it is not counted.
    """
    vocab, few = (128256, 1) if repeats > 1 else (3000, 16)  # the latter for an interpreter
    last = forward(device, shapes[-1])
    return [
        *(_attention(device, dtype, shape, repeats) for shape in shapes),
        kernels.candidates(device, dtype, repeats, places=64 // few, vocab=vocab),
        kernels.children(device, dtype, repeats, nodes=256 // few, vocab=vocab),
        kernels.peaks(device, dtype, repeats, rows=256 // few, vocab=vocab),
        kernels.walk(device, repeats, last.layout, last.trees),
    ]


@dataclass(frozen=True, slots=True)
class Forward:
    """Requests side by side with random trees, on a fragmented pool."""

    batch: PackedBatch
    layout: Layout
    mask: torch.Tensor
    """[M, S]."""
    trees: list[CandidateTree]


def forward(device: torch.device, shape: Shape) -> Forward:
    """Slots of a request lie in pieces anywhere, with holes between them."""
    luck = np.random.default_rng(0)
    total = shape.requests * shape.context
    pool = SlotPool(64, 2 * (shape.context + shape.nodes + 1))
    owners = [pool.join() for _ in range(shape.requests)]
    slots = _scattered(luck, pool.reserve(total + total // 8))[:total]
    none = np.zeros(shape.nodes, dtype=np.int64)
    parts, trees = [], []
    for owner, own in zip(owners, slots.reshape(shape.requests, -1), strict=True):
        pool.commit(owner, own, np.arange(shape.context))
        parent = np.array([luck.integers(-1, node) for node in range(shape.nodes)], dtype=np.int64)
        trees.append(CandidateTree(np.arange(shape.nodes), parent, none.astype(float), none, none))
        parts.append(tree_part(owner, 1, shape.context, trees[-1]))
    rows = pool.reserve(shape.requests * (1 + shape.nodes))
    batch = pack(parts, luck.permutation(rows))
    layout = Layouts(device, shape.heads // shape.kv_heads).lay(pool, batch)
    position = pool.position.copy()
    position[batch.slots] = batch.positions
    mask = torch.from_numpy(visible(batch, pool.owner, position)).to(device)
    return Forward(batch, layout, mask, trees)


def _scattered(luck: np.random.Generator, slots: Ints) -> Ints:
    """Pieces of 1 to ``PIECE`` slots in random order."""
    ends = np.cumsum(luck.integers(1, PIECE + 1, len(slots)))
    pieces = np.split(slots, ends[ends < len(slots)])
    found: Ints = np.concatenate([pieces[i] for i in luck.permutation(len(pieces))])
    return found


def _attention(
    device: torch.device, dtype: torch.dtype, shape: Shape, repeats: int
) -> dict[str, Any]:
    from adaptive_spec.kernels.tree_attention import tree_attention

    one = forward(device, shape)
    layout, mask = one.layout, one.mask
    rows, slots = mask.shape
    made = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(heads, length, shape.size, generator=made).to(device, dtype)
        for heads, length in ((shape.heads, rows), (shape.kv_heads, slots), (shape.kv_heads, slots))
    )
    scale, group = shape.size**-0.5, shape.heads // shape.kv_heads

    def kernel() -> torch.Tensor:
        return tree_attention(query, key, value, layout, scale=scale)

    def masks() -> torch.Tensor:
        keys, values = (part.repeat_interleave(group, dim=0)[None] for part in (key, value))
        out = scaled_dot_product_attention(query[None], keys, values, mask, scale=scale)
        return out[0].transpose(0, 1)

    about = {"requests": shape.requests, "nodes": shape.nodes, "context": shape.context}
    assert len(one.batch.tokens) == rows
    found = judged([(kernel(), masks())], ROUNDING[dtype])
    spent = timed(device, kernel, masks, repeats)
    return {"kernel": "tree attention", **about, **spent, **found, "paper_ms": _on_paper(shape)}


def _on_paper(shape: Shape) -> dict[str, float]:
    """Milliseconds that the kernel should take for one layer on each of ``GPUS``."""
    facts = replace(
        PAPER, layers=1, heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.size
    )
    asked = cost.by_kernel(facts, shape.requests, shape.nodes, shape.context)
    asked = replace(asked, carried=0.0)  # the layout lies ready
    return {gpu: 1e3 * asked.seconds(published(gpu)) for gpu in GPUS}
