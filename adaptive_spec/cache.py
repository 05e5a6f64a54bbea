"""The cache: slots, not a tape. The only file that knows Hugging Face caches.

One pool of S slots per layer, K and V as [1, heads, S, head_dim]. A request owns a set of slots; a
forward writes its rows to free slots; afterwards the accepted rows' slots are given to the request
and the others are simply free again. Nothing is copied, cropped or compacted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from adaptive_spec.errors import CacheError
from adaptive_spec.types import Ints
from adaptive_spec.uploading import upload

FREE = -1


class SlotPool:
    """Who owns which slot. Host arrays only; the device tensors live in ``SlotCache``.

    Args:
        slots: slots to begin with.
        per_request: slots that every owner adds to the limit (its context limit).
        most: overall limit, whatever the number of owners; None for no other limit.
    """

    def __init__(self, slots: int, per_request: int, most: int | None = None) -> None:
        self._per_request, self._most = per_request, most
        first = min(slots, per_request, slots if most is None else most)
        self.owner = np.full(first, FREE, dtype=np.int64)
        self.position = np.zeros(len(self.owner), dtype=np.int64)
        self._owned: dict[int, list[int]] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def limit(self) -> int:
        """Most slots the pool may grow to for its present owners."""
        limit = max(len(self._owned), 1) * self._per_request
        return max(len(self.owner), limit if self._most is None else min(limit, self._most))

    @property
    def free(self) -> int:
        """Slots that could still be handed out, growth included."""
        return self.limit - sum(len(slots) for slots in list(self._owned.values()))

    @property
    def high_water(self) -> int:
        """One more than the highest committed slot."""
        owned = np.flatnonzero(self.owner != FREE)
        return int(owned[-1]) + 1 if len(owned) else 0

    def join(self) -> int:
        """A new owner with no slots."""
        self._next += 1
        self._owned[self._next] = []
        return self._next

    def leave(self, owner: int) -> list[int]:
        """Give all slots of ``owner`` back; harmless if it already left."""
        slots = self._owned.pop(owner, [])
        self.owner[slots] = FREE
        return slots

    def __contains__(self, owner: int) -> bool:
        return owner in self._owned

    def slots(self, owner: int) -> list[int]:
        """Committed slots of ``owner`` in order of position."""
        return self._owned[owner]

    def reserve(self, count: int) -> Ints:
        """The ``count`` lowest free slots, growing the pool by doubling. Nothing changes hands.

        Raises:
            CacheError: the pool's limit does not allow it.
        """
        if count > self.free:
            raise CacheError(f"{count} slots wanted, {self.free} of {self.limit} free")
        free = np.flatnonzero(self.owner == FREE)
        while len(free) < count:
            more = min(max(len(self.owner), count), self.limit - len(self.owner))
            self.owner = np.concatenate([self.owner, np.full(more, FREE, dtype=np.int64)])
            self.position = np.concatenate([self.position, np.zeros(more, dtype=np.int64)])
            free = np.flatnonzero(self.owner == FREE)
        return free[:count]

    def shrink(self, size: int) -> None:
        """Drop free slots from ``size`` on."""
        size = max(size, self.high_water)
        self.owner, self.position = self.owner[:size], self.position[:size]

    def commit(self, owner: int, slots: Ints, positions: Ints) -> None:
        """Hand free ``slots`` to ``owner``.

        Raises:
            CacheError: a slot is not free, or positions do not continue the request.
        """
        have = self._owned[owner]
        if (self.owner[slots] != FREE).any():
            raise CacheError(f"slots {slots.tolist()} are not all free")
        if not np.array_equal(positions, np.arange(len(have), len(have) + len(slots))):
            raise CacheError(f"positions {positions.tolist()} do not continue {len(have)} slots")
        self.owner[slots] = owner
        self.position[slots] = positions
        have.extend(slots.tolist())

    def check_integrity(self, expected: dict[int, int]) -> None:
        """Prove that every slot is owned once or free, and that owners hold what they should.

        Args:
            expected: committed tokens per owner.

        Raises:
            CacheError: naming the first count that is off.
        """
        if set(expected) != set(self._owned):
            raise CacheError(f"owners are {sorted(self._owned)}, expected {sorted(expected)}")
        for owner, slots in self._owned.items():
            if len(slots) != expected[owner]:
                raise CacheError(
                    f"owner {owner} has {len(slots)} slots, expected {expected[owner]}"
                )
            if len(set(slots)) != len(slots) or (self.owner[slots] != owner).any():
                raise CacheError(f"slots of owner {owner} are not its own")
            if not np.array_equal(self.position[slots], np.arange(len(slots))):
                raise CacheError(f"positions of owner {owner} are not 0..{len(slots) - 1}")
        owned = int((self.owner != FREE).sum())
        if owned != sum(expected.values()):
            raise CacheError(f"{owned} slots are owned, expected {sum(expected.values())}")


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """K and V of one layer, addressed by slot."""

    is_sliding = False
    is_croppable = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = self._blank(key_states), self._blank(value_states)
        self.is_initialized = True

    def _blank(self, like: torch.Tensor) -> torch.Tensor:
        """A zero-filled pool: slots never hold non-finite values (0 x NaN is NaN)."""
        with torch.inference_mode(False):  # the pool outlives a caller's inference mode
            return like.new_zeros(1, like.shape[1], len(self._cache.pool), like.shape[3])

    def _grown(self, old: torch.Tensor) -> torch.Tensor:
        new = self._blank(old)
        new[:, :, : old.shape[2]] = old
        return new

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the rows to the reserved slots; return all slots up to the high-water mark."""
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        if self.keys.shape[2] < len(self._cache.pool):
            self.keys, self.values = self._grown(self.keys), self._grown(self.values)
        slots, high = self._cache.write_slots, self._cache.read_slots
        self.keys.index_copy_(2, slots, key_states[:, :, : len(slots)])
        self.values.index_copy_(2, slots, value_states[:, :, : len(slots)])
        self._cache.updated += 1
        return self.keys[:, :, :high], self.values[:, :, :high]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.read_slots, 0

    def get_seq_length(self) -> int:
        return self._cache.pool.high_water

    def get_max_length(self) -> int:
        return self._cache.pool.limit


