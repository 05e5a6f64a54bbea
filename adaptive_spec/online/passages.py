"""What was read and written of late, with the target's states: what a whole head learns from.

Texts are kept as they grow, position by position: token, states of the tapped layers, and, where
the target has spoken, its likeliest next tokens. Texts that have ended go when newer ones need the
room, the oldest first; those that are still open stay, because keys and values are computed anew
from them when the head changes (``heads.memory``).

A position takes ``2 n H + 8 K`` bytes: 6 KB for five taps of a hidden size of 576, so 4,096 of them
take 24 MB.

Legend: T positions of a text, n taps, H hidden, K likeliest tokens, B windows, A anchors.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch

from adaptive_spec.heads.blocks import Blocks, block_mask
from adaptive_spec.types import Ints

LIKELIEST = 16
"""K."""
WINDOW, BEFORE = 64, 256
"""Positions that a window teaches, and those before them that it shows, at most."""
HELD_OUT = 0.25
"""Share of the newest positions that updates are judged by."""
KEPT = ("tokens", "taps", "best", "chance")
"""What is kept of every position."""
LENGTHS = 64
"""Windows are padded to multiples of so many positions: few shapes."""


@dataclass(slots=True, eq=False)
class Text:
    """One request's text so far; lists of pieces, made one when they are read."""

    tokens: list[torch.Tensor] = field(default_factory=list)
    """[T] ids."""
    taps: list[torch.Tensor] = field(default_factory=list)
    """[T, n * H]."""
    best: list[torch.Tensor] = field(default_factory=list)
    """[T, K] ids of the likeliest next tokens, int32; zeros where the target was not asked."""
    chance: list[torch.Tensor] = field(default_factory=list)
    """[T, K] their probabilities, falling; zeros there."""
    size: int = 0
    said: int = 0
    """Positions up to the last one where the target was asked."""
    times: list[tuple[int, int]] = field(default_factory=list)
    """(``said``, positions that were known of all texts then), after every answer."""

    def whole(self, name: str) -> torch.Tensor:
        pieces: list[torch.Tensor] = getattr(self, name)
        if len(pieces) > 1:
            pieces[:] = [torch.cat(pieces)]
        return pieces[0]


@dataclass(frozen=True, slots=True)
class Window:
    """Positions of a text from ``first`` on, at all of which the target was asked, and those shown
    before them: slices that nobody writes to, so that a trial in a thread may read them."""

    tokens: torch.Tensor
    taps: torch.Tensor
    best: torch.Tensor
    chance: torch.Tensor
    """[T, ...] each, as of the text."""
    first: int
    time: int
    """When the last one was known."""

    @property
    def size(self) -> int:
        """Positions that it teaches."""
        return len(self.tokens) - self.first


@dataclass(frozen=True, slots=True)
class Answered(Blocks):
    """Blocks with what the target said."""

    best: torch.Tensor
    """[B, T, K] ids of its likeliest next tokens."""
    chance: torch.Tensor
    """[B, T, K] their probabilities."""

    def to(self, device: torch.device) -> Answered:
        """The same on another device."""
        return Answered(*(getattr(self, one.name).to(device) for one in fields(self)))


