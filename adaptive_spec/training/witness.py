"""What verification says about a head's trees: by depth, by rank, and along its best branches.

Definitions (design, section 12): the *branch gap* is the mean over branches of the absolute
difference of summed draft and target log-probabilities; the *branch hit rate* at depth d is the
share of nodes of depth d on those branches whose best child is the target's argmax given that
branch. The best branch is left out: it is the rest that a head without path conditioning gets
wrong. q is normalised over the whole draft vocabulary.

Legend: N nodes of a tree, V draft vocabulary, H hidden, D depths.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.drafters.causal_parallel import CausalParallelDrafter
from adaptive_spec.heads.head import Head
from adaptive_spec.online.base import Feedback
from adaptive_spec.types import ROOT

DEPTH, BRANCHES = 4, 5
"""Branches are followed to this depth; so many of the best are looked at, the first left out."""


class WatchedDrafter(CausalParallelDrafter):
    """Keeps the states of the last draft."""

    hidden: torch.Tensor | None = None
    """[D, H] of the only request."""
    anchor = 0
    """Its newest token."""

    def _forward(self, drafts: Any) -> Any:
        depths, self.anchor = super()._forward(drafts), int(drafts[0].request.tokens[-1])
        self.hidden = None if depths is None else depths.hidden
        return depths


class Witness:
    """A learner that learns nothing and remembers what it saw.

    Args:
        per_request: trees of a request whose branches are followed.
    """

    head_version: str | None = None
    arm: str | None = None

    def __init__(self, drafter: WatchedDrafter, per_request: int = 50) -> None:
        self._drafter, self._most = drafter, per_request
        self.followed: Counter[str] = Counter()
        self.tried: Counter[int] = Counter()
        self.accepted: Counter[int] = Counter()
        self.ranks: Counter[int] = Counter()
        self.gaps: list[float] = []
        self.hits: dict[int, list[bool]] = defaultdict(list)

    def observe(self, feedback: Sequence[Feedback]) -> None:
        for one in feedback:
            self._count(one)
            wanted = self.followed[one.request] < self._most
            if wanted and self._drafter.hidden is not None and self._follow(one):
                self.followed[one.request] += 1

    def between_steps(self, deadline: float) -> Mapping[str, Any] | None:
        return None

    def _count(self, one: Feedback) -> None:
        """Which child of every visited node was the target's token."""
        tree = one.tree
        for level, (node, token) in enumerate(zip(one.path.tolist(), one.tokens, strict=False)):
            children = np.flatnonzero(tree.parent == node)
            if not len(children):
                break
            self.tried[level + 1] += 1
            right = children[tree.token[children] == token]
            if len(right):
                self.accepted[level + 1] += 1
                self.ranks[int(tree.rank[right[0]])] += 1

    @torch.no_grad()
    def _follow(self, one: Feedback) -> bool:
        """Compare the branches after the best with the target; False if there are too few."""
        branches = _branches(one.tree)[1:]
        if len(branches) < BRANCHES - 1:
            return False
        hidden, head = self._drafter.hidden, self._drafter.head
        assert hidden is not None
        truth = one.logits.float().log_softmax(dim=-1)
        anchor, seen = self._drafter.anchor, set[int]()
        for branch in branches:
            rows = [0, *(node + 1 for node in branch)]
            tokens = torch.from_numpy(one.tree.token[branch])
            target = float(truth[rows[:-1], tokens].sum())
            best = truth[rows].argmax(dim=-1)
            logq = _drafts(head, hidden, anchor, tokens)
            drafted = float(logq[range(len(branch)), _draft_ids(head, tokens)].sum())
            self.gaps.append(abs(drafted - target))
            guess = head.target_ids(logq.argmax(dim=-1))
            for depth in range(1, DEPTH):  # the node of that depth, and its best child
                if branch[depth - 1] not in seen:
                    self.hits[depth].append(bool(guess[depth] == best[depth]))
            seen.update(branch)
        return True

    def facts(self) -> dict[str, Any]:
        """Everything as plain values."""
        total = sum(self.ranks.values())
        return {
            "acceptance_by_depth": {
                str(depth): self.accepted[depth] / tried
                for depth, tried in sorted(self.tried.items())
            },
            "acceptance_by_rank": {
                str(rank): count / total for rank, count in sorted(self.ranks.items())
            },
            "trees": self.followed.total(),
            "gap": float(np.mean(self.gaps)) if self.gaps else None,
            "hits": {str(depth): float(np.mean(hit)) for depth, hit in sorted(self.hits.items())},
        }


def _branches(tree: CandidateTree) -> list[list[int]]:
    """The likeliest paths of ``DEPTH`` nodes, best first."""
    paths: list[tuple[float, list[int]]] = []
    value: list[float] = []
    path: list[list[int]] = []
    for node, (above, logq) in enumerate(
        zip(tree.parent.tolist(), tree.logq.tolist(), strict=True)
    ):
        value.append(logq + (0.0 if above == ROOT else value[above]))
        path.append([*([] if above == ROOT else path[above]), node])
        if len(path[node]) == DEPTH:
            paths.append((value[node], path[node]))
    paths.sort(key=lambda one: -one[0])
    return [found for _, found in paths[:BRANCHES]]


def _drafts(head: Head, hidden: torch.Tensor, anchor: int, tokens: torch.Tensor) -> torch.Tensor:
    """[DEPTH, V] log-probabilities along a branch, over the whole draft vocabulary."""
    path = torch.cat([torch.tensor([anchor]), tokens[:-1]])
    states = head.corrector.states(path, head.embed(path).float())
    return head.logits(hidden[: len(tokens)], states).float().log_softmax(dim=-1)


def _draft_ids(head: Head, tokens: torch.Tensor) -> torch.Tensor:
    return tokens if head.draft_ids is None else torch.searchsorted(head.draft_ids, tokens)
