"""Fitting a measured curve, the file that keeps it, and when it is refused.

Seeds are fixed and hypothesis is derandomised, so no test can flake.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_latency import BF16, FP32, staircase
from test_roofline import SMALL

from adaptive_spec.errors import CalibrationError
from adaptive_spec.profilers.calibration import MOST_BYTES, Calibration, Point, load, save
from adaptive_spec.profilers.fitting import fit
from adaptive_spec.profilers.hardware import Peaks, fingerprint, peaks
from adaptive_spec.profilers.latency import LiveLatency
from adaptive_spec.profilers.roofline import Coefficients, Roofline
from adaptive_spec.types import StepSeconds, Work

HERE = fingerprint(SMALL, 2)
PEAKS = Peaks(bandwidth=1e10, flops=1e11)
SIZES = (0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
CONTEXTS = (128, 512, 1024)


def measured(curve: dict[int, int], noise: float = 0.03, seed: int = 0) -> list[Point]:
    """Points on a staircase that grows a little with the context."""
    draw, seconds = np.random.default_rng(seed), staircase(curve)
    return [
        (size, context, float(seconds(size) * (1 + context / 10_000) * draw.lognormal(0, noise)))
        for size in SIZES
        for context in CONTEXTS
    ]


@pytest.fixture(scope="module")
def stored() -> Calibration:
    facts = replace(SMALL, dtype="float32")
    calibration = fit(facts, peaks(facts, 2), measured(FP32), HERE)
    model = LiveLatency(Roofline(facts, peaks(facts, 2)), calibration=calibration)
    for _ in range(5):
        model.observe(Work(np.array([4]), 1, 128, ("a",)), StepSeconds(verify=0.2, draft=0.01))
    return replace(calibration, latency=model.state(), acceptance={"version": 1, "w": [0.5, None]})


@pytest.fixture
def path(tmp_path: Path, stored: Calibration) -> Path:
    save(tmp_path / "there.json", stored)
    return tmp_path / "there.json"


# -- the fit ---------------------------------------------------------------------------------------


def test_a_calibrated_roofline_is_recovered() -> None:
    truth = Roofline(SMALL, PEAKS, Coefficients(a_m=1.5, b_m=0.004, a_c=0.7, b_c=0.012))
    points = [
        (size, context, float(shape.base + shape.slope[0]))
        for size in SIZES
        for context in (128, 2048, 8192)
        for shape in [truth.shape(np.array([size]), 1, context)]
    ]
    found = fit(SMALL, PEAKS, points, HERE)
    assert found.errors.fit < 0.002
    assert found.errors.held_out < 0.01
    assert found.errors.raw > 0.05  # the control: there was something to calibrate
    assert found.coefficients.a_c == pytest.approx(0.7, rel=0.05)
    assert np.abs(found.residuals).max() < 0.01


@pytest.mark.parametrize(
    ("curve", "dtype", "held_out"), [(BF16, "bfloat16", 0.06), (FP32, "float32", 0.12)]
)
def test_staircases_are_fitted_better_than_by_two_lines(
    curve: dict[int, int], dtype: str, held_out: float
) -> None:
    """3 % noise; a size that was left out is guessed from its neighbours."""
    facts = replace(SMALL, dtype=dtype)
    found = fit(facts, peaks(facts, 2), measured(curve), HERE)
    assert found.errors.fit < 0.04
    assert found.errors.held_out < held_out
    assert found.errors.fit < found.errors.held_out < found.errors.raw


def test_an_outlier_among_the_points_is_survived() -> None:
    points = measured(BF16)
    clean = fit(SMALL, PEAKS, points, HERE)
    nodes, context, seconds = points[13]
    spoiled = fit(SMALL, PEAKS, [*points[:13], (nodes, context, 3 * seconds), *points[14:]], HERE)
    ask = Work(np.array(SIZES), 1, 512)
    curves = [
        LiveLatency(Roofline(SMALL, PEAKS), calibration=each).predict(ask).verify
        for each in (clean, spoiled)
    ]
    assert np.abs(curves[1] / curves[0] - 1).mean() < 0.05


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(4, 128, 0.1), (4, 512, 0.1)],
        [(0, 128, 0.1), (4, 128, 0.0)],
        [(0, 128, 0.1), (4, 128, math.nan)],
        [(0, 128, 0.1), (4, 128, math.inf)],
        [(0, 128, 0.1), (-1, 128, 0.1)],
    ],
)
def test_points_that_make_no_curve_are_refused(points: list[Point]) -> None:
    with pytest.raises(CalibrationError, match="points"):
        fit(SMALL, PEAKS, points, HERE)


def test_a_live_model_starts_from_a_calibration() -> None:
    facts = replace(SMALL, dtype="float32")
    found = fit(facts, peaks(facts, 2), measured(FP32), HERE)
    model = LiveLatency(Roofline(facts, peaks(facts, 2)), calibration=found)
    truth = staircase(FP32)(np.array(SIZES)) * (1 + 512 / 10_000)
    calibrated = model.predict(Work(np.array(SIZES), 1, 512)).verify
    assert np.abs(calibrated / truth - 1).mean() < 0.05
    raw = LiveLatency(Roofline(facts, peaks(facts, 2))).predict(Work(np.array(SIZES), 1, 512))
    assert np.abs(raw.verify / truth - 1).mean() > 0.2  # the control
    for size in (0, 4, 8, 16) * 10:  # the machine is twice as slow by now: it is live as well
        seconds = 2 * float(staircase(FP32)(size)) * (1 + 512 / 10_000)
        model.observe(Work(np.array([size]), 1, 512), StepSeconds(verify=seconds, host=0.001))
    assert np.abs(model.predict(Work(np.array(SIZES), 1, 512)).verify / truth / 2 - 1).mean() < 0.06


# -- the file --------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded(path: Path, stored: Calibration) -> None:
    assert load(path, HERE) == stored
    assert load(str(path), HERE) == stored
    assert sorted(file.name for file in path.parent.iterdir()) == ["there.json"]


def test_a_live_state_in_the_file_is_restored(path: Path, stored: Calibration) -> None:
    facts = replace(SMALL, dtype="float32")
    model = LiveLatency(Roofline(facts, peaks(facts, 2)), calibration=load(path, HERE))
    assert model.state() == stored.latency
    damaged = replace(stored, latency={"version": 1})
    with pytest.raises(CalibrationError, match=r"state\.verify"):
        LiveLatency(Roofline(facts, peaks(facts, 2)), calibration=damaged)


def test_a_file_that_cannot_be_written_leaves_the_old_one(path: Path, stored: Calibration) -> None:
    before = path.read_bytes()
    for bad in ({"x": math.nan}, {"x": object()}, {"x": "y" * MOST_BYTES}):
        with pytest.raises(CalibrationError):
            save(path, replace(stored, acceptance=bad))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.fault("K2")
@pytest.mark.parametrize("name", HERE)
def test_a_calibration_of_another_machine_or_model_is_refused_by_field(
    name: str, path: Path
) -> None:
    value = HERE[name]
    other = value + 1 if isinstance(value, int) else f"{value}-other"
    with pytest.raises(CalibrationError) as caught:
        load(path, {**HERE, name: other})
    assert caught.value.field == f"fingerprint.{name}"
    message = str(caught.value)
    assert repr(value) in message or ascii(value)[:50] in message
    assert "adaptive-spec calibrate" in message
    assert load(path, HERE).fingerprint == HERE  # the control


@pytest.mark.fault("K2")
def test_a_fingerprint_of_other_fields_is_refused(path: Path) -> None:
    with pytest.raises(CalibrationError, match="here"):
        load(path, {**HERE, "new": 1})
    with pytest.raises(CalibrationError, match=r"fingerprint\.dtype"):
        load(path, {name: value for name, value in HERE.items() if name != "dtype"})


def change(content: Any, where: tuple[Any, ...], value: Any) -> None:
    for step in where[:-1]:
        content = content[step]
    content[where[-1]] = value


@pytest.mark.parametrize(
    ("field", "where", "value"),
    [
        ("format", ("format",), "another"),
        ("version", ("version",), 2),
        ("version", ("version",), True),
        ("coefficients", ("coefficients",), []),
        ("coefficients.a_m", ("coefficients", "a_m"), -1.0),
        ("coefficients.b_c", ("coefficients", "b_c"), "0.1"),
        ("coefficients", ("coefficients",), {"a_m": 0, "b_m": 0, "a_c": 0, "b_c": 0}),
        ("residuals", ("residuals",), [0.0]),
        ("residuals[3]", ("residuals", 3), 99.0),
        ("errors.held_out", ("errors", "held_out"), None),
        ("points", ("points",), {}),
        ("points[1]", ("points", 1), [1, 2]),
        ("points[1]", ("points", 1), [1.5, 2, 0.1]),
        ("points[1]", ("points", 1), [1, 2, False]),
        ("fingerprint", ("fingerprint",), None),
        ("latency", ("latency",), 1),
        ("acceptance", ("acceptance",), "x"),
    ],
)
def test_a_damaged_entry_is_named(
    field: str, where: tuple[Any, ...], value: Any, path: Path
) -> None:
    content = json.loads(path.read_text())
    change(content, where, value)
    path.write_text(json.dumps(content))
    with pytest.raises(CalibrationError) as caught:
        load(path, HERE)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[1, 2]",
        b"\xff\xfe\x00",
        b'{"format": NaN}',
        b'{"format": 1e999}',
        b"[" * 100_000,
        b"1" * 10_000,
        b" " * (MOST_BYTES + 1),
        b'{"format": "\\ud800"}',
    ],
    ids=range(10),
)
def test_what_is_no_calibration_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CalibrationError) as caught:
        load(tmp_path / "x", HERE)
    assert len(str(caught.value)) < 1000
    str(caught.value).encode()


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    for odd in (tmp_path, tmp_path / "missing", tmp_path / ("n" * 300), "a\0b"):
        with pytest.raises(CalibrationError, match="adaptive-spec calibrate"):
            load(odd, HERE)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 0, 1e308, -0.0, 1e-320])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def places(content: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into nested JSON; of long arrays the first entries only."""
    if isinstance(content, dict):
        steps: Any = list(content)
    elif isinstance(content, list):
        steps = range(min(len(content), 3))
    else:
        return []
    found = [(*here, step) for step in steps]
    return found + [deep for step in steps for deep in places(content[step], (*here, step))]


