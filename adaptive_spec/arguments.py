"""What callers may ask of ``generate``: every Hugging Face argument is honoured or refused by name.

Values are checked before the model runs. ``HONOURED``, ``NEUTRAL`` and ``REFUSED`` together cover
every field of ``GenerationConfig``; a test walks the class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

from adaptive_spec.errors import ArgumentError, UnsupportedError

HONOURED = frozenset(
    {
        "max_length",
        "max_new_tokens",
        "min_length",
        "min_new_tokens",
        "max_time",
        "stop_strings",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "top_h",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "repetition_penalty",
        "encoder_repetition_penalty",
        "no_repeat_ngram_size",
        "bad_words_ids",
        "renormalize_logits",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "sequence_bias",
        "watermarking_config",
        "num_return_sequences",
        "output_scores",
        "output_logits",
        "return_dict_in_generate",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "encoder_no_repeat_ngram_size",
    }
)
"""Fields with their usual meaning."""

NEUTRAL = frozenset(
    {
        "early_stopping",
        "length_penalty",
        "decoder_start_token_id",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "max_matching_ngram_size",
        "assistant_lookbehind",
        "target_lookbehind",
        "assistant_ensemble_weight",
        "disable_compile",
        "transformers_version",
    }
)
"""Fields that mean nothing outside beam search, assisted or encoder-decoder generation, here as in
transformers."""

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((1,), "beam search is not supported"),
    "num_beam_groups": ((1,), "beam search is not supported"),
    "diversity_penalty": ((0, 0.0), "beam search is not supported"),
    "constraints": ((), "constrained beam search is not supported"),
    "force_words_ids": ((), "constrained beam search is not supported"),
    "penalty_alpha": ((0, 0.0), "contrastive search is not supported"),
    "dola_layers": ((), "DoLa needs the logits of other layers"),
    "low_memory": ((False,), "contrastive search is not supported"),
    "guidance_scale": ((1, 1.0), "guidance runs the model on a second prompt of its own"),
    "token_healing": ((False,), "token healing rewrites the prompt"),
    "use_cache": ((True,), "decoding here is built on the cache"),
    "cache_implementation": (("dynamic",), "the slot cache is the only one"),
    "cache_config": ((), "the slot cache is set by the config's [cache] section"),
    "max_cache_len": ((), "the slot cache is set by the config's [cache] section"),
    "prefill_chunk_size": ((), "set cache.prefill_chunk in the config"),
    "output_attentions": ((False,), "attention maps of a tree forward are not those of plain"),
    "output_hidden_states": ((False,), "hidden states are not collected"),
    "is_assistant": ((False,), "this decoder is not an assistant"),
    "prompt_lookup_num_tokens": ((), "choose the drafter in the config instead"),
    "assistant_early_exit": ((), "choose the drafter in the config instead"),
    "use_mtp": ((False,), "choose the drafter in the config instead"),
    "speculation_type": ((), "choose the drafter in the config instead"),
    "compile_config": ((), "forwards of changing shapes are not compiled"),
    "continuous_batching_config": ((), "pack sessions with decoder.step([...]) instead"),
}
"""Field -> (values that do nothing and pass, why any other is refused). None always passes."""

REFUSED_INPUTS = {
    "assistant_model": "choose the drafter in the config instead",
    "assistant_tokenizer": "choose the drafter in the config instead",
    "inputs_embeds": "prompts are token ids",
    "negative_prompt_ids": "guidance runs the model on a second prompt of its own",
    "negative_prompt_attention_mask": "guidance runs the model on a second prompt of its own",
    "custom_generate": "this decoder is the custom generate",
    "synced_gpus": "requests are decoded on one device",
}
_PASSED_ON = {"attention_mask", "position_ids", "use_cache", "logits_to_keep", "past_key_values"}

Range = tuple[Callable[[Any], bool], str]


def _number(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Range:
    def inside(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            return False
        above = value > low if open_low else value >= low
        return above and (value < high if open_high else value <= high)

    left, right = "(" if open_low else "[", ")" if open_high else "]"
    return inside, f"a number in {left}{low:g}, {high:g}{right}"


def _whole(low: int, high: float = math.inf) -> Range:
    def inside(value: Any) -> bool:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        return whole and low <= value <= high

    bound = f"{low} or more" if high == math.inf else f"{low} to {high}"
    return inside, f"a whole number, {bound}"


_FLAG: Range = (lambda value: isinstance(value, bool), "True or False")


def _ranges(vocab: int) -> dict[str, Range]:
    positive = _number(0, math.inf, open_low=True, open_high=True)
    return {
        "do_sample": _FLAG,
        "max_length": _whole(1),
        "max_new_tokens": _whole(0),
        "min_length": _whole(0),
        "min_new_tokens": _whole(0),
        "max_time": positive,
        "top_k": _whole(0, vocab),
        "top_p": _number(0, 1, open_low=True),
        "min_p": _number(0, 1),
        "top_h": _number(0, 1, open_low=True),
        "typical_p": _number(0, 1, open_low=True),
        "epsilon_cutoff": _number(0, 1, open_high=True),
        "eta_cutoff": _number(0, 1, open_high=True),
        "repetition_penalty": positive,
        "encoder_repetition_penalty": positive,
        "no_repeat_ngram_size": _whole(0),
        "encoder_no_repeat_ngram_size": _whole(0),
        "num_return_sequences": _whole(1),
        "seed": _whole(0, 2**63 - 1),
    }


def check_values(values: Mapping[str, Any], vocab: int) -> None:
    """Raise ArgumentError for the first value that is out of range.

    Args:
        values: what the caller asked for; absent and None fields keep their defaults.
        vocab: vocabulary size, the bound of ``top_k``.
    """
    for field, (inside, allowed) in _ranges(vocab).items():
        value = values.get(field)
        if value is not None and not inside(value):
            raise ArgumentError(field, value, f"expected {allowed}")
    temperature = values.get("temperature")
    if temperature is not None:
        low, sampling = _number(0, math.inf, open_high=True), values.get("do_sample")
        if not low[0](temperature):
            raise ArgumentError("temperature", temperature, f"expected {low[1]}")
        if temperature == 0 and sampling:
            raise ArgumentError("temperature", 0, "sampling needs more than 0; use do_sample=False")
    stops = values.get("stop_strings")
    if stops is not None:
        listed = [stops] if isinstance(stops, str) else list(stops)
        if not listed or not all(isinstance(stop, str) and stop for stop in listed):
            raise ArgumentError("stop_strings", stops, "expected one or more non-empty strings")


def check_whole(field: str, value: Any, low: int, high: float = math.inf) -> None:
    """Raise ArgumentError unless ``value`` is a whole number from ``low`` to ``high``."""
    inside, allowed = _whole(low, high)
    if not inside(value):
        raise ArgumentError(field, value, f"expected {allowed}")


def check_supported(values: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for the first field of ``GenerationConfig`` that is refused."""
    for field, (neutral, why) in REFUSED.items():
        value = values.get(field)
        if value is None or any(value is n or value == n for n in neutral):
            continue
        raise UnsupportedError(f"{field}={value!r} is not supported: {why}")


def check_inputs(inputs: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for model inputs and arguments that would be dropped or ignored."""
    for name, value in inputs.items():
        if value is None or name in _PASSED_ON:
            continue
        if name in REFUSED_INPUTS:
            raise UnsupportedError(f"{name} is not supported: {REFUSED_INPUTS[name]}")
    past = inputs.get("past_key_values")
    if past is not None and (past.get_seq_length() > 0 or getattr(past, "_is_user_defined", False)):
        raise UnsupportedError(
            "past_key_values from elsewhere are not supported: start a session and extend() it"
        )


def check_model_inputs(inputs: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for prepared inputs that the model's own forward would have read."""
    check_inputs(inputs)
    for name, value in inputs.items():
        if value is not None and name not in _PASSED_ON:
            raise UnsupportedError(f"{name} is not supported: only token ids reach the model")
