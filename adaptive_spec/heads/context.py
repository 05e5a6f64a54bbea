"""What a head remembers of verified text: K and V of every layer, in slots.

The same bookkeeping as the target's cache (``cache.SlotPool``): a verified token is computed once
and gets a slot; slots of requests that are gone are free again; nothing is copied or recomputed.
The keys of a draft go behind the context, where the next draft overwrites them.

Legend: R requests, b slots of a block, T new tokens, S context slots up to the high-water mark, d
head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from adaptive_spec.cache import SlotPool
from adaptive_spec.heads.config import HeadConfig
from adaptive_spec.heads.layers import Extend
from adaptive_spec.types import Ints
from adaptive_spec.uploading import upload


class ContextSlots:
    """K and V of one head, [1, kv_heads, slots, d] per layer.

    Args:
        pool: who owns which slot.
    """

    def __init__(
        self, config: HeadConfig, pool: SlotPool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config, self.pool = config, pool
        shape = (1, config.kv_heads, 0, config.head_dim)
        self._keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self._values = [keys.clone() for keys in self._keys]

    def write(
        self,
        owner: int,
        states: Sequence[tuple[torch.Tensor, torch.Tensor]],
        positions: Ints,
    ) -> None:
        """Keep K and V [1, kv_heads, T, d] per layer of tokens at ``positions``, which continue.

        Raises:
            CacheError: the pool has no room, or positions do not continue the request.
        """
        slots = self.pool.reserve(len(positions))
        self._hold(int(slots.max(initial=-1)) + 1)
        index = upload(slots, self._keys[0].device)
        for layer, (keys, values) in enumerate(states):
            self._keys[layer].index_copy_(2, index, keys)
            self._values[layer].index_copy_(2, index, values)
        self.pool.commit(owner, slots, positions)

    def rewrite(self, owner: int, states: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Other K and V [1, kv_heads, T, d] per layer for all T slots of a request, in order."""
        index = torch.tensor(self.pool.slots(owner), device=self._keys[0].device)
        for layer, (keys, values) in enumerate(states):
            self._keys[layer].index_copy_(2, index, keys)
            self._values[layer].index_copy_(2, index, values)

    def extend(self, rows: int) -> list[Extend]:
        """Per layer: puts K and V of ``rows`` draft slots behind the context."""
        high = self.pool.high_water
        self._hold(high + rows)

        def behind(layer: int) -> Extend:
            def more(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                self._keys[layer][:, :, high : high + rows] = keys
                self._values[layer][:, :, high : high + rows] = values
                end = high + rows
                return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

            return more

        return [behind(layer) for layer in range(self.config.layers)]

    def mask(self, owners: Sequence[int]) -> torch.Tensor:
        """[1, 1, R * b, S + R * b]: own context, and earlier slots of the own block (or all)."""
        high, size = self.pool.high_water, self.config.block
        context = self.pool.owner[None, :high] == np.array(owners)[:, None]
        block = np.tri(size, dtype=np.bool_) if self.config.causal else np.ones((size, size), bool)
        draft = np.kron(np.eye(len(owners), dtype=np.bool_), block)
        whole = np.concatenate([context.repeat(size, axis=0), draft], axis=1)
        return upload(whole, self._keys[0].device)[None, None]

    def clear(self) -> None:
        """Zero all slots that nobody owns: a masked NaN would poison attention (0 x NaN)."""
        size = self._keys[0].shape[2]
        owner = np.full(size, -1)
        known = self.pool.owner[:size]
        owner[: len(known)] = known
        free = np.flatnonzero(owner < 0)
        for tensor in (*self._keys, *self._values):
            tensor[:, :, free] = 0

    def _hold(self, slots: int) -> None:
        """Grow by doubling to at least ``slots``, all layers or none; new slots are zero."""
        have = self._keys[0].shape[2]
        if slots <= have:
            return
        more = max(slots, 2 * have, 64) - have
        with torch.inference_mode(False), torch.no_grad():  # they are written to in any mode
            grown = [
                torch.nn.functional.pad(old, (0, 0, 0, more))
                for old in (*self._keys, *self._values)
            ]
        layers = len(self._keys)
        self._keys, self._values = grown[:layers], grown[layers:]
