"""The keyed noise: its law, its independence, and runs that can be repeated.

Seeds are fixed, so these tests cannot flake; a false alarm would mean an unlucky choice of seeds.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from oracle import PROMPTS, sampled
from scipy import stats

from adaptive_spec.sampling import (
    _GOLDEN,
    _MIX_A,
    _MIX_B,
    KeyedNoise,
    _mix,
    derive_seed,
)
from adaptive_spec.testing.yardsticks import run

EULER = 0.5772156649015329


def uniforms(seed: int, position: int, tokens: np.ndarray) -> np.ndarray:
    return np.exp(-np.exp(-KeyedNoise(seed).gumbel(position, tokens)))


@pytest.mark.fault("L2")
def test_the_noise_is_uniform_and_independent() -> None:
    """Along tokens, positions and seeds: Kolmogorov-Smirnov p > 1e-4, and lag correlations below
    5 / sqrt(n) (odds 6e-7 each); some 40 checks, so a false alarm has odds of 0.2 %."""
    n, some = 3_000, np.arange(1)
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
