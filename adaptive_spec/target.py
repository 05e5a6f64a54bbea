"""The target model: what it is, whether it can be served exactly, and one packed forward.

It and ``model_facts`` alone know Hugging Face models. Legend: M rows of a packed forward, S pool
slots, V vocabulary, H hidden.
"""

from __future__ import annotations

import inspect
import warnings
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
from adaptive_spec.model_facts import (
    SLIDING,
    decoder_layers,
    describe,
    layer_types,
    refuse,
    single_kind,
)
from adaptive_spec.packing import PackedBatch, visible
from adaptive_spec.uploading import upload


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
        self._layer_types: list[str] | None = layer_types(model)
        self._kinds = sorted(set(self._layer_types or [single_kind(model)]))
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
        self._prepared: tuple[SlotCache, PackedBatch] | None = None
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
        self._prepared = cache, batch
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

        Where the kernels fail, for other reasons than memory, it is made again under masks.

        Args:
            inputs: what was prepared last.
            last_only: logits of the last row only (prefill needs no others).
        """
        try:
            return self._forward(inputs, last_only)
        except Exception as error:
            if not self._give_up(error) or self._prepared is None:
                raise
        return self._forward(self.prepare(*self._prepared), last_only)

    def verdict(self, logits: torch.Tensor) -> torch.Tensor | None:
        """What the kernels find in logits [M, V] (``TreeKernels.verdict``); None without them."""
        try:
            return None if self.kernels is None else self.kernels.verdict(logits)
        except Exception as error:
            if not self._give_up(error):
                raise
            return None

    def _give_up(self, error: Exception) -> bool:
        """True if the kernels may have failed, which are then used no more."""
        if self.kernels is None or is_out_of_memory(error):
            return False
        message = f"attention goes on under masks, its kernel failed: {error}"
        warnings.warn(message, stacklevel=3)
        self.drop_kernels()
        return True

    def _forward(self, inputs: dict[str, Any], last_only: bool) -> Verified:
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


def is_out_of_memory(error: BaseException) -> bool:
    """True for the ways in which torch, its libraries and Python report exhausted memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    words = str(error).lower()
    return (
        "out of memory" in words
        or "alloc_failed" in words
        or ("alloc" in words and "memory" in words)
    )


def _checked_taps(taps: Sequence[int], layers: int) -> list[int]:
    for tap in taps:
        if not 0 <= tap < layers:
            raise UnsupportedError(f"tap {tap} asked for, the target has layers 0 to {layers - 1}")
    return sorted(set(taps))
