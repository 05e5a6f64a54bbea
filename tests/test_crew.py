"""Drafters that run a model are asked while they are worth it beside lookups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adaptive_spec.controllers.course import Course
from adaptive_spec.controllers.crew import LONGEST_PAUSE, LOOK, PAUSE, REST, SHORT, SIDE, Crew
from adaptive_spec.controllers.marginal import MarginalGain
from adaptive_spec.controllers.rates import GoingRate
from adaptive_spec.drafters.draft_model import DraftModelDrafter
from adaptive_spec.drafters.suffix import SuffixDrafter
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.testing.contracts import LinearLatency
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import plain, run
from adaptive_spec.types import Decision, Features, Offer, Outcome, StepSeconds

OUTCOME = Outcome(
    Features("a", 3, 9, 3, 9, 0.0, 1, 16),
    Decision(size=2, reason="", theta=20.0, predicted=(0.05, 0.055, 0.06)),
    offered=2,
    accepted=2,
    emitted=3,
    seconds=StepSeconds(draft=0.001),
    finished=False,
)
PROMPT = [5, 6, 7, 8, 5, 6, 9, 10, 5, 6, 11, 12]


def drive(crew: Crew, steps: int, gain: float, luck: np.random.Generator | None = None) -> int:
    """Steps of a machine on which models bring ``gain`` more tokens per second; how many asked."""
    asked = 0
    for _ in range(steps):
        asked += crew.models
        mean = 2.0 * (1.0 + gain if crew.models else 1.0)
        tokens = mean if luck is None else 1.0 + luck.geometric(1.0 / mean) - 1.0
        crew.observe(tokens, 0.05)
    return asked


def runs(crew: Crew, steps: int, gain: float) -> list[tuple[bool, int]]:
    """(models asked, steps) of every stretch."""
    found: list[tuple[bool, int]] = []
    for _ in range(steps):
        if not found or found[-1][0] != crew.models:
            found.append((crew.models, 0))
        found[-1] = (found[-1][0], found[-1][1] + 1)
        drive(crew, 1, gain)
    return found


def test_the_other_way_is_looked_at_ever_more_rarely() -> None:
    stretches = runs(Crew(), 6000, 0.1)
    looks = [steps for models, steps in stretches if not models]
    pauses = [steps for models, steps in stretches[:-1] if models]
    assert set(looks) == {LOOK}
    assert pauses[0] == PAUSE
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE + SIDE


def test_one_comparison_is_not_enough_and_many_are() -> None:
    crew = Crew()
    drive(crew, PAUSE + LOOK + SIDE, -0.2)
    assert crew.prefers_models
    assert crew.advantage < Crew().advantage
    drive(crew, 20_000, -0.2)
    assert not crew.prefers_models
    assert np.log(0.8) < crew.advantage < -0.03, "shrunken"
    assert "with models -" in crew.words
    assert drive(crew, 1000, -0.2) < 100, "they are looked at even then"
    drive(crew, 40_000, 0.5)
    assert crew.prefers_models, "and return when times change"


@pytest.mark.parametrize(("gain", "share"), [(0.1, (0.9, 1.0)), (-0.3, (0.0, 0.5))])
def test_noise_does_not_hide_what_matters(gain: float, share: tuple[float, float]) -> None:
    """Over 20 seeds and 6,000 steps with geometric tokens."""
    asked = [drive(Crew(), 6000, gain, np.random.default_rng(seed)) / 6000 for seed in range(20)]
    assert share[0] < np.mean(asked) < share[1]


def test_models_come_back_when_texts_change_in_their_favour() -> None:
    """Chat in which lookups were better, then sums in which models are: not only after hours."""
    asked = []
    for seed in range(20):
        crew, luck = Crew(), np.random.default_rng(seed)
        drive(crew, 8_000, -0.3, luck)
        asked.append(drive(crew, 6_000, 0.2, luck) / 6_000)
    assert np.mean(asked) > 0.6


def test_a_step_that_hung_says_nothing() -> None:
    crew = Crew()
    drive(crew, PAUSE + LOOK // 2, 0.1)
    assert crew.looks
    crew.observe(2.0, 100.0)
    drive(crew, LOOK + SIDE, 0.1)
    assert crew.advantage == pytest.approx(Crew().advantage, abs=0.05)


def test_after_a_loss_against_plain_decoding_models_rest_for_a_while() -> None:
    crew = Crew()
    drive(crew, 30, 0.1)
    crew.dismiss()
    assert "plain decoding" in crew.words
    assert drive(crew, REST, 0.1) == 0
    assert drive(crew, 100, 0.1) == 100


def test_rests_grow_while_models_keep_losing_against_plain_decoding() -> None:
    crew, rests = Crew(), []
    for _ in range(5):
        crew.dismiss()
        steps = 0
        while not crew.models:
            drive(crew, 1, 0.1)
            steps += 1
        rests.append(steps)
        drive(crew, 20, 0.1)
    assert rests == [REST, 2 * REST, 4 * REST, 8 * REST, 16 * REST]


def test_a_rest_ends_with_the_text_that_it_began_in_unless_many_have_earned_it() -> None:
    crew, rested = Crew(), []
    for _ in range(8):
        crew.dismiss()
        crew.text_ended()
        rested.append(not crew.models)
        while not crew.models:
            drive(crew, 1, 0.1)
        drive(crew, 16, 0.1)
    assert rested == [False] * SHORT + [True] * (8 - SHORT)
    drive(crew, REST, 0.1)  # models have lasted
    crew.dismiss()
    crew.text_ended()
    assert crew.models


def test_the_end_of_a_text_changes_no_comparison() -> None:
    crew, other = Crew(), Crew()
    for step in range(20_000):
        drive(crew, 1, -0.2)
        drive(other, 1, -0.2)
        if step % 50 == 0:
            other.text_ended()
        assert crew.models == other.models
    assert not crew.prefers_models


def test_another_head_ends_a_rest_and_leaves_comparisons_alone() -> None:
    crew = Crew()
    drive(crew, PAUSE + LOOK // 2, 0.1)
    crew.renew()
    assert crew.looks
    crew.dismiss()
    crew.renew()
    assert crew.models
    drive(crew, 2_000, 0.3)
    before = crew.advantage
    crew.dismiss()
    crew.renew()
    assert crew.models
    assert crew.advantage == before > Crew().advantage
    drive(crew, 30_000, -0.3)
    assert not crew.prefers_models
    crew.renew()
    assert crew.prefers_models
    assert crew.advantage == Crew().advantage


def test_steps_of_more_requests_are_not_compared_with_steps_of_fewer() -> None:
    """Eight requests make more tokens a second than one, whatever drafts for them."""
    crew = Crew()
    for packed in (8, 1) * 20:
        for _ in range(PAUSE + LOOK):
            crew.observe(2.0 * packed, 0.05, packed)
    assert crew.advantage == Crew().advantage


def test_a_guard_that_is_off_hears_of_looks() -> None:
    """Or neither the look nor the guard's pause would ever end."""
    course = Course(GoingRate(48.0))
    course.guard.on = False
    course.promises = np.array([0.0, 2.0, 3.0])
    for _ in range(300):
        course.follow(OUTCOME, look=True)
    assert course.guard.on
    one = Course(GoingRate(48.0))
    one.draft_seconds, one.promises = 10.0, course.promises
    for _ in range(100):
        assert not one.follow(OUTCOME, look=True)
    assert one.guard.on, "what a look costs is no reason to stop"