class Passages:
    """The texts.

    Args:
        capacity: positions of texts that have ended, at most.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._open: dict[str, Text] = {}
        self._ended: list[Text] = []
        self._known = 0

    def write(
        self, request: str, tokens: torch.Tensor, taps: torch.Tensor, positions: Ints
    ) -> None:
        """Further positions of a request [T] with its taps [T, n * H]; position 0 begins it."""
        if int(positions[0]) == 0:
            self.end(request)
            self._open[request] = Text()
        text = self._open.get(request)
        if text is None or int(positions[0]) != text.size:
            return  # its beginning is not known: nothing can be learned from the rest
        text.tokens.append(tokens)
        text.taps.append(torch.nan_to_num(taps, nan=0.0, posinf=0.0, neginf=0.0))  # as the memory
        text.size += len(positions)

    def answer(self, request: str, best: torch.Tensor, chance: torch.Tensor) -> None:
        """What the target says [m, K] after each of the last m positions of a request."""
        text = self._open.get(request)
        if text is None or text.size - text.said < len(best):
            return
        if gap := text.size - text.said - len(best):
            text.best.append(best.new_zeros((gap, best.shape[1])))
            text.chance.append(chance.new_zeros((gap, chance.shape[1])))
        text.best.append(best)
        text.chance.append(chance)
        text.said = text.size
        self._known += len(best)
        text.times.append((text.said, self._known))

    def taps(self, request: str) -> torch.Tensor | None:
        """[T, n * H] of all positions of an open request."""
        text = self._open.get(request)
        return None if text is None or not text.size else text.whole("taps")

    def end(self, request: str) -> None:
        """The request is over; harmless if it is not known."""
        text = self._open.pop(request, None)
        if text is None or not text.times:
            return
        self._ended.append(text)
        while sum(one.size for one in self._ended) > self.capacity:
            del self._ended[0]

    def forget(self, but: int = 0) -> None:
        """Only the newest ``but`` positions are to be learned from; of open texts the taps stay."""
        oldest = self._known - but
        self._ended = [text for text in self._ended if text.times[-1][1] > oldest]
        for text in (*self._ended, *self._open.values()):
            if old := max((said for said, known in text.times if known <= oldest), default=0):
                for name in ("best", "chance"):
                    whole = text.whole(name)
                    setattr(text, name, [torch.zeros_like(whole[:old]), whole[old:]])

    @property
    def bytes(self) -> int:
        """Memory of all texts."""
        texts = (*self._ended, *self._open.values())
        return sum(piece.nbytes for one in texts for name in KEPT for piece in getattr(one, name))

    def split(self, least: int = 1) -> tuple[list[Window], list[Window]] | None:
        """Windows to fit and windows held out, the newest; None while fewer than ``least`` are."""
        found = [w for text in (*self._ended, *self._open.values()) for w in _windows(text)]
        found.sort(key=lambda window: window.time)
        sizes = np.cumsum([window.size for window in found])
        if not len(sizes):
            return None
        cut = int(np.searchsorted(sizes, sizes[-1] * (1.0 - HELD_OUT)))
        fit, held = found[:cut], found[cut:]
        return (fit, held) if fit and len(held) >= max(least, 1) else None


def blocks_of(
    windows: Sequence[Window], anchors: int, block: int, causal: bool, luck: random.Random
) -> Answered:
    """Blocks at random places of windows, ``anchors`` in each, some of them twice in short ones."""
    sizes = [len(window.tokens) for window in windows]
    length = max(sizes) + -max(sizes) % LENGTHS
    stacked = {
        name: torch.stack([_padded(getattr(window, name), length) for window in windows])
        for name in KEPT
    }
    places = []
    for window, size in zip(windows, sizes, strict=True):
        possible = range(max(window.first, 1), size - 1)
        picked = luck.sample(possible, min(anchors, len(possible)))
        places.append(sorted([*picked, *luck.choices(possible, k=anchors - len(picked))]))
    where = torch.tensor(places)
    slots = where[..., None] + torch.arange(block)
    return Answered(
        **stacked,
        anchors=where,
        valid=slots + 1 < torch.tensor(sizes)[:, None, None],
        mask=block_mask(where, length, block, causal),
    )


def _windows(text: Text) -> list[Window]:
    """Runs of at most WINDOW positions, oldest first; runs of less than 3 are left out."""
    if not text.times:
        return []
    asked = text.whole("chance")[:, 0].numpy() > 0  # what was forgotten counts as not asked
    edges = np.flatnonzero(np.diff(np.concatenate([[False], asked, [False]]).astype(np.int8)))
    ends = np.array([said for said, _ in text.times])
    found = []
    for begin, stop in zip(edges[::2], edges[1::2], strict=True):
        for first in range(int(begin), int(stop), WINDOW):
            last = min(first + WINDOW, int(stop))
            if last - first >= 3:
                time = text.times[int(np.searchsorted(ends, last))][1]
                start = max(first - BEFORE, 0)
                tokens, taps, best, chance = (text.whole(name)[start:last] for name in KEPT)
                found.append(Window(tokens, taps, best, chance, first - start, time))
    return found


def _padded(piece: torch.Tensor, length: int) -> torch.Tensor:
    missing = length - len(piece)
    return torch.cat([piece, piece.new_zeros((missing, *piece.shape[1:]))])
