"""The acceptance model: what a drafter's probabilities are worth, learned from every verdict.

Legend: N draft nodes, K coefficients, D drafters.

Per drafter, the log-odds that an edge carries the target's token are linear in the log-odds that
the drafter gives it, with corrections for depth, rank, temperature and whatever the drafter
reports of a node (section "Value" of the design; vLLM and DSpark refit such a model every hundred
steps, here every verdict counts at once). On step one the drafter is taken at its word.

Depth and rank are coded as steps upwards: what holds from depth 2 on holds for depth 5 as well
until depth 5 has spoken for itself. That matters because deep edges are seldom reached. Seldom
reached is not rejected: an edge is labelled only where the choice at its parent is known, so a
path that ends, or a tree that was cut, says nothing about what would have come next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import log, log1p
from typing import Any

import numpy as np

from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.errors import ArgumentError
from adaptive_spec.profilers.logistic import Logistic, log_odds
from adaptive_spec.types import Bools, Floats, Ints, Labels

VERSION = 1
LEAST = 1e-4
"""Drafters' probabilities are believed no closer than this to 0 and 1."""
OFF_PATH = 0.1
"""Weight of a label off the accepted path, times its parent's reach. Text that was not written is
a poor witness: after a wrong token the target agrees with the drafter less often."""
HOTTEST = 2.0
"""Temperatures are told apart up to here."""
DEPTHS = (2, 3, 5, 9)
RANKS = (1, 2, 4)
"""From these on, depth and rank each have a step of their own."""
FEATURES = {"match_length": 1.5, "count": 1.0, "margin": 0.7, "entropy": 0.7}
"""Node features in use, and what log(1 + value) is centred on; a missing one counts as that."""
REACH = 3.0
"""Centred features are cut here."""
REMEMBERED = 256
"""Trees whose rows are kept until they are judged."""

INTERCEPT, SLOPE, DEPTH_SLOPE, RANK_SLOPE, HEAT, HEAT_SLOPE = range(6)
STEPS = 6
EXTRAS = STEPS + len(DEPTHS) + len(RANKS)
COLUMNS = EXTRAS + len(FEATURES)

_SPREADS = (0.6, 0.25, 0.1, 0.1, 0.5, 0.2)
"""Prior standard deviations of these six; all others have 0.3."""
_POOL_COLUMNS = 5
"""Intercept, best log-odds, mean of the others, how many there are beyond two, temperature."""


