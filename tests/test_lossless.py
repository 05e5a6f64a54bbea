"""Losslessness: whatever is drafted, the text is that of plain decoding and of transformers.

Every test compares token lists for equality (yardstick E) on tiny random models in fp32; the law of
sampling and the keyed noise have their own file, ``test_law.py``. That the comparisons can fail is
shown by ``test_a_wrong_verifier_is_noticed``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import cycle, product
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_spec import verifying
from adaptive_spec.drafters.base import CandidateTree, DraftRequest
from adaptive_spec.sampling import derive_seed
from adaptive_spec.testing.controllers import RandomBudget
from adaptive_spec.testing.drafters import RogueDrafter, ScriptedDrafter, flat_tree
from adaptive_spec.testing.tiny import KINDS, VOCAB, TableLM
from adaptive_spec.testing.yardsticks import check_state, run
from adaptive_spec.types import ROOT

GRID = ("llama", "qwen3", "gemma3")
LENGTHS = (2, 5, 11, 23)
NEW = 64
DRAW = np.random.default_rng(20)
PROMPTS = [DRAW.integers(3, VOCAB, size=length).tolist() for length in LENGTHS for _ in range(5)]
PACKS = [PROMPTS[a:b] for a, b in ((0, 1), (1, 3), (3, 6), (6, 10), (10, 20))]
Answers = dict[tuple[int, ...], list[int]]


def oracle(answers: Answers) -> Callable[[DraftRequest], list[int]]:
    """What a ``ScriptedDrafter`` reads the target's path from."""
    return lambda request: answers[tuple(request.tokens[: request.prompt_length])]


def by_transformers(model: Any, prompts: Sequence[list[int]], new: int, **call: Any) -> Answers:
    """Prompt and greedy output of ``model.generate``, prompts of one length at a time."""
    answers: Answers = {}
    for length in sorted({len(prompt) for prompt in prompts}):
        batch = torch.tensor([prompt for prompt in prompts if len(prompt) == length])
        rows = model.generate(batch, max_new_tokens=new, do_sample=False, **call).tolist()
        answers.update({tuple(row[:length]): row for row in rows})
    return answers


def spec(make: Any, model: Any, answers: Answers, pattern: Sequence[int], **rest: Any) -> Any:
    """A decoder whose drafts are right as often as ``pattern`` says."""
    policy = rest.pop("policy", "fixed:16")
    drafter = ScriptedDrafter(oracle(answers), pattern, rest.pop("decoys", 1))
    return make(model, policy, drafter=drafter, **rest)


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
    answers = by_transformers(model, prompts, 32)
    scripted = ScriptedDrafter(oracle(answers), (2, 0, 4, 1), decoys=2)
    for drafter in (None, scripted):
        policies = {"random": RandomBudget(most=20, seed=3)}
        decoder = make(model, "random", drafter=drafter, controllers=policies)
        sessions = [decoder.start(prompt, max_new_tokens=32) for prompt in prompts]
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
    for prompt in PROMPTS[:4]:
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
    assert compared >= 40


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
    sampling = {"do_sample": temperature > 0, "temperature": temperature or None, "seed": 5}
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


class _Several(ScriptedDrafter):
    """One scripted drafter per request id, each with its own pattern and number of decoys."""

    def __init__(self, answers: Answers, patterns: dict[str, tuple[int, ...]]) -> None:
        super().__init__(oracle(answers))
        self._each = {
            name: ScriptedDrafter(oracle(answers), pattern, decoys=int(name) % 3)
            for name, pattern in patterns.items()
        }

    def propose(self, requests: Any, plans: Any) -> list[CandidateTree]:
        pairs = zip(requests, plans, strict=True)
        return [self._each[request.id].propose([request], [plan])[0] for request, plan in pairs]


@pytest.mark.fault("L6")
def test_every_order_of_accepted_lengths(tiny: Any, make: Any, truth: Any) -> None:
    """All patterns of length 4 over 0..3; the histogram proves that they came about."""
    answers, cap = truth("llama"), 20
    patterns = list(product(range(4), repeat=4))
    for first in range(0, len(patterns), 32):
        packed = {str(i): patterns[first + i] for i in range(32)}
        decoder = make(tiny("llama"), "fixed:16", drafter=_Several(answers, packed))
        sessions = [decoder.start(PROMPTS[i % 20], max_new_tokens=cap) for i in range(32)]
        lengths: dict[str, list[int]] = {session.id: [] for session in sessions}
        while live := [session for session in sessions if not session.finished]:
            for session, tokens in zip(live, decoder.step(live), strict=True):
                lengths[session.id].append(len(tokens))
        for session in sessions:
            prompt = session.tokens[: session.prompt_length]
            assert session.generated == answers[tuple(prompt)][len(prompt) :][:cap]
            wanted, turn = [], cycle(packed[session.id])
            while sum(wanted) < cap:
                wanted.append(min(next(turn) + 1, cap - sum(wanted)))
            assert lengths[session.id] == wanted, packed[session.id]


