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

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from adaptive_spec.heads.head import Head
from adaptive_spec.types import Floats, Ints

LEAST = 1e-6
"""Of all probability, what is left to other tokens at least."""
POOL = 512
"""Likeliest tokens of a place whose noise is looked up, where there is noise."""
SURE = 4
"""Likeliest tokens that are candidates whatever their noise: a node's features are made of them."""
Noise = Callable[[Ints], Floats]
"""Target ids [P, n] -> the noise that each place's token will be drawn with."""


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
    """[P, C] the candidates as target ids."""
    rest: Floats
    """[P] log of the summed exponentials of all other scores, at the place's temperature."""
    noise: Floats | None
    """[P, C] that the candidates will be drawn with; None where nothing is drawn."""
    unseen: Floats
    """[P] as ``rest``, of those scores that no noise was looked up for."""
    entropy: Floats
    """[P] of the slot's own distribution at that temperature, in nats."""
    heat: Floats
    """[P] the temperature."""


class Branches:
    """Looks at forwards of ``head``, and scores the children of nodes.

    Args:
        head: with the target's weights lent to it. If its weights change, ``refresh`` is due; of a
            corrector that adds a bias they may change in place without.
        candidates: likeliest tokens of a place that are scored.
    """

    def __init__(self, head: Head, candidates: int) -> None:
        self._head, self._candidates = head, candidates
        self._keys = head.keys()

    def refresh(self) -> None:
        """Look at the head's weights again."""
        self._keys = self._head.keys()

    def look(self, hidden: torch.Tensor, heat: Floats, noise: Noise | None = None) -> Depths | None:
        """Choose the candidates: the likeliest tokens, or those that are likeliest with the noise.

        The target's token maximises its log-probability and the noise, so under noise a token that
        is not among the likeliest can be a better guess than one that is.

        Args:
            hidden: [P, H] what the layers gave.
            heat: [P] temperatures to draft at.
            noise: of those tokens that it is asked for; None where nothing is drawn.

        Returns:
            None if any score is not finite.
        """
        scores = self._head.logits(hidden).float()
        if not bool(torch.isfinite(scores.amax())):
            return None
        count = self._candidates if noise is None else max(POOL, self._candidates)
        best, candidates = scores.topk(min(count, scores.shape[1]), dim=-1)
        top = best[:, :1]
        powers = scores.sub_(top)  # torch's own logsumexp and entr are many times slower on a CPU
        if (heat != 1.0).any():
            powers.div_(torch.from_numpy(heat).to(powers)[:, None])
        inner = powers.clone()
        powers.exp_()
        summed = powers.sum(dim=-1)
        expected = inner.mul_(powers).sum(dim=-1) / summed
        known = powers.gather(1, candidates)
        pool = known.sum(dim=-1)
        drawn: Floats | None = None
        if noise is not None:
            chosen, drawn = self._pick(best, candidates, heat, noise)
            best, candidates = best.gather(1, chosen), candidates.gather(1, chosen)
            known = known.gather(1, chosen)
        wide = hidden.float()
        sums = [top[:, 0], summed, known.sum(dim=-1), pool, expected]
        highest, whole, kept, looked_at, mean = torch.stack(sums).double().cpu().numpy()
        return Depths(
            hidden=wide,
            gates=self._head.corrector.gates(wide),
            scores=best,
            keys=self._keys[candidates].float(),
            tokens=self._head.target_ids(candidates).cpu().numpy(),
            rest=highest / heat + np.log(np.maximum(whole - kept, LEAST * whole)),
            noise=drawn,
            unseen=highest / heat + np.log(np.maximum(whole - looked_at, LEAST * whole)),
            entropy=np.log(whole) - mean,
            heat=heat,
        )

    def _pick(
        self, best: torch.Tensor, pool: torch.Tensor, heat: Floats, noise: Noise
    ) -> tuple[torch.Tensor, Floats]:
        """[P, C] places in the pool [P, n] of those likeliest with their noise, and [P, C] it."""
        drawn = noise(self._head.target_ids(pool).cpu().numpy())
        scores = best.double().cpu().numpy() / heat[:, None] + drawn
        scores[:, :SURE] = np.inf
        chosen = np.argpartition(-scores, self._candidates - 1, axis=1)[:, : self._candidates]
        chosen = np.sort(chosen, axis=1)
        found: Floats = np.take_along_axis(drawn, chosen, axis=1)
        return torch.from_numpy(chosen).to(pool.device), found

    def begin(self, token: torch.Tensor) -> torch.Tensor:
        """[M] anchors -> [M, size] states of branches that begin there."""
        return self._head.corrector.read(token, self._head.embed(token).float())

    def go_on(self, state: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """[M, size] of the parents and [M] tokens -> [M, size]."""
        return self._head.corrector.step(state, self.begin(token))

    def children(self, depths: Depths, place: Ints, state: torch.Tensor) -> tuple[Floats, Floats]:
        """Log-probabilities of the candidates as children of nodes.

        What was not looked at keeps its uncorrected scores.

        Args:
            place: [M] whose candidates the children are.
            state: [M, size] of the branches that end in the nodes.

        Returns:
            [M, C], and [M] the probability of all tokens whose noise was not looked up.
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
        total = np.logaddexp(seen, depths.rest[place])
        return found - total[:, None], np.exp(depths.unseen[place] - total)
