"""What ``calibrate`` measures: cold calls are dropped, outliers do not move a median."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_roofline import SMALL

from adaptive_spec.calibrating import CONTEXTS, REPEATS, SIZES, WARM_UP, Stand, measure_grid
from adaptive_spec.calibrating import live_errors as errors_of
from adaptive_spec.profilers.hardware import peaks
from adaptive_spec.profilers.latency import LiveLatency
from adaptive_spec.profilers.roofline import Roofline
from adaptive_spec.target import Target
from adaptive_spec.testing.faults import FakeClock
from adaptive_spec.types import Work

FACTS = replace(SMALL, dtype="float32")
HALF = (REPEATS - 1) // 2
"""Outliers that a median of ``REPEATS`` timings bears."""


def fresh() -> LiveLatency:
    return LiveLatency(Roofline(FACTS, peaks(FACTS, 2)))


def obedient(nodes: int, context: int) -> float:
    """A machine that is three times slower than the roofline says, in all parts."""
    return 3.0 * float(fresh().predict(Work(np.array([nodes]), 1, context)).verify[0])


class FakeStand(Stand):
    """Takes what ``machine`` says, times ``slow`` of how often this size and context ran before."""

    def __init__(
        self, machine: Callable[[int, int], float], slow: Callable[[int], float] = lambda call: 1.0
    ) -> None:
        self.facts, self._machine, self._slow = FACTS, machine, slow
        self._filled = 64
        self.calls: Counter[tuple[int, int]] = Counter()

    @property
    def context(self) -> int:
        return self._filled

    def fill(self, context: int) -> None:
        self._filled = context

    def seconds(self, nodes: int) -> float:
        place = (nodes, self._filled)
        self.calls[place] += 1
        return self._machine(*place) * self._slow(self.calls[place] - 1)


def late(outliers: int) -> Callable[[int], float]:
    """The first calls are cold, and of the timings that count the last ones are outliers."""
    warm = range(WARM_UP, WARM_UP + REPEATS - outliers)
    return lambda call: 1.0 if call in warm else 100.0


def test_the_grid_holds_medians_of_warm_timings() -> None:
    def machine(nodes: int, context: int) -> float:
        return 0.01 + 1e-3 * nodes + 1e-6 * context

    stand = FakeStand(machine, late(HALF))
    points = measure_grid(stand)
    assert {(nodes, context) for nodes, context, _ in points} == {
        (nodes, context) for nodes in SIZES for context in CONTEXTS
    }
    assert all(seconds == machine(nodes, context) for nodes, context, seconds in points)
    assert set(stand.calls.values()) == {REPEATS + WARM_UP}
    assert REPEATS >= 7
    assert WARM_UP >= 1
    worse = measure_grid(FakeStand(machine, late(HALF + 1)))  # negative control
    assert all(seconds > machine(nodes, context) for nodes, context, seconds in worse)


def test_a_machine_that_follows_the_model_is_predicted() -> None:
    """Also where every size begins cold, and one timing in twenty is an outlier."""
    assert max(errors_of(FakeStand(obedient), fresh())) < 0.01
    stand = FakeStand(obedient, lambda call: 30.0 if call == 0 or call % 20 == 19 else 1.0)
    assert errors_of(stand, fresh())[-1] < 0.05
    own_steps = 100
    per_size = (sum(stand.calls.values()) - own_steps) / len(stand.calls)
    assert per_size == 7, "timings per median"


@pytest.mark.parametrize("name", ["noisy", "slower in the end"])
def test_a_machine_that_does_not_is_not(name: str) -> None:
    draw, calls = np.random.default_rng(0), Counter[str]()

    def machine(nodes: int, context: int) -> float:
        calls[name] += 1
        noise = float(draw.lognormal(0.0, 1.0)) if name == "noisy" else 1.0
        return obedient(nodes, context) * (noise if calls[name] < 60 or name == "noisy" else 3.0)

    assert min(errors_of(FakeStand(machine), fresh(), steps=(20, 50))) > 0.05


def test_a_forward_is_timed_between_two_readings(tiny: Any) -> None:
    stand = Stand(Target(tiny("llama")), FakeClock(tick=0.25))
    stand.fill(20)
    assert stand.context == 20
    assert stand.seconds(4) == 0.25
    assert stand.context == 20, "what is timed is not committed"
