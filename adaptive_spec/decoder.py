"""One decoding step, wired: plan, draft, cut, verify, walk, commit, report.

Legend: R requests of the step, N draft nodes of one request, M = sum of (1 + N) rows of the packed
forward. Row 0 of a request's part is its root: the newest token, not in the cache yet. Nothing
changes hands before ``_commit``, so an exception above it leaves every request as it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adaptive_spec import tree as trees
from adaptive_spec.budget_log import BudgetLog, NullLog
from adaptive_spec.config import Config
from adaptive_spec.controllers.base import Controller
from adaptive_spec.deciding import Deciding
from adaptive_spec.drafters.base import CandidateTree, Committed, Drafter
from adaptive_spec.drafting import Drafting
from adaptive_spec.errors import SessionError
from adaptive_spec.online.base import Feedback, Learner, NoUpdate
from adaptive_spec.profilers.base import Acceptance, Latency, NullAcceptance, NullLatency
from adaptive_spec.profilers.clock import Clock, Laps, monotonic
from adaptive_spec.reporting import Report, Reporter
from adaptive_spec.requests import Requests
from adaptive_spec.selfcheck import self_check
from adaptive_spec.session import Rules, Session
from adaptive_spec.target import Target
from adaptive_spec.types import Decision, Features, Offer, Plan
from adaptive_spec.verifying import Verdict, Verification, judge, label, verify

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Draft:
    """A candidate tree in best-first order, and what is offered of it."""

    tree: CandidateTree
    offer: Offer
    fault: str | None


class Decoder:
    """Decodes requests in packed steps.

    Args:
        model: a Hugging Face causal language model in eval mode.
        config: see ``adaptive_spec.config``.
        drafter: who proposes trees.
        controllers: ready-made controllers by policy name, beside those of the registry.
        clock: seconds; tests put a fake one here.
    """

    def __init__(
        self,
        model: Any,
        config: Config,
        drafter: Drafter,
        *,
        controllers: Mapping[str, Controller] | None = None,
        latency: Latency | None = None,
        acceptance: Acceptance | None = None,
        learner: Learner | None = None,
        log: BudgetLog | NullLog | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self.config, self.clock = config, clock
        self.target = Target(model, drafter.taps)
        if config.self_check:
            self_check(self.target)
        self._drafting = Drafting(drafter)
        self.requests = Requests(self.target, self._drafting, config.cache, clock)
        self.cache, self._pool = self.requests.cache, self.requests.pool
        self._latency: Latency = latency or NullLatency()
        self._acceptance: Acceptance = acceptance or NullAcceptance()
        self._learner: Learner = learner or NoUpdate()
        self.deciding = Deciding(self._latency, config.tree.max_nodes, config.tree.max_depth)
        for name, controller in (controllers or {}).items():
            self.deciding.add(name, controller)
        self.deciding.add(config.policy)
        self.log = log or NullLog()
        self.reporter = Reporter(
            self.deciding, self._latency, self._acceptance, self._learner, self.log, [drafter.name]
        )
        self._groups = itertools.count()

    def step(self, sessions: Sequence[Session]) -> list[list[int]]:
        """One packed step; per session the tokens it emitted (at least one, unless it failed)."""
        self._check(sessions)
        laps, group = Laps(self.clock), next(self._groups)
        features = [session.features(len(sessions)) for session in sessions]
        policies = [session.policy for session in sessions]
        plans = self.deciding.plan(policies, features)
        drafts = self._draft(sessions, features, plans, laps)
        decisions = self.deciding.cut(policies, [draft.offer for draft in drafts])
        chosen = [
            trees.select(draft.tree, np.arange(decision.size))
            for draft, decision in zip(drafts, decisions, strict=True)
        ]
        check = verify(self.target, self.cache, sessions, chosen, laps)
        verdicts = [judge(s, check, i, self._elapsed(s)) for i, s in enumerate(sessions)]
        laps.mark("sample")
        news = [self._commit(s, check, i, verdicts[i]) for i, s in enumerate(sessions)]
        faults = self._drafting.commit([session.draft for session in sessions], news)
        retried = set() if check.finite.all() else self._recover(sessions, check, verdicts, laps)
        reports = [
            self._report(
                s, features[i], drafts[i], decisions[i], check, i, verdicts[i], i in retried, faults
            )
            for i, s in enumerate(sessions)
        ]
        self.reporter.step(reports, laps.seconds(), check.high_water, group)
        self._learner.between_steps(NEVER)
        self._end([session for session in sessions if session.finished])
        for session, verdict in zip(sessions, verdicts, strict=True):
            if session.rules.emit is not None:
                session.rules.emit(verdict.tokens, session.finished)
        return [verdict.tokens for verdict in verdicts]

    def _check(self, sessions: Sequence[Session]) -> None:
        """Raise SessionError unless all sessions are ours, open and different."""
        if len({id(session) for session in sessions}) != len(sessions):
            raise SessionError("a session may take part in a step only once")
        for session in sessions:
            if session.decoder is not self:
                raise SessionError(f"session {session.id} belongs to another decoder")
            session.check_open()

    def _elapsed(self, session: Session) -> float:
        return self.clock() - session.started

    def _end(self, sessions: Sequence[Session]) -> None:
        """Requests that finished in this step: stop their clocks and write their records."""
        for session in sessions:
            session.ended = self.clock()
            self.reporter.request(session, session.ended - session.started)
            self.deciding.finish(session.policy, session.id)

    def _draft(
        self,
        sessions: Sequence[Session],
        features: Sequence[Features],
        plans: Sequence[Plan],
        laps: Laps,
    ) -> list[Draft]:
        """Candidate trees, calibrated and put in best-first order."""
        laps.mark("host")
        proposals, faults = self._drafting.propose([s.draft for s in sessions], plans)
        laps.mark("draft")
        spare = max(self._pool.free - len(sessions), 0)
        if sum(len(tree) for tree in proposals) > spare:
            spare //= len(sessions)
        drafts = []
        for tree, fact, fault in zip(proposals, features, faults, strict=True):
            alive = trees.survival(tree, self._acceptance.calibrate(tree, fact.temperature))
            order = trees.best_first(alive)
            alive = alive[order]
            alive.setflags(write=False)
            offer = Offer(features=fact, survival=alive, largest=min(len(tree), spare))
            drafts.append(Draft(trees.select(tree, order), offer, fault))
        return drafts

    def _commit(
        self, session: Session, check: Verification, part: int, verdict: Verdict
    ) -> Committed:
        """Hand the slots of the visited nodes to the request, and the tokens with them."""
        start = int(check.batch.starts[part])
        rows = np.asarray(verdict.nodes, dtype=np.int64) + start + 1
        slots, positions = check.batch.slots[rows], check.batch.positions[rows]
        self._pool.commit(session.owner, slots, positions)
        session.tokens.extend(verdict.tokens)
        session.scores.extend(verdict.scores)
        session.logits.extend(verdict.logits)
        session.finish, session.error = verdict.finish, verdict.error
        return Committed(
            tokens=verdict.tokens,
            rows=rows,
            slots=slots,
            positions=positions,
            taps=check.taps,
            tree=check.trees[part],
            first_row=start,
        )

    def _recover(
        self,
        sessions: Sequence[Session],
        check: Verification,
        verdicts: list[Verdict],
        laps: Laps,
    ) -> set[int]:
        """After non-finite logits: clean the pool, then retry plainly and alone who got nothing.

        A masked NaN in K or V still poisons attention (0 x NaN), so free slots are cleared first,
        and a request whose own state is non-finite ends before its neighbours try again.
        """
        self.cache.zero(s for s in check.batch.slots.tolist() if self._pool.owner[s] < 0)
        self.requests.fail_owners(self.cache.purge(), "non-finite keys or values in its own cache")
        retried = {
            i
            for i, verdict in enumerate(verdicts)
            if verdict.poisoned and not verdict.tokens and not sessions[i].finished
        }
        for i in sorted(retried):
            session = sessions[i]
            session.stats.nonfinite_retries += 1
            again = verify(self.target, self.cache, [session], [CandidateTree.empty()], laps)
            verdicts[i] = judge(session, again, 0, self._elapsed(session))
            laps.mark("sample")
            if verdicts[i].poisoned:
                self.cache.zero(again.batch.slots.tolist())
                self.requests.fail(session, f"non-finite logits at position {len(session.tokens)}")
            else:
                news = self._commit(session, again, 0, verdicts[i])
                self._drafting.commit([session.draft], [news])
        return retried

    def _report(
        self,
        session: Session,
        features: Features,
        draft: Draft,
        decision: Decision,
        check: Verification,
        part: int,
        verdict: Verdict,
        retried: bool,
        faults: Sequence[str],
    ) -> Report:
        """The plain values, and the device views, that the receivers get."""
        tree = CandidateTree.empty() if retried else check.trees[part]
        said = [*faults, *([draft.fault] if draft.fault else [])]
        session.stats.draft_faults += len(said)
        if check.halvings:
            session.stats.memory_retries += check.halvings
            said.append(f"out of memory: budget halved to {len(tree)}")
        if retried:
            said.append("non-finite logits: retried plainly and alone")
        if session.policy in self.deciding.broken:
            session.stats.controller_faults += 1
            said.append(self.deciding.broken[session.policy])
        start = int(check.batch.starts[part])
        rows = slice(start, start + 1 + len(tree))
        survival = draft.offer.survival[: len(tree)]
        top = check.top[rows] if session.rules.sampler.is_argmax else None
        labels = label(tree, verdict, top, survival)
        feedback = Feedback(
            request=session.id,
            tree=tree,
            path=np.asarray(verdict.nodes, dtype=np.int64),
            tokens=verdict.tokens,
            labels=labels,
            temperature=features.temperature,
            logits=check.logits[rows],
            taps={layer: hidden[rows] for layer, hidden in check.taps.items()},
        )
        return Report(
            session=session,
            features=features,
            policy=session.policy,
            decision=replace(decision, size=len(tree)),
            offered=len(draft.tree),
            tree=tree,
            survival=survival,
            verdict=verdict,
            labels=labels,
            feedback=None if retried else feedback,
            faults=said,
        )

    # -- what sessions ask of their decoder ---------------------------------------------------

    def open_session(self, ids: Sequence[int], rules: Rules, policy: str | None = None) -> Session:
        """Admit a request and prefill its prompt; see ``Requests.open``."""
        name = policy or self.config.policy
        self.deciding.add(name)
        return self.requests.open(self, ids, rules, name)

    def check_policy(self, name: str) -> None:
        """Raise unless ``name`` is a policy."""
        self.deciding.add(name)

    def close_session(self, session: Session) -> None:
        """Give a session's slots back; an unfinished request is logged as ``closed``."""
        unfinished = not session.finished
        self.requests.close(session)
        if unfinished:
            self._end([session])

    def check_integrity(self) -> None:
        """Raise CacheError unless every slot is owned once or free and the counts add up."""
        self.requests.check_integrity()
