"""One packed forward: rows of several requests, and who sees whom.

Legend: R requests, n nodes of one request, M = sum of (1 + n) rows, F rows of nobody, S pool slots
up to the high-water mark. Masks and kernels derive from these facts; nothing else is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.tree import ancestors, depths
from adaptive_spec.types import Bools, Ints


@dataclass(frozen=True, slots=True)
class Part:
    """One request's share of a packed forward."""

    owner: int
    """Owner id in the slot pool."""
    tokens: Ints
    """[m] token ids, root first."""
    positions: Ints
    """[m] positions in the request."""
    sees: Bools
    """[m, m] row i sees row j of the same part."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows of several requests side by side. Part r has rows ``starts[r]:starts[r + 1]``."""

    parts: tuple[Part, ...]
    starts: Ints
    tokens: Ints
    """[M + F] token ids; the last F rows belong to nobody."""
    positions: Ints
    """[M + F] positions in their requests."""
    slots: Ints
    """[M] free slots that the rows are written to; those of nobody are not written."""


def tree_part(owner: int, root: int, position: int, tree: CandidateTree) -> Part:
    """A tree to verify: its root is the newest token, at ``position``."""
    return Part(
        owner=owner,
        tokens=np.concatenate(([root], tree.token)),
        positions=position + np.concatenate(([0], depths(tree.parent))),
        sees=ancestors(tree.parent),
    )


def chain_part(owner: int, tokens: Sequence[int], position: int) -> Part:
    """A run of known tokens (prefill): every row sees the rows before it."""
    size = len(tokens)
    return Part(
        owner=owner,
        tokens=np.asarray(tokens, dtype=np.int64),
        positions=np.arange(position, position + size, dtype=np.int64),
        sees=np.tri(size, dtype=np.bool_),
    )


def pack(parts: Sequence[Part], slots: Ints, fill: int = 0) -> PackedBatch:
    """Lay the parts side by side on ``slots``.

    Args:
        fill: rows of nobody to add, copies of the first row.
    """
    starts = np.cumsum([0, *(len(part.tokens) for part in parts)])
    first = parts[0]
    return PackedBatch(
        parts=tuple(parts),
        starts=starts,
        tokens=np.concatenate([*(part.tokens for part in parts), first.tokens[:1].repeat(fill)]),
        positions=np.concatenate(
            [*(part.positions for part in parts), first.positions[:1].repeat(fill)]
        ),
        slots=slots,
    )


def visible(
    batch: PackedBatch, owner_S: Ints, position_S: Ints, window: int | None = None
) -> Bools:
    """[M + F, S] mask: a row sees its request's committed slots, and itself and its ancestors.

    A row of nobody sees the first row's slot, because a row that sees nothing has no logits.

    Args:
        owner_S: owner id per slot, committed slots only.
        position_S: position per slot; the batch's own slots included.
        window: if given, a row sees positions less than ``window`` before its own. Counted along
            the path, so slots scattered over the pool do not matter.
    """
    mask = np.zeros((len(batch.tokens), len(owner_S)), dtype=np.bool_)
    mask[len(batch.slots) :, batch.slots[:1]] = True
    for part, start in zip(batch.parts, batch.starts, strict=False):
        rows = slice(start, start + len(part.tokens))
        mask[rows] = owner_S == part.owner
        mask[rows, batch.slots[rows]] = part.sees
    if window is not None:
        mask &= batch.positions[:, None] - position_S[None, :] < window
    return mask
