"""The start-up self-check: does this model, on this attention backend, obey the tree mask?

A small branching tree on scattered slots, beside the slots of another request, is verified in one
packed forward and compared with plain causal forwards of each branch. A model or a backend that
ignores the mask, the positions or the slots is refused before it can change anybody's text. Then
the sizes that will be executed are run once (``warm_up``).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from adaptive_spec.cache import SlotCache, SlotPool
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.errors import UnsupportedError
from adaptive_spec.kernels.attach import TreeKernels
from adaptive_spec.packing import chain_part, pack, tree_part
from adaptive_spec.target import Target, is_out_of_memory
from adaptive_spec.types import ROOT, Ints

_PROMPT = 6
_PARENTS = np.array([ROOT, ROOT, 0, 0, 1, 2, 3, 4])
"""Two branches at the root, one of which splits again; all leaves at depth 3."""
_LEAVES = (5, 6, 7)
_LONG = 272
"""Tokens of a prompt that takes wide tiles and split contexts (``kernels.layout``)."""
_TOLERANCE = {"float32": 1e-4, "float64": 1e-6}
"""Of the largest logit. Half precision gets 0.05: a mask that is ignored misses by far more."""


def self_check(target: Target) -> float:
    """Largest deviation, relative to the largest logit, over all rows of the tree.

    If the target has kernels that fail, it goes on under masks, with a warning.

    Raises:
        UnsupportedError: the deviation exceeds rounding, or layers bypass the cache.
    """
    if target.kernels is not None:
        try:
            worst = _check(target)
            longest = target.architecture.context_limit - len(_PARENTS) - 1
            return max(worst, _check(target, min(_LONG, longest), _LEAVES[:1]))
        except Exception as error:  # whatever a compiler or a driver raises
            warnings.warn(
                f"attention goes on under masks, its kernel failed: {error}", stacklevel=2
            )
            target.drop_kernels()
    return _check(target)


@torch.no_grad()
def _check(target: Target, length: int = _PROMPT, leaves: Sequence[int] = _LEAVES) -> float:
    """Args: length: of the prompt. leaves: of the branches that are compared."""
    facts = target.architecture
    ids = (np.arange(length + len(_PARENTS)) * 7919 + 11) % facts.vocab
    prompt, tokens = ids[:length], ids[length:]
    none = np.zeros(len(tokens), dtype=np.int64)
    tree = CandidateTree(tokens, _PARENTS, np.zeros(len(tokens)), none, none)

    room = 64 + 4 * length
    cache = SlotCache(facts.layers, SlotPool(room, room))
    mine, other = cache.pool.join(), cache.pool.join()
    for owner, run in ((other, prompt[::-1][:3]), (mine, prompt[:-1])):
        part = chain_part(owner, run.tolist(), 0)
        slots = cache.pool.reserve(2 * len(run))[::2]
        target.run(target.prepare(cache, pack([part], slots)), last_only=True)
        cache.pool.commit(owner, slots, part.positions)
    if cache.updated != facts.layers:
        raise UnsupportedError(
            f"{facts.model_type}: {cache.updated} of {facts.layers} layers use the cache; "
            "state outside the cache cannot be addressed by slot"
        )
    parts = [
        tree_part(other, int(prompt[3]), 3, CandidateTree.empty()),
        tree_part(mine, int(prompt[-1]), length - 1, tree),
    ]
    batch = pack(parts, cache.pool.reserve(2 + len(tokens)), fill=2)
    logits = target.run(target.prepare(cache, batch)).logits
    if target.kernels is not None:
        _check_verdict(target.kernels, logits[:-2], tokens)
    got = logits[1:-2].float()

    branches = [_path(leaf) for leaf in leaves]
    inputs = np.stack([np.concatenate([prompt, tokens[branch]]) for branch in branches])
    want = target.model(torch.from_numpy(inputs).to(target.device), use_cache=False).logits.float()
    misses = []
    for row, branch in enumerate(branches):
        rows = [0, *(node + 1 for node in branch)]
        misses.append((got[rows] - want[row, length - 1 :]).abs().max())
    worst = float(torch.stack(misses).max())  # NaN if any is NaN
    scale = max(float(want.abs().max()), 1e-6)
    allowed = _TOLERANCE.get(facts.dtype, 0.05)
    if not worst / scale <= allowed:
        raise UnsupportedError(
            f"{facts.model_type}: logits of a branching tree deviate from plain decoding by "
            f"{worst / scale:.1e} of the largest logit (allowed {allowed:.0e}); the model or its "
            "attention backend does not obey the mask"
        )
    return worst / scale


def _check_verdict(kernels: TreeKernels, logits: torch.Tensor, tokens: Ints) -> None:
    """The kernels find the largest logits, and follow the tree: logits are bent to a branch of it.

    Args:
        logits: [2 + N, V] of the other request's root, of the root, and of the nodes.
        tokens: [N] of the nodes.
    """
    bent, path = logits.clone(), _path(_LEAVES[0])
    rows = [1, *(node + 2 for node in path)]
    for row, node in zip(rows, path, strict=False):
        bent[row, int(tokens[node])] = bent.abs().max() * 2 + 1
    order = np.zeros(len(bent))
    order[[0, *rows]] = [1, *range(1, len(rows) + 1)]
    peak, top, found = kernels.verdict(bent)
    highest = bent.amax(dim=-1)
    at_top = bent.gather(1, top.long()[:, None])[:, 0]
    if not torch.equal(peak.to(bent.dtype), highest) or not torch.equal(at_top, highest):
        raise UnsupportedError("the kernel that looks for the largest logits finds others")
    if not np.array_equal(found.cpu().numpy(), order):
        raise UnsupportedError("the kernel that follows the tree goes another way")


@torch.no_grad()
def warm_up(target: Target, sizes: Sequence[int]) -> None:
    """One forward of every size, so that what the matrix library makes for it once is made now.

    Otherwise the first requests pay: on a CPU in half precision a new size costs about half a
    forward more, and the memory of its kernels (``filling``).
    """
    cache = SlotCache(target.architecture.layers, SlotPool(8, 8))
    owner = cache.pool.join()
    for size in sizes:
        batch = pack([chain_part(owner, [0], 0)], cache.pool.reserve(1), fill=size)
        try:
            target.run(target.prepare(cache, batch))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break  # such sizes are given up when they are wanted (``verifying``)


def _path(leaf: int) -> list[int]:
    """Nodes from depth 1 down to ``leaf``."""
    path = [leaf]
    while (above := int(_PARENTS[path[0]])) != ROOT:
        path.insert(0, above)
    return path
