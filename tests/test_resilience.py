"""Non-finite logits and empty choices: rows N1 and N3 of the fault table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList

from adaptive_spec.errors import DecodingError, SamplingError
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.online.base import NoUpdate
from adaptive_spec.profilers.base import NullAcceptance
from adaptive_spec.testing.drafters import ScriptedDrafter, flat_tree
from adaptive_spec.testing.faults import NaNTarget
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import check_state, plain, run

PROMPT = [5, 6, 7, 8, 5, 6]
OTHER = [9, 10, 9, 11, 9, 10]
SAMPLE = {"do_sample": True, "temperature": 0.9, "top_k": 0, "seed": 3}
VALUES = [float("nan"), float("inf"), float("-inf")]


def scripted(model: Any, texts: Sequence[Sequence[int]], *pattern: int, **parts: Any) -> Any:
    """Drafts for each prompt the text that begins like it."""

    def answer(request: Any) -> Sequence[int]:
        head = list(request.tokens[: request.prompt_length])
        return next(text for text in texts if list(text[: len(head)]) == head)

    settings = parts.pop("settings", None)
    return AdaptiveDecoder(
        model, settings, drafter=ScriptedDrafter(answer, pattern, decoys=2), **parts
    )


class Spy(NullAcceptance, NoUpdate):
    """Acceptance model and learner that remember what they were fed."""

    def __init__(self) -> None:
        self.labelled: list[tuple[int, int]] = []
        self.fed: list[str] = []

    def observe(self, *facts: Any) -> None:
        if len(facts) == 3:
            tree, labels, _ = facts
            self.labelled.append((len(tree), int((labels.chosen == labels.chosen).sum())))
        else:
            self.fed.extend(feedback.request for feedback in facts[0])


# -- N1: non-finite logits ------------------------------------------------------------------------


@pytest.mark.fault("N1")
@pytest.mark.parametrize("how", [{}, SAMPLE], ids=["greedy", "sampled"])
@pytest.mark.parametrize("cache", [False, True], ids=["logits", "logits and cache"])
@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_visited_non_finite_node_ends_its_request_only(
    llama: Any, value: float, cache: bool, how: dict[str, Any]
) -> None:
    mine = plain(llama, PROMPT, max_new_tokens=40, **how)
    other = plain(llama, OTHER, max_new_tokens=80, **how)
    place = next(i for i in range(8, 39) if mine[i] not in [*mine[:i], *other, *PROMPT, *OTHER])
    spy = Spy()
    decoder = scripted(llama, [PROMPT + mine, OTHER + other], 4, acceptance=spy, learner=spy)
    sick = decoder.start(PROMPT, max_new_tokens=40, **how)
    well = decoder.start(OTHER, max_new_tokens=80, **how)
    with NaNTarget(llama, lambda ids: ids == mine[place], value=value, cache=cache):
        while not sick.finished:
            fed = len(spy.fed), len(spy.labelled)
            decoder.step([sick, well])
    assert sick.finish_reason == "error"
    assert "non-finite" in sick.finish.detail
    assert sick.generated == mine[: place + 1], "verified tokens are kept"
    assert set(spy.fed[fed[0] :]) <= {well.id}, "nothing is learned from the sick step"
    assert len(spy.labelled) - fed[1] <= 1
    check_state(well)
    have = len(well.generated)
    while not well.finished:
        well.step()
        check_state(well)
    assert well.generated == other
    assert len(other) - have >= 20
    sick.close()
    well.close()
    assert run(decoder, PROMPT, max_new_tokens=20, **how) == mine[:20]


@pytest.mark.fault("N1")
@pytest.mark.parametrize("cache", [False, True], ids=["logits", "logits and cache"])
@pytest.mark.parametrize("how", [{}, SAMPLE], ids=["greedy", "sampled"])
def test_unvisited_non_finite_nodes_do_not_matter(
    llama: Any, cache: bool, how: dict[str, Any]
) -> None:
    mine = plain(llama, PROMPT, max_new_tokens=30, **how)
    decoys = {(token + k) % 97 for token in mine for k in (1, 2)} - {*mine, *PROMPT}
    spy = Spy()
    decoder = scripted(llama, [PROMPT + mine], 2, 0, 3, acceptance=spy)
    fault = NaNTarget(llama, lambda ids: torch.isin(ids, torch.tensor(sorted(decoys))), cache=cache)
    with fault:
        assert run(decoder, PROMPT, check_state, max_new_tokens=30, **how) == mine
    assert fault.hurt > 5


@pytest.mark.fault("N1", "C10")
@pytest.mark.parametrize("how", [{}, SAMPLE], ids=["greedy", "sampled"])
def test_a_nan_inside_the_model_spoils_one_request_only(llama: Any, how: dict[str, Any]) -> None:
    """A NaN in K or V reaches all rows of its forward through the mask: 0 x NaN is NaN."""
    mine = plain(llama, PROMPT, max_new_tokens=40, **how)
    other = plain(llama, OTHER, max_new_tokens=80, **how)
    place = next(i for i in range(8, 39) if mine[i] not in [*mine[:i], *other, *PROMPT, *OTHER])
    model = tiny_model("llama")
    decoder = scripted(model, [PROMPT + mine, OTHER + other], 3, 0, 4)
    sick = decoder.start(PROMPT, max_new_tokens=40, **how)
    well = decoder.start(OTHER, max_new_tokens=80, **how)
    with torch.no_grad():
        model.get_input_embeddings().weight[mine[place]] = torch.nan
    while not sick.finished:
        decoder.step([sick, well])
    assert (sick.finish_reason, sick.generated) == ("error", mine[: place + 1])
    have = len(well.generated)
    while not well.finished:
        well.step()
        check_state(well)
    assert well.generated == other
    assert len(other) - have >= 20
    assert well.stats.nonfinite_retries > 0


@pytest.mark.fault("N1")
def test_labels_of_unvisited_non_finite_parents_are_unknown(llama: Any) -> None:
    """A row without finite logits has no argmax, so its children are not labelled."""
    mine = plain(llama, PROMPT, max_new_tokens=4)
    seen: list[Any] = []

    class Labelled(NullAcceptance):
        def observe(self, tree: Any, labels: Any, temperature: float) -> None:
            seen.append((tree, labels))

    class Branching(ScriptedDrafter):
        def _tree(self, request: Any, plan: Any) -> Any:
            return flat_tree([mine[0], 90, 91], [-1, -1, 1])

    drafter = Branching(lambda request: [])
    decoder = AdaptiveDecoder(llama, drafter=drafter, acceptance=Labelled())
    for hurt in (False, True):
        with NaNTarget(llama, lambda ids, hurt=hurt: (ids == 90) & hurt):
            decoder.start(PROMPT, max_new_tokens=8).step()
        tree, labels = seen[-1]
        below = tree.token.tolist().index(91)
        assert bool(labels.chosen[below] != labels.chosen[below]) == hurt


@pytest.mark.fault("N1")
def test_generate_raises_with_what_was_verified(llama: Any) -> None:
    mine, other = (plain(llama, p, max_new_tokens=30) for p in (PROMPT, OTHER))
    place = next(i for i in range(5, 29) if mine[i] not in [*mine[:i], *other, *PROMPT, *OTHER])
    decoder = AdaptiveDecoder(llama)
    ids = torch.tensor([PROMPT, OTHER])
    with (
        NaNTarget(llama, lambda ids: ids == mine[place]),
        pytest.raises(DecodingError, match="row 0 ended early: non-finite") as caught,
    ):
        decoder.generate(ids, max_new_tokens=30)
    assert caught.value.sequences == [mine[: place + 1], other]
    assert decoder.cache.pool.high_water == 0
    assert decoder.generate(ids, max_new_tokens=30)[:, 6:].tolist() == [mine, other]


@pytest.mark.fault("N1")
@pytest.mark.parametrize("cache", [False, True], ids=["logits", "logits and cache"])
def test_a_prompt_with_non_finite_logits(llama: Any, cache: bool) -> None:
    known = plain(llama, OTHER, max_new_tokens=24)
    decoder = AdaptiveDecoder(llama, {"cache": {"prefill_chunk": 2}})
    with decoder.start(OTHER, max_new_tokens=24) as well:
        well.step()
        with NaNTarget(llama, lambda ids: ids == 8, cache=cache):
            sick = decoder.start(PROMPT, max_new_tokens=4)
            list(sick)
        assert (sick.finish_reason, sick.generated) == ("error", [])
        list(well)
        assert well.generated == known


@pytest.mark.fault("N3")
@pytest.mark.parametrize("how", [{}, SAMPLE], ids=["greedy", "sampled"])
def test_all_tokens_masked_is_named(llama: Any, how: dict[str, Any]) -> None:
    known = plain(llama, PROMPT, max_new_tokens=12, **how)

    def nothing_left(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores if ids.shape[1] < len(PROMPT) + 5 else scores.fill_(-torch.inf)

    decoder = scripted(llama, [PROMPT + known], 3)
    call = {"max_new_tokens": 12, "logits_processor": LogitsProcessorList([nothing_left]), **how}
    with decoder.start(PROMPT, **call) as session:
        list(session)
        assert session.generated == known[:5]
        assert session.finish_reason == "error"
        assert "leave no token" in session.finish.detail
        check_state(session)
    with pytest.raises(DecodingError, match="leave no token") as caught:
        decoder.generate(torch.tensor([PROMPT]), **call)
    assert caught.value.sequences == [known[:5]]
    assert isinstance(caught.value.__cause__, SamplingError)
