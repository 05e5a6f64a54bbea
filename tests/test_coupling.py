"""Ranking by the noise that the target draws with, and growth in rounds. Seeds are fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_spec import tree
from adaptive_spec.drafters.base import CandidateTree, DraftRequest
from adaptive_spec.drafters.coupling import SHARPNESS, Node, Sapling, couple, coupled_logq
from adaptive_spec.sampling import KeyedNoise
from adaptive_spec.types import Floats

V, C = 1000, 64


def log_softmax(scores: Floats) -> Floats:
    return scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True)


def pairs(n: int, error: float, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """[n, V] log p of several widths, log q of a drafter that errs by ``error`` nats, noise."""
    draw = np.random.default_rng(seed)
    width = draw.uniform(1.5, 6.0, size=(n, 1))
    logp = log_softmax(width * draw.normal(size=(n, V)))
    logq = log_softmax(logp + error * draw.normal(size=(n, V)))
    return logp, logq, draw.gumbel(size=(n, V))


def candidates(logq: Floats, noise: Floats) -> tuple[Any, Floats, Floats, Floats]:
    token = np.argsort(-logq, axis=1)[:, :C]
    top = np.take_along_axis(logq, token, 1)
    rest = np.clip(1.0 - np.exp(top).sum(axis=1), 0.0, 1.0)
    return token, top, np.take_along_axis(noise, token, 1), rest


scores = st.lists(st.floats(-30, 0), min_size=1, max_size=8)


@given(scores, st.floats(0, 1), st.floats(1, 20), st.integers(0, 99))
def test_chances_fall_in_the_order_of_the_scores(
    raw: list[float], rest: float, sharpness: float, seed: int
) -> None:
    logq = np.array(raw) - np.logaddexp.reduce(raw) + np.log1p(-min(rest, 0.99))
    gumbel = np.random.default_rng(seed).gumbel(size=len(raw))
    chance = coupled_logq(logq, gumbel, rest, sharpness)
    assert chance.shape == logq.shape
    assert np.isfinite(chance).all()
    total = np.exp(chance).sum()
    assert total < 1 + 1e-12
    assert rest > 0 or total == pytest.approx(1.0)
    order = np.argsort(-(logq + gumbel), kind="stable")
    assert (np.diff(chance[order]) <= 1e-9).all()


def test_the_unseen_compete_with_their_mass() -> None:
    """More of it, or less luck of the candidates, leaves them less."""
    logq, gumbel = np.log([0.5, 0.2]), np.array([1.0, 1.0])
    totals = [np.exp(coupled_logq(logq, gumbel, rest)).sum() for rest in (0.0, 0.01, 0.1, 0.3)]
    assert totals[0] == pytest.approx(1.0)
    assert (np.diff(totals) < 0).all()
    assert np.exp(coupled_logq(logq, gumbel - 3, 0.3)).sum() < totals[-1]


def test_a_token_that_cannot_be_has_no_chance() -> None:
    chance = coupled_logq(np.array([-0.1, -np.inf]), np.array([0.3, 9.0]), 0.0)
    assert np.exp(chance).tolist() == [1.0, 0.0]


def test_rows_are_independent() -> None:
    _, logq, noise = pairs(5, 1.0)
    _, top, gumbel, rest = candidates(logq, noise)
    together = coupled_logq(top, gumbel, rest)
    alone = [coupled_logq(top[i], gumbel[i], rest[i]) for i in range(5)]
    assert np.allclose(together, alone, rtol=1e-12)


# -- what it is good for --------------------------------------------------------------------------


def hits(logp: Floats, noise: Floats, token: Any, ranking: Floats, count: int) -> float:
    """How often the target's draw is among the ``count`` best candidates."""
    drawn = (logp + noise).argmax(axis=1)
    best = np.take_along_axis(token, np.argsort(-ranking, axis=1)[:, :count], 1)
    return float((best == drawn[:, None]).any(axis=1).mean())


