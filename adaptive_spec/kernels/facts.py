"""What kernels and their references give; nothing here needs Triton.

Legend: P places, C candidates of a place, M nodes, K children of a node.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

LEAST = 1e-6
"""Of all probability, what is left to other tokens at least."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Of every place; device tensors."""

    scores: torch.Tensor
    """[P, C] float32, falling."""
    ids: torch.Tensor
    """[P, C] int32 draft ids."""
    rest: torch.Tensor
    """[P] float32 log of the summed exponentials of all others, at the place's temperature."""
    entropy: torch.Tensor
    """[P] float32 of the whole distribution, in nats; not finite if any score is not."""


@dataclass(frozen=True, slots=True)
class Children:
    """Of every node, the best first; device tensors."""

    chance: torch.Tensor
    """[M, K] float32 log-probabilities, at most 0."""
    ids: torch.Tensor
    """[M, K] int32 draft ids."""
    margin: torch.Tensor
    """[M] float32 between the two likeliest candidates, before any noise."""
