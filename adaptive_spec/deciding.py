"""The policies behind a wall: whatever they answer, every request gets an executable budget.

Requests of one packed step may use different policies; each policy sees its own requests together.
Sizes out of range are clamped. A policy that raises or answers nonsense is replaced by plain
decoding for as long as the decoder lives, with one warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import TypeVar

from adaptive_spec.controllers.base import Controller
from adaptive_spec.controllers.plain import NOTHING
from adaptive_spec.controllers.registry import CONTROLLERS
from adaptive_spec.isolation import warn_softly
from adaptive_spec.profilers.base import Latency
from adaptive_spec.share import Share
from adaptive_spec.types import Decision, Features, Offer, Outcome, Plan

Fact = TypeVar("Fact")
Answer = TypeVar("Answer")


class Deciding:
    """One controller per policy name, built on first use."""

    def __init__(self, latency: Latency, max_nodes: int, max_depth: int) -> None:
        self._latency = latency
        self._max_nodes, self._max_depth = max_nodes, max_depth
        self._controllers: dict[str, Controller] = {}
        self.broken: dict[str, str] = {}
        """Policies that were replaced by plain decoding, and why."""
        self._reported: set[str] = set()

    def add(self, policy: str, controller: Controller | None = None) -> None:
        """Build the controller of a policy, or take the given one.

        Raises:
            UnknownNameError, ArgumentError: the name or its argument is not valid.
        """
        if controller is not None:
            self._controllers[policy] = controller
        elif policy not in self._controllers:
            entry, argument = CONTROLLERS.find(policy)
            self._controllers[policy] = entry.factory(argument)

    def plan(self, shares: Sequence[Share]) -> None:
        """Fill ``plan`` with executable plans."""

        def ask(controller: Controller, group: Sequence[Features]) -> Sequence[Plan]:
            return controller.plan(group, self._latency)

        policies = [share.session.policy for share in shares]
        plans = self._each(policies, [s.features for s in shares], ask, self._clamped_plan)
        for share, plan in zip(shares, plans, strict=True):
            share.plan = plan or NOTHING

    def cut(self, shares: Sequence[Share], room: int) -> None:
        """Fill ``decision`` with executable decisions, and ``tree`` with what they leave.

        Args:
            room: nodes that the pool can hold for all requests of the step together.
        """

        def ask(controller: Controller, group: Sequence[Offer]) -> Sequence[Decision]:
            return controller.cut(group, self._latency)

        policies = [share.session.policy for share in shares]
        decisions = self._each(policies, [s.offer for s in shares], ask, _clamped_decision)
        for share, policy, decision in zip(shares, policies, decisions, strict=True):
            if policy in self.broken and policy not in self._reported:
                share.session.stats.controller_faults += 1
                share.faults.append(self.broken[policy])
            plain = f"plain decoding: {self.broken.get(policy)}"
            share.decision = decision or Decision(size=0, reason=plain)
            share.cut(share.decision.size)
        for share, size in zip(shares, _fitted([len(s.tree) for s in shares], room), strict=True):
            if size < len(share.tree):
                reason = f"{share.decision.reason}; the pool has room for {size}"
                share.decision = _resized(share.decision, size, share.offer, reason)
                share.cut(size)
        self._reported |= self.broken.keys() & set(policies)

    def observe(self, policies: Sequence[str], outcomes: Sequence[Outcome]) -> None:
        """Hand out what came of the decisions."""

        def tell(controller: Controller, group: Sequence[Outcome]) -> Sequence[None]:
            controller.observe(group)
            return [None] * len(group)

        self._each(policies, outcomes, tell, lambda answer, fact: None)

    def finish(self, policy: str, request: str) -> None:
        """Let a policy forget a request."""
        if policy in self.broken:
            return
        try:
            self._controllers[policy].finish(request)
        except Exception as error:
            self._break(policy, f"finish: {type(error).__name__}: {error}")

    def forget(self, request: str) -> None:
        """Let every policy forget a request that is gone."""
        for policy in list(self._controllers):
            self.finish(policy, request)

    def _each(
        self,
        policies: Sequence[str],
        facts: Sequence[Fact],
        ask: Callable[[Controller, Sequence[Fact]], Sequence[Answer]],
        clamp: Callable[[Answer, Fact], Answer],
    ) -> list[Answer | None]:
        """Ask each policy about its own requests; None where it is broken."""
        answers: list[Answer | None] = [None] * len(facts)
        for policy, places in _groups(policies):
            if policy in self.broken:
                continue
            try:
                given = ask(self._controllers[policy], [facts[i] for i in places])
                if len(given) != len(places):
                    raise ValueError(f"{len(given)} answers for {len(places)} requests")
                for i, answer in zip(places, given, strict=True):
                    answers[i] = clamp(answer, facts[i])
            except Exception as error:
                self._break(policy, f"{type(error).__name__}: {error}")
                for i in places:
                    answers[i] = None
        return answers

    def _clamped_plan(self, plan: Plan, features: Features) -> Plan:
        """Within the config's bounds, and no deeper than can still be emitted."""
        if not isinstance(plan, Plan):
            raise TypeError(f"{type(plan).__name__} is not a Plan")
        nodes, depth = _whole(plan.nodes), _whole(plan.depth)
        return Plan(
            nodes=max(0, min(nodes, self._max_nodes)),
            depth=max(0, min(depth, self._max_depth, features.remaining - 1)),
            drafters=_names(plan.drafters),
            models=bool(plan.models),
            calls=max(1, min(_whole(plan.calls), self._max_depth)),
            floor=_floor(plan.floor),
        )

    def _break(self, policy: str, why: str) -> None:
        if policy not in self.broken:
            self.broken[policy] = f"policy {policy} failed ({why})"
            warn_softly(f"{self.broken[policy]}; decoding plainly from now on")


