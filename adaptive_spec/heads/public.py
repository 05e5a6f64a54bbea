"""Heads that others have published: JetSpec, DFlash and DSpark checkpoints (anchors, section 4).

They share names of tensors; what tells them apart stands in ``config.json``. JetSpec and DFlash
differ in one flag (``dflash_config.causal_head``): who sees whom among the slots. DSpark adds a
Markov head. Their slots guess the token at their own position, their masks are a token's embedding,
and their context is not injected. EAGLE-3 drafts token by token with another architecture and is
refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adaptive_spec.errors import HeadError
from adaptive_spec.heads.config import FORMAT, WEIGHTS, HeadConfig, read_config
from adaptive_spec.heads.store import Stored, build, load_head, read_weights

_MARKOV = {
    "markov_head.markov_w1.weight": "corrector.inward.weight",
    "markov_head.markov_w2.weight": "corrector.outward",
}
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_EAGLE = "EAGLE-3 is not supported: it drafts token by token"
_UNUSED = ("confidence_head.", "rotary_emb.", "embed_tokens.", "lm_head.")
"""Tensors that are not needed to draft: estimates of our own, and what the target lends."""


def load_any(folder: str | Path, dtype: torch.dtype = torch.float32) -> Stored:
    """A head in our own format or a public one.

    Raises:
        HeadError: it cannot be read, or is of a kind that is refused; the message says which.
    """
    about = read_config(folder)
    if about.get("format") == FORMAT:
        return load_head(folder, dtype)
    named = "eagle" in str(about.get("architectures", "")).lower()
    if named or ("draft_vocab_size" in about and "dflash_config" not in about):
        raise HeadError("architectures", about.get("architectures"), _EAGLE)  # before its weights
    weights = read_weights(Path(folder) / WEIGHTS)
    if any(name.startswith("midlayer.") for name in weights) or "d2t" in weights:
        raise HeadError("architecture", "EAGLE-3", _EAGLE)
    if "speculators_config" in about:
        raise HeadError("speculators_config", "speculators", "not supported: convert to DFlash")
    return _dflash(weights, about, dtype)


def _dflash(
    given: Mapping[str, torch.Tensor], about: Mapping[str, Any], dtype: torch.dtype
) -> Stored:
    weights = {
        _MARKOV.get(name, name): value
        for name, value in given.items()
        if not name.startswith(_UNUSED)
    }
    head = build(_shape(about, weights), weights)
    target = {"hidden": head.config.hidden, "vocab": head.config.vocab}
    return Stored(head.to(dtype).eval(), target, {})


def _shape(about: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> HeadConfig:
    """Our config of their config; what theirs leaves out follows from the weights."""
    nested = about.get("dflash_config")
    inner = nested if isinstance(nested, Mapping) else {}

    def wanted(name: str) -> Any:
        found = inner.get(name, about.get(name))
        if found is None:
            raise HeadError(name, None, "it is missing")
        return found

    layers = {name.split(".")[1] for name in weights if name.startswith("layers.")}
    markov = weights.get("corrector.inward.weight")
    if markov is not None and markov.dim() != 2:
        raise HeadError("markov_head.markov_w1.weight", tuple(markov.shape), "two dimensions")
    rope = about.get("rope_parameters")
    rope = rope if isinstance(rope, Mapping) else {}
    theta = rope.get("rope_theta", about.get("rope_theta"))
    _refuse(about)
    heads, hidden = wanted("num_attention_heads"), wanted("hidden_size")
    for name, value in (("num_attention_heads", heads), ("hidden_size", hidden)):
        if not isinstance(value, int) or value < 1:
            raise HeadError(name, value, "a whole number, 1 or more")
    return HeadConfig.read(
        {
            "hidden": hidden,
            "vocab": wanted("vocab_size"),
            "taps": wanted("target_layer_ids"),
            "layers": len(layers),
            "heads": heads,
            "kv_heads": heads if (kv := about.get("num_key_value_heads")) is None else kv,
            "head_dim": about.get("head_dim") or hidden // heads,
            "intermediate": wanted("intermediate_size"),
            "block": wanted("block_size"),
            "causal": inner.get("causal_head", about.get("causal_head", False)),
            "ahead": False,
            "injection": False,
            "own_masks": False,
            "mask_token": wanted("mask_token_id"),
            "qk_norm": "layers.0.self_attn.q_norm.weight" in weights,
            "bias": "layers.0.self_attn.q_proj.bias" in weights,
            "rope_theta": theta if theta is not None else 10_000.0,
            "rope_scaling": _scaling(about.get("rope_scaling") or rope),
            "norm_eps": about.get("rms_norm_eps", 1e-6),
            "corrector": "none" if markov is None else "markov",
            "rank": 1 if markov is None else markov.shape[1],
        }
    )


def _scaling(rope: object) -> list[Any] | None:
    """The four numbers of Llama 3's rotary embeddings; None if they are plain.

    Raises:
        HeadError: they are of another kind.
    """
    known = rope if isinstance(rope, Mapping) else {"rope_type": rope}
    kind = known.get("rope_type", known.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise HeadError("rope_scaling", kind, "only llama3 is supported")
    return [known.get(name) for name in _LLAMA3]


def _refuse(about: Mapping[str, Any]) -> None:
    """Raise HeadError for what would be drafted wrongly without a word."""
    types = about.get("layer_types") or []
    if not isinstance(types, list) or any(one != "full_attention" for one in types):
        raise HeadError("layer_types", types, "only full_attention")
    if about.get("use_sliding_window") and not types:
        raise HeadError("use_sliding_window", True, "only full attention")
