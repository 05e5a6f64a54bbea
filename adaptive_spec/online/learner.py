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
from adaptive_spec.online.arms import CorrectorArm, Outcome
from adaptive_spec.online.base import Feedback
from adaptive_spec.online.lessons import Batch, Lessons
from adaptive_spec.online.policies import Opinion, UpdateRule, View
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
        self._pace = _Pace()
        self._asked = 0  # trees there were when the rule was asked last
        self._luck = torch.Generator().manual_seed(0)
        self.arm: str | None = None
        self.head_version: str | None = "0"

    @torch.no_grad()
    def observe(self, feedback: Sequence[Feedback]) -> None:
        """Keep the lessons of a step's trees; those of requests without a draft are left out."""
        self._pace.step(self._clock(), feedback)
        for one in feedback:
            moment = self._drafter.moments.pop(one.request, None)
            if moment is not None:
                self.lessons.add(self._lessons(one, moment))
                self._trees += 1
                self._since += 1

    def between_steps(self, deadline: float) -> Mapping[str, Any] | None:
        """Try an update if the rule is for it and there is time; the record of the decision."""
        began = self._clock()
        if self._failures >= FAILURES or began >= deadline or self._asked == self._trees:
            return None
        self._asked = self._trees
        opinion = self._rule.ask(self._pace.view(self._since))
        if opinion is None:
            return None
        split = self.lessons.split(self._arm.batch, self._luck) if opinion.act else None
        if split is None:
            return None if opinion.act else self._record(opinion, "skip")
        self._since = 0
        found = self._arm.trial(*split, late=lambda: self._clock() >= deadline)
        seconds = self._clock() - began
        self._rule.told(found.gain if found.kept else 0.0, seconds)
        self._failures = self._failures + 1 if found.reason == "not finite" else 0
        if found.kept:
            self.updates += 1
            self.arm, self.head_version = self._arm.name, str(self.updates)
        return self._record(opinion, self._arm.name, found, seconds)

    def _record(
        self, opinion: Opinion, arm: str, found: Outcome | None = None, seconds: float | None = None
    ) -> dict[str, Any]:
        """What was decided, and what came of it."""
        more = None if found is None else found.gain * self._pace.trees_per_second
        return {
            "arm": arm,
            "decision": opinion.reason,
            "expected_gain": opinion.expected_gain,
            "expected_cost": opinion.expected_cost,
            "realised_gain": more if found is not None and found.kept else None,
            "realised_cost": seconds,
            "kept": found is not None and found.kept,
            "reason": None if found is None else found.reason,
            "gain": None if found is None else found.gain,
            "gain_error": None if found is None or np.isinf(found.error) else found.error,
            "lessons": min(self.lessons.count, self.lessons.capacity),
            "head_version": self.head_version,
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


class _Pace:
    """How fast decoding goes, the last hundred steps counting most."""

    KEEP = 0.99

    def __init__(self) -> None:
        self._seconds = self._tokens = self._trees = self._accepted = 0.0
        self._first: float | None = None
        self._last = 0.0

    def step(self, now: float, feedback: Sequence[Feedback]) -> None:
        """A step ended, with whatever came between it and the step before."""
        if self._first is None:
            self._first = now
        elif feedback:
            self._seconds = self.KEEP * self._seconds + now - self._last
            self._tokens = self.KEEP * self._tokens + sum(len(one.tokens) for one in feedback)
            self._trees = self.KEEP * self._trees + len(feedback)
        if feedback:
            self._accepted = sum(len(one.path) - 1 for one in feedback) / len(feedback)
        self._last = now

    @property
    def trees_per_second(self) -> float:
        return self._trees / self._seconds if self._seconds > 0 else 0.0

    def view(self, since: int) -> View:
        """For a rule, ``since`` trees after the last trial."""
        return View(
            trees=since,
            tokens_per_second=self._tokens / self._seconds if self._seconds > 0 else 0.0,
            trees_per_second=self.trees_per_second,
            seconds=0.0 if self._first is None else self._last - self._first,
            accepted=self._accepted,
        )


def _branch(token: Any, parent: Any, node: int, anchor: int) -> list[int]:
    """Tokens from the anchor to ``node``, both included."""
    found: list[int] = []
    while node != ROOT:
        found.append(int(token[node]))
        node = int(parent[node])
    return [anchor, *reversed(found)]
