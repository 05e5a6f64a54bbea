"""What the verifier said about a head's branches, kept for a while: a ring of fixed size.

A lesson is one verified node: the state of the slot that guessed its children, the branch that led
to it, the candidates with their uncorrected scores, and what the target gives each of them there.
Where the node was visited, the token that was written is known as well. Nothing is recomputed to
learn from a lesson: the slot's state does not depend on the corrector.

One lesson takes ``2 H + 12 C + 8 b`` bytes and some: 2 KB for a hidden size of 576, 64 candidates
and blocks of 6, so 4,096 lessons take 8 MB. The oldest go first. The newest quarter is held out:
updates are judged by it and never fitted to it.

Legend: n lessons, H hidden, C candidates, b block size.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

from adaptive_spec.types import Ints

HELD_OUT = 0.25
"""Share of the newest lessons that updates are judged by."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Lessons beside each other; visited nodes of one tree follow one another by depth."""

    hidden: torch.Tensor
    """[n, H] states of the slots, in bfloat16."""
    path: torch.Tensor
    """[n, b] target ids of the branch, the anchor first; 0 behind its end."""
    depth: torch.Tensor
    """[n] of the node, 0 for the root."""
    rows: torch.Tensor
    """[n, C] candidates as draft ids, int32."""
    scores: torch.Tensor
    """[n, C] before any correction and bias, float32."""
    rest: torch.Tensor
    """[n] log of the summed exponentials of all other scores, at the temperature."""
    heat: torch.Tensor
    """[n] the temperature drafted at."""
    wanted: torch.Tensor
    """[n, C] the target's probabilities of the candidates at that temperature."""
    right: torch.Tensor
    """[n] place of the written token among the candidates; -1 where it is none of them."""
    tree: torch.Tensor
    """[n] number of the verified tree where the node was visited; -1 where it was not."""

    def __len__(self) -> int:
        return len(self.depth)

    def at(self, index: torch.Tensor) -> Batch:
        """Some of the lessons, in that order."""
        return Batch(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


class Lessons:
    """The ring.

    Args:
        capacity: lessons kept, at least 1.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.count = capacity, 0
        """``count``: lessons so far, those that are gone included."""
        self._kept: Batch | None = None

    def add(self, batch: Batch) -> None:
        """Keep the lessons of one step; of more than ``capacity`` the first ones."""
        some = min(len(batch), self.capacity)
        with torch.inference_mode(False), torch.no_grad():  # written to in any mode
            if self._kept is None:
                self._kept = Batch(
                    *(
                        torch.zeros((self.capacity, *value.shape[1:]), dtype=value.dtype)
                        for value in (getattr(batch, field.name) for field in fields(batch))
                    )
                )
            places = torch.arange(self.count, self.count + some) % self.capacity
            for field in fields(batch):
                getattr(self._kept, field.name)[places] = getattr(batch, field.name)[:some].cpu()
        self.count += some

    def clear(self) -> None:
        """Forget all: the slots of the head that they came from are others now."""
        self.count = 0

    @property
    def bytes(self) -> int:
        """Memory of the ring."""
        kept = self._kept
        if kept is None:
            return 0
        return sum(int(getattr(kept, field.name).nbytes) for field in fields(kept))

    def split(self, most: int, luck: torch.Generator, least: int = 1) -> tuple[Batch, Batch] | None:
        """Lessons to fit, ``most`` of them drawn at random, and all those held out, oldest first.

        No tree has lessons on both sides. None while fewer than ``least`` trees are held out.
        """
        if self._kept is None:
            return None
        have = min(self.count, self.capacity)
        order = torch.arange(self.count - have, self.count) % self.capacity
        trees = self._kept.tree[order].cpu().numpy()
        first = _boundary(trees, int(have * (1.0 - HELD_OUT)))
        fit, held = order[:first], order[first:]
        judges = self._kept.tree[held].cpu().numpy()
        if not len(fit) or len(np.unique(judges[judges >= 0])) < least:
            return None
        drawn = torch.randperm(len(fit), generator=luck)[:most]
        return self._kept.at(fit[drawn]), self._kept.at(held)


def _boundary(trees: Ints, place: int) -> int:
    """The first place from ``place`` on where another tree's visited nodes begin."""
    seen = np.maximum.accumulate(trees)
    while 0 < place < len(trees) and seen[place] == seen[place - 1]:
        place += 1
    return place
