"""What a report says of a head's branches and trees, against calculations written here."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_heads import PROMPT, _along, _slots, tiny_head, written

from adaptive_spec.model_facts import decoder_layers
from adaptive_spec.testing.drafters import flat_tree
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import plain
from adaptive_spec.training.faithfulness import BRANCHES, DEPTH, Text, branch_facts, places
from adaptive_spec.training.witness import Witness
from adaptive_spec.types import ROOT


def test_places_are_spread_over_the_answer() -> None:
    assert places(5, 12, 3) == [4, 7, 10]
    assert places(5, 12, 100) == [4, 5, 6, 7, 8, 9, 10]
    assert places(1, 4, 9) == [1, 2]
    assert places(5, 6, 4) == [4]
    assert places(5, 12, 1) == [7]
    assert places(5, 5, 4) == []


@pytest.mark.parametrize("corrector", ["recurrent_bias", "gated", "none"])
@torch.no_grad()
def test_gap_and_hits_are_those_of_the_definition(corrector: str) -> None:
    """Every path of four tokens is looked at: a draft vocabulary of six."""
    model = tiny_model("llama")
    head = tiny_head(model, corrector=corrector, draft_vocab=6, block=5)
    assert head.draft_ids is not None
    known = head.draft_ids.tolist()
    answer = plain(model, PROMPT, max_new_tokens=9)
    text = Text([*PROMPT, *answer], places(len(PROMPT), len(PROMPT) + 9, 4))
    found = branch_facts(model, list(decoder_layers(model)), head, [text])
    assert found["places"] == len(text.places) == 4

    gaps: list[float] = []
    hits: dict[int, list[bool]] = {1: [], 2: [], 3: [], 4: []}
    for place in text.places:
        prefix = list(text.tokens[: place + 1])
        hidden = _slots(head, written(model, [*prefix, 1, 1], len(prefix), head.config.taps), place)

        def drafted(path: tuple[int, ...], hidden: Any = hidden, last: int = prefix[-1]) -> Any:
            return _along(head, hidden, [last, *path], 1.0)

        table: dict[tuple[int, ...], Any] = {}
        value: dict[tuple[int, ...], float] = {}
        for path in product(known, repeat=DEPTH):
            value[path] = 0.0
            for level in range(DEPTH):
                above = path[:level]
                if above not in table:
                    table[above] = drafted(above)
                value[path] += float(table[above][known.index(path[level])])
        best = sorted(value, key=lambda path: -value[path])[1:BRANCHES]
        noted = set()
        for path in best:
            truth = model(torch.tensor([[*prefix, *path]])).logits[0, -DEPTH - 1 :].log_softmax(-1)
            likely = sum(float(truth[level, token]) for level, token in enumerate(path))
            gaps.append(abs(value[path] - likely))
            for depth in range(1, DEPTH + 1):
                above = path[:depth]
                if above not in noted:
                    noted.add(above)
                    guess = known[int(drafted(above).argmax())]
                    hits[depth].append(guess == int(truth[depth].argmax()))
    assert found["gap"] == pytest.approx(float(np.mean(gaps)), rel=1e-4)
    for depth, right in hits.items():
        assert found["hits"][str(depth)] == pytest.approx(float(np.mean(right)))


def test_a_witness_counts_what_was_visited() -> None:
    """Root 7 with children 3, 4; 3 is taken, its children 5, 6; 6 is taken, it has none."""
    tree = flat_tree([3, 4, 5, 6], [ROOT, ROOT, 0, 0])
    one = SimpleNamespace(tree=tree, path=np.array([ROOT, 0, 3]), tokens=[3, 6, 9])
    other = SimpleNamespace(tree=tree, path=np.array([ROOT]), tokens=[9])
    empty = SimpleNamespace(tree=flat_tree([], []), path=np.array([ROOT]), tokens=[1])
    witness = Witness()
    witness.observe([one, other, empty])  # type: ignore[list-item]
    facts = witness.facts()
    assert facts["acceptance_by_depth"] == {"1": 1 / 2, "2": 1.0}
    assert facts["acceptance_by_rank"] == {"0": 1 / 3, "1": 1 / 3}


def test_a_childless_node_counts_as_visited() -> None:
    tree = flat_tree([3, 4, 5], [ROOT, ROOT, 0])
    below = SimpleNamespace(tree=tree, path=np.array([ROOT, 0, 2]), tokens=[3, 5, 9])
    bare = SimpleNamespace(tree=tree, path=np.array([ROOT, 1]), tokens=[4, 8])
    witness = Witness()
    witness.observe([below, bare])  # type: ignore[list-item]
    assert witness.facts()["acceptance_by_depth"] == {"1": 1.0, "2": 1 / 2}
