"""The target model: what it is, whether it can be served exactly, and one packed forward.

The only file that knows Hugging Face models. Legend: M rows of a packed forward, S pool slots, V
vocabulary, H hidden.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from adaptive_spec.attention import Grouped
from adaptive_spec.cache import SlotCache
from adaptive_spec.errors import UnsupportedError
from adaptive_spec.kernels.attach import TreeKernels, refusal
from adaptive_spec.packing import PackedBatch, visible
from adaptive_spec.types import Architecture
from adaptive_spec.uploading import upload

FULL, SLIDING = "full_attention", "sliding_attention"
_ALIBI = {"bloom", "mpt"}
_ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True, slots=True)
class Verified:
    """What one packed forward returns. Tensors are valid until the next forward."""

    logits: torch.Tensor
    """[M, V], or [1, V] of the last row where only that was asked for."""
    taps: Mapping[int, torch.Tensor]
    """Layer -> [M, H] hidden states after that layer."""


class Target:
    """A frozen Hugging Face causal language model behind packed forwards.

    Args:
        model: any ``PreTrainedModel`` with a causal language-model head, in eval mode.
        taps: layers whose hidden states every forward returns.
        kernels: let Triton kernels attend where they suit the model (``kernels.attach``).

    Raises:
        UnsupportedError: the model cannot be served exactly; the message says why.
    """

    def __init__(self, model: Any, taps: Sequence[int] = (), *, kernels: bool = True) -> None:
        refuse(model)
        self.model = model
        self.architecture = describe(model)
        self.device: torch.device = model.device
        self._layer_types: list[str] | None = _layer_types(model)
        self._kinds = sorted(set(self._layer_types or [_single_kind(model)]))
        self._window = next((w for w in self.architecture.windows if w is not None), None)
        self._additive = model.config._attn_implementation == "eager"
        self._grouped = Grouped(model)
        self.kernels: TreeKernels | None = None
        """What attends in place of masks; ``drop_kernels`` takes it away."""
        if kernels and refusal(model) is None:
            facts = self.architecture
            windows = {kind: self._window if kind == SLIDING else None for kind in self._kinds}
            found = TreeKernels(model, windows, facts.heads // facts.kv_heads)
            if found.applies:
                self.kernels, self.architecture = found, replace(facts, grouped=True)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._tapped: dict[int, torch.Tensor] | None = None  # filled by the hooks of a run
        self._hooks = [
            layers[layer].register_forward_hook(self._tap(layer))
            for layers in [decoder_layers(model)]
            for layer in _checked_taps(taps, len(layers))
        ]

    def close(self) -> None:
        """Remove the tap hooks from the model."""
        for hook in self._hooks:
            hook.remove()

    def drop_kernels(self) -> None:
        """Attend under masks from now on."""
        self.kernels = None
        self.architecture = describe(self.model)

    def _tap(self, layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._tapped is not None:
                hidden = output if isinstance(output, torch.Tensor) else output[0]
                self._tapped[layer] = hidden[0]

        return hook

    def prepare(self, cache: SlotCache, batch: PackedBatch) -> dict[str, Any]:
        """The arguments of one forward: ids, positions, masks, and the cache aimed at its slots."""
        high = cache.aim(batch.slots, self.device)
        return {
            "input_ids": upload(batch.tokens, self.device)[None],
            "position_ids": upload(batch.positions, self.device)[None],
            "attention_mask": self._masks(cache, batch, high),
            "past_key_values": cache,
            "use_cache": True,
        }

    @torch.no_grad()
    def run(self, inputs: dict[str, Any], *, last_only: bool = False) -> Verified:
        """The forward itself. Its rows are written to their slots and committed to nobody.

        Args:
            last_only: logits of the last row only (prefill needs no others).
        """
        options: dict[str, Any] = {"logits_to_keep": 1} if last_only and self._keeps else {}
        tapped: dict[int, torch.Tensor] = {}
        self._tapped = tapped
        try:
            with self.kernels() if self.kernels else self._grouped():
                logits = self.model(**inputs, **options).logits[0]
        finally:
            self._tapped = None
        return Verified(logits=logits[-1:] if last_only else logits, taps=tapped)

    def _masks(self, cache: SlotCache, batch: PackedBatch, high: int) -> Any:
        """A mask per layer type where the model takes a dict, else the one of its only type; the
        kernels' marks in their place where there are any."""
        pool = cache.pool
        if self.kernels is not None:
            self.kernels.lay(pool, batch)
            marks = self.kernels.marks
            return dict(marks) if self._layer_types else marks[self._kinds[0]]
        position = pool.position[:high].copy()
        position[batch.slots] = batch.positions[: len(batch.slots)]
        masks = {
            kind: self._device_mask(
                visible(
                    batch, pool.owner[:high], position, self._window if kind == SLIDING else None
                )
            )
            for kind in self._kinds
        }
        return masks if self._layer_types else masks[self._kinds[0]]

    def _device_mask(self, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> torch.Tensor:
        """[1, 1, M, S]: bool for sdpa; additive for eager, which would ignore a bool mask."""
        on = torch.from_numpy(mask)[None, None].to(self.device)
        if not self._additive:
            return on
        blocked = torch.finfo(self.model.dtype).min
        return torch.zeros(on.shape, dtype=self.model.dtype, device=self.device).masked_fill(
            ~on, blocked
        )


def describe(model: Any) -> Architecture:
    """The facts of ``model`` that its cost and its limits depend on."""
    config = model.config.get_text_config()
    types = _layer_types(model) or [_single_kind(model)] * config.num_hidden_layers
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


def is_out_of_memory(error: BaseException) -> bool:
    """True for the ways in which torch and Python report exhausted memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "alloc" in str(error) and "memory" in str(error)


def _rope_types(config: Any) -> set[str]:
    """Rotary scaling types, per layer type or for all layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {entry.get("rope_type", "default") for entry in [parameters, *nested]}


def _layer_types(model: Any) -> list[str] | None:
    """Layer types of models that take a dict of masks; None for those that take one tensor."""
    types = getattr(model.config.get_text_config(), "layer_types", None)
    return list(types) if types else None


def _single_kind(model: Any) -> str:
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


def _checked_taps(taps: Sequence[int], layers: int) -> list[int]:
    for tap in taps:
        if not 0 <= tap < layers:
            raise UnsupportedError(f"tap {tap} asked for, the target has layers 0 to {layers - 1}")
    return sorted(set(taps))
