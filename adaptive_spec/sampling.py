"""Keyed noise and the choice of one token.

The token at a position is ``argmax(score + g)`` with Gumbel noise ``g`` that is a fixed function
of (request seed, position, token id), which samples exactly from softmax(score) (Gumbel 1954;
Maddison et al. 2014). Speculative and plain decoding draw the same noise, so they emit the same
tokens; and the noise of a few candidate tokens can be had without that of the vocabulary.

The generator is SplitMix64 (Steele, Lea, Flood 2014) used as a counter-based generator: the token
id is the counter, seed and position make the starting state. Arithmetic is 64-bit and wraps.

Legend: V vocabulary, C some of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from adaptive_spec.errors import SamplingError, UnsupportedError
from adaptive_spec.types import Floats, Ints

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_A = 0xBF58476D1CE4E5B9
_MIX_B = 0x94D049BB133111EB
_WORD = (1 << 64) - 1

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(ids [1, T], scores [1, V]) -> scores [1, V], as in transformers."""


def _signed(word: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit word."""
    return word - (1 << 64) if word >= 1 << 63 else word


def _mix(word: int) -> int:
    """SplitMix64's finaliser on a Python integer."""
    word = (word ^ (word >> 30)) * _MIX_A & _WORD
    word = (word ^ (word >> 27)) * _MIX_B & _WORD
    return word ^ (word >> 31)


def _shift(words: torch.Tensor, by: int) -> torch.Tensor:
    """Logical right shift of int64 words."""
    return (words >> by) & ((1 << (64 - by)) - 1)


def derive_seed(seed: int, row: int) -> int:
    """Seed of row ``row`` of a call; row 0 keeps the call's own seed."""
    return seed if row == 0 else _mix((_mix(seed & _WORD) + row * _GOLDEN) & _WORD) >> 1


def gumbel(start: int | torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[...] float64 noise of int64 tokens, from states of ``KeyedNoise.start`` that broadcast."""
    words = (tokens + 1) * _signed(_GOLDEN) + start
    words = (words ^ _shift(words, 30)) * _signed(_MIX_A)
    words = (words ^ _shift(words, 27)) * _signed(_MIX_B)
    words = words ^ _shift(words, 31)
    # 52 bits and a half: one bit more would round up to 1, whose noise is infinite.
    uniform = (_shift(words, 12).double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))


class KeyedNoise:
    """Gumbel noise as a function of (seed, position, token)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._key = _mix((seed & _WORD) + _GOLDEN & _WORD)

    def start(self, position: int) -> int:
        """The generator's state at ``position``, as int64."""
        return _signed(_mix((self._key + (position + 1) * _GOLDEN) & _WORD))

    def tensor(self, position: int, tokens: torch.Tensor) -> torch.Tensor:
        """[C] float64 noise of the int64 ``tokens`` at ``position``, on their device."""
        return gumbel(self.start(position), tokens)

    def gumbel(self, position: int, tokens: Ints) -> Floats:
        """The same noise for host arrays, without torch: what coupled drafters read."""
        start = np.uint64(_mix((self._key + (position + 1) * _GOLDEN) & _WORD))
        words = (np.asarray(tokens).astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN) + start
        words = (words ^ (words >> np.uint64(30))) * np.uint64(_MIX_A)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(_MIX_B)
        words = words ^ (words >> np.uint64(31))
        uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        values: Floats = -np.log(-np.log(uniform))
        return values


@dataclass(frozen=True, slots=True)
class Sampler:
    """How one request turns the target's logits into tokens.

    ``noise`` is None at temperature 0; ``processor`` is None where logits are used as they are.
    """

    processor: Processor | None = None
    noise: KeyedNoise | None = None
    temperature: float = 0.0

    @property
    def is_argmax(self) -> bool:
        """True if the choice is the argmax of the raw logits."""
        return self.processor is None and self.noise is None

    def scores(self, logits_V: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
        """[V] float32 scores after the processors; ``prefix`` [1, T] ids before this position."""
        raw = logits_V.to(torch.float32, copy=True)[None]
        if self.processor is None:
            return raw[0]
        scores = self.processor(prefix, raw)
        if scores.shape != raw.shape:
            raise UnsupportedError(
                f"a logits processor answered {tuple(scores.shape)} to {tuple(raw.shape)}: "
                "processors are applied to single nodes and cannot hold scores of a whole batch"
            )
        return scores[0]

    def perturbed(self, scores_V: torch.Tensor, position: int) -> torch.Tensor:
        """[V] float64 scores plus noise: what the choice is the argmax of."""
        if self.noise is None:
            return scores_V.double()
        alive = torch.isfinite(scores_V).nonzero()[:, 0]
        noisy = torch.full_like(scores_V, -torch.inf, dtype=torch.float64)
        noisy[alive] = scores_V[alive].double() + self.noise.tensor(position, alive)
        return noisy

    def choose(self, scores_V: torch.Tensor, position: int) -> int:
        """The token for ``position``; the lowest id wins an exact tie.

        Raises:
            SamplingError: every token is masked, a score is NaN, or (when sampling) infinite.
        """
        best, token = scores_V.max(dim=-1)
        if bool(best.isneginf()):
            raise SamplingError(_MASKED.format(position=position))
        if bool(best.isnan()) or (self.noise is not None and bool(best.isposinf())):
            raise SamplingError(
                f"the logits processors give a score of {float(best)} ({position=})"
            )
        if self.noise is None:
            return int(token)
        alive = (scores_V > -torch.inf).nonzero()[:, 0]
        noisy = scores_V[alive].double() + self.noise.tensor(position, alive)
        return int(alive[noisy.argmax()])


_MASKED = (
    "the logits processors leave no token with a finite score at position {position}: "
    "at least one token must stay allowed"
)
