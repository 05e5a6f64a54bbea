"""Executable sizes: forwards are filled up with rows that belong to nobody.

In half precision on a CPU the matrix library makes a kernel for every number of rows that it meets,
and keeps it: half a forward's time once, and megabytes for ever. So few sizes are executed there.
A policy that scans the sizes sees the stairs in the predicted seconds and fills them with
candidates; what is missing up to the next stair is filled with rows that nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from adaptive_spec.types import Architecture, Ints, Work

CPU_HALF = (8, 16, 32, 64, 128, 256, 512, 1024)
USUAL = 64
"""Sizes above this are rarely executed."""


class Filling:
    """Rounds the draft nodes of a packed forward up to executable sizes.

    Args:
        sizes: numbers of draft nodes; 0 always is one, and so is everything above the largest.
    """

    def __init__(self, sizes: Iterable[int] = ()) -> None:
        self._sizes = np.unique([0, *sizes])
        self._most: int | None = None

    def up(self, nodes: Ints) -> Ints:
        """[n] the least executable sizes that hold ``nodes`` [n]."""
        if len(self._sizes) == 1:
            return nodes
        place = np.searchsorted(self._sizes, nodes)
        inside = self._sizes[np.minimum(place, len(self._sizes) - 1)]
        fits = place < len(self._sizes)
        if self._most is not None:
            fits &= inside < self._most
        return np.where(fits, inside, nodes)

    @property
    def usual(self) -> list[int]:
        """Executable sizes to prepare for, 0 included; none where all sizes are."""
        return self._sizes[self._sizes <= USUAL].tolist() if len(self._sizes) > 1 else []

    def refuse(self, nodes: int) -> None:
        """There was no memory for ``nodes``: trees are not filled up to that many any more."""
        self._most = nodes if self._most is None else min(self._most, nodes)

    def missing(self, nodes: int) -> int:
        """Rows to add to a forward of ``nodes`` draft nodes."""
        return int(self.up(np.array(nodes))) - nodes

    def executed(self, work: Work) -> Work:
        """What is executed for ``work``."""
        return replace(work, nodes=self.up(work.nodes))


def default_sizes(facts: Architecture) -> tuple[int, ...]:
    """Executable sizes by device: few on a CPU in half precision, all of them elsewhere."""
    half = facts.dtype in ("bfloat16", "float16")
    return CPU_HALF if half and facts.device == "cpu" else ()
