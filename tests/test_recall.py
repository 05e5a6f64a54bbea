"""Answers of ended requests as drafts: places in a growing automaton, bounded memory, and what is
remembered of whom (rows L2, L9, L11, L12, U4)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_heads import PROMPT, tiny_head

from adaptive_spec import tree
from adaptive_spec.build import settle
from adaptive_spec.config import load_config
from adaptive_spec.drafters.automaton import SuffixAutomaton
from adaptive_spec.drafters.base import CandidateTree, Committed, DraftRequest
from adaptive_spec.drafters.blending import END
from adaptive_spec.drafters.causal_parallel import CausalParallelDrafter
from adaptive_spec.drafters.recall import BEFORE, WAITING, Ended, Memory, Place, RecallDrafter
from adaptive_spec.errors import ArgumentError, UnsupportedError
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.online.cost_aware import CostAware
from adaptive_spec.online.learner import HeadLearner
from adaptive_spec.online.policies import Every, find_rule
from adaptive_spec.online.recalling import LEAST, RecallArm
from adaptive_spec.online.rules import ARMS, RECALL, View
from adaptive_spec.online.trials import Outcome
from adaptive_spec.testing.contracts import check_drafter
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import plain, run
from adaptive_spec.types import Plan

VOCAB = 50
texts = st.integers(1, 3).flatmap(lambda k: st.lists(st.integers(0, k), min_size=1, max_size=12))
none = np.empty(0, dtype=np.int64)


def request(name: str = "r") -> DraftRequest:
    return DraftRequest(name, [], 0, 0.0, None, VOCAB)


def told(drafter: RecallDrafter, one: DraftRequest, tokens: Sequence[int], step: bool) -> None:
    some = CandidateTree.empty() if step else None
    drafter.commit([one], [Committed(tokens, none, none, none, {}, some)])


def answered(
    drafter: RecallDrafter, prompt: Sequence[int], answer: Sequence[int], name: str = "r"
) -> None:
    """One request, a token a step."""
    one = request(name)
    drafter.start(one)
    told(drafter, one, prompt, step=False)
    for token in answer:
        told(drafter, one, [token], step=True)
    drafter.finish(one)


def asked(drafter: RecallDrafter, text: Sequence[int], nodes: int = 16) -> CandidateTree:
    one = request("asked")
    drafter.start(one)
    told(drafter, one, text, step=False)
    (grown,) = drafter.propose([one], [Plan(nodes, 32)])
    drafter.finish(one)
    return grown


def known(text: Sequence[int], pieces: Sequence[Sequence[int]]) -> int:
    """Length of the longest suffix of ``text`` within one of ``pieces``: by brute force."""
    return max(
        (
            size
            for piece in pieces
            for size in range(1, min(len(piece), len(text)) + 1)
            for at in range(len(piece) - size + 1)
            if list(piece[at : at + size]) == list(text[-size:])
        ),
        default=0,
    )


@settings(deadline=None)
@given(st.lists(texts, max_size=4), texts)
def test_a_place_is_the_longest_suffix_that_is_known(pieces: list[list[int]], text: Any) -> None:
    memory = Memory(10_000)
    for piece in pieces:
        memory.add(piece)
    place = Place(memory.automaton)
    for end, token in enumerate(text, 1):
        place.follow(memory.automaton, [token])
        assert place.found()[1] == known(text[:end], pieces)


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts), max_size=6), st.integers(8, 40))
def test_places_stay_right_while_automata_grow_and_change(
    turns: list[tuple[list[int], list[int]]], room: int
) -> None:
    memory, said, place = Memory(room), list[int](), None
    for piece, news in turns:
        memory.add(piece)
        place = place or Place(memory.automaton)
        place.follow(memory.automaton, news)
        said += news
        state, matched = place.found()
        there = 0
        for token in said[len(said) - matched :]:  # the state is where its suffix leads
            there = memory.automaton.next[there][token]
        assert there == state


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=30), max_size=30))
def test_memory_is_bounded_and_knows_the_newest_quarter(pieces: list[list[int]]) -> None:
    memory, room = Memory(128), 128
    for done, piece in enumerate(pieces, 1):
        memory.add(piece)
        assert memory.automaton.size <= room
        newest, size = list[list[int]](), 0
        for one in reversed(pieces[:done]):
            size += len(one) + 1
            if size > room // 4:
                break
            newest.append(one)
        assert newest or len(pieces[done - 1]) >= room // 4
        for one in newest:
            place = Place(memory.automaton)
            place.follow(memory.automaton, one)
            assert place.found()[1] == len(one)


@pytest.mark.fault("U4")
def test_a_text_longer_than_the_memory_leaves_its_end() -> None:
    memory = Memory(64)
    memory.add(list(range(200)))
    assert memory.automaton.size <= 64
    place = Place(memory.automaton)
    place.follow(memory.automaton, range(180, 200))
    assert place.found()[1] == memory.longest == 15


def test_what_followed_in_a_former_answer_is_drafted() -> None:
    drafter = RecallDrafter()
    answered(drafter, [40, 41], [1, 2, 3, 4, 5, 6, 7, 8])
    grown = asked(drafter, [30, 31, 3, 4, 5])
    assert grown.token.tolist() == [6, 7, 8]
    assert grown.features["match_length"].tolist() == [3.0, 4.0, 5.0]
    assert not len(asked(drafter, [30, 31]))
    tree.check(asked(drafter, [9, 7, 8]), VOCAB)  # what follows is the end of a text
    assert not len(asked(drafter, [9, 7, 8]))


def test_of_a_prompt_only_its_last_tokens_are_kept() -> None:
    drafter = RecallDrafter()
    answered(drafter, list(range(20, 30)), [1, 2, 3])
    assert asked(drafter, [29 - 1, 29]).token.tolist() == [1, 2, 3]
    automaton = drafter.memory.automaton
    assert set(automaton.next[0]) == {*range(30 - BEFORE, 30), 1, 2, 3, END}


def test_parts_of_a_prompt_and_further_turns() -> None:
    drafter, one = RecallDrafter(), request()
    drafter.taught = True
    drafter.start(one)
    for part in ([11, 12, 13], [14], [15, 16]):  # chunks of one prompt
        told(drafter, one, part, step=False)
    told(drafter, one, [1, 2], step=True)
    told(drafter, one, [21, 22, 23, 24, 25], step=False)  # a further turn
    told(drafter, one, [3], step=True)
    drafter.finish(one)
    (ended,) = drafter.waiting
    assert ended.tokens == [13, 14, 15, 16, 1, 2, END, 22, 23, 24, 25, 3]
    assert ended.steps == [(4, 1), (11, 0)]


def test_a_request_without_an_answer_leaves_nothing() -> None:
    drafter = RecallDrafter()
    answered(drafter, [1, 2, 3], [])
    drafter.finish(request("unknown"))
    assert drafter.memory.automaton.size == 0


@pytest.mark.parametrize("seed", range(3))
def test_it_keeps_the_contract_of_drafters(seed: int) -> None:
    def make() -> RecallDrafter:
        draw, drafter = np.random.default_rng(100), RecallDrafter()
        for _ in range(4):
            answered(drafter, [1], draw.integers(0, 5, 60).tolist())
        return drafter

    check_drafter(make, seed=seed)


def test_copies_end_with_a_turn() -> None:
    """What stands after the end of a turn is the next prompt, which nobody drafts."""
    turns = [1, 2, 3, 4, END, 7, 8, 9, 10, 11, 12]
    drafter = RecallDrafter()
    drafter.waiting.extend(Ended(turns, [(4, 0), (10, 0)]) for _ in range(8))
    assert judged(drafter).gain == 0.5  # of the two steps the second copies a token


def test_whoever_lets_go_of_a_request_only_lays_its_answer_down() -> None:
    """A session that is dropped is finished by any thread, in the middle of anything."""
    drafter = RecallDrafter()
    answered(drafter, [1], [2, 3, 4, 2, 3, 4])
    assert drafter.memory.automaton.size == 0
    assert len(drafter.waiting) == 1
    assert asked(drafter, [9, 2, 3]).token.tolist()[:1] == [4]
    assert not drafter.waiting


def test_what_waits_is_bounded_by_tokens_as_well() -> None:
    drafter = RecallDrafter(tokens=400)
    drafter.taught = True
    for _ in range(10):
        answered(drafter, [1], list(range(40)))
        drafter.start(request("next"))
        assert sum(len(one.tokens) for one in drafter.waiting) <= 100
    answered(drafter, [1], list(range(50)) * 10)
    (one, *_) = reversed(drafter.waiting)
    assert len(one.tokens) == drafter.memory.longest
    assert one.steps[0][0] == 0
    assert one.steps[-1] == (len(one.tokens) - 1, 0)


def test_arms_of_others_need_not_say_what_they_move() -> None:
    class Other:
        name, needs_passages = "other", False
        settled = 0

        def pieces(self) -> Any:
            return iter([Outcome(1.0, 0.1, True, "better")])

        def settle(self, kept: bool) -> None:
            self.settled += kept

    model, arm = tiny_model(), Other()
    drafter = CausalParallelDrafter(tiny_head(model), 1024)
    learner = HeadLearner(drafter, Every(4, ("other",)), makers={"other": lambda *_: arm})
    with AdaptiveDecoder(model, {"policy": "fixed:8"}, drafter=drafter, learner=learner) as one:
        run(one, PROMPT, max_new_tokens=40)
        assert not one.faults.count
    assert learner.updates == arm.settled > 1


def test_a_cheap_arm_does_not_keep_dear_ones_from_their_turn() -> None:
    """Recall pays at every turn; the whole head would, too."""
    costs = {"full": 2.0, "corrector": 0.1, "calibrator": 0.05, RECALL: 0.005}
    gains = {"full": 0.1, "corrector": 0.0, "calibrator": 0.0, RECALL: 0.3}

    def tried(arms: tuple[str, ...]) -> list[str]:
        rule, seconds, found = CostAware(arms=arms), 0.0, []
        for step in range(1, 40_000):
            seconds += 0.05
            ready = [arm for arm in arms if arm != RECALL or step % 200 < 2]
            opinion = rule.ask(View(step, 40.0, 20.0, seconds), ready)
            if opinion is not None and opinion.arm is not None:
                found.append(opinion.arm)
                seconds += costs[opinion.arm]
                rule.told(opinion.arm, gains[opinion.arm], 0.01, costs[opinion.arm])
        return found

    alone, beside = tried(ARMS), tried((*ARMS, RECALL))
    assert beside.count(RECALL) > 50
    assert beside.count("full") > 0.5 * alone.count("full") > 50


def test_what_recall_wins_is_no_reason_for_something_dear_and_an_undone_head_is_not_its_fault() -> (
    None
):
    rule = CostAware(arms=(*ARMS, RECALL))
    rule.ask(View(1, 40.0, 20.0, 1000.0), list(ARMS))
    before = rule._purse
    for _ in range(100):
        rule.told(RECALL, 0.5, 0.01, 0.005)
    assert rule._purse <= before
    wait = rule._records[RECALL].wait
    rule.reviewed(stays=False)
    assert rule._records[RECALL].wait == wait
    assert rule._purse >= before - 100 * 0.005 - 1e-9


@pytest.mark.parametrize("option", ["tokens", "siblings", "contexts", "shortest", "walk"])
def test_options_are_checked(option: str) -> None:
    bad: dict[str, Any] = {option: 0}
    with pytest.raises(ArgumentError, match=option):
        RecallDrafter(**bad)
    with pytest.raises(ArgumentError, match="takes none"):
        RecallDrafter("model")


SAMPLED = {"do_sample": True, "temperature": 0.8, "seed": 4}


@pytest.mark.fault("L2", "L9", "L11", "L12")
@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("call", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_text_does_not_depend_on_what_is_remembered(kind: str, call: Any, coupled: bool) -> None:
    """The same prompts again and again, alone and packed with others that join on the way."""
    model = tiny_model(kind)
    config = {"policy": "fixed:8", "drafter": "suffix+recall", "coupled": coupled}
    prompts = [[*PROMPT, 20 + number] for number in range(3)]
    wanted = [plain(model, prompt, max_new_tokens=50, **call) for prompt in prompts]
    with AdaptiveDecoder(model, config) as decoder:
        for _ in range(2):
            found = [run(decoder, prompt, max_new_tokens=50, **call) for prompt in prompts]
            assert found == wanted
        sessions = []
        for prompt in prompts:
            sessions.append(decoder.start(prompt, max_new_tokens=50, **call))
            decoder.step(sessions)
        while alive := [one for one in sessions if not one.finished]:
            decoder.step(alive)
        assert [one.generated for one in sessions] == wanted
        # What has been answered before is drafted whole: few forwards are left.
        assert all(one.stats.num_spec_steps < 15 for one in sessions)
        assert not decoder.faults.count


def ended(text: Sequence[int], steps: int) -> Ended:
    return Ended(list(text), [(at, 0) for at in range(1, 1 + steps)])


def judged(drafter: RecallDrafter, arm: RecallArm | None = None) -> Any:
    arm = arm or RecallArm(drafter)
    found = arm.pieces()
    assert found is not None
    *_, outcome = found
    assert outcome is not None
    arm.settle(outcome.kept)
    return outcome


def test_answers_that_resemble_each_other_are_remembered_and_others_are_not() -> None:
    draw = np.random.default_rng(0)
    same = draw.integers(0, 1000, 60).tolist()
    alike, strange = RecallDrafter(), RecallDrafter()
    alike.waiting.extend(ended(same, 40) for _ in range(8))
    outcome = judged(alike)
    assert outcome.kept
    assert outcome.gain > 5.0
    assert alike.memory.automaton.size > 8 * 60
    assert not alike.waiting
    remembered, arm = [], RecallArm(strange)
    for _ in range(20):  # it takes some to show that there is nothing
        strange.waiting.extend(ended(draw.integers(0, 1000, 60).tolist(), 40) for _ in range(8))
        outcome = judged(strange, arm)
        assert outcome.gain == 0.0
        remembered.append(outcome.kept)
    assert remembered[0]
    assert not any(remembered[-5:])
    assert strange.waiting
    strange.waiting.extend(ended(same, 40) for _ in range(32))  # and less to see that there is
    assert judged(strange, arm).kept


def test_what_is_known_already_or_accepted_anyway_is_no_gain() -> None:
    same = np.random.default_rng(0).integers(0, 1000, 60).tolist()
    drafter = RecallDrafter()
    drafter.memory.add(same)
    drafter.waiting.extend(ended(same, 40) for _ in range(8))
    assert judged(drafter).gain == 0.0
    drafter = RecallDrafter()
    steps = [(at, 16) for at in range(1, 41)]
    drafter.waiting.extend(Ended(same, steps) for _ in range(8))
    assert judged(drafter).gain == 0.0


def test_too_few_answers_are_not_judged() -> None:
    drafter = RecallDrafter()
    drafter.waiting.extend(ended(range(20), 10) for _ in range(LEAST - 1))
    assert RecallArm(drafter).pieces() is None


def test_answers_that_come_during_a_trial_wait_on() -> None:
    drafter, same = RecallDrafter(), list(range(30))
    arm = RecallArm(drafter)
    drafter.waiting.extend(ended(same, 20) for _ in range(WAITING))
    found = arm.pieces()
    assert found is not None
    late = ended(range(50, 80), 20)
    drafter.waiting.append(late)  # displaces the oldest
    *_, outcome = found
    assert outcome is not None
    arm.settle(True)
    assert list(drafter.waiting) == [late]


@pytest.mark.fault("U3", "L9")
@pytest.mark.parametrize("background", [False, True])
def test_a_learner_decides_what_is_remembered(background: bool) -> None:
    model = tiny_model()
    drafters = [CausalParallelDrafter(tiny_head(model), 1024), recall := RecallDrafter()]
    rule = Every(4, (RECALL,))
    with pytest.raises(UnsupportedError, match="no recall"):
        HeadLearner(drafters[0], rule)  # nothing that could remember
    learner = HeadLearner(drafters[0], rule, recall=recall, background=background)
    weights = {k: v.clone() for k, v in drafters[0].head.state_dict().items()}
    prompts = [[*PROMPT, 20 + number % 2] for number in range(16)]
    steps = []
    with AdaptiveDecoder(model, {"policy": "fixed:8"}, drafter=drafters, learner=learner) as one:
        for prompt in prompts:
            with one.start(prompt, max_new_tokens=60) as session:
                while not session.finished:
                    session.step()
                assert session.generated == plain(model, prompt, max_new_tokens=60)
                steps.append(session.stats.num_spec_steps)
        assert not one.faults.count
    assert learner.updates >= 1
    assert steps[-1] < steps[0] / 2
    assert learner.head_version == "0"
    assert all(bool((weights[k] == v).all()) for k, v in drafters[0].head.state_dict().items())


def test_who_remembers() -> None:
    model = tiny_model()

    def drafter(updates: str) -> str:
        head = {"head": "some"}
        config = {"causal_parallel": head, "online": {"updates": updates}}
        return settle(load_config(config), model).drafter

    assert drafter("never") == drafter("head-only") == "causal_parallel:some+suffix"
    assert drafter("every:200") == drafter("always") == drafter("corrector-only:9")
    assert drafter("cost-aware") == drafter("every:5@recall") == f"{drafter('never')}+recall"
    assert RECALL in find_rule("cost-aware").arms
    assert RECALL not in find_rule("every:200").arms


@pytest.mark.fault("U4")
def test_thousands_of_requests_take_no_more_memory() -> None:
    draw, drafter = np.random.default_rng(0), RecallDrafter(tokens=2_000)
    drafter.taught = True
    arm = RecallArm(drafter)
    for number in range(2_000):
        answered(drafter, [1, 2], draw.integers(0, 50, 8).tolist(), name=f"r{number}")
        if number % 10 == 9 and (found := arm.pieces()) is not None:
            for _ in found:
                pass
            arm.settle(True)
        assert drafter.memory.automaton.size <= 2_000
        assert len(drafter.waiting) <= WAITING
    assert not drafter._open


def test_a_token_costs_the_same_however_much_is_remembered() -> None:
    def seconds(size: int) -> float:
        draw, memory = np.random.default_rng(1), Memory(10 * size)
        pieces = [draw.integers(0, 500, 100).tolist() for _ in range(size // 100)]
        began = time.perf_counter()
        for piece in pieces:
            memory.add(piece)
        place = Place(memory.automaton)
        place.follow(memory.automaton, pieces[0] * 5)
        return (time.perf_counter() - began) / size

    small = min(seconds(2_000) for _ in range(3))
    assert seconds(40_000) < 10 * small  # a quadratic cost would show as a factor of 20


def test_states_part_while_an_automaton_grows() -> None:
    """The control of the test above: without looking below, a place would name another suffix."""
    automaton = SuffixAutomaton()
    automaton.extend([1, 2, 3, END])
    place = Place(automaton)
    place.follow(automaton, [2, 3])
    before = place.found()[0]
    automaton.extend([9, 2, 3, 4, END])  # (2, 3) has now a life beside (1, 2, 3)
    after, matched = place.found()
    assert matched == 2
    assert after != before
    assert 4 in automaton.next[after]
    assert all(a != b for a, b in pairwise([before, after]))
