"""Trees of several drafters as one: siblings that carry the same token become one node.

Legend: N nodes of the merged tree, D drafters. Edges are calibrated before they are merged, so that
a probability means the same whoever proposed the node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.tree import select
from adaptive_spec.types import Floats, Ints


@dataclass(frozen=True, slots=True)
class Merged:
    """One tree made of several, and where each of its nodes came from."""

    tree: CandidateTree
    """Facts of a node (``logq``, ``rank``, ``drafter``) are those of its most confident drafter."""
    sources: tuple[Ints, ...]
    """Per given tree [N]: index of the node there, -1 where it did not propose it."""
    values: tuple[Floats, ...]
    """Per given tree [N]: calibrated probability of the edge, NaN where it did not propose it."""
    edges: Floats
    """[N] probability of the edge after all drafters had their say."""

    def reordered(self, order: Ints) -> Merged:
        """The nodes in ``order``, which must keep parents first (see ``tree.select``)."""
        return Merged(
            tree=select(self.tree, order),
            sources=tuple(source[order] for source in self.sources),
            values=tuple(value[order] for value in self.values),
            edges=self.edges[order],
        )


Combine = Callable[[Sequence[Floats]], Floats]


def merge(given: Sequence[CandidateTree], edges: Sequence[Floats], combine: Combine) -> Merged:
    """One tree of all nodes of ``given``.

    Args:
        given: trees of different drafters over the same root.
        edges: per tree, the calibrated probability of every edge.
        combine: per-drafter values [N] with NaN -> [N] probability of the merged edge.
    """
    if len(given) == 1:
        everything = np.arange(len(given[0]))
        return Merged(given[0], (everything,), (edges[0],), edges[0])
    place: dict[tuple[int, int], int] = {}
    origin: list[tuple[int, int]] = []
    parent: list[int] = []
    sources: list[Ints] = []
    for which, tree in enumerate(given):
        here: list[int] = []
        for node, (token, above) in enumerate(
            zip(tree.token.tolist(), tree.parent.tolist(), strict=True)
        ):
            key = (here[above] if above >= 0 else above, token)
            if key not in place:
                place[key] = len(origin)
                origin.append((which, node))
                parent.append(key[0])
            here.append(place[key])
        sources.append(np.array(here, dtype=np.int64))
    size = len(origin)
    back = tuple(_inverse(source, size) for source in sources)
    values = tuple(
        np.where(into >= 0, np.append(value, np.nan)[into], np.nan)
        for into, value in zip(back, edges, strict=True)
    )
    return Merged(
        tree=_facts(given, back, values, np.array(parent, dtype=np.int64)),
        sources=back,
        values=values,
        edges=combine(values) if size else np.empty(0),
    )


def _inverse(source: Ints, size: int) -> Ints:
    """[size] index into ``source`` per merged node, -1 where there is none."""
    back = np.full(size, -1, dtype=np.int64)
    back[source] = np.arange(len(source))
    return back


def _facts(
    given: Sequence[CandidateTree], back: Sequence[Ints], values: Sequence[Floats], parent: Ints
) -> CandidateTree:
    """Every node with the facts of the drafter that believes in it most."""
    size = len(parent)
    best = np.nan_to_num(np.stack(values), nan=-1.0).argmax(axis=0) if size else parent
    token, rank, drafter = (np.zeros(size, dtype=np.int64) for _ in range(3))
    logq = np.zeros(size)
    for which, (tree, into) in enumerate(zip(given, back, strict=True)):
        mine = best == which
        here = into[mine]
        token[mine], rank[mine] = tree.token[here], tree.rank[here]
        drafter[mine], logq[mine] = tree.drafter[here], tree.logq[here]
    return CandidateTree(token=token, parent=parent, logq=logq, rank=rank, drafter=drafter)
