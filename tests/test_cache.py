"""Slots, masks and positions: rows C1 to C4 and C6 to C10 of the fault table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adaptive_spec.cache import SlotCache, SlotPool
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.errors import CacheError, UnsupportedError
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.packing import chain_part, pack, tree_part
from adaptive_spec.target import Target
from adaptive_spec.testing.drafters import ScriptedDrafter, flat_tree
from adaptive_spec.testing.faults import NaNTarget
from adaptive_spec.testing.tiny import CONTEXT, KINDS, VOCAB, WINDOW, tiny_model
from adaptive_spec.testing.yardsticks import check_state, run
from adaptive_spec.types import ROOT

PROMPT = [5, 6, 7, 8, 5, 6, 9, 10, 5, 6, 11, 12]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain(model: Any, prompt: Sequence[int], **call: Any) -> list[int]:
    return run(AdaptiveDecoder(model, "plain"), prompt, **call)


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


# -- C2: what has no slots ------------------------------------------------------------------------

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
SCALED = {"factor": 2.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
LONG = {**SCALED, "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mamba": ("MambaConfig", {}, "addressed by slot"),
    "mamba2": ("Mamba2Config", {"num_heads": 8, "head_dim": 8}, "addressed by slot"),
    "rwkv": ("RwkvConfig", {"attention_hidden_size": 32}, "rwkv"),
    "falcon-mamba": ("FalconMambaConfig", {}, "addressed by slot"),
    "jamba": ("JambaConfig", {"num_key_value_heads": 2}, "addressed by slot"),
    "recurrent-gemma": ("RecurrentGemmaConfig", {"lru_width": 32}, "addressed by slot"),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}, "conv"),
    "qwen3-next": (
        "Qwen3NextConfig",
        {"layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 2},
        "linear_attention",
    ),
    "bloom": ("BloomConfig", {"n_head": 4, "n_layer": 2}, "ALiBi"),
    "mpt": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "ALiBi"),
    "falcon-alibi": ("FalconConfig", {"alibi": True}, "ALiBi"),
    "dynamic": ("LlamaConfig", {"rope_parameters": {**SCALED, "rope_type": "dynamic"}}, "dynamic"),
    "longrope": ("LlamaConfig", {"rope_parameters": LONG}, "longrope"),
    "gpt-neo": (
        "GPTNeoConfig",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        "inside the model",
    ),
}


@pytest.mark.fault("C2")
@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_served_are_refused_by_name(name: str) -> None:
    config_class, changes, reason = REFUSED[name]
    config = getattr(transformers, config_class)(**{**SMALL, **changes})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedError, match=reason) as caught:
        AdaptiveDecoder(model)
    assert config.model_type in str(caught.value)


@pytest.mark.fault("C2")
@pytest.mark.parametrize("config_class", ["T5Config", "BartConfig"])
def test_encoder_decoders_are_refused(config_class: str) -> None:
    config = getattr(transformers, config_class)(**{**SMALL, "d_model": 32, "num_layers": 2})
    with torch.device("meta"):
        model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    with pytest.raises(UnsupportedError, match=f"{config.model_type}: encoder-decoder"):
        AdaptiveDecoder(model)


@pytest.mark.fault("C2")
def test_training_mode_and_other_attention_backends_are_refused() -> None:
    model = tiny_model("llama").train()
    with pytest.raises(UnsupportedError, match="training mode"):
        AdaptiveDecoder(model)
    model.eval()
    for attention in ("flash_attention_2", "flex_attention", "paged|sdpa"):
        model.config._attn_implementation_internal = attention
        with pytest.raises(UnsupportedError, match="takes no tree mask"):
            AdaptiveDecoder(model)


@pytest.mark.fault("C2")
@pytest.mark.parametrize(
    ("call", "named"),
    [
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, "inputs_embeds"),
        ({"num_beams": 2}, "num_beams"),
        ({"past_key_values": "foreign"}, "past_key_values"),
    ],
)
def test_calls_that_cannot_be_served_are_refused_by_name(call: dict[str, Any], named: str) -> None:
    model = tiny_model("llama")
    decoder, ids = AdaptiveDecoder(model), torch.tensor([PROMPT])
    if named == "past_key_values":
        call = {named: model(ids, use_cache=True).past_key_values}
    for door in (decoder.generate, decoder.start):
        with pytest.raises(UnsupportedError, match=named):
            door(ids, max_new_tokens=4, **call)
    if named != "inputs_embeds":  # transformers drops it before a callable sees it
        with pytest.raises(UnsupportedError, match=named):
            model.generate(ids, max_new_tokens=4, custom_generate=decoder, **call)
    assert run(decoder, PROMPT, max_new_tokens=4) == plain(model, PROMPT, max_new_tokens=4)


# -- C3: the start-up self-check ------------------------------------------------------------------


@pytest.mark.fault("C3")
@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral"])
@pytest.mark.parametrize("fault", ["drops the mask", "plain causal mask", "none"])
def test_a_backend_that_ignores_the_mask_is_refused(
    kind: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def stub(module: Any, q: Any, k: Any, v: Any, mask: Any, **rest: Any) -> Any:
        if fault == "drops the mask":
            mask = torch.ones_like(mask) if mask is not None else None
        elif fault == "plain causal mask" and mask is not None:
            mask = torch.ones_like(mask).tril(mask.shape[3] - mask.shape[2])
        return real(module, q, k, v, mask, **rest)

    model = tiny_model(kind)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", stub)
    if fault == "none":
        AdaptiveDecoder(model)
        return
    with pytest.raises(UnsupportedError, match="does not obey the mask"):
        AdaptiveDecoder(model)
    AdaptiveDecoder(model, {"self_check": False})


# -- C4, C8, C9: logits of a tree across the window's edge ----------------------------------------

TREE = flat_tree([20, 21, 22, 20, 23, 24, 25, 26, 27, 20], [ROOT, ROOT, 0, 0, 1, 2, 5, 6, 7, 8])
"""Two branches, one of them 7 deep: with a window of 8 it leaves the prompt behind."""


def _above(tree: CandidateTree, node: int) -> list[int]:
    path: list[int] = []
    while node != ROOT:
        path.insert(0, int(tree.token[node]))
        node = int(tree.parent[node])
    return path


def _prefill(target: Target, cache: SlotCache, prompt: Sequence[int], spread: int) -> int:
    owner = cache.pool.join()
    part = chain_part(owner, prompt[:-1], 0)
    slots = cache.pool.reserve(spread * len(prompt))[::spread][: len(prompt) - 1]
    slots = np.random.default_rng(spread).permutation(slots)
    target.run(target.prepare(cache, pack([part], slots)))
    cache.pool.commit(owner, slots, part.positions)
    return owner


@pytest.mark.fault("C4", "C8", "C9")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tree_logits_equal_one_by_one_logits(kind: str, attention: str) -> None:
    model = tiny_model(kind, attention=attention)
    target = Target(model)
    cache = SlotCache(target.architecture.layers, SlotPool(16, CONTEXT))
    prompts = [PROMPT[:length] for length in (3, WINDOW - 1, WINDOW + 1, len(PROMPT))]
    trees = [TREE, CandidateTree.chain([30, 31]), TREE, TREE]
    owners = [_prefill(target, cache, p, spread=1 + i % 3) for i, p in enumerate(prompts)]
    parts = [
        tree_part(owner, prompt[-1], len(prompt) - 1, tree)
        for owner, prompt, tree in zip(owners, prompts, trees, strict=True)
    ]
    size = sum(len(part.tokens) for part in parts)
    slots = np.random.default_rng(0).permutation(cache.pool.reserve(2 * size))[:size]
    batch = pack(parts, slots)
    got = target.run(target.prepare(cache, batch)).logits
    for prompt, tree, start in zip(prompts, trees, batch.starts, strict=False):
        for node in range(ROOT, len(tree)):
            ids = torch.tensor([[*prompt, *_above(tree, node)]])
            want = model(ids, use_cache=False).logits[0, -1]
            worst = float((got[start + 1 + node] - want).abs().max() / want.abs().max())
            assert worst < 1e-5, f"node {node} of a prompt of {len(prompt)}"


@pytest.mark.fault("C4", "C9")
@pytest.mark.parametrize("kind", ["gemma3", "mistral", "phi3", "mixtral", "qwen3_sliding"])
@torch.no_grad()
def test_the_window_matters_in_that_test(kind: str) -> None:
    """Negative control: without the window the same logits are far off."""
    wide = tiny_model(kind)
    narrow = Target(wide)
    cache = SlotCache(narrow.architecture.layers, SlotPool(16, CONTEXT))
    narrow._window = None
    owner = _prefill(narrow, cache, PROMPT, 1)
    part = tree_part(owner, PROMPT[-1], len(PROMPT) - 1, CandidateTree.empty())
    got = narrow.run(narrow.prepare(cache, pack([part], cache.pool.reserve(1)))).logits[0]
    want = wide(torch.tensor([PROMPT]), use_cache=False).logits[0, -1]
    assert float((got - want).abs().max() / want.abs().max()) > 1e-2


@pytest.mark.fault("C8", "C9")
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_end_to_end(kind: str) -> None:
    model = tiny_model(kind)
    known = plain(model, PROMPT, max_new_tokens=30)
    drafter = ScriptedDrafter(lambda request: PROMPT + known, (3, 0, 5), decoys=1)
    decoder = AdaptiveDecoder(model, drafter=drafter)
    assert run(decoder, PROMPT, check_state, max_new_tokens=30) == known
    ids = torch.tensor([PROMPT])
    assert model.generate(ids, max_new_tokens=30)[0, len(PROMPT) :].tolist() == known


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


# -- C7: padding and holes ------------------------------------------------------------------------


@pytest.mark.fault("C7", "C8")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_padding_and_holes_equal_the_unpadded_row(kind: str) -> None:
    model = tiny_model(kind)
    decoder, holes = AdaptiveDecoder(model), [0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1]
    masks = torch.tensor([[1] * 12, [0] * 5 + [1] * 7, holes])
    ids = torch.tensor([PROMPT] * 3)
    got = decoder.generate(ids, attention_mask=masks, max_new_tokens=20)
    for row, mask in enumerate(masks):
        unpadded = [token for token, on in zip(PROMPT, mask.tolist(), strict=True) if on]
        assert got[row, 12:].tolist() == plain(model, unpadded, max_new_tokens=20)
    if kind != "gemma3":  # transformers counts its window over masked tokens too
        theirs = model.generate(ids, attention_mask=masks, max_new_tokens=20)
        assert torch.equal(got, theirs)


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
        for _ in range(10):
            session.step()
        assert len(session.generated) >= 20
        assert session.generated == known[: len(session.generated)]


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
