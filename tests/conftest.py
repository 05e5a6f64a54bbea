"""Shared fixtures: one thread, no network, tiny models and decoders made once.

Markers: ``fault(*ids)`` names the rows of the fault table that a test covers.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import hypothesis
import pytest
import torch
import transformers

from adaptive_spec import AdaptiveDecoder
from adaptive_spec.testing.tiny import tiny_model

# The same examples in every run, however slow the machine is.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("steady")


@pytest.fixture(scope="session", autouse=True)
def _quiet_and_single_threaded() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """``tiny_model``, each model made once per run. Do not change what it returns."""
    return cache(tiny_model)


@pytest.fixture(scope="module")
def llama() -> Any:
    """A tiny Llama of a module's own, for tests that hurt it."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def make() -> Callable[..., AdaptiveDecoder]:
    """``make(model, policy, drafter=..., cache={...})``: a decoder without the start-up check."""

    def build(model: Any, policy: str = "plain", **rest: Any) -> AdaptiveDecoder:
        sections = {k: rest.pop(k) for k in ("tree", "cache", "log") if k in rest}
        config = {"policy": policy, "self_check": False, **sections}
        return AdaptiveDecoder(model, config, **rest)

    return build


@pytest.fixture(scope="session")
def plain(make: Callable[..., AdaptiveDecoder]) -> Callable[[Any], AdaptiveDecoder]:
    """``plain(model)``: the plain decoder of a model, made once per model."""
    return cache(make)


@contextmanager
def _counted(model: Any) -> Iterator[list[int]]:
    rows: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        yield rows
    finally:
        hook.remove()


@pytest.fixture(scope="session")
def counted() -> Callable[[Any], Any]:
    """``with counted(model) as rows``: rows of every forward of the model meanwhile."""
    return _counted


# -- which rows of the fault table hold: pytest -m fault -------------------------------------------

_rows: dict[str, list[str]] = {}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Send the rows that a test covers along with its report: workers and summary are apart."""
    rows = [row for marker in item.iter_markers("fault") for row in marker.args]
    item.user_properties.append(("fault rows", sorted(set(rows))))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Book every test under the rows that it covers."""
    if report.when == "call" or report.failed:
        for name, rows in report.user_properties:
            for row in rows if name == "fault rows" else ():
                _rows.setdefault(row, []).append(report.outcome)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One line per row, where rows were asked for."""
    if config.getoption("markexpr") != "fault":
        return
    terminalreporter.section("rows of the fault table")
    for row in sorted(_rows, key=lambda name: (name[0], int(name[1:]))):
        outcomes = _rows[row]
        verdict = "FAILS" if "failed" in outcomes else "holds"
        terminalreporter.line(
            f"{row:4} {verdict}  {outcomes.count('passed')}/{len(outcomes)} tests"
        )
