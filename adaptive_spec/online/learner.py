"""The learner: lessons from every verified tree, and trials of updates between steps.

It only ever changes the draft head, and what is remembered of ended requests, so it cannot change
the text. What a trial costs is measured and charged to the step; a trial that is no better, and one
that fails anywhere, leaves no trace in the weights.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from adaptive_spec.drafters.causal_parallel import CausalParallelDrafter
from adaptive_spec.drafters.recall import RecallDrafter
from adaptive_spec.errors import UnsupportedError
from adaptive_spec.online.alarm import Stretches
from adaptive_spec.online.arms import CalibratorArm, CorrectorArm
from adaptive_spec.online.base import Feedback
from adaptive_spec.online.full import FullArm
from adaptive_spec.online.going import Trial
from adaptive_spec.online.lessons import Lessons
from adaptive_spec.online.noting import answer, lessons_of, overconfidence
from adaptive_spec.online.pace import Pace
from adaptive_spec.online.passages import Passages
from adaptive_spec.online.recalling import RecallArm
from adaptive_spec.online.records import record, review
from adaptive_spec.online.review import Review, Verdict
from adaptive_spec.online.rules import RECALL, Opinion, UpdateRule
from adaptive_spec.online.trials import Arm, Outcome, failure
from adaptive_spec.profilers.clock import Clock, monotonic

FAILURES = 3
"""Trials in a row that failed, after which nothing is tried any more."""
SPARSE = 16
"""Where learning brings nothing, one tree in so many gives lessons, and one request in so many is
watched for its text: watching costs time as well."""
ASKED = 4
"""One tree in so many is asked whether the head knew how sure to be."""
NEW = 512
"""Positions of texts that are of the new time when a change is seen, were all of them watched: it
takes some to be seen."""
UNREADY = 32
"""Trees for which an arm that has too little to learn from is not asked about again."""
RECENT = 1024
"""Requests that are remembered."""
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
        recall: what remembers answers, where there is one; it then waits for what is decided.
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
        recall: RecallDrafter | None = None,
        clock: Clock = monotonic,
        makers: Mapping[str, Callable[..., Arm]] = MAKERS,
    ) -> None:
        self._drafter, self._rule, self._clock = drafter, rule, clock
        self._recall = recall
        self._background = background
        self.lessons, passages = Lessons(lessons), Passages(lessons)
        self._arms: dict[str, Arm] = {}
        why = "it asks for none"
        for name in rule.arms:
            try:
                if name == RECALL:
                    self._arms[name] = _recalling(recall)
                else:
                    self._arms[name] = makers[name](drafter, self.lessons, passages)
            except UnsupportedError as error:
                why = str(error)
            if self._arms and not getattr(rule, "several", True):
                break
        if not self._arms:
            raise UnsupportedError(why)
        needs = {arm.needs_passages for arm in self._arms.values() if _moves_head(arm)}
        drafter.wants_moments = False in needs or (True in needs and getattr(rule, "several", True))
        drafter.passages = self.passages = passages if True in needs else None
        self.updates = self.trials = self._trees = self._failures = self._version = 0
        self.seconds = 0.0
        """That all trials took."""
        self._paid: deque[float] = deque(
            maxlen=1024
        )  # tokens after which an update paid for itself
        self._sparse, self._luck = getattr(rule, "sparse", 1), random.Random(0)
        self._unready: dict[str, int] = {}  # arm -> trees until which it has too little
        self._requests: dict[str, bool] = {}  # the newest ones, and whether their text is watched
        self._pace, self._review, self._stretches = Pace(), Review(), Stretches()
        self._asked = 0  # trees there were when the rule was asked last
        self._trial: Trial | None = None
        self.arm: str | None = None
        self.head_version: str | None = "0"
        self.generation = 0

    @property
    def off(self) -> bool:
        """Nothing is tried or watched any more: too many trials failed."""
        return self._failures >= FAILURES

    @torch.no_grad()
    def observe(self, feedback: Sequence[Feedback]) -> None:
        """Keep the lessons of a step's trees; a request without a draft gives none."""
        self._pace.step(self._clock(), feedback)
        sure: dict[str, float] = {}
        for one in feedback:
            self._trees += 1
            if self.off:
                continue
            self._review.tree(len(one.path) - 1)
            if self.passages is not None and self._watched(one.request):
                answer(self.passages, one)
            moment = self._drafter.moments.pop(one.request, None)
            if moment is None:
                continue
            if self._luck.random() * ASKED < 1.0:
                sure[one.request] = overconfidence(one, moment)
            if self._one_in_many():
                self.lessons.add(lessons_of(self._drafter.head, one, moment, self._trees))
        self._stretches.observe(sure, {one.request for one in feedback})

    def _one_in_many(self) -> bool:
        return self._luck.random() * self._sparse < 1.0

    def _watched(self, request: str) -> bool:
        """Whether a request's text is learned from: decided once."""
        if request not in self._requests:
            self._requests[request] = self._one_in_many()
            if len(self._requests) > RECENT:
                del self._requests[next(iter(self._requests))]
        return self._requests[request]

    def between_steps(self, deadline: float) -> Mapping[str, Any] | None:
        """Begin, go on with or end a trial, as the rule says and time allows; the record of what
        was decided, once it is."""
        began, self.arm = self._clock(), None
        if self._trial is None:
            if self.off or began >= deadline or self._asked == self._trees:
                return None
            self._asked = self._trees
            if (verdict := self._review.verdict()) is not None:
                return self._reviewed(verdict)
            view = self._pace.view(self._trees, self._stretches.ended)
            self._stretches.ended.clear()
            arms = [name for name in self._arms if self._unready.get(name, 0) <= self._trees]
            opinion = self._rule.ask(view, arms) if arms else None
            if opinion is None:
                return None
            if opinion.anew:
                self._begin_anew()
            if opinion.arm is None:
                self._sparse = self._sparse if opinion.anew else min(2 * self._sparse, SPARSE)
                return self._record(opinion)
            arm = self._arms[opinion.arm]
            try:
                pieces = arm.pieces()
            except Exception as error:
                pieces = iter([failure(error)])
            if pieces is None:
                self._unready[opinion.arm] = self._trees + UNREADY
                words = f"{opinion.reason}; there is too little to learn from yet"
                return self._record(replace(opinion, arm=None, reason=words))
            self._trial = Trial(arm, opinion, pieces, self._background, self._clock)
        outcome = self._trial.go_on(began, deadline)
        return None if outcome is None else self._settle(self._trial, outcome)

    def close(self) -> None:
        """End a trial that is going on, and what is kept for the learner; what it found is lost."""
        if self._trial is not None:
            self._trial.stop()
            self._trial = None
        self._drafter.wants_moments, self._drafter.passages = False, None
        self._drafter.moments.clear()
        if self._recall is not None:
            self._recall.taught = False

    def _give_up(self) -> None:
        """Too many trials failed: updates that nobody will look at any more are undone, and all
        that was kept for trials goes."""
        if (before := self._review.before) is not None:
            self._go_back(before)
        self._review.end()
        self.close()
        self.lessons.clear()
        self._arms.clear()
        self.passages = None

    def break_even(self) -> float | None:
        """Tokens after which a kept update of median worth has paid for itself; None without."""
        return float(np.median(self._paid)) if self._paid else None

    def _settle(self, trial: Trial, found: Outcome) -> Mapping[str, Any]:
        """Between two steps: take over what a trial found, or forget it."""
        began, name = self._clock(), trial.arm.name
        self._trial, found = None, self._taken_over(trial.arm, found)
        self._failures = self._failures + 1 if found.failed else 0
        seconds = trial.seconds + self._clock() - began
        self.trials += 1
        self.seconds += seconds
        worth = found.kept and found.gain > 0 and _moves_head(trial.arm)
        if worth and (rate := self._pace.view(0).tokens_per_second) > 0:
            faster = rate + found.gain * self._pace.trees_per_second
            self._paid.append(seconds / (1.0 / rate - 1.0 / faster))
        if _moves_head(trial.arm):
            self._sparse = 1 if found.kept else min(2 * self._sparse, SPARSE)
        self._rule.told(name, found.gain if found.kept else 0.0, found.error, seconds)
        if self.off:
            found = replace(found, reason=f"{found.reason}; learning is off")
            self._give_up()
        return self._record(trial.opinion, found, seconds)

    def _taken_over(self, arm: Arm, found: Outcome) -> Outcome:
        """Make the head what a trial found, if it is to be kept; all as it was if that fails."""
        if not found.kept:
            arm.settle(False)
            return found
        if not _moves_head(arm):
            return self._remembered(arm, found)
        before = {name: value.clone() for name, value in self._drafter.head.state_dict().items()}
        try:
            arm.settle(True)
            self._changed(arm)
        except Exception as error:  # out of memory, for one
            self._go_back(before)
            return failure(error)
        self.updates += 1
        self.arm = arm.name
        self._review.begin(arm.name, before)
        return found

    def _remembered(self, arm: Arm, found: Outcome) -> Outcome:
        """As ``_taken_over``, of what is no part of the head: there is nothing to compute anew, and
        nothing to go back to, since a drafter that is worth little is priced as such."""
        try:
            arm.settle(True)
        except Exception as error:
            return failure(error)
        self.updates += 1
        self.arm = arm.name
        return found

    def _changed(self, by: Arm | None) -> None:
        """The head is another one: what was computed with the former one is, too."""
        self._version += 1
        self.head_version = str(self._version)
        if by is None or by.needs_passages:
            self._drafter.refresh()
            self.generation += 1
            self.lessons.clear()
        for arm in self._arms.values():
            if arm is not by:
                arm.settle(False)

    def _go_back(self, before: Mapping[str, torch.Tensor]) -> None:
        """The weights of before an update, and what is computed with them."""
        with torch.no_grad():
            for name, value in self._drafter.head.state_dict().items():
                value.copy_(before[name])
        for arm in self._arms.values():
            arm.settle(False)
        with suppress(Exception):  # drafts may be worse until the requests have ended
            self._changed(None)

    def _begin_anew(self) -> None:
        """All but the newest of what is learned from is of another time: forget it, and watch every
        tree again."""
        sparse, self._sparse = self._sparse, 1
        self._requests.clear()
        self.lessons.clear()
        if self.passages is not None:
            self.passages.forget(but=NEW // sparse)

    def _reviewed(self, verdict: Verdict) -> dict[str, Any]:
        """What an update did to decoding; undone if that was bad."""
        if verdict.before is not None:
            self._go_back(verdict.before)
        self._rule.reviewed(verdict.before is None)
        return review(self._record, verdict, self._pace.trees_per_second)

    def _record(
        self, opinion: Opinion, found: Outcome | None = None, seconds: float | None = None
    ) -> dict[str, Any]:
        return record(
            opinion,
            found,
            seconds,
            lessons=min(self.lessons.count, self.lessons.capacity),
            head_version=self.head_version,
        )


def _moves_head(arm: Arm) -> bool:
    """Arms of others may not say: then they do."""
    return getattr(arm, "moves_head", True)


def _recalling(drafter: RecallDrafter | None) -> Arm:
    if drafter is None:
        raise UnsupportedError("among the drafters is no recall, which could remember")
    return RecallArm(drafter)
