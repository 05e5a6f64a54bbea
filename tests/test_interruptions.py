"""Interruptions and further turns: rows S5 and S7 of the fault table."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import TextStreamer

from adaptive_spec import decoder as engine
from adaptive_spec import tree as trees
from adaptive_spec import verifying
from adaptive_spec.drafters.suffix import SuffixDrafter
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.online.base import NoUpdate
from adaptive_spec.profilers.base import NullAcceptance
from adaptive_spec.sampling import Sampler
from adaptive_spec.stopping import Stopping
from adaptive_spec.testing.drafters import ScriptedDrafter
from adaptive_spec.testing.tiny import CONTEXT, tiny_model
from adaptive_spec.testing.yardsticks import check_state, plain, run

PROMPT = [5, 6, 7, 8, 5, 6]
SAMPLE = {"do_sample": True, "temperature": 0.9, "top_k": 0, "seed": 3}


def scripted(model: Any, text: Sequence[int], *pattern: int) -> AdaptiveDecoder:
    """Drafts ``text`` (prompt and output), right for ``pattern`` tokens, with a decoy beside."""
    drafter = ScriptedDrafter(lambda request: text, pattern, decoys=1)
    return AdaptiveDecoder(model, {"policy": "fixed:24"}, drafter=drafter)


# -- S5: interruptions ----------------------------------------------------------------------------


@pytest.mark.fault("S5")
def test_close_at_every_yield(llama: Any) -> None:
    known = plain(llama, PROMPT, max_new_tokens=16)
    decoder = scripted(llama, PROMPT + known, 2, 0, 3)
    keeper = decoder.start(PROMPT, max_new_tokens=16)
    for steps in range(6):
        session = decoder.start(PROMPT, max_new_tokens=16)
        got = [token for _, step in zip(range(steps), session, strict=False) for token in step]
        assert session.generated == got == known[: len(got)]
        check_state(session)
        session.close()
        session.close()
        assert session.finish_reason == "closed"
        assert decoder.cache.pool.free == CONTEXT - len(PROMPT) + 1, "only the keeper's are gone"
        with pytest.raises(RuntimeError, match="closed"):
            session.step()
    list(keeper)
    assert keeper.generated == known


@pytest.mark.fault("S5")
def test_a_dropped_session_returns_its_slots(llama: Any) -> None:
    decoder = AdaptiveDecoder(llama)
    session = decoder.start(PROMPT, max_new_tokens=16)
    session.step()
    owned = decoder.cache.pool.high_water
    del session
    gc.collect()
    assert owned > 0
    assert decoder.cache.pool.high_water == 0
    decoder.check_integrity()


def _calls(decoder: AdaptiveDecoder, parts: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """Every internal call of a step: where to find it."""
    pool, target = decoder.cache.pool, decoder.target
    return {
        "plan": (decoder.deciding, "plan"),
        "propose": (parts["drafter"], "propose"),
        "calibrate": (parts["acceptance"], "calibrate"),
        "best_first": (trees, "best_first"),
        "cut": (decoder.deciding, "cut"),
        "select": (trees, "select"),
        "pack": (verifying, "pack"),
        "reserve": (pool, "reserve"),
        "prepare": (target, "prepare"),
        "run": (target, "run"),
        "model": (target.model, "forward"),
        "judge": (engine, "judge"),
        "walk": (verifying, "walk"),
        "scores": (Sampler, "scores"),
        "choose": (Sampler, "choose"),
        "stopping": (Stopping, "after"),
        "pool.commit": (pool, "commit"),
        "drafting.commit": (decoder.drafting, "commit"),
        "drafter.commit": (parts["drafter"], "commit"),
        "reporter": (decoder.reporter, "step"),
        "learner": (parts["learner"], "between_steps"),
    }


def _raise_at(
    call: int, real: Callable[..., Any], error: type[BaseException] = ZeroDivisionError
) -> Callable[..., Any]:
    left = [call]

    def raising(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise error("injected")
        return real(*args, **kwargs)

    return raising


ISOLATED = {"propose", "drafter.commit", "learner", "calibrate"}
PAIR = (PROMPT, PROMPT[2:])


@pytest.mark.fault("S5")
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_exception_at_every_internal_call(
    llama: Any, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    want = [plain(llama, prompt, max_new_tokens=6, **SAMPLE) for prompt in PAIR]
    parts = {"drafter": SuffixDrafter(), "acceptance": NullAcceptance(), "learner": NoUpdate()}
    decoder = AdaptiveDecoder(llama, **parts)
    calls = _calls(decoder, parts)
    for name, call in [(name, call) for name in calls for call in (1, 2)]:
        pair = [decoder.start(prompt, max_new_tokens=6, **SAMPLE) for prompt in PAIR]
        decoder.step(pair)
        owner, attribute = calls[name]
        raised = False
        with monkeypatch.context() as patch:
            patch.setattr(owner, attribute, _raise_at(call, getattr(owner, attribute), error))
            try:
                decoder.step(pair)
            except error:
                raised = True
        if call == 1:
            assert raised == (error is KeyboardInterrupt or name not in ISOLATED), name
        for session, known in zip(pair, want, strict=True):
            check_state(session)
            list(session)
            assert session.generated == known, name
            session.close()
    decoder.check_integrity()


@pytest.mark.fault("S5")
def test_a_streamer_that_raises_loses_nothing(llama: Any) -> None:
    known = plain(llama, PROMPT, max_new_tokens=12)
    decoder = scripted(llama, PROMPT + known, 4)

    class Broken(TextStreamer):
        def __init__(self) -> None:
            self.left = 4

        def put(self, value: Any) -> None:
            self.left -= 1
            if self.left == 0:
                raise ZeroDivisionError

        def end(self) -> None:
            return None

    with decoder.start(PROMPT, max_new_tokens=12, streamer=Broken()) as session:
        with pytest.raises(ZeroDivisionError):
            list(session)
        check_state(session)
        list(session)
        assert session.generated == known


@pytest.mark.fault("S5")
def test_an_exception_in_the_prefill_returns_the_slots(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = AdaptiveDecoder(llama, {"cache": {"prefill_chunk": 2}})
    session = decoder.start(PROMPT, max_new_tokens=4)
    list(session)
    before = decoder.cache.pool.free
    with monkeypatch.context() as patch:
        patch.setattr(decoder.target, "run", _raise_at(2, decoder.target.run))
        with pytest.raises(ZeroDivisionError):
            decoder.start(PROMPT, max_new_tokens=4)
    gc.collect()
    assert decoder.cache.pool.free == before
    with monkeypatch.context() as patch:
        patch.setattr(decoder.target, "run", _raise_at(2, decoder.target.run))
        with pytest.raises(ZeroDivisionError):
            session.extend(PROMPT)
    assert session.closed
    decoder.check_integrity()
    assert run(decoder, PROMPT, max_new_tokens=8) == plain(llama, PROMPT, max_new_tokens=8)


# -- S7: a second turn ----------------------------------------------------------------------------


@pytest.mark.fault("S7")
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("how", [{}, SAMPLE], ids=["greedy", "sampled"])
@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("penalty", [None, 1.3])
def test_a_second_turn_equals_a_fresh_transcript(
    kind: str, how: dict[str, Any], pad: int, penalty: float | None
) -> None:
    model = tiny_model(kind)
    decoder = AdaptiveDecoder(model)
    call = {"max_new_tokens": 12, "repetition_penalty": penalty, **how}

    def masked(tokens: Sequence[int]) -> dict[str, Any]:
        seen = torch.tensor([[0] * pad + [1] * len(tokens)])  # else transformers hides the pad id
        return {"input_ids": [0] * pad + list(tokens), "attention_mask": seen}

    with decoder.start(**masked(PROMPT), **call) as session:
        list(session)
        for more in ([9, 5, 6], [7]):
            transcript = [*session.tokens, *more]
            session.extend(more)
            assert session.generated == []
            while not session.finished:
                session.step()
                check_state(session)
            fresh = AdaptiveDecoder(model, "plain").start(**masked(transcript), **call)
            list(fresh)
            assert session.generated == fresh.generated
