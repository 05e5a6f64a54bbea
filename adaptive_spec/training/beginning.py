"""How a head begins: the target's last layers, and inputs of a size that suits them.

Copied layers go on as they were only if they meet what they know. So the fused context begins as
the state that enters them (the last tap, under the first copied norm), and slots begin at a share
of that state's size: embeddings are hundreds of times smaller, and what the anchor is would drown
in the first layer's output. What a corrector reads of a token begins with unit size. Without all
of that a warm start learns more slowly than none (docs/decisions.md).

Legend: n copied layers, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from adaptive_spec.heads.config import HeadConfig
from adaptive_spec.heads.head import Head
from adaptive_spec.model_facts import decoder_layers, head_facts
from adaptive_spec.training.settings import ShapeSection

SHARE = 0.1
"""Size of the slots' inputs, relative to the states that enter the copied layers."""
OTHER_TAPS = 0.1
"""How much of the usual random weights the fusing of all other taps begins with."""
MASKS = 0.3
"""Size of the mask vectors, relative to the anchor's embedding."""
STEEPEST = 8.0
"""Norms of two copied layers are converted into each other by at most this factor."""
PROBE = 64
"""Tokens of the forward that tells sizes."""


@torch.no_grad()
def fresh_head(model: Any, shape: ShapeSection, taps: tuple[int, ...]) -> Head:
    """A head for ``model``, with the weights of its last layers where it can have them."""
    layers = list(decoder_layers(model))
    own, facts = layers[-1].state_dict(), head_facts(model)
    copied = layers[-shape.layers :] if shape.warm_start and _are_alike(layers[-1]) else []
    ids = torch.randint(facts["vocab"], (1, PROBE), generator=torch.Generator().manual_seed(0))
    said = _size(model.get_input_embeddings().weight[ids[0]].float()) * facts["embed_scale"]
    wanted = SHARE * _entering(model, len(layers) - len(copied), ids) if copied else 1.0
    gain = _gain(wanted, said)
    config = HeadConfig(
        **{**facts, "embed_scale": facts["embed_scale"] * gain},
        qk_norm="self_attn.q_norm.weight" in own,
        bias="self_attn.q_proj.bias" in own,
        taps=taps,
        layers=shape.layers,
        block=shape.block,
        draft_vocab=shape.draft_vocab,
        injection=shape.injection,
        corrector=shape.corrector,
        rank=shape.rank,
    )
    count = shape.draft_vocab
    torch.manual_seed(0)
    head = Head(config, None if count is None else torch.arange(count))
    _inputs(head, gain * said or 1.0)
    if copied:
        _copy(head, copied, getattr(model.base_model, "norm", None))
        _context(head, len(layers) - len(copied) - 1)
    return head


def _copy(head: Head, layers: Sequence[Any], norm: Any) -> None:
    """Take over what fits of ``layers`` of the target and of its final norm."""
    own = head.state_dict()
    for place, layer in enumerate(layers):
        for name, weight in layer.state_dict().items():
            mine = own.get(f"layers.{place}.{name}")
            if mine is not None and mine.shape == weight.shape:
                mine.copy_(weight.float())
    if norm is not None and own["norm.weight"].shape == norm.weight.shape:
        own["norm.weight"].copy_(norm.weight.float())


def _context(head: Head, before: int) -> None:
    """Let keys and values of the context begin as those that the copied layers made.

    A layer of the target normed what it made them of; here all layers share ``hidden_norm``. So all
    take the first one's norm, and the maps of the others the ratio of their own to it.

    Args:
        before: layer of the target whose output entered the first copied one; the nearest tap
            stands for it.
    """
    size, layers, taps = head.config.hidden, list[Any](head.layers), head.config.taps
    place = min(range(len(taps)), key=lambda i: abs(taps[i] - before))
    head.fc.weight.mul_(OTHER_TAPS)
    head.fc.weight[:, place * size : (place + 1) * size] += torch.eye(size)
    first = layers[0].input_layernorm.weight
    head.hidden_norm.weight.copy_(first)
    for layer in layers[1:]:
        ratio = layer.input_layernorm.weight / first
        ratio = torch.nan_to_num(ratio, nan=1.0).clamp(-STEEPEST, STEEPEST)
        layer.input_layernorm.weight.copy_(first)
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(layer.self_attn, name).weight.mul_(ratio)


def _inputs(head: Head, size: float) -> None:
    """Bring what slots and corrector start from to the size of the scaled embeddings."""
    if head.masks is not None:
        head.masks.mul_(MASKS * size / max(_size(head.masks), 1e-9))
    if head.inject is not None:
        head.inject.weight.mul_(size)
    if isinstance(inward := getattr(head.corrector, "inward", None), nn.Linear):
        inward.weight.div_(size)


def _entering(model: Any, layer: int, ids: torch.Tensor) -> float:
    """Size of the states that enter a layer, in the middle one of some tokens."""
    states = model(input_ids=ids, output_hidden_states=True).hidden_states[layer]
    rows = states[0, 1:].float()  # the first token's may be extreme
    return float(rows.pow(2).mean(dim=-1).sqrt().median())


def _size(values: torch.Tensor) -> float:
    """Root mean square."""
    return float(values.pow(2).mean().sqrt()) if values.numel() else 0.0


def _gain(wanted: float, said: float) -> float:
    """What brings embeddings to a size: a power of two, so that another machine's rounding does not
    make another head of it; 1 for a model whose sizes say nothing."""
    ratio = wanted / said if said > 0 else 0.0
    return 2.0 ** math.floor(math.log2(ratio)) if 0 < ratio < math.inf else 1.0


def _are_alike(layer: Any) -> bool:
    """A layer of the target is built like a head's: the same maps, two norms, which do the same."""
    names = layer.state_dict().keys()
    maps = {f"self_attn.{name}_proj.weight" for name in "qkvo"}
    norms = {"input_layernorm.weight", "post_attention_layernorm.weight"}
    if not maps | norms <= names or "pre_feedforward_layernorm.weight" in names:
        return False
    norm = layer.input_layernorm
    ones = torch.ones(1, 1, len(norm.weight), dtype=norm.weight.dtype)  # their mean square is one
    return torch.allclose(norm(ones)[0, 0].float(), norm.weight.float(), rtol=0.02, atol=0.02)