@pytest.mark.parametrize("error", [0.0, 0.5, 1.0])
def test_the_noise_finds_the_draw(error: float) -> None:
    """Gains are many standard errors (0.011 at n = 2000): no false alarms to speak of."""
    logp, logq, noise = pairs(2000, error)
    token, top, gumbel, rest = candidates(logq, noise)
    chance = coupled_logq(top, gumbel, rest)
    for count in (1, 4):
        gain = hits(logp, noise, token, chance, count) - hits(logp, noise, token, top, count)
        assert gain > 0.1, (error, count, gain)


def test_an_exact_drafter_misses_what_it_did_not_look_at_and_nothing_else() -> None:
    """Misses are binomial with mean ``rest``: within 5 standard deviations (odds 6e-7)."""
    logp, _, noise = pairs(2000, 0.0)
    token, top, gumbel, rest = candidates(logp, noise)
    first = coupled_logq(top, gumbel, rest).argmax(axis=1)
    drawn = (logp + noise).argmax(axis=1)
    inside = (token == drawn[:, None]).any(axis=1)
    assert np.array_equal(np.take_along_axis(token, first[:, None], 1)[inside, 0], drawn[inside])
    spread = np.sqrt((rest * (1 - rest)).sum())
    assert abs((~inside).sum() - rest.sum()) < 5 * spread


@pytest.mark.parametrize(("error", "sharpness"), [(0.5, 2.5), (1.0, SHARPNESS)])
def test_chances_are_right_where_the_error_is_as_believed(error: float, sharpness: float) -> None:
    """Mean chance of the first candidate against how often it is the draw (s.e. 0.011)."""
    logp, logq, noise = pairs(2000, error)
    token, top, gumbel, rest = candidates(logq, noise)
    chance = coupled_logq(top, gumbel, rest, sharpness)
    believed = float(np.exp(chance.max(axis=1)).mean())
    assert abs(believed - hits(logp, noise, token, chance, 1)) < 0.08


def test_each_request_reads_its_own_noise_at_its_own_position() -> None:
    draw = np.random.default_rng(3)
    seeds = {"a": 1, "b": 2, "greedy": None}
    requests = {
        name: DraftRequest(name, [], 0, 0.0, None if seed is None else KeyedNoise(seed), 50)
        for name, seed in seeds.items()
    }
    asked = [("a", 7), ("b", 7), ("greedy", 7), ("a", 8), ("a", 7)]
    token = np.stack([draw.permutation(50)[:6] for _ in asked])
    logq = log_softmax(draw.normal(size=(len(asked), 6))) + np.log(0.9)
    got = couple([requests[name] for name, _ in asked], [p for _, p in asked], token, logq)
    for row, (name, position) in enumerate(asked):
        want = logq[row]
        if (seed := seeds[name]) is not None:
            gumbel = KeyedNoise(seed).gumbel(position, token[row])
            want = coupled_logq(logq[row], gumbel, 0.1)
        assert np.allclose(got[row], want)
    assert SHARPNESS >= 1


# -- growth ---------------------------------------------------------------------------------------


def path(node: Node) -> tuple[int, ...]:
    return () if node.above is None else (*path(node.above), node.token)


def children(above: tuple[int, ...], seed: int, kinds: int = 4) -> list[tuple[int, float]]:
    """A model of its own: the distribution after every path, likeliest token first."""
    draw = np.random.default_rng([seed, len(above), *above])
    logq = np.log(draw.dirichlet(np.full(kinds + 1, 0.5)))[:kinds]
    return [(int(token), float(logq[token])) for token in np.argsort(-logq)]


def ask(node: Node, seed: int) -> None:
    known = children(path(node), seed)
    node.children = [(token, logq, Node(token, node, node.depth + 1)) for token, logq in known]
    node.margin, node.entropy = known[0][1] - known[1][1], float(node.depth)


