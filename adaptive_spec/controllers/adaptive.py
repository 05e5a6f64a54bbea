"""The frame of policies that price nodes: two stages, one budget for all requests of a step.

Stage one asks the drafters for no more nodes, and no deeper, than paid of late, those that run a
model only while they earn their price (``crew``), and for nothing while the guard says so; stage
two scans every executable size, 0 included, and takes the best by the policy's own rule. Survivals
of all requests are sorted into one list: because a forward costs by its total size, the best N
nodes of a step are the N likeliest, whoever they belong to. A policy only says how tokens are
weighed against seconds (``choose``).

Legend: R requests of the step, N nodes in all of their trees, A(N) = R + sum of the N best
survivals.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from adaptive_spec.controllers.course import DEEPEST, Course, worth
from adaptive_spec.controllers.crew import Crew
from adaptive_spec.controllers.guard import PROBE_COST, Guard
from adaptive_spec.controllers.probes import TimeProbes
from adaptive_spec.controllers.rates import GoingRate
from adaptive_spec.profilers.base import Latency
from adaptive_spec.types import Decision, Features, Floats, Ints, Offer, Outcome, Plan, Work

LEAST, MOST = 8, 1024
"""Nodes to ask a drafter for: at least, and at most."""
DEPTH_MARGIN = 4
"""Levels to ask for beyond twice what was accepted of late."""
SPAN = 16
"""Nodes over which the price of a node is averaged where only a rough figure is needed."""
FLOOR_SHARE, SHORT_SHARE = 0.4, 0.1
"""Share of the price of a node below which its survival is not worth a look; the same where a
larger tree is to be tried for what it costs."""
DOUBTED = 0.9
"""Share of promises that came true below which the reason says so."""
BLIND = 0.1
"""Least survival of a node while nothing is known about time."""


class Adaptive(ABC):
    """Weighs tokens against seconds.

    Args:
        horizon: steps of memory of the going rate.
    """

    def __init__(self, horizon: float) -> None:
        self._horizon = horizon
        self.ignored = 0
        """Steps whose seconds were no durations, and outcomes that nobody awaited: late, told
        twice, of a request that is gone, or without a token."""
        self._courses: dict[str, Course] = {}
        self._probes, self._last = TimeProbes(), Course(GoingRate(horizon))
        self._crew, self._both, self._generation = Crew(), False, 0
        """``_both``: some drafters run a model, and some do not."""
        self._drafters: dict[bool, tuple[str, ...]] = {}
        """Names as last asked, by whether models were; their price is the latency model's."""

    @abstractmethod
    def choose(self, tokens: Floats, seconds: Floats, theta: float) -> tuple[int, str]:
        """The size to execute, and why.

        Args:
            tokens: [N+1] expected tokens of the step for every size.
            seconds: [N+1] predicted seconds of the step for every size, drafting included.
            theta: going rate of the texts, tokens per second.
        """

    def plan(self, requests: Sequence[Features], latency: Latency) -> Sequence[Plan]:
        if requests and requests[0].generation != self._generation:
            self._generation = requests[0].generation
            self._renew()
        return [self._plan(features) for features in requests]

    def _renew(self) -> None:
        """The head that drafts is another one: resting ends, and evidence against it."""
        self._crew.renew()
        for course in (*self._courses.values(), self._last):
            if not course.everyone.guard.on:
                course.everyone.guard = Guard()

    def _plan(self, features: Features) -> Plan:
        course = self._course(features.request)
        course.models = self._crew.models
        nodes = course.draft_nodes if course.guard.drafts else 0
        course.asked = nodes > 0
        depth = min(DEEPEST, nodes, round(2 * course.accepted) + DEPTH_MARGIN)
        return Plan(nodes=nodes, depth=depth, models=course.models, floor=course.least_survival)

    def cut(self, offers: Sequence[Offer], latency: Latency) -> Sequence[Decision]:
        courses = [self._course(offer.features.request) for offer in offers]
        for offer, course in zip(offers, courses, strict=True):
            course.decided = offer.features.step
        packed = offers[0].features.packed
        survival, owner = _ranked([worth(*both) for both in zip(offers, courses, strict=True)])
        largest = packed * max(course.rate.largest for course in courses)
        work = Work(
            nodes=np.arange(max(len(survival), largest, SPAN) + 1),
            requests=packed,
            context=offers[0].features.pool_slots,
            # Priced whether asked or not: the going rate needs it.
            drafters=self._drafters.get(self._crew.models, ()),
        )
        price = latency.predict(work)
        if price is None:
            return [_blind(offer, course) for offer, course in zip(offers, courses, strict=True)]
        step, draft = price.verify + price.host, float(price.draft[0])
        rates = [course.rate.tokens_per_second(step[::packed], draft) for course in courses]
        theta = sum(rates) * packed / len(offers)  # requests of other policies wait as well
        seconds = step[: len(survival) + 1] + draft * any(course.asked for course in courses)
        tokens = np.concatenate(([0.0], survival.cumsum())) + packed
        best, why = self._size(courses, tokens, seconds, theta)
        sizes = np.bincount(owner[:best], minlength=len(offers))
        share = SHORT_SHARE if self._probes.short else FLOOR_SHARE
        floor = share * theta * max(float(step[SPAN] - step[0]), 0.0) / SPAN
        for course in courses:
            course.draft_seconds, course.plain_seconds = draft, float(step[0])
            course.least_survival = floor
        return [
            self._decision(offer, course, int(size), rate, seconds, best, why)
            for offer, course, size, rate in zip(offers, courses, sizes, rates, strict=True)
        ]

    def _size(
        self, courses: Sequence[Course], tokens: Floats, seconds: Floats, theta: float
    ) -> tuple[int, str]:
        """The policy's choice, unless guard or probes have another."""
        best, why = self.choose(tokens, seconds, theta)
        most, extra = len(seconds) - 1, seconds - seconds[0]
        if not most:
            return best, why
        if not any(course.guard.on for course in courses):
            if any(course.guard.due for course in courses):  # a probe is kept cheap
                allowed = max(float(seconds[0]) * PROBE_COST, float(extra[1]))
                best = min(max(best, 1), int(np.flatnonzero(extra <= allowed)[-1]))
                return best, f"guard: probe of {best} nodes"
            surplus = tokens[best] - tokens[0] * (1.0 + extra[best] / seconds[0])
            enough = surplus >= sum(course.guard.bar for course in courses)
            return (best, f"guard: a clear case; {why}") if enough else (0, why)
        tried = self._probes.size(best, tokens / max(theta, 1e-9), seconds)
        return (best, why) if tried == best else (tried, f"probe of what {tried} nodes cost; {why}")

    def _decision(
        self,
        offer: Offer,
        course: Course,
        size: int,
        rate: float,
        seconds: Floats,
        best: int,
        why: str,
    ) -> Decision:
        if not course.asked or (size == 0 and not course.guard.on):
            why = course.guard.words
        elif course.share < DOUBTED:
            why = f"{why}; {course.share:.0%} of promises came true of late"
        if course.asked and not course.models:
            why = f"{why}; {self._crew.words}"
        wanted = max(2 * size + LEAST, round(0.9 * course.draft_nodes))
        course.draft_nodes = min(wanted, MOST) if course.asked else course.draft_nodes
        others = seconds[best - size : best - size + len(offer.survival) + 1]
        return Decision(
            size=size,
            reason=why,
            theta=rate,
            expected_tokens=1.0 + course.share * float(course.promises[size]),
            expected_seconds=float(seconds[best]),
            predicted=tuple(others.tolist()),
        )

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        if not outcomes:
            return
        if not outcomes[0].seconds.plausible:
            self.ignored += 1
            return
        total = sum(outcome.decision.size for outcome in outcomes)
        seconds, tokens, drafting = outcomes[0].seconds, 0, False
        packed, looks = max(outcomes[0].features.packed, 1), self._crew.looks
        names = tuple(name for name, _ in seconds.drafts)
        ours = self._crew.models or not seconds.draft_model  # not what another policy asked
        if seconds.draft_model:
            self._both = seconds.draft_model < sum(spent for _, spent in seconds.drafts)
        if names and ours:
            self._drafters[self._crew.models] = names
        stopped: list[Course] = []
        for outcome in outcomes:
            course = self._courses.get(outcome.features.request)
            step = outcome.features.step
            if course is None or outcome.emitted < 1 or course.decided != step:
                self.ignored += 1
                continue
            course.decided = None
            drafted = course.asked and bool(names)
            course.rate.observe(outcome.emitted, round(total / packed), drafted)
            course.accepted = max(0.98 * course.accepted, outcome.emitted - 1.0)
            tokens, drafting = tokens + outcome.emitted, drafting or (drafted and course.guard.on)
            whole = drafted and not outcome.finished  # a stop cuts short what was accepted
            if course.follow(outcome if whole else None, looks):
                stopped.append(course)
        if stopped and self._both and self._crew.models:
            self._crew.dismiss()
            for course in stopped:
                course.everyone.guard = Guard()
        elif self._both and ours and (drafting or not self._crew.models):  # or rests never end
            self._crew.observe(tokens, seconds.total, packed)

    def finish(self, request: str) -> None:
        self._last = self._courses.pop(request, self._last)
        self._crew.text_ended()

    def _course(self, request: str) -> Course:
        if request not in self._courses:
            self._courses[request] = self._last.successor(GoingRate(self._horizon))
        return self._courses[request]


def _ranked(alive: Sequence[Floats]) -> tuple[Floats, Ints]:
    """[N] survival of all nodes of a step, the likeliest first, and whose each is."""
    if len(alive) == 1:
        return alive[0], np.zeros(len(alive[0]), dtype=np.int64)
    survival = np.concatenate(alive)
    order = np.argsort(-survival, kind="stable")
    return survival[order], np.repeat(np.arange(len(alive)), [len(one) for one in alive])[order]


def _blind(offer: Offer, course: Course) -> Decision:
    size = len(worth(offer, course))
    size = int((offer.survival[:size] >= BLIND).sum())
    return Decision(
        size=size,
        reason=f"nothing is known about time: {size} nodes with survival of {BLIND} or more",
        expected_tokens=1.0 + course.share * float(course.promises[size]),
    )
