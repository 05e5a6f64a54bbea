"""Drafters that run a model are asked while they earn what they cost beside lookups."""

from __future__ import annotations

from typing import Any

import numpy as np

from adaptive_spec.controllers.crew import LONGEST_PAUSE, LOOKS, PATIENCE, PAUSE, Crew
from adaptive_spec.drafters.draft_model import DraftModelDrafter
from adaptive_spec.drafters.suffix import SuffixDrafter
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import plain, run

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
    assert all(len(one.costly) == len(one.survival) for one in some)
    assert any(np.any(~one.costly) for one in some)
