"""What attention of a step costs, by kernel and by torch under masks: on paper.

Bytes that are moved and FLOPs, for the roofline of a GPU that reaches its published peaks
(``profilers.hardware``). Every tile, or block of rows, is taken to read its keys and values from
memory; caches make both routes cheaper. Launches and the host's own work are left out, which
favours the masks.

Legend: R requests, N draft nodes of each, M = R (1 + N) rows, C committed tokens of each, S slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from adaptive_spec.kernels.layout import MOST_LANES, WORD, lanes_of, splits_of
from adaptive_spec.profilers.hardware import Peaks
from adaptive_spec.types import Architecture

BUS = 25e9
"""Bytes per second from host to device (PCIe 4, sixteen lanes)."""
WIDTH = 2
"""Bytes per number: half precision."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one step."""

    flops: float
    bytes: float
    """Moved in the device's memory."""
    carried: float
    """Bytes between host and device."""
    held: float = 0.0
    """Bytes that have to be in memory at once for it; 0 where that is next to nothing."""

    def seconds(self, peaks: Peaks) -> float:
        """On a device that reaches its peaks."""
        return max(self.bytes / peaks.bandwidth, self.flops / peaks.flops) + self.carried / BUS


def by_kernel(facts: Architecture, requests: int, nodes: int, context: int) -> Cost:
    """Attention of all layers by ``kernels.tree_attention``."""
    group, part = facts.heads // facts.kv_heads, 1 + nodes
    rows, keys = requests * part, context + part
    lanes = lanes_of(part, group)
    tiles = requests * ceil(part / (lanes // group))
    words = ceil(part / WORD)
    read = tiles * keys * facts.kv_heads * (2 * facts.head_dim * WIDTH + 4)
    splits = splits_of(tiles * facts.kv_heads, context)  # each reads the queries
    own = rows * ((splits + 1) * facts.heads * facts.head_dim * WIDTH + 4 * words * facts.kv_heads)
    if splits > 1:  # float32 sums of every split are written and read
        own += 2 * 4 * splits * rows * facts.heads * (facts.head_dim + 2)
    flops = 4.0 * tiles * lanes * facts.kv_heads * keys * facts.head_dim
    return Cost(
        flops=facts.layers * flops,
        bytes=float(facts.layers * (read + own)),
        carried=4.0 * rows * (words + 6),
        held=_resident(facts, requests * keys) + 4.0 * requests * context,
    )


def by_masks(facts: Architecture, requests: int, nodes: int, context: int) -> Cost:
    """Attention of all layers by torch: K and V copied per query head, a mask [M, S] that becomes
    numbers to be added and is read by every head."""
    part = 1 + nodes
    rows, slots = requests * part, requests * (context + part)
    kept, wide = (
        2 * slots * heads * facts.head_dim * WIDTH for heads in (facts.kv_heads, facts.heads)
    )
    copies = kept + wide if facts.heads > facts.kv_heads else 0
    mask = rows * slots * (1 + WIDTH) + facts.heads * rows * slots * WIDTH
    own = 2 * rows * facts.heads * facts.head_dim * WIDTH
    read = wide * ceil(rows / MOST_LANES)
    return Cost(
        flops=4.0 * facts.layers * rows * facts.heads * slots * facts.head_dim,
        bytes=float(facts.layers * (copies + mask + read + own)),
        carried=float(rows * slots),
        held=_resident(facts, slots) + rows * slots * (1.0 + WIDTH) + (wide if copies else 0),
    )


def _resident(facts: Architecture, slots: int) -> float:
    """Bytes of weights, and of keys and values of all layers."""
    each = 2.0 * facts.layers * facts.kv_heads * facts.head_dim
    return WIDTH * (facts.parameters + slots * each)
