"""Live models in the decoder: learned from steps, saved, restored, refused where unfit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_spec.cli.main import run as command
from adaptive_spec.errors import CalibrationError, UnsupportedError
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.log_reader import load_log
from adaptive_spec.testing.tiny import save_tiny, tiny_model
from adaptive_spec.testing.yardsticks import plain, run
from adaptive_spec.types import Work

PROMPT = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6]


def warm(model: Any, tmp_path: Path, **config: Any) -> AdaptiveDecoder:
    decoder = AdaptiveDecoder(model, {"log": {"path": str(tmp_path / "log.jsonl")}, **config})
    for start in range(3):
        run(decoder, [*PROMPT, start], max_new_tokens=60)
    return decoder


def test_every_decision_is_priced_and_explained(llama: Any, tmp_path: Path) -> None:
    warm(llama, tmp_path)
    steps = load_log(tmp_path / "log.jsonl").steps
    for step in steps:
        assert step["theta"] > 0
        assert step["expected_seconds"] > 0
        assert len(step["predicted"]) == step["offered"] + 1
        assert step["reason"].startswith(("marginal: ", "probe", "guard: "))
        assert set(step["multipliers"]) == {"draft", "verify_base", "verify_slope", "host"}
    late = steps[len(steps) // 2 :]
    real = np.array([sum(s["seconds"].values()) for s in late])
    guess = np.array([s["expected_seconds"] for s in late])
    assert 0.5 < np.median(guess / real) < 2.0


@pytest.mark.fault("K2")
def test_what_was_learned_is_saved_and_taken_up_again(llama: Any, tmp_path: Path) -> None:
    old = warm(llama, tmp_path)
    file = tmp_path / "learned.json"
    old.save_learned(file)
    new = AdaptiveDecoder(llama, {"calibration": str(file)})
    work = Work(np.arange(20), 1, 50, ("suffix",))
    before, after = (one._models[0].predict(work) for one in (old, new))
    assert after.verify == pytest.approx(before.verify, rel=1e-6)
    assert after.draft == pytest.approx(before.draft, rel=1e-6)
    assert new._models[1].state() == old._models[1].state()
    again = tmp_path / "again.json"
    new.save_learned(again)
    assert run(new, PROMPT, max_new_tokens=20) == plain(llama, PROMPT, max_new_tokens=20)
    # other drafters: time is known, acceptance is not
    stored = json.loads(file.read_text())
    stored["acceptance"]["drafters"] = ["another"]
    file.write_text(json.dumps(stored))
    other = AdaptiveDecoder(llama, {"calibration": str(file)})
    assert other._models[1].state() == AdaptiveDecoder(llama)._models[1].state()


@pytest.mark.fault("K2")
def test_a_calibration_of_another_model_or_thread_count_is_refused(
    llama: Any, tmp_path: Path
) -> None:
    file = tmp_path / "learned.json"
    warm(llama, tmp_path).save_learned(file)
    with pytest.raises(CalibrationError, match=r"model_type.*llama.*qwen3"):
        AdaptiveDecoder(tiny_model("qwen3"), {"calibration": str(file)})
    torch.set_num_threads(2)
    try:
        with pytest.raises(CalibrationError, match=r"threads.*calibrate"):
            AdaptiveDecoder(llama, {"calibration": str(file)})
    finally:
        torch.set_num_threads(1)
    with pytest.raises(CalibrationError, match="not a file"):
        AdaptiveDecoder(llama, {"calibration": str(tmp_path / "none.json")})


def test_calibrate_measures_fits_and_stores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = save_tiny(tmp_path / "tiny"), tmp_path / "calibration.json"
    flags = ["--model", folder, "--threads", "1", "--out", str(out), "--json"]
    assert command(["calibrate", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mape_live_20"] >= 0
    assert found["mape_live_100"] >= 0  # the machine may be as noisy as it likes
    assert found["mape_offline"] >= 0
    sizes = {(nodes, context) for nodes, context, _, _ in found["curve"]}
    assert {nodes for nodes, _ in sizes} >= {0, 1, 16, 64}
    assert all(seconds > 0 and predicted > 0 for _, _, seconds, predicted in found["curve"])
    from adaptive_spec.models import load

    model, _ = load(folder, "float32")
    decoder = AdaptiveDecoder(model, {"calibration": str(out)})
    assert len(run(decoder, PROMPT, max_new_tokens=8)) == 8


def test_calibrate_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["calibrate", "--dtype", "int3"]) == 2
    assert "--dtype int3" in capsys.readouterr().err
    assert command(["calibrate", "--threads", "0"]) == 2
    assert "--threads 0" in capsys.readouterr().err


@pytest.mark.fault("M1")
def test_a_draft_model_of_another_token_map_is_refused(tmp_path: Path) -> None:
    """Same size, two ids swapped; a target without a tokenizer leaves nothing to compare."""
    from adaptive_spec.models import load

    target, _ = load(save_tiny(tmp_path / "target"), "float32")
    small = Path(save_tiny(tmp_path / "small", seed=1))
    config = {"policy": "fixed:4", "drafter": f"draft_model:{small}"}
    assert AdaptiveDecoder(target, config).drafting.names == ("draft_model",)
    map_of = small / "tokenizer.json"
    content = json.loads(map_of.read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    map_of.write_text(json.dumps(content))
    with pytest.raises(UnsupportedError, match="draft model: its token map is not the target's"):
        AdaptiveDecoder(target, config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "target" / name).unlink()
    decoder = AdaptiveDecoder(target, config)
    assert run(decoder, PROMPT, max_new_tokens=8) == plain(target, PROMPT, max_new_tokens=8)


def test_a_draft_model_by_name_in_the_config(tmp_path: Path) -> None:
    """``draft_model:FOLDER+suffix``: loaded, checked against the target, merged, exact."""
    from adaptive_spec.models import load

    target, _ = load(save_tiny(tmp_path / "target"), "float32")
    small = save_tiny(tmp_path / "small", seed=1)
    config = {"policy": "fixed:12", "drafter": f"draft_model:{small}+suffix"}
    decoder = AdaptiveDecoder(target, config)
    assert decoder.drafting.names == ("draft_model", "suffix")
    for call in ({}, {"do_sample": True, "temperature": 0.8, "seed": 5}):
        assert run(decoder, PROMPT, max_new_tokens=24, **call) == plain(
            target, PROMPT, max_new_tokens=24, **call
        )
    same = {"policy": "fixed:16", "drafter": f"draft_model:{tmp_path / 'target'}"}
    with AdaptiveDecoder(target, same).start(PROMPT, max_new_tokens=24) as session:
        for _ in session:
            pass
        assert session.stats.as_dict()["mean_acceptance_length"] > 2
        assert session.stats.draft_model_seconds > 0
