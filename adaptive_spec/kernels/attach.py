"""Where the kernels meet a transformers model: which models they suit, and how they get the layout.

The attention function is registered under a name of its own, and the model is pointed at it during
our forwards only (``attention.Pointed``). In place of a mask the model passes a mark through its
layers, one per kind of layer; the mark knows the layout of the present forward and the window. So a
model that makes a mask of its own, or slices ours, is found out by the self-check.

Legend: M rows, S slots, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from adaptive_spec.attention import SDPA, Pointed
from adaptive_spec.cache import SlotPool
from adaptive_spec.errors import UnsupportedError
from adaptive_spec.kernels.here import missing, on
from adaptive_spec.kernels.layout import Layout, Layouts
from adaptive_spec.packing import PackedBatch

NAME = "adaptive_spec_tree"
MOST_SIZE = 256
"""Largest head size: what a tile holds in registers."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_FOREIGN = ("position_bias", "softcap", "s_aux")
"""Options of an attention function that the kernel does not know."""


def refusal(model: Any) -> str | None:
    """Why the kernels are not used for ``model``; None if they are."""
    if lack := missing(model.device):
        return lack
    if model.config._attn_implementation != SDPA:
        return f"attention {model.config._attn_implementation!r} was asked for"
    text = model.config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None):
        return "scores of attention are capped"
    if model.dtype not in DTYPES:
        return f"no kernel for {str(model.dtype).removeprefix('torch.')}"
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return None if size <= MOST_SIZE else f"heads of {size} are too wide"


class Mark(torch.Tensor):
    """What stands for the mask of one kind of layers: [1, 1, 1, 1], never read, and NaN, so that
    whoever takes it for a mask shows no row too much in silence."""

    kernels: TreeKernels
    window: int | None


class TreeKernels:
    """The kernels of one target.

    Args:
        windows: of every kind of layers, by the kind's name; None where all is seen.
        group: query heads per key head.
    """

    def __init__(self, model: Any, windows: Mapping[str, int | None], group: int) -> None:
        self._layouts = Layouts(model.device, group)
        self._pointed = Pointed(model, NAME)
        self.layout: Layout | None = None
        """Of the present forward."""
        self.marks = {kind: self._mark(model, window) for kind, window in windows.items()}
        """By kind of layers, to be passed in place of masks."""

    def _mark(self, model: Any, window: int | None) -> Mark:
        mark: Mark = torch.full((1, 1, 1, 1), torch.nan, device=model.device).as_subclass(Mark)
        mark.kernels, mark.window = self, window
        return mark

    def lay(self, pool: SlotPool, batch: PackedBatch) -> None:
        """Make the layout of the next forward."""
        self.layout = self._layouts.lay(pool, batch)

    @property
    def applies(self) -> bool:
        """The model attends by the function that this one stands in for."""
        return self._pointed.applies

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Attend by the kernel."""
        with self._pointed():
            yield

    def verdict(self, logits: torch.Tensor) -> torch.Tensor:
        """[3, M] float64 on the device: largest logit of every row of [M, V], its token, and where
        the greedy walk comes to the row (``walk``): what the host needs, in one transfer."""
        from adaptive_spec.kernels.walk import peaks, walk

        layout = self.layout
        assert layout is not None
        with on(logits):
            peak, top = peaks(logits)
            order = walk(top, layout.rows[0], layout.rows[1], layout.starts, layout.widest)
        return torch.stack((peak.double(), top.double(), order.double()))


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """``tree_attention`` where the mask is a mark of ours; all else goes to transformers' own.

    Args:
        query: [1, heads, M, d]; key, value: [1, kv_heads, S, d].

    Returns:
        [1, M, heads, d], and None in place of weights.

    Raises:
        UnsupportedError: the model wants what the kernel does not do.
    """
    if not isinstance(attention_mask, Mark):
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **options
        )
        return found
    foreign = [name for name in _FOREIGN if options.get(name) is not None]
    if foreign or dropout:
        raise UnsupportedError(f"the attention kernel knows no {', '.join(foreign) or 'dropout'}")
    from adaptive_spec.kernels.tree_attention import tree_attention

    layout = attention_mask.kernels.layout
    assert layout is not None
    _check(query, key, value, layout.group)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = attention_mask.window
    with on(query):
        out = tree_attention(query[0], key[0], value[0], layout, scale=scale, window=window)
    return out[None], None


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: int) -> None:
    """What the kernel takes for granted; a config may say otherwise than the tensors."""
    found = query.shape[1] // key.shape[1]
    if found > group:  # fewer leave lanes idle, more leave rows unwritten
        raise UnsupportedError(
            f"the attention kernel: {found} query heads per key head, not {group}"
        )
    if not query.shape[-1] == key.shape[-1] == value.shape[-1]:
        raise UnsupportedError("the attention kernel: keys and values differ in size")
    if not query.dtype == key.dtype == value.dtype:
        raise UnsupportedError("the attention kernel: queries, keys and values differ in dtype")
    if not query.stride(-1) == key.stride(-1) == value.stride(-1) == 1:
        raise UnsupportedError(
            "the attention kernel: heads whose numbers are not next to each other"
        )


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
