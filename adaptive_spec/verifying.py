"""The forward with its safety net, and the verdict it gives on each request's tree.

Legend: R requests, N draft nodes of one request, M = sum of (1 + N) rows, V vocabulary. Row 0 of a
request's part is its root.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from adaptive_spec import tree as trees
from adaptive_spec.cache import SlotCache
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.errors import SamplingError
from adaptive_spec.packing import PackedBatch, pack, tree_part
from adaptive_spec.profilers.clock import Laps
from adaptive_spec.session import Session
from adaptive_spec.stopping import Finish
from adaptive_spec.target import Target, is_out_of_memory
from adaptive_spec.types import ROOT, Bools, Ints, Labels
from adaptive_spec.walk import walk


@dataclass(frozen=True, slots=True)
class Verification:
    """One packed forward over the trees that were verified in the end."""

    batch: PackedBatch
    trees: list[CandidateTree]
    logits: torch.Tensor
    """[M, V] raw."""
    taps: Mapping[int, torch.Tensor]
    top: Ints
    """[M] argmax of every row, lowest id on a tie."""
    finite: Bools
    """[M] the row has a finite maximum: no NaN, no +inf, not all -inf."""
    high_water: int
    """Pool slots that attention read."""
    halvings: int
    """How often the trees were halved because memory ran out."""


@dataclass(slots=True)
class Verdict:
    """What the walk made of one request's tree."""

    nodes: list[int] = field(default_factory=list)
    """Visited nodes, ROOT first: one per token."""
    tokens: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    """Nodes whose token was emitted."""
    finish: Finish | None = None
    error: Exception | None = None
    poisoned: bool = False
    """The walk met a row without finite logits; the tokens before it stand."""
    scores: list[torch.Tensor] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


def verify(
    target: Target,
    cache: SlotCache,
    sessions: Sequence[Session],
    chosen: Sequence[CandidateTree],
    laps: Laps,
) -> Verification:
    """One packed forward; if memory runs out, again with halved trees, down to plain decoding.

    Raises:
        CacheError: the pool cannot hold even the roots.
        Whatever the model raises; out of memory only if plain decoding ran out too.
    """
    halvings = 0
    while True:
        parts = [
            tree_part(session.owner, session.tokens[-1], len(session.tokens) - 1, tree)
            for session, tree in zip(sessions, chosen, strict=True)
        ]
        batch = pack(parts, cache.pool.reserve(sum(len(part.tokens) for part in parts)))
        try:
            inputs = target.prepare(cache, batch)
            laps.mark("host")
            result = target.run(inputs)
            best, top = result.logits.max(dim=-1)
            peak, ids = torch.stack((best.double(), top.double())).cpu().numpy()
            laps.mark("verify")
        except Exception as error:
            if not is_out_of_memory(error) or not any(len(tree) for tree in chosen):
                raise
            halvings += 1
            chosen = [trees.select(tree, np.arange(len(tree) // 2)) for tree in chosen]
            continue
        return Verification(
            batch=batch,
            trees=list(chosen),
            logits=result.logits,
            taps=result.taps,
            top=ids.astype(np.int64),
            finite=np.isfinite(peak),
            high_water=cache.read_slots,
            halvings=halvings,
        )


def judge(session: Session, check: Verification, part: int, elapsed: float) -> Verdict:
    """Walk one request's tree; stop where its rules say so. Changes nothing but the verdict."""
    verdict = Verdict()
    tree, start = check.trees[part], int(check.batch.starts[part])
    sampler, rules = session.rules.sampler, session.rules
    keep = rules.keep_scores or rules.keep_logits
    here = len(session.tokens)

    def choose(node: int) -> int:
        row = start + 1 + node
        if sampler.is_argmax and not keep and check.finite[row]:
            return int(check.top[row])
        scores = sampler.scores(check.logits[row], session.prefix(verdict.tokens))
        if not check.finite[row] and not torch.isfinite(scores.amax()):
            raise _PoisonedError
        if rules.keep_scores:
            verdict.scores.append(scores)
        if rules.keep_logits:
            verdict.logits.append(check.logits[row].float())
        return sampler.choose(scores, here + len(verdict.tokens))

    try:
        for node, token in walk(tree, choose):
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
    return verdict


def label(tree: CandidateTree, verdict: Verdict, top: Ints | None, survival: np.ndarray) -> Labels:
    """The verdict on every edge.

    Args:
        top: [1+N] the token chosen at every row, where that is known for all rows (argmax); else
            only the visited parents label their children.
        survival: [N] estimated survival of the nodes.
    """
    choice = np.full(len(tree) + 1, -1.0)
    if top is not None:
        choice[:] = top
    seen = np.zeros(len(tree) + 1, dtype=np.bool_)
    rows = np.asarray(verdict.nodes, dtype=np.int64) + 1
    seen[rows] = True
    choice[rows] = verdict.tokens
    above = tree.parent + 1
    chosen = np.where(choice[above] >= 0, choice[above] == tree.token, np.nan)
    reach = np.where(seen[above], 1.0, np.concatenate(([1.0], survival))[above])
    return Labels(chosen=chosen, visited=seen[above], reach=reach)


class _PoisonedError(Exception):
    """The walk met a row without finite logits."""
