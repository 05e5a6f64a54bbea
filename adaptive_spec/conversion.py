"""Turn a GGUF file into an ordinary Hugging Face folder: safetensors, tokenizer, chat template.

Stored as bfloat16, although dequantising gives float32: decoding in float32 and in bfloat16 must
start from the same weights, or their texts could not be compared. Rounding once, here, makes
float32 decoding an exact widening of the weights that bfloat16 decoding uses, and halves the file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from importlib import import_module
from pathlib import Path
from typing import Any

from adaptive_spec.errors import CatalogueError
from adaptive_spec.user_cache import Progress, silent

RECIPE = 1
"""Version of `convert`: raise it when the result changes, and every cache is converted anew."""

_BARS = threading.Lock()


def convert(
    gguf: Path, out: Path, context: int, split_digits: bool, progress: Progress = silent
) -> None:
    """Write the model in ``gguf`` as a Hugging Face folder into ``out``.

    Args:
        context: the longest sequence in tokens, which the tokenizer is told.
        split_digits: cut numbers into digits before merging. A GGUF says so in
            ``tokenizer.ggml.pre`` (``smollm``), which transformers does not read; without it,
            blanks before a digit are cut otherwise than in training.

    Raises:
        CatalogueError: a package is missing, or transformers cannot read the file.
    """
    stage = f"converting {gguf.name} (once)"
    progress(stage, 0.0)
    try:
        with without_bars():
            _convert(gguf, out, context, split_digits, lambda done: progress(stage, done))
    except (OSError, CatalogueError):  # the disk's own words say more than ours would
        raise
    except ImportError as error:
        raise CatalogueError(
            f"converting {gguf.name} needs a package that is missing ({error}); "
            "run `python -m pip install gguf accelerate` and try again"
        ) from error
    except Exception as error:  # transformers and safetensors raise what their parsers raise
        raise CatalogueError(
            f"{gguf.name} could not be converted: {type(error).__name__}: {error}; check that "
            "transformers is 5.20 or later, before 6, and that the disk is not full"
        ) from error


def _convert(
    gguf: Path, out: Path, context: int, split_digits: bool, done: Callable[[float], None]
) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if split_digits:
        digits = pre_tokenizers.Digits(individual_digits=True)
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    tokenizer.model_max_length = context
    # What is saved: padding for decoders, and nothing about where the GGUF was read from.
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side = "left"
    done(0.25)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # The GGUF's special tokens, and none of the defaults of whatever transformers is installed.
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    done(0.9)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    done(1.0)


@contextmanager
def without_bars(wanted: bool = True) -> Iterator[None]:
    """Keep transformers' progress bars off stderr: there is one display, the caller's."""
    if not wanted:
        yield
        return
    # The GGUF reader does not ask transformers' own switch, so the bars are off at their root; one
    # thread at a time, or the second would take the first one's patch for the original.
    bar: Any = import_module("tqdm.auto").tqdm
    with _BARS:
        original = bar.__init__
        bar.__init__ = partialmethod(original, disable=True)
        try:
            yield
        finally:
            bar.__init__ = original