@pytest.mark.fault("L6")
@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
def test_the_state_after_every_step(tiny: Any, make: Any, kind: str) -> None:
    """S on every 29th pattern; the window of gemma3 is 8, so slots fall out of it."""
    prompt = PROMPTS[7]
    answers = by_transformers(tiny(kind), [prompt], 24)
    for pattern in list(product(range(4), repeat=4))[::29]:
        decoder = spec(make, tiny(kind), answers, pattern, decoys=2)
        got = run(decoder, prompt, after_step=check_state, max_new_tokens=24)
        assert got == answers[tuple(prompt)][len(prompt) :], pattern


BREAK: dict[str, Callable[[CandidateTree], Any]] = {
    "negative id": lambda t: replace(t, token=t.token - 100),
    "id of the vocabulary size": lambda t: replace(t, token=t.token * 0 + VOCAB),
    "huge id": lambda t: replace(t, token=t.token + 2**62),
    "fractional ids": lambda t: replace(t, token=t.token.astype(float)),
    "bool ids": lambda t: replace(t, token=t.token > 5),
    "list for an array": lambda t: replace(t, token=t.token.tolist()),
    "tensor for an array": lambda t: replace(t, token=torch.from_numpy(t.token)),
    "None for an array": lambda t: replace(t, parent=None),
    "short parents": lambda t: replace(t, parent=t.parent[:1]),
    "long ranks": lambda t: replace(t, rank=np.zeros(9, dtype=np.int64)),
    "two-dimensional": lambda t: replace(t, token=t.token[None]),
    "scalar": lambda t: replace(t, token=np.int64(5)),
    "NaN scores": lambda t: replace(t, logq=t.logq * np.nan),
    "infinite scores": lambda t: replace(t, logq=t.logq - np.inf),
    "positive scores": lambda t: replace(t, logq=np.abs(t.logq)),
    "whole scores": lambda t: replace(t, logq=t.rank),
    "twin siblings": lambda t: flat_tree([5, 5], [ROOT, ROOT]),
    "parent after child": lambda t: flat_tree([5, 6], [1, ROOT]),
    "own parent": lambda t: flat_tree([5], [0]),
    "parent below the root": lambda t: flat_tree([5], [-2]),
    "too many nodes": lambda t: flat_tree(list(range(9)), [ROOT] * 9),
    "too deep": lambda t: flat_tree(list(range(8)), list(range(-1, 7))),
    "ragged feature": lambda t: replace(t, features={"margin": np.zeros(7)}),
    "None": lambda t: None,
    "text": lambda t: "tree",
    "a list of ids": lambda t: [5, 6, 7],
    "raises": lambda t: 1 // 0,
}


class _Raises(RogueDrafter):
    """Raises in one call of the life cycle, from the ``after``-th call on."""

    def __init__(self, call: str, after: int = 0) -> None:
        super().__init__(lambda tree: tree)
        honest, self.calls = getattr(self, call), 0

        def dishonest(*args: Any) -> Any:
            self.calls += 1
            if self.calls > after:
                raise RuntimeError(f"{call} fails")
            return honest(*args)

        setattr(self, call, dishonest)


@pytest.mark.fault("L8", "N2")
@pytest.mark.parametrize("fault", BREAK)
def test_a_malformed_draft_is_no_draft(tiny: Any, make: Any, truth: Any, fault: str) -> None:
    prompt, policy = PROMPTS[6], "fixed:6" if fault != "too deep" else "fixed:9"
    rogue = RogueDrafter(BREAK[fault])
    decoder = make(tiny("llama"), policy, drafter=rogue, tree={"max_depth": 4})
    with decoder.start(prompt, max_new_tokens=12) as session:
        list(session)
        assert session.tokens == truth("llama")[tuple(prompt)][: len(prompt) + 12]
        assert session.stats.draft_faults >= 11, "each draft is counted"
        assert session.stats.num_draft_tokens == 0
        check_state(session)


@pytest.mark.fault("L8")
def test_the_rogue_without_a_fault_is_verified(tiny: Any, make: Any) -> None:
    """Negative control: the tree that is broken above is itself sound."""
    decoder = make(tiny("llama"), "fixed:6", drafter=RogueDrafter(lambda tree: tree))
    with decoder.start(PROMPTS[6], max_new_tokens=40) as session:
        for _ in range(5):
            session.step()
        assert session.stats.draft_faults == 0
        assert session.stats.num_draft_tokens == 15


