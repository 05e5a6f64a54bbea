"""The online-learning protocol and its null object.

Life cycle: ``observe`` after every commit, ``between_steps`` after every step, outside its timing.
A learner never touches the target, never runs inside a step and cannot change the output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.types import Ints, Labels

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Feedback:
    """One request's verified tree on the device. Tensors are valid until the next forward."""

    request: str
    tree: CandidateTree
    path: Ints
    """Visited nodes in order, ROOT first."""
    tokens: Sequence[int]
    """Emitted tokens, one per visited node."""
    labels: Labels
    temperature: float
    logits: torch.Tensor
    """[1+N, V] raw target logits; row 0 is the root."""
    taps: Mapping[int, torch.Tensor]
    """Layer -> [1+N, H]."""


class Learner(Protocol):
    """Learns from feedback between steps."""

    head_version: str | None
    """Version of the draft head in use, for the log."""
    arm: str | None
    """What the last ``between_steps`` did, for the log."""
    generation: int
    """Another one wherever the whole head was changed, for the controllers."""

    def observe(self, feedback: Sequence[Feedback]) -> None:
        """Buffer what is worth keeping; copy what must outlive this call."""
        ...

    def between_steps(self, deadline: float) -> Mapping[str, Any] | None:
        """Update if it pays; the record of the decision for the log, or None.

        Args:
            deadline: reading of the decoder's clock to return by.
        """
        ...

    def close(self) -> None:
        """End what is going on; no step follows."""
        ...


class NoUpdate:
    """Learns nothing."""

    head_version: str | None = None
    arm: str | None = None
    generation = 0

    def observe(self, feedback: Sequence[Feedback]) -> None:
        return None

    def between_steps(self, deadline: float) -> Mapping[str, Any] | None:
        return None

    def close(self) -> None:
        return None
