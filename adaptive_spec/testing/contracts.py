"""Contract suites for plug-in authors: what every policy and every drafter must stand.

    def test_my_policy():
        check_controller(lambda: MyPolicy())

Each check raises AssertionError and names the promise that was broken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral

import numpy as np

from adaptive_spec import tree as trees
from adaptive_spec.controllers.base import Controller
from adaptive_spec.drafters.base import CandidateTree, Committed, Drafter, DraftRequest
from adaptive_spec.profilers.base import Latency, NullLatency
from adaptive_spec.types import (
    Decision,
    Features,
    Offer,
    Outcome,
    Plan,
    Seconds,
    StepSeconds,
    Work,
)

_STRANGE = (float("nan"), float("inf"), -1.0, 0.0, 1e9)
_STRANGE_COUNTS = ((10**6, 10**6), (-1, 0), (0, -5))
"""Accepted and emitted tokens that cannot be."""
_BAD = range(100, 250)
"""Steps in which nothing is accepted, so that whoever watches it stops drafting."""


def check_controller(make: Callable[[], Controller], steps: int = 400, seed: int = 0) -> None:
    """Answers are executable, one per request, and strange feedback changes none of that.

    Feedback may be no number, absurd, late, double or missing, and about requests that are gone.
    Checked with nothing known about time, and with every step's seconds known.
    """
    _check_controller(make(), NullLatency(), steps, seed)
    _check_controller(make(), LinearLatency(), steps, seed)


def _check_controller(policy: Controller, latency: Latency, steps: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    late: Sequence[Outcome] = []
    for step in range(steps):
        features = [_features(f"r{i}", step, 1 + step % 3) for i in range(1 + step % 3)]
        plans = list(policy.plan(features, latency))
        assert len(plans) == len(features), "one plan per request"
        offers = []
        for fact, plan in zip(features, plans, strict=True):
            assert isinstance(plan, Plan), "plans are Plan objects"
            assert _whole(plan.nodes) >= 0, "nodes are not negative"
            assert _whole(plan.depth) >= 0, "depth is not negative"
            names = plan.drafters or ()
            assert isinstance(names, tuple), "drafters are a tuple of names"
            assert all(isinstance(name, str) for name in names), "drafters are names"
            assert _whole(plan.calls) >= 1, "a plan that drafts calls the drafter"
            assert plan.floor is None or 0 <= plan.floor < np.inf, "the floor is a number"
            count = int(draw.integers(0, plan.nodes + 1))
            alive = np.sort(draw.random(count))[::-1].copy()
            alive.setflags(write=False)
            offers.append(Offer(fact, alive, int(draw.integers(0, count + 1))))
        decisions = list(policy.cut(offers, latency))
        assert len(decisions) == len(offers), "one decision per offer"
        for offer, decision in zip(offers, decisions, strict=True):
            assert isinstance(decision, Decision), "decisions are Decision objects"
            assert 0 <= _whole(decision.size) <= offer.largest, "0 <= size <= largest"
            assert isinstance(decision.reason, str), "the reason is in words"
            assert decision.reason, "the reason is not empty"
            assert isinstance(decision.predicted, tuple | None), "predicted is a tuple, or None"
            numbers = [decision.theta, decision.expected_tokens, decision.expected_seconds]
            known = [number for number in [*numbers, *(decision.predicted or ())] if number]
            assert np.isfinite(known).all(), "what is expected is finite, or None"
        told = _outcomes(offers, decisions, step)
        policy.observe(told)
        if step % 50 == 49:
            policy.finish("r1")
        if step % 5 == 4:
            policy.observe(late)
        late = told
    policy.observe([])
    for request in ("r0", "r1", "r2", "never seen"):
        policy.finish(request)


class LinearLatency(NullLatency):
    """A latency model that knows: milliseconds, rising with the nodes."""

    def predict(self, work: Work) -> Seconds:
        nodes = np.asarray(work.nodes, dtype=np.float64)
        constant = np.full(len(nodes), 0.001)
        return Seconds(draft=constant, verify=0.05 + 0.002 * nodes, host=constant)


def check_drafter(make: Callable[[], Drafter], vocab: int = 50, seed: int = 0) -> None:
    """Trees are valid, nested in their size, within depth; requests do not disturb each other."""
    draw, drafter = np.random.default_rng(seed), make()
    texts = [draw.integers(0, 5, size=40 + 10 * i).tolist() for i in range(3)]
    together = [_request(drafter, f"r{i}", text, vocab) for i, text in enumerate(texts)]
    plans = [Plan(nodes=12, depth=5)] * len(together)
    for _ in range(10):
        given = drafter.propose(together, plans)
        assert len(given) == len(together), "one tree per request"
        for tree in given:
            trees.check(tree, vocab, 12)
            assert len(tree) == 0 or trees.depths(tree.parent).max() <= 5, "depth is respected"
        smaller = drafter.propose(together, [Plan(nodes=4, depth=5)] * len(together))
        for big, small in zip(given, smaller, strict=True):
            best = trees.best_first(trees.survival(big, np.exp(big.logq)))[:4]
            top = trees.select(big, best)
            assert _edges(top) == _edges(small), "trees are nested in their size"
        for request in together:
            _tell(drafter, request, draw.integers(0, 5, size=int(draw.integers(1, 4))).tolist())
    for request, theirs in zip(together, drafter.propose(together, plans), strict=True):
        alone = make()
        single = _request(alone, request.id, list(request.tokens), vocab)
        (mine,) = alone.propose([single], plans[:1])
        assert _edges(mine) == _edges(theirs), "requests do not disturb each other"
    for request in together:
        drafter.finish(request)
        drafter.finish(request)


def _whole(value: object) -> int:
    assert isinstance(value, Integral), f"{value!r} is a whole number"
    assert not isinstance(value, bool), f"{value!r} is a whole number"
    return int(value)


def _features(name: str, step: int, packed: int) -> Features:
    return Features(
        request=name,
        step=step,
        context=10 + step,
        generated=step,
        remaining=1000 - step,
        temperature=0.0 if step % 2 else 0.8,
        packed=packed,
        pool_slots=100 + step,
    )


def _outcomes(offers: Sequence[Offer], decisions: Sequence[Decision], step: int) -> list[Outcome]:
    """Ordinary feedback, strange feedback, and (every seventh step) none at all."""
    if step % 7 == 3:
        return []
    odd = _STRANGE[step // 2 % len(_STRANGE)] if step % 2 else 0.1
    counts = _STRANGE_COUNTS[step % len(_STRANGE_COUNTS)] if step % 11 == 7 else None
    seconds = StepSeconds(
        draft=odd,
        verify=odd,
        host=odd,
        draft_model=0.6 * odd,
        drafts=(("suffix", 0.4 * odd), ("head", 0.6 * odd)),
    )
    return [
        Outcome(
            features=replace(offer.features),
            decision=decision,
            offered=len(offer.survival),
            accepted=counts[0] if counts else right,
            emitted=counts[1] if counts else 1 + right,
            seconds=seconds,
            finished=False,
        )
        for offer, decision in zip(offers, decisions, strict=True)
        for right in [0 if step in _BAD else min(1, decision.size)]
    ]


def _request(drafter: Drafter, name: str, text: list[int], vocab: int) -> DraftRequest:
    request = DraftRequest(name, [], len(text), 0.0, None, vocab)
    drafter.start(request)
    _tell(drafter, request, text)
    return request


def _tell(drafter: Drafter, request: DraftRequest, new: list[int]) -> None:
    """Commit tokens without rows: what a drafter without taps needs."""
    assert isinstance(request.tokens, list)
    request.tokens.extend(new)
    none = np.empty(0, dtype=np.int64)
    drafter.commit([request], [Committed(new, none, none, none, {})])


def _edges(tree: CandidateTree) -> set[tuple[int, ...]]:
    """The token paths of all nodes."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token.tolist(), tree.parent.tolist(), strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return set(paths)
