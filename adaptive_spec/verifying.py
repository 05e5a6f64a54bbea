"""The forward with its safety net, and the verdict it gives on each request's tree.

Legend: R requests, N draft nodes of one request, M = sum of (1 + N) rows, V vocabulary. Row 0 of a
request's part is its root.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from adaptive_spec import tree as trees
from adaptive_spec.cache import SlotCache
from adaptive_spec.errors import SamplingError
from adaptive_spec.filling import Filling
from adaptive_spec.packing import PackedBatch, pack, tree_part
from adaptive_spec.profilers.clock import Laps, Timer
from adaptive_spec.share import Share
from adaptive_spec.stopping import Finish
from adaptive_spec.target import Target, is_out_of_memory
from adaptive_spec.types import ROOT, Bools, Floats, Ints, Labels
from adaptive_spec.walk import walk


@dataclass(frozen=True, slots=True)
class Verification:
    """What one packed forward found."""

    batch: PackedBatch
    logits: torch.Tensor
    """[M, V] raw."""
    taps: Mapping[int, torch.Tensor]
    top: Ints
    """[M] argmax of every row, lowest id on a tie."""
    finite: Bools
    """[M] the row has a finite maximum: no NaN, no +inf, not all -inf."""
    high_water: int
    """Pool slots that attention read."""
    order: Ints | None = None
    """[M] where a greedy walk comes to the row, from 1 on, 0 for never; None if not known."""


def verify(
    target: Target,
    cache: SlotCache,
    shares: Sequence[Share],
    laps: Laps,
    timer: Timer,
    filling: Filling,
) -> Verification:
    """One packed forward; if memory runs out, again without rows of nobody, then with halved trees,
    down to plain decoding.

    Args:
        timer: times the forward, on the device where the device can.
        filling: adds rows of nobody up to an executable size, unless this is a second attempt.

    Raises:
        CacheError: the pool cannot hold even the roots.
        Whatever the model raises; out of memory only if plain decoding ran out too.
    """
    while True:
        parts = [
            tree_part(
                share.session.owner,
                share.session.tokens[-1],
                len(share.session.tokens) - 1,
                share.tree,
            )
            for share in shares
        ]
        nodes = sum(len(share.tree) for share in shares)
        fill = 0 if any(share.retried for share in shares) else filling.missing(nodes)
        batch = pack(parts, cache.pool.reserve(nodes + len(parts)), fill)
        try:
            inputs = target.prepare(cache, batch)
            laps.mark("host")
            timer.start()
            result = target.run(inputs)
            logits = result.logits[: len(batch.slots)]
            peak, ids, order = _peaks(target, logits, timer)
            laps.mark("verify", timer.seconds())
        except Exception as error:
            if not is_out_of_memory(error) or not nodes:
                raise
            cache.shrink()
            if fill:
                filling.refuse(nodes + fill)
                continue
            for share in shares:
                share.halve()
            continue
        for share, start in zip(shares, batch.starts.tolist(), strict=False):
            share.first_row = start
        return Verification(
            batch=batch,
            logits=logits,
            taps={layer: hidden[: len(batch.slots)] for layer, hidden in result.taps.items()},
            top=ids,
            finite=np.isfinite(peak),
            high_water=cache.read_slots,
            order=order,
        )


ROWS = 4
"""Rows of logits that are converted together."""


def _peaks(target: Target, logits: torch.Tensor, timer: Timer) -> tuple[Floats, Ints, Ints | None]:
    """[M] largest logit of every row (NaN if there is one) and its lowest id, and the order of a
    greedy walk where kernels find it; stops the timer.

    On a CPU numpy finds them an order of magnitude faster than torch; some rows at a time, because
    a float32 copy of all logits would be the largest thing in memory.
    """
    if (verdict := target.verdict(logits)) is not None:
        timer.stop()
        peak, ids, order = verdict.cpu().numpy()
        return peak, ids.astype(np.int64), order.astype(np.int64)
    if logits.device.type == "cpu":
        peaks, places = list[Floats](), list[Ints]()
        for first in range(0, len(logits), ROWS):
            host = logits[first : first + ROWS].float().numpy()
            places.append(host.argmax(axis=1))
            peaks.append(host[np.arange(len(host)), places[-1]].astype(np.float64))
        timer.stop()
        return np.concatenate(peaks), np.concatenate(places), None
    best, top = logits.max(dim=-1)
    found = torch.stack((best.double(), top.double()))
    timer.stop()
    peak, ids = found.cpu().numpy()
    return peak, ids.astype(np.int64), None


def judge(share: Share, check: Verification, elapsed: float) -> None:
    """Walk one request's tree; stop where its rules say so. Fills the share's verdict only."""
    session, tree, verdict = share.session, share.tree, share.verdict
    sampler, rules = session.rules.sampler, session.rules
    keep = rules.keep_scores or rules.keep_logits
    here = len(session.tokens)

    def choose(node: int) -> int:
        row = share.first_row + 1 + node
        if sampler.is_argmax and not keep and check.finite[row]:
            return int(check.top[row])
        scores = sampler.scores(check.logits[row], session.prefix(verdict.tokens))
        verdict.processed.append(scores)
        if not check.finite[row] and not torch.isfinite(scores.amax()):  # no processor mended it
            raise _PoisonedError
        if rules.keep_scores:
            verdict.scores.append(scores)
        if rules.keep_logits:
            verdict.logits.append(check.logits[row].to(torch.float32, copy=True))
        return sampler.choose(scores, here + len(verdict.tokens))

    try:
        for node, token in _walked(share, check) or walk(tree, choose):
            verdict.nodes.append(node)
            verdict.tokens.append(token)
            if node != ROOT:
                verdict.accepted.append(node)
            verdict.finish = rules.stopping.after(session.tokens, verdict.tokens, elapsed)
            if verdict.finish is not None:
                last = trees.child(tree, node, token)
                verdict.accepted.extend([] if last is None else [last])
                break
    except _PoisonedError:
        verdict.poisoned = True
    except SamplingError as error:
        verdict.error, verdict.finish = error, Finish("error", str(error))
    except Exception as error:
        error.add_note(f"raised while request {session.id} chose its next token")
        raise


def _walked(share: Share, check: Verification) -> list[tuple[int, int]]:
    """The walk as the device found it: (node, token); empty where it is the host's to find."""
    rules, first = share.session.rules, share.first_row
    kept = rules.keep_scores or rules.keep_logits
    if check.order is None or kept or not rules.sampler.is_argmax:
        return []
    order = check.order[first : first + 1 + len(share.tree)]
    path = np.argsort(order)[np.count_nonzero(order == 0) :]
    rows = first + path
    if not check.finite[rows].all():
        return []
    return list(zip((path - 1).tolist(), check.top[rows].tolist(), strict=True))


