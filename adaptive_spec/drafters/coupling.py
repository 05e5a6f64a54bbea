"""What drafters share that learn a node's children by asking a model: whom to ask, how to rank.

**Coupling.** The target's token at a position is ``argmax(log p + g)`` with keyed Gumbel noise g
that a drafter can read (design, section 5). A drafter whose q is near p therefore guesses best with
``argmax(log q + g)``, and its other candidates follow in the order of ``s = log q + g``. Given the
noise nothing is random any more but the drafter's error ``log p - log q``. Taking that as Gumbel
noise of scale ``1 / sharpness`` per token, a candidate's chance against the other candidates is a
softmax of ``sharpness * s`` (the logit model of discrete choice, McFadden 1974). Tokens that were
not looked at compete as one: the largest of their perturbed scores is itself Gumbel distributed,
with location ``log(rest)`` where rest is their total mass, so all of them stay below m with
probability ``exp(-rest * exp(-m))``; m is the smooth maximum of the candidates' scores.

If p = q, the target's token lies outside the candidates with probability ``rest`` exactly: looking
at the likeliest C tokens only loses their missing mass, and nothing because of the noise.

**Growth.** A tree grows in rounds: one call of the model expands several of the best nodes whose
children are unknown. Which ones depends on the number of nodes wanted only in that hopeless ones
are left out, so trees are nested in their size, as those of a heap are that asks one at a time.

Legend: C candidates of one node; M nodes; m rows of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, nan

import numpy as np

from adaptive_spec import tree as trees
from adaptive_spec.drafters.base import CandidateTree, DraftRequest
from adaptive_spec.packing import Part
from adaptive_spec.types import ROOT, Floats, Ints

SHARPNESS = 1.5
"""How near q is believed to be to p. Right where log q errs by a standard deviation of 1; on random
pairs with V = 1000 the best is 3 for an error of 0.5, and 1 for an error of 2."""


def coupled_logq(
    logq: Floats, gumbel: Floats, rest: Floats | float, sharpness: float = SHARPNESS
) -> Floats:
    """[..., C] log-probability of each candidate to be the target's choice, given the noise.

    Args:
        logq: [..., C] log-probabilities of the candidates; -inf for one that cannot be.
        gumbel: [..., C] the request's noise of the same tokens at their position.
        rest: [...] probability of all other tokens together.
        sharpness: inverse scale of the drafter's error in log p; larger means nearer to p.

    Returns:
        Values in the order of ``logq + gumbel``, whatever the sharpness. Their exponentials sum to
        less than 1 by what the unseen tokens may win; to 1 where ``rest`` is 0.
    """
    score = sharpness * (logq + gumbel)
    total = np.logaddexp.reduce(score, axis=-1)
    unseen = rest * np.exp(-total / sharpness)
    chance: Floats = score - np.asarray(total + unseen)[..., None]
    return chance


def couple(
    requests: Sequence[DraftRequest], positions: Sequence[int], token: Ints, logq: Floats
) -> Floats:
    """[M, C] ``coupled_logq`` with each request's own noise; ``logq`` itself where there is none.

    Args:
        requests: [M] whose nodes they are.
        positions: [M] index in the request of the token that the children guess.
        token: [M, C] candidates.
        logq: [M, C] their log-probabilities.
    """
    if all(request.noise is None for request in requests):
        return logq
    rest = np.clip(1.0 - np.exp(logq).sum(axis=1), 0.0, 1.0)
    chance = logq.copy()
    alike: dict[tuple[str, int], list[int]] = {}  # one call of the noise per request and position
    for row, (request, position) in enumerate(zip(requests, positions, strict=True)):
        alike.setdefault((request.id, position), []).append(row)
    for (_, position), rows in alike.items():
        if (noise := requests[rows[0]].noise) is not None:
            gumbel = noise.gumbel(position, token[rows].ravel()).reshape(len(rows), -1)
            chance[rows] = coupled_logq(logq[rows], gumbel, rest[rows])
    return chance


@dataclass(slots=True, eq=False)
class Node:
    """A node of a growing tree. The root is the newest token, at depth 0."""

    token: int
    above: Node | None
    depth: int
    children: Sequence[trees.Child[Node]] | None = None
    """By falling log-probability; None as long as the model was not asked."""
    margin: float = nan
    entropy: float = nan


def hang(
    nodes: Sequence[Node], token: Ints, logq: Floats, chance: Floats, entropy: Floats, most: int
) -> None:
    """Give every node its ``most`` best children, and the facts that their features come from.

    Args:
        nodes: [M].
        token, logq: [M, C] candidates, at least two, and what the drafter gives them.
        chance: [M, C] log-probabilities that rank and price them; those not finite cannot be.
        entropy: [M] of the drafter's whole distribution, in nats.
    """
    rows = np.arange(len(nodes))[:, None]
    best = np.argsort(-chance, axis=1, kind="stable")[:, :most]
    tokens, odds = token[rows, best].tolist(), np.minimum(chance[rows, best], 0.0).tolist()
    leading = np.partition(logq, -2, axis=1)[:, -2:]
    margins = (leading[:, 1] - leading[:, 0]).tolist()
    for row, node in enumerate(nodes):
        node.margin, node.entropy = margins[row], float(entropy[row])
        node.children = [
            (child, odd, Node(child, node, node.depth + 1))
            for child, odd in zip(tokens[row], odds[row], strict=True)
            if isfinite(odd)
        ]


@dataclass(slots=True, eq=False)
class Sapling:
    """A tree that grows by one level or less per round."""

    root: Node
    """Its children are known."""
    nodes: int
    """Most nodes of the tree, at least 1."""
    reach: int
    """Deepest level, at least 1."""
    floor: float = 0.0
    """Least survival of a node."""
    patience: int | None = None
    """Rounds at most; as many as there are levels below the first if not given. With as many as
    nodes the tree is the one that a heap finds."""
    rounds: int = 0
    """Rounds so far."""
    sprouts: list[Node] = field(default_factory=list)
    """Nodes whose children this round asks for, best first."""
    rows: list[int] = field(default_factory=list)
    """Their rows in ``part``."""

    def __post_init__(self) -> None:
        for _, _, node in self.root.children or ():
            node.children = None  # another tree may have grown on the same root

    def sprout(self, width: int) -> bool:
        """Begin a round: choose at most ``width`` nodes; False if none could change the tree."""
        self.rounds += 1
        self.sprouts = []
        if self.rounds <= (self.reach - 1 if self.patience is None else self.patience):
            # The last of the best nodes need not be asked about: its children come after it.
            trees.grow(self.root, self._note, self.nodes - 1, self.reach, self.floor)
        del self.sprouts[width:]
        return len(self.sprouts) > 0

    def _note(self, node: Node) -> Sequence[trees.Child[Node]]:
        if node.children is None:
            self.sprouts.append(node)
        return node.children or ()

    def part(self, owner: int, position: int) -> Part:
        """The sprouts and their ancestors below the root, parents first.

        Args:
            position: of the root, which is in the cache already.
        """
        closed: dict[Node, None] = {}
        for sprout in self.sprouts:
            node = sprout
            while node.above is not None and node not in closed:
                closed[node] = None
                node = node.above
        nodes = sorted(closed, key=lambda node: node.depth)
        row: dict[Node | None, int] = {node: place for place, node in enumerate(nodes)}
        self.rows = [row[sprout] for sprout in self.sprouts]
        return Part(
            owner=owner,
            tokens=np.array([node.token for node in nodes]),
            positions=np.array([position + node.depth for node in nodes]),
            sees=trees.ancestors(np.array([row.get(node.above, ROOT) for node in nodes]))[1:, 1:],
        )

    def tree(self) -> CandidateTree:
        """The best nodes of what has grown, best first; features ``margin`` and ``entropy``."""
        grown = trees.grow(
            self.root, lambda n: n.children or (), self.nodes, self.reach, self.floor
        )
        nodes: list[Node] = []
        facts: list[tuple[float, float]] = []
        for parent, rank in zip(grown.parent.tolist(), grown.rank.tolist(), strict=True):
            above = self.root if parent == ROOT else nodes[parent]
            nodes.append((above.children or ())[rank][2])
            facts.append((above.margin, above.entropy))
        margin, entropy = np.array(facts, dtype=np.float64).reshape(-1, 2).T
        return replace(grown, features={"margin": margin, "entropy": entropy})
