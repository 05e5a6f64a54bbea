"""The likeliest tokens of every place of a draft, and the best children of every node.

``candidates`` reads the scores once: log-sum-exp, entropy and the best C together, chunk by chunk,
the chunks' winners compared again. Value and token travel as one 64-bit key whose order is that of
the values, the lower token first on a tie, so the answer does not depend on how it was computed;
the C best of a chunk are those above a key that is found bit by bit.
``children`` makes the distribution of a node's own branch out of its place's candidates, the
corrector's bias and, where the target will draw, the noise, and keeps the best of it
(``heads.branches`` and ``drafters.coupling`` say what is computed and why).

Legend: P places, V draft vocabulary, C candidates of a place, M nodes, r rank, K children.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from adaptive_spec.kernels.facts import LEAST, Candidates, Children

CHUNK = 2048
"""Scores, or keys, that a program looks at."""
SORTED = 128
"""Most candidates that are put in order: all are compared with all."""
LOWEST = tl.constexpr(-(1 << 63))


@triton.jit
def keys_of(score, token):
    """int64 whose order is that of the scores, NaN above all, the lower token first on a tie."""
    score = tl.where(score != score, float("nan"), score + 0.0)  # one NaN, one zero
    word = score.to(tl.int32, bitcast=True)
    order = word ^ ((word >> 31) & 0x7FFFFFFF)
    return (order.to(tl.int64) << 32) | (0xFFFFFFFF - token.to(tl.int64))


@triton.jit
def values_of(keys):
    """Scores and tokens of keys."""
    order = (keys >> 32).to(tl.int32)
    word = order ^ ((order >> 31) & 0x7FFFFFFF)
    return word.to(tl.float32, bitcast=True), (0xFFFFFFFF - (keys & 0xFFFFFFFF)).to(tl.int32)


@triton.jit
def _keep_best(keys, to, COUNT: tl.constexpr):
    """Store the COUNT largest of [n] keys, in the order in which they come."""
    least = tl.where(tl.sum((keys >= 0).to(tl.int32), 0) >= COUNT, 0, LOWEST)
    for bit in range(63):
        more = least + (tl.full([], 1, tl.int64) << (62 - bit))
        least = tl.where(tl.sum((keys >= more).to(tl.int32), 0) >= COUNT, more, least)
    chosen = keys >= least
    place = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(to + place, keys, chosen & (place < COUNT))


@triton.jit(do_not_specialize=["vocab", "chunks"])
def _survey(
    logits, heat, keys, sums, stride, vocab, chunks, COUNT: tl.constexpr, CHUNK: tl.constexpr
):
    place, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, CHUNK)
    token = chunk * CHUNK + lane
    inside = token < vocab
    score = tl.load(logits + place * stride + token, inside, float("-inf")).to(tl.float32)
    cold = 1.0 / tl.load(heat + place)
    peak = tl.max(score, 0)
    level = tl.where(peak == float("-inf"), 0.0, peak)
    height = (score - level) * cold
    power = tl.exp(height)
    at = sums + (place * chunks + chunk) * 3
    tl.store(at, peak)
    tl.store(at + 1, tl.sum(power, 0))
    tl.store(at + 2, tl.sum(tl.where(power > 0.0, height, 0.0) * power, 0))
    found = tl.where(inside, keys_of(score, token), LOWEST)
    _keep_best(found, keys + (place * chunks + chunk) * COUNT, COUNT)


@triton.jit(do_not_specialize=["width", "groups"])
def _merge(keys, out, width, groups, COUNT: tl.constexpr, CHUNK: tl.constexpr):
    place, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, CHUNK)
    at = group * CHUNK + lane
    found = tl.load(keys + place * width + at, at < width, LOWEST)
    _keep_best(found, out + (place * groups + group) * COUNT, COUNT)


@triton.jit(do_not_specialize=["chunks"])
def _conclude(
    keys, sums, heat, scores, ids, facts, chunks, least,
    COUNT: tl.constexpr, CHUNKS: tl.constexpr, IN_ORDER: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    lane, part = tl.arange(0, COUNT), tl.arange(0, CHUNKS)
    found = tl.load(keys + place * COUNT + lane)
    score, token = values_of(found)
    to = lane
    if IN_ORDER:
        to = tl.sum((found[None, :] > found[:, None]).to(tl.int32), 1)
    tl.store(scores + place * COUNT + to, score)
    tl.store(ids + place * COUNT + to, token)
    cold = 1.0 / tl.load(heat + place)
    there = part < chunks
    at = sums + (place * chunks + part) * 3
    peak = tl.load(at, there, float("-inf"))
    top = tl.max(peak, 0)
    shift = (peak - top) * cold
    power = tl.load(at + 1, there, 0.0) * tl.exp(shift)
    moved = tl.load(at + 2, there, 0.0) * tl.exp(shift) + tl.where(power > 0.0, shift, 0.0) * power
    whole = tl.sum(power, 0)
    seen = tl.sum(tl.exp((score - top) * cold), 0)
    rest = top * cold + tl.log(tl.maximum(whole - seen, least * whole))
    tl.store(facts + 2 * place, rest)
    tl.store(facts + 2 * place + 1, tl.log(whole) - tl.sum(moved, 0) / whole)


def candidates(logits: torch.Tensor, heat: torch.Tensor, count: int) -> Candidates:
    """The likeliest tokens of every place, and what the others amount to.

    Args:
        logits: [P, V], contiguous rows, any floating type.
        heat: [P] float32 temperatures.
        count: C, a power of 2 of at most half a ``CHUNK``, and at most V. Beyond ``SORTED`` the
            candidates are in no order.
    """
    places, vocab = logits.shape
    device, chunks = logits.device, triton.cdiv(vocab, CHUNK)
    keys = torch.empty((places, chunks * count), dtype=torch.int64, device=device)
    sums = torch.empty((places, chunks, 3), dtype=torch.float32, device=device)
    _survey[(places, chunks)](
        logits, heat, keys, sums, logits.stride(0), vocab, chunks, COUNT=count, CHUNK=CHUNK
    )
    while (width := keys.shape[1]) > count:
        groups = triton.cdiv(width, CHUNK)
        best = torch.empty((places, groups * count), dtype=torch.int64, device=device)
        _merge[(places, groups)](keys, best, width, groups, COUNT=count, CHUNK=CHUNK)
        keys = best
    scores = torch.empty((places, count), dtype=torch.float32, device=device)
    ids = torch.empty((places, count), dtype=torch.int32, device=device)
    facts = torch.empty((places, 2), dtype=torch.float32, device=device)
    _conclude[(places,)](
        keys, sums, heat, scores, ids, facts, chunks, LEAST,
        COUNT=count, CHUNKS=triton.next_power_of_2(chunks), IN_ORDER=count <= SORTED,
    )  # fmt: skip
    return Candidates(scores=scores, ids=ids, rest=facts[:, 0], entropy=facts[:, 1])


@triton.jit
def _children(
    place, query, scale, ids, scores, table, rest, unseen, heat, noise, chance, tokens, margins,
    rank, table_row, sharpness, DRAWN: tl.constexpr,
    COUNT: tl.constexpr, WIDE: tl.constexpr, BEST: tl.constexpr,
):  # fmt: skip
    node = tl.program_id(0).to(tl.int64)
    where = tl.load(place + node).to(tl.int64)
    lane, axis = tl.arange(0, COUNT), tl.arange(0, WIDE)
    token = tl.load(ids + where * COUNT + lane)
    asked = tl.load(query + node * rank + axis, axis < rank, 0.0)
    row = token.to(tl.int64)[:, None] * table_row + axis[None, :]
    answers = tl.load(table + row, (axis < rank)[None, :] & (lane >= 0)[:, None], 0.0)
    moved = tl.sum(answers.to(tl.float32) * asked[None, :], 1)
    score = tl.load(scores + where * COUNT + lane) * tl.load(scale + 2 * node)
    score = (score + moved * tl.load(scale + 2 * node + 1)) / tl.load(heat + where)
    others = tl.load(rest + where)
    top = tl.maximum(tl.max(score, 0), others)
    total = top + tl.log(tl.sum(tl.exp(score - top), 0) + tl.exp(others - top))
    logq = score - total
    first = tl.max(logq, 0)
    leader = tl.min(tl.where(logq == first, lane, COUNT), 0)
    second = tl.max(tl.where(lane == leader, float("-inf"), logq), 0)
    tl.store(margins + node, first - second)
    if DRAWN:
        drawn = tl.load(noise + where * COUNT + lane)
        score = sharpness * (logq + drawn)
        top = tl.max(score, 0)
        whole = top + tl.log(tl.sum(tl.exp(score - top), 0))
        missed = tl.exp(tl.load(unseen + where) - total - whole / sharpness)
        logq = score - whole - missed
    for best in range(BEST):
        first = tl.max(logq, 0)
        leader = tl.min(tl.where(logq == first, lane, COUNT), 0)
        certain = tl.where(first == first, tl.minimum(first, 0.0), float("-inf"))  # NaN: no child
        tl.store(chance + node * BEST + best, certain)
        tl.store(tokens + node * BEST + best, tl.sum(tl.where(lane == leader, token, 0), 0))
        logq = tl.where(lane == leader, float("-inf"), logq)


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
    """The best children of nodes, each by the distribution of its own branch.

    Args:
        place: [M] int32 whose candidates the children are.
        query: [M, r] float32 the corrector's, of the branches; contiguous.
        scale: [M, 2] float32 what the place's scores, and what the corrections, are multiplied by.
        table: [V, r] what draft tokens answer to a query.
        heat: [P] float32.
        best: K, at most C.
        noise: [P, C] float32 that the candidates will be drawn with; without it children are ranked
            by their probability.
        unseen: [P] float32 as ``rest``, of the scores that no noise was looked up for.
        sharpness: see ``drafters.coupling``.
    """
    nodes, device = len(place), place.device
    chance = torch.empty((nodes, best), dtype=torch.float32, device=device)
    tokens = torch.empty((nodes, best), dtype=torch.int32, device=device)
    margin = torch.empty(nodes, dtype=torch.float32, device=device)
    rank, count = query.shape[1], found.ids.shape[1]
    _children[(nodes,)](
        place, query, scale, found.ids, found.scores, table, found.rest,
        found.rest if unseen is None else unseen, heat, found.scores if noise is None else noise,
        chance, tokens, margin, rank, table.stride(0), sharpness, DRAWN=noise is not None,
        COUNT=count, WIDE=triton.next_power_of_2(rank), BEST=best,
    )  # fmt: skip
    return Children(chance=chance, ids=tokens, margin=margin)
