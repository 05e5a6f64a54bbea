"""Blocks to learn from: random anchors in written text.

Legend: B sequences, T tokens (padded), A anchors of a sequence, b slots of a block, H hidden.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from adaptive_spec.heads.blocks import Blocks, block_mask
from adaptive_spec.training.generating import Written

LENGTHS = 64
"""Texts are padded to multiples of so many tokens: a matrix library keeps a kernel per shape."""


@dataclass(frozen=True, slots=True)
class Batch(Blocks):
    """Blocks of several sequences, with what the target said."""

    final: torch.Tensor
    """[B, T, H] states before the target's output layer."""


def batches(
    texts: Iterator[Written], *, sequences: int, anchors: int, block: int, causal: bool, seed: int
) -> Iterator[Batch]:
    """Batches for as long as there are texts.

    Args:
        sequences: B. anchors: A; a short text has some of them twice.
    """
    luck = random.Random(seed)
    usable = (text for text in texts if len(text.tokens) - text.prompt >= 2)
    while some := list(islice(usable, sequences)):
        yield batch_of(some, anchors, block, causal, luck)


def batch_of(
    texts: Sequence[Written], anchors: int, block: int, causal: bool, luck: random.Random
) -> Batch:
    """Blocks of the given texts at random anchors in their answers."""
    places = []
    for text in texts:
        possible = range(max(text.prompt - 1, 1), len(text.tokens) - 1)
        picked = luck.sample(possible, min(anchors, len(possible)))
        places.append(sorted([*picked, *luck.choices(possible, k=anchors - len(picked))]))
    return batch_at(texts, places, block, causal)


def batch_at(
    texts: Sequence[Written], places: Sequence[Sequence[int]], block: int, causal: bool
) -> Batch:
    """Blocks of the given texts at the given anchors, as many in every text, 1 or more each."""
    length = max(len(text.tokens) for text in texts)
    length += -length % LENGTHS
    width, hidden = texts[0].taps.shape[1], texts[0].final.shape[1]
    tokens = torch.zeros(len(texts), length, dtype=torch.long)
    taps = torch.zeros(len(texts), length, width, dtype=texts[0].taps.dtype)
    final = torch.zeros(len(texts), length, hidden, dtype=texts[0].final.dtype)
    for row, text in enumerate(texts):
        size = len(text.tokens)
        tokens[row, :size] = text.tokens.long()
        taps[row, : size - 1], final[row, : size - 1] = text.taps, text.final
    where, stop = torch.tensor(places), torch.tensor([len(text.tokens) for text in texts])
    slots = where[..., None] + torch.arange(block)
    return Batch(
        tokens=tokens,
        taps=taps,
        final=final,
        anchors=where,
        valid=slots + 1 < stop[:, None, None],
        mask=block_mask(where, length, block, causal),
    )
