"""Bad values, bad prompts and unsupported arguments: refused by name, before the model runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import PROMPTS, by_transformers
from test_processors import GREEDY, WARPERS
from transformers import GenerationConfig

from adaptive_spec.arguments import HONOURED, NEUTRAL, REFUSED, REFUSED_INPUTS
from adaptive_spec.errors import ArgumentError, UnsupportedError
from adaptive_spec.testing.tiny import CONTEXT, VOCAB
from adaptive_spec.testing.yardsticks import run

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


REWRITTEN = {"max_new_tokens": "max_length", "min_new_tokens": "min_length"}
"""What transformers makes one number of before a ``custom_generate`` is called."""


@pytest.mark.fault("P3")
@pytest.mark.parametrize(("field", "value"), BAD)
def test_bad_values_are_refused_as_custom_generate(
    tiny: Any, make: Any, counted: Any, field: str, value: Any
) -> None:
    """By us, or by transformers itself, which looks at some of them first."""
    limit = {} if field == "max_length" else {"max_new_tokens": 4}
    call = {"do_sample": True, **limit, field: value}
    ids, decoder = torch.tensor([PROMPTS[0]]), make(tiny("llama"))
    with counted(tiny("llama")) as rows, pytest.raises((ValueError, TypeError)) as caught:
        tiny("llama").generate(ids, custom_generate=decoder, **call)
    assert rows == []
    if isinstance(caught.value, ArgumentError):
        assert caught.value.field in (field, REWRITTEN.get(field))


@pytest.mark.fault("P3")
def test_a_large_top_k_is_clamped_only_where_it_is_the_models_own(
    tiny: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, decoder = tiny("llama"), make(tiny("llama"), "fixed:4")
    ids, call = torch.tensor([PROMPTS[0]]), {"do_sample": True, "max_new_tokens": 8}
    options = GenerationConfig(**call, top_k=VOCAB + 1)
    for way in ({**call, "top_k": VOCAB + 1}, {"generation_config": options}):
        with pytest.raises(ArgumentError, match=rf"top_k={VOCAB + 1} .*0 to {VOCAB}"):
            model.generate(ids, custom_generate=decoder, **way)
    every = model.generate(ids, custom_generate=decoder, seed=5, top_k=VOCAB, **call)
    monkeypatch.setattr(model.generation_config, "top_k", VOCAB + 1)
    for text in (
        model.generate(ids, custom_generate=decoder, seed=5, **call),
        decoder.generate(ids, seed=5, **call),
    ):
        assert torch.equal(text, every)
    small = tiny("llama", vocab_size=40)  # fewer than the 50 that transformers keeps by default
    ids = ids.clamp(max=39)
    assert small.generate(ids, custom_generate=make(small), **call).shape == every.shape
    with pytest.raises(ArgumentError, match=r"top_k=41 .*0 to 40"):
        small.generate(ids, custom_generate=make(small), **call, top_k=41)


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


ELSEWHERE = {
    *("do_sample", "forced_bos_token_id", "max_length", "max_new_tokens", "max_time"),
    *("stop_strings", "num_return_sequences", "output_scores", "output_logits"),
    *("return_dict_in_generate", "pad_token_id", "bos_token_id", "eos_token_id"),
}
"""Honoured fields with a test of their own, most of them in ``test_doors.py``."""


@pytest.mark.fault("P5")
def test_every_field_is_honoured_or_refused() -> None:
    assert {*GREEDY, *WARPERS, *ELSEWHERE} - {"prefix_allowed_tokens_fn"} == HONOURED
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert fields == HONOURED | NEUTRAL | set(REFUSED)
    assert not HONOURED & NEUTRAL
    assert not (HONOURED | NEUTRAL) & set(REFUSED)


WITHOUT_EFFECT: dict[str, Any] = {
    "early_stopping": True,
    "length_penalty": 0.5,
    "decoder_start_token_id": 7,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.9,
    "max_matching_ngram_size": 3,
    "assistant_lookbehind": 3,
    "target_lookbehind": 3,
    "assistant_ensemble_weight": 0.7,
    "disable_compile": True,
    "transformers_version": "4.0.0",
}


@pytest.mark.fault("P5")
@pytest.mark.parametrize("field", [*sorted(NEUTRAL), "repetition_penalty"])
def test_neutral_fields_change_nothing_there_or_here(tiny: Any, make: Any, field: str) -> None:
    """``repetition_penalty``, which is not neutral, is the negative control."""
    model, decoder = tiny("llama"), make(tiny("llama"), "fixed:9")
    ids, call = torch.tensor([PROMPTS[9]]), {"max_new_tokens": 24, "do_sample": False}
    without = model.generate(ids, **call)
    value = {**WITHOUT_EFFECT, "repetition_penalty": 1.5}[field]
    assert getattr(GenerationConfig(), field) != value
    options = GenerationConfig(**call)
    setattr(options, field, value)
    for way in ({**call, field: value}, {"generation_config": options}):
        theirs, ours = model.generate(ids, **way), decoder.generate(ids, **way)
        assert torch.equal(ours, theirs)
        assert torch.equal(theirs, without) == (field in NEUTRAL)


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
EARLIER = {"token_healing": "token healing", "compile_config": "compile_config"}
"""What transformers itself refuses, with a ValueError, before it calls a ``custom_generate``."""


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
            error = ValueError if field in EARLIER else UnsupportedError
            with pytest.raises(error, match=EARLIER.get(field, field)):
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