def grown(
    nodes: int, width: int, reach: int, seed: int, patience: int | None = None
) -> tuple[CandidateTree, int]:
    root = Node(9, None, 0)
    ask(root, seed)
    sapling, rounds = Sapling(root, nodes, reach, patience=patience), 0
    while sapling.sprout(width):
        assert len(sapling.sprouts) <= width
        for node in sapling.sprouts:
            ask(node, seed)
        rounds += 1
    return sapling.tree(), rounds


def as_lists(some: CandidateTree) -> list[list[float]]:
    arrays = (some.token, some.parent, some.logq, some.rank, *some.features.values())
    return [array.tolist() for array in arrays]


sizes = st.integers(1, 24)


@given(sizes, sizes, st.integers(1, 5), st.integers(1, 6), st.integers(0, 999))
def test_trees_are_nested(one: int, two: int, width: int, reach: int, seed: int) -> None:
    few, many = sorted((one, two))
    (small, less), (large, more) = (grown(n, width, reach, seed) for n in (few, many))
    tree.check(large, 50, many)
    assert tree.depths(large.parent).max() <= reach
    assert as_lists(small) == [values[: len(small)] for values in as_lists(large)]
    assert len(small) == min(few, len(large))
    assert less <= more < reach


@given(sizes, st.integers(1, 6), st.integers(0, 999))
def test_wide_rounds_find_what_a_heap_finds(nodes: int, reach: int, seed: int) -> None:
    """The heap asks one node at a time, and as many times as it likes."""

    def expand(above: tuple[int, ...]) -> Sequence[tuple[int, float, tuple[int, ...]]]:
        return [(token, logq, (*above, token)) for token, logq in children(above, seed)]

    want = tree.grow((), expand, nodes, reach)
    got, _ = grown(nodes, nodes, reach, seed)
    assert as_lists(want) == as_lists(got)[:4]


@given(sizes, st.integers(1, 5), st.integers(1, 6), st.integers(0, 999))
def test_so_do_narrow_ones_with_patience(nodes: int, width: int, reach: int, seed: int) -> None:
    want, _ = grown(nodes, nodes, reach, seed)
    assert as_lists(grown(nodes, width, reach, seed, patience=nodes)[0]) == as_lists(want)


def test_a_small_budget_asks_little() -> None:
    assert grown(1, 4, 8, seed=1)[1] == 0
    assert grown(2, 4, 8, seed=1)[1] <= 1
    assert grown(64, 4, 1, seed=1)[1] == 0


def test_features_are_those_of_the_parent() -> None:
    some, _ = grown(12, 4, 4, seed=2)
    depth = tree.depths(some.parent)
    assert some.features["entropy"].tolist() == (depth - 1).tolist()
    assert (some.features["margin"] >= 0).all()


@given(st.integers(1, 5), st.integers(0, 99))
def test_a_part_holds_the_sprouts_and_their_ancestors(width: int, seed: int) -> None:
    root = Node(9, None, 0)
    ask(root, seed)
    sapling = Sapling(root, 20, 6)
    while sapling.sprout(width):
        part = sapling.part(owner=3, position=40)
        assert part.owner == 3
        for node, row in zip(sapling.sprouts, sapling.rows, strict=True):
            seen = np.flatnonzero(part.sees[row])
            assert tuple(part.tokens[seen].tolist()) == path(node)
            assert part.positions[seen].tolist() == list(range(41, 41 + node.depth))
            assert seen[-1] == row
        assert (part.sees[sapling.rows].any(axis=0)).all(), "no row that no sprout needs"
        for node in sapling.sprouts:
            ask(node, seed)


def test_the_same_root_grows_again() -> None:
    root = Node(9, None, 0)
    ask(root, 5)
    trees = []
    for nodes in (12, 3, 12):
        sapling = Sapling(root, nodes, 4)
        while sapling.sprout(2):
            for node in sapling.sprouts:
                ask(node, 5)
        trees.append(as_lists(sapling.tree()))
    assert trees[0] == trees[2]
    assert trees[1] == [values[:3] for values in trees[0]]
