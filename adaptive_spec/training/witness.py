"""What verification says about a head's trees, by depth and by rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptive_spec.online.base import Feedback


class Witness:
    """A learner that learns nothing and remembers what it saw at visited nodes.

    By depth: of the visited nodes one level above, those without children among them, how many have
    a child that is the target's token. By rank: of the children of visited nodes that stand at that
    rank among their siblings, how many are the target's token.
    """

    head_version: str | None = None
    arm: str | None = None

    def __init__(self) -> None:
        self._visited: Counter[int] = Counter()
        self._accepted: Counter[int] = Counter()
        self._offered: Counter[int] = Counter()
        self._right: Counter[int] = Counter()
        self._deepest = 0

    def observe(self, feedback: Sequence[Feedback]) -> None:
        for one in feedback:
            if len(one.tree):
                self._count(one)

    def between_steps(self, deadline: float) -> Mapping[str, Any] | None:
        return None

    def close(self) -> None:
        return None

    def _count(self, one: Feedback) -> None:
        tree = one.tree
        for level, (node, token) in enumerate(zip(one.path.tolist(), one.tokens, strict=False)):
            children = np.flatnonzero(tree.parent == node)
            ranks = tree.rank[children].tolist()
            right = tree.rank[children[tree.token[children] == token]].tolist()
            self._visited[level + 1] += 1
            self._offered.update(ranks)
            self._right.update(right)
            self._accepted[level + 1] += len(right)
            if len(children):
                self._deepest = max(self._deepest, level + 1)

    def facts(self) -> dict[str, dict[str, float]]:
        """``acceptance_by_depth`` and ``acceptance_by_rank``, as plain values."""
        depths, ranks = range(1, self._deepest + 1), sorted(self._offered)
        return {
            "acceptance_by_depth": {
                str(depth): self._accepted[depth] / self._visited[depth] for depth in depths
            },
            "acceptance_by_rank": {
                str(rank): self._right[rank] / self._offered[rank] for rank in ranks
            },
        }
