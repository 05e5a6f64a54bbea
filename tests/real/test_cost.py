"""What speculation costs on the real model where it brings nothing (row K7)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from adaptive_spec import AdaptiveDecoder, Session, models
from adaptive_spec.drafters.base import CandidateTree, DraftRequest
from adaptive_spec.testing.drafters import ScriptedDrafter
from adaptive_spec.types import Plan

pytestmark = pytest.mark.real

PROMPT = "Tell me a long story about a lighthouse keeper who finds a letter in a bottle."
STEPS, BLOCK, TRIES = 240, 4, 3


class Wrong(ScriptedDrafter):
    """Sure of a token that the target never chooses."""

    def __init__(self, token: int) -> None:
        super().__init__(lambda request: [])
        self._token = token

    def propose(
        self, requests: Sequence[DraftRequest], plans: Sequence[Plan]
    ) -> list[CandidateTree]:
        chains = [[self._token] * min(8, plan.nodes, plan.depth) for plan in plans]
        return [CandidateTree.chain(chain, np.full(len(chain), -0.1)) for chain in chains]


@pytest.mark.fault("K7")
def test_drafts_that_are_never_accepted_cost_next_to_nothing() -> None:
    """Blocks of steps take turns, and the middle of their ratios counts, so that noise hits both
    alike. On a shared machine the middle can be off by a sixth all the same, so it is measured up
    to three times. The bound leaves room for what is left; `docs/decisions.md` has a longer run
    against the row's own 1.02. In float32: where a processor has no bfloat16 instructions, rows of
    it cost so much more than one that finding out is no small matter."""
    model, tokenizer = models.load("smollm2-135m", "float32")
    ids = tokenizer(PROMPT)["input_ids"]
    unused = tokenizer.convert_tokens_to_ids("<reponame>")
    medians: list[float] = []
    while len(medians) < TRIES and not any(median < 1.05 for median in medians):
        ratios = _ratios(model, ids, unused)
        assert np.mean(ratios[:5]) < 2.0  # finding out
        medians.append(float(np.median(ratios)))
    assert min(medians) < 1.05


def _ratios(model: Any, ids: list[int], unused: int) -> list[float]:
    """Seconds of blocks with drafts over those of blocks without."""
    call = {"max_new_tokens": STEPS + 1, "do_sample": False, "eos_token_id": None}
    with (
        AdaptiveDecoder(model, {"policy": "plain"}, drafter=Wrong(unused)) as plain,
        AdaptiveDecoder(model, {"policy": "marginal"}, drafter=Wrong(unused)) as adaptive,
    ):
        sessions = [decoder.start(ids, **call) for decoder in (plain, adaptive)]
        ratios = []
        for turn in range(STEPS // BLOCK):
            spent = [0.0, 0.0]
            for which in (0, 1) if turn % 2 else (1, 0):
                spent[which] = _seconds(sessions[which])
            ratios.append(spent[1] / spent[0])
        tried = sessions[1].stats
        assert tried.num_accepted_draft_tokens == 0
        assert tried.num_draft_tokens >= 8  # it did try
    return ratios


def _seconds(session: Session) -> float:
    began = time.perf_counter()
    for _ in range(BLOCK):
        assert len(session.step()) == 1
    return time.perf_counter() - began
