"""Processors and parameters: applied per visited node as transformers applies them, or refused.

At temperature 0 the reference is ``model.generate``; when sampling it is plain decoding with the
same seed, and the processed scores of transformers for the first token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from oracle import PROMPTS, by_transformers, oracle, sampled, spec
from transformers import GenerationConfig, WatermarkingConfig

from adaptive_spec.arguments import HONOURED, NEUTRAL, REFUSED, REFUSED_INPUTS
from adaptive_spec.errors import ArgumentError, SamplingError, UnsupportedError
from adaptive_spec.testing.drafters import ScriptedDrafter
from adaptive_spec.testing.tiny import CONTEXT, VOCAB
from adaptive_spec.testing.yardsticks import run

EOS, NEW = 2, 24


def even_after_odd(row: int, ids: torch.Tensor) -> list[int]:
    """Allowed next tokens: they depend on the last token and on the row's index."""
    return [t for t in range(3, VOCAB) if (t + int(ids[-1]) + row) % 3]


# Every processor that changes greedy output. EOS is the end token where one is declared.
GREEDY: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.9},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[t] for t in range(3, 40)] + [[50, 60], [61, 62, 63]]},
    "sequence_bias": {"sequence_bias": [[[t], 2.5] for t in range(60, 90)]},
    "min_length": {"min_length": 12, "eos_token_id": list(range(3, 60))},
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": list(range(3, 60))},
    "suppress_tokens": {"suppress_tokens": list(range(3, 50))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(3, 70))},
    "forced_eos_token_id": {"forced_eos_token_id": EOS},
    "forced_bos_token_id": {"forced_bos_token_id": 9},
    "exponential_decay_length_penalty": {
        "exponential_decay_length_penalty": (4, 1.6),
        "eos_token_id": EOS,
    },
    "remove_invalid_values": {"remove_invalid_values": True},
    "renormalize_logits": {"renormalize_logits": True},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": even_after_odd},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=3.0, context_width=1)},
}
SILENT = {"remove_invalid_values", "renormalize_logits"}
"""Neither changes the greedy output of a healthy model."""
WARPERS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.4},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.2},
    "top_h": {"top_h": 0.4},
    "typical_p": {"typical_p": 0.5},
    "epsilon_cutoff": {"epsilon_cutoff": 0.05},
    "eta_cutoff": {"eta_cutoff": 0.1},
}
BATCH = [PROMPTS[0], PROMPTS[7], PROMPTS[12], PROMPTS[5]]


def padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """Left-padded ids and their mask."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.fault("P1")
@pytest.mark.parametrize("name", GREEDY)
def test_greedy_processors_are_those_of_transformers(tiny: Any, make: Any, name: str) -> None:
    """Single and left-padded, with scripted and with suffix drafts."""
    model = tiny("llama")
    call = {"max_new_tokens": NEW, "do_sample": False, **GREEDY[name]}
    for batch in (padded(BATCH[1:2]), padded(BATCH)):
        prompts = BATCH if len(batch["input_ids"]) > 1 else BATCH[1:2]
        wanted = model.generate(**batch, **call)
        without = model.generate(**batch, max_new_tokens=NEW, do_sample=False)
        assert (name in SILENT) == torch.equal(wanted, without), "the argument matters"
        new = wanted[:, batch["input_ids"].shape[1] :].tolist()
        answers = {tuple(p): p + row for p, row in zip(prompts, new, strict=True)}
        drafter = ScriptedDrafter(oracle(answers), (2, 0, 3, 1), decoys=1)
        scripted = make(model, "fixed:16", drafter=drafter)
        for decoder in (make(model), scripted, make(model, "fixed:9")):
            assert torch.equal(decoder.generate(**batch, **call), wanted)
        assert sum(drafter.proposed) > 0


@pytest.mark.fault("P1")
@pytest.mark.parametrize("name", [*GREEDY, *WARPERS])
def test_sampling_with_processors(tiny: Any, make: Any, name: str) -> None:
    """Same seed, same tokens as plain decoding, single and left-padded."""
    model = tiny("llama")
    call = {"max_new_tokens": NEW, **sampled(0.8), **GREEDY.get(name, {}), **WARPERS.get(name, {})}
    for prompts in (BATCH[1:2], BATCH):
        batch = padded(prompts)
        wanted = make(model).generate(**batch, **call)
        new = wanted[:, batch["input_ids"].shape[1] :].tolist()
        answers = {tuple(p): p + row for p, row in zip(prompts, new, strict=True)}
        scripted = spec(make, model, answers, (2, 0, 3, 1))
        for decoder in (scripted, make(model, "fixed:9")):
            assert torch.equal(decoder.generate(**batch, **call), wanted)


@pytest.mark.fault("P1", "P5")
@pytest.mark.parametrize("name", [*GREEDY, *WARPERS, "top_k default"])
def test_first_scores_are_those_of_transformers(tiny: Any, make: Any, name: str) -> None:
    """What is sampled from, before any token is drawn; raw logits are kept beside it."""
    rules = {**GREEDY, **WARPERS}.get(name, {})
    call = {
        "max_new_tokens": 1,
        "output_scores": True,
        "output_logits": True,
        "return_dict_in_generate": True,
        "do_sample": True,
        **rules,
    }
    model, batch = tiny("llama"), padded(BATCH)
    theirs, ours = model.generate(**batch, **call), make(model).generate(**batch, **call, seed=1)
    for mine, wanted in ((ours.scores, theirs.scores), (ours.logits, theirs.logits)):
        assert len(mine) == len(wanted) == 1
        assert torch.allclose(mine[0], wanted[0], rtol=1e-4, atol=1e-4)
    if name in WARPERS:
        assert not torch.equal(ours.scores[0], ours.logits[0]), "the argument matters"


@pytest.mark.fault("P1")
def test_synthid_watermark(tiny: Any, make: Any) -> None:
    """Stateful, one state per row; sampling only."""
    config = transformers.SynthIDTextWatermarkingConfig(keys=[3, 14, 15, 92], ngram_len=3)
    call = {"max_new_tokens": NEW, "watermarking_config": config, **sampled(0.9)}
    model, batch = tiny("llama"), padded(BATCH)
    wanted = make(model).generate(**batch, **call)
    assert torch.equal(make(model, "fixed:9").generate(**batch, **call), wanted)
    del call["watermarking_config"]
    assert not torch.equal(make(model).generate(**batch, **call), wanted)


@pytest.mark.fault("P1")
def test_prefix_function_sees_the_true_row(tiny: Any, make: Any) -> None:
    seen: set[tuple[int, int]] = set()

    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        seen.add((row, int(ids[-1])))
        return list(range(10 + 20 * row, 30 + 20 * row))

    batch = padded(BATCH[:2])
    out = make(tiny("llama"), "fixed:9").generate(
        **batch,
        max_new_tokens=8,
        num_return_sequences=2,
        prefix_allowed_tokens_fn=allowed,
        **sampled(0.9),
    )
    for row, tokens in enumerate(out[:, batch["input_ids"].shape[1] :].tolist()):
        assert all(10 + 20 * row <= t < 30 + 20 * row for t in tokens)
    assert {row for row, _ in seen} == {0, 1, 2, 3}


class Counting(transformers.LogitsProcessor):
    """Stateful: forbids what it saw most, and writes down every call."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls.append(ids[0].tolist())
        scores = scores.clone()
        scores[:, len(self.calls) % 7 :: 7] -= 3.0
        return scores


@pytest.mark.fault("P2")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_stateful_processor_sees_the_calls_of_plain(
    tiny: Any, make: Any, temperature: float
) -> None:
    model, prompt = tiny("llama"), PROMPTS[8]
    plainly, theirs, drafted = Counting(), Counting(), Counting()
    call = {"max_new_tokens": NEW, **sampled(temperature)}
    wanted = run(make(model), prompt, logits_processor=[plainly], **call)
    decoder = spec(make, model, {tuple(prompt): prompt + wanted}, (3, 0, 2), decoys=2)
    with decoder.start(prompt, logits_processor=[drafted], **call) as session:
        list(session)
        assert session.generated == wanted
        assert session.stats.steps < NEW
    assert drafted.calls == plainly.calls
    assert len(plainly.calls) == NEW
    if not temperature:
        answers = by_transformers(model, [prompt], NEW, logits_processor=[theirs])
        assert answers[tuple(prompt)] == prompt + wanted
        assert theirs.calls == plainly.calls


@pytest.mark.fault("P2")
def test_a_processor_of_another_model_is_refused(tiny: Any, make: Any) -> None:
    guide = transformers.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, tiny("llama"))
    with pytest.raises(UnsupportedError, match="UnbatchedClassifierFreeGuidance"):
        make(tiny("llama")).start(PROMPTS[0], logits_processor=[guide])