class OnlineAcceptance:
    """Calibrates drafters online. Implements ``profilers.base.Acceptance``.

    Args:
        every: verified trees to wait for before learning from all of them at once: less work.
        drafters: names, in the order that ``CandidateTree.drafter`` counts them. An index outside
            the list is learned about too, all such under one hat.

    Attributes:
        ignored: labels that were no probabilities, or came with nodes that had none.
    """

    def __init__(self, drafters: Sequence[str], *, every: int = 1) -> None:
        self.names, self._every = tuple(drafters), every
        self.ignored = 0
        self._models = [_edge_model() for _ in range(len(self.names) + 1)]
        self._pool = _pool_model(len(self.names))
        self._rows: dict[int, tuple[CandidateTree, float, Floats]] = {}  # of trees to be judged
        self._verdicts: list[tuple[Floats, Ints, Floats, Floats]] = []  # not learned from yet

    def calibrate(self, tree: CandidateTree, temperature: float) -> Floats:
        """[N] probability that node i is the target's choice, given its parent."""
        heat = _heat(temperature) or 0.0
        rows = _edge_rows(tree, heat)
        if len(self._rows) >= REMEMBERED:
            self._rows.clear()
        self._rows[id(tree)] = tree, heat, rows
        answer = np.empty(len(tree))
        for model, part in self._by_drafter(tree.drafter):
            answer[part] = model.probability(rows[part])
        return answer

    def combine(self, several: Sequence[Floats], temperature: float) -> Floats:
        """[N] probability of edges that several drafters propose.

        An edge that one drafter proposes keeps its value; one that nobody does gets 0.

        Args:
            several: per drafter [N] calibrated probability, NaN where it did not propose the edge.
        """
        if not len(several):
            return np.empty(0)
        parts = np.stack(several)
        proposed = np.isfinite(parts)
        answer: Floats = np.clip(np.where(proposed, parts, 0.0).max(axis=0), 0.0, 1.0)
        if (shared := proposed.sum(axis=0) > 1).any():
            rows = self._pool_rows(parts[:, shared], _heat(temperature) or 0.0)
            answer[shared] = self._pool.probability(rows)
        return answer

    def observe(self, tree: CandidateTree, labels: Labels, temperature: float) -> None:
        """What the target said of every edge of one verified tree; never raises on bad numbers."""
        sound = np.isfinite(tree.logq) & (tree.logq <= 1e-9)
        heat, chosen, weight = self._sift(labels, sound, temperature)
        known, heat_then, rows = self._rows.pop(id(tree), _NO_ROWS)
        if not (use := weight > 0).any():
            return
        if known is not tree or heat_then != heat:
            rows = _edge_rows(tree, heat)
        verdict = rows, tree.drafter, chosen, weight
        if not use.all():
            verdict = rows[use], tree.drafter[use], chosen[use], weight[use]
        self._verdicts.append(verdict)
        if len(self._verdicts) >= self._every:
            self._learn()

    def _learn(self) -> None:
        """Take in the verdicts that have come together."""
        if len(self._verdicts) == 1:
            rows, drafter, chosen, weight = self._verdicts[0]
        else:
            rows, drafter, chosen, weight = map(np.concatenate, zip(*self._verdicts, strict=True))
        self._verdicts.clear()
        for model, part in self._by_drafter(drafter):
            model.update(rows[part], chosen[part], weight[part])

    def observe_combined(
        self, several: Sequence[Floats], labels: Labels, temperature: float
    ) -> None:
        """The same for edges that several drafters proposed; the others teach nothing here."""
        if not len(several):
            return
        parts = np.stack(several)
        sound = np.all(~((parts < 0.0) | (parts > 1.0)), axis=0)
        heat, chosen, weight = self._sift(labels, sound, temperature)
        use = (np.isfinite(parts).sum(axis=0) > 1) & (weight > 0)
        if use.any():
            self._pool.update(self._pool_rows(parts[:, use], heat), chosen[use], weight[use])

    def state(self) -> dict[str, Any]:
        """Everything that was learned, as plain JSON values."""
        if self._verdicts:
            self._learn()
        return {
            "version": VERSION,
            "drafters": list(self.names),
            "ignored": self.ignored,
            "models": [model.state() for model in self._models],
            "pool": self._pool.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` returned; on an error everything stays as it was.

        Raises:
            ArgumentError: version, drafters, a shape or a number is wrong; the field is named.
        """
        if not isinstance(state, Mapping):
            raise ArgumentError("state", type(state).__name__, "a mapping, as state() returns it")
        for field, wanted in (("version", VERSION), ("drafters", list(self.names))):
            if (found := state.get(field)) != wanted:
                raise ArgumentError(field, found, f"only {wanted} can be restored")
        ignored = state.get("ignored")
        if isinstance(ignored, bool) or not isinstance(ignored, int) or ignored < 0:
            raise ArgumentError("ignored", ignored, "a whole number, at least 0")
        given = state.get("models")
        if not isinstance(given, list) or len(given) != len(self._models):
            raise ArgumentError("models", type(given).__name__, f"{len(self._models)} models")
        models, pool = [_edge_model() for _ in given], _pool_model(len(self.names))
        for place, (model, saved) in enumerate(zip(models, given, strict=True)):
            model.restore(saved, f"models[{place}]")
        pool.restore(state.get("pool", {}), "pool")
        self._models, self._pool, self.ignored = models, pool, ignored
        self._verdicts.clear()

    def _by_drafter(self, drafter: Ints) -> Iterator[tuple[Logistic, Bools | slice]]:
        """Each model with its nodes: a slice where one drafter proposed them all."""
        kinds = set(drafter.tolist())
        for kind in kinds:
            known = 0 <= kind < len(self.names)
            part = slice(None) if len(kinds) == 1 else drafter == kind
            yield self._models[kind if known else -1], part

    def _sift(
        self, labels: Labels, sound: Bools, temperature: float
    ) -> tuple[float, Floats, Floats]:
        """Temperature, labels [N] and weights [N]; what is unknown or no number weighs nothing.

        Args:
            sound: [N] the nodes that the labels are about have probabilities.
        """
        chosen, reach, heat = labels.chosen, labels.reach, _heat(temperature)
        shapes = {chosen.shape, reach.shape, labels.visited.shape}
        if heat is None or shapes != {sound.shape}:
            self.ignored += len(sound)
            return 0.0, np.zeros(len(sound)), np.zeros(len(sound))
        good = sound & (chosen >= 0) & (chosen <= 1) & (reach >= 0) & (reach <= 1)
        self.ignored += int(np.count_nonzero(~(good | np.isnan(chosen))))
        weight = np.where(good, np.where(labels.visited, 1.0, OFF_PATH * reach), 0.0)
        return heat, np.where(good, chosen, 0.0), weight

    def _pool_rows(self, parts: Floats, heat: float) -> Floats:
        """[N, 5 + D] rows of edges that two or more drafters proposed, from parts [D, N]."""
        proposed = np.isfinite(parts)
        odds = log_odds(np.where(proposed, parts, 0.5), LEAST)  # 0 where not proposed
        best = np.where(proposed, odds, -np.inf).max(axis=0)
        count = proposed.sum(axis=0)
        rows = np.zeros((_POOL_COLUMNS + len(self.names), parts.shape[1]))
        others = (odds.sum(axis=0) - best) / (count - 1)
        rows[0], rows[1], rows[2], rows[3], rows[4] = 1.0, best, others, count - 2, heat
        known = odds[: len(self.names)]
        rows[_POOL_COLUMNS : _POOL_COLUMNS + len(known)] = known
        return rows.T


_NO_ROWS: tuple[CandidateTree | None, float, Floats] = None, 0.0, np.empty(0)


def _heat(temperature: float) -> float | None:
    """The temperature as the models see it; None if it is not one."""
    return min(float(temperature), HOTTEST) if 0.0 <= temperature < np.inf else None


def _edge_model() -> Logistic:
    mean, spread = np.zeros(COLUMNS), np.full(COLUMNS, 0.3)
    mean[SLOPE] = 1.0
    spread[:STEPS] = _SPREADS
    return Logistic(mean, spread)


def _pool_model(drafters: int) -> Logistic:
    """Starts with the better of two opinions; the others only shift it once that has paid."""
    mean = np.zeros(_POOL_COLUMNS + drafters)
    mean[1] = 1.0
    return Logistic(mean, np.array([0.3, 0.15, 0.2, 0.2, 0.2] + [0.1] * drafters))


def _table() -> Floats:
    """[1 + deepest, 1 + last rank, COLUMNS] what of a row follows from depth and rank alone."""
    table = np.zeros((DEPTHS[-1] + 1, RANKS[-1] + 1, COLUMNS))
    table[:, :, INTERCEPT] = 1.0
    for place, step in enumerate(DEPTHS):
        table[step:, :, STEPS + place] = 1.0
        table[step:, :, DEPTH_SLOPE] += 1.0 / len(DEPTHS)
    for place, step in enumerate(RANKS):
        table[:, step:, STEPS + len(DEPTHS) + place] = 1.0
    table[:, 1:, RANK_SLOPE] = 1.0
    return table


_TABLE = _table()


def _edge_rows(tree: CandidateTree, heat: float) -> Floats:
    """[N, COLUMNS] finite design matrix of a tree."""
    level = [0]
    for above in tree.parent.tolist():
        level.append(level[above + 1] + 1)
    depth = np.minimum(np.array(level[1:], dtype=np.int64), DEPTHS[-1])
    rank = np.maximum(np.minimum(tree.rank, RANKS[-1]), 0)
    rows: Floats = _TABLE[depth, rank]
    logq = np.fmin(np.fmax(tree.logq, log(LEAST)), log1p(-LEAST))  # NaN becomes the least
    odds = logq - np.log(-np.expm1(logq))
    rows[:, SLOPE] = odds
    rows[:, DEPTH_SLOPE] *= odds
    rows[:, RANK_SLOPE] *= odds
    if heat:
        rows[:, HEAT] = heat
        rows[:, HEAT_SLOPE] = heat * odds
    for place, (name, centre) in enumerate(FEATURES.items(), start=EXTRAS):
        if (values := tree.features.get(name)) is not None:
            value = np.minimum(np.log1p(np.maximum(values, 0.0)) - centre, REACH)
            rows[:, place] = np.where(value == value, value, 0.0)
    return rows
