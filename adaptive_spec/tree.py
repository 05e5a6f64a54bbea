"""Draft trees as flat arrays: check, survival, best-first order, selection, ancestors.

Legend: N nodes, K children considered per node. Parents always stand before their children.

The best N prefixes of a distribution over sequences are found by a heap that pops the best node
and pushes its next sibling and its first child (DDTree, arXiv 2604.12989). ``grow`` does that
where children are produced on demand; ``best_first`` needs no heap because the nodes are all
there: survival never rises along a path, so a stable sort by falling survival is the same order.
Both are nested: the first n nodes are the best n for every n at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from math import inf, log
from typing import TypeAlias, TypeVar

import numpy as np

from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.errors import TreeError
from adaptive_spec.types import ROOT, Bools, Floats, Ints

Handle = TypeVar("Handle")
Child: TypeAlias = tuple[int, float, Handle]
"""Token, log-probability given the parent, and whatever the expander needs to go on from it."""


def grow(
    root: Handle,
    expand: Callable[[Handle], Sequence[Child[Handle]]],
    nodes: int,
    depth: int,
    floor: float = 0.0,
) -> CandidateTree:
    """The best ``nodes`` prefixes of a distribution whose children are produced on demand.

    Args:
        root: handle of the root.
        expand: handle -> children by falling log-probability. Called once per grown node.
        nodes: most nodes to grow.
        depth: deepest node, counted from 1.
        floor: least survival of a node; what is less likely is not worth a row anywhere.

    Returns:
        Nodes in the order they were popped, so every prefix is itself the best tree of its size.
    """
    token: list[int] = []
    parent: list[int] = []
    logq: list[float] = []
    rank: list[int] = []
    tick = count()  # breaks ties in the order of discovery, so handles are never compared
    dearest = -log(floor) if floor > 0 else inf
    heap: list[tuple[float, int, int, int, int, Sequence[Child[Handle]]]] = []
    siblings = expand(root) if nodes > 0 and depth > 0 else ()
    if siblings:
        heappush(heap, (-siblings[0][1], next(tick), ROOT, 0, 1, siblings))
    while heap and len(token) < nodes:
        cost, _, above, place, level, siblings = heappop(heap)
        if cost > dearest:
            break
        here, log_here, handle = siblings[place]
        node = len(token)
        token.append(here)
        parent.append(above)
        logq.append(log_here)
        rank.append(place)
        if place + 1 < len(siblings):
            step = siblings[place + 1][1] - log_here
            heappush(heap, (cost - step, next(tick), above, place + 1, level, siblings))
        if level < depth:
            children = expand(handle)
            if children:
                heappush(heap, (cost - children[0][1], next(tick), node, 0, level + 1, children))
    return CandidateTree(
        token=np.array(token, dtype=np.int64),
        parent=np.array(parent, dtype=np.int64),
        logq=np.array(logq, dtype=np.float64),
        rank=np.array(rank, dtype=np.int64),
        drafter=np.zeros(len(token), dtype=np.int64),
    )


def check(tree: CandidateTree, vocab: int, nodes: int | None = None) -> None:
    """Raise TreeError unless the arrays form a tree that can be verified.

    Equal lengths, integer ids in the vocabulary, parents before children, no two siblings with
    the same token, finite non-positive log-probabilities, no more than ``nodes`` nodes.
    """
    size = len(tree.token)
    for name in ("token", "parent", "logq", "rank", "drafter"):
        array = getattr(tree, name)
        if not isinstance(array, np.ndarray) or array.shape != (size,):
            raise TreeError(f"{name} is not an array of shape ({size},)")
        if array.dtype.kind != ("f" if name == "logq" else "i"):
            raise TreeError(f"{name} has dtype {array.dtype}")
    for name, values in tree.features.items():
        if not isinstance(values, np.ndarray) or values.shape != (size,):
            raise TreeError(f"feature {name} is not an array of shape ({size},)")
    if size == 0:
        return
    if nodes is not None and size > nodes:
        raise TreeError(f"{size} nodes, at most {nodes} were asked for")
    if tree.token.min() < 0 or tree.token.max() >= vocab:
        raise TreeError(f"token ids must lie in [0, {vocab})")
    if (tree.parent < ROOT).any() or (tree.parent >= np.arange(size)).any():
        raise TreeError("a node stands before its parent")
    if not (np.isfinite(tree.logq).all() and (tree.logq <= 1e-9).all()):
        raise TreeError("log-probabilities must be finite and not above 0")
    edges = tree.parent * vocab + tree.token
    if len(set(edges.tolist())) != size:
        raise TreeError("two siblings carry the same token")


def depths(parent: Ints) -> Ints:
    """[N] depth of every node, children of the root have depth 1."""
    depth = [0]
    for above in parent.tolist():
        depth.append(depth[above + 1] + 1)
    return np.array(depth[1:], dtype=np.int64)


def survival(tree: CandidateTree, probability: Floats) -> Floats:
    """[N] probability that a node is reached and accepted.

    ``probability`` [N] is per edge; siblings whose sum exceeds 1 are scaled down to 1 (at most one
    of them can be the target's token). Survival is the product along the path.
    """
    edge = np.clip(probability, 0.0, 1.0)
    total = np.bincount(tree.parent + 1, weights=edge, minlength=len(tree) + 1)
    edge = edge / np.maximum(total, 1.0)[tree.parent + 1]
    alive = [1.0]
    for above, here in zip(tree.parent.tolist(), edge.tolist(), strict=True):
        alive.append(alive[above + 1] * here)
    return np.array(alive[1:])


def best_first(alive: Floats) -> Ints:
    """[N] node indices by falling survival; ties keep parents first (stable)."""
    return np.argsort(-alive, kind="stable")


def select(tree: CandidateTree, order: Ints) -> CandidateTree:
    """The subtree of the nodes in ``order``, renumbered in that order.

    ``order`` must be closed under parents with parents first, as prefixes of ``best_first`` are.
    """
    place = np.full(len(tree) + 1, ROOT, dtype=np.int64)
    place[order] = np.arange(len(order))
    return CandidateTree(
        token=tree.token[order],
        parent=place[tree.parent[order]],
        logq=tree.logq[order],
        rank=tree.rank[order],
        drafter=tree.drafter[order],
        features={name: values[order] for name, values in tree.features.items()},
    )


def ancestors(parent: Ints) -> Bools:
    """[1+N, 1+N] row i sees column j: j is i, or an ancestor of i. Row 0 is the root."""
    sets = [1]  # as bits: the root is bit 0
    for row, above in enumerate(parent.tolist(), start=1):
        sets.append(sets[above + 1] | 1 << row)
    width = len(sets) // 8 + 1
    packed = np.frombuffer(b"".join([s.to_bytes(width, "little") for s in sets]), dtype=np.uint8)
    bits = packed.reshape(len(sets), width)
    return np.unpackbits(bits, axis=1, count=len(sets), bitorder="little").view(np.bool_)


def child(tree: CandidateTree, node: int, token: int) -> int | None:
    """The child of ``node`` (ROOT for the root) that carries ``token``, if there is one."""
    hits = np.flatnonzero((tree.parent == node) & (tree.token == token))
    return int(hits[0]) if len(hits) else None
