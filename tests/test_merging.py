"""Several drafters, one tree: merging, values by drafter, labels by drafter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptive_spec import tree as trees
from adaptive_spec.drafters.base import CandidateTree, DraftRequest
from adaptive_spec.drafters.suffix import SuffixDrafter
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.log_reader import load_log
from adaptive_spec.merging import exclude, merge
from adaptive_spec.profilers.base import NullAcceptance
from adaptive_spec.testing.drafters import ScriptedDrafter, flat_tree
from adaptive_spec.testing.tiny import TableLM
from adaptive_spec.testing.yardsticks import plain, run
from adaptive_spec.types import ROOT, Floats, Labels

PROMPT = [5, 6, 7, 8, 5, 6]


def best(values: Sequence[Floats]) -> Floats:
    return NullAcceptance().combine(values, 0.0)


def paths(tree: CandidateTree) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token.tolist(), tree.parent.tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def marked(tree: CandidateTree, drafter: int) -> CandidateTree:
    return CandidateTree(tree.token, tree.parent, tree.logq, tree.rank, np.full(len(tree), drafter))


def test_siblings_with_the_same_token_become_one_node() -> None:
    first = marked(flat_tree([1, 2, 3], [ROOT, 0, 1]), 0)
    second = marked(flat_tree([9, 1, 2, 4], [ROOT, ROOT, 1, 1]), 1)
    edges = [np.array([0.9, 0.2, 0.5]), np.array([0.1, 0.3, 0.8, 0.6])]
    merged = merge([first, second], edges, best)
    assert paths(merged.tree) == [(1,), (1, 2), (1, 2, 3), (9,), (1, 4)]
    assert merged.edges[[0, 1, 2]].tolist() == [0.9, 0.8, 0.5], "shared, or nobody else is there"
    assert merged.edges[3] == pytest.approx(0.1 / 0.7 * (1 - 0.9)), "what the shared one leaves"
    assert merged.edges[4] == pytest.approx((1 - 0.8) / 1.02), "all that is left, nearly"
    assert merged.tree.drafter.tolist() == [0, 1, 0, 1, 1]
    assert [source.tolist() for source in merged.sources] == [[0, 1, 2, -1, -1], [1, 2, -1, 0, 3]]
    assert np.isnan(merged.values[0][3:]).all()
    assert merged.tree.logq[1] == second.logq[2], "the facts are those of whoever believes more"


def test_one_tree_stays_as_it_is() -> None:
    tree, edges = flat_tree([3, 4], [ROOT, ROOT]), np.array([0.4, 0.3])
    merged = merge([tree], [edges], best)
    assert merged.tree is tree
    assert merged.edges is edges


def test_siblings_of_different_drafters_exclude_each_other() -> None:
    nan, root = np.nan, np.full(2, ROOT)
    one, other = np.array([0.5, nan]), np.array([nan, 0.9])
    found = exclude(best([one, other]), [one, other], root)
    assert found == pytest.approx(np.array([0.5 * 0.1, 0.9 * 0.5]) / (0.05 + 0.45 + 0.05))
    apart = exclude(best([one, other]), [one, other], np.array([ROOT, 0]))
    assert apart == pytest.approx([0.5, 0.9]), "under different parents both stand"
    alone = exclude(np.array([0.995, 0.003]), [np.array([0.995, 0.003]), np.full(2, nan)], root)
    assert alone.tolist() == [0.995, 0.003], "a drafter's own children exclude each other already"
    both = [np.array([0.6, 0.2]), np.array([0.5, nan])]
    found = exclude(np.array([0.75, 0.2]), both, root)
    assert found == pytest.approx([0.75, 0.25 * 0.5]), "half of what is left, as without the other"


probability = st.one_of(st.floats(0.0, 1.0), st.just(np.nan))


@given(st.lists(st.tuples(probability, probability, st.floats(0, 1)), min_size=1, max_size=8))
def test_children_of_a_node_never_sum_to_more_than_one(rows: list[tuple[Any, ...]]) -> None:
    first, second, combined = (
        np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)
    )
    edges = np.where(np.isfinite(first) & np.isfinite(second), combined, 0.0)
    found = exclude(edges, [first, second], np.full(len(rows), ROOT))
    assert np.isfinite(found).all()
    assert (found >= 0.0).all()
    both = np.isfinite(first).any() and np.isfinite(second).any()
    assert not both or found.sum() <= 1.0 + 1e-9


@st.composite
def random_tree(draw: Callable[..., Any]) -> tuple[CandidateTree, Floats]:
    token: list[int] = []
    parent: list[int] = []
    for node in range(draw(st.integers(0, 12))):
        edge = draw(st.tuples(st.integers(-1, node - 1), st.integers(0, 4)))
        if edge not in zip(parent, token, strict=True):
            parent.append(min(edge[0], len(token) - 1))
            token.append(edge[1])
    seen: set[tuple[int, int]] = set()
    keep = [not ((p, t) in seen or seen.add((p, t))) for p, t in zip(parent, token, strict=True)]
    if not all(keep):
        token, parent = [], []
    edges = [draw(st.floats(0.0, 1.0)) for _ in token]
    return flat_tree(token, parent), np.array(edges)


@given(st.lists(random_tree(), min_size=1, max_size=3))
def test_merged_trees_are_valid_and_hold_every_path_once(
    given_trees: list[tuple[CandidateTree, Floats]],
) -> None:
    several = [marked(tree, i) for i, (tree, _) in enumerate(given_trees)]
    merged = merge(several, [edges for _, edges in given_trees], best)
    trees.check(merged.tree, vocab=5)
    found = paths(merged.tree)
    assert len(set(found)) == len(found)
    assert set(found) == {path for tree in several for path in paths(tree)}
    for tree, source, value, (_, edges) in zip(
        several, merged.sources, merged.values, given_trees, strict=True
    ):
        for node, there in enumerate(source.tolist()):
            assert (there < 0) == (found[node] not in paths(tree))
            if there >= 0:
                assert paths(tree)[there] == found[node]
                assert value[node] == edges[there]
    order = trees.best_first(trees.survival(merged.tree, merged.edges))
    trees.check(merged.reordered(order).tree, vocab=5)


# -- in the decoder --------------------------------------------------------------------------------


class Recorded(NullAcceptance):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[CandidateTree, Labels]] = []
        self.together = 0

    def observe(self, tree: CandidateTree, labels: Labels, temperature: float) -> None:
        trees.check(tree, 10**6)
        assert len(tree) == len(labels.chosen)
        self.told.append((tree, labels))

    def observe_combined(
        self, several: Sequence[Floats], labels: Labels, temperature: float
    ) -> None:
        self.together += int((np.isfinite(np.stack(several)).sum(axis=0) > 1).sum())


def oracle(text: Sequence[int], right: int) -> ScriptedDrafter:
    return ScriptedDrafter(lambda request: text, (right,), decoys=1)


@pytest.mark.fault("L9")
@pytest.mark.parametrize("call", [{}, {"do_sample": True, "temperature": 0.9, "seed": 3}], ids=str)
def test_two_drafters_draft_one_tree(llama: Any, call: dict[str, Any], tmp_path: Path) -> None:
    answer = plain(llama, PROMPT, max_new_tokens=40, **call)
    text, log = [*PROMPT, *answer], tmp_path / "log.jsonl"
    acceptance = Recorded()
    config = {"policy": "fixed:16", "log": {"path": str(log)}}
    both = [SuffixDrafter(), oracle(text, 3)]
    with AdaptiveDecoder(llama, config, drafter=both, acceptance=acceptance) as decoder:
        assert run(decoder, PROMPT, max_new_tokens=40, **call) == answer
    steps = load_log(log).steps
    assert {tuple(step["drafters"]) for step in steps} == {("suffix", "scripted")}
    assert {place for step in steps for place in step["drafter"]} == {0, 1}
    kinds = [set(tree.drafter.tolist()) for tree, _ in acceptance.told if len(tree)]
    assert all(len(kind) == 1 for kind in kinds), "a drafter is told of its own edges only"
    assert {place for kind in kinds for place in kind} == {0, 1}
    assert acceptance.together > 0 or call
    alone = AdaptiveDecoder(llama, {"policy": "fixed:16"}, drafter=oracle(text, 3))
    with alone.start(PROMPT, max_new_tokens=40, **call) as session:
        for _ in session:
            pass
        assert len(steps) <= session.stats.steps + 1  # the budget is shared now


@pytest.mark.parametrize("broken", ["calibrate", "combine", "observe", "observe_combined"])
def test_an_acceptance_model_that_raises_is_skipped(
    llama: Any, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*facts: Any) -> Any:
        raise RuntimeError("broken")

    answer = plain(llama, PROMPT, max_new_tokens=20)
    acceptance = NullAcceptance()
    monkeypatch.setattr(acceptance, broken, fail)
    drafters = [SuffixDrafter(), oracle([*PROMPT, *answer], 2)]
    decoder = AdaptiveDecoder(
        llama, {"policy": "fixed:16"}, drafter=drafters, acceptance=acceptance
    )
    with pytest.warns(RuntimeWarning, match="acceptance failed"):
        assert run(decoder, PROMPT, max_new_tokens=20) == answer
    assert set(decoder.faults.count) == {"acceptance"}


class Spread:
    """Proposes the same children of the root in every step, and does not read the noise."""

    name, taps, has_model = "spread", (), False

    def __init__(self, reads_noise: bool) -> None:
        self.reads_noise = reads_noise

    def start(self, request: DraftRequest) -> None: ...

    def propose(self, requests: Sequence[DraftRequest], plans: Any) -> list[CandidateTree]:
        return [flat_tree([0, 1, 2, 3], [ROOT, ROOT, ROOT, 0]) for _ in requests]

    def commit(self, requests: Any, news: Any) -> None: ...

    def finish(self, request: DraftRequest) -> None: ...


@pytest.mark.parametrize("coupled", [True, False])
def test_sampled_labels_are_draws_where_drafting_is_coupled_else_probabilities(
    coupled: bool,
) -> None:
    law = torch.tensor([0.4, 0.3, 0.2, 0.05, 0.03, 0.01, 0.006, 0.004])
    model = TableLM(law.log().expand(8, 8).clone())
    acceptance = Recorded()
    decoder = AdaptiveDecoder(
        model, {"policy": "fixed:8"}, drafter=Spread(coupled), acceptance=acceptance
    )
    call = {"do_sample": True, "temperature": 1.0, "top_k": 0, "seed": 1, "max_new_tokens": 30}
    run(decoder, [1, 2], **call)
    seen = np.stack([o.chosen[t.parent < 0] for t, o in acceptance.told if len(t) == 4])
    assert len(seen) > 10
    if coupled:
        assert set(np.unique(seen)) <= {0.0, 1.0}
        assert (seen.sum(axis=1) <= 1).all()
    else:
        assert seen == pytest.approx(np.tile(law[:3].numpy(), (len(seen), 1)), abs=1e-5)
