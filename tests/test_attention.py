"""Grouped attention without copies: the same numbers, and a model that is left as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from adaptive_spec.attention import NAME, Grouped, grouped_attention
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import run


def _inputs(rows: int, slots: int, heads: int, kv_heads: int, seed: int = 0) -> list[Any]:
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(1, rows, heads, 8, generator=draw).transpose(1, 2)
    key, value = (
        torch.randn(1, kv_heads, 2 * slots, 8, generator=draw)[:, :, :slots] for _ in "kv"
    )
    mask = torch.rand(1, 1, rows, slots, generator=draw) < 0.5
    mask[..., 0] = True
    return [query, key, value, mask]


@pytest.mark.fault("C8")
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (9, 3), (8, 1)])
@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("additive", [False, True])
def test_every_row_gets_what_transformers_gives_it(
    heads: int, kv_heads: int, rows: int, additive: bool
) -> None:
    query, key, value, mask = _inputs(rows, 40, heads, kv_heads)
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    module = SimpleNamespace(num_key_value_groups=heads // kv_heads, is_causal=True)
    for scaling in (None, 0.3):
        want, _ = sdpa_attention_forward(module, query, key, value, mask, 0.0, scaling)
        got, _ = grouped_attention(module, query, key, value, mask, 0.0, scaling)
        assert got.shape == want.shape
        assert torch.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (9, 3)])
def test_single_rows_of_a_batch_see_everything(heads: int, kv_heads: int) -> None:
    parts = [_inputs(1, 40, heads, kv_heads, seed)[:3] for seed in range(3)]
    query, key, value = (torch.cat(same) for same in zip(*parts, strict=True))
    module = SimpleNamespace(num_key_value_groups=heads // kv_heads, is_causal=True)
    want, _ = sdpa_attention_forward(module, query, key, value, None)
    got, _ = grouped_attention(module, query, key, value, None)
    assert got.shape == want.shape
    assert torch.allclose(got, want, atol=1e-6)


def test_what_it_does_not_know_goes_to_transformers() -> None:
    query, key, value, mask = _inputs(3, 10, 4, 2)
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    cases = [
        (query, key, value, None, {}),
        (query, key, value, mask.expand(1, 4, 3, 10), {}),
        (query, key, value, mask, {"position_bias": torch.randn(1, 4, 3, 10)}),
    ]
    for q, k, v, m, options in cases:
        want, _ = sdpa_attention_forward(module, q, k, v, m, **options)
        got, _ = grouped_attention(module, q, k, v, m, **options)
        assert torch.equal(got, want)


def test_the_model_is_pointed_at_it_during_our_forwards_only() -> None:
    model, seen = tiny_model("llama"), set[str]()
    with AdaptiveDecoder(model, {"policy": "fixed:4"}) as decoder:
        model.register_forward_pre_hook(
            lambda m, a, k: seen.add(m.config._attn_implementation), with_kwargs=True
        )
        run(decoder, [5, 6, 5, 6, 5], max_new_tokens=6)
        assert seen == {NAME}
        assert model.config._attn_implementation == "sdpa"
    with pytest.raises(RuntimeError, match="inside"), Grouped(model)():
        raise RuntimeError("inside")
    assert model.config._attn_implementation == "sdpa"


def test_eager_models_are_left_alone() -> None:
    model = tiny_model("llama", attention="eager")
    with Grouped(model)():
        assert model.config._attn_implementation == "eager"
