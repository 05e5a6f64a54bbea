"""Many blocks of a text at once: what a head says at chosen anchors of text that is known.

Learning runs a head on the past: at every anchor a block as if the text ended there, with the
context before it and none of the other blocks in view.

Legend: B sequences, T tokens (padded), A anchors of a sequence, b slots of a block, S = T + A * b
keys, n taps, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from adaptive_spec.heads.head import Head
from adaptive_spec.heads.layers import Extend


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of several sequences. Slot j of a block at anchor p guesses the token after p + j."""

    tokens: torch.Tensor
    """[B, T] ids, 0 where padded."""
    taps: torch.Tensor
    """[B, T, n * H], zeros where padded."""
    anchors: torch.Tensor
    """[B, A] positions, at least 1 each."""
    valid: torch.Tensor
    """[B, A, b] the slot has a token and a state to learn from."""
    mask: torch.Tensor
    """[B, 1, A * b, S], see ``block_mask``."""

    def after(self, ahead: int = 1) -> torch.Tensor:
        """[B, A, b] positions ``ahead`` of every slot, clipped to the text."""
        size = self.valid.shape[2]
        places = self.anchors[..., None] + torch.arange(size, device=self.anchors.device) + ahead
        return places.clamp(max=self.tokens.shape[1] - 1)


@dataclass(frozen=True, slots=True)
class Answers:
    """What a head says to blocks."""

    hidden: torch.Tensor
    """[B, A, b, H] states of the slots."""
    states: torch.Tensor
    """[B, A, b, r] branch states along the true path."""


def slot_states(head: Head, blocks: Blocks) -> torch.Tensor:
    """[B, A, b, H] states of the slots of all blocks."""
    rows = torch.arange(len(blocks.tokens), device=blocks.tokens.device)[:, None]
    fused = head.fuse([blocks.taps.to(head.fc.weight.dtype)])
    positions = torch.arange(fused.shape[1], device=fused.device).expand(len(fused), -1)
    before = fused[rows, blocks.anchors - 1]
    slots = head.slots(blocks.tokens[rows, blocks.anchors], before)
    extend = [_behind(*known) for known in head.context(fused, positions)]
    hidden: torch.Tensor = head(slots, blocks.anchors, extend, blocks.mask)
    return hidden


def answers(head: Head, blocks: Blocks) -> Answers:
    """Run the head on all blocks."""
    rows = torch.arange(len(blocks.tokens), device=blocks.tokens.device)[:, None, None]
    path = blocks.tokens[rows, blocks.after(0)]
    states = head.corrector.states(path, head.embed(path))
    return Answers(slot_states(head, blocks), states)


def block_mask(anchors: torch.Tensor, length: int, block: int, causal: bool) -> torch.Tensor:
    """[B, 1, A * b, S]: the context before the anchor [B, A], and the block's own slots: earlier
    ones, or all unless ``causal``."""
    rows, count = anchors.shape
    context = torch.arange(length) < anchors[..., None]
    context = context.repeat_interleave(block, dim=1)
    own = torch.ones(block, block, dtype=torch.bool)
    own = torch.kron(torch.eye(count), (own.tril() if causal else own).float()).bool()
    return torch.cat([context, own.expand(rows, -1, -1)], dim=2)[:, None]


def _behind(context_keys: torch.Tensor, context_values: torch.Tensor) -> Extend:
    def extend(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([context_keys, keys], dim=2), torch.cat([context_values, values], dim=2)

    return extend
