"""What candidates, children, peaks and the walk of a step cost, by kernel and by torch: on paper.

Counted in the code of both routes. Operations are those of the vector units, 32 bits each (a 64-bit
comparison is two); of torch's top-k a single pass is counted. Launches and the host's own work are
left out, which favours torch: it has more of both.

Legend: R requests, P = R * D places, V draft vocabulary, C candidates, r rank, K children of a
node, M = R (1 + N) rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from adaptive_spec.kernels.cost import WIDTH, Cost
from adaptive_spec.profilers.hardware import Peaks, published

PER_SCORE = {
    "copy in float32": WIDTH + 4, "largest": 4, "top-k": 4, "less the largest": 8, "copy": 8,
    "exp": 8, "sum": 4, "times its logarithm": 12, "its sum": 4,
}  # fmt: skip
"""Bytes that torch moves per score for candidates (``heads.branches``); a temperature other than 1
adds 8."""
SELECTING = 64 * 3
"""Operations per key: for every bit of a threshold, compare (64 bits) and count."""
KEYING = 12
"""Operations that make a key of a score."""
SOFTMAX = 7
INT32_SHARE = {"h100": 0.25, "a100": 0.5, "l4": 0.25}
"""Of a GPU's float32 FLOPs, its 32-bit integer operations per second: half as many lanes (on an
A100 as many), and no fused product and sum."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What is drafted and verified in a step, per request."""

    name: str
    draft_vocab: int
    vocab: int
    depths: int = 6
    rank: int = 160
    nodes: int = 16
    width: int = 8
    siblings: int = 8
    count: int = 64

    @property
    def expanded(self) -> int:
        """Nodes that get children."""
        return 1 + (self.depths - 1) * self.width


DRAFTS = (Draft("smollm2-135m", 16384, 49152), Draft("8B", 128256, 128256))
"""The shipped head and its target; the same head on the whole vocabulary of an 8B."""
Pair = tuple[Cost, Cost]


def vector(gpu: str) -> Peaks:
    """Bytes and 32-bit operations per second."""
    found = published(gpu, wide=True)
    return Peaks(found.bandwidth, found.flops * INT32_SHARE[gpu])


def candidates(draft: Draft, requests: int, chunk: int = 2048) -> Pair:
    """By kernel and by torch; ``chunk`` as in ``kernels.candidates``."""
    places, count = requests * draft.depths, draft.count
    scores, chunks = places * draft.draft_vocab, ceil(draft.draft_vocab / chunk)
    width, keys, merged = chunks * count, 0, 0
    moved = 8 * width  # written by the survey
    while width > count:
        left = ceil(width / chunk) * count
        keys, merged, width = keys + width, merged + left, left
    moved += 8 * (keys + merged + count) + 24 * chunks + 8 * count + 8
    kernel = Cost(
        flops=float(scores * (SOFTMAX + KEYING + SELECTING) + places * keys * SELECTING),
        bytes=float(WIDTH * scores + places * moved),
        carried=8.0 * places,
    )
    torch = Cost(
        flops=float(scores * len(PER_SCORE)),
        bytes=float(scores * sum(PER_SCORE.values())),
        carried=8.0 * places * (count + 5),
    )
    return kernel, torch


def children(draft: Draft, requests: int) -> Pair:
    """The same nodes by both. torch gathers the table's rows twice, per place and per node, and
    brings every score to the host."""
    nodes, places, count = requests * draft.expanded, requests * draft.depths, draft.count
    best, answers = draft.siblings, count * draft.rank
    product = 2.0 * answers
    kernel = Cost(
        flops=nodes * (product + count * (SOFTMAX + 5 + 4 * best)),
        bytes=nodes * (WIDTH * answers + 4.0 * draft.rank + 8 * count + 8 * best + 28),
        carried=8.0 * (nodes * (2 * best + 1) + places * draft.width),
    )
    torch = Cost(
        flops=nodes * (product + count),
        bytes=places * answers * (3.0 * WIDTH + 4) + nodes * (12.0 * answers + 28 * count),
        carried=8.0 * nodes * count,
    )
    return kernel, torch


def peaks(draft: Draft, requests: int, chunk: int = 4096) -> Pair:
    """Of all rows; ``chunk`` as in ``kernels.walk``."""
    rows = requests * (1 + draft.nodes)
    keys = ceil(draft.vocab / chunk)
    scores = float(rows * draft.vocab)
    kernel = Cost(scores * (KEYING + 2), WIDTH * scores + rows * (16 * keys + 8), 16.0 * rows)
    return kernel, Cost(scores, WIDTH * scores + rows * (2 * WIDTH + 24), 16.0 * rows)


def walk(draft: Draft, requests: int) -> Pair:
    """Down to the last depth. torch has none: the host walks with the tokens that it has."""
    rows = requests * (1 + draft.nodes)
    wide = 1 << draft.nodes.bit_length()
    steps = 1 + draft.depths
    kernel = Cost(
        flops=6.0 * requests * steps * wide,
        bytes=16.0 * rows + requests * (8 + 4 * steps),
        carried=8.0 * rows,
    )
    return kernel, Cost(0.0, 0.0, 0.0)
