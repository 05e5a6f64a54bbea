"""Losslessness: whatever is drafted, the text is that of plain decoding and of transformers.

Every test compares token lists for equality (yardstick E) on tiny random models in fp32; the law of
sampling and the keyed noise have their own file, ``test_law.py``. That the comparisons can fail is
shown by ``test_a_wrong_verifier_is_noticed``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from oracle import PROMPTS, Answers, by_transformers, oracle, sampled, spec

from adaptive_spec import verifying
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.testing.controllers import RandomBudget
from adaptive_spec.testing.drafters import ScriptedDrafter
from adaptive_spec.testing.tiny import KINDS, TableLM
from adaptive_spec.testing.yardsticks import check_state, run
from adaptive_spec.types import ROOT

GRID = ("llama", "qwen3", "gemma3")
NEW = 64
PACKS = [PROMPTS[a:b] for a, b in ((0, 1), (1, 3), (3, 6), (6, 10), (10, 20))]


@pytest.fixture(scope="module")
def truth(tiny: Any) -> Callable[[str], Answers]:
    """kind -> what transformers makes of the prompts."""
    return cache(lambda kind: by_transformers(tiny(kind), PROMPTS, NEW))


@pytest.mark.fault("L1")
@pytest.mark.parametrize("kind", GRID)
def test_plain_decoding_is_transformers(tiny: Any, plain: Any, truth: Any, kind: str) -> None:
    decoder = plain(tiny(kind))
    sessions = [decoder.start(prompt, max_new_tokens=NEW) for prompt in PROMPTS]
    while live := [session for session in sessions if not session.finished]:
        decoder.step(live)
    for prompt, session in zip(PROMPTS, sessions, strict=True):
        assert session.tokens == truth(kind)[tuple(prompt)]
        session.close()
    assert run(decoder, PROMPTS[0], max_new_tokens=NEW) == truth(kind)[tuple(PROMPTS[0])][2:]


@pytest.mark.fault("L1")
@pytest.mark.parametrize(
    ("budget", "pattern", "decoys"),
    [
        (1, (1, 0, 1), 0),
        (3, (3, 1, 0, 2, 3, 3, 1), 0),
        (8, (4, 0, 7, 2, 3), 1),
        (16, (5, 8, 0, 3), 1),
        (64, (15, 2, 9, 16), 3),
    ],
)
@pytest.mark.parametrize("kind", GRID)
def test_every_budget_gives_the_text_of_plain(
    tiny: Any,
    make: Any,
    truth: Any,
    kind: str,
    budget: int,
    pattern: tuple[int, ...],
    decoys: int,
) -> None:
    answers, drafted, accepted = truth(kind), 0, 0
    decoder = spec(make, tiny(kind), answers, pattern, policy=f"fixed:{budget}", decoys=decoys)
    for pack in PACKS:
        sessions = [decoder.start(prompt, max_new_tokens=NEW) for prompt in pack]
        while live := [session for session in sessions if not session.finished]:
            decoder.step(live)
        for prompt, session in zip(pack, sessions, strict=True):
            assert session.tokens == answers[tuple(prompt)]
            drafted += session.stats.num_draft_tokens
            accepted += session.stats.num_accepted_draft_tokens
            session.close()
    assert 0 < accepted < drafted
    decoder.check_integrity()


@pytest.mark.fault("L1", "L9")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture(tiny: Any, make: Any, kind: str, attention: str) -> None:
    """Suffix and scripted drafts, random budgets, two prompts packed, and the state at the end."""
    model, prompts = tiny(kind, attention=attention), PROMPTS[3:6]
    answers = by_transformers(model, prompts, 24)
    scripted = ScriptedDrafter(oracle(answers), (2, 0, 4, 1), decoys=2)
    for drafter in (None, scripted):
        policies = {"random": RandomBudget(most=20, seed=3)}
        decoder = make(model, "random", drafter=drafter, controllers=policies)
        sessions = [decoder.start(prompt, max_new_tokens=24) for prompt in prompts]
        while live := [session for session in sessions if not session.finished]:
            decoder.step(live)
        for session in sessions:
            assert session.tokens == answers[tuple(session.tokens[: session.prompt_length])]
            check_state(session)
            session.close()


@pytest.mark.fault("L1")
def test_bfloat16_differs_at_ties_only(tiny: Any, make: Any) -> None:
    """T: equal up to the first mismatch, where plain's top two are at most 2 ulp apart."""
    model = copy.deepcopy(tiny("llama")).to(torch.bfloat16)
    reference, drafting = make(model), make(model, "fixed:12")
    ties = compared = 0
    for prompt in PROMPTS[:3]:
        with reference.start(
            prompt, max_new_tokens=40, output_logits=True, return_dict_in_generate=True
        ) as session:
            list(session)
            wanted, logits = session.generated, session.logits
        got = run(drafting, prompt, max_new_tokens=40)
        place = next((i for i in range(40) if got[i] != wanted[i]), 40)
        compared += place
        if place < 40:
            top, second = logits[place].topk(2).values.tolist()
            assert top - second <= 2 * 2.0 ** (np.floor(np.log2(abs(top))) - 7)
            ties += 1
    print(f"bf16: {ties} ties in {compared} tokens")
    assert compared >= 20


