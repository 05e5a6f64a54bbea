"""What a head is: the numbers that its weights depend on, and the target that it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from adaptive_spec.errors import HeadError
from adaptive_spec.types import Architecture

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = "adaptive-spec-head"
VERSION = 1
_MOST = {
    "hidden": 1 << 17,
    "vocab": 1 << 22,
    "layers": 64,
    "heads": 1024,
    "kv_heads": 1024,
    "head_dim": 4096,
    "intermediate": 1 << 20,
    "rank": 1 << 14,
}
"""Largest whole numbers that a config may ask for."""
CORRECTORS = ("none", "low_rank", "markov", "recurrent_bias", "gated", "recurrent")


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """Shape of a causal-parallel head (design, section 8).

    Raises:
        HeadError: a value out of range; the message names the field.
    """

    hidden: int
    """Of the target: the head lives in its hidden space."""
    vocab: int
    """Of the target."""
    taps: tuple[int, ...]
    """Target layers whose outputs are fused."""
    layers: int = 2
    heads: int = 8
    kv_heads: int = 8
    head_dim: int = 64
    intermediate: int = 1536
    block: int = 8
    """Slots: the anchor and ``block - 1`` masks."""
    draft_vocab: int | None = None
    """Tokens that can be drafted; None for all."""
    causal: bool = True
    """Slots see earlier slots only; else all slots of their block."""
    ahead: bool = True
    """Slot j guesses the token after its position (anchor included); else the token at it."""
    injection: bool = True
    """The fused state before the anchor is added to every slot."""
    own_masks: bool = True
    """A vector per mask slot; else the target's embedding of ``mask_token``."""
    mask_token: int | None = None
    qk_norm: bool = False
    bias: bool = False
    """Of the query, key and value projections."""
    rope_theta: float = 10_000.0
    rope_scaling: tuple[float, ...] | None = None
    """Of Llama 3's rotary embeddings: factor, low and high frequency factors, original context."""
    norm_eps: float = 1e-5
    embed_scale: float = 1.0
    """The target's embeddings are multiplied by this (Gemma: the root of ``hidden``)."""
    corrector: str = "none"
    rank: int = 128
    """Width of the corrector."""
    token_bias: bool = False
    """A bias per draft token, learned while serving."""

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            _whole(name, getattr(self, name), 1, most)
        _whole("block", self.block, 1 if self.ahead else 2, 256)
        if self.draft_vocab is not None:
            _whole("draft_vocab", self.draft_vocab, 1, self.vocab)
        if not self.taps or any(not isinstance(tap, int) or tap < 0 for tap in self.taps):
            raise HeadError("taps", list(self.taps), "layers of the target, 0 or more each")
        if self.heads % self.kv_heads:
            raise HeadError("kv_heads", self.kv_heads, f"a divisor of heads={self.heads}")
        if self.head_dim % 2:
            raise HeadError("head_dim", self.head_dim, "an even number")
        if self.corrector not in CORRECTORS:
            raise HeadError("corrector", self.corrector, f"one of {', '.join(CORRECTORS)}")
        if not self.own_masks or self.mask_token is not None:
            _whole("mask_token", self.mask_token, 0, self.vocab - 1)
        for name in ("rope_theta", "norm_eps", "embed_scale"):
            if not getattr(self, name) > 0:
                raise HeadError(name, getattr(self, name), "above 0")
        if (scaling := self.rope_scaling) is not None and not (
            len(scaling) == 4 and min(scaling) > 0 and scaling[1] < scaling[2]
        ):
            raise HeadError("rope_scaling", scaling, "four numbers above 0, low before high")

    @property
    def depth(self) -> int:
        """Levels that one forward drafts."""
        return self.block if self.ahead else self.block - 1

    @property
    def shape(self) -> HeadConfig:
        """Without what is found out when a head is made: the scale of its embeddings."""
        return replace(self, embed_scale=1.0)

    def as_dict(self) -> dict[str, Any]:
        scaling = None if self.rope_scaling is None else list(self.rope_scaling)
        return {**asdict(self), "taps": list(self.taps), "rope_scaling": scaling}

    @staticmethod
    def read(values: Mapping[str, Any]) -> HeadConfig:
        """From plain JSON values.

        Raises:
            HeadError: a field is unknown, missing, of the wrong type or out of range.
        """
        known = {field.name: field for field in fields(HeadConfig)}
        for name in values:
            if name not in known:
                raise HeadError(name, values[name], "no such field")
        for name in ("hidden", "vocab", "taps"):
            if name not in values:
                raise HeadError(name, None, "it is missing")
        given = dict(values)
        if not isinstance(given["taps"], (list, tuple)):
            raise HeadError("taps", given["taps"], "a list of layers")
        given["taps"] = tuple(given["taps"])
        for name in ("causal", "ahead", "injection", "own_masks", "qk_norm", "bias", "token_bias"):
            if name in given and not isinstance(given[name], bool):
                raise HeadError(name, given[name], "true or false")
        for name in ("rope_theta", "norm_eps", "embed_scale"):
            if name in given and not _is_number(given[name]):
                raise HeadError(name, given[name], "a number")
        if (scaling := given.get("rope_scaling")) is not None:
            if not isinstance(scaling, (list, tuple)) or not all(map(_is_number, scaling)):
                raise HeadError("rope_scaling", scaling, "a list of numbers")
            given["rope_scaling"] = tuple(map(float, scaling))
        return HeadConfig(**given)


def read_config(folder: str | Path) -> dict[str, Any]:
    """``config.json`` of a folder.

    Raises:
        HeadError: it is missing or no JSON object.
    """
    path = Path(folder) / CONFIG
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise HeadError(CONFIG, str(folder), f"cannot be read: {error}") from None
    if not isinstance(about, dict):
        raise HeadError(CONFIG, type(about).__name__, "a JSON object")
    return about


def target_facts(facts: Architecture) -> dict[str, Any]:
    """What a head's target must be: the fields that a head is compared with when it is loaded."""
    return {
        "model_type": facts.model_type,
        "layers": facts.layers,
        "hidden": facts.hidden,
        "vocab": facts.vocab,
    }


def check_target(expected: Mapping[str, Any], facts: Architecture) -> None:
    """Raise HeadError unless the head was made for a target like this (row M2).

    The weights of the target are compared by ``digest`` where the head knows it.
    """
    for name, found in target_facts(facts).items():
        if name in expected and expected[name] != found:
            allowed = f"the head was made for {expected[name]!r}, this target has {found!r}"
            raise HeadError(f"target.{name}", found, allowed)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(name: str, value: object, least: int, most: int | None = None) -> None:
    sound = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not sound or (most is not None and isinstance(value, int) and value > most):
        span = f"{least} or more" if most is None else f"{least} to {most}"
        raise HeadError(name, value, f"a whole number, {span}")
