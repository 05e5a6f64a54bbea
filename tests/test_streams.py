"""Streams of requests: prompts, a target that changes, rows; and a head that is kept."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bench import folder as folder
from test_heads import PROMPT, tiny_head
from typer.testing import CliRunner

from adaptive_spec.bench.drift import HALVINGS, RANK, Drift, loop_rate
from adaptive_spec.bench.settings import BenchSettings
from adaptive_spec.bench.stream_prompts import KINDS
from adaptive_spec.bench.streams import STREAMS, find_stream, run_stream
from adaptive_spec.cli.main import app
from adaptive_spec.errors import AdaptiveSpecError, ArgumentError, UnsupportedError
from adaptive_spec.heads.config import target_facts
from adaptive_spec.heads.digest import digest
from adaptive_spec.heads.store import load_head, save_head
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.model_facts import describe
from adaptive_spec.testing.tiny import tiny_model


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_prompts_go_on_and_are_the_same_for_a_seed(kind: str) -> None:
    first = list(itertools.islice(KINDS[kind](3), 400))
    assert first == list(itertools.islice(KINDS[kind](3), 400))
    assert first != list(itertools.islice(KINDS[kind](4), 400))
    assert len(set(first[:150])) > 100
    assert all("{" not in text for text in first)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_turn_has_its_rank_and_computes_the_same(architecture: str) -> None:
    model, probe = tiny_model(architecture), torch.arange(3, 60)
    hidden = model.config.hidden_size
    drift = Drift(model, [probe], seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = model(probe[None], output_hidden_states=True)
    drift.begin(1.0)
    drift.begin(1.0)  # not further
    found = model(probe[None], output_hidden_states=True)
    assert torch.allclose(found.logits, wanted.logits, atol=1e-3)
    for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
        assert one.shape[-1] == hidden
        assert not torch.allclose(one, other, atol=1e-2)
    for name, value in model.state_dict().items():
        if value.dim() < 2:
            assert torch.equal(value, before[name]), name
        else:
            change = value - before[name]
            assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) == RANK, name
    drift.end()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_tied_output_layer_is_turned_as_well() -> None:
    model, probe = tiny_model("llama"), torch.arange(3, 60)
    model.lm_head.weight = model.model.embed_tokens.weight
    wanted = model(probe[None]).logits
    drift = Drift(model, [probe])
    drift.begin(1.0)
    assert torch.allclose(model(probe[None]).logits, wanted, atol=1e-3)


@pytest.mark.parametrize("architecture", ["gemma3", "qwen3_moe", "phi3"])
def test_a_target_that_cannot_be_turned_is_refused_and_left_alone(architecture: str) -> None:
    model = tiny_model(architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UnsupportedError, match="target-drift"):
        Drift(model, [torch.arange(3, 60)]).begin(1.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_angle_is_sought_that_costs_the_wanted_share() -> None:
    drift = Drift(tiny_model("llama"), [torch.arange(3, 60)])
    asked: list[float] = []
    turn, drift.begin = drift.begin, lambda angle: (asked.append(angle), turn(angle))[0]  # type: ignore[method-assign,assignment]
    angle, before, after = drift.scale(lambda: 3.0 - (asked[-1] if asked else 0.0))
    assert angle == asked[-1]
    assert (before, after) == (3.0, 3.0 - angle)
    assert 0.2 <= 1.0 - after / before <= 0.35
    drift.end()
    asked.clear()
    angle, before, after = drift.scale(lambda: 2.0)
    assert len(asked) == HALVINGS
    assert before == after


def test_texts_that_run_in_circles() -> None:
    straight, circle = list(range(100)), [1, 2, 3] * 30
    late = [*range(50), *([7] * 48)]
    assert loop_rate([straight, circle, late, [5] * 10]) == 0.5


@pytest.fixture
def settings(folder: Path) -> dict[str, Any]:
    return {
        "model": str(folder),
        "max_new_tokens": 12,
        "config": None,
        "raw": True,
        "overrides": ("self_check=false",),
        "threads": 1,
    }


def test_a_stream_of_rules(folder: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    """Parts follow one another; every contestant decodes every batch; the target is put back."""
    head = _kept_head(folder, tmp_path)
    from adaptive_spec.bench.settings import Vary

    asked = BenchSettings(
        suite="stream:target-drift",
        batch=2,
        drafters=("causal_parallel",),
        policies=("fixed:4",),
        vary=(Vary("online.updates", ("never", "every:4@corrector")),),
        **{**settings, "overrides": (f"causal_parallel.head={head}",)},
    )
    seen = []
    result = run_stream(asked, 100, keep=lambda so_far: seen.append(len(so_far.rows)))
    never, learned = result.rows
    assert [row.name for row in result.rows] == ["never", "every:4@corrector"]
    assert (never.versus_never, never.low, never.high, never.updates) == (1.0, 1.0, 1.0, 0)
    assert (never.trials, never.update_seconds, never.break_even_tokens) == (0, 0.0, None)
    assert learned.trials > 0
    assert learned.update_seconds > 0
    assert learned.identical == never.identical == never.requests  # float32
    assert len(seen) == len(result.courses[never.name].tokens) >= 4
    quarter = len(seen) // 4
    late = [
        sum(one.tokens[-quarter:]) / sum(one.seconds[-quarter:])
        for one in (result.courses[learned.name], result.courses[never.name])
    ]
    assert learned.versus_never_last == pytest.approx(late[0] / late[1])
    assert learned.last_low <= learned.versus_never_last <= learned.last_high
    before, after = result.facts["parts"]
    assert (before["first_batch"], before["drifted"], after["drifted"]) == (0, False, True)
    assert sum(result.courses[never.name].tokens) >= 100
    drift = result.facts["drift"]
    one, other = drift["perplexity"]
    assert one == pytest.approx(other, rel=1e-3)
    assert drift["rank"] == RANK
    assert set(drift["acceptance_length_end"]) == {"never", "every:4@corrector"}
    assert drift["acceptance_length_end"]["never"] == drift["acceptance_length"][1]
    assert set(drift["recovered"]) <= set(drift["acceptance_length_end"])
    json.dumps(result.as_dict(), allow_nan=False)


def test_a_stream_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["bench", "--suite", "stream:adversarial", "--model", str(folder), "--raw"]
    words += ["--tokens", "30", "--max-new-tokens", "8", "--drafters", "suffix", "--threads", "1"]
    called = CliRunner().invoke(app, [*words, "--updates", "never", "--out", str(out), "--json"])
    assert called.exit_code == 0, called.output
    rows = json.loads(called.stdout)["rows"]
    assert [row["name"] for row in rows] == ["never", "plain"]
    assert all(row["versus_plain"] is not None for row in rows)
    assert json.loads((out / "stream.json").read_text())["rows"] == rows
    assert (out / "throughput.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("suite", ["stream:", "stream:nowhere", "stream:domains:3"])
def test_streams_that_are_none(suite: str) -> None:
    with pytest.raises(ArgumentError, match="stream:domains"):
        find_stream(suite)
    assert set(STREAMS) == {"stationary", "domains", "target-drift", "adversarial"}


def test_a_stream_without_a_head_to_learn_is_refused(settings: dict[str, Any]) -> None:
    from adaptive_spec.bench.settings import Vary

    vary = (Vary("online.updates", ("never", "always")),)
    asked = BenchSettings(suite="stream:stationary", drafters=("suffix",), vary=vary, **settings)
    with pytest.raises(AdaptiveSpecError, match="causal_parallel"):
        run_stream(asked, 10)


def _kept_head(folder: Path, tmp_path: Path) -> Path:
    """A random head for the model in ``folder``, on disk."""
    from adaptive_spec import models

    model, _ = models.load(str(folder), "float32")
    target = {**target_facts(describe(model)), "digest": digest(model)}
    save_head(tmp_path / "head", tiny_head(model, corrector="recurrent_bias"), target)
    return tmp_path / "head"


def test_what_was_learned_is_kept_and_drafted_with(folder: Path, tmp_path: Path) -> None:
    """Saved, it is the same head bit for bit; unsaved, it is gone."""
    from adaptive_spec import models

    place = _kept_head(folder, tmp_path)
    model, _ = models.load(str(folder), "float32")
    config = {
        "policy": "fixed:6",
        "drafter": "causal_parallel",
        "causal_parallel": {"head": str(place)},
        "online": {"updates": "every:2@calibrator"},
    }
    before = load_head(place).head.state_dict()
    with AdaptiveDecoder(model, config) as decoder:
        drafter = decoder.drafting.drafters[0]
        drafter.head.token_bias().data[:8] = torch.linspace(-1, 1, 8)
        session = decoder.start(PROMPT, max_new_tokens=40)
        while not session.finished:
            session.step()
        decoder.save_head(tmp_path / "learned")
        learned = {name: value.clone() for name, value in drafter.head.state_dict().items()}
    assert load_head(place).head.state_dict().keys() == before.keys()
    found = load_head(tmp_path / "learned")
    assert found.head.config.token_bias
    assert found.training["served"]["updates"] == decoder.learner.updates
    for name, value in found.head.state_dict().items():
        assert torch.equal(value, learned[name]), name
    again = {**config, "causal_parallel": {"head": str(tmp_path / "learned")}}
    with AdaptiveDecoder(model, again) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=40)
        while not session.finished:
            session.step()
        assert not decoder.faults.count
    with AdaptiveDecoder(model, {"drafter": "suffix"}) as decoder, pytest.raises(UnsupportedError):
        decoder.save_head(tmp_path / "none")


def test_a_head_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    place = _kept_head(folder, tmp_path)
    words = ["generate", "--model", str(folder), "--prompt", "w1 w2 w3", "--raw", "--threads", "1"]
    words += ["--max-new-tokens", "8", "--drafter", "causal_parallel"]
    kept = tmp_path / "kept"
    called = CliRunner().invoke(app, [*words, "--head", str(place), "--save-head", str(kept)])
    assert called.exit_code == 0, called.output
    assert load_head(kept).head.config == load_head(place).head.config
    called = CliRunner().invoke(app, [*words, "--head", str(tmp_path / "nowhere")])
    assert called.exit_code != 0
