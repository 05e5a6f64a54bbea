"""Mutants: kernels with one mistake each, which comparisons with plain torch must not pass."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from adaptive_spec.kernels import candidates, reference, walk
from adaptive_spec.kernels.facts import Candidates

HEAT = torch.tensor([1.0, 0.3, 2.0])


def mutant(of: ModuleType, right: str, wrong: str, folder: Path) -> ModuleType:
    """The module with one piece of its text replaced; the piece must be there once."""
    source = Path(str(of.__file__)).read_text(encoding="utf-8")
    assert source.count(right) == 1, right
    path = folder / "mutant.py"
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    found = importlib.util.spec_from_file_location("mutant", path)
    assert found is not None
    assert found.loader is not None
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


def scores() -> torch.Tensor:
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)) * 4
    logits[0, [7, 40]] = logits[0].max() + 1
    logits[2] -= 100.0
    return logits


def same(got: torch.Tensor, want: torch.Tensor) -> bool:
    if not got.is_floating_point():
        return torch.equal(got, want)
    return bool(torch.allclose(got, want, rtol=1e-5, atol=1e-5))


def candidates_right(module: ModuleType) -> bool:
    logits = scores()
    got, want = (one.candidates(logits, HEAT, 64) for one in (module, reference))
    pairs = [(got.ids, want.ids), (got.scores, want.scores), (got.entropy, want.entropy)]
    return all(same(*pair) for pair in [*pairs, (got.rest, want.rest)])


def children_right(module: ModuleType) -> bool:
    made = torch.Generator().manual_seed(1)
    found: Candidates = reference.candidates(scores(), HEAT, 64)
    place = torch.tensor([0, 2, 1, 1, 0], dtype=torch.int32)
    query, scale = torch.randn(5, 5, generator=made), torch.rand(5, 2, generator=made) + 0.5
    table, noise = torch.randn(5000, 5, generator=made), torch.randn(3, 64, generator=made)
    how = {"noise": noise, "unseen": found.rest - 1.0, "sharpness": 0.7}
    for more in ({}, how):
        got, want = (
            one.children(place, query, scale, found, table, HEAT, 8, **more)
            for one in (module, reference)
        )
        pairs = [(got.ids, want.ids), (got.chance, want.chance), (got.margin, want.margin)]
        if not all(same(*pair) for pair in pairs):
            return False
    return True


def peaks_right(module: ModuleType) -> bool:
    return all(
        same(*pair) for pair in zip(module.peaks(scores()), reference.peaks(scores()), strict=True)
    )


def walk_right(module: ModuleType) -> bool:
    """Root 0 with children 1 and 2, 1 with 3, 2 with 4; another request behind it."""
    parent = torch.tensor([-1, 0, 0, 1, 2, -1, 5], dtype=torch.int32)
    token = torch.tensor([9, 1, 2, 3, 3, 9, 3], dtype=torch.int32)
    top = torch.tensor([2, 3, 3, 0, 0, 3, 0], dtype=torch.int32)
    starts = torch.tensor([0, 5, 7], dtype=torch.int32)
    got = module.walk(top, token, parent, starts, 5)
    return torch.equal(got, reference.walk(top, token, parent, starts))


CANDIDATES = (
    ("(0xFFFFFFFF - token.to(tl.int64))", "token.to(tl.int64)"),
    ("word ^ ((word >> 31) & 0x7FFFFFFF)\n    return (order", "word\n    return (order"),
    ("<< (62 - bit)", "<< (61 - bit)"),
    ("tl.load(at + 2, there, 0.0) * tl.exp(shift)", "tl.load(at + 2, there, 0.0)"),
    ("tl.where(power > 0.0, shift, 0.0) * power", "0.0 * power"),
    ("tl.load(at + 1, there, 0.0) * tl.exp(shift)", "tl.load(at + 1, there, 0.0)"),
    ("tl.exp((score - top) * cold), 0)", "tl.exp(score - top), 0)"),
)
CHILDREN = (
    ("tl.load(scale + 2 * node + 1)", "tl.load(scale + 2 * node)"),
    ("/ tl.load(heat + where)\n    others", "\n    others"),
    ("tl.exp(others - top))", "0.0)"),
    ("noise + where * COUNT + lane", "noise + node % 3 * COUNT + lane"),
    ("- total - whole / sharpness", "- total - whole"),
    ('logq = tl.where(lane == leader, float("-inf"), logq)', "logq = logq + 0.0"),
)
PEAKS = (
    ("chunk * CHUNK + tl.arange(0, CHUNK)", "tl.arange(0, CHUNK)"),
    ("chunk < chunks, LOWEST), 0)", "chunk < 1, LOWEST), 0)"),
)
WALK = (
    ("there & (above == here)", "there"),
    (" & (carried == wanted)", ""),
    ("tl.load(top + here)", "tl.load(top + first)"),
    ("        step += 1\n", ""),
)


@pytest.mark.parametrize(("right", "wrong"), CANDIDATES)
def test_wrong_candidates(right: str, wrong: str, tmp_path: Path) -> None:
    assert not candidates_right(mutant(candidates, right, wrong, tmp_path))


@pytest.mark.parametrize(("right", "wrong"), CHILDREN)
def test_wrong_children(right: str, wrong: str, tmp_path: Path) -> None:
    assert not children_right(mutant(candidates, right, wrong, tmp_path))


@pytest.mark.parametrize(("right", "wrong"), PEAKS)
def test_wrong_peaks(right: str, wrong: str, tmp_path: Path) -> None:
    assert not peaks_right(mutant(walk, right, wrong, tmp_path))


@pytest.mark.parametrize(("right", "wrong"), WALK)
def test_wrong_walks(right: str, wrong: str, tmp_path: Path) -> None:
    assert not walk_right(mutant(walk, right, wrong, tmp_path))


def test_the_kernels_themselves_pass() -> None:
    assert candidates_right(candidates)
    assert children_right(candidates)
    assert peaks_right(walk)
    assert walk_right(walk)
