"""Policies for tests: random budgets, and every way to lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from adaptive_spec.controllers.fixed import FixedBudget
from adaptive_spec.profilers.base import Latency
from adaptive_spec.types import Decision, Features, Offer, Outcome, Plan


class RandomBudget(FixedBudget):
    """Another budget in every step, 0 included."""

    def __init__(self, most: int = 16, seed: int = 0) -> None:
        super().__init__(str(most))
        self._draw = np.random.default_rng(seed)

    def cut(self, offers: Sequence[Offer], latency: Latency) -> list[Decision]:
        sizes = [int(self._draw.integers(0, offer.largest + 1)) for offer in offers]
        return [Decision(size=size, reason="random") for size in sizes]


class LyingController(FixedBudget):
    """Honest until told otherwise.

    Args:
        lies: by method name (``plan``, ``cut``, ``observe``, ``finish``): called with the honest
            answer, its result is answered instead; it may raise.
    """

    def __init__(self, **lies: Callable[[Any], Any]) -> None:
        super().__init__("8")
        self._lies = lies

    def plan(self, requests: Sequence[Features], latency: Latency) -> Any:
        return self._say("plan", super().plan(requests, latency))

    def cut(self, offers: Sequence[Offer], latency: Latency) -> Any:
        return self._say("cut", super().cut(offers, latency))

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self._say("observe", outcomes)

    def finish(self, request: str) -> None:
        self._say("finish", request)

    def _say(self, method: str, honest: Any) -> Any:
        return self._lies[method](honest) if method in self._lies else honest


def _raise(_: Any) -> Any:
    raise RuntimeError("a lie")


def _sized(size: Any) -> Callable[[Sequence[Decision]], Any]:
    return _with(size=size)


def _with(**fields: Any) -> Callable[[Sequence[Decision]], Any]:
    return lambda decisions: [replace(decision, **fields) for decision in decisions]


def _planned(nodes: Any) -> Callable[[Sequence[Plan]], Any]:
    return lambda plans: [replace(plan, nodes=nodes) for plan in plans]


LIES: dict[str, dict[str, Callable[[Any], Any]]] = {
    "plan raises": {"plan": _raise},
    "cut raises": {"cut": _raise},
    "observe raises": {"observe": _raise},
    "finish raises": {"finish": _raise},
    "drafters of a number": {"plan": lambda plans: [replace(p, drafters=5) for p in plans]},
    "endless calls": {"plan": lambda plans: [replace(p, calls=10**9) for p in plans]},
    "floor NaN": {"plan": lambda plans: [replace(p, floor=float("nan")) for p in plans]},
    "plan of nothing": {"plan": lambda plans: None},
    "too few plans": {"plan": lambda plans: plans[1:]},
    "plans of another type": {"plan": lambda plans: ["16"] * len(plans)},
    "negative plan": {"plan": _planned(-3)},
    "endless plan": {"plan": _planned(10**9)},
    "fractional plan": {"plan": _planned(3.5)},
    "too many decisions": {"cut": lambda decisions: [*decisions, *decisions]},
    "decisions of another type": {"cut": lambda decisions: [3] * len(decisions)},
    "negative size": {"cut": _sized(-1)},
    "size beyond the offer": {"cut": _sized(10**9)},
    "size NaN": {"cut": _sized(float("nan"))},
    "size True": {"cut": _sized(True)},
    "size of text": {"cut": _sized("8")},
    "size None": {"cut": _sized(None)},
    "expected tokens of text": {"cut": _with(expected_tokens="x")},
    "theta of text": {"cut": _with(theta="fast")},
    "reason None": {"cut": _with(reason=None)},
    "predicted of one number": {"cut": _with(predicted=5)},
    "predicted as an array": {"cut": _with(predicted=np.zeros(9))},
}
"""Name -> lies of a ``LyingController``."""