def _wrong_walk(tree: CandidateTree, choose: Callable[[int], int]) -> Iterator[tuple[int, int]]:
    """A verifier that takes the best draft token wherever there is one."""
    for node, token in verifying_walk(tree, choose):
        below = np.flatnonzero(tree.parent == node)
        if node == ROOT and len(below):
            yield node, int(tree.token[below[0]])
            return
        yield node, token


verifying_walk = verifying.walk


@pytest.mark.fault("L1", "L2")
def test_a_wrong_verifier_is_noticed(
    tiny: Any, make: Any, truth: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of this file."""
    decoder = spec(make, tiny("llama"), truth("llama"), (0,), decoys=0)
    monkeypatch.setattr(verifying, "walk", _wrong_walk)
    wrong = run(decoder, PROMPTS[0], max_new_tokens=NEW)
    assert wrong != truth("llama")[tuple(PROMPTS[0])][2:]


FORBIDDEN = list(range(40, 60))


@pytest.mark.fault("L3")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_forbidden_tokens_are_never_emitted(
    tiny: Any, make: Any, plain: Any, temperature: float
) -> None:
    """Every draft consists of tokens that the processor forbids, and that plain would like."""
    model, prompt = tiny("llama"), PROMPTS[0]
    sampling = sampled(temperature)
    free = run(plain(model), prompt, max_new_tokens=60, **sampling)
    assert set(free) & set(FORBIDDEN), "without the rule they are emitted"
    call = {"max_new_tokens": 60, "suppress_tokens": FORBIDDEN, **sampling}
    wanted = run(plain(model), prompt, **call)
    answers = {tuple(prompt): prompt + FORBIDDEN * 8}
    decoder = spec(make, model, answers, (6,), decoys=0)
    with decoder.start(prompt, **call) as session:
        list(session)
        assert session.generated == wanted
        assert not set(session.generated) & set(FORBIDDEN)
        assert session.stats.num_draft_tokens > 60
        assert session.stats.num_accepted_draft_tokens == 0
    if not temperature:
        theirs = by_transformers(model, [prompt], 60, suppress_tokens=FORBIDDEN)
        assert theirs[tuple(prompt)] == prompt + wanted


def _lowest(table: np.ndarray, start: int, count: int) -> list[int]:
    """Greedy decoding by hand: the lowest id among the best."""
    tokens = [start]
    for _ in range(count):
        tokens.append(int(np.flatnonzero(table[tokens[-1]] == table[tokens[-1]].max())[0]))
    return tokens[1:]


@pytest.mark.fault("L4")
@pytest.mark.parametrize("vocab", [8, 97, 1031])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_exact_ties_go_to_the_lowest_id(make: Any, vocab: int, levels: int) -> None:
    """Logits from 1 (flat), 2 or 4 distinct values, in every path that picks an argmax."""
    table = np.random.default_rng(vocab + levels).integers(0, levels, (vocab, vocab))
    model = TableLM(torch.tensor(table, dtype=torch.float32))
    wanted = _lowest(table, 3, 30)
    answers = {(5, 3): [5, 3, *wanted]}
    kept = {"output_scores": True, "return_dict_in_generate": True}
    paths: list[dict[str, Any]] = [{}, kept, {"logits_processor": [lambda ids, scores: scores]}]
    for call in paths:
        assert run(make(model), [5, 3], max_new_tokens=30, **call) == wanted
        decoder = spec(make, model, answers, (3, 0, 5))
        assert run(decoder, [5, 3], max_new_tokens=30, **call) == wanted
    assert by_transformers(model, [[5, 3]], 30)[5, 3][2:] == wanted


@pytest.mark.fault("L5")
@pytest.mark.parametrize("kind", GRID)
def test_the_first_token_is_emitted_and_checked(
    tiny: Any, make: Any, truth: Any, kind: str
) -> None:
    decoder = spec(make, tiny(kind), truth(kind), (3,))
    for prompt in PROMPTS[::4]:
        first = truth(kind)[tuple(prompt)][len(prompt)]
        assert run(decoder, prompt, max_new_tokens=1) == [first]
        with decoder.start(prompt, max_new_tokens=9, eos_token_id=first) as session:
            assert list(session) == [[first]]
            assert session.finish_reason == "stop"


@pytest.mark.fault("L9")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_budgets_and_policies_may_change_at_every_step(
    tiny: Any, make: Any, plain: Any, temperature: float
) -> None:
    call = sampled(temperature, seed=9)
    names = ["plain", "fixed:8", "random", "fixed:1", "marginal", "ratio", "fixed:64", "marginal:1"]
    for kind, seed in (("llama", 0), ("gemma3", 1)):
        model, prompt = tiny(kind), PROMPTS[9 + seed]
        wanted = run(plain(model), prompt, max_new_tokens=30, **call)
        answers = {tuple(prompt): prompt + wanted}
        policies = {"random": RandomBudget(most=12, seed=seed)}
        decoder = spec(make, model, answers, (3, 0, 6, 1), policy="random", controllers=policies)
        draw = np.random.default_rng(seed)
        with decoder.start(prompt, max_new_tokens=30, **call) as session:
            while not session.finished:
                session.set_policy(names[draw.integers(len(names))])
                session.step()
            assert session.generated == wanted
