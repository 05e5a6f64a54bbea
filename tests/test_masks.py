"""Masks, windows and positions: rows C4 and C7 to C9 of the fault table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from adaptive_spec.cache import SlotCache, SlotPool
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.packing import chain_part, pack, tree_part
from adaptive_spec.target import Target
from adaptive_spec.testing.drafters import ScriptedDrafter, flat_tree
from adaptive_spec.testing.tiny import CONTEXT, KINDS, WINDOW, tiny_model
from adaptive_spec.testing.yardsticks import check_state, plain, run
from adaptive_spec.types import ROOT

PROMPT = [5, 6, 7, 8, 5, 6, 9, 10, 5, 6, 11, 12]


# -- C4, C8, C9: logits of a tree across the window's edge ----------------------------------------

TREE = flat_tree([20, 21, 22, 20, 23, 24, 25, 26, 27, 20], [ROOT, ROOT, 0, 0, 1, 2, 5, 6, 7, 8])
"""Two branches, one of them 7 deep: with a window of 8 it leaves the prompt behind."""


def _above(tree: CandidateTree, node: int) -> list[int]:
    path: list[int] = []
    while node != ROOT:
        path.insert(0, int(tree.token[node]))
        node = int(tree.parent[node])
    return path


def _prefill(target: Target, cache: SlotCache, prompt: Sequence[int], spread: int) -> int:
    owner = cache.pool.join()
    part = chain_part(owner, prompt[:-1], 0)
    slots = cache.pool.reserve(spread * len(prompt))[::spread][: len(prompt) - 1]
    slots = np.random.default_rng(spread).permutation(slots)
    target.run(target.prepare(cache, pack([part], slots)))
    cache.pool.commit(owner, slots, part.positions)
    return owner


@pytest.mark.fault("C4", "C8", "C9")
@pytest.mark.parametrize("fill", [0, 5])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tree_logits_equal_one_by_one_logits(kind: str, attention: str, fill: int) -> None:
    model = tiny_model(kind, attention=attention)
    target = Target(model)
    cache = SlotCache(target.architecture.layers, SlotPool(16, CONTEXT))
    prompts = [PROMPT[:length] for length in (3, WINDOW - 1, WINDOW + 1, len(PROMPT))]
    trees = [TREE, CandidateTree.chain([30, 31]), TREE, TREE]
    owners = [_prefill(target, cache, p, spread=1 + i % 3) for i, p in enumerate(prompts)]
    parts = [
        tree_part(owner, prompt[-1], len(prompt) - 1, tree)
        for owner, prompt, tree in zip(owners, prompts, trees, strict=True)
    ]
    size = sum(len(part.tokens) for part in parts)
    slots = np.random.default_rng(0).permutation(cache.pool.reserve(2 * size))[:size]
    batch = pack(parts, slots, fill)
    owned = cache.pool.owner.copy()
    got = target.run(target.prepare(cache, batch)).logits
    assert len(got) == size + fill
    assert torch.isfinite(got).all()
    assert (cache.pool.owner == owned).all()
    for prompt, tree, start in zip(prompts, trees, batch.starts, strict=False):
        for node in range(ROOT, len(tree)):
            ids = torch.tensor([[*prompt, *_above(tree, node)]])
            want = model(ids, use_cache=False).logits[0, -1]
            worst = float((got[start + 1 + node] - want).abs().max() / want.abs().max())
            assert worst < 1e-5, f"node {node} of a prompt of {len(prompt)}"


@pytest.mark.fault("C4", "C9")
@pytest.mark.parametrize(
    "kind", ["gemma3", "mistral", "phi3", "mixtral", "qwen3_sliding", "qwen3_moe_sliding"]
)
@torch.no_grad()
def test_the_window_matters_in_that_test(kind: str) -> None:
    """Negative control: without the window the same logits are far off."""
    wide = tiny_model(kind)
    narrow = Target(wide)
    cache = SlotCache(narrow.architecture.layers, SlotPool(16, CONTEXT))
    narrow._window = None
    owner = _prefill(narrow, cache, PROMPT, 1)
    part = tree_part(owner, PROMPT[-1], len(PROMPT) - 1, CandidateTree.empty())
    got = narrow.run(narrow.prepare(cache, pack([part], cache.pool.reserve(1)))).logits[0]
    want = wide(torch.tensor([PROMPT]), use_cache=False).logits[0, -1]
    assert float((got - want).abs().max() / want.abs().max()) > 1e-2


@pytest.mark.fault("C8", "C9")
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_end_to_end(kind: str) -> None:
    model = tiny_model(kind)
    known = plain(model, PROMPT, max_new_tokens=30)
    drafter = ScriptedDrafter(lambda request: PROMPT + known, (3, 0, 5), decoys=1)
    decoder = AdaptiveDecoder(model, drafter=drafter)
    assert run(decoder, PROMPT, check_state, max_new_tokens=30) == known
    ids = torch.tensor([PROMPT])
    assert model.generate(ids, max_new_tokens=30)[0, len(PROMPT) :].tolist() == known


# -- C7: padding and holes ------------------------------------------------------------------------


@pytest.mark.fault("C7", "C8")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_padding_and_holes_equal_the_unpadded_row(kind: str) -> None:
    model = tiny_model(kind)
    decoder, holes = AdaptiveDecoder(model), [0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1]
    masks = torch.tensor([[1] * 12, [0] * 5 + [1] * 7, holes])
    ids = torch.tensor([PROMPT] * 3)
    got = decoder.generate(ids, attention_mask=masks, max_new_tokens=20)
    for row, mask in enumerate(masks):
        unpadded = [token for token, on in zip(PROMPT, mask.tolist(), strict=True) if on]
        assert got[row, 12:].tolist() == plain(model, unpadded, max_new_tokens=20)
    if kind != "gemma3":  # transformers counts its window over masked tokens too
        theirs = model.generate(ids, attention_mask=masks, max_new_tokens=20)
        assert torch.equal(got, theirs)
