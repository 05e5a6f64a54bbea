"""Path-conditioned correctors: what a node's own branch says about its children.

One forward gives a state per depth, the same for every branch of that depth. A corrector adds to it
what the tokens on the way to a node imply, so that the children of "return" differ from those of
"for" at the same depth. It runs after the forward, for the nodes that are expanded, and only the
likeliest candidates of a depth are scored with it: a few small products instead of a forward.

Kinds:

- ``low_rank``: a bias on the logits, ``out[candidate] . in(parent embedding)``, of rank r (PCTree);
  ``markov``: the same with a table of parent tokens, which public heads bring (DSpark).
- ``recurrent_bias``: the same from a state that runs along the whole branch, under a gate of the
  slot's state.
- ``gated``: a map of the parent's embedding is added to the slot's state, under a gate of both.
- ``recurrent``: the same, of a small recurrent state along the whole branch (a minimal gated unit,
  Zhou et al. 2016) instead of the parent alone.

Legend: [...] any leading shape, H hidden, r rank, V draft vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn

from adaptive_spec.heads.config import HeadConfig

KEEP = -2.0
"""What the log-odds of keeping a part of a branch's state begin with."""


class Corrector(nn.Module):
    """Corrects nothing; the base of those that do, and the head without one.

    A branch has a state: ``read`` is what a token by itself says, and the state at the anchor;
    ``step`` goes on by one token; ``states`` does so along whole paths. State and slot together ask
    a ``query``, of which a correction is made in two places: ``shift`` is added to the slot's state
    before the output layer, ``bias`` to the scores after it. Both are linear in the query, so the
    score of one draft token moves by the inner product of the query and the token's row of
    ``keys``: that is all that drafting computes.
    """

    size = 1
    """Width of a branch state."""

    def read(self, token: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """[..., size] what a token by itself says, of [...] target ids and [..., H] embeddings."""
        return embedded[..., : self.size]

    def step(self, state: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        """[..., size] of the parent, and what the node's token says (``read``) -> [..., size]."""
        return said

    def states(self, token: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """Paths of n tokens [..., n], the anchor first -> [..., n, size] after each."""
        return self.read(token, embedded)

    def gates(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., H] states of slots -> [..., r] what they let through, for ``query``."""
        return hidden[..., :1]

    def query(self, state: torch.Tensor, gates: torch.Tensor) -> torch.Tensor | None:
        """[..., size] states of branches and [..., r] gates -> [..., r]; None if never any."""
        return None

    def shift(self, query: torch.Tensor) -> torch.Tensor | None:
        """[..., r] -> [..., H] to be added to the slot's state, or None for 0."""
        return None

    def bias(self, query: torch.Tensor) -> torch.Tensor | None:
        """[..., r] -> [..., V] to be added to the scores, or None for 0."""
        return None

    def keys(self, output: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """[V, r] what draft tokens answer to, of the output layer [V, H] and the norm before it."""
        return output.new_zeros((len(output), 1))


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

    def query(self, state: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        return state

    def bias(self, query: torch.Tensor) -> torch.Tensor:
        return query @ self.outward.T.to(query.dtype)

    def keys(self, output: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        return self.outward.detach()


class Markov(LowRank):
    """A low-rank bias conditioned on the parent's id (DSpark): a table of all tokens."""

    def _inward(self, config: HeadConfig) -> nn.Module:
        return nn.Embedding(config.vocab, config.rank)

    def read(self, token: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inward(token)
        return found


class RecurrentBias(LowRank):
    """A low-rank bias from a state that runs along the branch, gated by the slot's.

    It begins as ``LowRank`` that has nearly forgotten what was before the parent.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.hidden, config.rank)
        self.keep = nn.Linear(2 * config.rank, config.rank)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        nn.init.constant_(self.keep.bias, KEEP)

    def gates(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = nn.functional.rms_norm(hidden, hidden.shape[-1:])
        return 2.0 * torch.sigmoid(self.gate(normed))

    def query(self, state: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        return state * gates

    def step(self, state: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        kept: torch.Tensor = torch.sigmoid(self.keep(torch.cat([state, said], dim=-1))) * state
        return said + kept

    def states(self, token: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        return _along(self, self.read(token, embedded))


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

    def gates(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.gate(hidden))

    def query(self, state: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(self.mix(state)) * gates

    def shift(self, query: torch.Tensor) -> torch.Tensor:
        moved: torch.Tensor = self.outward(query)
        return moved

    def keys(self, output: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        return output @ (norm[:, None] * self.outward.weight.detach()).to(output.dtype)


class Recurrent(Gated):
    """The gated map of a state that runs along the branch."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.forget = nn.Linear(2 * config.rank, config.rank)
        self.update = nn.Linear(2 * config.rank, config.rank)

    def step(self, state: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        forget = torch.sigmoid(self.forget(torch.cat([state, said], dim=-1)))
        fresh = torch.tanh(self.update(torch.cat([forget * state, said], dim=-1)))
        return torch.lerp(state, fresh, forget)

    def states(self, token: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        return _along(self, self.read(token, embedded))


def _along(corrector: Corrector, said: torch.Tensor) -> torch.Tensor:
    """[..., n, size] what the tokens of paths say -> the states after each."""
    found = [said[..., 0, :]]
    for place in range(1, said.shape[-2]):
        found.append(corrector.step(found[-1], said[..., place, :]))
    return torch.stack(found, dim=-2)


_KINDS = {
    "low_rank": LowRank,
    "markov": Markov,
    "recurrent_bias": RecurrentBias,
    "gated": Gated,
    "recurrent": Recurrent,
}


def build_corrector(config: HeadConfig) -> Corrector:
    """The corrector that ``config`` names."""
    kind = _KINDS.get(config.corrector)
    return Corrector() if kind is None else kind(config)
