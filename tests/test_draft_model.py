"""The ``draft_model`` drafter: exact text, a true context (C5), failures that cost drafts only.

Token lists are compared for equality (yardstick E) on tiny random models in fp32. A drafter with
the target's own weights would show a context that is off by one: it must accept everything.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracle import PROMPTS, sampled

from adaptive_spec import tree as trees
from adaptive_spec.drafters import draft_model
from adaptive_spec.drafters.base import CandidateTree, Committed, Drafter, DraftRequest
from adaptive_spec.drafters.draft_model import DraftModelDrafter
from adaptive_spec.drafters.pairing import check_pairing
from adaptive_spec.errors import ArgumentError, UnsupportedError
from adaptive_spec.sampling import KeyedNoise
from adaptive_spec.testing.contracts import check_drafter
from adaptive_spec.testing.faults import NaNTarget, OOMTarget
from adaptive_spec.testing.tiny import VOCAB, tiny_model
from adaptive_spec.testing.yardsticks import check_state, run
from adaptive_spec.types import ROOT, Plan

MIDDLE = PROMPTS[10]
"""Eleven tokens."""


def noisy(model: Any, scale: float, seed: int = 0) -> Any:
    """A copy whose weights are off by ``scale`` standard deviations of each tensor."""
    copied, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in copied.parameters():
            shift = torch.randn(weight.shape, generator=draw)
            weight.add_(shift * weight.std() * scale)
    return copied


@pytest.fixture(scope="module")
def near(tiny: Any) -> Any:
    """A draft model that is often right about the tiny Llama, and often wrong."""
    return noisy(tiny("llama"), 0.1)


class Spy(DraftModelDrafter):
    """Notes what was proposed and what came of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.offered: list[tuple[int, int]] = []
        """(length of the text, nodes) of every proposal."""
        self.verified: list[tuple[CandidateTree, list[int]]] = []
        """Verified trees and the nodes that were visited."""

    def propose(self, requests: Any, plans: Any) -> list[CandidateTree]:
        grown = super().propose(requests, plans)
        self.offered += [(len(r.tokens), len(t)) for r, t in zip(requests, grown, strict=True)]
        return grown

    def commit(self, requests: Any, news: Sequence[Committed]) -> None:
        super().commit(requests, news)
        for new in news:
            if new.tree is not None and len(new.tree):
                self.verified.append((new.tree, (new.rows[1:] - new.first_row - 1).tolist()))


def first_path(tree: CandidateTree) -> list[int]:
    """From the root down, always the child that the drafter ranked first."""
    path, node = [], ROOT
    while len(best := np.flatnonzero((tree.parent == node) & (tree.rank == 0))):
        node = int(best[0])
        path.append(node)
    return path


@torch.no_grad()
def check_context(drafter: DraftModelDrafter, name: str, tokens: Sequence[int]) -> int:
    """The request's slots hold what a fresh prefill of its tokens gives; how many there are."""
    slots = drafter.pool.slots(drafter._contexts[name].owner)
    if slots:
        ids = torch.tensor([list(tokens[: len(slots)])])
        fresh = drafter.target.model(ids, use_cache=True).past_key_values
        for mine, theirs in zip(drafter.cache.layers, fresh.layers, strict=True):
            for kept, want in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
                have = kept[:, :, slots][:, :, -want.shape[2] :]
                scale = max(float(want.abs().max()), 1.0)
                assert float((have - want).abs().max()) <= 1e-5 * scale
    owned = {c.owner: len(drafter.pool.slots(c.owner)) for c in drafter._contexts.values()}
    drafter.pool.check_integrity(owned)
    return len(slots)


def ask(
    drafter: Drafter, tokens: list[int], plan: Plan, seed: int | None = None, **rest: Any
) -> CandidateTree:
    """One proposal for a request of its own."""
    noise = None if seed is None else KeyedNoise(seed)
    request = DraftRequest(
        "single", tokens, len(tokens), **{"temperature": 0.0, "vocab": VOCAB, **rest}, noise=noise
    )
    drafter.start(request)
    (tree,) = drafter.propose([request], [plan])
    drafter.finish(request)
    trees.check(tree, request.vocab, plan.nodes)
    return tree