def _groups(policies: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    for policy in dict.fromkeys(policies):
        yield policy, [i for i, name in enumerate(policies) if name == policy]


def _fitted(sizes: Sequence[int], room: int) -> list[int]:
    """Sizes whose sum is at most ``room``: the largest give way first."""
    fitted = list(sizes)
    while sum(fitted) > room:
        fitted[fitted.index(max(fitted))] -= 1
    return fitted


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{value!r} is not a whole number")
    return int(value)


def _clamped_decision(decision: Decision, offer: Offer) -> Decision:
    if not isinstance(decision, Decision):
        raise TypeError(f"{type(decision).__name__} is not a Decision")
    size = _whole(decision.size)
    single = (decision.theta, decision.expected_tokens, decision.expected_seconds)
    _numbers([number for number in single if number is not None])
    if not isinstance(decision.predicted, tuple | None):
        raise TypeError(f"predicted={decision.predicted!r:.80} is not a tuple of numbers")
    _numbers(decision.predicted or ())
    if not isinstance(decision.reason, str):
        raise TypeError(f"reason={decision.reason!r:.80} is not in words")
    inside = max(0, min(size, offer.largest))
    if inside == size:
        return decision
    reason = f"{decision.reason} (clamped from {size} to {inside})"
    return _resized(decision, inside, offer, reason)


def _resized(decision: Decision, size: int, offer: Offer, reason: str) -> Decision:
    """The decision for another size, with what is to be expected of that."""
    predicted, expected = decision.predicted, decision.expected_tokens
    before = float(offer.survival[: decision.size].sum())
    kept = float(offer.survival[:size].sum()) / before if before else 0.0
    return replace(
        decision,
        size=size,
        reason=reason,
        expected_tokens=None if expected is None else 1.0 + (expected - 1.0) * kept,
        expected_seconds=predicted[size] if predicted and size < len(predicted) else None,
    )


def _numbers(values: Sequence[object]) -> None:
    for value in values:
        if not isinstance(value, Real):
            raise TypeError(f"{value!r:.80} is not a number")


def _names(drafters: object) -> tuple[str, ...] | None:
    if drafters is None:
        return None
    if not isinstance(drafters, tuple) or not all(isinstance(name, str) for name in drafters):
        raise TypeError(f"drafters={drafters!r} is not a tuple of names")
    return drafters


def _floor(value: float | None) -> float | None:
    if value is None:
        return None
    if not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
        raise TypeError(f"floor={value!r} is not a probability")
    return min(float(value), 0.5)
