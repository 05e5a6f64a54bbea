"""A packed forward as a kernel reads it: per request a list of slots, per row an ancestor bit mask.

Nothing here grows with rows times slots. The slots that a request owns stay on the device from step
to step; a step uploads those that are new, its trees, and nothing else, in one piece.

Legend: P parts (one per request, and one of rows that belong to nobody), M rows, W words of 32
ancestor bits, T tiles: rows that one program works on, L lanes: rows of a tile times query heads
that share a key head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from adaptive_spec.cache import SlotPool
from adaptive_spec.packing import PackedBatch
from adaptive_spec.types import Bools, Ints
from adaptive_spec.uploading import upload

WORD = 32
ALIGNED = 4
"""int32 numbers in 16 bytes."""
NOBODY = -1
LEAST_LANES, MOST_LANES = 16, 64
"""A product of fewer lanes costs as much; of more, it leaves the registers."""
BLOCK = 64
"""Committed slots that a program looks at together."""
PROGRAMS = 264
"""Programs that long contexts are split for: two per multiprocessor of a large GPU."""
MOST_SPLITS = 32


@dataclass(frozen=True, slots=True)
class Layout:
    """Device tensors, all int32. Valid until the next layout of the same ``Layouts``."""

    context: torch.Tensor
    """[requests, capacity] slots by position: the key at position p of request r is
    ``context[r, p]``, so a window needs no table of positions."""
    parts: torch.Tensor
    """[P, 5] row of ``context``, committed length, first of ``tree``, rows that can be seen, end of
    its rows."""
    tree: torch.Tensor
    """[2, M + 1] slots of the rows, part by part, and their positions."""
    positions: torch.Tensor
    """[M] of the rows in their requests."""
    bits: torch.Tensor
    """[M, W] bit j % 32 of word j // 32: the row sees row j of its part."""
    tiles: torch.Tensor
    """[T, 2] part and first row of every tile."""
    rows: torch.Tensor
    """[2, requests' rows] what the rows carry, and the rows of their parents, -1 for roots."""
    starts: torch.Tensor
    """[requests + 1] first row of every request."""
    lanes: int
    """L, a power of two."""
    widest: int
    """Rows of the largest part."""
    longest: int
    """Committed tokens of the longest request."""
    group: int
    """Query heads per key head that tiles are cut for."""