def accepted(use: Callable[[], object]) -> bool:
    """False if the file was refused by CalibrationError; any other exception fails the test."""
    try:
        use()
    except CalibrationError as error:
        str(error).encode()
        return False
    return True


@settings(max_examples=120)
@given(data=st.data())
def test_no_damage_gets_past_the_checks(
    data: st.DataObject, stored: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Refused by CalibrationError, or usable: no damaged file does anything else."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    save(path, stored)
    content = json.loads(path.read_text())
    where = data.draw(st.sampled_from(places(content)))
    change(content, where, data.draw(PLAIN))
    text = json.dumps(content)
    if data.draw(st.booleans()):
        text = text[: data.draw(st.integers(0, len(text)))]
    path.write_text(text)
    facts = replace(SMALL, dtype="float32")

    def use() -> None:
        found = load(path, HERE)
        model = LiveLatency(Roofline(facts, peaks(facts, 2)), calibration=found)
        seconds = model.predict(Work(np.arange(65), 1, 300, ("a",)))
        for part in (seconds.draft, seconds.verify, seconds.host):
            assert np.isfinite(part).all()
            assert (part >= 0).all()
        model.observe(Work(np.array([4]), 1, 300), StepSeconds(verify=0.1, host=0.001))

    if accepted(use):  # then what came through is as valid as what was saved
        save(path, load(path, HERE))


@settings(max_examples=100)
@given(raw=st.binary(max_size=60))
def test_random_bytes_are_refused(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "random.json"
    path.write_bytes(raw)
    assert not accepted(lambda: load(path, HERE))
