"""Path-conditioned correctors: what a node's own branch says about its children.

One forward gives a state per depth, the same for every branch of that depth. A corrector adds to it
what the tokens on the way to a node imply, so that the children of "return" differ from those of
"for" at the same depth. It runs after the forward, for the nodes that are expanded, and only the
likeliest candidates of a depth are scored with it: a few small products instead of a forward.

Kinds:

- ``low_rank``: a bias on the logits, ``out[candidate] . in(parent embedding)``, of rank r (PCTree);
  ``markov``: the same with a table of parent tokens, which public heads bring (DSpark).
- ``gated``: a map of the parent's embedding is added to the slot's state, under a gate of both.
- ``recurrent``: the same, of a small recurrent state along the whole branch (a minimal gated unit,
  Zhou et al. 2016) instead of the parent alone.

Legend: [...] any leading shape, H hidden, r rank, C candidates.
"""

from __future__ import annotations

import torch
from torch import nn

from adaptive_spec.heads.config import HeadConfig


class Corrector(nn.Module):
    """Corrects nothing; the base of those that do, and the head without one.

    ``read`` is the branch state at the anchor, ``step`` goes on by one token, ``states`` does so
    along whole paths. ``shift`` is added to a slot's state before the output layer, ``bias`` to
    the logits of candidates after it.
    """

    size = 1
    """Width of a branch state."""

    def step(
        self, state: torch.Tensor, token: torch.Tensor, embedded: torch.Tensor
    ) -> torch.Tensor:
        """[..., size] of the parent and the node's token -> [..., size]."""
        return self.read(token, embedded)

    def read(self, token: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """[..., size] what a token by itself says, of [...] target ids and [..., H] embeddings."""
        return embedded[..., : self.size]

    def states(self, token: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """Paths of n tokens [..., n], the anchor first -> [..., n, size] after each."""
        return self.read(token, embedded)

    def shift(self, hidden: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """[..., H] state of the slot and [..., size] of the branch -> [..., H] to go on with."""
        return hidden

    def bias(self, state: torch.Tensor, candidates: torch.Tensor | None) -> torch.Tensor | None:
        """[..., size] and draft ids [..., C] (None: all of them) -> [..., C] or None for 0."""
        return None


class LowRank(Corrector):
    """A low-rank bias conditioned on the parent's embedding."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.size = config.rank
        self.inward = self._inward(config)
        self.outward = nn.Parameter(torch.zeros(config.draft_vocab or config.vocab, config.rank))

    def _inward(self, config: HeadConfig) -> nn.Module:
        return nn.Linear(config.hidden, config.rank, bias=False)

    def read(self, token: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inward(embedded)
        return found

    def bias(self, state: torch.Tensor, candidates: torch.Tensor | None) -> torch.Tensor | None:
        if candidates is None:
            return state @ self.outward.T
        return (self.outward[candidates] @ state[..., None])[..., 0]


class Markov(LowRank):
    """A low-rank bias conditioned on the parent's id (DSpark): a table of all tokens."""

    def _inward(self, config: HeadConfig) -> nn.Module:
        return nn.Embedding(config.vocab, config.rank)

    def read(self, token: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inward(token)
        return found


class Gated(Corrector):
    """A gated map of the parent's embedding, added to the slot's state."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.size = config.rank
        self.inward = nn.Linear(config.hidden, config.rank, bias=False)
        self.gate = nn.Linear(config.hidden, config.rank)
        self.mix = nn.Linear(config.rank, config.rank)
        self.outward = nn.Linear(config.rank, config.hidden, bias=False)
        nn.init.zeros_(self.outward.weight)

    def read(self, token: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inward(embedded)
        return found

    def shift(self, hidden: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.gate(hidden))
        moved: torch.Tensor = self.outward(nn.functional.silu(self.mix(state)) * gate)
        return hidden + moved


class Recurrent(Gated):
    """The gated map of a state that runs along the branch."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.forget = nn.Linear(2 * config.rank, config.rank)
        self.update = nn.Linear(2 * config.rank, config.rank)

    def step(
        self, state: torch.Tensor, token: torch.Tensor, embedded: torch.Tensor
    ) -> torch.Tensor:
        return self._step(state, self.inward(embedded))

    def states(self, token: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        inward = self.inward(embedded)
        found = [inward[..., 0, :]]
        for place in range(1, inward.shape[-2]):
            found.append(self._step(found[-1], inward[..., place, :]))
        return torch.stack(found, dim=-2)

    def _step(self, state: torch.Tensor, inward: torch.Tensor) -> torch.Tensor:
        forget = torch.sigmoid(self.forget(torch.cat([state, inward], dim=-1)))
        fresh = torch.tanh(self.update(torch.cat([forget * state, inward], dim=-1)))
        return (1.0 - forget) * state + forget * fresh


_KINDS = {"low_rank": LowRank, "markov": Markov, "gated": Gated, "recurrent": Recurrent}


def build_corrector(config: HeadConfig) -> Corrector:
    """The corrector that ``config`` names."""
    kind = _KINDS.get(config.corrector)
    return Corrector() if kind is None else kind(config)
