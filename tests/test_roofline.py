"""Bytes and FLOPs of a forward, the roofline over them, the hardware's peaks, and the timers.

Everything here is exact: no numbers are drawn.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_spec.profilers.clock import CudaTimer, HostTimer, device_timer
from adaptive_spec.profilers.hardware import Peaks, fingerprint, peaks
from adaptive_spec.profilers.roofline import Coefficients, Roofline, forward_cost, weights
from adaptive_spec.testing.faults import FakeClock
from adaptive_spec.testing.simulator import SMALL
from adaptive_spec.types import Architecture

TABLE = SMALL.vocab * SMALL.hidden
ROWS = np.array([1, 2, 5, 64])


def moe(experts: int = 8, per_token: int = 2) -> Architecture:
    """Untied, and nothing but attention, routers, tables and experts of 1000 parameters."""
    attention = 2 * SMALL.hidden * SMALL.head_dim * (SMALL.heads + SMALL.kv_heads)
    layer = attention + experts * (SMALL.hidden + 1000)
    return replace(
        SMALL,
        experts=experts,
        experts_per_token=per_token,
        tied_embeddings=False,
        parameters=2 * TABLE + SMALL.layers * layer,
    )


# -- bytes and FLOPs -------------------------------------------------------------------------------


def test_a_tied_table_is_read_once_and_an_untied_one_only_as_the_output_layer() -> None:
    assert weights(SMALL) == (SMALL.parameters, 0.0)
    untied = replace(SMALL, tied_embeddings=False, parameters=SMALL.parameters + TABLE)
    assert weights(untied) == (SMALL.parameters, 0.0)


def test_bytes_are_weights_and_the_slots_of_every_layer() -> None:
    cost = forward_cost(SMALL, ROWS, 1000)
    slots = 30 * 1000 * 64 * 2
    stored = slots * 2 * 3  # K and V of three heads
    copied = slots * 2 * 9 * 2  # per query head: written, read
    assert cost.bytes[0] == 2 * SMALL.parameters + stored
    assert cost.bytes[1:].tolist() == [2 * SMALL.parameters + stored + copied] * 3
    every = replace(SMALL, kv_heads=9)
    plain = forward_cost(every, ROWS, 1000).bytes
    assert plain.tolist() == [2 * SMALL.parameters + slots * 2 * 9] * 4  # nothing to copy
    grouped = forward_cost(replace(SMALL, grouped=True), ROWS, 1000).bytes
    assert grouped.tolist() == [2 * SMALL.parameters + stored] * 4  # nothing is copied


def test_flops_are_two_per_weight_and_attention_over_all_slots() -> None:
    cost = forward_cost(SMALL, ROWS, 1000)
    assert cost.flops.tolist() == (ROWS * (2 * SMALL.parameters + 4 * 30 * 1000 * 9 * 64)).tolist()


def test_a_window_hides_slots_but_does_not_save_reading_them() -> None:
    windowed = replace(SMALL, windows=(16,) * 30)
    assert forward_cost(windowed, ROWS, 4096).bytes.tolist() == (
        forward_cost(SMALL, ROWS, 4096).bytes.tolist()
    )


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("float16", 2), ("float64", 8)])
def test_bytes_follow_the_dtype(dtype: str, width: int) -> None:
    half = forward_cost(SMALL, ROWS, 100)
    wide = forward_cost(replace(SMALL, dtype=dtype), ROWS, 100)
    assert wide.bytes.tolist() == (half.bytes * width / 2).tolist()
    assert wide.flops.tolist() == half.flops.tolist()


def test_experts_that_rows_touch_match_enumeration() -> None:
    facts = moe(experts=4, per_token=2)
    always, routed = weights(facts)
    assert routed == 30 * 4 * 1000
    choices = list(combinations(range(4), 2))
    pairs = [len({*one, *other}) / 4 for one in choices for other in choices]
    cost = forward_cost(facts, np.array([1, 2, 1000]), 0)
    touched = (cost.bytes / 2 - always) / routed
    assert touched == pytest.approx([0.5, np.mean(pairs), 1.0])
    assert cost.flops[0] == pytest.approx(2 * (always + routed / 2))


def test_experts_without_a_count_per_token_are_taken_for_dense() -> None:
    facts = moe(per_token=0)
    assert weights(facts) == (facts.parameters - TABLE, 0.0)


# -- the roofline ----------------------------------------------------------------------------------


def test_seconds_are_the_slower_of_memory_and_arithmetic() -> None:
    roofline = Roofline(SMALL, Peaks(bandwidth=1e10, flops=1e11))
    cost = forward_cost(SMALL, ROWS, 100)
    expected = np.maximum(cost.bytes / 1e10, cost.flops / 1e11)
    assert roofline.seconds(ROWS, 100).tolist() == pytest.approx(expected.tolist())
    assert cost.bytes[0] / 1e10 > cost.flops[0] / 1e11  # one row is bound by memory,
    assert cost.bytes[3] / 1e10 < cost.flops[3] / 1e11  # 64 by arithmetic


def test_a_calibration_scales_and_lifts_both_lines() -> None:
    by = Coefficients(a_m=2.0, b_m=0.01, a_c=3.0, b_c=0.02)
    roofline = Roofline(SMALL, Peaks(1e10, 1e11), by)
    memory, compute = roofline.terms(ROWS.astype(float), 100)
    expected = np.maximum(2 * memory + 0.01, 3 * compute + 0.02)
    assert roofline.seconds(ROWS, 100).tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("facts", [SMALL, moe()])
@pytest.mark.parametrize("flops", [1e11, 1e15])
@pytest.mark.parametrize("requests", [1, 5])
def test_the_slope_starts_at_zero_and_always_rises(
    facts: Architecture, flops: float, requests: int
) -> None:
    """Also where a roofline is flat: a multiplier of nothing could learn nothing."""
    roofline = Roofline(facts, Peaks(1e10, flops))
    shape = roofline.shape(np.arange(300), requests, 500)
    assert shape.slope[0] == 0
    assert (np.diff(shape.slope) > 0).all()
    assert (shape.slope >= shape.least).all()
    assert shape.base == roofline.seconds(np.array([requests]), 500)[0]
    for nodes in (0, 1, 17, 299):
        spot = roofline.spot(nodes, requests, 500)
        assert (spot.base, spot.rows) == (shape.base, shape.rows[nodes])
        assert spot.slope == pytest.approx(shape.slope[nodes], rel=1e-12)


# -- hardware --------------------------------------------------------------------------------------


def fake_torch(**facts: Any) -> SimpleNamespace:
    properties = SimpleNamespace(**facts)
    return SimpleNamespace(cuda=SimpleNamespace(get_device_properties=lambda device: properties))


@pytest.mark.parametrize(
    ("name", "bandwidth", "half"),
    [
        ("NVIDIA H100 80GB HBM3", 3350e9, 989e12),
        ("NVIDIA H100 PCIe", 2000e9, 756e12),
        ("NVIDIA H200", 4800e9, 989e12),
        ("NVIDIA A100-SXM4-40GB", 1555e9, 312e12),
        ("NVIDIA A100 80GB PCIe", 1935e9, 312e12),
        ("NVIDIA L4", 300e9, 121e12),
        ("NVIDIA L40S", 864e9, 362e12),
        ("Tesla T4", 320e9, 65e12),
        ("NVIDIA GeForce RTX 4090", 1008e9, 165e12),
    ],
)
def test_known_gpus_have_published_figures(
    name: str, bandwidth: float, half: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(name=name))
    found = peaks(replace(SMALL, device="cuda:0"), 1)
    assert (found.bandwidth, found.flops) == (bandwidth, half)
    assert peaks(replace(SMALL, device="cuda:0", dtype="float32"), 1).flops < half


def test_unknown_gpus_are_estimated_from_their_properties(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = replace(SMALL, device="cuda:0")
    known = fake_torch(
        name="New", multi_processor_count=100, memory_clock_rate=2_619_000, memory_bus_width=5120
    )
    monkeypatch.setitem(sys.modules, "torch", known)
    assert peaks(facts, 1).bandwidth == pytest.approx(3.35e12, rel=0.01)  # the H100's bus
    monkeypatch.setitem(sys.modules, "torch", fake_torch(name="New", multi_processor_count=100))
    assert 1e11 < peaks(facts, 1).bandwidth < 5e12
    monkeypatch.delitem(sys.modules, "torch")
    found = peaks(facts, 1)
    assert found.bandwidth > 0
    assert found.flops > 0


def test_cpus_grow_with_their_threads_until_memory_is_saturated() -> None:
    one, two, many = (peaks(SMALL, threads) for threads in (1, 2, 200))
    assert two == Peaks(2 * one.bandwidth, 2 * one.flops)
    assert many.flops == 200 * one.flops
    assert many.bandwidth < 50 * one.bandwidth
    assert peaks(SMALL, 0) == one


def test_the_fingerprint_names_hardware_types_threads_versions_and_model() -> None:
    found = fingerprint(SMALL, 2)
    assert found["dtype"] == "bfloat16"
    assert found["threads"] == 2
    assert found["hardware"]
    assert found["torch"] != "none"
    assert all(isinstance(value, (str, int)) for value in found.values())
    for changed in (replace(SMALL, layers=29), replace(SMALL, dtype="float32")):
        assert fingerprint(changed, 2) != found
    assert fingerprint(SMALL, 3) != found
    assert fingerprint(replace(SMALL, context_limit=4096), 2) == found  # costs nothing


def test_a_gpu_is_named_and_its_index_and_cpu_threads_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(name="NVIDIA L4"))
    found = fingerprint(replace(SMALL, device="cuda:0"), 2)
    assert found["hardware"] == "NVIDIA L4"
    assert found == fingerprint(replace(SMALL, device="cuda:1"), 8)
    monkeypatch.setitem(sys.modules, "torch", fake_torch(name="Tesla T4"))
    assert found != fingerprint(replace(SMALL, device="cuda:0"), 2)


# -- timers ----------------------------------------------------------------------------------------


class StubEvent:
    """A CUDA event on a clock of its own."""

    def __init__(self, clock: FakeClock, calls: list[str]) -> None:
        self.clock, self.calls, self.at = clock, calls, -1.0

    def record(self, stream: str) -> None:
        assert stream == "of the device"
        self.at = self.clock.now

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def elapsed_time(self, end: StubEvent) -> float:
        assert self.calls, "read before it was waited for"
        return (end.at - self.at) * 1e3


def test_the_cuda_timer_waits_only_when_it_is_read() -> None:
    clock, calls = FakeClock(), list[str]()
    timer = CudaTimer(lambda: StubEvent(clock, calls), lambda: "of the device")
    for spent in (0.25, 0.5):  # it may be used again
        timer.start()
        clock.advance(spent)
        timer.stop()
        assert not calls
        assert timer.seconds() == pytest.approx(spent)
        assert calls == ["synchronize"]
        calls.clear()


def test_the_host_timer_reads_its_clock_twice() -> None:
    clock = FakeClock()
    timer = HostTimer(clock)
    timer.start()
    clock.advance(0.25)
    timer.stop()
    clock.advance(9.0)
    assert timer.seconds() == 0.25


def test_devices_get_the_timer_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, bool]] = []
    event = lambda **options: made.append(options)  # noqa: E731
    asked: list[torch.device] = []
    cuda = SimpleNamespace(Event=event, current_stream=asked.append)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    second = torch.device("cuda", 1)
    timer = device_timer(second)
    assert isinstance(timer, CudaTimer)
    assert made == [{"enable_timing": True}] * 2
    timer._stream()
    assert asked == [second], "whichever device is current"
    assert isinstance(device_timer(torch.device("cpu")), HostTimer)
