"""Attention of a packed forward over the slot pool, in one pass and without a mask in memory.

A program works on a tile: some rows of one part, with all query heads that share a key head, as the
lanes of one product. It walks the part's own committed slots in order of position, from the first
that a window leaves, and then the part's rows, of which each lane sees those that its bits name.
Slots of other requests are never read. Long contexts are split over several programs, whose partial
results a second kernel adds up. Softmax and sums are float32 (Milakov and Gimelshein 2018; Dao et
al. 2022; split over the context as in Flash-Decoding, Dao et al. 2023).

Legend: G query heads per key head, M rows, S slots, d head size, L lanes of a tile.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

from adaptive_spec.kernels.layout import BLOCK, WORD, Layout, splits_of

LOG2_E = tl.constexpr(1.4426950408889634)
EVERYTHING = 1 << 30
"""A window that leaves nothing out."""
NARROW, HUGE = 256, 1024
"""Bytes of a key with which a whole block still fits into any GPU's shared memory, and with which
half a block fits for ``FEW`` lanes only, with nothing loaded ahead: a tile is then worked on in
pieces."""
FEW = 32
STAGES = 3
"""Blocks that are loaded or worked on at once; Triton's own choice."""
WIDEN = tl.constexpr(
    os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")
)
"""Multiply in float32: Triton's interpreter takes the bits of bfloat16 for integers. Products of
half-precision numbers are exact in float32, so nothing else changes."""


@triton.jit
def _take(asked, found, held, sees, scale, best, weight, mixed):
    """Softmax so far, with keys [n, d] and values [n, d] that lanes [L, d] see where ``sees``."""
    if WIDEN:
        asked, found = asked.to(tl.float32), found.to(tl.float32)
    score = tl.dot(asked, tl.trans(found), input_precision="ieee") * (scale * LOG2_E)
    score = tl.where(sees, score, float("-inf"))
    peak = tl.maximum(best, tl.max(score, 1))
    level = tl.where(peak == float("-inf"), 0.0, peak)
    chance = tl.exp2(score - level[:, None])
    keep = tl.exp2(best - level)
    weight = weight * keep + tl.sum(chance, 1)
    mixed = mixed * keep[:, None]
    chance = chance.to(held.dtype)
    if WIDEN:
        chance, held = chance.to(tl.float32), held.to(tl.float32)
    mixed += tl.dot(chance, held, input_precision="ieee")
    return peak, weight, mixed


