"""Processors and parameters: applied per visited node as transformers applies them, or refused.

At temperature 0 the reference is ``model.generate``; when sampling it is plain decoding with the
same seed, and the processed scores of transformers for the first token.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from oracle import PROMPTS, by_transformers, oracle, sampled, spec
from transformers import WatermarkingConfig

from adaptive_spec.errors import SamplingError, UnsupportedError
from adaptive_spec.testing.drafters import ScriptedDrafter
from adaptive_spec.testing.tiny import VOCAB
from adaptive_spec.testing.yardsticks import run

EOS, NEW = 2, 16


def even_after_odd(row: int, ids: torch.Tensor) -> list[int]:
    """Allowed next tokens: they depend on the last token and on the row's index."""
    return [t for t in range(3, VOCAB) if (t + int(ids[-1]) + row) % 3]


# Every processor that changes greedy output. EOS is the end token where one is declared.
GREEDY: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.9},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[t] for t in range(3, 40)] + [[50, 60], [61, 62, 63]]},
    "sequence_bias": {"sequence_bias": [[[t], 2.5] for t in range(60, 90)]},
    "min_length": {"min_length": 12, "eos_token_id": list(range(3, 60))},
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": list(range(3, 60))},
    "suppress_tokens": {"suppress_tokens": list(range(3, 50))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(3, 95))},
    "forced_eos_token_id": {"forced_eos_token_id": EOS},
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
BATCH = [PROMPTS[0], PROMPTS[7], PROMPTS[12]]


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
        others = (make(model), make(model, "fixed:9")) if len(prompts) > 1 else ()
        for decoder in (scripted, *others):
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
        assert torch.equal(scripted.generate(**batch, **call), wanted)


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
def test_forced_first_token(tiny: Any, make: Any) -> None:
    """It is forced after prompts of one token only."""
    for prompt in ([5], [5, 6]):
        call = {"max_new_tokens": 8, "do_sample": False, "forced_bos_token_id": 9}
        wanted = tiny("llama").generate(torch.tensor([prompt]), **call)
        assert torch.equal(
            make(tiny("llama"), "fixed:9").generate(torch.tensor([prompt]), **call), wanted
        )
        assert (wanted[0, len(prompt)] == 9) == (len(prompt) == 1)


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


@pytest.mark.fault("N3")
def test_no_token_left(tiny: Any, make: Any) -> None:
    with make(tiny("llama")).start(PROMPTS[0], suppress_tokens=list(range(VOCAB))) as session:
        list(session)
        assert session.finish_reason == "error"
        assert isinstance(session.error, SamplingError)
