"""From timed runs to the rows of the table. What the figures mean:

- tokens per second: emitted tokens over wall seconds, prefill included, all repeats together;
- speed-up: ratio of that to the reference's on the same prompts of the same run;
- its 90 % interval: a bootstrap over prompts, all repeats of a prompt together, because two runs
  of one prompt are no two pieces of evidence; where requests are packed, over whole batches. With
  a single prompt or batch there is nothing to resample, and the interval is the point;
- acceptance length: emitted tokens over target forwards after the prefill, idle ones counted;
- controller share: what part of the decode loop is neither a forward nor the choice of tokens.

Legend: G batches (of one prompt each unless requests are packed), B bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from adaptive_spec.bench.decoding import Decoded
from adaptive_spec.bench.exactness import Comparison
from adaptive_spec.types import Floats

RESAMPLES = 2000
LEVEL = 0.90


@dataclass(frozen=True, slots=True)
class Ratio:
    """A speed-up and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Exactness:
    """How many requests gave plain's text. A request counts once, with its worst repeat."""

    identical: int
    near_ties: int
    mismatches: int
    tokens_compared: int


@dataclass(slots=True)
class Record:
    """Everything that one contestant did in one dtype."""

    batches: int
    decoded: list[tuple[int, Decoded]] = field(default_factory=list)
    """(index of the batch, what came of it)"""
    compared: dict[str, list[Comparison]] = field(default_factory=dict)
    """Id of the request -> one comparison per repeat."""

    def seconds(self) -> Floats:
        """[G] wall seconds per batch, repeats added up."""
        return self._per_batch([run.seconds for _, run in self.decoded])

    def tokens(self) -> Floats:
        """[G] emitted tokens per batch, repeats added up."""
        return self._per_batch([sum(map(len, run.tokens)) for _, run in self.decoded])

    def tokens_per_second(self) -> float:
        return float(self.tokens().sum() / self.seconds().sum())

    def last(self, count: int) -> Record:
        """Of the last ``count`` batches alone, at most all."""
        first = max(self.batches - count, 0)
        late = [(index - first, run) for index, run in self.decoded if index >= first]
        return Record(self.batches - first, late)

    def acceptance_length(self) -> float | None:
        emitted = sum(len(text) for _, run in self.decoded for text in run.tokens)
        return _share([run.steps for _, run in self.decoded], emitted)

    def nodes_per_step(self) -> float | None:
        nodes = sum(run.draft_nodes or 0 for _, run in self.decoded)
        return _share([run.steps for _, run in self.decoded], nodes)

    def controller_share(self) -> float | None:
        model = sum(run.model_seconds or 0.0 for _, run in self.decoded)
        share = _share([run.loop_seconds for _, run in self.decoded], model)
        return None if share is None else 1.0 - share

    def exactness(self) -> Exactness:
        worst = [max(repeats, key=_severity) for repeats in self.compared.values()]
        return Exactness(
            identical=sum(one.identical for one in worst),
            near_ties=sum(one.near_tie for one in worst),
            mismatches=sum(one.mismatch for one in worst),
            tokens_compared=sum(one.tokens_compared for one in worst),
        )

    def _per_batch(self, values: Sequence[float]) -> Floats:
        indices = [index for index, _ in self.decoded]
        sums: Floats = np.zeros(self.batches)
        np.add.at(sums, indices, values)
        return sums


def _severity(one: Comparison) -> tuple[bool, bool]:
    return one.mismatch, one.near_tie


def _share(parts: Sequence[float | None], whole: float) -> float | None:
    """``whole`` over the sum of ``parts``; None for peers, which do not count them."""
    known = [part for part in parts if part is not None]
    return whole / sum(known) if sum(known) else None


def speed_up(own: Record, reference: Record, seed: int) -> Ratio:
    """Tokens per second of ``own`` over the reference's, with its bootstrap interval."""
    parts_4G = np.stack([own.tokens(), own.seconds(), reference.tokens(), reference.seconds()])
    value = float(_ratio(parts_4G.sum(axis=1)))
    size = parts_4G.shape[1]
    picks_BG = np.random.default_rng(seed).integers(0, size, (RESAMPLES, size))
    ratios_B = _ratio(parts_4G[:, picks_BG].sum(axis=2))
    low, high = np.quantile(ratios_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Ratio(value, float(low), float(high))


def best_elsewhere(records: Sequence[Record]) -> Record:
    """For every batch the runs of whoever was fastest on all the *other* batches.

    The best of several, picked and scored on the same runs, profits from their noise (the winner's
    curse); here no run takes part in the choice that it is scored by. A single batch leaves no
    others: there the best is picked on it all the same.
    """
    tokens_CG = np.stack([record.tokens() for record in records])
    seconds_CG = np.stack([record.seconds() for record in records])
    if tokens_CG.shape[1] == 1:
        rates_CG = tokens_CG / seconds_CG
    else:
        others_CG = seconds_CG.sum(axis=1, keepdims=True) - seconds_CG
        rates_CG = (tokens_CG.sum(axis=1, keepdims=True) - tokens_CG) / others_CG
    best_G = rates_CG.argmax(axis=0)
    runs = [
        (index, run)
        for place, record in enumerate(records)
        for index, run in record.decoded
        if best_G[index] == place
    ]
    return Record(batches=tokens_CG.shape[1], decoded=runs)


def _ratio(parts: Floats) -> Floats:
    """[4] or [4, B] sums -> ratio of the rates."""
    tokens, seconds, other_tokens, other_seconds = parts
    rate: Floats = (tokens / seconds) / (other_tokens / other_seconds)
    return rate
