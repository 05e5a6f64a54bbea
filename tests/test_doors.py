"""The three doors give what transformers gives: values, types, streams, stops."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
import torch
import transformers
from oracle import PROMPTS, sampled
from transformers.generation.utils import GenerateDecoderOnlyOutput

from adaptive_spec.errors import ArgumentError, SessionError, UnsupportedError
from adaptive_spec.testing.tiny import VOCAB
from adaptive_spec.testing.yardsticks import run

BATCH = [PROMPTS[0], PROMPTS[7], PROMPTS[12], PROMPTS[5]]
IDS = torch.tensor([PROMPTS[9]])
GREEDY = {"max_new_tokens": 16, "do_sample": False}


def padded(prompts: list[list[int]], pad: int = 0) -> dict[str, torch.Tensor]:
    """Left-padded ids and their mask."""
    longest = max(map(len, prompts))
    rows = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
    seen = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(seen)}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Token ``i`` is the character ``chr(30 + i)``, from 3 to the end of the vocabulary."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{chr(30 + i): i for i in range(3, VOCAB)}}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(words, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")


@pytest.mark.fault("P5", "C7")
@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2", "mistral"])
def test_left_padded_batches(tiny: Any, make: Any, kind: str) -> None:
    """As transformers, and row by row as the unpadded prompt alone."""
    model, decoder, batch = tiny(kind), make(tiny(kind), "fixed:9"), padded(BATCH)
    out = decoder.generate(**batch, **GREEDY)
    assert torch.equal(out, model.generate(**batch, **GREEDY))
    for prompt, row in zip(BATCH, out.tolist(), strict=True):
        assert row[-16:] == run(decoder, prompt, **GREEDY)


@pytest.mark.fault("P5")
@pytest.mark.parametrize("end", [list(range(3, 30)), 40, [50, 51]])
def test_ends_and_padding_on_the_right(tiny: Any, make: Any, end: Any) -> None:
    batch = padded(BATCH)
    call = {**GREEDY, "eos_token_id": end, "pad_token_id": 1}
    wanted = tiny("llama").generate(**batch, **call)
    assert torch.equal(make(tiny("llama"), "fixed:9").generate(**batch, **call), wanted)
    without = {**call, "pad_token_id": None}  # the first end token pads instead
    wanted = tiny("llama").generate(**batch, **without)
    assert torch.equal(make(tiny("llama"), "fixed:9").generate(**batch, **without), wanted)


@pytest.mark.fault("P5")
def test_the_dict_form(tiny: Any, make: Any) -> None:
    """Scores and logits of every step are those of transformers; None where not asked for."""
    call = {**GREEDY, "return_dict_in_generate": True, "repetition_penalty": 1.4}
    batch = padded(BATCH[:2])
    for wants in ({}, {"output_scores": True}, {"output_scores": True, "output_logits": True}):
        theirs = tiny("llama").generate(**batch, **call, **wants)
        ours = make(tiny("llama"), "fixed:9").generate(**batch, **call, **wants)
        assert isinstance(ours, GenerateDecoderOnlyOutput)
        assert torch.equal(ours.sequences, theirs.sequences)
        for name in ("scores", "logits"):
            mine, wanted = getattr(ours, name), getattr(theirs, name)
            assert (mine is None) == (wanted is None) == (f"output_{name}" not in wants)
            for a, b in zip(mine or (), wanted or (), strict=True):
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    assert type(make(tiny("llama")).generate(IDS, **GREEDY)) is torch.Tensor


@pytest.mark.fault("P5")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_doors_agree(tiny: Any, make: Any, temperature: float) -> None:
    model, decoder = tiny("llama"), make(tiny("llama"), "fixed:9")
    call = {"max_new_tokens": 16, **sampled(temperature)}
    through = decoder.generate(IDS, **call)
    assert through[0].tolist() == PROMPTS[9] + run(decoder, PROMPTS[9], **call)
    assert torch.equal(through, model.generate(IDS, custom_generate=decoder, **call))
    assert torch.equal(through, model.generate(IDS, custom_generate=decoder.bind(), **call))
    assert torch.equal(through, decoder.generate(input_ids=IDS, **call))
    options = transformers.GenerationConfig(
        max_new_tokens=16, **{k: v for k, v in call.items() if k in ("do_sample", "temperature")}
    )
    seed = {"seed": call["seed"]} if "seed" in call else {}
    assert torch.equal(through, decoder.generate(IDS, generation_config=options, **seed))
    batch = padded(BATCH)
    rows = model.generate(**batch, custom_generate=decoder, num_return_sequences=1, **call)
    assert torch.equal(rows, decoder.generate(**batch, **call))


@pytest.mark.fault("P5")
def test_another_model_object_is_refused(tiny: Any, make: Any) -> None:
    with pytest.raises(UnsupportedError, match="another model"):
        tiny("qwen2").generate(IDS, custom_generate=make(tiny("llama")))
    with pytest.raises(SessionError, match="another decoder"):
        make(tiny("llama")).step([make(tiny("llama")).start(IDS)])


class Listener:
    """Writes down what a streamer is told."""

    def __init__(self) -> None:
        self.told: list[list[int]] = []
        self.ends = 0

    def put(self, value: torch.Tensor) -> None:
        self.told.append(value.reshape(-1).tolist())

    def end(self) -> None:
        self.ends += 1


@pytest.mark.fault("S6")
@pytest.mark.parametrize("count", [0, 1, 16])
def test_streamers_hear_the_prompt_each_token_and_the_end(tiny: Any, make: Any, count: int) -> None:
    """Also when nothing is generated: whoever reads the stream waits for its end."""
    decoder, heard = make(tiny("llama"), "fixed:9"), []
    call = {"max_new_tokens": count, "do_sample": False}
    for door in ("transformers", "generate", "start", "bind"):
        listener = Listener()
        if door == "generate":
            decoder.generate(IDS, streamer=listener, **call)
        elif door == "start":
            with decoder.start(IDS, streamer=listener, **call) as session:
                list(session)
        elif count and door == "transformers":
            tiny("llama").generate(IDS, streamer=listener, **call)
        elif count:
            bound = decoder.bind(streamer=listener)
            tiny("llama").generate(IDS, custom_generate=bound, **call)
        else:
            continue
        heard.append(listener.told)
        assert listener.ends == 1, door
        assert len(listener.told) == 1 + count
    assert all(told == heard[0] for told in heard)
    with pytest.raises(UnsupportedError, match="more than one row"):
        decoder.generate(torch.cat([IDS, IDS]), streamer=Listener(), **GREEDY)


@pytest.mark.fault("P5", "S3")
def test_stop_strings(tiny: Any, make: Any, tokenizer: Any) -> None:
    model, decoder = tiny("llama"), make(tiny("llama"), "fixed:9")
    plain = model.generate(IDS, **GREEDY)[0].tolist()
    stop = "".join(chr(30 + token) for token in plain[-7:-5])
    call = {**GREEDY, "stop_strings": [stop, "\n"]}
    wanted = model.generate(IDS, tokenizer=tokenizer, **call)
    assert wanted.shape[1] < len(plain)
    assert torch.equal(decoder.generate(IDS, tokenizer=tokenizer, **call), wanted)
    options = transformers.GenerationConfig(**call)
    assert torch.equal(
        decoder.generate(IDS, tokenizer=tokenizer, generation_config=options), wanted
    )
    bound = decoder.bind(tokenizer=tokenizer, stop_strings=stop)
    assert torch.equal(model.generate(IDS, custom_generate=bound, **GREEDY), wanted)
    with pytest.raises(ArgumentError, match="tokenizer"):
        decoder.generate(IDS, **call)


@pytest.mark.fault("P5", "S4")
@pytest.mark.parametrize("limit", [{"max_length": 8}, {"max_length": 19}, {"max_new_tokens": 3}])
def test_lengths(tiny: Any, make: Any, limit: dict[str, int]) -> None:
    ids, call = torch.tensor([PROMPTS[6]]), {"do_sample": False, **limit}
    wanted = tiny("llama").generate(ids, **call)
    assert torch.equal(make(tiny("llama"), "fixed:9").generate(ids, **call), wanted)
    no_op = {**call, "bos_token_id": 7, "early_stopping": True, "length_penalty": 0.5}
    assert torch.equal(make(tiny("llama"), "fixed:9").generate(ids, **no_op), wanted)


@pytest.mark.fault("P5")
def test_time_and_length_zero(tiny: Any, make: Any) -> None:
    """``max_time`` is checked after every token, so the first one is always there."""
    decoder = make(tiny("llama"), "fixed:9")
    for ids in (IDS, torch.cat([IDS, IDS])):
        short = {**GREEDY, "max_time": 1e-9}
        assert torch.equal(decoder.generate(ids, **short), tiny("llama").generate(ids, **short))
        assert torch.equal(decoder.generate(ids, max_new_tokens=0), ids)
    with decoder.start(IDS, **short) as session:
        assert len(session.step()) == 1
        assert session.finish_reason == "time"
