"""The layers of a head: attention of a few slots over a long context, and a gated MLP.

Keys and values of the context come from fused hidden states of the target and are computed once,
when a token is verified; those of the slots are computed in every draft. Parameter names follow
the field's checkpoints (``self_attn.q_proj``, ``mlp.gate_proj``, ...), so public heads load as they
are.

Legend: B sequences (1 when drafting), M slots of all blocks of a sequence, T context tokens, S keys
of a forward (context and slots), H hidden, d head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from adaptive_spec.heads.config import HeadConfig

Extend = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of the slots [B, kv_heads, M, d] -> of context and slots [B, kv_heads, S, d]."""


class RMSNorm(nn.Module):
    """Root mean square norm, in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return (self.weight * (wide * self.scale(wide))).to(x.dtype)

    def scale(self, wide: torch.Tensor) -> torch.Tensor:
        """[..., H] float32 -> [..., 1] the inverse of its root mean square."""
        return torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)


def rotation(
    positions: torch.Tensor, config: HeadConfig, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [B, 1, M, d] of rotary position embeddings (Su et al. 2021).

    With ``rope_scaling`` as Llama 3.1 does: what turns fewer times than the low factor within the
    original context is slowed by the factor, what turns more often than the high one is not.
    """
    steps = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32)
    frequency = config.rope_theta ** (-steps / config.head_dim)
    if config.rope_scaling is not None:
        factor, low, high, context = config.rope_scaling
        turns = context * frequency / (2.0 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        frequency = frequency * (kept + (1.0 - kept) / factor)
    angle = positions[..., None].float() * frequency
    angle = torch.cat([angle, angle], dim=-1)[:, None]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply ``rotation`` to [B, heads, M, d]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class Attention(nn.Module):
    """Queries from the slots; keys and values from the context and from the slots."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        size, wide, narrow = config.hidden, config.heads, config.kv_heads
        self.q_proj = nn.Linear(size, wide * config.head_dim, bias=config.bias)
        self.k_proj = nn.Linear(size, narrow * config.head_dim, bias=config.bias)
        self.v_proj = nn.Linear(size, narrow * config.head_dim, bias=config.bias)
        self.o_proj = nn.Linear(wide * config.head_dim, size, bias=False)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def keys_values(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, kv_heads, T, d] of hidden states [B, T, H]."""
        keys = self._split(self.k_proj(x), self.kv_heads)
        if self.k_norm is not None:
            keys = self.k_norm(keys)
        return rotate(keys, cos, sin), self._split(self.v_proj(x), self.kv_heads)

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        extend: Extend,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """[B, M, H] -> [B, M, H]; ``mask`` [B, 1, M, S] is True where a slot may look.

        Queries of a group are rows of one head: torch groups slowly on a CPU (see ``attention``).
        """
        queries = self._split(self.q_proj(x), self.heads)
        if self.q_norm is not None:
            queries = self.q_norm(queries)
        queries = rotate(queries, cos, sin)
        keys, values = extend(*self.keys_values(x, cos, sin))
        rows = (len(x), self.kv_heads, -1, self.head_dim)
        mask = mask.repeat(1, 1, self.heads // self.kv_heads, 1)
        seen = nn.functional.scaled_dot_product_attention(
            queries.reshape(rows), keys, values, attn_mask=mask
        )
        out: torch.Tensor = self.o_proj(seen.reshape(queries.shape).transpose(1, 2).flatten(2))
        return out

    def _split(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.view(*x.shape[:2], heads, self.head_dim).transpose(1, 2)


class GatedMLP(nn.Module):
    """SiLU-gated feed-forward network (Shazeer 2020)."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.down_proj = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        out: torch.Tensor = self.down_proj(inner)
        return out


class HeadLayer(nn.Module):
    """Pre-norm attention and MLP with residuals."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = GatedMLP(config)

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        extend: Extend,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, extend, mask)
        out: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out
