"""One decoding step, wired: plan, draft, cut, verify, walk, commit, report.

Legend: R requests of the step, N draft nodes of one request, M = sum of (1 + N) rows of the packed
forward. Row 0 of a request's share is its root: the newest token, not in the cache yet. Nothing
changes hands before ``_commit``, so an exception above it leaves every request as it was.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Self

import numpy as np
import torch

from adaptive_spec.budget_log import BudgetLog, NullLog
from adaptive_spec.config import Config
from adaptive_spec.controllers.base import Controller
from adaptive_spec.deciding import Deciding
from adaptive_spec.drafters.base import Committed, Drafter
from adaptive_spec.drafting import Panel
from adaptive_spec.errors import SessionError
from adaptive_spec.filling import Filling, default_sizes
from adaptive_spec.isolation import Faults, WalledLatency
from adaptive_spec.online.base import Learner, NoUpdate
from adaptive_spec.profilers.base import Acceptance, Latency, NullAcceptance, NullLatency
from adaptive_spec.profilers.clock import Clock, Laps, device_timer, monotonic
from adaptive_spec.recovering import recover
from adaptive_spec.reporting import Reporter
from adaptive_spec.requests import Requests
from adaptive_spec.selfcheck import self_check, warm_up
from adaptive_spec.session import Rules, Session, stream
from adaptive_spec.share import Share
from adaptive_spec.stopping import Finish
from adaptive_spec.target import Target
from adaptive_spec.types import StepSeconds
from adaptive_spec.valuing import Valuing
from adaptive_spec.verifying import Verification, judge, verify


class Decoder:
    """Decodes requests in packed steps.

    Args:
        target: the model behind packed forwards, tapped for what the drafters need.
        config: see ``adaptive_spec.config``.
        drafters: who proposes trees; those of several are merged into one.
        controllers: ready-made controllers by policy name, beside those of the registry.
        latency, acceptance, learner, log: the receivers of what comes of a step; null objects
            stand in for those that are not given.
        clock: seconds; tests put a fake one here.
    """

    def __init__(
        self,
        target: Target,
        config: Config,
        drafters: Sequence[Drafter],
        *,
        controllers: Mapping[str, Controller] | None = None,
        latency: Latency | None = None,
        acceptance: Acceptance | None = None,
        learner: Learner | None = None,
        log: BudgetLog | NullLog | None = None,
        clock: Clock = monotonic,
        checked: bool = False,
    ) -> None:
        self.config, self.clock, self.target = config, clock, target
        self.drafting = Panel(drafters, clock)
        self.faults = Faults()
        sizes = config.tree.sizes
        self._filling = Filling(default_sizes(target.architecture) if sizes is None else sizes)
        if config.self_check:
            if not checked:
                self_check(target)
            warm_up(target, self._filling.usual)
        latency = NullLatency() if latency is None else latency
        latency = WalledLatency(latency, self.faults, self._filling)
        acceptance = NullAcceptance() if acceptance is None else acceptance
        panel, most = self.drafting, config.tree.max_nodes
        coupled = panel.reads_noise
        self.valuing = Valuing(acceptance, coupled, most, self.faults)
        self.deciding = Deciding(latency, config.tree.max_nodes, config.tree.max_depth)
        self.requests = Requests(target, self.drafting, config.cache, clock, self.deciding.forget)
        self.cache, self._pool = self.requests.cache, self.requests.pool
        for name, controller in (controllers or {}).items():
            self.deciding.add(name, controller)
        self.deciding.add(config.policy)
        self.log = NullLog() if log is None else log
        self.learner: Learner = NoUpdate() if learner is None else learner
        self.reporter = Reporter(
            self.deciding,
            latency,
            self.valuing,
            self.learner,
            self.log,
            self.drafting.names,
            any(coupled),
            self.faults,
        )
        self._timer = device_timer(target.device, clock)
        self._groups = itertools.count()
        self._update_seconds = self._report_seconds = 0.0
        self._lock = threading.RLock()

    def step(self, sessions: Sequence[Session]) -> list[list[int]]:
        """One packed step; per session the tokens it emitted (at least one, unless it failed).

        Threads may share a decoder: steps follow one another.
        """
        with self._lock:
            self._check(sessions)
            return self._step(sessions) if sessions else []

    def _step(self, sessions: Sequence[Session]) -> list[list[int]]:
        laps, group, high_water = Laps(self.clock), next(self._groups), self._pool.high_water
        known = len(sessions), high_water, getattr(self.learner, "generation", 0)
        shares = [Share(session, session.features(*known)) for session in sessions]
        room = max(self._pool.free - len(shares), 0)
        self.deciding.plan(shares)
        drafts = self._draft(shares, room, laps)
        self.deciding.cut(shares, room)
        check = verify(self.target, self.cache, shares, laps, self._timer, self._filling)
        for share in shares:
            judge(share, check, self.clock() - share.session.started)
        laps.mark("sample")
        self._commit(shares, check)
        if not check.finite.all():
            again = partial(self._again, laps=laps)
            self._end(recover(shares, check, self.requests, again, self._commit))
        self._report(shares, check, self._seconds(laps, drafts), group)
        self._update_seconds = self.reporter.between_steps(
            self.clock() + self.config.online.deadline, self.clock
        )
        self._end([session for session in sessions if session.finished])
        stream(sessions)
        return [share.verdict.tokens for share in shares]

    def _check(self, sessions: Sequence[Session]) -> None:
        """Raise SessionError unless all sessions are ours, open and different."""
        if len({id(session) for session in sessions}) != len(sessions):
            raise SessionError("a session may take part in a step only once")
        for session in sessions:
            if session.decoder is not self:
                raise SessionError(f"session {session.id} belongs to another decoder")
            session.check_open()

    def _draft(
        self, shares: Sequence[Share], room: int, laps: Laps
    ) -> tuple[tuple[str, float], ...]:
        """Candidate trees, calibrated, merged, best nodes first; seconds of every drafter."""
        laps.mark("host")
        drafts = self.drafting.propose(shares)
        laps.mark("draft")
        for share in shares:
            self.valuing.offer(share, room)
        return drafts

    def _commit(self, shares: Sequence[Share], check: Verification) -> None:
        """Hand the slots of the visited nodes to their requests, and the tokens with them."""
        news = []
        for share in shares:
            session, verdict = share.session, share.verdict
            rows = np.asarray(verdict.nodes, dtype=np.int64) + share.first_row + 1
            slots, positions = check.batch.slots[rows], check.batch.positions[rows]
            self._pool.commit(session.owner, slots, positions)
            session.tokens.extend(verdict.tokens)
            session.scores.extend(verdict.scores)
            session.logits.extend(verdict.logits)
            session.finish, session.error = verdict.finish, verdict.error
            news.append(
                Committed(
                    tokens=tuple(verdict.tokens),
                    rows=rows,
                    slots=slots,
                    positions=positions,
                    taps=check.taps,
                    tree=share.tree,
                    first_row=share.first_row,
                )
            )
        faults = self.drafting.commit([share.session.draft for share in shares], news)
        for share, words in zip(shares, faults, strict=True):
            for fault in words:
                share.blame(fault)

    def _again(self, share: Share, laps: Laps) -> Verification:
        """A forward and a verdict for one request alone."""
        check = verify(self.target, self.cache, [share], laps, self._timer, self._filling)
        judge(share, check, self.clock() - share.session.started)
        laps.mark("sample")
        return check

    def _seconds(self, laps: Laps, drafts: tuple[tuple[str, float], ...]) -> StepSeconds:
        """The step's seconds; reporting the step before counts as this one's host time."""
        parts = laps.seconds()
        return replace(
            parts,
            host=parts.host + self._report_seconds,
            update=self._update_seconds,
            draft_model=sum(s for name, s in drafts if name in self.drafting.runs_model),
            drafts=drafts,
        )

    def _report(
        self, shares: Sequence[Share], check: Verification, seconds: StepSeconds, group: int
    ) -> None:
        began = self.clock()
        self.reporter.step(shares, check, seconds, group)
        self._report_seconds = max(self.clock() - began, 0.0)

    def _end(self, sessions: Sequence[Session]) -> None:
        """Turns that are over: stop their clocks and write their records, once."""
        for session in sessions:
            if session.recorded:
                continue
            session.recorded, session.ended = True, self.clock()
            self.reporter.request(session, session.ended - session.started)
            self.deciding.finish(session.policy, session.id)

    # -- what sessions ask of their decoder ---------------------------------------------------

    def open_session(
        self,
        ids: Sequence[int],
        rules: Rules,
        policy: str | None = None,
        request_id: str | None = None,
    ) -> Session:
        """Admit a request and prefill its prompt; see ``Requests.open``."""
        policy = self.config.policy if policy is None else policy
        with self._lock:
            self.deciding.add(policy)
            session = self.requests.open(self, ids, rules, policy, request_id)
            if session.finished:
                self._end([session])
        session.stream()
        return session

    def extend_session(
        self, session: Session, ids: Sequence[int], max_new_tokens: int | None
    ) -> None:
        """A further turn; a turn that was still running ends as ``closed``."""
        with self._lock:
            self.requests.check_turn(session, ids, max_new_tokens)
            session.finish = session.finish or Finish("closed", "extended by the caller")
            self._end([session])
            session.stream()
            try:
                self.requests.extend(session, ids, max_new_tokens)
            finally:
                if session.finished:
                    self._end([session])
        if session.rules.streamer is not None:
            session.rules.streamer.put(torch.tensor([ids]))
        session.stream()

    def change_policy(self, session: Session, name: str) -> None:
        """Another policy from the next step on; raises unless ``name`` is one."""
        with self._lock:
            self.deciding.add(name)
            self.deciding.finish(session.policy, session.id)
            session.policy = name

    def close_session(self, session: Session) -> None:
        """Give a session's slots back; an unfinished request is logged as ``closed``."""
        with self._lock:
            self.requests.close(session)
            self._end([session])
        session.stream()

    def check_integrity(self) -> None:
        """Raise CacheError unless every slot is owned once or free and the counts add up."""
        with self._lock:
            self.requests.check_integrity()

    def close(self) -> None:
        """Close all sessions and the log, and take the hooks off the model."""
        for session in self.requests.open_sessions():
            self.close_session(session)
        self.reporter.close()
        self.target.close()
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