def label(share: Share, check: Verification, soft: bool = False) -> Labels:
    """The verdict on every edge of what was offered: [nodes offered], the verified ones first.

    A verified parent labels all its children, also those that were left out of the tree. At
    temperature 0 without processors the choice is known at every verified node; else only the
    visited parents label their children (the draws of others were never made).

    Args:
        soft: when sampling, label a child with the target's probability of it after processors
            instead of with the draw. Right for trees that do not depend on the noise.
    """
    tree, verdict = share.merged.tree, share.verdict
    size, known = len(tree) + 1, len(share.tree) + 1
    choice, seen = np.full(size, -1, dtype=np.int64), np.zeros(size, dtype=np.bool_)
    if share.session.rules.sampler.is_argmax and not share.stale:
        rows = slice(share.first_row, share.first_row + known)
        choice[:known] = np.where(check.finite[rows], check.top[rows], -1)
    path = np.asarray(verdict.nodes, dtype=np.int64) + 1
    seen[path], choice[path] = True, verdict.tokens
    above = tree.parent + 1
    alive = np.concatenate(([1.0], share.offer.survival))
    chosen = np.where(choice[above] >= 0, choice[above] == tree.token, np.nan)
    if soft and share.features.temperature > 0:
        for node, scores in zip(verdict.nodes, verdict.processed, strict=False):
            below = np.flatnonzero(tree.parent == node)
            if len(below):
                ids = torch.from_numpy(tree.token[below]).to(scores.device)
                chosen[below] = (scores[ids] - scores.logsumexp(0)).exp().cpu().numpy()
    return Labels(
        chosen=chosen,
        visited=seen[above],
        reach=np.where(seen[above], 1.0, alive[above]),
    )


class _PoisonedError(Exception):
    """The walk met a row without finite logits."""
