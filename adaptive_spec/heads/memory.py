"""What a head knows of every request: fused states of verified text, and taps that wait for it.

Taps of verified tokens wait until a draft is wanted, so plain steps cost nothing; then those of all
requests are fused into the head's own K and V in one go, once.

Legend: T tokens waiting, n taps, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from adaptive_spec.cache import SlotPool
from adaptive_spec.errors import HeadError
from adaptive_spec.heads.context import ContextSlots
from adaptive_spec.heads.head import Head
from adaptive_spec.types import Ints
from adaptive_spec.uploading import upload

SIZES = 8
"""Waiting tokens are fused in multiples of this many rows: few shapes (see ``filling``)."""


@dataclass(slots=True, eq=False)
class Known:
    """What is known of one request."""

    owner: int
    """In the pool of context slots."""
    before: torch.Tensor
    """[H] fused state at the newest verified position; zeros before the first."""
    waiting: list[tuple[torch.Tensor, Ints]] = field(default_factory=list)
    """[T, n * H] taps of verified tokens, and their positions, not fused yet."""


class HeadMemory:
    """Requests by name, and their context slots.

    Args:
        head: with the target's weights lent to it.
        context_limit: the target's.
        slots: context slots to begin with.
    """

    def __init__(self, head: Head, context_limit: int, slots: int) -> None:
        self._head = head
        self._dtype, self._device = head.output.dtype, head.output.device
        pool = SlotPool(slots, context_limit)
        self.context = ContextSlots(head.config, pool, self._dtype, self._device)
        self._known: dict[str, Known] = {}

    def __getitem__(self, request: str) -> Known:
        return self._known[request]

    def start(self, request: str) -> None:
        """An empty memory, whatever was there."""
        self.finish(request)
        nothing = torch.zeros(self._head.config.hidden, dtype=self._dtype, device=self._device)
        self._known[request] = Known(self.context.pool.join(), nothing)

    def finish(self, request: str) -> None:
        """Give the request's slots back; harmless if there are none."""
        if (known := self._known.pop(request, None)) is not None:
            self.context.pool.leave(known.owner)

    def keep(self, request: str, taps: torch.Tensor, positions: Ints) -> None:
        """Taps [T, n * H] of verified tokens, which wait."""
        self._known[request].waiting.append((taps, positions))

    def catch_up(self, requests: Sequence[str]) -> None:
        """Fuse what waits, of all requests in one go, and keep its K and V."""
        late = [known for name in requests if self._waits(known := self._known[name])]
        if not late:
            return
        taps = [taps for known in late for taps, _ in known.waiting]
        places = [np.concatenate([place for _, place in known.waiting]) for known in late]
        missing = -sum(len(place) for place in places) % SIZES
        filled = torch.cat([*taps, taps[0].new_zeros((missing, taps[0].shape[1]))])
        where = np.concatenate([*places, np.zeros(missing, dtype=np.int64)])
        positions = upload(where, self._device)[None]
        fused = self._fused(filled)
        states = self._head.context(fused, positions)
        first = 0
        for known, places_T in zip(late, places, strict=True):
            rows = slice(first, first + len(places_T))
            own = [(keys[:, :, rows], values[:, :, rows]) for keys, values in states]
            self.context.write(known.owner, own, places_T)
            known.before = fused[0, rows][-1]
            known.waiting.clear()
            first += len(places_T)

    def refresh(self, taps_of: Callable[[str], torch.Tensor | None]) -> None:
        """Compute keys and values of all requests anew: the head's weights are others now.

        Args:
            taps_of: taps [T, n * H] of a request's verified tokens, from the first on.
        """
        for name, known in self._known.items():
            have = len(self.context.pool.slots(known.owner))
            if not have:
                continue
            taps = taps_of(name)
            if taps is None or len(taps) < have:
                raise HeadError("context", name, "its taps are not known from the beginning")
            fused = self._fused(taps[:have].to(self._device, self._dtype))
            positions = torch.arange(have, device=self._device)[None]
            self.context.rewrite(known.owner, self._head.context(fused, positions))
            known.before = fused[0, -1]

    def _fused(self, taps: torch.Tensor) -> torch.Tensor:
        """[T, n * H] -> [1, T, H]."""
        fused = self._head.fuse([taps])[None]
        return torch.nan_to_num(fused, nan=0.0, posinf=0.0, neginf=0.0)  # or all drafts are lost

    def _waits(self, known: Known) -> bool:
        """Whether taps wait; those that an interrupted call had fused already are dropped."""
        have = len(self.context.pool.slots(known.owner))
        known.waiting = [(taps, place) for taps, place in known.waiting if place[-1] >= have]
        return len(known.waiting) > 0
