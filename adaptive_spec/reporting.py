"""What came of a step, handed to everyone who learns from it; each receiver isolated.

Plain values go to the controller, the acceptance and latency models and the budget log; device
tensors go to the online learner. A receiver that raises is skipped, counted and named once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from adaptive_spec.budget_log import BudgetLog, NullLog, RequestRecord, StepRecord
from adaptive_spec.deciding import Deciding
from adaptive_spec.isolation import Faults
from adaptive_spec.online.base import Feedback, Learner
from adaptive_spec.profilers.base import Latency
from adaptive_spec.profilers.clock import Clock
from adaptive_spec.session import Session
from adaptive_spec.share import Share
from adaptive_spec.tree import depths
from adaptive_spec.types import Labels, Outcome, StepSeconds, Work
from adaptive_spec.valuing import Valuing
from adaptive_spec.verifying import Verification


class Reporter:
    """Knows every receiver; the decoder knows only the reporter."""

    def __init__(
        self,
        deciding: Deciding,
        latency: Latency,
        valuing: Valuing,
        learner: Learner,
        log: BudgetLog | NullLog,
        drafters: Sequence[str],
        coupled: bool,
        faults: Faults,
    ) -> None:
        self._deciding, self._latency, self._valuing = deciding, latency, valuing
        self._learner, self.log, self._drafters = learner, log, list(drafters)
        self._noise: Literal["keyed", "coupled"] = "coupled" if coupled else "keyed"
        self._faults = faults

    def step(
        self, shares: Sequence[Share], check: Verification, seconds: StepSeconds, group: int
    ) -> None:
        """Tell everyone about one packed step."""
        outcomes = [_outcome(share, seconds) for share in shares]
        for share, outcome in zip(shares, outcomes, strict=True):
            share.session.stats.add(len(share.tree), outcome.accepted, outcome.emitted, seconds)
        work = Work(
            nodes=np.array([sum(len(share.tree) for share in shares)]),
            requests=len(shares),
            context=check.high_water,
            drafters=tuple(name for name, _ in seconds.drafts),
        )
        if not any(share.retried for share in shares):  # else the seconds are not those of the size
            self._latency.observe(work, seconds)
        feedback: list[Feedback] = []
        for share in shares:
            if share.verdict.poisoned or share.verdict.error is not None or share.stale:
                continue
            if (labels := self._valuing.observe(share, check)) is not None:
                self._faults.tell("online", _collect, feedback, share, check, labels)
        self._faults.tell("online", self._learner.observe, feedback)
        self._deciding.observe([share.session.policy for share in shares], outcomes)
        for share, outcome in zip(shares, outcomes, strict=True):
            self._faults.tell("log", self._log_step, share, outcome, check.high_water, group)

    def between_steps(self, most: float, clock: Clock) -> float:
        """Let the learner update for ``most`` seconds, outside the timed step; those it took."""
        began = clock()
        try:
            record = self._learner.between_steps(began + most)
        except Exception as error:
            self._faults.skip("online", error)
            record = None
        if record is not None:
            self._faults.tell("log", self.log.update, record)
        return clock() - began

    def close(self) -> None:
        """The learner ends what it is about."""
        if (close := getattr(self._learner, "close", None)) is not None:  # older ones have none
            self._faults.tell("online", close)

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
        self._faults.tell("log", self.log.request, record)

    def _log_step(self, share: Share, outcome: Outcome, high_water: int, group: int) -> None:
        if isinstance(self.log, NullLog):
            return
        self.log.step(
            StepRecord(
                outcome=outcome,
                step_group=group,
                pool_slots=high_water,
                policy=share.session.policy,
                drafters=self._drafters,
                tree=share.tree,
                depth=depths(share.tree.parent),
                survival=share.offer.survival[: len(share.tree)],
                accepted=share.verdict.accepted,
                emitted_tokens=share.verdict.tokens,
                multipliers=self._latency.multipliers(),
                noise=self._noise if share.features.temperature > 0 else None,
                head_version=self._learner.head_version,
                update_arm=self._learner.arm,
                faults=share.faults,
            )
        )


def _outcome(share: Share, seconds: StepSeconds) -> Outcome:
    return Outcome(
        features=share.features,
        decision=share.decision,
        offered=len(share.offer.survival),
        accepted=len(share.verdict.accepted),
        emitted=len(share.verdict.tokens),
        seconds=seconds,
        finished=share.session.finished,
    )


def _collect(into: list[Feedback], share: Share, check: Verification, labels: Labels) -> None:
    rows = slice(share.first_row, share.first_row + 1 + len(share.tree))
    into.append(
        Feedback(
            request=share.session.id,
            tree=share.tree,
            path=np.asarray(share.verdict.nodes, dtype=np.int64),
            tokens=share.verdict.tokens,
            labels=labels,
            temperature=share.features.temperature,
            logits=check.logits[rows],
            taps={layer: hidden[rows] for layer, hidden in check.taps.items()},
        )
    )
