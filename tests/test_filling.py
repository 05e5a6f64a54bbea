"""Executable sizes: few shapes of forwards, and rows of nobody change nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adaptive_spec.filling import Filling, default_sizes
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.isolation import Faults, WalledLatency
from adaptive_spec.profilers.base import NullLatency
from adaptive_spec.testing.faults import OOMTarget
from adaptive_spec.testing.simulator import SMALL
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import check_state, plain, run
from adaptive_spec.types import Seconds, StepSeconds, Work

PROMPT = [5, 6, 7, 8, 5, 6, 9, 10, 5, 6, 11, 12]


def test_sizes_are_rounded_up() -> None:
    filling = Filling([4, 16])
    given = np.array([0, 1, 4, 5, 16, 17, 300])
    assert filling.up(given).tolist() == [0, 4, 4, 16, 16, 17, 300]
    assert [filling.missing(n) for n in (0, 1, 4, 5, 17)] == [0, 3, 0, 11, 0]
    assert Filling().up(given).tolist() == given.tolist()


def test_sizes_by_device() -> None:
    def sizes(dtype: str, device: str) -> tuple[int, ...]:
        return default_sizes(replace(SMALL, dtype=dtype, device=device))

    assert sizes("bfloat16", "cpu") == sizes("float16", "cpu") != ()
    assert sizes("float32", "cpu") == sizes("bfloat16", "cuda:0") == ()


class Ear(NullLatency):
    """Remembers what it is asked and told."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.told: list[list[int]] = []

    def predict(self, work: Work) -> Seconds | None:
        self.asked.append(work.nodes.tolist())
        return None

    def observe(self, work: Work, seconds: StepSeconds) -> None:
        self.told.append(work.nodes.tolist())


def test_the_latency_model_hears_of_executed_sizes() -> None:
    ear = Ear()
    wall = WalledLatency(ear, Faults(), Filling([4, 8]))
    wall.predict(Work(np.arange(7), 1, 10))
    wall.observe(Work(np.array([5]), 1, 10), StepSeconds(verify=1.0))
    assert ear.asked == [[0, 4, 4, 4, 4, 8, 8]]
    assert ear.told == [[8]]


def _watched(model: Any) -> list[int]:
    """Rows of every forward from now on."""
    rows: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        rows.append((args or [kwargs["input_ids"]])[0].shape[1])

    model.register_forward_pre_hook(note, with_kwargs=True)
    return rows


@pytest.mark.fault("L1", "L9")
@pytest.mark.parametrize("sizes", [[], [16], [4, 8, 16]])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral", "qwen3_moe", "gpt2"])
def test_text_and_state_do_not_depend_on_the_filling(kind: str, sizes: list[int]) -> None:
    model = tiny_model(kind)
    want = plain(model, PROMPT, max_new_tokens=40)
    config = {"policy": "fixed:13", "tree": {"sizes": sizes}, "suffix": {"floor": 0.0}}
    with AdaptiveDecoder(model, config) as decoder:
        assert run(decoder, PROMPT, check_state, max_new_tokens=40) == want


@pytest.mark.parametrize("sizes", [[16], [4, 8, 16]])
def test_only_executable_sizes_are_executed(sizes: list[int]) -> None:
    model = tiny_model("llama")
    config = {"policy": "fixed:13", "tree": {"sizes": sizes}, "suffix": {"floor": 0.0}}
    with AdaptiveDecoder(model, config) as decoder:
        rows = _watched(model)
        run(decoder, PROMPT, max_new_tokens=40)
    drafted = {count for count in rows[1:] if count > 1}
    assert drafted
    assert drafted <= {1 + size for size in sizes}


def test_a_second_attempt_is_not_filled() -> None:
    """After memory ran out a smaller forward must follow, not one of the same size."""
    model = tiny_model("llama")
    want = plain(model, PROMPT[:5], max_new_tokens=30)
    config = {"policy": "fixed:8", "tree": {"sizes": [16]}, "suffix": {"floor": 0.0}}
    with AdaptiveDecoder(model, config) as decoder, OOMTarget(model, 6) as memory:
        session = decoder.start(PROMPT[:5], max_new_tokens=30)
        while not session.finished:
            session.step()
        assert session.generated == want
        assert session.stats.num_accepted_draft_tokens > 0
        # once with rows of nobody, which are then given up for good
        assert memory.struck == session.stats.memory_retries + 1 > 1


def test_rows_of_nobody_take_no_slots() -> None:
    """A pool with no room to spare is not grown for them."""
    model = tiny_model("llama")
    config = {"policy": "fixed:2", "cache": {"slots": 32, "max_slots": 32}, "tree": {"sizes": [64]}}
    with AdaptiveDecoder(model, config) as decoder:
        assert len(run(decoder, PROMPT, max_new_tokens=18)) == 18
        assert len(decoder.cache.pool) == 32


def test_usual_sizes_are_run_once_at_the_start() -> None:
    """The first requests of a decoder do not pay for kernels of new sizes."""
    rows: list[int] = []
    model = tiny_model("llama").bfloat16()
    model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append((args or [kwargs["input_ids"]])[0].shape[1]),
        with_kwargs=True,
    )
    with AdaptiveDecoder(model, {"policy": "fixed:8"}):
        assert rows[-5:] == [1, 9, 17, 33, 65]
    rows.clear()
    with AdaptiveDecoder(model, {"policy": "fixed:8", "self_check": False}):
        assert rows == []
    with AdaptiveDecoder(model.float(), {"policy": "fixed:8"}):
        assert 65 not in rows


def test_a_start_without_memory_for_large_sizes_goes_on() -> None:
    model = tiny_model("llama")
    config = {"policy": "fixed:8", "tree": {"sizes": [8, 32]}, "suffix": {"floor": 0.0}}
    want = plain(model, PROMPT, max_new_tokens=10)
    with OOMTarget(model, 20), AdaptiveDecoder(model, config) as decoder:
        assert run(decoder, PROMPT, max_new_tokens=10) == want