NAN = math.nan
BAD: list[tuple[str, Any]] = [
    *(("temperature", value) for value in (-1.0, -1e-9, NAN, math.inf, "hot")),
    *(("top_p", value) for value in (0.0, -0.1, 1.0001, NAN)),
    *(("top_k", value) for value in (-1, VOCAB + 1, 2.5, True)),
    *(("min_p", value) for value in (-0.1, 1.1)),
    *(("typical_p", value) for value in (0.0, 1.5)),
    *(("top_h", value) for value in (0.0, 1.5)),
    *(("epsilon_cutoff", value) for value in (-0.1, 1.0)),
    *(("eta_cutoff", value) for value in (-0.1, 1.0)),
    *(("repetition_penalty", value) for value in (0.0, -1.0, NAN, math.inf)),
    *(("encoder_repetition_penalty", value) for value in (0.0, -1.0)),
    *(("no_repeat_ngram_size", value) for value in (-1, 1.5)),
    *(("encoder_no_repeat_ngram_size", value) for value in (-1, 1.5)),
    *(("max_new_tokens", value) for value in (-1, 1.5, "9", True)),
    *(("max_length", value) for value in (0, -5, 2.5)),
    *(("min_length", value) for value in (-1, 0.5)),
    *(("min_new_tokens", value) for value in (-1, 0.5)),
    *(("max_time", value) for value in (0.0, -1.0, NAN)),
    *(("num_return_sequences", value) for value in (0, -1, 1.5)),
    *(("do_sample", value) for value in ("yes", 1)),
    *(("stop_strings", value) for value in ("", [], ["a", ""], [3])),
    *(("seed", value) for value in (-1, 2**63, 0.5)),
]


@pytest.mark.fault("P3")
@pytest.mark.parametrize(("field", "value"), BAD)
def test_bad_values_are_refused_before_the_model_runs(
    tiny: Any, make: Any, counted: Any, field: str, value: Any
) -> None:
    assert len(BAD) >= 25
    decoder = make(tiny("llama"), "fixed:4")
    call = {"do_sample": True, "max_new_tokens": 4, field: value}
    doors: list[Callable[[], Any]] = [
        lambda: decoder.generate(torch.tensor([PROMPTS[0]]), **call),
        lambda: decoder.start(PROMPTS[0], **call),
    ]
    with counted(tiny("llama")) as rows:
        for door in doors:
            with pytest.raises(ArgumentError) as caught:
                door()
            assert caught.value.field == field
            said = str(caught.value)
            assert field in said
            assert repr(value) in said
            assert "expected" in said
    assert rows == []
    assert decoder.requests.pool.free == decoder.requests.pool.limit


@pytest.mark.fault("P3")
def test_bad_values_in_a_generation_config(tiny: Any, make: Any, counted: Any) -> None:
    options = GenerationConfig(do_sample=True, max_new_tokens=4)
    options.top_p = 1.5
    with counted(tiny("llama")) as rows, pytest.raises(ArgumentError, match=r"top_p=1\.5"):
        make(tiny("llama")).start(PROMPTS[0], generation_config=options)
    with pytest.raises(ArgumentError, match=r"temperature=0.*do_sample=False"):
        make(tiny("llama")).start(PROMPTS[0], do_sample=True, temperature=0.0)
    assert rows == []


PROMPT_FAULTS = {
    "empty list": ([], "at least one token"),
    "empty tensor": (torch.empty(1, 0, dtype=torch.long), "at least one token"),
    "negative id": ([5, -1, 6], "token ids lie in 0..96"),
    "id of the vocabulary size": ([5, VOCAB], "token ids lie in 0..96"),
    "longer than the context": ([5] * (CONTEXT + 1), "at most 256 fit"),
    "fractions": (torch.tensor([1.5, 2.5]), "whole numbers"),
    "two rows": (torch.ones(2, 3, dtype=torch.long), "one prompt"),
}


@pytest.mark.fault("P4")
@pytest.mark.parametrize("fault", PROMPT_FAULTS)
def test_bad_prompts_then_a_good_one(tiny: Any, make: Any, counted: Any, fault: str) -> None:
    ids, words = PROMPT_FAULTS[fault]
    decoder = make(tiny("llama"), "fixed:4")
    with counted(tiny("llama")) as rows:
        with pytest.raises(ArgumentError, match=words) as caught:
            decoder.start(ids, max_new_tokens=5)
        if fault not in ("fractions", "two rows", "empty list"):
            batch = ids if isinstance(ids, torch.Tensor) else torch.tensor([ids])
            with pytest.raises(ArgumentError, match=words):
                decoder.generate(batch, max_new_tokens=5)
    assert caught.value.field == "input_ids"
    assert rows == []
    decoder.check_integrity()
    wanted = by_transformers(tiny("llama"), PROMPTS[:1], 5)
    assert run(decoder, PROMPTS[0], max_new_tokens=5) == wanted[tuple(PROMPTS[0])][-5:]


