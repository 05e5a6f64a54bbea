"""The learner: lessons from every verified tree, and trials of updates between steps.

It only ever changes the draft head, so it cannot change the text. What a trial costs is measured
and charged to the step; a trial that is no better leaves no trace in the weights.

Legend: D depths of a draft, C candidates, n lessons of a step.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from adaptive_spec.drafters.causal_parallel import CausalParallelDrafter, Moment
from adaptive_spec.errors import UnsupportedError
from adaptive_spec.online.arms import CalibratorArm, CorrectorArm
from adaptive_spec.online.base import Feedback
from adaptive_spec.online.full import FullArm
from adaptive_spec.online.lessons import Batch, Lessons
from adaptive_spec.online.pace import Pace
from adaptive_spec.online.passages import LIKELIEST, Passages
from adaptive_spec.online.policies import Opinion, UpdateRule
from adaptive_spec.online.trials import Arm, Outcome
from adaptive_spec.profilers.clock import Clock, monotonic
from adaptive_spec.tree import depths
from adaptive_spec.types import ROOT

OFF_PATH = 2
"""Lessons from nodes of a tree that were not visited, at most: the best ones."""
FAILURES = 3
"""Trials in a row that were not finite, after which nothing is tried any more."""
SPARSE = 16
"""Where learning brings nothing, one tree in so many gives lessons, and one request in so many is
watched for its text: watching costs time as well."""
RECENT = 1024
"""Requests that are remembered."""
FAILED = Outcome(0.0, 0.0, False, "failed")
MAKERS: Mapping[str, Callable[[CausalParallelDrafter, Lessons, Passages], Arm]] = {
    "full": lambda drafter, lessons, passages: FullArm(drafter.head, passages),
    "corrector": lambda drafter, lessons, passages: CorrectorArm(drafter.head, lessons),
    "calibrator": lambda drafter, lessons, passages: CalibratorArm(drafter.head, lessons),
}


class HeadLearner:
    """Learns from feedback on the trees of one drafter. Implements ``online.base.Learner``.

    Args:
        drafter: whose head learns.
        rule: when to try an update, and which.
        lessons: nodes kept at most, and positions of texts that have ended.
        background: trials run in a thread; only what they found is taken over between steps.
        clock: seconds.
        makers: of arms by name.

    Raises:
        UnsupportedError: the head allows none of the rule's arms.
    """

    def __init__(
        self,
        drafter: CausalParallelDrafter,
        rule: UpdateRule,
        *,
        lessons: int = 4096,
        background: bool = False,
        clock: Clock = monotonic,
        makers: Mapping[str, Callable[..., Arm]] = MAKERS,
    ) -> None:
        self._drafter, self._rule, self._clock = drafter, rule, clock
        self._background = background
        self.lessons, passages = Lessons(lessons), Passages(lessons)
        self._arms: dict[str, Arm] = {}
        why = "it asks for none"
        for name in rule.arms:
            try:
                self._arms[name] = makers[name](drafter, self.lessons, passages)
            except UnsupportedError as error:
                why = str(error)
        if not self._arms:
            raise UnsupportedError(why)
        drafter.wants_moments = any(not arm.needs_passages for arm in self._arms.values())
        if any(arm.needs_passages for arm in self._arms.values()):
            drafter.passages = passages
        self.passages = drafter.passages
        self.updates = self.trials = self._trees = self._failures = 0
        self.seconds = 0.0
        """That all trials took."""
        self._paid: deque[float] = deque(
            maxlen=1024
        )  # tokens after which a kept update has paid for itself
        self._sparse, self._seen = 1, 0
        self._requests: dict[str, bool] = {}  # the newest ones, and whether their text is watched
        self._pace = Pace()
        self._asked = 0  # trees there were when the rule was asked last
        self._trial: _Trial | None = None
        self.arm: str | None = None
        self.head_version: str | None = "0"

    @torch.no_grad()
    def observe(self, feedback: Sequence[Feedback]) -> None:
        """Keep the lessons of a step's trees; a request without a draft gives none."""
        self._pace.step(self._clock(), feedback)
        for one in feedback:
            self._trees += 1
            if self.passages is not None and self._watched(one.request):
                _answer(self.passages, one)
            moment = self._drafter.moments.pop(one.request, None)
            if moment is not None and self._trees % self._sparse == 0:
                self.lessons.add(self._lessons(one, moment))

    def _watched(self, request: str) -> bool:
        """Whether a request's text is learned from: decided once."""
        if request not in self._requests:
            self._requests[request] = self._seen % self._sparse == 0
            self._seen += 1
            if len(self._requests) > RECENT:
                del self._requests[next(iter(self._requests))]
        return self._requests[request]

    def between_steps(self, deadline: float) -> Mapping[str, Any] | None:
        """Begin, go on with or end a trial, as the rule says and time allows; the record of what
        was decided, once it is."""
        began = self._clock()
        if self._trial is None:
            if self._failures >= FAILURES or began >= deadline or self._asked == self._trees:
                return None
            self._asked = self._trees
            opinion = self._rule.ask(self._pace.view(self._trees), list(self._arms))
            if opinion is None:
                return None
            if opinion.arm is None:
                self._sparse = min(2 * self._sparse, SPARSE)
                return self._record(opinion)
            arm = self._arms[opinion.arm]
            pieces = arm.pieces()
            if pieces is None:
                return None
            self._trial = _Trial(arm, opinion, pieces, self._background, self._clock)
        outcome = self._trial.go_on(began, deadline)
        return None if outcome is None else self._settle(self._trial, outcome)

    def close(self) -> None:
        """Wait for a trial that is running in a thread; what it found is thrown away."""
        if self._trial is not None:
            self._trial.join()
            self._trial = None

    def break_even(self) -> float | None:
        """Tokens after which a kept update of median worth has paid for itself; None without."""
        return float(np.median(self._paid)) if self._paid else None

    def _settle(self, trial: _Trial, found: Outcome) -> Mapping[str, Any]:
        """Between two steps: take over what a trial found, or forget it."""
        began = self._clock()
        self._trial, name = None, trial.arm.name
        trial.arm.settle(found.kept)
        self._failures = self._failures + 1 if found.reason in ("not finite", "failed") else 0
        if found.kept:
            self.updates += 1
            self.arm, self.head_version = name, str(self.updates)
            self._changed(trial.arm)
        seconds = trial.seconds + self._clock() - began
        self.trials += 1
        self.seconds += seconds
        if found.kept and found.gain > 0 and (rate := self._pace.view(0).tokens_per_second) > 0:
            faster = rate + found.gain * self._pace.trees_per_second
            self._paid.append(seconds / (1.0 / rate - 1.0 / faster))
        self._sparse = 1 if found.kept else min(2 * self._sparse, SPARSE)
        self._rule.told(name, found.gain if found.kept else 0.0, seconds)
        return self._record(trial.opinion, found, seconds)

    def _changed(self, by: Arm) -> None:
        """The head is another one: what was computed with the former one is, too."""
        if by.needs_passages:
            assert self.passages is not None
            self._drafter.refresh()
            self.lessons.clear()
        for arm in self._arms.values():
            if arm is not by:
                arm.settle(False)

    def _record(
        self, opinion: Opinion, found: Outcome | None = None, seconds: float | None = None
    ) -> dict[str, Any]:
        """What was decided, and what came of it; without an outcome: skipped."""
        record: dict[str, Any] = {
            "arm": opinion.arm or "skip",
            "decision": opinion.reason,
            "expected_gain": opinion.expected_gain,
            "expected_cost": opinion.expected_cost,
            "realised_gain": None,
            "realised_cost": seconds,
            "kept": False,
            "reason": None,
            "gain": None,
            "gain_error": None,
            "lessons": min(self.lessons.count, self.lessons.capacity),
            "head_version": self.head_version,
        }
        if found is not None:
            error = None if np.isinf(found.error) else found.error
            more = found.gain * self._pace.trees_per_second if found.kept else None
            outcome = {"kept": found.kept, "reason": found.reason, "gain": found.gain}
            record |= {**outcome, "gain_error": error, "realised_gain": more}
        return record

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
        logits = feedback.logits[torch.tensor(nodes, device=device) + 1]
        wanted = _chances(logits, logits.gather(1, candidates), moment.heat)
        right = np.full(len(nodes), -1)
        for row in range(len(visited)):
            hits = np.flatnonzero(moment.tokens[depth[row]] == feedback.tokens[row])
            right[row] = hits[0] if len(hits) else -1
        number = np.where(np.arange(len(nodes)) < len(visited), self._trees, -1)
        where = torch.from_numpy(depth).to(device)
        rows = self._drafter.head.draft_rows(candidates)
        return Batch(
            hidden=moment.hidden[where].bfloat16(),
            path=torch.from_numpy(paths).to(device),
            depth=where,
            rows=rows.int(),
            scores=self._unbiased(moment.scores[where], rows),
            rest=torch.from_numpy(moment.rest[depth]).to(device).float(),
            heat=torch.full((len(nodes),), moment.heat, device=device),
            wanted=wanted,
            right=torch.from_numpy(right).to(device),
            tree=torch.from_numpy(number).to(device),
        )

    def _unbiased(self, scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        bias = self._drafter.head.bias
        return scores if bias is None else scores - bias[rows]


class _Trial:
    """A trial that is going on, in pieces between steps or in a thread of its own."""

    def __init__(
        self,
        arm: Arm,
        opinion: Opinion,
        pieces: Iterator[Outcome | None],
        background: bool,
        clock: Clock,
    ) -> None:
        self.arm, self.opinion, self._pieces, self._clock = arm, opinion, pieces, clock
        self.seconds = 0.0
        self._found: Outcome | None = None
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def go_on(self, began: float, deadline: float) -> Outcome | None:
        """Until it is over or it is late; at least one piece. What came of it, if it is over."""
        if self._thread is not None:
            if self._thread.is_alive():
                return None
            return FAILED if self._found is None else self._found
        for found in self._pieces:
            self.seconds += (now := self._clock()) - began
            began = now
            if found is not None or now >= deadline:
                return found
        return FAILED

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        began = self._clock()
        with suppress(Exception):  # then there is no outcome
            self._found = next((found for found in self._pieces if found is not None), None)
        self.seconds = self._clock() - began


def _answer(passages: Passages, feedback: Feedback) -> None:
    """What the target said at the visited nodes, into the request's text."""
    rows = torch.from_numpy(feedback.path + 1).to(feedback.logits.device)
    scores = feedback.logits[rows]
    highest, best = scores.topk(min(LIKELIEST, scores.shape[1]), dim=-1)
    chance = _chances(scores, highest, 1.0)  # heads learn at 1, and draft at any temperature
    passages.answer(feedback.request, best.int().cpu(), chance.cpu())


def _chances(scores: torch.Tensor, some: torch.Tensor, heat: float) -> torch.Tensor:
    """[n, k] softmax of scores [n, V] at a temperature, for some of them [n, k]."""
    top = scores.amax(dim=-1, keepdim=True).float()
    powers = (scores.float() - top).div_(heat).exp_()  # torch's own are many times slower on a CPU
    return (some.float() - top).div_(heat).exp_() / powers.sum(dim=-1, keepdim=True)


def _branch(token: Any, parent: Any, node: int, anchor: int) -> list[int]:
    """Tokens from the anchor to ``node``, both included."""
    found: list[int] = []
    while node != ROOT:
        found.append(int(token[node]))
        node = int(parent[node])
    return [anchor, *reversed(found)]
