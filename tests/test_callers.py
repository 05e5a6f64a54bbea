"""What callers bring along: their processors, criteria, modes and memory limits."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from transformers import (
    EosTokenCriteria,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
)

from adaptive_spec.errors import ArgumentError, DecodingError, SessionError, UnsupportedError
from adaptive_spec.selfcheck import self_check
from adaptive_spec.target import Target, Verified
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import check_state

PROMPTS = torch.tensor([[5, 6, 7, 5, 6, 7], [9, 8, 9, 8, 9, 8]])


class PerRow(LogitsProcessor):
    """Holds scores for a whole batch."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + torch.zeros(2, scores.shape[1])


class Third(LogitsProcessor):
    """Forces a token in its third call."""

    calls = 0

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 3:
            scores[:, 33] = 1e4
        return scores


class Infinite(LogitsProcessor):
    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, 33] = torch.inf
        return scores


def listed(processor: Any) -> LogitsProcessorList:
    return LogitsProcessorList([processor])


@pytest.mark.fault("P2")
def test_a_processor_for_a_whole_batch_is_refused(tiny: Any, make: Any) -> None:
    with pytest.raises(UnsupportedError, match="single nodes"):
        make(tiny("llama")).generate(
            PROMPTS, logits_processor=listed(PerRow()), max_new_tokens=4, do_sample=False
        )


@pytest.mark.fault("P2")
def test_a_stateful_processor_counts_per_row_as_in_transformers(tiny: Any, make: Any) -> None:
    model, call = tiny("llama"), {"max_new_tokens": 6, "do_sample": False}
    want = model.generate(PROMPTS, logits_processor=listed(Third()), **call)
    got = make(model, "fixed:8").generate(PROMPTS, logits_processor=listed(Third()), **call)
    assert got.tolist() == want.tolist()
    assert (got[:, 8] == 33).all()


@pytest.mark.fault("N3")
def test_infinite_scores(tiny: Any, make: Any) -> None:
    model, decoder = tiny("llama"), make(tiny("llama"), "fixed:8")
    call = {"max_new_tokens": 3, "logits_processor": listed(Infinite())}
    want = model.generate(PROMPTS[:1], do_sample=False, **call)
    assert decoder.generate(PROMPTS[:1], do_sample=False, **call).tolist() == want.tolist()
    with pytest.raises(DecodingError, match="score"):
        decoder.generate(PROMPTS[:1], do_sample=True, seed=1, **call)


class EndsLate(EosTokenCriteria):
    """An override must be called, not read."""

    def __call__(self, ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(ids),), ids.shape[1] >= 8)


@pytest.mark.parametrize(
    "criteria",
    [
        [MaxLengthCriteria(8), MaxLengthCriteria(20)],
        [EndsLate(3)],
        [MaxTimeCriteria(10, initial_timestamp=time.time() - 100)],
        [MaxTimeCriteria(1e-9), MaxTimeCriteria(200)],
    ],
    ids=["two lengths", "subclass", "deadline gone", "two times"],
)
def test_every_criterion_counts(tiny: Any, make: Any, criteria: list[Any]) -> None:
    model = tiny("llama")
    call = {"max_new_tokens": 12, "do_sample": False}
    listed = StoppingCriteriaList(criteria)
    want = model.generate(PROMPTS[:1], stopping_criteria=listed, **call)
    got = make(model, "fixed:8").generate(PROMPTS[:1], stopping_criteria=listed, **call)
    assert got.tolist() == want.tolist()
    assert got.shape[1] < 18


def test_inference_mode_leaves_the_decoder_usable(tiny: Any, make: Any) -> None:
    decoder = make(tiny("llama"), "fixed:8")
    with torch.inference_mode():
        first = decoder.generate(PROMPTS[:1], max_new_tokens=8, do_sample=False)
    again = decoder.generate(PROMPTS[:1], max_new_tokens=8, do_sample=False)
    assert first.tolist() == again.tolist()


@pytest.mark.fault("C3")
def test_the_self_check_refuses_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(tiny_model("llama"))
    run = target.run

    def sick(inputs: Any, *, last_only: bool = False) -> Verified:
        found = run(inputs, last_only=last_only)
        return found if last_only else Verified(found.logits * torch.nan, found.taps)

    monkeypatch.setattr(target, "run", sick)
    with pytest.raises(UnsupportedError, match="deviate"):
        self_check(target)


@pytest.mark.fault("C6")
def test_a_pool_too_small_loses_nothing_that_was_verified(tiny: Any, make: Any) -> None:
    decoder = make(tiny("llama"), "fixed:4", cache={"slots": 16, "max_slots": 24})
    with pytest.raises(DecodingError, match="too small") as caught:
        decoder.generate(PROMPTS, max_new_tokens=30, do_sample=False)
    assert all(len(tokens) > 3 for tokens in caught.value.sequences)
    decoder.check_integrity()


@pytest.mark.fault("R1")
def test_memory_that_runs_out_while_the_pool_grows(
    tiny: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")
    want = model.generate(PROMPTS[:1], max_new_tokens=10, do_sample=False)[0, 6:].tolist()
    decoder = make(model, "fixed:16", cache={"slots": 16})
    session = decoder.start(PROMPTS[0], max_new_tokens=10, do_sample=False)
    layer = type(decoder.cache.layers[0])
    blank = layer._blank

    def scarce(self: Any, like: torch.Tensor) -> torch.Tensor:
        if len(decoder.cache.pool) > 16:
            raise torch.OutOfMemoryError("injected")
        return blank(self, like)

    monkeypatch.setattr(layer, "_blank", scarce)
    while not session.finished:
        session.step()
        check_state(session)
    assert session.generated == want
    assert len(decoder.cache.pool) == 16


@pytest.mark.fault("S7")
def test_arguments_of_a_further_turn(tiny: Any, make: Any) -> None:
    decoder = make(tiny("llama"))
    with decoder.start(PROMPTS[0], max_new_tokens=2, do_sample=False) as session:
        for bad in (-1, 1.5, True):
            with pytest.raises(ArgumentError, match="max_new_tokens"):
                session.extend([5], bad)
        assert len([token for tokens in session for token in tokens]) == 2
        session.extend([5, 6], 3)
        assert len([token for tokens in session for token in tokens]) == 3
    with pytest.raises(SessionError):
        session.extend([5])
    anchored = decoder.start(PROMPTS[0], max_new_tokens=4, min_new_tokens=2, eos_token_id=1)
    with anchored as session, pytest.raises(UnsupportedError, match="counts from the first prompt"):
        session.extend([5])
