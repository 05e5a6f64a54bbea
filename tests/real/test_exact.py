"""Yardsticks E and T on the real model, small enough for every run; `bench` does it at length.

In fp32 a difference is allowed only at a near-tie (plain's top-2 gap below 1e-4), in bf16 only
within 2 units in the last place of the top logit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adaptive_spec.bench.runner import run_bench
from adaptive_spec.bench.settings import BenchSettings

pytestmark = pytest.mark.real

PROMPTS = (
    "Rewrite this function with type hints:\ndef area(width, height):\n    return width * height",
    "Why is the sky blue in the day and red in the evening? Answer in short sentences.",
    "List the days of the week, then list them again backwards.",
    "Say 'one potato, two potato, three potato, four' twice.",
)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("prompts") / "own.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return str(file)


def rows(prompts: str, **changes: Any) -> dict[str, Any]:
    settings = BenchSettings(
        model="smollm2-135m",
        suite=prompts,
        policies=("plain", "fixed:16", "marginal"),
        drafters=("suffix", "auto"),
        repeats=1,
        **changes,
    )
    return {row.name: row for row in run_bench(settings).rows}


@pytest.mark.fault("L1", "L2", "L11")
@pytest.mark.parametrize(("temperature", "batch"), [(0.0, 1), (0.8, 1), (0.0, 4), (0.8, 4)])
def test_float32_is_exact(prompts: str, temperature: float, batch: int) -> None:
    peers = ("hf",) if temperature == 0 and batch == 1 else ()
    found = rows(
        prompts,
        dtypes=("float32",),
        temperature=temperature,
        batch=batch,
        max_new_tokens=28,
        peers=peers,
    )
    assert len(found) == 5 + len(peers)
    for row in found.values():
        assert row.mismatches == 0
        assert row.near_ties <= 1  # one in 20,000 tokens is allowed, and seen less often
        assert row.identical + row.near_ties == len(PROMPTS)
    default = found["fixed:16/auto"]
    assert default.acceptance_length > 1.1  # drafts were accepted: the claim is not empty
    assert default.drafter == "causal_parallel:smollm2-135m+suffix"  # what ships for it


def test_the_head_that_ships_drafts_well_by_itself(prompts: str) -> None:
    """A head that knew nothing would make one token per step; nothing is looked up here."""
    settings = BenchSettings(
        model="smollm2-135m",
        suite=prompts,
        policies=("plain", "fixed:16"),
        drafters=("causal_parallel:smollm2-135m",),
        repeats=1,
        dtypes=("float32",),
        max_new_tokens=40,
    )
    _, row = run_bench(settings).rows
    assert row.identical == len(PROMPTS)
    assert row.acceptance_length > 1.6


@pytest.mark.fault("L1")
def test_bfloat16_differs_at_ties_only(prompts: str) -> None:
    for row in rows(prompts, dtypes=("bfloat16",), max_new_tokens=48).values():
        assert row.mismatches == 0


def test_the_law_of_the_log(prompts: str, tmp_path: Path) -> None:
    """A bench run's log adds up to its rows."""
    from adaptive_spec import load_log

    found = rows(prompts, dtypes=("float32",), max_new_tokens=16, limit=2, out=str(tmp_path))
    log = load_log(tmp_path / "log.jsonl")
    assert log.skipped == 0
    assert found["fixed:16/auto"].requests == 2
    texts = [record for record in log.requests if "/fixed:16/auto/0/" in record["request"]]
    assert len(texts) == 2
    assert sum(record["new_tokens"] for record in texts) <= 32