class SlotCache(Cache):  # type: ignore[misc]
    """A transformers ``Cache`` over one slot pool, so unmodified models run on it."""

    def __init__(self, layers: int, pool: SlotPool) -> None:
        self.pool = pool
        self.write_slots = torch.empty(0, dtype=torch.long)
        self.read_slots = 0
        self.updated = 0
        """Layer updates of the last forward: a model that skips layers cannot be served."""
        super().__init__(layers=[SlotLayer(self) for _ in range(layers)])

    def aim(self, slots: Ints, device: torch.device) -> int:
        """Point the next forward at ``slots``; returns how many slots it will read."""
        self.write_slots = upload(slots, device)
        self.read_slots = max(self.pool.high_water, int(slots.max()) + 1)
        self.updated = 0
        return self.read_slots

    def zero(self, slots: Iterable[int]) -> None:
        """Clear slots that may hold non-finite values before they are used again."""
        index = list(slots)
        for layer in self.layers:
            if index and layer.keys is not None:
                layer.keys[:, :, index] = 0
                layer.values[:, :, index] = 0

    def shrink(self) -> None:
        """Take back growth of the pool that some layer had no memory for."""
        sizes = [layer.keys.shape[2] for layer in self.layers if layer.keys is not None]
        self.pool.shrink(min(sizes, default=0))

    def purge(self) -> set[int]:
        """Clear every slot with a non-finite entry in any layer; the owners they belonged to."""
        bad = torch.zeros(len(self.pool), dtype=torch.bool, device="cpu")
        for layer in self.layers:
            for tensor in (layer.keys, layer.values):
                if tensor is not None:
                    sick = ~torch.isfinite(tensor).all(dim=3).all(dim=1)[0].cpu()
                    bad[: len(sick)] |= sick
        slots = bad.nonzero()[:, 0].tolist()
        self.zero(slots)
        return set(self.pool.owner[slots].tolist()) - {FREE}
