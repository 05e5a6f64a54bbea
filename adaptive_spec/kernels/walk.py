"""The greedy verdict on the device: every row's best token, and the path that it leads down.

``peaks`` finds the largest score of every row and its lowest id; ``walk`` follows, in every tree,
the child that carries the token of its parent's row. Both stay on the device until one transfer
takes them to the host (``kernels.attach``).

Legend: M rows, V vocabulary, R requests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from adaptive_spec.kernels.candidates import keys_of, values_of

CHUNK = 4096
"""Scores that a program looks at."""
LOWEST = tl.constexpr(-(1 << 63))


@triton.jit(do_not_specialize=["vocab", "chunks"])
def _best(logits, keys, stride, vocab, chunks, CHUNK: tl.constexpr):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = token < vocab
    score = tl.load(logits + row * stride + token, inside, float("-inf")).to(tl.float32)
    tl.store(
        keys + row * chunks + chunk, tl.max(tl.where(inside, keys_of(score, token), LOWEST), 0)
    )


@triton.jit(do_not_specialize=["chunks"])
def _decide(keys, peak, top, chunks, CHUNKS: tl.constexpr):
    row, chunk = tl.program_id(0).to(tl.int64), tl.arange(0, CHUNKS)
    score, token = values_of(
        tl.max(tl.load(keys + row * chunks + chunk, chunk < chunks, LOWEST), 0)
    )
    tl.store(peak + row, score)
    tl.store(top + row, token)


def peaks(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[M] float32 largest score of every row of [M, V] (NaN if there is one), and [M] int32 its
    lowest id."""
    rows, vocab = logits.shape
    chunks = triton.cdiv(vocab, CHUNK)
    keys = torch.empty((rows, chunks), dtype=torch.int64, device=logits.device)
    peak = torch.empty(rows, dtype=torch.float32, device=logits.device)
    top = torch.empty(rows, dtype=torch.int32, device=logits.device)
    _best[(rows, chunks)](logits, keys, logits.stride(0), vocab, chunks, CHUNK=CHUNK)
    _decide[(rows,)](keys, peak, top, chunks, CHUNKS=triton.next_power_of_2(chunks))
    return peak, top


@triton.jit
def _follow(top, token, parent, starts, order, WIDE: tl.constexpr):
    request = tl.program_id(0)
    first, end = tl.load(starts + request), tl.load(starts + request + 1)
    row = first + tl.arange(0, WIDE)
    there = row < end
    carried = tl.load(token + row, there, -1)
    above = tl.load(parent + row, there, -2)
    place = tl.where(row == first, 1, 0)
    here, step = first, 1
    while here >= 0:
        wanted = tl.load(top + here)
        step += 1
        hit = there & (above == here) & (carried == wanted)
        below = tl.min(tl.where(hit, row, 1 << 30), 0)
        place = tl.where(row == below, step, place)
        here = tl.where(below < (1 << 30), below, -1)
    tl.store(order + row, place, there)


def walk(
    top: torch.Tensor, token: torch.Tensor, parent: torch.Tensor, starts: torch.Tensor, widest: int
) -> torch.Tensor:
    """The rows that a greedy walk visits.

    Args:
        top: [M] int32 the target's token after every row. token: [M] int32 what the rows carry.
        parent: [M] int32 row of every row's parent, -1 for roots; siblings carry different tokens.
        starts: [R + 1] int32 first row of every request: its root.
        widest: rows of the largest tree.

    Returns:
        [M] int32 1 for the root, 2 for the next row of the path, and so on; 0 where nobody comes.
    """
    order = torch.zeros(len(parent), dtype=torch.int32, device=top.device)
    wide = triton.next_power_of_2(widest)
    _follow[(len(starts) - 1,)](top, token, parent, starts, order, WIDE=wide)
    return order