def edges(tree: CandidateTree) -> list[tuple[int, int]]:
    return list(zip(tree.token.tolist(), tree.parent.tolist(), strict=True))


# -- the contract ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
def test_the_contract(tiny: Any, kind: str) -> None:
    check_drafter(lambda: DraftModelDrafter(tiny(kind), slots=16))
    check_drafter(lambda: DraftModelDrafter(tiny(kind), width=1, siblings=2), seed=1)


@pytest.mark.parametrize("seed", [None, 4])
def test_trees_are_nested_in_their_size(tiny: Any, seed: int | None) -> None:
    drafter, heat = DraftModelDrafter(tiny("llama"), width=2), 0.0 if seed is None else 0.8
    whole = edges(ask(drafter, MIDDLE, Plan(24, 6), seed, temperature=heat))
    assert len(whole) == 24
    for size in range(1, 24):
        some = edges(ask(drafter, MIDDLE, Plan(size, 6), seed, temperature=heat))
        assert some == whole[:size]


def test_children_are_what_the_model_expects(tiny: Any) -> None:
    """Root and deeper nodes against plain forwards of the same tokens, at the temperature."""
    model, heat = tiny("llama"), 0.7
    drafter = DraftModelDrafter(model, width=3, siblings=5, coupled=False)
    tree = ask(drafter, MIDDLE, Plan(40, 4), seed=1, temperature=heat)
    paths: list[list[int]] = []
    for parent, token in zip(tree.parent.tolist(), tree.token.tolist(), strict=True):
        paths.append([*(paths[parent] if parent >= 0 else []), token])
    assert max(map(len, paths)) == 4
    for node, path in enumerate(paths):
        with torch.no_grad():
            logits = model(torch.tensor([MIDDLE + path[:-1]])).logits[0, -1]
        logq = (logits.double() / heat).log_softmax(dim=-1)
        best, token = logq.sort(descending=True)
        assert tree.logq[node] == pytest.approx(float(logq[path[-1]]), abs=1e-4)
        assert token[tree.rank[node]] == path[-1]
        assert tree.features["margin"][node] == pytest.approx(float(best[0] - best[1]), abs=1e-4)
        entropy = float(-(logq * logq.exp()).sum())
        assert tree.features["entropy"][node] == pytest.approx(entropy, abs=1e-4)


def test_the_noise_ranks_children(tiny: Any) -> None:
    model, heat = tiny("llama"), 0.8
    tree = ask(DraftModelDrafter(model), MIDDLE, Plan(8, 1), seed=6, temperature=heat)
    with torch.no_grad():
        logits = model(torch.tensor([MIDDLE])).logits[0, -1].double()
    noise = KeyedNoise(6).gumbel(len(MIDDLE), np.arange(VOCAB))
    score = (logits / heat).log_softmax(dim=-1).numpy() + noise
    likely = logits.topk(64).indices.numpy()
    want = likely[np.argsort(-score[likely])][:8]
    assert tree.token.tolist() == want.tolist()
    unranked = ask(DraftModelDrafter(model, coupled=False), MIDDLE, Plan(8, 1), 6, temperature=heat)
    assert unranked.token.tolist() == logits.topk(8).indices.tolist()
    assert np.exp(tree.logq).sum() < 1


def test_a_plan_of_nothing_costs_nothing(tiny: Any, counted: Any) -> None:
    drafter = DraftModelDrafter(tiny("llama"))
    with counted(tiny("llama")) as rows:
        assert len(ask(drafter, MIDDLE, Plan(0, 4))) == 0
        assert len(ask(drafter, MIDDLE, Plan(4, 0))) == 0
        assert len(ask(drafter, [], Plan(4, 4))) == 0
        assert rows == []
        assert len(ask(drafter, MIDDLE, Plan(1, 8))) == 1
        assert rows == [len(MIDDLE)], "the best node needs no round"
        ask(drafter, MIDDLE, Plan(64, 3))
        assert len(rows) == 4, "as many forwards as levels"


