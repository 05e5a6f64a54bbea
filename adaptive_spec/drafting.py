"""Drafters behind a wall: whatever they do, a request gets valid trees or none.

Faults (exceptions, malformed trees) are counted and reported in words; the request decodes plainly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from adaptive_spec import tree
from adaptive_spec.drafters.base import (
    CandidateTree,
    Committed,
    Drafter,
    DraftRequest,
    ExtendingDrafter,
)
from adaptive_spec.errors import TreeError
from adaptive_spec.profilers.clock import Clock
from adaptive_spec.share import Share
from adaptive_spec.types import Plan


class Panel:
    """All drafters of a decoder, asked one after the other.

    Their trees are kept apart, because every drafter's edges are calibrated by themselves.
    """

    def __init__(self, drafters: Sequence[Drafter], clock: Clock) -> None:
        self._walls = [Drafting(drafter, index) for index, drafter in enumerate(drafters)]
        self._clock = clock
        self.drafters = tuple(drafters)
        self.names = tuple(drafter.name for drafter in drafters)
        self.reads_noise = tuple(drafter.reads_noise for drafter in drafters)
        self.runs_model = tuple(drafter.name for drafter in drafters if drafter.has_model)
        """Names of those whose seconds count as a forward."""

    def start(self, request: DraftRequest) -> int:
        """Introduce a request; returns how many drafters failed."""
        return sum(wall.start(request) is not None for wall in self._walls)

    def propose(self, shares: Sequence[Share]) -> tuple[tuple[str, float], ...]:
        """Fill ``proposals``; returns the seconds of every drafter that was asked."""
        seconds = []
        for wall in self._walls:
            began = self._clock()
            if wall.propose(shares):
                seconds.append((wall.drafter.name, self._clock() - began))
        return tuple(seconds)

    def commit(
        self, requests: Sequence[DraftRequest], news: Sequence[Committed]
    ) -> list[list[str]]:
        """Tell every drafter what was verified; per request the faults in words."""
        answers: list[list[str | None]] = []
        try:
            for wall in self._walls:
                answers.append(wall.commit(requests, news))
        except BaseException as error:  # an interrupt: those not told yet have lost the thread
            for wall in self._walls[len(answers) :]:
                wall.give_up(requests, error)
            raise
        return [[f for f in faults if f is not None] for faults in zip(*answers, strict=True)]

    def finish(self, request: DraftRequest) -> None:
        """Forget a request, whatever state it is in."""
        for wall in self._walls:
            wall.finish(request)


class Drafting:
    """Calls one drafter for many requests and checks everything that comes back.

    Args:
        index: the drafter's place in the panel, which its nodes are marked with.
    """

    def __init__(self, drafter: Drafter, index: int = 0) -> None:
        self.drafter, self._index = drafter, index
        self._extends = drafter if isinstance(drafter, ExtendingDrafter) else None
        self._off: dict[str, str] = {}
        """Requests whose drafter state is unknown because a life-cycle call raised."""

    def start(self, request: DraftRequest) -> str | None:
        """Introduce a request; a fault in words, or None."""
        try:
            self.drafter.start(request)
        except Exception as error:
            return self._switch_off(request, "start", error)
        return None

    def propose(self, shares: Sequence[Share]) -> bool:
        """Put checked trees into ``proposals``, none where nothing valid came back.

        Returns:
            Whether the drafter was asked at all.
        """
        asked = []
        for share in shares:
            wanted = share.plan.drafters is None or self.drafter.name in share.plan.drafters
            wanted = wanted and (share.plan.models or not self.drafter.has_model)
            if (off := self._off.get(share.session.draft.id)) is not None:
                share.faults.append(off)
            elif wanted and share.plan.nodes > 0 and share.plan.depth > 0:
                asked.append(share)
        if not asked:
            return False
        requests, plans = [s.session.draft for s in asked], [s.plan for s in asked]
        try:
            answers = self.drafter.propose(requests, plans)
            if len(answers) != len(asked):
                raise TreeError(f"{len(answers)} trees for {len(asked)} requests")
        except Exception as error:
            for share in asked:
                share.blame(_words("propose", error))
            return True
        for share, answer in zip(asked, answers, strict=True):
            self._take(share, answer, "propose")
        for call in range(1, max(plan.calls for plan in plans) if self._extends else 1):
            self._extend([s for s in asked if s.plan.calls > call and self._index in s.proposals])
        return True

    def _extend(self, shares: Sequence[Share]) -> None:
        """A further drafter call; the trees stay as they are where it fails."""
        if not shares or self._extends is None:
            return
        requests = [share.session.draft for share in shares]
        grown = [share.proposals[self._index] for share in shares]
        try:
            answers = self._extends.extend(requests, grown, [share.plan for share in shares])
            for share, answer in zip(shares, answers, strict=True):
                self._take(share, answer, "extend")
        except Exception as error:
            for share in shares:
                share.blame(_words("extend", error))

    def _take(self, share: Share, answer: object, call: str) -> None:
        try:
            found = self._checked(answer, share.session.draft, share.plan)
            if len(found):
                mark = np.full(len(found), self._index)
                share.proposals[self._index] = replace(found, drafter=mark)
        except Exception as error:
            share.blame(_words(call, error))

    def _checked(self, answer: object, request: DraftRequest, plan: Plan) -> CandidateTree:
        if not isinstance(answer, CandidateTree):
            raise TreeError(f"{type(answer).__name__} is not a CandidateTree")
        tree.check(answer, request.vocab, plan.nodes)
        if len(answer) and (deepest := int(tree.depths(answer.parent).max())) > plan.depth:
            raise TreeError(f"depth {deepest}, at most {plan.depth} was asked for")
        return answer

    def commit(
        self, requests: Sequence[DraftRequest], news: Sequence[Committed]
    ) -> list[str | None]:
        """Tell the drafter what was verified; per request a fault in words, or None."""
        alive = [i for i, request in enumerate(requests) if request.id not in self._off]
        faults: list[str | None] = [None] * len(requests)
        try:
            if alive:
                self.drafter.commit([requests[i] for i in alive], [news[i] for i in alive])
        except Exception as error:
            for i in alive:
                faults[i] = self._switch_off(requests[i], "commit", error)
        return faults

    def give_up(self, requests: Sequence[DraftRequest], error: BaseException) -> None:
        """What the drafter knows of these requests is uncertain: ask it no more about them."""
        for request in requests:
            self._switch_off(request, "commit", error)

    def finish(self, request: DraftRequest) -> None:
        """Forget a request, whatever state it is in."""
        try:
            self.drafter.finish(request)
        except Exception as error:
            self._switch_off(request, "finish", error)
        self._off.pop(request.id, None)

    def _switch_off(self, request: DraftRequest, call: str, error: BaseException) -> str:
        self._off[request.id] = _words(call, error) + "; no more drafts for this request"
        return self._off[request.id]


def _words(call: str, error: BaseException) -> str:
    return f"drafter {call}: {type(error).__name__}: {error}"
