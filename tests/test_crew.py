"""Drafters that run a model are asked while they earn what they cost beside lookups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adaptive_spec.controllers.course import Course, gain
from adaptive_spec.controllers.crew import LONGEST_PAUSE, LOOKS, PATIENCE, PAUSE, Crew
from adaptive_spec.controllers.rates import GoingRate
from adaptive_spec.drafters.draft_model import DraftModelDrafter
from adaptive_spec.drafters.suffix import SuffixDrafter
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import plain, run
from adaptive_spec.types import Decision, Features, Outcome, StepSeconds

PROMPT = [5, 6, 7, 8, 5, 6, 9, 10, 5, 6, 11, 12]


def rest(crew: Crew) -> int:
    """Steps until models are asked again."""
    steps = 0
    while not crew.models:
        crew.observe(None)
        steps += 1
    return steps


def test_models_that_lose_are_sent_to_rest_and_looked_at_ever_more_rarely() -> None:
    crew = Crew()
    for _ in range(PATIENCE - 1):
        crew.observe(-0.1)
    assert crew.models
    crew.observe(-0.1)
    assert not crew.models
    assert "0.100 tokens" in crew.words
    pauses = []
    for _ in range(6):
        pauses.append(rest(crew))
        for _ in range(LOOKS):
            assert crew.models
            crew.observe(-0.1)
    assert pauses[0] == PAUSE
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE


def test_a_look_that_pays_brings_them_back() -> None:
    crew = Crew()
    while crew.models:
        crew.observe(-0.1)
    rest(crew)
    for _ in range(LOOKS):
        crew.observe(0.3)
    assert crew.full
    for _ in range(100):
        crew.observe(0.1)
    assert crew.full
    heir = crew.successor()
    assert heir.full
    while heir.models:
        heir.observe(-1.0)
    assert not heir.successor().models
    assert rest(heir.successor()) <= PATIENCE  # another text: a look soon


def test_a_draft_model_that_costs_more_than_it_brings_rests_and_lookups_go_on() -> None:
    """A model that is right at random, priced by a machine on which it is dear."""
    model = tiny_model("llama")
    asked = {"draft_model": 0, "suffix": 0}

    def counted(drafter: Any) -> Any:
        propose = drafter.propose

        def spy(requests: Any, plans: Any) -> Any:
            asked[drafter.name] += 1
            return propose(requests, plans)

        drafter.propose = spy
        return drafter

    both = [counted(DraftModelDrafter(tiny_model("llama", seed=7))), counted(SuffixDrafter())]
    with AdaptiveDecoder(model, {"policy": "marginal"}, drafter=both) as decoder:
        seen: list[Any] = []
        offer = decoder.valuing.offer

        def watched(share: Any, room: int) -> None:
            offer(share, room)
            seen.append(share.offer)

        decoder.valuing.offer = watched  # type: ignore[method-assign]
        want = plain(model, PROMPT, max_new_tokens=150)
        assert run(decoder, PROMPT, max_new_tokens=150) == want
    assert asked["draft_model"] < asked["suffix"]
    some = [one for one in seen if len(one.survival)]
    assert all(len(one.lookups) == len(one.survival) for one in some)
    assert any(np.any(one.lookups > 0.0) for one in some)
    assert any(np.any(one.lookups == 0.0) for one in some)


def course(lookups: list[float]) -> Course:
    found = Course(GoingRate(48.0))
    found.promises, found.lookups = np.array([0.0, 0.9, 1.6, 1.9]), np.array(lookups)
    return found


def outcome(draft_model: float, packed: int = 1) -> Outcome:
    features = Features(
        request="a",
        step=3,
        context=9,
        generated=3,
        remaining=9,
        temperature=0.0,
        packed=packed,
        pool_slots=16,
    )
    predicted = (0.05, 0.06, 0.07, 0.1)
    decision = Decision(size=2, reason="", theta=20.0, predicted=predicted)
    seconds = StepSeconds(draft=draft_model, draft_model=draft_model)
    return Outcome(features, decision, 3, 1, 2, seconds, finished=False)


def test_the_gain_is_what_the_best_trees_of_both_ways_differ_by() -> None:
    """Two nodes with models (1.6 tokens for 20 ms), one without (0.5 for 10), draft of 5 ms."""
    assert gain(outcome(0.005), course([0.5])) == pytest.approx(1.6 - 0.4 - (0.5 - 0.2) - 0.1)
    assert gain(outcome(0.005), course([])) == pytest.approx(1.6 - 0.4 - 0.1)
    assert gain(outcome(0.005), course([0.9, 0.7, 0.3])) == pytest.approx(-0.1)
    assert gain(outcome(0.005), course([0.0, 0.5, 0.0])) == gain(outcome(0.005), course([0.5]))
    assert gain(outcome(0.0), course([0.5])) is None, "models were not asked"


def test_each_side_is_trusted_as_far_as_its_own_promises_came_true() -> None:
    """Lookups promised 0.5 with every tree and were never right; models were, as promised."""
    one = course([0.5, 0.0, 0.0])
    begun = gain(outcome(0.005), one)
    for _ in range(200):
        one.follow(replace(outcome(0.005), emitted=2, accepted=1))
        one.promises = np.array([0.0, 0.9, 1.0, 1.9])
    assert one.trust.share == pytest.approx(1.0, abs=0.1)
    assert one.lookup_trust.share < 0.3
    one.promises = np.array([0.0, 0.9, 1.6, 1.9])
    assert begun is not None
    assert (now := gain(outcome(0.005), one)) is not None
    assert now > begun + 0.1


def test_what_a_look_costs_is_not_held_against_lookups() -> None:
    """While models rest, the guard hears of steps without them only."""
    one = course([0.5, 0.0, 0.0])
    one.crew.dismiss(0.1)
    while not one.crew.looks:
        one.follow(outcome(0.0))
    one.draft_seconds = 10.0
    one.follow(outcome(10.0))
    assert one.guard.on
    assert not one.crew.full


def test_two_requests_share_the_price_of_a_step() -> None:
    """A step of two requests delays both, and its draft served both."""
    got = gain(outcome(0.005, packed=2), course([0.5]))
    assert got == pytest.approx((1.6 - 0.8) - (0.5 - 0.4) - 0.1)
