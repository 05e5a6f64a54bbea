"""Scores of a node's children, for the node's own branch, without the output layer.

After a draft's forward the likeliest candidates of every depth are known, with the scores that they
have on any branch of that depth. A branch asks a query of rank r; the state of its slot moves by a
map of it, so the score of a candidate moves by ``keys[candidate] . query``, before the final norm
divides by the length of the moved state. Table and forward are there, so a node costs a product of
[C, r] by [r] and the corrector's own small layers.

Legend: P places, one per request and depth; C candidates of a place; M nodes; r rank, V draft
vocabulary, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from adaptive_spec.heads.head import Head
from adaptive_spec.types import Floats, Ints


@dataclass(frozen=True, slots=True)
class Depths:
    """What a draft's forward gave, per place."""

    hidden: torch.Tensor
    """[P, H] float32."""
    gates: torch.Tensor
    """[P, r] float32: what the slot lets through of a query."""
    scores: torch.Tensor
    """[P, C] float32, of the candidates, before any correction."""
    keys: torch.Tensor
    """[P, C, r] float32."""
    tokens: Ints
    """[P, C] the candidates as target ids, likeliest first."""
    rest: Floats
    """[P] log of the summed exponentials of all other scores, at the place's temperature."""
    entropy: Floats
    """[P] of the slot's own distribution at that temperature, in nats."""
    heat: Floats
    """[P] the temperature."""


class Branches:
    """Looks at forwards of ``head``, and scores the children of nodes.

    Args:
        head: with the target's weights lent to it. Its weights may not change afterwards.
        candidates: likeliest tokens of a place that are scored.
    """

    def __init__(self, head: Head, candidates: int) -> None:
        self._head, self._candidates = head, candidates
        self._keys = head.keys()

    def look(self, hidden: torch.Tensor, heat: Floats) -> Depths | None:
        """Choose the candidates.

        Args:
            hidden: [P, H] what the layers gave.
            heat: [P] temperatures to draft at.

        Returns:
            None if any score is not finite.
        """
        scores = self._head.logits(hidden).float()
        if not bool(torch.isfinite(scores.amax())):
            return None
        best, candidates = scores.topk(self._candidates, dim=-1)
        top = best[:, :1]
        powers = scores.sub_(top)  # torch's own logsumexp and entr are many times slower on a CPU
        if (heat != 1.0).any():
            powers.div_(torch.from_numpy(heat).to(powers)[:, None])
        inner = powers.clone()
        powers.exp_()
        summed = powers.sum(dim=-1)
        expected = inner.mul_(powers).sum(dim=-1) / summed
        seen = powers.gather(1, candidates).sum(dim=-1)
        wide = hidden.float()
        facts = torch.stack([top[:, 0], summed, seen, expected]).double().cpu().numpy()
        highest, all_of_it, looked_at, mean = facts
        unseen = np.maximum(all_of_it - looked_at, 1e-6 * all_of_it)
        return Depths(
            hidden=wide,
            gates=self._head.corrector.gates(wide),
            scores=best,
            keys=self._keys[candidates].float(),
            tokens=self._head.target_ids(candidates).cpu().numpy(),
            rest=highest / heat + np.log(unseen),
            entropy=np.log(all_of_it) - mean,
            heat=heat,
        )

    def begin(self, token: torch.Tensor) -> torch.Tensor:
        """[M] anchors -> [M, size] states of branches that begin there."""
        return self._head.corrector.read(token, self._head.embed(token).float())

    def go_on(self, state: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """[M, size] of the parents and [M] tokens -> [M, size]."""
        return self._head.corrector.step(state, self.begin(token))

    def children(self, depths: Depths, place: Ints, state: torch.Tensor) -> Floats:
        """[M, C] log-probabilities of the candidates as children of nodes.

        What was not looked at keeps its uncorrected scores.

        Args:
            place: [M] whose candidates the children are.
            state: [M, size] of the branches that end in the nodes.
        """
        where = torch.from_numpy(place).to(state.device)
        scores, corrector = depths.scores[where], self._head.corrector
        query = corrector.query(state, depths.gates[where])
        if query is not None:
            moved = torch.bmm(query[:, None], depths.keys[where].transpose(1, 2))[:, 0]
            if (shift := corrector.shift(query)) is None:
                scores = scores + moved
            else:
                hidden, norm = depths.hidden[where], self._head.norm
                after = norm.scale(hidden + shift)
                scores = (scores / norm.scale(hidden) + moved) * after
        found = scores.double().cpu().numpy() / depths.heat[place, None]
        highest = found.max(axis=1)
        seen = highest + np.log(np.exp(found - highest[:, None]).sum(axis=1))
        logq: Floats = found - np.logaddexp(seen, depths.rest[place])[:, None]
        return logq
