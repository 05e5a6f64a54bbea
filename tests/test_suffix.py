"""The suffix automaton against brute force, and the trees that the ``suffix`` drafter proposes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_spec import tree
from adaptive_spec.drafters.automaton import SuffixAutomaton
from adaptive_spec.drafters.base import CandidateTree, Committed, Drafter, DraftRequest
from adaptive_spec.drafters.suffix import History, SuffixDrafter
from adaptive_spec.errors import ArgumentError
from adaptive_spec.types import Plan

VOCAB = 50
texts = st.integers(1, 4).flatmap(lambda k: st.lists(st.integers(0, k), max_size=24))
long_texts = st.integers(1, 12).flatmap(lambda k: st.lists(st.integers(0, k), max_size=200))


def automaton_of(text: Sequence[int], walk: int = 10_000) -> SuffixAutomaton:
    automaton = SuffixAutomaton(walk)
    automaton.extend(text)
    return automaton


def state_of(automaton: SuffixAutomaton, word: Sequence[int]) -> int | None:
    state = 0
    for token in word:
        if token not in automaton.next[state]:
            return None
        state = automaton.next[state][token]
    return state


def occurrences(text: Sequence[int]) -> Counter[tuple[int, ...]]:
    size = len(text)
    return Counter(tuple(text[i:j]) for i in range(size) for j in range(i + 1, size + 1))


def request(name: str = "r") -> DraftRequest:
    return DraftRequest(name, [], 0, 0.0, None, VOCAB)


def committed(tokens: Sequence[int]) -> Committed:
    none = np.empty(0, dtype=np.int64)
    return Committed(tokens, none, none, none, {})


def drafter_of(*pieces: Sequence[int], **options: int) -> SuffixDrafter:
    drafter = SuffixDrafter(None, **options)
    drafter.start(request())
    for piece in pieces:
        drafter.commit([request()], [committed(piece)])
    return drafter


def propose(drafter: SuffixDrafter, nodes: int, depth: int = 32) -> CandidateTree:
    (grown,) = drafter.propose([request()], [Plan(nodes, depth)])
    return grown


def as_lists(grown: CandidateTree) -> list[list[float]]:
    arrays = (grown.token, grown.parent, grown.logq, grown.rank, *grown.features.values())
    return [array.tolist() for array in arrays]


@given(texts, st.lists(st.integers(0, 5), max_size=5))
def test_automaton_reads_exactly_the_substrings(text: list[int], word: list[int]) -> None:
    automaton = automaton_of(text)
    known = occurrences(text)
    for substring in known:
        assert state_of(automaton, substring) is not None
    assert (state_of(automaton, word) is not None) == (not word or tuple(word) in known)


@given(texts)
def test_link_of_the_last_state_is_the_longest_suffix_that_occurred_before(text: list[int]) -> None:
    automaton = SuffixAutomaton()
    for end, token in enumerate(text, 1):
        automaton.append(token)
        known = occurrences(text[:end])
        longest = next(
            n for n in range(end - 1, -1, -1) if not n or known[tuple(text[end - n : end])] > 1
        )
        assert automaton.length[automaton.link[automaton.last]] == longest
        assert not automaton.next[automaton.last]


@given(texts)
def test_counts_are_the_occurrences(text: list[int]) -> None:
    automaton = automaton_of(text)
    known = occurrences(text)
    for word, times in known.items():
        state = state_of(automaton, word)
        assert state is not None
        assert automaton.count[state] == times
        follow = {token: automaton.count[there] for token, there in automaton.next[state].items()}
        assert follow == {t: known[*word, t] for t in range(6) if known[*word, t]}


@given(long_texts, st.integers(1, 3))
def test_bounded_counts_never_exceed_the_truth(text: list[int], walk: int) -> None:
    exact, bounded = automaton_of(text), automaton_of(text, walk)
    assert exact.next == bounded.next
    assert exact.link == bounded.link
    assert all(1 <= b <= e for b, e in zip(bounded.count[1:], exact.count[1:], strict=True))


def fibonacci(size: int) -> list[int]:
    short, text = [0], [0, 1]
    while len(text) < size:
        short, text = text, text + short
    return text[:size]


@pytest.mark.parametrize(
    "make",
    [
        lambda size: [7] * size,
        fibonacci,
        lambda size: [1] * (size // 2) + [2] * (size // 2),
        lambda size: ([1] * 300 + [2]) * (size // 301),
        lambda size: np.random.default_rng(0).integers(0, 50_000, size).tolist(),
    ],
    ids=["one token", "fibonacci", "two runs", "blocks", "random"],
)
def test_cost_per_token_stays_flat(make: Callable[[int], list[int]]) -> None:
    def seconds(text: list[int]) -> float:
        start = time.perf_counter()
        history = History(16, 4, 32)
        history.extend(text)
        history.grow(Plan(16, 16))
        taken = time.perf_counter() - start
        automaton = history.automaton
        assert len(automaton.next) <= 2 * len(text)
        assert sum(map(len, automaton.next)) <= 3 * len(text)
        return taken / len(text)

    # A quadratic cost would show as a factor of 20; the rest is room for a busy machine.
    small = min(seconds(make(5_000)) for _ in range(3))
    assert seconds(make(100_000)) < 10 * small


@settings(deadline=None)
@given(long_texts, st.integers(0, 40), st.integers(0, 8))
def test_trees_are_valid(text: list[int], nodes: int, depth: int) -> None:
    grown = propose(drafter_of(text), nodes, depth)
    tree.check(grown, VOCAB, nodes)
    assert set(grown.features) == {"match_length", "count"}
    assert all(np.isfinite(values).all() for values in grown.features.values())
    assert (grown.features["count"] >= 1).all()
    if len(grown):
        assert tree.depths(grown.parent).max() <= depth
        sums = np.bincount(grown.parent + 1, weights=np.exp(grown.logq))
        assert sums.max() <= 1.0
        # What the drafter believes is a distribution: no sibling has to be scaled down for it.
        alive = tree.survival(grown, np.exp(grown.logq))
        assert (np.diff(alive) <= 1e-12).all()


@settings(deadline=None)
@given(long_texts, st.integers(0, 20), st.integers(0, 20))
def test_trees_are_nested(text: list[int], first: int, second: int) -> None:
    few, many = sorted((first, second))
    drafter = drafter_of(text)
    small, large = propose(drafter, few), propose(drafter, many)
    assert as_lists(small) == [values[: len(small)] for values in as_lists(large)]
    assert len(small) == min(few, len(large))


@settings(deadline=None)
@given(long_texts, st.integers(0, 200))
def test_pieces_do_not_matter(text: list[int], cut: int) -> None:
    whole, pieces = drafter_of(text), drafter_of(text[:cut], text[cut:])
    assert as_lists(propose(whole, 16)) == as_lists(propose(pieces, 16))


@given(long_texts, st.integers(1, 4))
def test_frequent_surprises_are_the_top_of_all(text: list[int], siblings: int) -> None:
    history = History(siblings, 4, 32)
    history.extend(text)
    times = [history.surprises[token] for token in history.frequent]
    assert (
        times == sorted((n for n in history.surprises.values() if n > 1), reverse=True)[:siblings]
    )
    assert len(set(history.frequent)) == len(history.frequent)
    assert sum(history.surprises.values()) == history.surprised


def test_nothing_is_proposed_where_nothing_repeats() -> None:
    assert len(propose(drafter_of([]), 16)) == 0
    assert len(propose(drafter_of([], [3]), 16)) == 0
    assert len(propose(drafter_of(list(range(40))), 16)) == 0


def test_a_long_unique_match_becomes_a_deep_sure_chain() -> None:
    source = list(range(45))
    grown = propose(drafter_of(source, [49, *source[:12]]), 16)
    assert grown.token.tolist() == source[12:28]
    assert grown.parent.tolist() == list(range(-1, 15))
    assert np.exp(grown.logq).min() > 0.9
    assert grown.features["match_length"].tolist() == list(range(12, 28))
    assert grown.features["count"].tolist() == [1.0] * 16


def test_a_short_match_becomes_several_unlikely_alternatives() -> None:
    grown = propose(drafter_of([1, 2, 9, 1, 3, 8, 1, 4, 7, 1, 2, 6, 1]), 16, depth=1)
    chance = dict(zip(grown.token.tolist(), np.exp(grown.logq).tolist(), strict=True))
    assert set(chance) >= {2, 3, 4}
    assert chance[2] > chance[3] == chance[4]
    assert chance[2] < 0.5


def test_shorter_contexts_add_to_longer_ones() -> None:
    # After (5, 1) only 2 was seen, after 1 alone also 3: both are offered, the longer match first.
    grown = propose(drafter_of([5, 1, 2, 6, 1, 3, 7, 1, 3, 8, 5, 1]), 16, depth=1)
    match = dict(zip(grown.token.tolist(), grown.features["match_length"].tolist(), strict=True))
    assert grown.token[:2].tolist() == [2, 3]
    assert (match[2], match[3]) == (2.0, 1.0)


def test_a_long_match_is_doubted_where_a_shorter_one_left_the_choice_open() -> None:
    def best(text: list[int]) -> float:
        return float(np.exp(propose(drafter_of(text), 1).logq[0]))

    run = list(range(10, 20))
    assert best([1, *run, 2, 3, 1, *run]) > 0.9
    assert best([1, *run, 2, 3, *run, 4, 5, 1, *run]) < 0.8


def test_requests_are_independent_and_forgotten() -> None:
    drafter: Drafter = SuffixDrafter()
    one, two = request("one"), request("two")
    for each in (one, two):
        drafter.start(each)
    drafter.commit([one, two], [committed([1, 2, 3, 1, 2]), committed([1, 2, 4, 5, 1, 2])])
    trees = drafter.propose([two, one], [Plan(1, 1), Plan(1, 1)])
    assert [grown.token.tolist() for grown in trees] == [[4], [3]]
    drafter.finish(one)
    drafter.commit([two], [committed([4])])
    (grown,) = drafter.propose([two], [Plan(1, 1)])
    assert grown.token.tolist() == [5]
    with pytest.raises(KeyError):
        drafter.propose([one], [Plan(1, 1)])
    drafter.finish(one)  # twice is harmless
    drafter.start(one)
    assert len(drafter.propose([one], [Plan(4, 4)])[0]) == 0


def test_arguments_are_checked() -> None:
    with pytest.raises(ArgumentError, match="takes none"):
        SuffixDrafter("model")
    for option in ("siblings", "contexts", "walk"):
        with pytest.raises(ArgumentError, match=option):
            SuffixDrafter(None, **{option: 0})


def test_a_tree_beats_its_best_chain_where_text_branches() -> None:
    """Lines that share a beginning: a chain follows one of them, a tree follows them all."""
    generator = np.random.default_rng(1)
    kinds, names = generator.integers(4, 7, 60).tolist(), generator.integers(30, 50, 60).tolist()
    pairs = zip(kinds, names, strict=True)
    text = [token for kind, name in pairs for token in (name, 1, 2, kind, kind + 10, kind + 20, 0)]

    def steps(**options: int) -> int:
        drafter, done, count = drafter_of(text[:70], **options), 70, 0
        while done < len(text):
            grown, node, start = propose(drafter, 16), -1, done
            while done < len(text) and (hit := tree.child(grown, node, text[done])) is not None:
                node, done = hit, done + 1
            done = min(done + 1, len(text))
            drafter.commit([request()], [committed(text[start:done])])
            count += 1
        return count

    assert 1.1 * steps(floor=0) < steps(floor=0, siblings=1)
