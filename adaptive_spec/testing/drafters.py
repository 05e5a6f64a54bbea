"""Drafters that do as they are told: scripted, coupled to the noise, or rogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np

from adaptive_spec.drafters.base import CandidateTree, Committed, DraftRequest
from adaptive_spec.types import ROOT, Floats, Plan


class _Stateless:
    """The life cycle of a drafter that keeps nothing."""

    name = "scripted"
    taps: tuple[int, ...] = ()
    reads_noise = False
    has_model = False

    def start(self, request: DraftRequest) -> None:
        return None

    def commit(self, requests: Sequence[DraftRequest], news: Sequence[Committed]) -> None:
        return None

    def finish(self, request: DraftRequest) -> None:
        return None


class ScriptedDrafter(_Stateless):
    """Drafts the target's own path and corrupts it, so that accepted lengths follow a pattern.

    Args:
        answer: request -> prompt and output of plain decoding, which the path is read from.
        pattern: how many tokens of each proposal are right, repeated for ever.
        decoys: wrong siblings beside every right token, so that the path is spread over the tree.
    """

    def __init__(
        self,
        answer: Callable[[DraftRequest], Sequence[int]],
        pattern: Sequence[int] = (4,),
        decoys: int = 0,
    ) -> None:
        self._answer, self._pattern, self._decoys = answer, cycle(pattern), decoys
        self.proposed: list[int] = []
        """Right tokens of each proposal so far."""

    def propose(
        self, requests: Sequence[DraftRequest], plans: Sequence[Plan]
    ) -> list[CandidateTree]:
        return [self._tree(r, plan) for r, plan in zip(requests, plans, strict=True)]

    def _tree(self, request: DraftRequest, plan: Plan) -> CandidateTree:
        right = next(self._pattern)
        done = len(request.tokens)
        path = list(self._answer(request)[done : done + right])
        self.proposed.append(len(path))
        token: list[int] = []
        parent: list[int] = []
        above = ROOT
        for place in range(min(plan.depth, right + 1)):
            real = path[place] if place < len(path) else None
            base = (
                self._answer(request)[done + place]
                if done + place < len(self._answer(request))
                else 0
            )
            wrong = [(base + 1 + k) % request.vocab for k in range(self._decoys + (real is None))]
            if len(token) + len(wrong) + (real is not None) > plan.nodes:
                break
            token.extend(wrong)
            parent.extend([above] * len(wrong))
            if real is None:
                break
            token.append(real)
            parent.append(above)
            above = len(token) - 1
        return flat_tree(token, parent)


class KeyedDrafter(_Stateless):
    """Reads the keyed noise: at every node the children are ranked by ``log q + g``.

    Args:
        table: [V, V] log q of the next token given the last one. The closer to the target, the
            more often its draws are guessed.
        width: children per node.
    """

    name = "keyed"
    reads_noise = True

    def __init__(self, table: Floats, width: int = 2) -> None:
        self._table, self._width = table, width

    def propose(
        self, requests: Sequence[DraftRequest], plans: Sequence[Plan]
    ) -> list[CandidateTree]:
        return [self._tree(r, plan) for r, plan in zip(requests, plans, strict=True)]

    def _tree(self, request: DraftRequest, plan: Plan) -> CandidateTree:
        token: list[int] = []
        parent: list[int] = []
        above, last, position = ROOT, request.tokens[-1], len(request.tokens)
        everything = np.arange(request.vocab)
        for depth in range(plan.depth):
            score = self._table[last].copy()
            if request.noise is not None:
                score += request.noise.gumbel(position + depth, everything)
            best = np.argsort(-score, kind="stable")[: self._width].tolist()
            if len(token) + len(best) > plan.nodes:
                break
            here = len(token)
            token.extend(best)
            parent.extend([above] * len(best))
            above, last = here, best[0]
        return flat_tree(token, parent)


class RogueDrafter(_Stateless):
    """Breaks one rule of the protocol.

    Args:
        break_tree: what to do to an otherwise valid proposal; may return anything, or raise.
    """

    name = "rogue"

    def __init__(self, break_tree: Callable[[CandidateTree], Any]) -> None:
        self._break = break_tree

    def propose(self, requests: Sequence[DraftRequest], plans: Sequence[Plan]) -> Any:
        size = min(plan.nodes for plan in plans)
        good = flat_tree([5, 6, 7][:size], [ROOT, ROOT, 0][:size])
        return [self._break(good) for _ in requests]


def flat_tree(token: Sequence[int], parent: Sequence[int]) -> CandidateTree:
    """A tree that trusts all its edges alike: order of discovery is best-first order."""
    size = len(token)
    if size == 0:
        return CandidateTree.empty()
    even = CandidateTree.chain(token)
    ranks = [list(parent[:i]).count(parent[i]) for i in range(size)]
    logq = np.log(np.where(np.array(ranks) > 0, 0.1, 0.5))
    return replace(even, parent=np.array(parent), rank=np.array(ranks), logq=logq)
