"""What cannot be served exactly is refused by name: rows C2 and C3 of the fault table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adaptive_spec.errors import UnsupportedError
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import plain, run

PROMPT = [5, 6, 7, 8, 5, 6, 9, 10, 5, 6, 11, 12]


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