class Layouts:
    """Lays out the forwards of one pool.

    Args:
        device: where the kernels run.
        group: query heads per key head.
    """

    def __init__(self, device: torch.device, group: int) -> None:
        self._device, self._group = device, group
        self._pool: SlotPool | None = None
        self._table = torch.zeros((0, 0), dtype=torch.int32, device=device)
        self._rows: dict[int, int] = {}
        self._known: dict[int, int] = {}

    def lay(self, pool: SlotPool, batch: PackedBatch) -> Layout:
        """The layout of ``batch``, whose slots are reserved in ``pool``."""
        if pool is not self._pool:
            self._pool, self._rows, self._known = pool, {}, {}
        owners = [part.owner for part in batch.parts]
        places, news, lengths = self._follow(pool, owners)
        rows, starts = len(batch.tokens), batch.starts.tolist()
        slots, positions = batch.slots.tolist(), batch.positions[: len(batch.slots)].tolist()
        parts = [
            [self._rows[owner], lengths[owner], start, end - start, end]
            for owner, (start, end) in zip(owners, pairwise(starts), strict=True)
        ]
        if rows > len(slots):  # rows of nobody see the first row's slot
            parts.append([0, 0, len(slots), 1, rows])
            starts = [*starts, rows]
        widest = int(np.diff(starts).max())
        lanes = lanes_of(widest, self._group)
        tiles = _tiles(starts, lanes // self._group)
        carried = [batch.tokens[: len(slots)], parents(batch)]
        tree = [slots + slots[:1], positions + positions[:1]]
        bits = _bits([part.sees for part in batch.parts], rows)
        pieces = [
            np.asarray(piece, dtype=np.int64).astype(np.int32)
            for piece in (places, news, parts, tree, batch.positions, tiles, carried, batch.starts)
        ]
        uploaded = self._upload([*pieces, bits])
        self._table.view(-1).index_copy_(0, uploaded[0].long(), uploaded[1])
        self._known.update(lengths)  # only now: an upload may fail, and the step is tried again
        return Layout(
            context=self._table,
            parts=uploaded[2],
            tree=uploaded[3],
            positions=uploaded[4],
            tiles=uploaded[5],
            rows=uploaded[6],
            starts=uploaded[7],
            bits=uploaded[8],
            lanes=lanes,
            widest=widest,
            longest=max(lengths.values()),
            group=self._group,
        )

    def _follow(
        self, pool: SlotPool, owners: Sequence[int]
    ) -> tuple[list[int], list[int], dict[int, int]]:
        """Where in the table new slots of ``owners`` go, the slots, and how many each then has."""
        for owner in [one for one in self._rows if one not in pool]:
            del self._rows[owner], self._known[owner]
        free = iter(sorted(set(range(len(self._rows) + len(owners))) - set(self._rows.values())))
        for owner in owners:
            if owner not in self._rows:
                self._rows[owner], self._known[owner] = next(free), 0
        longest = max(len(pool.slots(owner)) for owner in owners)
        self._hold(max(self._rows.values()) + 1, longest)
        width, places, news = self._table.shape[1], list[int](), list[int]()
        lengths: dict[int, int] = {}
        for owner in owners:
            slots, known = pool.slots(owner), self._known[owner]
            first = self._rows[owner] * width
            places.extend(range(first + known, first + len(slots)))
            news.extend(slots[known:])
            lengths[owner] = len(slots)
        return places, news, lengths

    def _hold(self, rows: int, width: int) -> None:
        """Grow the table by doubling."""
        have = self._table.shape
        if rows <= have[0] and width <= have[1]:
            return
        wanted = zip((rows, width), have, strict=True)
        size = [old if want <= old else max(want, 2 * old) for want, old in wanted]
        with torch.inference_mode(False):
            grown = self._table.new_zeros(size)
        grown[: have[0], : have[1]] = self._table
        self._table = grown

    def _upload(self, pieces: Sequence[np.ndarray[Any, Any]]) -> list[torch.Tensor]:
        """Arrays of int32 in one transfer, each at a multiple of ``ALIGNED`` numbers: a kernel is
        compiled anew for pointers that are not."""
        sizes = [piece.size + -piece.size % ALIGNED for piece in pieces]
        flat = np.zeros(sum(sizes), dtype=np.int32)
        first = np.cumsum([0, *sizes])
        for piece, at in zip(pieces, first.tolist(), strict=False):
            flat[at : at + piece.size] = piece.ravel()
        whole = upload(flat, self._device)
        return [
            whole[at : at + piece.size].view(piece.shape)
            for piece, at in zip(pieces, first.tolist(), strict=False)
        ]


def lanes_of(rows: int, group: int) -> int:
    """Lanes of a tile: as few as hold the largest part, within bounds."""
    wanted = max(min(rows * group, MOST_LANES), LEAST_LANES, group)
    return int(1 << (wanted - 1).bit_length())


def splits_of(programs: int, longest: int) -> int:
    """Splits that fill the GPU, but no more than there are blocks to split."""
    most = min(PROGRAMS // max(programs, 1), longest // (2 * BLOCK), MOST_SPLITS)
    return 1 << max(most.bit_length() - 1, 0)


def _tiles(starts: Sequence[int], size: int) -> list[tuple[int, int]]:
    """Part and first row of tiles of at most ``size`` rows."""
    return [
        (part, row)
        for part, (start, end) in enumerate(pairwise(starts))
        for row in range(start, end, size)
    ]


def _bits(sees: Sequence[Bools], rows: int) -> Ints:
    """[rows, W] words of what every row of every part sees; rows of nobody see their only key."""
    words = -(-max(len(part) for part in sees) // WORD)
    wide = np.zeros((rows, words * WORD), dtype=np.bool_)
    wide[sum(len(part) for part in sees) :, 0] = True
    first = 0
    for part in sees:
        wide[first : first + len(part), : len(part)] = part
        first += len(part)
    packed = np.packbits(wide, axis=1, bitorder="little")
    return packed.view("<u4").astype(np.uint32).view(np.int32)


def parents(batch: PackedBatch) -> Ints:
    """[M] row of every row's parent, -1 for roots: the last of the rows that it sees before its own
    (ancestors come in order of depth)."""
    found = np.full(len(batch.slots), NOBODY, dtype=np.int64)
    for part, start in zip(batch.parts, batch.starts.tolist(), strict=False):
        above = part.sees & ~np.eye(len(part.sees), dtype=np.bool_)
        last = above.shape[1] - 1 - above[:, ::-1].argmax(axis=1)
        found[start : start + len(above)] = np.where(above.any(axis=1), start + last, NOBODY)
    return found