@pytest.mark.fault("L8")
@pytest.mark.parametrize(
    ("call", "after"), [("start", 0), ("propose", 0), ("commit", 0), ("commit", 3), ("finish", 0)]
)
def test_a_drafter_that_raises(tiny: Any, make: Any, truth: Any, call: str, after: int) -> None:
    decoder = make(tiny("llama"), "fixed:6", drafter=_Raises(call, after))
    for prompt in PROMPTS[6:8]:
        with decoder.start(prompt, max_new_tokens=12) as session:
            list(session)
            assert session.tokens == truth("llama")[tuple(prompt)][: len(prompt) + 12]
            assert session.stats.draft_faults > 0 or call == "finish"
    decoder.check_integrity()
    assert decoder.requests.pool.free == decoder.requests.pool.limit


@pytest.mark.fault("L8")
@pytest.mark.parametrize("answers", [None, [], [CandidateTree.empty()] * 3, 7])
def test_a_wrong_number_of_trees(tiny: Any, make: Any, truth: Any, answers: Any) -> None:
    rogue = RogueDrafter(lambda tree: tree)
    rogue.propose = lambda requests, plans: answers  # type: ignore[method-assign]
    decoder = make(tiny("llama"), "fixed:6", drafter=rogue)
    with decoder.start(PROMPTS[6], max_new_tokens=12) as session:
        list(session)
        assert session.tokens == truth("llama")[tuple(PROMPTS[6])][: len(PROMPTS[6]) + 12]
        assert session.stats.draft_faults >= 11


@pytest.mark.fault("L9")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_budgets_and_policies_may_change_at_every_step(
    tiny: Any, make: Any, plain: Any, temperature: float
) -> None:
    call = {"do_sample": temperature > 0, "temperature": temperature or None, "seed": 9}
    names = ["plain", "fixed:8", "random", "fixed:1", "fixed:0", "fixed:64"]
    for kind, seed in product(("llama", "gemma3"), range(3)):
        model, prompt = tiny(kind), PROMPTS[9 + seed]
        wanted = run(plain(model), prompt, max_new_tokens=40, **call)
        answers = {tuple(prompt): prompt + wanted}
        policies = {"random": RandomBudget(most=12, seed=seed)}
        decoder = spec(make, model, answers, (3, 0, 6, 1), policy="random", controllers=policies)
        draw = np.random.default_rng(seed)
        with decoder.start(prompt, max_new_tokens=40, **call) as session:
            while not session.finished:
                session.set_policy(names[draw.integers(len(names))])
                session.step()
            assert session.generated == wanted


@pytest.mark.fault("L11")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_requests_that_join_and_leave(
    tiny: Any, make: Any, plain: Any, count: int, temperature: float
) -> None:
    """Ragged prompts, caps and policies; one joins per step, one is closed before its end."""
    for kind in ("llama", "gemma3"):
        model = tiny(kind)
        calls = [
            {
                "max_new_tokens": 10 + 7 * i % 23,
                "do_sample": temperature > 0,
                "temperature": temperature or None,
                "seed": derive_seed(4, i),
            }
            for i in range(count)
        ]
        prompts = [PROMPTS[(7 * i) % len(PROMPTS)] for i in range(count)]
        wanted = [run(plain(model), p, **c) for p, c in zip(prompts, calls, strict=True)]
        answers = {tuple(p): p + w for p, w in zip(prompts, wanted, strict=True)}
        decoder = spec(make, model, answers, (2, 0, 5, 1), cache={"slots": 16})
        names = ["fixed:16", "plain", "fixed:3"]
        sessions: list[Any] = []
        for turn in range(200):
            if turn < count:
                call = {**calls[turn], "policy": names[turn % 3]}
                sessions.append(decoder.start(prompts[turn], **call))
            live = [s for s in sessions if not s.finished]
            if not live:
                break
            decoder.step(live if turn % 4 else live[::-1])
            if turn == count and count > 2:
                sessions[1].close()
            for session in sessions[turn % count : turn % count + 1]:
                if not session.closed:
                    check_state(session)
            decoder.check_integrity()
        for i, session in enumerate(sessions):
            assert session.generated == wanted[i][: len(session.generated)]
            assert len(session.generated) == len(wanted[i]) or session.finish_reason == "closed"
            session.close()
        assert decoder.requests.pool.free == decoder.requests.pool.limit