def test_a_draft_model_that_costs_more_than_it_brings_rests_and_lookups_go_on() -> None:
    """A model that is right at random, as dear as the target."""
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
        want = plain(model, PROMPT, max_new_tokens=150)
        assert run(decoder, PROMPT, max_new_tokens=150) == want
    assert 0 < asked["draft_model"] < asked["suffix"]


def test_a_rest_ends_although_lookups_lose_as_well() -> None:
    """Models lose at first and rest; then lookups offer nothing that pays, so decoding is plain.
    Models are asked again all the same, and are not kept off by what lookups lost."""
    policy, latency, asked = MarginalGain(), LinearLatency(), list[bool]()
    for step in range(900):
        features = Features("a", step, 99 + step, step, 9999, 0.0, 1, 256)
        (plan,) = policy.plan([features], latency)
        models = plan.models and plan.nodes > 0
        asked.append(models)
        alive = [0.9, 0.8, 0.7] if models else [0.03, 0.02, 0.01] if plan.nodes else []
        (decision,) = policy.cut([Offer(features, np.array(alive), len(alive))], latency)
        right = decision.size if models and step > 60 else 0
        drafts = (("head", 0.004),) * models + (("suffix", 0.002),) * (plan.nodes > 0)
        seconds = StepSeconds(
            draft=sum(spent for _, spent in drafts), verify=0.05 + 0.001 * decision.size,
            draft_model=0.004 * models, drafts=drafts,
        )  # fmt: skip
        policy.observe(
            [Outcome(features, decision, len(alive), right, 1 + right, seconds, finished=False)]
        )
    assert not any(asked[20:60])
    assert np.mean(asked[250:]) > 0.8, "but for looks"
