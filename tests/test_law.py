"""The law of sampling: enumerated, drawn, keyed, reproducible.

Where numbers are drawn the seeds are fixed, so these tests cannot flake; the odds of a false alarm
are those of having picked an unlucky seed. A broken verifier is the negative control.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from oracle import PROMPTS, sampled, spec
from scipy import stats

from adaptive_spec import verifying
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.sampling import (
    _GOLDEN,
    _MIX_A,
    _MIX_B,
    KeyedNoise,
    Sampler,
    _mix,
    derive_seed,
)
from adaptive_spec.testing.drafters import KeyedDrafter, ScriptedDrafter, flat_tree
from adaptive_spec.testing.tiny import VOCAB, TableLM
from adaptive_spec.testing.yardsticks import run
from adaptive_spec.tree import child
from adaptive_spec.types import ROOT
from adaptive_spec.walk import walk

Walk = Callable[[CandidateTree, Callable[[int], int]], Iterator[tuple[int, int]]]
Prefix = tuple[int, ...]
EULER = 0.5772156649015329


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
    for seed in range(3):
        call = {"max_new_tokens": 60, "top_k": 0, **sampled(temperature, seed)}
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
    assert rates["reads the noise"] >= 4.5, "all six depths, until the end"
    assert 0 < rates["reads it, knows little"] < rates["reads the noise"]


@pytest.mark.fault("L12")
@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.2])
def test_coupled_drafts_on_a_transformer(
    tiny: Any, make: Any, plain: Any, temperature: float
) -> None:
    table = np.random.default_rng(8).normal(0, 1, (VOCAB, VOCAB))
    for kind, prompt in (("llama", PROMPTS[4]), ("gemma3", PROMPTS[13])):
        call = {"max_new_tokens": 32, **sampled(temperature, 17)}
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


@pytest.mark.fault("L2")
def test_frequencies_over_seeds() -> None:
    """One draw per seed. The expected variation is at most 0.008, and one draw moves it by at most
    1/n: McDiarmid's exp(-2 n 0.022^2) puts a false alarm below 1e-8."""
    temperature = 0.7
    scores = torch.tensor(LOGITS / temperature, dtype=torch.float32)
    tokens = [
        Sampler(noise=KeyedNoise(seed), temperature=temperature).choose(scores, 7)
        for seed in range(DRAWS)
    ]
    assert variation(np.array(tokens), temperature) < 0.03
    assert variation(np.sort(np.array(tokens))[: DRAWS // 2], temperature) > 0.06, "it can fail"


def decoded(make: Any, count: int) -> np.ndarray:
    """``count`` tokens of a target without memory, 8 requests packed, drafts that read the noise
    and know the target roughly."""
    model = TableLM(torch.tensor(LOGITS, dtype=torch.float32).expand(V, V))
    guess = LOGITS + np.random.default_rng(1).normal(0, 0.7, (V, V))
    decoder = make(model, "fixed:24", drafter=KeyedDrafter(guess, width=3))
    tokens: list[int] = []
    seed = 0
    while len(tokens) < count:
        calls = [{"max_new_tokens": 250, "top_k": 0, **sampled(1.0, seed + i)} for i in range(8)]
        sessions = [decoder.start([1], **call) for call in calls]
        while live := [session for session in sessions if not session.finished]:
            decoder.step(live)
        for session in sessions:
            tokens += session.generated
            session.close()
        seed += 8
    return np.array(tokens[:count])


@pytest.mark.fault("L2")
def test_frequencies_of_decoded_text(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Odds as above. Two neighbours are independent: p > 1e-5 of a chi-square test over 64 pairs
    (a false alarm has odds of 1e-5)."""
    tokens = decoded(make, DRAWS)
    assert variation(tokens, 1.0) < 0.03
    pairs = np.bincount(tokens[::2] * V + tokens[1::2], minlength=V * V)
    odds = np.exp(LOGITS) / np.exp(LOGITS).sum()
    expected = np.outer(odds, odds).ravel() * pairs.sum()
    assert stats.chisquare(pairs, expected).pvalue > 1e-5
    monkeypatch.setattr(verifying, "walk", by_rank)
    assert variation(decoded(make, 4000), 1.0) > 0.06, "the broken verifier"


# -- the noise -----------------------------------------------------------------------------------


def uniforms(seed: int, position: int, tokens: np.ndarray) -> np.ndarray:
    return np.exp(-np.exp(-KeyedNoise(seed).gumbel(position, tokens)))


@pytest.mark.fault("L2")
def test_the_noise_is_uniform_and_independent() -> None:
    """Along tokens, positions and seeds: Kolmogorov-Smirnov p > 1e-4, and lag correlations below
    5 / sqrt(n) (odds 6e-7 each); some 40 checks, so a false alarm has odds of 0.2 %."""
    n, some = 6_000, np.arange(1)
    along = {
        "tokens": uniforms(1, 5, np.arange(n)),
        "positions": np.array([uniforms(1, i, some)[0] for i in range(n)]),
        "seeds": np.array([uniforms(i, 5, some)[0] for i in range(n)]),
        "rows": np.array([uniforms(derive_seed(1, i), 5, some)[0] for i in range(n)]),
        "diagonal": np.array([uniforms(i, n - i, some)[0] for i in range(n)]),
        "large seeds": np.array([uniforms(2**63 - 1 - i, 0, some)[0] for i in range(n)]),
    }
    for name, values in along.items():
        assert stats.kstest(values, "uniform").pvalue > 1e-4, name
        for lag in (1, 2, 3, 64):
            assert abs(np.corrcoef(values[lag:], values[:-lag])[0, 1]) < 5 / math.sqrt(n), name
    for (_, a), (_, b) in pairwise(along.items()):
        assert abs(np.corrcoef(a[1:], b[1:])[0, 1]) < 5 / math.sqrt(n)
    assert stats.kstest(along["tokens"] ** 1.1, "uniform").pvalue < 1e-4, "it can fail"


@pytest.mark.fault("L2")
def test_the_noise_is_gumbel() -> None:
    """Mean and variance within 5 standard errors (odds 6e-7 each)."""
    noise = np.concatenate(
        [KeyedNoise(s).gumbel(p, np.arange(5000)) for s in (0, 9) for p in (1, 2)]
    )
    n = len(noise)
    assert abs(noise.mean() - EULER) < 5 * math.sqrt(math.pi**2 / 6 / n)
    spread = math.sqrt((5.4 - 1) / n) * math.pi**2 / 6  # the kurtosis of a Gumbel law is 5.4
    assert abs(noise.var() - math.pi**2 / 6) < 5 * spread


def test_noise_of_single_tokens_is_that_of_all() -> None:
    keyed_noise, everything = KeyedNoise(2**62 + 11), torch.arange(1000)
    whole = keyed_noise.tensor(31, everything)
    assert torch.isfinite(whole).all()
    few = np.array([999, 0, 417])
    assert np.array_equal(keyed_noise.gumbel(31, few), whole.numpy()[few])
    assert np.array_equal(keyed_noise.gumbel(31, few.astype(np.int32)), whole.numpy()[few])
    assert not np.array_equal(keyed_noise.gumbel(32, few), whole.numpy()[few])


def _unmix(word: int) -> int:
    """SplitMix64's finaliser backwards."""

    def unshift(value: int, by: int) -> int:
        result = value
        for _ in range(64 // by + 1):
            result = value ^ (result >> by)
        return result

    word = unshift(word, 31) * pow(_MIX_B, -1, 2**64) % 2**64
    word = unshift(word, 27) * pow(_MIX_A, -1, 2**64) % 2**64
    return unshift(word, 30)


@pytest.mark.parametrize("word", [0, 2**64 - 1], ids=["smallest", "largest"])
def test_the_most_extreme_noise_is_finite(word: int) -> None:
    """The counter that the generator maps to all zeros, or to all ones."""
    noise = KeyedNoise(3)
    start = _mix((noise._key + 8 * _GOLDEN) % 2**64)
    token = ((_unmix(word) - start) * pow(_GOLDEN, -1, 2**64) - 1) % 2**64
    signed = token - 2**64 if token >= 2**63 else token
    assert np.isfinite(noise.gumbel(7, np.array([signed]))).all()


# -- L10: reproducible, and the global generators left alone -------------------------------------

SCRIPT = """
import torch
from adaptive_spec import AdaptiveDecoder
from adaptive_spec.testing.tiny import tiny_model
torch.manual_seed(int(__import__("sys").argv[1]))
decoder = AdaptiveDecoder(tiny_model("llama"), {"policy": "fixed:5"})
print(decoder.generate(torch.tensor([[5, 6, 7]]), do_sample=True, seed=11, max_new_tokens=24,
                       num_return_sequences=2).tolist())
"""


@pytest.mark.fault("L10")
def test_same_seed_same_text_in_another_process(tiny: Any, plain: Any) -> None:
    command = [sys.executable, "-c", SCRIPT, "99"]
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "5"}
    said = subprocess.run(command, env=quiet, capture_output=True, text=True, check=True).stdout
    here = plain(tiny("llama")).generate(
        torch.tensor([[5, 6, 7]]),
        do_sample=True,
        seed=11,
        max_new_tokens=24,
        num_return_sequences=2,
    )
    assert said.strip().splitlines()[-1] == str(here.tolist())


def _states() -> tuple[bytes, bytes]:
    return torch.get_rng_state().numpy().tobytes(), str(np.random.get_state()).encode()


@pytest.mark.fault("L10")
@pytest.mark.parametrize("call", [sampled(0.8, 3), {"do_sample": False}], ids=["seed", "greedy"])
def test_global_generators_stay_untouched(tiny: Any, make: Any, call: dict[str, Any]) -> None:
    before = _states()
    decoder = make(tiny("llama"), "fixed:8")
    decoder.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=8, **call)
    run(decoder, PROMPTS[1], max_new_tokens=8, **call)
    model_call = {"max_new_tokens": 8, "custom_generate": decoder, **call}
    tiny("llama").generate(torch.tensor([PROMPTS[0]]), **model_call)
    assert _states() == before


@pytest.mark.fault("L10")
@pytest.mark.parametrize("door", ["generate", "start", "custom_generate"])
def test_without_a_seed_one_draw_is_made(tiny: Any, make: Any, door: str) -> None:
    """So that ``transformers.set_seed`` makes calls repeatable, and calls after it differ."""
    model, decoder = tiny("llama"), make(tiny("llama"), "fixed:8")
    call = {"do_sample": True, "max_new_tokens": 16}

    def text() -> list[int]:
        batch = torch.tensor([PROMPTS[0]])
        if door == "start":
            return PROMPTS[0] + run(decoder, PROMPTS[0], **call)
        if door == "generate":
            return decoder.generate(batch, **call)[0].tolist()
        return model.generate(batch, custom_generate=decoder, **call)[0].tolist()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        seed = int(torch.randint(0, 2**63 - 1, ()))
        after_one_draw = torch.get_rng_state()
        transformers.set_seed(7)
        first = text()
        assert torch.equal(torch.get_rng_state(), after_one_draw)
        second = text()
        transformers.set_seed(7)
        assert text() == first != second
        assert first == PROMPTS[0] + run(decoder, PROMPTS[0], seed=seed, **call)


@pytest.mark.fault("L10")
def test_returned_sequences_differ_and_are_single_runs(tiny: Any, make: Any, plain: Any) -> None:
    call = {"max_new_tokens": 16, **sampled(0.9, 21)}
    decoder = make(tiny("llama"), "fixed:8")
    batch = torch.tensor([PROMPTS[5], PROMPTS[6]])
    rows = decoder.generate(batch, num_return_sequences=3, **call).tolist()
    assert len({tuple(row) for row in rows}) == 6
    for i, row in enumerate(rows):
        prompt = PROMPTS[5 + i // 3]
        single = {**call, "seed": derive_seed(21, i)}
        assert row == prompt + run(plain(tiny("llama")), prompt, **single)
    assert derive_seed(21, 0) == 21
    seeds = {derive_seed(seed, row) for seed in range(100) for row in range(100)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)
