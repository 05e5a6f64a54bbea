"""Attention of packed forwards on a CPU: grouped queries without copies of K and V.

Under a mask transformers copies K and V once per query head, over all slots, as soon as there is
more than one row. Queries of one group can as well be rows of one head: [heads, M, d] becomes
[kv_heads, group * M, d], the mask is repeated instead of K and V, and every row sees what it saw.
(transformers does the same where there is one row.) The function is registered under a name of its
own, and the model is pointed at it during our forwards only; what it does not know it hands on.

Legend: G query heads per key head, M rows, S slots, d head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "adaptive_spec_grouped"
SDPA = "sdpa"


def grouped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention under a mask [1, 1, M, S], or of one row that sees everything (there transformers
    asks torch to group, which a CPU does slowly); all else goes to transformers' own function.

    Args:
        query: [B, heads, M, d]; key, value: [B, kv_heads, S, d]. B is 1 under a mask.

    Returns:
        [B, M, heads, d], and None in place of weights.
    """
    heads, kv_heads, rows = query.shape[1], key.shape[1], query.shape[2]
    plain = (
        heads > kv_heads
        and options.get("position_bias") is None
        and options.get("softcap") is None
        and (
            rows == 1
            if attention_mask is None
            else rows > 1 and query.shape[0] == 1 and attention_mask.shape[:2] == (1, 1)
        )
    )
    if not plain:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **options
        )
        return found
    group, mask = heads // kv_heads, attention_mask
    folded = query.reshape(query.shape[0], kv_heads, group * rows, query.shape[3])
    if mask is not None:
        mask = mask.expand(1, group, rows, -1).reshape(1, 1, group * rows, -1)
    out = scaled_dot_product_attention(folded, key, value, mask, dropout, scale=scaling)
    return out.reshape(query.shape).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class Pointed:
    """Points a model at another attention function for the length of a forward.

    Args:
        name: of a registered function; None changes nothing.
    """

    def __init__(self, model: Any, name: str | None) -> None:
        configs = {
            id(part.config): part.config for part in model.modules() if hasattr(part, "config")
        }
        self._name = name
        self._configs = [
            config
            for config in configs.values()
            if name is not None
            and ALL_ATTENTION_FUNCTIONS[SDPA] is sdpa_attention_forward
            and getattr(config, "_attn_implementation", None) == SDPA
        ]

    @property
    def applies(self) -> bool:
        """The model attends by that function."""
        return bool(self._configs)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        for config in self._configs:
            config._attn_implementation = self._name
        try:
            yield
        finally:
            for config in self._configs:
                config._attn_implementation = SDPA


class Grouped(Pointed):
    """Points a model on a CPU at ``grouped_attention``; one elsewhere is left alone."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, NAME if model.device.type == "cpu" else None)
