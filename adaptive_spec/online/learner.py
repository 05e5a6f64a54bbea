"""The learner: lessons from every verified tree, and trials of updates between steps.

It only ever changes the draft head, so it cannot change the text. What a trial costs is measured
and charged to the step; a trial that is no better leaves no trace in the weights.

Legend: D depths of a draft, C candidates, n lessons of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from adaptive_spec.drafters.causal_parallel import CausalParallelDrafter, Moment
from adaptive_spec.online.arms import CorrectorArm
from adaptive_spec.online.base import Feedback
from adaptive_spec.online.lessons import Batch, Lessons
from adaptive_spec.online.policies import UpdateRule
from adaptive_spec.profilers.clock import Clock, monotonic
from adaptive_spec.tree import depths
from adaptive_spec.types import ROOT

OFF_PATH = 2
"""Lessons from nodes of a tree that were not visited, at most: the best ones."""
FAILURES = 3
"""Trials in a row that were not finite, after which nothing is tried any more."""


class HeadLearner:
    """Learns from feedback on the trees of one drafter. Implements ``online.base.Learner``.

    Args:
        drafter: whose head learns.
        rule: when to try an update.
        lessons: kept at most.
        clock: seconds.

    Raises:
        UnsupportedError: the head has no corrector that can learn.
    """

    def __init__(
        self,
        drafter: CausalParallelDrafter,
        rule: UpdateRule,
        *,
        lessons: int = 4096,
        clock: Clock = monotonic,
        **options: Any,
    ) -> None:
        self._drafter, self._rule, self._clock = drafter, rule, clock
        self._arm = CorrectorArm(drafter.head, **options)
        self.lessons = Lessons(lessons)
        self.updates, self._trees, self._since, self._failures = 0, 0, 0, 0
        self._luck = torch.Generator().manual_seed(0)
        self.arm: str | None = None
        self.head_version: str | None = "0"

    @torch.no_grad()
    def observe(self, feedback: Sequence[Feedback]) -> None:
        """Keep the lessons of a step's trees; those of requests without a draft are left out."""
        for one in feedback:
            moment = self._drafter.moments.pop(one.request, None)
            if moment is not None:
                self.lessons.add(self._lessons(one, moment))
                self._trees += 1
                self._since += 1

    def between_steps(self, deadline: float) -> Mapping[str, Any] | None:
        """Try an update if one is due and there is time; the record of the trial."""
        if self._failures >= FAILURES or not self._rule.due(self._since):
            return None
        began = self._clock()
        if began >= deadline:
            return None
        split = self.lessons.split(self._arm.batch, self._luck)
        if split is None:
            return None
        self._since = 0
        found = self._arm.trial(*split, late=lambda: self._clock() >= deadline)
        self._failures = self._failures + 1 if found.reason == "not finite" else 0
        if found.kept:
            self.updates += 1
            self.arm, self.head_version = self._arm.name, str(self.updates)
        return {
            "arm": self._arm.name,
            "kept": found.kept,
            "reason": found.reason,
            "gain": found.gain,
            "gain_error": found.error if np.isfinite(found.error) else None,
            "lessons": min(self.lessons.count, self.lessons.capacity),
            "head_version": self.head_version,
            "realised_cost": self._clock() - began,
        }

    def _lessons(self, feedback: Feedback, moment: Moment) -> Batch:
        """Of the visited nodes, by depth, then of the best others; as deep as the draft went."""
        tree, config = feedback.tree, self._drafter.head.config
        level = np.append(depths(tree.parent), 0)  # the root is node -1
        levels = len(moment.tokens)
        visited = [node for node in feedback.path.tolist() if level[node] < levels]
        known = {*visited, ROOT}
        others = [node for node in range(len(tree)) if node not in known and level[node] < levels]
        nodes = [*visited, *others[:OFF_PATH]]
        depth = level[nodes]
        device = moment.hidden.device
        paths = np.zeros((len(nodes), config.block), dtype=np.int64)
        for row, node in enumerate(nodes):
            paths[row, : depth[row] + 1] = _branch(tree.token, tree.parent, node, moment.anchor)
        candidates = torch.from_numpy(moment.tokens[depth]).to(device)
        logits = feedback.logits[torch.tensor(nodes, device=device) + 1].float()
        wanted = (logits / moment.heat).softmax(dim=-1).gather(1, candidates)
        right = np.full(len(nodes), -1)
        for row in range(len(visited)):
            hits = np.flatnonzero(moment.tokens[depth[row]] == feedback.tokens[row])
            right[row] = hits[0] if len(hits) else -1
        number = np.where(np.arange(len(nodes)) < len(visited), self._trees, -1)
        where = torch.from_numpy(depth).to(device)
        return Batch(
            hidden=moment.hidden[where].bfloat16(),
            path=torch.from_numpy(paths).to(device),
            depth=where,
            rows=self._drafter.head.draft_rows(candidates).int(),
            scores=moment.scores[where],
            rest=torch.from_numpy(moment.rest[depth]).to(device).float(),
            heat=torch.full((len(nodes),), moment.heat, device=device),
            wanted=wanted,
            right=torch.from_numpy(right).to(device),
            tree=torch.from_numpy(number).to(device),
        )


def _branch(token: Any, parent: Any, node: int, anchor: int) -> list[int]:
    """Tokens from the anchor to ``node``, both included."""
    found: list[int] = []
    while node != ROOT:
        found.append(int(token[node]))
        node = int(parent[node])
    return [anchor, *reversed(found)]
