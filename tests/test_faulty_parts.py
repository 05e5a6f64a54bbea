"""Policies that lie, memory that runs out, receivers that raise: rows K8 and R1."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_spec.controllers.base import Controller
from adaptive_spec.controllers.fixed import FixedBudget
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.log_reader import load_log
from adaptive_spec.online.base import NoUpdate
from adaptive_spec.profilers.base import Latency, NullAcceptance, NullLatency
from adaptive_spec.testing.controllers import LIES, LyingController
from adaptive_spec.testing.drafters import ScriptedDrafter
from adaptive_spec.testing.faults import OOMTarget
from adaptive_spec.testing.yardsticks import check_state, plain, run
from adaptive_spec.types import Decision, Offer, Outcome

PROMPT = [5, 6, 7, 8, 5, 6]
OTHER = [9, 10, 9, 11, 9, 10]
SAMPLE = {"do_sample": True, "temperature": 0.9, "top_k": 0, "seed": 3}


def scripted(model: Any, texts: Sequence[Sequence[int]], *pattern: int, **parts: Any) -> Any:
    """Drafts for each prompt the text that begins like it."""

    def answer(request: Any) -> Sequence[int]:
        head = list(request.tokens[: request.prompt_length])
        return next(text for text in texts if list(text[: len(head)]) == head)

    settings = parts.pop("settings", None)
    return AdaptiveDecoder(
        model, settings, drafter=ScriptedDrafter(answer, pattern, decoys=2), **parts
    )


# -- K8: policies that lie ------------------------------------------------------------------------

CLAMPED = {
    "negative plan",
    "endless plan",
    "endless calls",
    "negative size",
    "size beyond the offer",
}


@pytest.mark.fault("K8")
@pytest.mark.parametrize("lie", LIES)
def test_a_lying_policy_changes_nothing(lie: str, llama: Any, tmp_path: Path) -> None:
    known = plain(llama, PROMPT, max_new_tokens=16)
    path = tmp_path / "budget.jsonl"
    decoder = scripted(
        llama,
        [PROMPT + known],
        3,
        1,
        settings={"log": {"path": str(path)}, "policy": "liar"},
        controllers={"liar": LyingController(**LIES[lie])},
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run(decoder, PROMPT, check_state, max_new_tokens=16) == known
        session = decoder.start(PROMPT, max_new_tokens=16)
        list(session)
    assert session.generated == known
    words = [str(w.message) for w in caught]
    log = load_log(path)
    assert all(0 <= step["size"] <= step["offered"] for step in log.steps)
    if lie in CLAMPED:
        assert words == []
        assert lie != "size beyond the offer" or "clamped" in log.steps[0]["reason"]
        assert session.stats.controller_faults == 0
    else:
        assert len(words) == 1
        assert "policy liar failed" in words[0]
        faults = [fault for step in log.steps for fault in step["faults"]]
        assert faults == [words[0].removesuffix("; decoding plainly from now on")], "logged once"
        assert sum(request["controller_faults"] for request in log.requests) == 1
        assert "plain decoding: policy liar failed" in log.steps[-1]["reason"]
        assert all(step["size"] == 0 for step in log.steps if step["request"] == session.id)


@pytest.mark.fault("K8")
def test_one_lying_policy_does_not_disturb_another(llama: Any) -> None:
    known = [plain(llama, p, max_new_tokens=16) for p in (PROMPT, OTHER)]
    texts = [PROMPT + known[0], OTHER + known[1]]
    decoder = scripted(llama, texts, 3, controllers={"liar": LyingController(**LIES["cut raises"])})
    honest = decoder.start(PROMPT, max_new_tokens=16)
    lied = decoder.start(OTHER, max_new_tokens=16, policy="liar")
    with pytest.warns(RuntimeWarning, match="policy liar failed"):
        decoder.step([honest, lied])
    while live := [session for session in (honest, lied) if not session.finished]:
        decoder.step(live)
    assert [honest.generated, lied.generated] == known
    assert honest.stats.num_draft_tokens > 0
    assert honest.stats.controller_faults == lied.stats.num_draft_tokens == 0
    assert lied.stats.controller_faults == 1


def _in_a_tight_pool(llama: Any, path: Path, policy: Controller) -> list[dict[str, Any]]:
    """Logged steps of two packed requests whose drafts do not fit together."""
    known = [plain(llama, p, max_new_tokens=16) for p in (PROMPT, OTHER)]
    decoder = scripted(
        llama,
        [PROMPT + known[0], OTHER + known[1]],
        3,
        settings={"policy": "liar", "log": {"path": str(path)}, "cache": {"max_slots": 46}},
        controllers={"liar": policy},
    )
    sessions = [decoder.start(p, max_new_tokens=16) for p in (PROMPT, OTHER)]
    while live := [session for session in sessions if not session.finished]:
        decoder.step(live)
        check_state(live[0])
    assert [session.generated for session in sessions] == known
    return load_log(path).steps


@pytest.mark.fault("K8")
@pytest.mark.filterwarnings("ignore:policy liar failed:RuntimeWarning")
@pytest.mark.parametrize("lie", [None, *(lie for lie in LIES if "cut" in LIES[lie])])
def test_lies_about_a_decision_where_the_pool_is_tight(
    lie: str | None, llama: Any, tmp_path: Path
) -> None:
    """A decision that is cut to the pool's room is taken at its word in all other fields."""
    liar = LyingController(**LIES.get(str(lie), {}))
    steps = _in_a_tight_pool(llama, tmp_path / "budget.jsonl", liar)
    resized = any("the pool has room for" in step["reason"] for step in steps)
    assert resized == (lie in (None, "size beyond the offer"))


