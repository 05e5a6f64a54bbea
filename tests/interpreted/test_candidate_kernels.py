"""Candidates, children and the greedy walk against plain torch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from forwards import random_tree

from adaptive_spec.cache import SlotPool
from adaptive_spec.kernels import candidates as kernels
from adaptive_spec.kernels import reference, walk
from adaptive_spec.kernels.facts import Candidates
from adaptive_spec.kernels.layout import Layouts
from adaptive_spec.packing import pack, tree_part


def scores(places: int, vocab: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    return (torch.randn(places, vocab, generator=made) * 4).to(dtype)


def close(got: torch.Tensor, want: torch.Tensor, by: float = 1e-5) -> bool:
    return bool(torch.allclose(got, want, rtol=by, atol=by))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("vocab", "count"), [(64, 64), (97, 8), (2048, 64), (2049, 2), (10_000, 64)]
)
def test_candidates(vocab: int, count: int, dtype: torch.dtype) -> None:
    logits, heat = scores(3, vocab, vocab, dtype), torch.tensor([1.0, 0.3, 2.0])
    logits[0, [7, 40]] = logits[0].max() + 1  # a tie: the lower token first
    logits[1, 5] = -torch.inf
    logits[2, [3, 60]] = torch.tensor([0.0, -0.0], dtype=dtype)
    got, want = kernels.candidates(logits, heat, count), reference.candidates(logits, heat, count)
    assert torch.equal(got.ids, want.ids)
    assert torch.equal(got.scores, want.scores)
    whole = (logits.float() / heat[:, None]).logsumexp(dim=1)  # small rests are differences
    assert close((got.rest - whole).exp(), (want.rest - whole).exp())
    assert close(got.entropy, want.entropy)


def test_many_candidates_come_in_no_order() -> None:
    logits, heat = scores(2, 5000, 0), torch.ones(2)
    got, want = kernels.candidates(logits, heat, 512), reference.candidates(logits, heat, 512)
    assert torch.equal(got.ids.sort().values, want.ids.sort().values)
    assert close(got.rest.exp(), want.rest.exp(), 1e-3)


@pytest.mark.parametrize("poison", [torch.nan, -torch.nan, torch.inf])
def test_scores_that_are_not_finite_show(poison: float) -> None:
    logits = scores(2, 3000, 1)
    logits[1, 2500] = poison
    found = kernels.candidates(logits, torch.ones(2), 64)
    assert torch.isfinite(found.entropy).tolist() == [True, False]


@pytest.mark.parametrize("rank", [1, 5, 160])
@pytest.mark.parametrize("drawn", [False, True])
def test_children(rank: int, drawn: bool) -> None:
    made = torch.Generator().manual_seed(rank)
    heat = torch.tensor([1.0, 0.7, 1.4])
    found = reference.candidates(scores(3, 500, rank), heat, 64)
    place = torch.tensor([0, 2, 1, 1, 0], dtype=torch.int32)
    query = torch.randn(5, rank, generator=made) / rank**0.5
    scale = torch.rand(5, 2, generator=made) + 0.5
    table = torch.randn(500, rank, generator=made).bfloat16()
    noise = torch.randn(3, 64, generator=made) if drawn else None
    unseen = found.rest - 1.0 if drawn else None
    how = {"noise": noise, "unseen": unseen, "sharpness": 0.7}
    got, want = (
        one.children(place, query, scale, found, table, heat, 8, **how)
        for one in (kernels, reference)
    )
    assert torch.equal(got.ids, want.ids)
    assert close(got.chance, want.chance)
    assert close(got.margin, want.margin)


def test_children_ignore_what_is_not_theirs() -> None:
    """Rows of the table and places that nobody asks for may hold anything."""
    heat = torch.ones(2)
    found = reference.candidates(scores(2, 100, 3), heat, 4)
    table = torch.full((100, 3), torch.nan)
    table[found.ids[1].long()] = 0.5
    spoiled = Candidates(
        scores=found.scores.clone(), ids=found.ids, rest=found.rest.clone(), entropy=found.entropy
    )
    spoiled.scores[0], spoiled.rest[0] = torch.nan, torch.nan
    place, query = torch.tensor([1], dtype=torch.int32), torch.ones(1, 3)
    got = kernels.children(place, query, torch.ones(1, 2), spoiled, table, heat, 2)
    want = reference.children(place, query, torch.ones(1, 2), found, table, heat, 2)
    assert torch.equal(got.ids, want.ids)
    assert close(got.chance, want.chance)


def test_a_query_that_is_not_finite_gives_no_children() -> None:
    heat = torch.ones(2)
    found = reference.candidates(scores(2, 100, 3), heat, 4)
    place, query = torch.tensor([0, 1], dtype=torch.int32), torch.ones(2, 3)
    query[0, 1] = torch.nan
    got = kernels.children(place, query, torch.ones(2, 2), found, torch.ones(100, 3), heat, 2)
    assert torch.isneginf(got.chance[0]).all()
    assert torch.isfinite(got.chance[1]).all()


def test_all_candidates_as_children() -> None:
    """K = C: every candidate once."""
    heat, table = torch.ones(2), torch.randn(100, 3, generator=torch.Generator().manual_seed(2))
    found = reference.candidates(scores(2, 100, 3), heat, 4)
    place, query = torch.tensor([1, 0], dtype=torch.int32), torch.ones(2, 3)
    got, want = (
        one.children(place, query, torch.ones(2, 2), found, table, heat, 4)
        for one in (kernels, reference)
    )
    assert torch.equal(got.ids, want.ids)
    assert torch.equal(got.ids.sort().values, found.ids[[1, 0]].sort().values)
    assert close(got.chance, want.chance)


def test_a_child_of_another_place_would_show() -> None:
    """The negative control of the two tests above."""
    heat = torch.ones(2)
    found = reference.candidates(scores(2, 100, 3), heat, 4)
    query, scale, table = torch.zeros(1, 1), torch.ones(1, 2), torch.zeros(100, 1)
    places = [torch.tensor([place], dtype=torch.int32) for place in (0, 1)]
    one, other = (kernels.children(p, query, scale, found, table, heat, 2) for p in places)
    assert not close(one.chance, other.chance, 1e-3)


# -- the greedy walk ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [2, 97, 9000])
def test_peaks(vocab: int, dtype: torch.dtype) -> None:
    logits = scores(6, vocab, vocab, dtype)
    logits[1] = -torch.inf
    logits[2, -1] = torch.nan
    logits[3] = 0.0
    logits[3, 0] = -0.0
    logits[4, 1] = torch.inf
    logits[5, [0, -1]] = 99.0
    got, want = walk.peaks(logits), reference.peaks(logits)
    assert torch.equal(got[0].nan_to_num(777.0), want[0].nan_to_num(777.0))
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("seed", range(6))
def test_walks(seed: int) -> None:
    """Tokens out of a few, so that walks get somewhere."""
    luck = np.random.default_rng(seed)
    trees = [random_tree(luck, int(nodes), 40) for nodes in luck.integers(0, 30, 4)]
    pool = SlotPool(512, 512)
    parts = [tree_part(pool.join(), 1, 0, tree) for tree in trees]
    batch = pack(parts, pool.reserve(sum(map(len, trees)) + len(trees)), fill=seed)
    layout = Layouts(torch.device("cpu"), 1).lay(pool, batch)
    token, parent = layout.rows
    top = torch.from_numpy(luck.integers(0, 40, len(token))).int()
    for row in range(len(token)):  # most rows guess one of their children
        below = torch.nonzero(parent == row)[:, 0]
        if len(below) and luck.random() < 0.8:
            top[row] = token[below[int(luck.integers(len(below)))]]
    got = walk.walk(top, token, parent, layout.starts, layout.widest)
    want = reference.walk(top, token, parent, layout.starts)
    assert torch.equal(got, want)
    assert seed or int(want.max()) > 1
    ends = pairwise(layout.starts.tolist())
    assert all(int(got[first]) == 1 for first, _ in ends)