@pytest.mark.fault("P4")
def test_one_bad_row_leaves_nothing_behind(tiny: Any, make: Any) -> None:
    decoder = make(tiny("llama"))
    with pytest.raises(ArgumentError, match="input_ids"):
        decoder.generate(torch.tensor([[5, 6], [7, VOCAB]]), max_new_tokens=4)
    assert decoder.requests.pool.free == decoder.requests.pool.limit
    decoder.check_integrity()


@pytest.mark.fault("P5")
def test_every_field_is_honoured_or_refused() -> None:
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert fields == HONOURED | NEUTRAL | set(REFUSED)
    assert not HONOURED & NEUTRAL
    assert not (HONOURED | NEUTRAL) & set(REFUSED)


SETTING: dict[str, Any] = {
    "num_beams": 2,
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "constraints": ["x"],
    "force_words_ids": [[5]],
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "low_memory": True,
    "guidance_scale": 1.5,
    "token_healing": True,
    "use_cache": False,
    "cache_implementation": "static",
    "cache_config": {"backend": "x"},
    "max_cache_len": 100,
    "prefill_chunk_size": 4,
    "output_attentions": True,
    "output_hidden_states": True,
    "is_assistant": True,
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 2,
    "use_mtp": True,
    "speculation_type": "x",
    "compile_config": {"mode": "x"},
    "continuous_batching_config": {"x": 1},
}
HIDDEN = {"assistant_early_exit", "compile_config"}


@pytest.mark.fault("P5")
@pytest.mark.parametrize("field", REFUSED)
def test_refused_fields_are_named_at_every_door(
    tiny: Any, make: Any, counted: Any, field: str
) -> None:
    """As an argument and inside a ``GenerationConfig``, whatever transformers does before."""
    model, decoder = tiny("llama"), make(tiny("llama"))
    ids = torch.tensor([PROMPTS[0]])
    options = GenerationConfig(max_new_tokens=4)
    setattr(options, field, SETTING[field])
    ways: list[dict[str, Any]] = [{field: SETTING[field]}, {"generation_config": options}]
    with counted(model) as rows:
        for way in ways:
            with pytest.raises(UnsupportedError, match=field):
                decoder.generate(ids, **way)
            with pytest.raises(UnsupportedError, match=field):
                decoder.start(PROMPTS[0], **way)
            with pytest.raises((UnsupportedError, ValueError, TypeError, AttributeError)):
                model.generate(ids, custom_generate=decoder, **way)
    assert rows == []


INPUTS: dict[str, Any] = {
    "assistant_model": object(),
    "assistant_tokenizer": object(),
    "inputs_embeds": torch.zeros(1, 2, 32),
    "negative_prompt_ids": torch.tensor([[5]]),
    "negative_prompt_attention_mask": torch.tensor([[1]]),
    "custom_generate": "user/repo",
    "synced_gpus": True,
}


@pytest.mark.fault("P5", "C2")
@pytest.mark.parametrize("name", REFUSED_INPUTS)
def test_refused_inputs_are_named(tiny: Any, make: Any, name: str) -> None:
    decoder = make(tiny("llama"))
    for door in (decoder.generate, decoder.start):
        with pytest.raises(UnsupportedError, match=name):
            door(torch.tensor([PROMPTS[0]]), max_new_tokens=4, **{name: INPUTS[name]})


@pytest.mark.fault("P5")
def test_inputs_that_would_be_ignored_are_refused(tiny: Any, make: Any) -> None:
    """A filled cache, foreign positions, and whatever else the model's forward would have read."""
    model = tiny("gpt2")
    past = model(torch.tensor([[5, 6]]), use_cache=True).past_key_values
    ids = torch.tensor([PROMPTS[6]])
    for name, value in {
        "past_key_values": past,
        "position_ids": torch.arange(ids.shape[1])[None] + 3,
        "token_type_ids": torch.ones_like(ids),
    }.items():
        for door in (make(model).generate, make(model).start):
            with pytest.raises(UnsupportedError, match=name):
                door(ids, max_new_tokens=4, **{name: value})
    with pytest.raises(ValueError, match="nonsense"):
        make(model).generate(ids, nonsense=3)


@pytest.mark.fault("N3")
def test_no_token_left(tiny: Any, make: Any) -> None:
    with make(tiny("llama")).start(PROMPTS[0], suppress_tokens=list(range(VOCAB))) as session:
        list(session)
        assert session.finish_reason == "error"
        assert isinstance(session.error, SamplingError)
