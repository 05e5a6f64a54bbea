"""Trees of several drafters as one: siblings that carry the same token become one node.

Edges are calibrated before they are merged, so that a probability means the same whoever proposed
the node. But every drafter is calibrated by itself, and siblings exclude each other: where one
drafter is sure of "a", "b" of another is worth less than on its own (``exclude``).

Legend: N nodes of the merged tree, D drafters.
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


LEAST = 0.02
"""A drafter is believed no more than this to have left nothing to the others."""

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
    size, above_N = len(origin), np.array(parent, dtype=np.int64)
    back = tuple(_inverse(source, size) for source in sources)
    values = tuple(
        np.where(into >= 0, np.append(value, np.nan)[into], np.nan)
        for into, value in zip(back, edges, strict=True)
    )
    return Merged(
        tree=_facts(given, back, values, above_N),
        sources=back,
        values=values,
        edges=exclude(combine(values), values, above_N) if size else np.empty(0),
    )


def exclude(edges: Floats, values: Sequence[Floats], parent: Ints) -> Floats:
    """[N] probability of edges, given that at most one of a node's children can be right.

    What several drafters propose keeps its value, scaled down where that is more than 1 in sum. The
    rest is shared by what only one proposes: with p each drafter's own probability given that
    none of the shared children is right, and 1 - sum(p) that it is none of its own either, a child
    weighs p times what all other drafters leave, as experts who err independently would have it.

    Args:
        edges: [N] combined probabilities, which count where several drafters propose a node.
        values: per drafter [N] calibrated probability, NaN where it did not propose the node.
        parent: [N].
    """
    group, groups = parent + 1, len(parent) + 1

    def among(weights: Floats) -> Floats:
        return np.asarray(np.bincount(group, weights, groups)[group], dtype=np.float64)

    several_DN = np.stack(values)
    proposed = np.isfinite(several_DN)
    known_DN = np.where(proposed, several_DN, 0.0)
    shared = proposed.sum(axis=0) > 1
    several = np.where(shared, edges, 0.0)
    taken = among(several)
    nobody, weight = np.ones(len(edges)), np.zeros(len(edges))
    proposing = np.zeros(len(edges))  # drafters with children here
    for known, here in zip(known_DN, proposed, strict=True):
        own = np.where(shared, 0.0, known)
        mine = among(own)
        room = np.maximum(np.maximum(1.0 - among(known - own), mine), LEAST)
        none = np.clip(1.0 - mine / room, LEAST, 1.0)
        proposing += among(here.astype(np.float64)) > 0.0
        nobody *= none
        weight += own / room / none  # times ``nobody``, once it is known
    weight *= nobody
    alone = np.clip(1.0 - taken, 0.0, 1.0) * weight / (among(weight) + nobody)
    if_alone = known_DN.sum(axis=0)  # a drafter's own children exclude each other already
    alone = np.where(proposing > 1, alone, if_alone)
    return np.where(shared, several / np.maximum(taken, 1.0), alone)


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
