"""The acceptance model behind a wall: what candidate trees are worth, and what came of them.

Legend: N nodes. A model that fails is skipped for that tree, counted and named once; the drafters'
own probabilities then stand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adaptive_spec import tree as trees
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.isolation import Faults
from adaptive_spec.merging import merge
from adaptive_spec.profilers.base import Acceptance, NullAcceptance
from adaptive_spec.share import Share
from adaptive_spec.types import Bools, Floats, Ints, Labels, Offer
from adaptive_spec.verifying import Verification, label


class Valuing:
    """Turns proposals into offers, and verdicts into labels.

    Args:
        reads_noise: per drafter of the panel, whether its trees depend on the keyed noise.
        most: most nodes of an offer.
        faults: who counts the model's exceptions.
    """

    def __init__(
        self,
        acceptance: Acceptance,
        reads_noise: Sequence[bool],
        most: int,
        faults: Faults,
    ) -> None:
        self.acceptance = acceptance
        self._reads_noise, self._most, self._skip = tuple(reads_noise), most, faults.skip

    def offer(self, share: Share, room: int) -> None:
        """Fill ``merged`` and ``offer``: edges calibrated, trees merged, best nodes first.

        Args:
            room: nodes that the pool can hold.
        """
        heat = share.features.temperature
        given = [share.proposals[place] for place in sorted(share.proposals)]
        edges = [self._edges(tree, heat) for tree in given]
        if not given:
            given, edges = [CandidateTree.empty()], [np.empty(0)]
        merged = merge(given, edges, lambda values: self._combined(values, heat))
        alive = trees.survival(merged.tree, merged.edges)
        order = trees.best_first(alive)[: self._most]
        share.merged = merged.reordered(order)
        share.offer = Offer(share.features, _sealed(alive[order]), min(len(order), room))

    def observe(self, share: Share, check: Verification) -> Labels | None:
        """Teach the model what the target said of what was offered.

        Returns:
            The verdict on every verified edge, whether it is the token drawn; None if none came.
        """
        try:
            return self._observe(share, check)
        except Exception as error:
            self._skip("acceptance", error)
            return None

    def _observe(self, share: Share, check: Verification) -> Labels:
        heat, size = share.features.temperature, len(share.tree)
        drawn = label(share, check)
        same = heat == 0 or all(self._reads_noise)
        soft = drawn if same else label(share, check, soft=True)
        judged = share.merged.tree.parent < size  # children of verified nodes, the root included
        for place, source in zip(sorted(share.proposals), share.merged.sources, strict=False):
            proposal, mine = share.proposals[place], judged & (source >= 0)
            labels = _only(drawn if self._reads_noise[place] else soft, mine)
            self.acceptance.observe(proposal, _spread(labels, source[mine], len(proposal)), heat)
        if len(share.proposals) > 1:
            labels = drawn if any(self._reads_noise) else soft
            several = [values[judged] for values in share.merged.values]
            self.acceptance.observe_combined(several, _only(labels, judged), heat)
        return _only(drawn, np.arange(len(judged)) < size)

    def _edges(self, tree: CandidateTree, heat: float) -> Floats:
        try:
            return _probabilities(self.acceptance.calibrate(tree, heat), len(tree))
        except Exception as error:
            self._skip("acceptance", error)
            return _null.calibrate(tree, heat)

    def _combined(self, values: Sequence[Floats], heat: float) -> Floats:
        try:
            return _probabilities(self.acceptance.combine(values, heat), len(values[0]))
        except Exception as error:
            self._skip("acceptance", error)
            return _null.combine(values, heat)


_null = NullAcceptance()


def _probabilities(values: Floats, size: int) -> Floats:
    """``values`` if they can be probabilities of ``size`` edges; else ValueError."""
    found: Floats = np.asarray(values, dtype=np.float64)
    if found.shape != (size,) or not np.isfinite(found).all():
        raise ValueError("acceptance probabilities are not finite, or not one per edge")
    return found


def _sealed(values: Floats) -> Floats:
    """A copy that stays read-only, whatever flags a policy sets on it."""
    return np.frombuffer(values.tobytes(), dtype=np.float64)


def _spread(labels: Labels, nodes: Ints, size: int) -> Labels:
    """Labels of some ``nodes`` as labels of all ``size``: nothing is known of the others."""
    spread = Labels(np.full(size, np.nan), np.zeros(size, dtype=np.bool_), np.zeros(size))
    spread.chosen[nodes], spread.visited[nodes] = labels.chosen, labels.visited
    spread.reach[nodes] = labels.reach
    return spread


def _only(labels: Labels, mine: Bools) -> Labels:
    return Labels(labels.chosen[mine], labels.visited[mine], labels.reach[mine])
