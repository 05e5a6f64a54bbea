"""Tree attention against plain torch: random trees, ragged requests, windows, poison, mutants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from forwards import POISON, Forward, forward

from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.kernels import reference
from adaptive_spec.kernels.layout import Layouts, splits_of
from adaptive_spec.kernels.tree_attention import tree_attention
from adaptive_spec.packing import pack, tree_part

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


def deviation(one: Forward, window: int | None = None, **changes: Any) -> float:
    """Largest difference to the reference, relative above 1; outputs are poisoned before."""
    heads, rows, size = one.query.shape
    out = torch.full((rows, heads, size), POISON, dtype=one.query.dtype)
    splits = changes.pop("splits", None)
    narrow = changes.pop("narrow", window)
    layout = replace(one.layout, **changes)
    got = tree_attention(
        one.query,
        one.key,
        one.value,
        layout,
        scale=size**-0.5,
        window=narrow,
        splits=splits,
        out=out,
    )
    key, value = one.key.nan_to_num(0.0), one.value.nan_to_num(0.0)
    want = reference.tree_attention(one.query, key, value, one.mask(window), size**-0.5)
    error = (got.float() - want.float()).abs() / want.float().abs().clamp(min=1.0)
    return float(error.nan_to_num(torch.inf).max())


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("size", [64, 80, 96, 128, 160, 192, 256])
def test_all_head_sizes(size: int, dtype: torch.dtype) -> None:
    one = forward(size, [70, 0, 5], [6, 3, 0], size=size, dtype=dtype, fill=2)
    assert deviation(one) < ROUNDING[dtype]


@pytest.mark.parametrize("heads", [(4, 4), (9, 3), (7, 1), (8, 2)])
def test_grouped_heads(heads: tuple[int, int]) -> None:
    one = forward(heads[0], [40, 3], [20, 9], heads=heads[0], kv_heads=heads[1])
    assert deviation(one) < 1e-5


@pytest.mark.parametrize("heads", [(8, 1), (80, 1)])
def test_large_groups(heads: tuple[int, int]) -> None:
    """Several tiles; and more query heads than a tile usually has lanes."""
    one = forward(heads[0], [40, 3], [20, 9], heads=heads[0], kv_heads=heads[1])
    assert deviation(one) < 1e-5


@pytest.mark.parametrize("group", [3, 8])
def test_tiles_in_pieces(group: int) -> None:
    """float32 heads of 256, whose tiles are too large for small GPUs; the last piece of a tile that
    is a multiple of nothing."""
    one = forward(group, [70, 5], [40, 3], heads=group, kv_heads=1, size=256, fill=1)
    assert one.layout.lanes == 64
    assert deviation(one) < 1e-5
    assert deviation(one, splits=2) < 1e-5


@pytest.mark.parametrize("size", [80, 128])
def test_splits_in_half_precision(size: int) -> None:
    one = forward(size, [200, 70], [9, 4], size=size, dtype=torch.bfloat16)
    assert deviation(one, splits=4) < ROUNDING[torch.bfloat16]


def test_splits_are_chosen() -> None:
    """256 committed tokens and few programs."""
    one = forward(2, [256, 300], [9, 4], heads=2, kv_heads=1)
    programs = len(one.layout.tiles) * len(one.key)
    assert splits_of(programs, one.layout.longest) == 2
    assert deviation(one) < 1e-5


@pytest.mark.parametrize("splits", [None, 1, 2, 8])
@pytest.mark.parametrize("window", [None, 1, 7, 64, 100])
def test_windows_and_splits(window: int | None, splits: int | None) -> None:
    one = forward(11, [200, 64, 1], [70, 2, 33], fill=1, heads=2, kv_heads=1)
    assert deviation(one, window, splits=splits) < 1e-5


@pytest.mark.parametrize("seed", range(8))
def test_random_forwards(seed: int) -> None:
    torch.manual_seed(seed)
    count = int(torch.randint(1, 6, ()))
    contexts = torch.randint(0, 150, (count,)).tolist()
    nodes = torch.randint(0, 40, (count,)).tolist()
    one = forward(seed, contexts, nodes, fill=seed % 3)
    assert deviation(one, splits=1 << seed % 3) < 1e-5


def test_a_long_prompt() -> None:
    """A chunk of a prefill: 300 rows that see all before them."""
    one = forward(5, [130], [0], heads=2, kv_heads=1)
    part = tree_part(one.batch.parts[0].owner, 1, 130, CandidateTree.chain(list(range(299))))
    batch = pack([part], one.pool.reserve(300))
    layout = Layouts(torch.device("cpu"), 2).lay(one.pool, batch)
    made = torch.Generator().manual_seed(0)
    query = torch.randn(2, 300, 64, generator=made)
    pools = [torch.randn(1, len(one.pool), 64, generator=made) for _ in range(2)]
    assert deviation(Forward(batch, one.pool, layout, query, *pools)) < 1e-5


def test_inputs_may_be_strided() -> None:
    one = forward(3, [20, 9], [5, 5])
    turned = one.query.transpose(0, 1).contiguous().transpose(0, 1)
    wide = torch.full((*one.key.shape[:2], 96), POISON)
    wide[..., :64] = one.key
    strided = Forward(one.batch, one.pool, one.layout, turned, wide[..., :64], one.value)
    assert deviation(strided) < 1e-5


# -- mutants: what must not pass ------------------------------------------------------------------


def mutants(one: Forward) -> dict[str, dict[str, Any]]:
    layout = one.layout
    blind, seeing = layout.bits.clone(), layout.bits.clone()
    row = int(torch.nonzero(layout.rows[1] > 0)[0])  # its parent is not the root
    blind[row, 0] &= ~(1 << int(layout.rows[1][row] - layout.starts[0]))
    seeing[0, 0] |= 2
    short, stranger, late = layout.parts.clone(), layout.parts.clone(), layout.positions.clone()
    short[0, 1] -= 1
    stranger[0, 0] = 1
    late[:] += 1
    return {
        "an ancestor unseen": {"bits": blind},
        "a child seen": {"bits": seeing},
        "the last committed slot unseen": {"parts": short},
        "another request's slots": {"parts": stranger},
        "a window that is one too wide": {"narrow": 8},
        "positions that are one too late": {"positions": late},
    }


@pytest.mark.parametrize("mutant", list(mutants(forward(1, [60, 59], [12, 4]))))
def test_mutants_fail(mutant: str) -> None:
    one = forward(1, [60, 59], [12, 4])
    assert deviation(one, 7) < 1e-5
    assert deviation(one, 7, **mutants(one)[mutant]) > 1e-3
