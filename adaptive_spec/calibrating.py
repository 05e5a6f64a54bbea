"""Measures what verification costs on this machine: a grid of tree sizes and contexts.

Decoding needs none of this, because its latency model learns from its own steps; a stored
calibration only spares it the first of them. Legend: N draft nodes, S pool slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch

from adaptive_spec.cache import SlotCache, SlotPool
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.filling import Filling, default_sizes
from adaptive_spec.packing import chain_part, pack, tree_part
from adaptive_spec.profilers.clock import Clock, monotonic
from adaptive_spec.profilers.latency import LiveLatency
from adaptive_spec.target import Target
from adaptive_spec.types import StepSeconds, Work

SIZES = (0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
LIVE_SIZES = (0, 1, 2, 4, 8, 12, 16, 24, 32)
"""What decoding would ask for on its way: the live model is judged on what is executed for it."""
CONTEXTS = (128, 512, 1024)
REPEATS, WARM_UP = 9, 2
CHUNK = 512

Point = tuple[int, int, float]
"""Nodes, context, median seconds."""


class Stand:
    """A target with a pool of one request, on which single forwards are timed."""

    def __init__(self, target: Target, clock: Clock = monotonic, seed: int = 0) -> None:
        self.facts = facts = target.architecture
        self._target, self._clock = target, clock
        self._draw = np.random.default_rng(seed)
        self._pool = SlotPool(64, facts.context_limit)
        self._cache = SlotCache(facts.layers, self._pool)
        self._owner = self._pool.join()

    @property
    def context(self) -> int:
        """Committed tokens."""
        return len(self._pool.slots(self._owner))

    def fill(self, context: int) -> None:
        """Commit random tokens until there are ``context``."""
        while (have := self.context) < context:
            part = chain_part(self._owner, self._tokens(min(CHUNK, context - have)), have)
            slots = self._pool.reserve(len(part.tokens))
            self._target.run(self._target.prepare(self._cache, pack([part], slots)), last_only=True)
            self._pool.commit(self._owner, slots, part.positions)

    def seconds(self, nodes: int) -> float:
        """One forward of a root and ``nodes`` draft nodes, with the transfer of its argmax."""
        tree = CandidateTree.chain(self._tokens(nodes))
        part = tree_part(self._owner, self._tokens(1)[0], self.context, tree)
        inputs = self._target.prepare(
            self._cache, pack([part], self._pool.reserve(len(part.tokens)))
        )
        began = self._clock()
        best, top = self._target.run(inputs).logits.max(dim=-1)
        torch.stack((best.double(), top.double())).cpu()
        return self._clock() - began

    def _tokens(self, count: int) -> list[int]:
        drawn: list[int] = self._draw.integers(0, self._target.architecture.vocab, count).tolist()
        return drawn


def measure_grid(
    stand: Stand,
    contexts: Sequence[int] = CONTEXTS,
    sizes: Sequence[int] = SIZES,
    repeats: int = REPEATS,
    tell: Callable[[float], None] = lambda fraction: None,
) -> list[Point]:
    """Medians over a grid; sizes take turns, so that noise hits all of them alike."""
    points: list[Point] = []
    order = np.random.default_rng(1)
    for number, context in enumerate(sorted(contexts)):
        stand.fill(context)
        found: dict[int, list[float]] = {size: [] for size in sizes}
        for turn in range(repeats + WARM_UP):
            tell((number + turn / (repeats + WARM_UP)) / len(contexts))
            for size in order.permutation(sizes).tolist():
                seconds = stand.seconds(size)
                if turn >= WARM_UP:
                    found[size].append(seconds)
        points += [(size, context, median(taken)) for size, taken in found.items()]
    return points


def live_errors(
    stand: Stand, latency: LiveLatency, steps: Sequence[int] = (20, 100), seed: int = 2
) -> list[float]:
    """Mean absolute relative error of the live model after so many steps of its own.

    The model sees one timing per step, of sizes as decoding would choose them, and is judged by
    medians of seven timings per size that were taken between those steps.
    """
    draw = np.random.default_rng(seed)
    executed = np.unique(Filling(default_sizes(stand.facts)).up(np.array(LIVE_SIZES)))
    sizes = draw.choice(executed, size=max(steps))
    guesses: list[np.ndarray] = []
    truth: dict[int, list[float]] = {size: [] for size in executed.tolist()}
    work = Work(executed, requests=1, context=stand.context)
    for step, size in enumerate(sizes.tolist(), start=1):
        seconds = StepSeconds(verify=stand.seconds(size))
        latency.observe(Work(np.array([size]), 1, stand.context), seconds)
        if step in steps:
            guesses.append(latency.predict(work).verify)
        if step % (max(steps) // 7) == 0:
            for other in draw.permutation(executed).tolist():
                truth[other].append(stand.seconds(other))
    medians = np.array([median(truth[size]) for size in executed.tolist()])
    return [float(np.abs(guess / medians - 1.0).mean()) for guess in guesses]
