"""FLOPs and bytes of one packed forward, and the seconds that a roofline makes of them.

Legend: R requests, N draft nodes, M = R + N rows of the forward, S pool slots that attention reads.
Sources: Williams et al. 2009 (the roofline); calibrated as max(a_m T_mem + b_m, a_c T_comp + b_c)
in BASTION (arXiv 2605.29727).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from adaptive_spec.profilers.hardware import Peaks
from adaptive_spec.types import Architecture, Floats, Ints

Rows = TypeVar("Rows", float, Floats)

_WIDTH = {"float64": 8, "float32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1}
"""Bytes per number; everything else is taken for a half-precision type of 2."""

ROW_SHARE = 1 / 512
"""What a further row costs at least before anything is measured, as a share of the plain forward.
Where memory bounds, a roofline is flat, and a multiplier of a flat slope could learn nothing; real
machines show about this much (22 ms at 32 nodes, 56 ms at 1024: BASTION, 8B on an A100)."""
LEAST_SHARE = 1 / 4096
"""What a further row costs at least, whatever was measured: too small is the worse error."""


@dataclass(frozen=True, slots=True)
class ForwardCost:
    """Per entry of the rows that were asked for."""

    flops: Floats
    bytes: Floats


@dataclass(frozen=True, slots=True)
class Coefficients:
    """A calibrated roofline: max(a_m * T_mem + b_m, a_c * T_comp + b_c); b in seconds."""

    a_m: float = 1.0
    b_m: float = 0.0
    a_c: float = 1.0
    b_c: float = 0.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Seconds of verification before live corrections: a base, and what nodes add to it."""

    base: float
    slope: Floats
    """[N] rising in N, 0 at no nodes."""
    least: Floats
    """[N] the least that the nodes may add, for a base of ``base``."""
    rows: Floats
    """[N] rows of the forward."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A shape at a single size."""

    base: float
    slope: float
    rows: float


def weights(facts: Architecture) -> tuple[float, float]:
    """Parameters that every forward reads, and parameters of the routed experts.

    Both follow from the model's parameter count, so that gated and plain layers, biases and expert
    sizes of their own need no facts. An untied embedding table is left out (a lookup reads a row of
    it); a tied one is read once, as the output layer.
    """
    table = facts.vocab * facts.hidden
    read = facts.parameters - (0 if facts.tied_embeddings else table)
    if not (facts.experts and facts.experts_per_token):
        return float(read), 0.0
    attention = 2 * facts.hidden * facts.head_dim * (facts.heads + facts.kv_heads)
    router = facts.hidden * facts.experts
    routed = max(read - table - facts.layers * (attention + router), 0)
    return float(read - routed), float(routed)


def forward_cost(facts: Architecture, rows: Ints | Floats, context: int) -> ForwardCost:
    """FLOPs and bytes of packed forwards.

    Weights are read once per forward. Of E experts, k per row, M rows touch E (1 - (1 - k/E)^M) in
    expectation. Attention runs over all ``context`` slots of the pool in every layer: a mask hides
    slots and a sliding window hides more of them, but neither saves reading them or multiplying by
    them. With more than one row under a mask, transformers copies the K/V of grouped-query models
    per query head, written once and read once more, unless ``attention`` spares it that.
    Activations and masks are left out.

    Args:
        rows: [n] rows of the forward, requests and nodes together, at least 1.
        context: pool slots that attention reads.
    """
    rows_n = np.asarray(rows, dtype=np.float64)
    flops, read = _cost(facts, rows_n, context)
    return ForwardCost(flops=flops, bytes=np.broadcast_to(read, rows_n.shape))


def _cost(facts: Architecture, rows: Rows, context: int) -> tuple[Rows, Rows]:
    """FLOPs and bytes, of one forward or of an array of them."""
    always, routed = weights(facts)
    touched = min(facts.experts_per_token / facts.experts, 1.0) if routed else 0.0
    numbers = context * facts.layers * facts.head_dim
    width = _WIDTH.get(facts.dtype, 2)
    copied = facts.heads != facts.kv_heads and not facts.grouped
    copies = 4.0 * numbers * facts.heads if copied else 0.0
    read = (always + 2.0 * numbers * facts.kv_heads) * width + (rows > 1) * (copies * width)
    if routed:
        read = read + (1.0 - (1.0 - touched) ** rows) * (routed * width)
    per_row = 2.0 * (always + touched * routed) + 4.0 * numbers * facts.heads
    return rows * per_row, read  # type: ignore[return-value]  # float arithmetic keeps the type


@dataclass(frozen=True, slots=True)
class Roofline:
    """Seconds of a forward on a device that reaches its peaks, or as a calibration found it."""

    facts: Architecture
    peaks: Peaks
    coefficients: Coefficients = Coefficients()

    def terms(self, rows: Rows, context: int) -> tuple[Rows, Rows]:
        """Seconds to move the bytes and seconds to do the FLOPs, uncalibrated."""
        flops, read = _cost(self.facts, rows, context)
        return read / self.peaks.bandwidth, flops / self.peaks.flops

    def seconds(self, rows: Ints | Floats, context: int) -> Floats:
        """[n] seconds of forwards of ``rows`` [n] rows: the slower of memory and arithmetic."""
        memory, compute = self.terms(np.asarray(rows, dtype=np.float64), context)
        return bound(self.coefficients, memory, compute)

    def shape(self, nodes: Ints, requests: int, context: int) -> Shape:
        """Base and slope of verifying ``nodes`` [n] draft nodes of ``requests`` requests."""
        nodes_n = nodes.astype(np.float64)
        rows = nodes_n + requests
        base = self._plain(requests, context)
        slope = bound(self.coefficients, *self.terms(rows, context)) - base
        slope += nodes_n * (base * ROW_SHARE)
        return Shape(base=base, slope=slope, least=nodes_n * (base * LEAST_SHARE), rows=rows)

    def spot(self, nodes: int, requests: int, context: int) -> Spot:
        """The same at a single size."""
        base, rows = self._plain(requests, context), float(nodes + requests)
        slope = bound_one(self.coefficients, *self.terms(rows, context)) - base
        return Spot(base=base, slope=slope + nodes * base * ROW_SHARE, rows=rows)

    def _plain(self, requests: int, context: int) -> float:
        """Seconds of a forward without draft nodes."""
        return bound_one(self.coefficients, *self.terms(float(requests), context))


def bound(by: Coefficients, memory: Floats, compute: Floats) -> Floats:
    """[n] calibrated seconds from seconds of memory and of arithmetic: the slower of the two."""
    slower: Floats = np.maximum(by.a_m * memory + by.b_m, by.a_c * compute + by.b_c)
    return slower


def bound_one(by: Coefficients, memory: float, compute: float) -> float:
    """The same of one forward."""
    return max(by.a_m * memory + by.b_m, by.a_c * compute + by.b_c)
