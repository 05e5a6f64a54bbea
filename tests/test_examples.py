"""The examples run, say what they promise, and stay short."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from adaptive_spec.testing.contracts import check_controller
from adaptive_spec.testing.tiny import save_tiny

EXAMPLES = Path(__file__).parents[1] / "examples"
PROMISES = {
    "quickstart": "identical to model.generate: True",
    "own_loop": "length",
    "policy_by_config": "same text: True",
    "read_the_log": "tokens per forward",
    "own_controller": "draft tokens so far",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def names_in(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_every_example_is_covered_and_short() -> None:
    files = sorted(EXAMPLES.glob("*.py"))
    assert {file.stem for file in files} == set(PROMISES)
    length = {file.stem: len(file.read_text().splitlines()) for file in files}
    assert max(length.values()) < 60
    assert length["own_controller"] < 40, "a policy of one's own, and its run"


@pytest.mark.parametrize("name", PROMISES)
def test_example(name: str, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    names_in(name)["main"](folder)
    assert PROMISES[name] in capsys.readouterr().out


def test_the_policy_keeps_the_contract() -> None:
    check_controller(names_in("own_controller")["Follow"])


@pytest.mark.real
@pytest.mark.parametrize("name", ["quickstart", "policy_by_config"])
def test_example_on_the_real_model(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    names_in(name)["main"]("smollm2-135m", 24)
    assert PROMISES[name] in capsys.readouterr().out
