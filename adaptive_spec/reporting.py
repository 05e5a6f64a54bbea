"""What came of a step, handed to everyone who learns from it; each receiver isolated.

Plain values go to the controller, the acceptance and latency models and the budget log; device
tensors go to the online learner. A receiver that raises is skipped, counted and named once.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adaptive_spec.budget_log import BudgetLog, NullLog, RequestRecord, StepRecord
from adaptive_spec.deciding import Deciding
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.online.base import Feedback, Learner
from adaptive_spec.profilers.base import Acceptance, Latency
from adaptive_spec.session import Session
from adaptive_spec.tree import depths
from adaptive_spec.types import Decision, Features, Floats, Labels, Outcome, StepSeconds, Work
from adaptive_spec.verifying import Verdict


@dataclass(frozen=True, slots=True)
class Report:
    """One request's share of a step."""

    session: Session
    features: Features
    policy: str
    decision: Decision
    offered: int
    tree: CandidateTree
    survival: Floats
    verdict: Verdict
    labels: Labels
    feedback: Feedback | None
    faults: list[str]


class Reporter:
    """Knows every receiver; the decoder knows only the reporter."""

    def __init__(
        self,
        deciding: Deciding,
        latency: Latency,
        acceptance: Acceptance,
        learner: Learner,
        log: BudgetLog | NullLog,
        drafters: Sequence[str],
    ) -> None:
        self._deciding, self._latency, self._acceptance = deciding, latency, acceptance
        self._learner, self.log, self._drafters = learner, log, list(drafters)
        self.faults: Counter[str] = Counter()
        """Exceptions swallowed, per receiver."""

    def step(
        self, reports: Sequence[Report], seconds: StepSeconds, high_water: int, group: int
    ) -> None:
        """Tell everyone about one packed step."""
        outcomes = [_outcome(report, seconds) for report in reports]
        for report, outcome in zip(reports, outcomes, strict=True):
            stats = report.session.stats
            stats.add(len(report.tree), outcome.accepted, outcome.emitted, seconds)
        work = Work(
            nodes=np.array([sum(len(report.tree) for report in reports)]),
            requests=len(reports),
            context=high_water,
            drafters=tuple(self._drafters),
        )
        self._tell("latency", self._latency.observe, work, seconds)
        learnable = [r for r in reports if not r.verdict.poisoned and r.verdict.error is None]
        for report in learnable:
            heat = report.features.temperature
            self._tell("acceptance", self._acceptance.observe, report.tree, report.labels, heat)
        feedback = [r.feedback for r in learnable if r.feedback is not None]
        self._tell("online", self._learner.observe, feedback)
        self._deciding.observe([report.policy for report in reports], outcomes)
        for report, outcome in zip(reports, outcomes, strict=True):
            self._tell("log", self._log_step, report, outcome, high_water, group)

    def request(self, session: Session, seconds: float) -> None:
        """Tell the log about a request that ended."""
        assert session.finish is not None
        record = RequestRecord(
            request=session.id,
            seed=session.rules.seed,
            temperature=session.rules.sampler.temperature,
            prompt_tokens=session.prompt_length,
            new_tokens=len(session.tokens) - session.prompt_length,
            policy=session.policy,
            drafters=self._drafters,
            finish_reason=session.finish.reason,
            finish_detail=session.finish.detail,
            seconds=seconds,
            stats=session.stats,
        )
        self._tell("log", self.log.request, record)

    def _log_step(self, report: Report, outcome: Outcome, high_water: int, group: int) -> None:
        if isinstance(self.log, NullLog):
            return
        self.log.step(
            StepRecord(
                outcome=outcome,
                step_group=group,
                pool_slots=high_water,
                policy=report.policy,
                drafters=self._drafters,
                tree=report.tree,
                depth=depths(report.tree.parent),
                survival=report.survival,
                accepted=report.verdict.accepted,
                emitted_tokens=report.verdict.tokens,
                multipliers=self._latency.multipliers(),
                noise=None if report.features.temperature == 0 else "keyed",
                head_version=self._learner.head_version,
                update_arm=self._learner.arm,
                faults=report.faults,
            )
        )

    def _tell(self, receiver: str, call: Callable[..., None], *facts: Any) -> None:
        try:
            call(*facts)
        except Exception as error:
            self.faults[receiver] += 1
            why = f"{receiver} failed and is skipped: {type(error).__name__}: {error}"
        else:
            return
        if self.faults[receiver] == 1:
            warnings.warn(why, RuntimeWarning, stacklevel=2)


def _outcome(report: Report, seconds: StepSeconds) -> Outcome:
    return Outcome(
        features=report.features,
        decision=report.decision,
        offered=report.offered,
        accepted=len(report.verdict.accepted),
        emitted=len(report.verdict.tokens),
        seconds=seconds,
        finished=report.verdict.finish is not None,
    )