@triton.jit(do_not_specialize=["window", "context_row", "tree_row", "words", "rows"])
def _attend(
    query, key, value, out, partial, summary, context, parts, tiles, tree, positions, bits,
    scale, window, query_row, query_head, key_slot, key_head, value_slot, value_head,
    context_row, tree_row, words, rows, heads,
    GROUP: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr,
    PIECES: tl.constexpr, TALL: tl.constexpr, BLOCK: tl.constexpr, BITS: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    tile, kv_head, split = tl.program_id(0) // PIECES, tl.program_id(1), tl.program_id(2)
    part = tl.load(tiles + 2 * tile)
    first = tl.load(tiles + 2 * tile + 1)
    request = tl.load(parts + 5 * part).to(tl.int64)
    length = tl.load(parts + 5 * part + 1)
    branch = tl.load(parts + 5 * part + 2)
    seen = tl.load(parts + 5 * part + 3)
    end = tl.minimum(tl.load(parts + 5 * part + 4), first + TALL)
    first += tl.program_id(0) % PIECES * (LANES // GROUP)  # a last piece may be empty

    lane = tl.arange(0, LANES)
    row = first + lane // GROUP
    live = (lane // GROUP < LANES // GROUP) & (row < end)
    head = kv_head * GROUP + lane % GROUP
    size = tl.arange(0, WIDE)
    inside = size < SIZE
    at = row.to(tl.int64) * query_row + head.to(tl.int64) * query_head
    asked = tl.load(query + at[:, None] + size[None, :], live[:, None] & inside[None, :], 0.0)
    position = tl.load(positions + row, live, 0)
    keys = key + kv_head.to(tl.int64) * key_head
    values = value + kv_head.to(tl.int64) * value_head

    best = tl.full([LANES], float("-inf"), tl.float32)
    weight = tl.zeros([LANES], tl.float32)
    mixed = tl.zeros([LANES, WIDE], tl.float32)

    share = tl.cdiv(tl.cdiv(length, BLOCK), SPLITS) * BLOCK
    earliest = tl.min(tl.where(live, position, 1 << 30)) - window + 1
    begin = tl.maximum(split * share, tl.maximum(earliest, 0) // BLOCK * BLOCK)
    for start in range(begin, tl.minimum(length, (split + 1) * share), BLOCK):
        place = start + tl.arange(0, BLOCK)
        there = place < length
        slot = tl.load(context + request * context_row + place, there, 0).to(tl.int64)
        near = there[:, None] & inside[None, :]
        found = tl.load(keys + slot[:, None] * key_slot + size[None, :], near, 0.0)
        held = tl.load(values + slot[:, None] * value_slot + size[None, :], near, 0.0)
        sees = live[:, None] & there[None, :] & (position[:, None] - place[None, :] < window)
        best, weight, mixed = _take(asked, found, held, sees, scale, best, weight, mixed)

    if split == 0:
        for start in range(0, seen, BITS):
            place = start + tl.arange(0, BITS)
            there = place < seen
            slot = tl.load(tree + branch + place, there, 0).to(tl.int64)
            where = tl.load(tree + tree_row + branch + place, there, 0)
            near = there[:, None] & inside[None, :]
            found = tl.load(keys + slot[:, None] * key_slot + size[None, :], near, 0.0)
            held = tl.load(values + slot[:, None] * value_slot + size[None, :], near, 0.0)
            word = tl.load(bits + row.to(tl.int64) * words + start // BITS, live, 0)
            named = ((word[:, None] >> tl.arange(0, BITS)[None, :]) & 1) != 0
            sees = named & there[None, :] & (position[:, None] - where[None, :] < window)
            best, weight, mixed = _take(asked, found, held, sees, scale, best, weight, mixed)

    place = row.to(tl.int64) * heads + head
    if SPLITS == 1:
        answer = mixed / tl.where(live, weight, 1.0)[:, None]
        to = out + place[:, None] * SIZE + size[None, :]
        tl.store(to, answer.to(out.dtype.element_ty), live[:, None] & inside[None, :])
    else:
        place += split.to(tl.int64) * rows * heads
        to = partial + place[:, None] * SIZE + size[None, :]
        tl.store(to, mixed, live[:, None] & inside[None, :])
        tl.store(summary + 2 * place, best, live)
        tl.store(summary + 2 * place + 1, weight, live)


@triton.jit(do_not_specialize=["places"])
def _add_up(
    partial,
    summary,
    out,
    places,
    SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    split, size = tl.arange(0, SPLITS), tl.arange(0, WIDE)
    at = split.to(tl.int64) * places + place
    best = tl.load(summary + 2 * at)
    weight = tl.load(summary + 2 * at + 1)
    share = tl.exp2(best - tl.max(best, 0))  # the row sees itself, so the largest is finite
    inside = size[None, :] < SIZE
    mixed = tl.load(partial + at[:, None] * SIZE + size[None, :], inside, 0.0)
    answer = tl.sum(mixed * share[:, None], 0) / tl.sum(weight * share, 0)
    tl.store(out + place * SIZE + size, answer.to(out.dtype.element_ty), size < SIZE)


def fitted(lanes: int, group: int, size: int) -> tuple[int, int, int]:
    """Lanes of a program, committed slots that it looks at together, and stages of loading, that
    fit into shared memory, of a tile's lanes and a key of ``size`` bytes."""
    if size >= HUGE and group <= FEW <= lanes:
        return FEW, BLOCK // 2, 1
    return lanes, BLOCK if size <= NARROW else BLOCK // 2, STAGES


def tree_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    *,
    scale: float,
    window: int | None = None,
    splits: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of M rows over the slots that each may see.

    Args:
        query: [heads, M, d]; any strides but 1 in the last dimension.
        key, value: [kv_heads, S, d], the pool, the rows' own slots written; heads is a multiple of
            kv_heads.
        scale: of the scores.
        window: positions before its own that a row sees, itself included; None for all.
        splits: programs per tile over the context, a power of 2; chosen if not given.
        out: [M, heads, d] to write to, contiguous.

    Returns:
        [M, heads, d] in the query's dtype.
    """
    heads, rows, size = query.shape
    kv_heads = key.shape[0]
    group = heads // kv_heads
    splits = splits or splits_of(len(layout.tiles) * kv_heads, layout.longest)
    if out is None:
        out = query.new_empty((rows, heads, size))
    space = (splits, rows, heads) if splits > 1 else (0,)
    partial = torch.empty((*space, size), dtype=torch.float32, device=query.device)
    summary = torch.empty((*space, 2), dtype=torch.float32, device=query.device)
    wide = triton.next_power_of_2(max(size, 16))
    lanes, block, stages = fitted(layout.lanes, group, wide * key.element_size())
    tall = layout.lanes // layout.group
    pieces = triton.cdiv(tall, lanes // group)
    _attend[(len(layout.tiles) * pieces, kv_heads, splits)](
        query, key, value, out, partial, summary, layout.context, layout.parts, layout.tiles,
        layout.tree, layout.positions, layout.bits, scale, EVERYTHING if window is None else window,
        query.stride(1), query.stride(0), key.stride(1), key.stride(0), value.stride(1),
        value.stride(0), layout.context.stride(0), layout.tree.stride(0), layout.bits.stride(0),
        rows, heads, GROUP=group, SIZE=size, WIDE=wide, LANES=lanes, PIECES=pieces, TALL=tall,
        BLOCK=block, BITS=WORD, SPLITS=splits, num_stages=stages,
    )  # fmt: skip
    if splits > 1:
        places = rows * heads
        _add_up[(places,)](partial, summary, out, places, SIZE=size, WIDE=wide, SPLITS=splits)
    return out
