"""Heads that ship: listed, found by name, and used by the target that they were made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from adaptive_spec.build import find_drafters
from adaptive_spec.config import Config, load_config
from adaptive_spec.errors import ArgumentError, CatalogueError, HeadError, UnknownNameError
from adaptive_spec.heads import shelf
from adaptive_spec.heads.config import WEIGHTS, HeadConfig, target_facts
from adaptive_spec.heads.digest import digest
from adaptive_spec.heads.head import Head
from adaptive_spec.heads.store import save_head
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.model_facts import describe, head_facts
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import plain, run

PROMPT = [5, 6, 7, 8, 5, 6, 9, 10]


def put(folder: Path, model: Any) -> Head:
    torch.manual_seed(0)
    head = Head(HeadConfig(**{**head_facts(model), "taps": (0, 1), "block": 4, "layers": 1}))
    held = {"acceptance_length": 1.5}
    facts = {**target_facts(describe(model)), "digest": digest(model)}
    save_head(folder, head, facts, {"step": 7, "held_out": held})
    return head


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A shelf with the head of a tiny model; gives the model."""
    monkeypatch.setattr(shelf, "SHELF", tmp_path)
    model = tiny_model("llama")
    put(tmp_path / "tiny", model)
    return model


def test_a_target_takes_the_head_that_ships_for_it(shipped: Any) -> None:
    with AdaptiveDecoder(shipped) as decoder:
        assert decoder.config.drafter == "causal_parallel:tiny+suffix"
        assert decoder.drafting.names == ("causal_parallel", "suffix")
        assert run(decoder, PROMPT, max_new_tokens=12) == plain(shipped, PROMPT, max_new_tokens=12)
    with AdaptiveDecoder(shipped, {"drafter": "causal_parallel", "policy": "fixed:4"}) as decoder:
        assert run(decoder, PROMPT, max_new_tokens=12) == plain(shipped, PROMPT, max_new_tokens=12)


def test_other_targets_and_other_weights_get_suffix(shipped: Any) -> None:
    other = tiny_model("llama")
    with torch.no_grad():
        other.get_input_embeddings().weight[:] += 1.0
    for model in (other, tiny_model("qwen3")):
        with AdaptiveDecoder(model) as decoder:
            assert decoder.config.drafter == "suffix"
        with pytest.raises(ArgumentError, match="no head ships for this target"):
            AdaptiveDecoder(model, {"drafter": "causal_parallel"})
        with pytest.raises(HeadError, match=r"target\."):
            AdaptiveDecoder(model, {"drafter": "causal_parallel:tiny"})


def test_what_the_user_names_is_not_replaced(shipped: Any) -> None:
    with AdaptiveDecoder(shipped, {"drafter": "suffix"}) as decoder:
        assert decoder.config.drafter == "suffix"
    assert load_config().drafter == Config().drafter == "auto"
    assert find_drafters(Config()) == []


def test_heads_are_found_by_name_folder_or_hub_id(
    shipped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shelf.names() == ["tiny"]
    assert shelf.find("tiny") == tmp_path / "tiny" == shelf.find(str(tmp_path / "tiny"))
    for name in ("nowhere", "n" * 300, "a/b/" + "n" * 5000, "\0"):
        with pytest.raises(HeadError, match="tiny"):
            shelf.find(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CatalogueError, match="the hub does not give it"):
        shelf.find("nobody/nothing")


def test_plus_signs_within_a_path_divide_nothing() -> None:
    def split(names: str) -> list[tuple[str, str | None]]:
        found = find_drafters(Config(drafter=names))
        return [(entry.name, argument) for entry, argument in found]

    both = [("causal_parallel", "/c++/head"), ("suffix", None)]
    assert split("causal_parallel:/c++/head+suffix") == both
    assert split("suffix + causal_parallel:/c++/head") == both[::-1]
    with pytest.raises(UnknownNameError, match="sufix"):
        split("causal_parallel:name+sufix")


def test_the_list(shipped: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from adaptive_spec.cli.main import run as command

    assert command(["heads", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["heads"]
    head = put(shelf.SHELF / "tiny", shipped)
    assert entry["name"] == "tiny"
    assert entry["parameters"] == sum(weight.numel() for weight in head.parameters())
    assert (entry["steps"], entry["acceptance_length"]) == (7, 1.5)
    assert command(["heads"]) == 0
    shown = capsys.readouterr().out
    assert "tiny" in shown
    assert "1.50 tokens/step" in shown


def test_heads_in_the_package_are_small_and_whole() -> None:
    for one in shelf.listing():
        assert one.bytes <= 25e6
        with safe_open(Path(one.path) / WEIGHTS, framework="pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        assert {kind for name, kind in kinds.items() if name != "draft_ids"} == {"BF16"}
        assert {"README.md", "curves.png"} <= {path.name for path in Path(one.path).iterdir()}
