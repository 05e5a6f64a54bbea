"""The law of sampling: by enumeration, by equal tokens, by frequencies.

Where numbers are drawn the seeds are fixed, so these tests cannot flake; the odds of a false alarm
are those of having picked an unlucky seed. A broken verifier is the negative control.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from oracle import PROMPTS, sampled, spec
from scipy import stats

from adaptive_spec import verifying
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.sampling import (
    KeyedNoise,
    Sampler,
)
from adaptive_spec.testing.drafters import KeyedDrafter, ScriptedDrafter, flat_tree
from adaptive_spec.testing.tiny import VOCAB, TableLM
from adaptive_spec.testing.yardsticks import run
from adaptive_spec.tree import child
from adaptive_spec.types import ROOT
from adaptive_spec.walk import walk

Walk = Callable[[CandidateTree, Callable[[int], int]], Iterator[tuple[int, int]]]
Prefix = tuple[int, ...]


def by_rank(tree: CandidateTree, choose: Callable[[int], int]) -> Iterator[tuple[int, int]]:
    """A broken verifier: a draw among the lower half of the ids accepts the best-ranked child."""
    node: int | None = ROOT
    while node is not None:
        token = choose(node)
        below = np.flatnonzero(tree.parent == node)
        if len(below) and token % 2 == 0:
            token = int(tree.token[below[0]])
        yield node, token
        node = child(tree, node, token)


# -- (a) by enumeration --------------------------------------------------------------------------

LENGTH, SMALL = 4, 3
TREES = {
    "none": flat_tree([], []),
    "one": flat_tree([1], [ROOT]),
    "all children": flat_tree([2, 0, 1], [ROOT] * 3),
    "chain": flat_tree([0, 0, 0], [ROOT, 0, 1]),
    "bush": flat_tree([0, 1, 2, 1, 0, 2], [ROOT, ROOT, 0, 0, 1, 3]),
    "full": flat_tree(
        [0, 1, 2] + [0, 1, 2] * 3 + [0, 1, 2] * 9,
        [ROOT] * 3 + [i // 3 for i in range(9)] + [3 + i // 3 for i in range(27)],
    ),
}


def conditionals(seed: int) -> Callable[[Prefix], np.ndarray]:
    """A random next-token distribution for every prefix, some tokens impossible."""
    table: dict[Prefix, np.ndarray] = {}
    draw = np.random.default_rng(seed)
    for size in range(LENGTH + 5):
        for prefix in product(range(SMALL), repeat=size):
            odds = draw.random(SMALL) * (draw.random(SMALL) > 0.2)
            table[prefix] = odds / odds.sum() if odds.sum() else np.eye(SMALL)[0]
    return table.__getitem__


class _NeedMoreError(Exception):
    """The walk asked for another draw than the script holds."""


def law_of(p: Callable[[Prefix], np.ndarray], tree: CandidateTree, method: Walk) -> dict:
    """Probability of every sequence of ``LENGTH`` tokens, summed over all outcomes of all draws."""
    law: dict[Prefix, float] = defaultdict(float)

    def step(prefix: Prefix, weight: float, script: Prefix) -> None:
        path: list[int] = []
        asked = []

        def choose(node: int) -> int:
            asked.append(p(prefix + tuple(path)))
            if len(asked) > len(script):
                raise _NeedMoreError
            return script[len(asked) - 1]

        try:
            for _, token in method(tree, choose):
                path.append(token)
                if len(prefix) + len(path) == LENGTH:
                    break
        except _NeedMoreError:
            for token, odds in enumerate(asked[-1]):
                if odds > 0:
                    step(prefix, weight * odds, (*script, token))
            return
        done = prefix + tuple(path)
        if len(done) == LENGTH:
            law[done] += weight
        else:
            step(done, weight, ())

    step((), 1.0, ())
    return law


def wanted_law(p: Callable[[Prefix], np.ndarray]) -> dict[Prefix, float]:
    return {
        word: math.prod(p(word[:i])[word[i]] for i in range(LENGTH))
        for word in product(range(SMALL), repeat=LENGTH)
    }


def distance(law: dict, wanted: dict) -> float:
    return 0.5 * sum(abs(law.get(word, 0.0) - odds) for word, odds in wanted.items())


@pytest.mark.fault("L2")
@pytest.mark.parametrize("shape", TREES)
def test_the_law_by_enumeration(shape: str) -> None:
    for seed in range(4):
        p = conditionals(seed)
        law, wanted = law_of(p, TREES[shape], walk), wanted_law(p)
        assert max(abs(law.get(word, 0.0) - odds) for word, odds in wanted.items()) <= 1e-12
        assert abs(sum(law.values()) - 1) <= 1e-12
        if len(TREES[shape]):
            assert distance(law_of(p, TREES[shape], by_rank), wanted) > 0.06, "the control"


# -- (b) same seed, same tokens; (L12) whether or not the tree reads the noise -------------------


def keyed(table: np.ndarray, temperature: float, width: int = 2) -> KeyedDrafter:
    scaled = table / temperature
    return KeyedDrafter(scaled - np.log(np.exp(scaled).sum(1, keepdims=True)), width)


@pytest.mark.fault("L2", "L12")
@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.2])
def test_coupled_drafts_change_nothing(make: Any, temperature: float) -> None:
    """On a target whose logits the drafter knows, coupling guesses every draw."""
    table = np.random.default_rng(3).normal(0, 2, (40, 40)).astype(np.float32)
    model = TableLM(torch.from_numpy(table))
    blunt = table + np.random.default_rng(4).normal(0, 1, table.shape)
    rates = {}
    for seed in range(2):
        call = {"max_new_tokens": 40, "top_k": 0, **sampled(temperature, seed)}
        wanted = run(make(model), [1, 2], **call)
        drafters = {
            "reads the noise": keyed(table.astype(float), temperature),
            "reads it, knows little": keyed(blunt, temperature),
            "does not": ScriptedDrafter(lambda r, w=wanted: [1, 2, *w], (2, 0, 5), decoys=2),
            "suffix": None,
        }
        for name, drafter in drafters.items():
            with make(model, "fixed:12", drafter=drafter).start([1, 2], **call) as session:
                list(session)
                assert session.generated == wanted, name
                rates[name] = session.stats.num_accepted_draft_tokens / session.stats.steps
    assert rates["reads the noise"] >= 4, "all six depths, until the end"
    assert 0 < rates["reads it, knows little"] < rates["reads the noise"]


@pytest.mark.fault("L12")
@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.2])
def test_coupled_drafts_on_a_transformer(
    tiny: Any, make: Any, plain: Any, temperature: float
) -> None:
    table = np.random.default_rng(8).normal(0, 1, (VOCAB, VOCAB))
    for kind, prompt in (("llama", PROMPTS[4]), ("gemma3", PROMPTS[13])):
        call = {"max_new_tokens": 24, **sampled(temperature, 17)}
        wanted = run(plain(tiny(kind)), prompt, **call)
        answers = {tuple(prompt): prompt + wanted}
        for decoder in (
            make(tiny(kind), "fixed:16", drafter=KeyedDrafter(table, width=4)),
            spec(make, tiny(kind), answers, (3, 0, 1, 6)),
            make(tiny(kind), "fixed:16"),
        ):
            assert run(decoder, prompt, **call) == wanted


# -- (c) by frequencies --------------------------------------------------------------------------

V, DRAWS = 8, 20_000
LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, 1.5])


def variation(tokens: np.ndarray, temperature: float) -> float:
    odds = np.exp(LOGITS / temperature) / np.exp(LOGITS / temperature).sum()
    return float(0.5 * np.abs(np.bincount(tokens, minlength=V) / len(tokens) - odds).sum())


def first_tokens(method: Walk, count: int, temperature: float) -> np.ndarray:
    """The first token of a walk over a draft tree, for every seed below ``count``."""
    scores = torch.tensor(LOGITS / temperature, dtype=torch.float32)
    tree = flat_tree([6, 0, 3, 1], [ROOT, ROOT, 0, 1])
    tokens = []
    for seed in range(count):
        sampler = Sampler(noise=KeyedNoise(seed), temperature=temperature)
        _, token = next(method(tree, lambda _, s=sampler: s.choose(scores, 7)))
        tokens.append(token)
    return np.array(tokens)


@pytest.mark.fault("L2")
def test_frequencies_over_seeds() -> None:
    """One draw per seed. The expected variation is at most 0.008, and one draw moves it by at most
    1/n: McDiarmid's exp(-2 n 0.022^2) puts a false alarm below 1e-8."""
    assert variation(first_tokens(walk, DRAWS, 0.7), 0.7) < 0.03
    assert variation(first_tokens(by_rank, DRAWS // 10, 0.7), 0.7) > 0.06, "the broken verifier"


def decoded(make: Any, drafter: Any, count: int) -> np.ndarray:
    """``count`` tokens of a target without memory, 8 requests packed."""
    model = TableLM(torch.tensor(LOGITS, dtype=torch.float32).expand(V, V))
    decoder = make(model, "fixed:24", drafter=drafter)
    calls = [{"max_new_tokens": count // 8, "top_k": 0, **sampled(1.0, seed)} for seed in range(8)]
    sessions = [decoder.start([1], **call) for call in calls]
    while live := [session for session in sessions if not session.finished]:
        decoder.step(live)
    return np.concatenate([session.generated for session in sessions])


@pytest.mark.fault("L2", "L12")
@pytest.mark.parametrize("reads_noise", [False, True])
def test_frequencies_of_decoded_text(
    make: Any, monkeypatch: pytest.MonkeyPatch, reads_noise: bool
) -> None:
    """Single tokens and pairs of neighbours by chi-square tests: a false alarm has odds of 1e-5
    each. The drafter knows the target roughly."""
    guess = LOGITS + np.random.default_rng(1).normal(0, 0.7, (V, V))
    chain = np.random.default_rng(2).integers(0, V, 2000).tolist()
    blind = ScriptedDrafter(lambda request: chain, (4,), decoys=2)
    tokens = decoded(make, KeyedDrafter(guess, width=3) if reads_noise else blind, 4000)
    odds = np.exp(LOGITS) / np.exp(LOGITS).sum()
    pairs = np.bincount(tokens[::2] * V + tokens[1::2], minlength=V * V)
    expected = np.outer(odds, odds).ravel() * pairs.sum()
    assert stats.chisquare(np.bincount(tokens, minlength=V), odds * 4000).pvalue > 1e-5
    assert stats.chisquare(pairs, expected).pvalue > 1e-5
    if not reads_noise:
        monkeypatch.setattr(verifying, "walk", by_rank)
        assert variation(decoded(make, blind, 1600), 1.0) > 0.06, "the broken verifier"