def test_prompts_are_read_in_chunks(
    tiny: Any, counted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (MIDDLE * 8)[:80]
    want = edges(ask(DraftModelDrafter(tiny("llama")), text, Plan(8, 4)))
    monkeypatch.setattr(draft_model, "CHUNK", 30)
    with counted(tiny("llama")) as rows:
        got = edges(ask(DraftModelDrafter(tiny("llama"), slots=16), text, Plan(8, 4)))
    assert got == want
    assert rows[:3] == [30, 30, 20]


def test_asking_again_gives_the_same(tiny: Any, counted: Any) -> None:
    """A step may fail after the proposal: then the next one asks for the same text again."""
    drafter = DraftModelDrafter(tiny("llama"))
    request = DraftRequest("a", MIDDLE, len(MIDDLE), 0.0, None, VOCAB)
    drafter.start(request)
    first, second = (drafter.propose([request], [Plan(12, 5)])[0] for _ in "12")
    assert edges(first) == edges(second)
    with counted(tiny("llama")) as rows:
        (third,) = drafter.propose([request], [Plan(8, 1)])
    assert rows == [], "the root's children are known"
    assert edges(third)[0] == edges(first)[0]


def test_arguments_are_checked(tiny: Any) -> None:
    for option in ("width", "siblings", "slots", "candidates"):
        with pytest.raises(ArgumentError, match=option):
            DraftModelDrafter(tiny("llama"), **{option: 0})
    with pytest.raises(UnsupportedError, match="training mode"):
        DraftModelDrafter(copy.deepcopy(tiny("llama")).train())
    assert DraftModelDrafter(tiny("llama")).reads_noise
    assert not DraftModelDrafter(tiny("llama"), coupled=False).reads_noise


# -- the text does not depend on it ---------------------------------------------------------------

PACKS = (PROMPTS[4:5], PROMPTS[9:11], PROMPTS[3:16:3])
"""One, two and five prompts of several lengths."""


def together(decoder: Any, prompts: Sequence[list[int]], **call: Any) -> list[list[int]]:
    """Prompts of several lengths in packed steps; the new tokens of each."""
    sessions = [decoder.start(prompt, **call) for prompt in prompts]
    while live := [session for session in sessions if not session.finished]:
        decoder.step(live)
    for session in sessions:
        check_state(session)
        assert session.stats.draft_faults == 0
        session.close()
    return [session.generated for session in sessions]


@pytest.mark.fault("L12", "L1")
@pytest.mark.parametrize(
    ("temperature", "coupled"),
    [(0.0, True), *((t, c) for t in (0.3, 0.8, 1.2) for c in (True, False))],
)
def test_the_text_is_that_of_plain(
    tiny: Any, make: Any, plain: Any, near: Any, temperature: float, coupled: bool
) -> None:
    call = {"max_new_tokens": 14, **sampled(temperature)}
    drafter = Spy(near, coupled=coupled, slots=16)
    decoder, reference = make(tiny("llama"), "fixed:8", drafter=drafter), plain(tiny("llama"))
    for prompts in PACKS:
        want = [run(reference, prompt, **call) for prompt in prompts]
        assert together(decoder, prompts, **call) == want
    accepted = sum(len(nodes) for _, nodes in drafter.verified)
    assert 0 < accepted < sum(len(tree) for tree, _ in drafter.verified)
    drafter.pool.check_integrity({})


@pytest.mark.parametrize("kind", ["gpt2", "gemma3"])
def test_a_smaller_model_of_another_kind(tiny: Any, make: Any, plain: Any, kind: str) -> None:
    small = tiny(kind, hidden_size=16, num_hidden_layers=3, seed=9)
    call = {"max_new_tokens": 24, **sampled(0.8)}
    decoder = make(tiny("llama"), "fixed:8", drafter=DraftModelDrafter(small))
    want = [run(plain(tiny("llama")), prompt, **call) for prompt in PACKS[1]]
    assert together(decoder, PACKS[1], **call) == want


def test_coupling_accepts_more(tiny: Any, make: Any, near: Any) -> None:
    """Same seeds, same texts; the ranking is all that differs."""
    call = {"max_new_tokens": 60, **sampled(0.8)}
    steps = {}
    for coupled in (True, False):
        decoder = make(tiny("llama"), "fixed:8", drafter=DraftModelDrafter(near, coupled=coupled))
        with decoder.start(MIDDLE, **call) as session:
            list(session)
            steps[coupled] = session.stats.steps
    assert steps[True] < 0.85 * steps[False]


# -- C5: the draft side's cache -------------------------------------------------------------------


@pytest.mark.fault("C5")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral"])
def test_the_same_weights_accept_everything(
    tiny: Any, make: Any, kind: str, temperature: float
) -> None:
    """200 tokens and a further turn, chains of 8, the pool growing from 16 slots."""
    drafter = Spy(tiny(kind), siblings=1, slots=16, candidates=VOCAB)
    call = sampled(temperature) | ({"top_k": 0} if temperature else {})
    decoder = make(tiny(kind), "fixed:8", drafter=drafter)
    with decoder.start(MIDDLE, max_new_tokens=200, **call) as session:
        list(session)
        assert session.stats.steps <= 200 / 9 + 1
        session.extend([5, 6, 7], max_new_tokens=30)
        list(session)
        assert check_context(drafter, session.id, session.tokens) == drafter.offered[-1][0]
    for tree, visited in drafter.verified:
        assert visited == list(range(len(tree)))
    assert len(drafter.pool) > 128


@pytest.mark.fault("C5")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_off_by_one_would_show(
    tiny: Any, make: Any, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """Negative control: a drafter that never sees the last but one token."""

    def lossy(self: DraftModelDrafter, draft: Any) -> list[int]:
        have = len(self.pool.slots(draft.context.owner))
        missing = list(draft.request.tokens[have:])
        return [*missing[:-2], 3, missing[-1]] if len(missing) > 1 else missing

    monkeypatch.setattr(DraftModelDrafter, "_missing", lossy)
    drafter = Spy(tiny("llama"), siblings=1, candidates=VOCAB)
    decoder = make(tiny("llama"), "fixed:8", drafter=drafter)
    run(decoder, MIDDLE, max_new_tokens=40, **sampled(temperature))
    assert any(visited != list(range(len(tree))) for tree, visited in drafter.verified)


class Fickle(Spy):
    """Every third proposal is all wrong."""

    def propose(self, requests: Any, plans: Any) -> list[CandidateTree]:
        grown = super().propose(requests, plans)
        if len(self.offered) % 3 == 0:
            return [replace(tree, token=(tree.token + 1) % VOCAB) for tree in grown]
        return grown


@pytest.mark.fault("C5")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_the_context_survives_rejections(
    tiny: Any, make: Any, kind: str, temperature: float
) -> None:
    """Branches that are rejected in every step, trees that are all wrong, steps without drafts."""
    drafter = Fickle(tiny(kind), slots=16, candidates=VOCAB)
    decoder = make(tiny(kind), "fixed:8", drafter=drafter)
    call = sampled(temperature) | ({"top_k": 0} if temperature else {})
    policies = ["fixed:8", "plain", "fixed:3", "fixed:12", "plain", "plain"]
    rejected = 0
    with decoder.start(MIDDLE, max_new_tokens=60, **call) as session:
        for turn in ([], [9, 8, 7, 6]):
            if turn:
                session.extend(turn, max_new_tokens=40)
            step = 0
            while not session.finished:
                session.set_policy(policies[step % 6])
                step, before = step + 1, len(drafter.verified)
                session.step()
                have = check_context(drafter, session.id, session.tokens)
                assert have == drafter.offered[-1][0]
                for tree, visited in drafter.verified[before:]:
                    rejected += len(tree) - len(visited)
                    if len(drafter.offered) % 3:
                        best = first_path(tree)
                        assert visited[: len(best)] == best
        assert rejected > 100


@pytest.mark.fault("C5")
def test_packed_requests_accept_everything_too(tiny: Any, make: Any) -> None:
    drafter = Spy(tiny("llama"), siblings=1, slots=16)
    together(make(tiny("llama"), "fixed:4", drafter=drafter), PACKS[2], max_new_tokens=60)
    assert len(drafter.verified) >= 5 * 12
    assert all(visited == list(range(len(tree))) for tree, visited in drafter.verified)


# -- what the draft model cannot do ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_text_longer_than_its_context(tiny: Any, make: Any, plain: Any, kind: str) -> None:
    """No draft, no fault, no slot; before that, drafts up to the last position (the learned
    positions of GPT-2 would raise beyond it)."""
    drafter = Spy(tiny(kind, max_position_embeddings=48), slots=16)
    decoder, prompt = make(tiny("llama"), "fixed:8", drafter=drafter), PROMPTS[15]
    idle = decoder.start(MIDDLE, max_new_tokens=9)  # leaves its room to trees at the very end
    with decoder.start(prompt, max_new_tokens=80) as session:
        list(session)
        assert session.generated == run(plain(tiny("llama")), prompt, max_new_tokens=80)
        assert session.stats.draft_faults == 0
        assert drafter.pool.high_water == 0
    idle.close()
    assert all((nodes > 0) == (length <= 48) for length, nodes in drafter.offered)
    assert any(length > 48 for length, _ in drafter.offered)


def test_a_prompt_longer_than_its_context(tiny: Any, counted: Any) -> None:
    small = tiny("gpt2", max_position_embeddings=8)
    with counted(small) as rows:
        assert len(ask(DraftModelDrafter(small), MIDDLE, Plan(8, 8))) == 0
    assert rows == []
    full = ask(DraftModelDrafter(small), MIDDLE[:8], Plan(8, 8))
    assert trees.depths(full.parent).max() == 1, "children of the last position"


@pytest.mark.fault("M1")
def test_ids_that_only_one_of_the_two_has(tiny: Any, make: Any, plain: Any) -> None:
    larger, smaller = tiny("llama", vocab_size=128), tiny("llama", vocab_size=60)
    assert ask(DraftModelDrafter(larger, siblings=128), MIDDLE, Plan(96, 1)).token.max() < VOCAB
    assert len(ask(DraftModelDrafter(smaller), [3, 59], Plan(4, 2))) == 4
    assert len(ask(DraftModelDrafter(smaller), [3, 60, 4], Plan(4, 2))) == 0
    drafter = Spy(smaller)
    decoder = make(tiny("llama"), "fixed:8", drafter=drafter)
    prompt = [token for token in MIDDLE if token < 60]
    with decoder.start(prompt, max_new_tokens=40) as session:
        list(session)
        assert session.generated == run(plain(tiny("llama")), prompt, max_new_tokens=40)
        assert session.stats.draft_faults == 0
        assert max(session.tokens) >= 60
        assert drafter.pool.high_water == 0
    assert drafter.offered[0][1] > 0
    assert drafter.offered[-1][1] == 0


@pytest.mark.fault("N2")
@pytest.mark.parametrize(
    ("value", "cache", "place"),
    [
        (float("nan"), True, 2),
        (float("inf"), True, 2),
        (float("nan"), False, 40),
        (float("nan"), False, 41),
        (float("inf"), False, 41),
    ],
    ids=["NaN hidden in a chunk", "inf hidden in a chunk", "end of a chunk", "root", "inf root"],
)
def test_a_nan_of_one_request_stays_with_it(
    tiny: Any, make: Any, plain: Any, near: Any, value: float, cache: bool, place: int
) -> None:
    """In K and V of a chunk whose last row is sound, too: it shows in the next packed forward."""
    model, call = copy.deepcopy(near), {"max_new_tokens": 16}
    prompts = [PROMPTS[9], [5] * 42, PROMPTS[4]]
    want = [run(plain(tiny("llama")), prompt, **call) for prompt in prompts[::2]]
    texts = {token for text in [*want, *prompts] for token in text}
    prompts[1][place] = bad = next(token for token in range(3, VOCAB) if token not in texts)
    want.insert(1, run(plain(tiny("llama")), prompts[1], **call))
    drafter = Spy(model)
    decoder = make(tiny("llama"), "fixed:8", drafter=drafter)
    with NaNTarget(model, lambda ids: ids == bad, value=value, cache=cache) as fault:
        sessions = [decoder.start(prompt, **call) for prompt in prompts]
        while live := [session for session in sessions if not session.finished]:
            decoder.step(live)
            for layer in drafter.cache.layers:
                assert bool(torch.isfinite(layer.keys).all())
                assert bool(torch.isfinite(layer.values).all())
    assert fault.hurt > 0 or cache
    assert [session.generated for session in sessions] == want
    assert [session.stats.draft_faults for session in sessions] == [0, 0, 0]
    accepted = [session.stats.num_accepted_draft_tokens for session in sessions]
    assert min(accepted[::2]) > 0
    assert sessions[1].stats.num_draft_tokens == 0
    for session in sessions:
        session.close()
    drafter.pool.check_integrity({})


def test_a_nan_in_a_branch_costs_the_tree_only(tiny: Any) -> None:
    model = copy.deepcopy(tiny("llama"))
    drafter, plan = DraftModelDrafter(model), Plan(12, 4)
    requests = [DraftRequest(f"{i}", PROMPTS[i], 1, 0.0, None, VOCAB) for i in (4, 9)]
    for request in requests:
        drafter.start(request)
    sound = [edges(tree) for tree in drafter.propose(requests, [plan] * 2)]
    only = {token for token, _ in sound[0]} - {token for token, _ in sound[1]} - {sound[0][0][0]}
    only -= {token for token, _ in sound[0][-3:]}
    bad = next(token for token, parent in sound[0] if token in only and parent >= 0)
    with NaNTarget(model, lambda ids: ids == bad, cache=True) as fault:
        grown = [edges(tree) for tree in drafter.propose(requests, [plan] * 2)]
    assert fault.hurt > 0
    assert grown == [[], sound[1]]
    assert [edges(tree) for tree in drafter.propose(requests, [plan] * 2)] == sound


def test_exhausted_memory_is_a_fault_of_the_step_only(
    tiny: Any, make: Any, plain: Any, near: Any
) -> None:
    model = copy.deepcopy(near)
    drafter = Spy(model, slots=16)
    decoder = make(tiny("llama"), "fixed:8", drafter=drafter)
    with decoder.start(MIDDLE, max_new_tokens=40) as session:
        session.step()
        with OOMTarget(model, rows=2) as fault:
            for _ in range(3):
                session.step()
        assert fault.struck > 0
        assert session.stats.draft_faults == 3
        proposals = len(drafter.verified)
        list(session)
        assert session.stats.draft_faults == 3
        assert len(drafter.verified) > proposals
        assert session.generated == run(plain(tiny("llama")), MIDDLE, max_new_tokens=40)
        check_context(drafter, session.id, session.tokens)


def test_a_pool_without_memory_is_not_left_larger_than_it_is(near: Any) -> None:
    drafter = DraftModelDrafter(near, slots=4)
    with OOMTarget(near, rows=2), pytest.raises(torch.OutOfMemoryError):
        ask(drafter, MIDDLE, Plan(8, 4))
    assert len(drafter.pool) == 0
    assert len(ask(drafter, MIDDLE, Plan(8, 4))) == 8


# -- requests come and go -------------------------------------------------------------------------


def test_many_requests_leave_nothing(tiny: Any, make: Any, near: Any) -> None:
    drafter = DraftModelDrafter(near, slots=16)
    decoder = make(tiny("llama"), "fixed:4", drafter=drafter)
    for i in range(30):
        session = decoder.start([*MIDDLE, 3 + i], max_new_tokens=6)
        for _ in range(i % 4):
            if not session.finished:
                session.step()
        session.close()
    assert drafter._contexts == {}
    drafter.pool.check_integrity({})
    assert drafter.pool.free == drafter.pool.limit
    assert len(drafter.pool) <= 64


def test_finish_in_any_state(tiny: Any) -> None:
    drafter = DraftModelDrafter(tiny("llama"))
    request = DraftRequest("a", MIDDLE, len(MIDDLE), 0.0, None, VOCAB)
    drafter.finish(request)
    drafter.start(request)
    drafter.finish(request)
    drafter.finish(request)
    drafter.start(request)
    drafter.propose([request], [Plan(4, 4)])
    drafter.start(request)  # again, without a finish
    assert drafter.pool.high_water == 0
    drafter.propose([request], [Plan(4, 4)])
    assert drafter.pool.high_water == len(MIDDLE)
    drafter.finish(request)
    drafter.pool.check_integrity({})
    with pytest.raises(KeyError):
        drafter.propose([request], [Plan(4, 4)])


# -- M1: token maps -------------------------------------------------------------------------------


class Words:
    """A tokenizer that is its token map."""

    def __init__(self, words: str, **moved: int) -> None:
        self.map = {word: place for place, word in enumerate(words.split())} | moved

    def get_vocab(self) -> dict[str, int]:
        return self.map


@pytest.mark.fault("M1")
@pytest.mark.parametrize(
    ("target", "draft", "sizes"),
    [
        (Words("a b c"), Words("a b c"), (3, 3)),
        (Words("a b c"), Words("a b c"), (64, 3)),
        (Words("a b c"), Words("a b c"), (3, 64)),
        (Words("a b c d e"), Words("a b c"), (5, 3)),
        (Words("a b c"), Words("a b c d e"), (3, 5)),
        (Words("a b", end=7), Words("a b c"), (8, 8)),
        (None, None, (5, 5)),
        (Words("a b"), None, (5, 5)),
        (None, Words("a b"), (5, 5)),
    ],
    ids=[
        *("same", "target padded", "draft padded", "smaller", "larger", "gaps"),
        *("no maps", "target's map only", "draft's map only"),
    ],
)
def test_pairs_that_fit(target: Any, draft: Any, sizes: tuple[int, int]) -> None:
    check_pairing(target, draft, *sizes)


@pytest.mark.fault("M1")
@pytest.mark.parametrize(
    ("target", "draft", "sizes", "said"),
    [
        (Words("a b c"), Words("a c b"), (3, 3), "'b' is 1 for the target, 2 for the draft"),
        (Words("a b c"), Words("a b x"), (3, 3), "2 is 'c' for the target, 'x' for the draft"),
        (Words("a b", end=5), Words("a b", end=6), (9, 9), "'end' is 5 for the target, 6"),
        (Words("a b c d e f"), Words("f e d c b a"), (6, 6), "; and 3 more"),
        (None, None, (5, 6), "6 tokens, the target has 5"),
        (Words("a b"), None, (5, 6), "cannot be compared"),
        (None, Words("a b"), (5, 6), "drafter='suffix'"),
    ],
)
def test_pairs_that_do_not(target: Any, draft: Any, sizes: tuple[int, int], said: str) -> None:
    with pytest.raises(UnsupportedError, match="draft model") as caught:
        check_pairing(target, draft, *sizes)
    assert said in str(caught.value)
    assert "drafter='suffix'" in str(caught.value), "the way out"


def test_tiny_models_fit_themselves() -> None:
    model = tiny_model("llama")
    check_pairing(None, None, DraftModelDrafter(model).target.architecture.vocab, VOCAB)


def test_a_floor_spares_forwards_and_nothing_below_it_is_proposed(tiny: Any) -> None:
    """What is too unlikely to be verified is not worth a forward of the draft model either."""
    drafter = DraftModelDrafter(tiny("llama"))
    request = DraftRequest("r", [5, 6, 7, 8], 4, 0.0, None, VOCAB)
    drafter.start(request)
    every = [
        drafter.propose([request], [Plan(nodes=12, depth=6, floor=floor)])[0]
        for floor in (None, 0.05, 0.9999)
    ]
    alive = trees.survival(every[0], np.exp(every[0].logq))
    above = trees.survival(every[1], np.exp(every[1].logq))
    assert len(every[1]) == (alive >= 0.05).sum() < len(every[0])
    assert (above >= 0.05).all()
    assert len(every[2]) == 0
