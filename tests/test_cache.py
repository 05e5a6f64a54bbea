"""The slot pool and what it holds: rows C1, C6 and C10 of the fault table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from adaptive_spec.cache import SlotPool
from adaptive_spec.errors import CacheError
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.testing.drafters import ScriptedDrafter
from adaptive_spec.testing.faults import NaNTarget
from adaptive_spec.testing.tiny import VOCAB, tiny_model
from adaptive_spec.testing.yardsticks import check_state, plain, run

PROMPT = [5, 6, 7, 8, 5, 6, 9, 10, 5, 6, 11, 12]


# -- C1: rejections past a sliding window ---------------------------------------------------------


@pytest.mark.fault("C1")
@pytest.mark.parametrize("kind", ["gemma3", "mistral", "qwen3_sliding"])
def test_many_rejections_past_a_sliding_window(kind: str) -> None:
    model = tiny_model(kind)
    known = plain(model, PROMPT, max_new_tokens=100)
    text = PROMPT + known
    drafter = ScriptedDrafter(lambda request: text, (0, 2, 1, 0, 3), decoys=2)
    decoder = AdaptiveDecoder(model, drafter=drafter)
    neighbour = decoder.start(PROMPT[3:], max_new_tokens=4)
    assert run(decoder, PROMPT, check_state, max_new_tokens=100) == known
    check_state(neighbour)
    ids = torch.tensor([PROMPT])
    assert model.generate(ids, max_new_tokens=100)[0, len(PROMPT) :].tolist() == known


# -- C6: the pool ---------------------------------------------------------------------------------


@pytest.mark.fault("C6")
@pytest.mark.parametrize("most", [None, 200])
def test_ten_thousand_operations_keep_the_counts(most: int | None) -> None:
    draw, pool = np.random.default_rng(0), SlotPool(16, 64, most)
    held: dict[int, int] = {}
    refused = 0
    for operation in range(10_000):
        kind = draw.integers(0, 10)
        if kind == 0 and len(held) < 8:
            held[pool.join()] = 0
        elif kind == 1 and held:
            owner = int(draw.choice(list(held)))
            assert len(pool.leave(owner)) == held.pop(owner)
        elif held:
            owner, rows = int(draw.choice(list(held))), int(draw.integers(1, 20))
            try:
                slots = pool.reserve(rows)
            except CacheError:
                assert rows > pool.free
                refused += 1
                continue
            kept = min(int(draw.integers(0, rows + 1)), 64 - held[owner])
            chosen = np.sort(draw.permutation(slots)[:kept])
            pool.commit(owner, chosen, np.arange(held[owner], held[owner] + kept))
            held[owner] += kept
        assert sum(held.values()) + pool.free == pool.limit
        if operation % 20 == 0:
            pool.check_integrity(held)
    assert most is None or refused > 0
    assert len(pool) <= pool.limit


@pytest.mark.fault("C6")
def test_slots_are_never_overwritten_and_low_ones_come_first() -> None:
    pool = SlotPool(4, 8)
    first, second = pool.join(), pool.join()
    slots = pool.reserve(3)
    pool.commit(first, slots, np.arange(3))
    with pytest.raises(CacheError, match="not all free"):
        pool.commit(second, slots[:1], np.arange(1))
    with pytest.raises(CacheError, match="do not continue"):
        pool.commit(second, pool.reserve(1), np.arange(1, 2))
    with pytest.raises(CacheError, match="14 slots wanted, 13 of 16 free"):
        pool.reserve(14)
    assert pool.reserve(2).tolist() == [3, 4]
    pool.leave(first)
    assert pool.reserve(2).tolist() == [0, 1]
    for broken in ({second: 1}, {}, {second: 0, 9: 0}):
        with pytest.raises(CacheError):
            pool.check_integrity(broken)


@pytest.mark.fault("C6")
def test_a_full_pool_cuts_the_budget_and_nothing_else() -> None:
    model = tiny_model("llama")
    known = plain(model, PROMPT, max_new_tokens=24)
    drafter = ScriptedDrafter(lambda request: PROMPT + known, (6,), decoys=2)
    settings = {"cache": {"max_slots": len(PROMPT) + 26}}
    decoder = AdaptiveDecoder(model, settings, drafter=drafter)
    sizes: list[int] = []
    with decoder.start(PROMPT, max_new_tokens=24) as session:
        with pytest.raises(CacheError, match="slots wanted"):
            decoder.start(PROMPT * 4, max_new_tokens=4)
        while not session.finished:
            before = session.stats.num_draft_tokens
            session.step()
            sizes.append(session.stats.num_draft_tokens - before)
            check_state(session)
        assert session.generated == known
    assert sizes[0] > sizes[-1]
    assert len(decoder.cache.pool) == len(PROMPT) + 26
    assert decoder.cache.pool.high_water == 0


@pytest.mark.fault("C6")
def test_the_pool_grows_under_packed_requests() -> None:
    model = tiny_model("gemma3")
    prompts = [PROMPT[i:] + PROMPT[:i] for i in range(5)]
    decoder = AdaptiveDecoder(model, {"cache": {"slots": 16}})
    sessions = [decoder.start(prompt, max_new_tokens=30) for prompt in prompts]
    while live := [session for session in sessions if not session.finished]:
        decoder.step(live)
        check_state(live[0])
    for prompt, session in zip(prompts, sessions, strict=True):
        assert session.generated == plain(model, prompt, max_new_tokens=30)
        check_state(session)
    assert len(decoder.cache.pool) > 128


# -- C10: non-finite slots ------------------------------------------------------------------------


@pytest.mark.fault("C10")
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_non_finite_slots_are_cleared_before_they_are_freed(value: float) -> None:
    model = tiny_model("llama")
    known = plain(model, PROMPT, max_new_tokens=40)
    wrong = (known[2] + 2) % VOCAB
    decoder = AdaptiveDecoder(
        model, drafter=ScriptedDrafter(lambda request: PROMPT + known, (1,), decoys=3)
    )
    with decoder.start(PROMPT, max_new_tokens=40) as session:
        session.step()
        with NaNTarget(model, lambda ids: ids == wrong, value=value, cache=True) as fault:
            while not fault.hurt:
                session.step()
        check_state(session)
        have = len(session.generated)
        while not session.finished:
            session.step()
            check_state(session)
        assert session.generated == known
        assert len(known) - have >= 20


@pytest.mark.fault("C10")
def test_a_masked_non_finite_slot_would_matter() -> None:
    """Negative control: 0 x NaN is NaN, so a slot left dirty ends the request."""
    model = tiny_model("llama")
    decoder = AdaptiveDecoder(model, "plain")
    with decoder.start(PROMPT, max_new_tokens=8) as session:
        dirty = decoder.target.prepare

        def prepare(cache: Any, batch: Any) -> Any:
            cache.layers[0].values[:, :, len(PROMPT) + 40] = float("nan")
            inputs = dirty(cache, batch)
            cache.read_slots = len(PROMPT) + 50
            inputs["attention_mask"] = torch.nn.functional.pad(
                inputs["attention_mask"], (0, cache.read_slots - inputs["attention_mask"].shape[3])
            )
            return inputs

        decoder.target.prepare = prepare  # type: ignore[method-assign]
        session.step()
        assert session.finish_reason == "error"


@pytest.mark.fault("C10")
def test_purging_does_not_depend_on_the_default_device() -> None:
    """Somebody may have called ``torch.set_default_device``."""
    decoder = AdaptiveDecoder(tiny_model("llama"), "plain")
    with decoder.start(PROMPT, max_new_tokens=4) as session:
        session.step()
        slots = decoder.requests.pool.slots(session.owner)
        keys = decoder.cache.layers[0].keys
        assert keys is not None
        keys[0, 0, slots[2], 1] = torch.nan
        with torch.device("meta"):
            assert decoder.cache.purge() == {session.owner}
        assert bool((keys[:, :, slots[2]] == 0).all())
