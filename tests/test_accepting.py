"""Every order of accepted lengths, and requests that share their steps (yardsticks E and S)."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import pytest
from oracle import PROMPTS, Answers, by_transformers, oracle, sampled, spec

from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.sampling import derive_seed
from adaptive_spec.testing.drafters import ScriptedDrafter
from adaptive_spec.testing.yardsticks import check_state, run


class _Several(ScriptedDrafter):
    """One scripted drafter per request id, each with its own pattern and number of decoys."""

    def __init__(self, answers: Answers, patterns: dict[str, tuple[int, ...]]) -> None:
        super().__init__(oracle(answers))
        self._each = {
            name: ScriptedDrafter(oracle(answers), pattern, decoys=int(name) % 3)
            for name, pattern in patterns.items()
        }

    def propose(self, requests: Any, plans: Any) -> list[CandidateTree]:
        pairs = zip(requests, plans, strict=True)
        return [self._each[request.id].propose([request], [plan])[0] for request, plan in pairs]


@pytest.mark.fault("L6")
def test_every_order_of_accepted_lengths(tiny: Any, make: Any) -> None:
    """All patterns of length 4 over 0..3; the histogram proves that they came about."""
    answers, cap = by_transformers(tiny("llama"), PROMPTS, 20), 20
    patterns = list(product(range(4), repeat=4))
    for first in range(0, len(patterns), 32):
        packed = {str(i): patterns[first + i] for i in range(32)}
        decoder = make(tiny("llama"), "fixed:16", drafter=_Several(answers, packed))
        sessions = [
            decoder.start(PROMPTS[i % 20], request_id=str(i), max_new_tokens=cap) for i in range(32)
        ]
        lengths: dict[str, list[int]] = {session.id: [] for session in sessions}
        while live := [session for session in sessions if not session.finished]:
            for session, tokens in zip(live, decoder.step(live), strict=True):
                lengths[session.id].append(len(tokens))
        for session in sessions:
            prompt = session.tokens[: session.prompt_length]
            assert session.generated == answers[tuple(prompt)][len(prompt) :][:cap]
            wanted, turn = [], cycle(packed[session.id])
            while sum(wanted) < cap:
                wanted.append(min(next(turn) + 1, cap - sum(wanted)))
            assert lengths[session.id] == wanted, packed[session.id]


@pytest.mark.fault("L6")
@pytest.mark.parametrize(("first", "kind"), [(0, "llama"), (1, "gemma3"), (2, "gpt2")])
def test_the_state_after_every_step(tiny: Any, make: Any, first: int, kind: str) -> None:
    """S on every 7th pattern, others per model; every third of them beside another pattern.

    The window of gemma3 is 8, so slots fall out of it.
    """
    prompts = [PROMPTS[7], PROMPTS[12]]
    answers = by_transformers(tiny(kind), prompts, 24)
    patterns = list(product(range(4), repeat=4))
    for i in range(first, 256, 7):
        packed = {"1": patterns[i], "2": patterns[-1 - i]}
        decoder = make(tiny(kind), "fixed:16", drafter=_Several(answers, packed))
        names = list(packed)[: 1 + (i % 3 == 0)]
        sessions = [
            decoder.start(prompt, request_id=name, max_new_tokens=24)
            for name, prompt in zip(names, prompts, strict=False)
        ]
        while live := [session for session in sessions if not session.finished]:
            decoder.step(live)
            for session in sessions:
                check_state(session)
        for session, prompt in zip(sessions, prompts, strict=False):
            assert session.generated == answers[tuple(prompt)][len(prompt) :], packed


@pytest.mark.fault("L11")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    ("count", "kind"), [(1, "gemma3"), (2, "llama"), (5, "gemma3"), (8, "llama")]
)
def test_requests_that_join_and_leave(
    tiny: Any, make: Any, plain: Any, kind: str, count: int, temperature: float
) -> None:
    """Ragged prompts, caps and policies; one joins per step, one is closed before its end."""
    model = tiny(kind)
    calls = [
        {
            "max_new_tokens": 8 + 7 * i % 17,
            **sampled(temperature, derive_seed(4, i)),
        }
        for i in range(count)
    ]
    prompts = [PROMPTS[(7 * i) % len(PROMPTS)] for i in range(count)]
    wanted = [run(plain(model), p, **c) for p, c in zip(prompts, calls, strict=True)]
    answers = {tuple(p): p + w for p, w in zip(prompts, wanted, strict=True)}
    decoder = spec(make, model, answers, (2, 0, 5, 1), cache={"slots": 16})
    names = ["fixed:16", "plain", "fixed:3"]
    sessions: list[Any] = []
    for turn in range(200):
        if turn < count:
            call = {**calls[turn], "policy": names[turn % 3]}
            sessions.append(decoder.start(prompts[turn], **call))
        live = [s for s in sessions if not s.finished]
        if not live:
            break
        decoder.step(live if turn % 4 else live[::-1])
        if turn == count and count > 2:
            sessions[1].close()
        for session in sessions[turn % count : turn % count + 1]:
            if not session.closed:
                check_state(session)
        decoder.check_integrity()
    for i, session in enumerate(sessions):
        assert session.generated == wanted[i][: len(session.generated)]
        assert len(session.generated) == len(wanted[i]) or session.finish_reason == "closed"
        session.close()
    assert decoder.requests.pool.free == decoder.requests.pool.limit