class Keeper(FixedBudget):
    """Overwrites what it was lent after the decision."""

    def cut(self, offers: Sequence[Offer], latency: Latency) -> Sequence[Decision]:
        self.kept = [offer.survival for offer in offers]
        return super().cut(offers, latency)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        for survival in self.kept:
            survival.setflags(write=True)
            survival[:] = np.nan


@pytest.mark.fault("K8")
def test_an_offer_cannot_be_overwritten_later(llama: Any, tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="policy liar failed .*WRITEABLE"):
        steps = _in_a_tight_pool(llama, tmp_path / "budget.jsonl", Keeper("8"))
    assert steps[0]["survival"]
    assert all(np.isfinite(step["survival"]).all() for step in steps)


# -- R1: memory -----------------------------------------------------------------------------------


@pytest.mark.fault("R1")
@pytest.mark.parametrize("how", [{}, SAMPLE], ids=["greedy", "sampled"])
@pytest.mark.parametrize("rows", [1, 4, 6])
def test_out_of_memory_halves_the_budget(
    llama: Any, rows: int, how: dict[str, Any], tmp_path: Path
) -> None:
    known = plain(llama, PROMPT, max_new_tokens=20, **how)
    path = tmp_path / "budget.jsonl"
    log_to, chunks = {"path": str(path)}, {"prefill_chunk": 1}
    settings = {"policy": "fixed:16", "log": log_to, "cache": chunks}
    decoder = scripted(llama, [PROMPT + known], 4, settings=settings)
    with OOMTarget(llama, rows) as fault, decoder.start(PROMPT, max_new_tokens=20, **how) as own:
        while not own.finished:
            own.step()
            check_state(own)
        assert own.generated == known
    assert fault.struck == own.stats.memory_retries > 0
    log = load_log(path)
    assert log.requests[0]["memory_retries"] == fault.struck
    hit = [step for step in log.steps if step["faults"]]
    assert all("out of memory: budget halved" in step["faults"][0] for step in hit)
    assert all(1 + step["size"] <= rows for step in log.steps)


@pytest.mark.fault("R1")
def test_if_even_plain_decoding_fails_the_error_comes_through(llama: Any) -> None:
    known = [plain(llama, p, max_new_tokens=20) for p in (PROMPT, OTHER)]
    decoder = scripted(llama, [PROMPT + known[0], OTHER + known[1]], 4)
    pair = [decoder.start(p, max_new_tokens=20) for p in (PROMPT, OTHER)]
    decoder.step(pair)
    have = [list(session.tokens) for session in pair]
    with OOMTarget(llama, 1), pytest.raises(torch.OutOfMemoryError):
        decoder.step(pair)
    with OOMTarget(llama, 0), pytest.raises(torch.OutOfMemoryError):
        decoder.start(PROMPT, max_new_tokens=4)
    assert [list(session.tokens) for session in pair] == have
    for session, want in zip(pair, known, strict=True):
        check_state(session)
        list(session)
        assert session.generated == want
        check_state(session)
    free = decoder.cache.pool.free
    assert decoder.generate(torch.tensor([PROMPT]), max_new_tokens=20)[0, 6:].tolist() == known[0]
    assert decoder.cache.pool.free == free


@pytest.mark.fault("R1")
def test_other_errors_are_not_taken_for_memory(llama: Any) -> None:
    decoder = scripted(llama, [PROMPT + plain(llama, PROMPT, max_new_tokens=8)], 4)
    with decoder.start(PROMPT, max_new_tokens=8) as session:
        forward = llama.forward
        llama.forward = _raising(RuntimeError("shapes do not match"))
        try:
            with pytest.raises(RuntimeError, match="shapes"):
                session.step()
        finally:
            llama.forward = forward
        assert session.stats.memory_retries == 0
        check_state(session)


# -- receivers ------------------------------------------------------------------------------------


def _raising(error: Exception) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise error

    return call


RECEIVERS = {
    "latency": ("latency", NullLatency, ["observe"]),
    "acceptance": ("acceptance", NullAcceptance, ["observe", "calibrate"]),
    "online": ("learner", NoUpdate, ["observe", "between_steps"]),
    "log": ("log", None, ["step", "request"]),
}


@pytest.mark.parametrize("name", RECEIVERS)
def test_a_receiver_that_raises_is_skipped_and_named_once(
    name: str, llama: Any, tmp_path: Path
) -> None:
    keyword, made_by, methods = RECEIVERS[name]
    known = plain(llama, PROMPT, max_new_tokens=12)
    settings = {"log": {"path": str(tmp_path / "budget.jsonl")}}
    decoder = scripted(llama, [PROMPT + known], 3, settings=settings)
    receiver = decoder.log if made_by is None else made_by()
    for method in methods:
        setattr(receiver, method, _raising(ZeroDivisionError(method)))
    if made_by is not None:
        decoder = scripted(llama, [PROMPT + known], 3, settings=settings, **{keyword: receiver})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run(decoder, PROMPT, check_state, max_new_tokens=12) == known
    assert [name in str(w.message) for w in caught] == [True]
    assert decoder.faults.count[name] > 1
    assert set(decoder.faults.count) == {name}
