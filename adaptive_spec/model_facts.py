"""What is known of a Hugging Face model before it runs: its shapes, and whether it is served."""

from __future__ import annotations

from typing import Any

from torch import nn

from adaptive_spec.attention import Grouped
from adaptive_spec.errors import UnsupportedError
from adaptive_spec.types import Architecture

FULL, SLIDING = "full_attention", "sliding_attention"
_ALIBI = {"bloom", "mpt"}
_ATTENTION = ("sdpa", "eager")


def describe(model: Any) -> Architecture:
    """The facts of ``model`` that its cost and its limits depend on."""
    config = model.config.get_text_config()
    types = layer_types(model) or [single_kind(model)] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    heads = config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return Architecture(
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate=inner or 4 * config.hidden_size,
        vocab=model.get_output_embeddings().weight.shape[0],
        context_limit=config.max_position_embeddings,
        windows=tuple(window if kind == SLIDING else None for kind in types),
        experts=getattr(config, "num_experts", None)
        or getattr(config, "num_local_experts", 0)
        or 0,
        experts_per_token=getattr(config, "num_experts_per_tok", 0) or 0,
        tied_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        parameters=sum(weight.numel() for weight in model.parameters()),
        grouped=Grouped(model).applies,
    )


def refuse(model: Any) -> None:
    """Raise UnsupportedError for a model whose output packing would change, naming the reason."""
    config = model.config
    name = config.model_type
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(f"{name}: encoder-decoder models are not supported")
    if model.training:
        raise UnsupportedError(f"{name}: the model is in training mode; call model.eval() first")
    kinds = set(getattr(text, "layer_types", None) or ()) - {FULL, SLIDING}
    if kinds or getattr(model, "_is_stateful", False):
        found = ", ".join(sorted(kinds)) or "recurrent state"
        raise UnsupportedError(f"{name}: {found} cannot be addressed by slot")
    if name in _ALIBI or getattr(text, "alibi", False):
        raise UnsupportedError(f"{name}: ALiBi biases depend on slots, not on positions")
    if text.model_type == "gpt_neo" or getattr(text, "attention_chunk_size", None):
        raise UnsupportedError(f"{name}: attention masks made inside the model")
    for kind in _rope_types(text):
        if kind in ("dynamic", "longrope"):
            raise UnsupportedError(
                f"{name}: {kind!r} rotary scaling depends on the longest position of a forward"
            )
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise UnsupportedError(f"{name}: a model spread over several devices is not supported")
    if model.device.type == "mps":
        raise UnsupportedError(f"{name}: mps has no float64, which the keyed noise needs")
    attention = config._attn_implementation
    if attention not in _ATTENTION:
        raise UnsupportedError(
            f"{name}: attention {attention!r} takes no tree mask; load the model with "
            "attn_implementation='sdpa' or 'eager'"
        )


def _rope_types(config: Any) -> set[str]:
    """Rotary scaling types, per layer type or for all layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {entry.get("rope_type", "default") for entry in [parameters, *nested]}


def layer_types(model: Any) -> list[str] | None:
    """Layer types of models that take a dict of masks; None for those that take one tensor."""
    types = getattr(model.config.get_text_config(), "layer_types", None)
    return list(types) if types else None


def single_kind(model: Any) -> str:
    """Mask type of models that take one tensor: windowed as soon as the config has a window."""
    return SLIDING if getattr(model.config.get_text_config(), "sliding_window", None) else FULL


def decoder_layers(model: Any) -> nn.ModuleList:
    """The list of decoder layers, found by its length."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UnsupportedError(f"{model.config.model_type}: no list of {count} decoder layers found")


def head_facts(model: Any) -> dict[str, Any]:
    """What a draft head takes over from ``model``: shapes of its layers, rotary base, norms."""
    facts, config = describe(model), model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    plain = rope if "rope_theta" in rope else rope.get(FULL, {})
    scale = getattr(model.get_input_embeddings(), "embed_scale", 1.0)
    return {
        "hidden": facts.hidden,
        "vocab": facts.vocab,
        "heads": facts.heads,
        "kv_heads": facts.kv_heads,
        "head_dim": facts.head_dim,
        "intermediate": facts.intermediate,
        "rope_theta": float(plain.get("rope_theta", 10_000.0)),
        "norm_eps": float(getattr(config, "rms_norm_eps", 1e-5)),
        "embed_scale": float(scale),
    }
