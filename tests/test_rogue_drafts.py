"""Whatever a drafter returns or raises, the text stays that of transformers, and it is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracle import PROMPTS, Answers, by_transformers

from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.testing.drafters import RogueDrafter, flat_tree
from adaptive_spec.testing.tiny import VOCAB
from adaptive_spec.testing.yardsticks import check_state
from adaptive_spec.types import ROOT


@pytest.fixture(scope="module")
def truth(tiny: Any) -> Answers:
    return by_transformers(tiny("llama"), PROMPTS[6:8], 12)


BREAK: dict[str, Callable[[CandidateTree], Any]] = {
    "negative id": lambda t: replace(t, token=t.token - 100),
    "id of the vocabulary size": lambda t: replace(t, token=t.token * 0 + VOCAB),
    "huge id": lambda t: replace(t, token=t.token + 2**62),
    "fractional ids": lambda t: replace(t, token=t.token.astype(float)),
    "bool ids": lambda t: replace(t, token=t.token > 5),
    "list for an array": lambda t: replace(t, token=t.token.tolist()),
    "tensor for an array": lambda t: replace(t, token=torch.from_numpy(t.token)),
    "None for an array": lambda t: replace(t, parent=None),
    "short parents": lambda t: replace(t, parent=t.parent[:1]),
    "long ranks": lambda t: replace(t, rank=np.zeros(9, dtype=np.int64)),
    "two-dimensional": lambda t: replace(t, token=t.token[None]),
    "scalar": lambda t: replace(t, token=np.int64(5)),
    "NaN scores": lambda t: replace(t, logq=t.logq * np.nan),
    "infinite scores": lambda t: replace(t, logq=t.logq - np.inf),
    "positive scores": lambda t: replace(t, logq=np.abs(t.logq)),
    "whole scores": lambda t: replace(t, logq=t.rank),
    "twin siblings": lambda t: flat_tree([5, 5], [ROOT, ROOT]),
    "parent after child": lambda t: flat_tree([5, 6], [1, ROOT]),
    "own parent": lambda t: flat_tree([5], [0]),
    "parent below the root": lambda t: flat_tree([5], [-2]),
    "too many nodes": lambda t: flat_tree(list(range(9)), [ROOT] * 9),
    "too deep": lambda t: flat_tree(list(range(8)), list(range(-1, 7))),
    "ragged feature": lambda t: replace(t, features={"margin": np.zeros(7)}),
    "None": lambda t: None,
    "text": lambda t: "tree",
    "a list of ids": lambda t: [5, 6, 7],
    "raises": lambda t: 1 // 0,
}


class _Raises(RogueDrafter):
    """Raises in one call of the life cycle, from the ``after``-th call on."""

    def __init__(self, call: str, after: int = 0) -> None:
        super().__init__(lambda tree: tree)
        honest, self.calls = getattr(self, call), 0

        def dishonest(*args: Any) -> Any:
            self.calls += 1
            if self.calls > after:
                raise RuntimeError(f"{call} fails")
            return honest(*args)

        setattr(self, call, dishonest)


@pytest.mark.fault("L8", "N2")
@pytest.mark.parametrize("fault", BREAK)
def test_a_malformed_draft_is_no_draft(tiny: Any, make: Any, truth: Any, fault: str) -> None:
    prompt, policy = PROMPTS[6], "fixed:6" if fault != "too deep" else "fixed:9"
    rogue = RogueDrafter(BREAK[fault])
    decoder = make(tiny("llama"), policy, drafter=rogue, tree={"max_depth": 4})
    with decoder.start(prompt, max_new_tokens=12) as session:
        list(session)
        assert session.tokens == truth[tuple(prompt)][: len(prompt) + 12]
        assert session.stats.draft_faults >= 11, "each draft is counted"
        assert session.stats.num_draft_tokens == 0
        check_state(session)


@pytest.mark.fault("L8")
def test_the_rogue_without_a_fault_is_verified(tiny: Any, make: Any) -> None:
    """Negative control: the tree that is broken above is itself sound."""
    decoder = make(tiny("llama"), "fixed:6", drafter=RogueDrafter(lambda tree: tree))
    with decoder.start(PROMPTS[6], max_new_tokens=40) as session:
        for _ in range(5):
            session.step()
        assert session.stats.draft_faults == 0
        assert session.stats.num_draft_tokens == 15


@pytest.mark.fault("L8")
@pytest.mark.parametrize(
    ("call", "after"), [("start", 0), ("propose", 0), ("commit", 0), ("commit", 3), ("finish", 0)]
)
def test_a_drafter_that_raises(tiny: Any, make: Any, truth: Any, call: str, after: int) -> None:
    decoder = make(tiny("llama"), "fixed:6", drafter=_Raises(call, after))
    for prompt in PROMPTS[6:8]:
        with decoder.start(prompt, max_new_tokens=12) as session:
            list(session)
            assert session.tokens == truth[tuple(prompt)][: len(prompt) + 12]
            assert session.stats.draft_faults > 0 or call == "finish"
    decoder.check_integrity()
    assert decoder.requests.pool.free == decoder.requests.pool.limit


@pytest.mark.fault("L8")
@pytest.mark.parametrize("answers", [None, [], [CandidateTree.empty()] * 3, 7])
def test_a_wrong_number_of_trees(tiny: Any, make: Any, truth: Any, answers: Any) -> None:
    rogue = RogueDrafter(lambda tree: tree)
    rogue.propose = lambda requests, plans: answers  # type: ignore[method-assign]
    decoder = make(tiny("llama"), "fixed:6", drafter=rogue)
    with decoder.start(PROMPTS[6], max_new_tokens=12) as session:
        list(session)
        assert session.tokens == truth[tuple(PROMPTS[6])][: len(PROMPTS[6]) + 12]
        assert session.stats.draft_faults >= 11
