"""Many users of one decoder: threads, streams, policies, names; and what closing gives back."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_spec import load_log
from adaptive_spec.controllers.fixed import FixedBudget
from adaptive_spec.drafters.base import CandidateTree, DraftRequest
from adaptive_spec.errors import ArgumentError
from adaptive_spec.online.base import NoUpdate
from adaptive_spec.testing.drafters import ScriptedDrafter
from adaptive_spec.types import Features, Plan

PROMPT = [5, 6, 7, 5, 6, 7]


def test_threads_may_share_a_decoder(tiny: Any, make: Any) -> None:
    model, texts = tiny("llama"), []
    want = model.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False).tolist()
    decoder = make(model, "fixed:8")

    def work() -> None:
        for _ in range(4):
            ids = torch.tensor([PROMPT])
            texts.append(decoder.generate(ids, max_new_tokens=12, do_sample=False).tolist())

    threads = [threading.Thread(target=work) for _ in range(3)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert texts == [want] * 12


class Stream:
    """Collects tokens; raises at the given puts."""

    def __init__(self, *raises: int) -> None:
        self.tokens: list[int] = []
        self.puts, self.ends, self._raises = 0, 0, raises

    def put(self, value: torch.Tensor) -> None:
        self.puts += 1
        self.tokens.extend(value.reshape(-1).tolist())
        if self.puts in self._raises:
            raise BrokenPipeError

    def end(self) -> None:
        self.ends += 1


@pytest.mark.fault("S5", "S6")
def test_a_raising_stream_costs_nobody_a_token(tiny: Any, make: Any) -> None:
    decoder, streams = make(tiny("llama"), "fixed:8"), [Stream(3, 5), Stream()]
    sessions = [
        decoder.start(PROMPT, max_new_tokens=15, do_sample=False, streamer=stream)
        for stream in streams
    ]
    broken = 0
    while live := [session for session in sessions if not session.finished]:
        try:
            decoder.step(live)
        except BrokenPipeError:
            broken += 1
    assert broken == 2
    for session, stream in zip(sessions, streams, strict=True):
        session.close()
        assert stream.tokens == session.tokens
        assert stream.ends == 1


@pytest.mark.fault("S6")
def test_closing_ends_the_stream(tiny: Any, make: Any) -> None:
    stream = Stream()
    with make(tiny("llama")).start(PROMPT, max_new_tokens=9, streamer=stream) as session:
        session.step()
    assert stream.ends == 1


class Remembers(FixedBudget):
    def __init__(self) -> None:
        super().__init__("4")
        self.known: set[str] = set()

    def plan(self, requests: Sequence[Features], latency: Any) -> Sequence[Plan]:
        self.known.update(request.request for request in requests)
        return super().plan(requests, latency)

    def finish(self, request: str) -> None:
        self.known.discard(request)


def test_policies_forget_requests_that_leave(tiny: Any, make: Any) -> None:
    policy = Remembers()
    decoder = make(tiny("llama"), "mine", controllers={"mine": policy})
    switched = decoder.start(PROMPT, max_new_tokens=9)
    dropped = decoder.start(PROMPT, max_new_tokens=9)
    decoder.step([switched, dropped])
    assert policy.known == {switched.id, dropped.id}
    switched.set_policy("plain")
    assert policy.known == {dropped.id}
    del dropped
    gc.collect()
    assert policy.known == set()


def test_names_are_unique_and_steps_run_on(tiny: Any, make: Any, tmp_path: Path) -> None:
    model, path = tiny("llama"), tmp_path / "log.jsonl"
    decoder = make(model, "fixed:4", log={"path": str(path)})
    with make(model).start(PROMPT) as other, decoder.start(PROMPT, max_new_tokens=5) as session:
        assert other.id != session.id
        with pytest.raises(ArgumentError, match="request_id"):
            decoder.start(PROMPT, request_id=session.id)
        for _ in session:
            pass
        session.extend([5, 6], 4)
        for _ in session:
            pass
    log = load_log(path)
    keys = [(record["request"], record["step"]) for record in log.steps]
    assert len(set(keys)) == len(keys)
    assert [record["new_tokens"] for record in log.requests] == [5, 4]


@pytest.mark.parametrize("policy", ["marginal", "ratio"])
def test_every_request_of_a_shared_forward_has_a_record_of_its_own(
    policy: str, tiny: Any, make: Any, tmp_path: Path
) -> None:
    """Sizes, reasons and going rates are each request's; the sizes add up to the forward's rows."""
    path, rows = tmp_path / "log.jsonl", dict[int, int]()
    decoder = make(tiny("llama"), policy, log={"path": str(path)})
    run, group = decoder.target.run, 0

    def counted(inputs: Any) -> Any:
        found = run(inputs)
        rows[group] = len(found.logits)
        return found

    texts = [PROMPT * 3, [9, 8, 9, 8, 9, 8, 9], [30, 31, 32, 33]]
    sessions = [decoder.start(text, max_new_tokens=30) for text in texts]
    decoder.target.run = counted
    while live := [session for session in sessions if not session.finished]:
        decoder.step(live)
        group += 1
    decoder.close()
    steps = load_log(path).steps
    groups: dict[int, list[Any]] = {}
    for step in steps:
        groups.setdefault(step["step_group"], []).append(step)
    assert len(groups) == len(rows)
    for (_, packed), count in zip(sorted(groups.items()), rows.values(), strict=True):
        assert len({step["request"] for step in packed}) == len(packed)
        assert sum(step["size"] for step in packed) + len(packed) == count
    several = [packed for packed in groups.values() if len(packed) == 3]
    assert any(len({step["size"] for step in packed}) > 1 for packed in several)
    assert any(len({step["theta"] for step in packed}) > 1 for packed in several)


def test_a_prefill_that_fails_in_a_further_turn_says_so(
    tiny: Any, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    decoder = make(tiny("llama"), "fixed:4", log={"path": str(path)})
    session = decoder.start(PROMPT, max_new_tokens=3, do_sample=False)
    for _ in session:
        pass

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError("injected")

    monkeypatch.setattr(decoder.target, "run", fails)
    with pytest.raises(MemoryError):
        session.extend([5, 6, 7])
    assert session.closed
    assert [record["finish_reason"] for record in load_log(path).requests] == ["length", "error"]
    decoder.check_integrity()


def test_closing_a_decoder_gives_everything_back(tiny: Any, make: Any, tmp_path: Path) -> None:
    decoder = make(tiny("llama"), log={"path": str(tmp_path / "log.jsonl")})
    with decoder:
        session = decoder.start(PROMPT, max_new_tokens=9)
        session.step()
    assert session.closed
    assert decoder.cache.pool.high_water == 0


class Growing(ScriptedDrafter):
    """Proposes one node; every further call adds the next one."""

    name = "growing"

    def propose(
        self, requests: Sequence[DraftRequest], plans: Sequence[Plan]
    ) -> list[CandidateTree]:
        self.calls = 1
        return [self._right(request, 1) for request in requests]

    def extend(
        self,
        requests: Sequence[DraftRequest],
        trees: Sequence[CandidateTree],
        plans: Sequence[Plan],
    ) -> list[CandidateTree]:
        self.calls += 1
        return [self._right(r, len(t) + 1) for r, t in zip(requests, trees, strict=True)]

    def _right(self, request: DraftRequest, count: int) -> CandidateTree:
        done = len(request.tokens)
        return CandidateTree.chain(list(self._answer(request))[done : done + count])


class Calls(FixedBudget):
    def plan(self, requests: Sequence[Features], latency: Any) -> Sequence[Plan]:
        return [Plan(nodes=8, depth=8, calls=3) for _ in requests]


def test_a_drafter_extends_its_tree_as_often_as_planned(tiny: Any, make: Any) -> None:
    model = tiny("llama")
    answer = model.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False)[0].tolist()
    drafter = Growing(lambda request: answer)
    decoder = make(model, "calls", drafter=drafter, controllers={"calls": Calls("8")})
    with decoder.start(PROMPT, max_new_tokens=12, do_sample=False) as session:
        assert len(session.step()) == 4
        assert drafter.calls == 3
        assert session.stats.draft_faults == 0


def test_a_plan_may_name_its_drafters(tiny: Any, make: Any) -> None:
    class Others(FixedBudget):
        def plan(self, requests: Sequence[Features], latency: Any) -> Sequence[Plan]:
            return [Plan(nodes=8, depth=8, drafters=("another",)) for _ in requests]

    decoder = make(tiny("llama"), "others", controllers={"others": Others("8")})
    with decoder.start(PROMPT, max_new_tokens=12, do_sample=False) as session:
        for _ in session:
            pass
        assert session.stats.num_draft_tokens == 0


class Learns(NoUpdate):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def observe(self, feedback: Any) -> None:
        for one in feedback:
            assert one.logits.shape[0] == 1 + len(one.tree)
            assert np.isfinite(one.labels.reach).all()
            self.seen.append(len(one.tokens))

    def between_steps(self, deadline: float) -> dict[str, Any]:
        return {"arm": "skip", "expected_gain": 0.0}


def test_updates_are_logged_and_charged(tiny: Any, make: Any, tmp_path: Path) -> None:
    path, learner = tmp_path / "log.jsonl", Learns()
    decoder = make(tiny("llama"), "fixed:4", log={"path": str(path)}, learner=learner)
    with decoder.start(PROMPT, max_new_tokens=6, do_sample=False) as session:
        for _ in session:
            pass
    log = load_log(path)
    assert sum(learner.seen) == 6
    assert [record["arm"] for record in log.updates] == ["skip"] * len(log.steps)
    assert all(record["seconds"]["update"] > 0 for record in log.steps[1:])
