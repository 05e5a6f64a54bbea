"""The ``causal_parallel`` drafter: a head on the target's hidden states drafts all depths at once.

Taps of verified tokens become the head's context (``heads.memory``). One packed forward gives a
state per request and depth, and the tree grows from these in rounds (``coupling.Sapling``): for
every node that is expanded, the corrector makes the depth's distribution that of the node's own
branch, over the depth's likeliest candidates (``heads.branches``). Above temperature 0 children are
ranked by the noise that the target draws with. On a GPU a lattice of branches is computed there and
fetched once instead (``heads.lattice``), unless a learner wants to see what drafts were made of.

Legend: R requests, D depths, H hidden, C candidates of a depth, M nodes expanded together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from types import ModuleType
from typing import Any

import numpy as np
import torch

from adaptive_spec.drafters.base import CandidateTree, Committed, DraftRequest
from adaptive_spec.drafters.coupling import Node, Sapling, coupled_logq, hang
from adaptive_spec.errors import ArgumentError, HeadError
from adaptive_spec.heads.branches import Branches, Depths, Noise
from adaptive_spec.heads.config import check_target
from adaptive_spec.heads.digest import digest
from adaptive_spec.heads.head import Head
from adaptive_spec.heads.lattice import Grown, Lattice
from adaptive_spec.heads.memory import HeadMemory, Known
from adaptive_spec.heads.store import TARGET, Stored
from adaptive_spec.model_facts import describe
from adaptive_spec.online.passages import Passages
from adaptive_spec.sampling import gumbel
from adaptive_spec.target import is_out_of_memory
from adaptive_spec.types import Floats, Ints, Plan
from adaptive_spec.uploading import upload

MOST = 64
"""Candidates of a place in a lattice at most."""
LARGE = 4
"""Rounds that a large tree should take."""
SHARPNESS = 0.7
"""How near a head's q is believed to be to p under noise, see ``coupling``: the deeper slots of one
forward err by more than a model that is asked anew at every depth."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What one draft of a request was made of, for those who learn from its verdict."""

    anchor: int
    """The newest token, at the root."""
    heat: float
    hidden: torch.Tensor
    """[D, H] float32, and so on as in ``heads.branches.Depths``."""
    tokens: Ints
    """[D, C]."""
    scores: torch.Tensor
    """[D, C]."""
    rest: Floats
    """[D]."""


@dataclass(slots=True, eq=False)
class _Draft:
    """One request's way through a ``propose``."""

    request: DraftRequest
    plan: Plan
    known: Known
    place: int = 0
    """Of its first depth, among those of all requests."""
    sapling: Sapling | None = None
    states: dict[Node, torch.Tensor] = field(default_factory=dict)
    """Branch states of the nodes whose children were asked for."""
    number: int = 0
    """Among the requests of a lattice."""
    spots: dict[Node, int] = field(default_factory=dict)
    """Which node of its depth in the lattice."""


Asked = Sequence[tuple[_Draft, Node]]
"""Nodes that want children."""


class CausalParallelDrafter:
    """Drafts with a trained head; see the module docstring.

    Args:
        head: with the target's weights lent to it, on the target's device.
        context_limit: the target's.
        width: nodes expanded together per request; more for trees of ``LARGE`` times as many.
        siblings: most children considered per node.
        candidates: tokens of a depth that the corrector scores: the likeliest, with their noise
            where it is read.
        coupled: above temperature 0, rank children by the noise that the target draws with.
        kernels: what computes lattices (``heads.lattice``); None to ask round by round.

    Raises:
        ArgumentError: an option below 1.

    Node features: ``margin`` of the branch's own distribution, as of the ``draft_model`` drafter,
    and ``entropy`` of its slot's before the corrector, equal for all branches.
    """

    name = "causal_parallel"
    has_model = True

    def __init__(
        self,
        head: Head,
        context_limit: int,
        *,
        width: int = 8,
        siblings: int = 8,
        candidates: int = 64,
        coupled: bool = True,
        slots: int = 512,
        kernels: ModuleType | None = None,
    ) -> None:
        options = {"width": width, "siblings": siblings, "candidates": candidates, "slots": slots}
        for option, value in options.items():
            if value < 1:
                raise ArgumentError(option, value, "at least 1")
        self.head, self.reads_noise, self.taps = head, coupled, tuple(head.config.taps)
        self._width, self._siblings = width, siblings
        count = min(max(candidates, siblings, 2), len(head.output))
        self._branches = Branches(head, count)
        self._lattice: Lattice | None = None
        if kernels is not None:
            power = 1 << (min(count, MOST).bit_length() - 1)
            self._lattice = Lattice(head, power, min(siblings, power), kernels)
        self._limit = context_limit
        self._device = head.output.device
        self.memory = HeadMemory(head, context_limit, slots)
        self.moments: dict[str, Moment] = {}
        """By request, of the newest draft; a learner takes them out."""
        self.stored: Stored | None = None
        """What is known of the head, where it was read from disk."""
        self.wants_moments = False
        self.passages: Passages | None = None
        """Where texts and taps go that the whole head learns from, if it does."""

    def start(self, request: DraftRequest) -> None:
        """An empty memory; the prompt's taps come with ``commit``."""
        self.memory.start(request.id)

    def commit(self, requests: Sequence[DraftRequest], news: Sequence[Committed]) -> None:
        """Keep the taps of what was verified, until a draft is wanted."""
        for request, new in zip(requests, news, strict=True):
            if len(new.rows):
                rows = upload(np.asarray(new.rows), self._device)
                taps = torch.cat([new.taps[layer][rows] for layer in self.taps], dim=-1)
                positions = np.asarray(new.positions)
                self.memory.keep(request.id, taps, positions)
                if self.passages is not None:
                    tokens = torch.as_tensor([request.tokens[at] for at in positions])
                    self.passages.write(request.id, tokens, taps.cpu(), positions)

    def finish(self, request: DraftRequest) -> None:
        """Give the request's slots back."""
        self.moments.pop(request.id, None)
        if self.passages is not None:
            self.passages.end(request.id)
        self.memory.finish(request.id)

    def refresh(self) -> None:
        """The head's weights are others now: compute anew what was made with the former ones.

        Raises:
            HeadError: a request's taps are not known from its beginning.
        """
        if self.passages is not None:
            self.memory.refresh(self.passages.taps)
        self._branches.refresh()
        if self._lattice is not None:
            self._lattice.refresh()
        self.moments.clear()

    @torch.no_grad()
    def propose(
        self, requests: Sequence[DraftRequest], plans: Sequence[Plan]
    ) -> list[CandidateTree]:
        """The best ``plan.nodes`` nodes for each request; none where the head cannot draft."""
        drafts = [
            _Draft(request, plan, self.memory[request.id])
            for request, plan in zip(requests, plans, strict=True)
        ]
        for request in requests:
            self.moments.pop(request.id, None)
        live = [d for d in drafts if d.plan.nodes > 0 and d.plan.depth > 0]
        if live:
            self.memory.catch_up([draft.request.id for draft in live])
            self._draft(live)
        return [
            draft.sapling.tree() if draft.sapling else CandidateTree.empty() for draft in drafts
        ]

    def _draft(self, drafts: Sequence[_Draft]) -> None:
        """Trees for all; where one request spoils the forward, the others draft alone."""
        deepest = max(draft.plan.depth for draft in drafts)
        hidden = self._forward(drafts)[:, :deepest]
        climbed = None
        if self._lattice is not None and not self.wants_moments:
            climbed = self._tried(drafts, hidden, self._lattice)
        if climbed is not None:
            sound = climbed
        elif sound := (depths := self._look(drafts, hidden)) is not None:
            self._grow(drafts, partial(self._expand, depths=depths))
            if self.wants_moments:
                self._note(drafts, depths)
        if not sound:
            self.memory.context.clear()
            for draft in drafts if len(drafts) > 1 else ():
                self._draft([draft])

    def _tried(
        self, drafts: Sequence[_Draft], hidden: torch.Tensor, lattice: Lattice
    ) -> bool | None:
        """As ``_climb``; None if the kernels fail, which are then used no more."""
        try:
            return self._climb(drafts, hidden, lattice)
        except Exception as error:  # whatever a compiler or a driver raises
            if is_out_of_memory(error):
                raise
            warnings.warn(f"drafts go on without kernels, they failed: {error}", stacklevel=2)
            self._lattice = None
            return None

    def _climb(self, drafts: Sequence[_Draft], hidden: torch.Tensor, lattice: Lattice) -> bool:
        """Trees within a lattice, those of requests that draw apart; False if not all is finite."""
        coupled = self.reads_noise
        for drawing in (False, True):
            kind = [n for n, d in enumerate(drafts) if drawing == (d.request.noise is not None)]
            if not kind:
                continue
            some = [drafts[n] for n in kind]
            rows = upload(kind, self._device)
            anchors = upload([d.request.tokens[-1] for d in some], self._device)
            heat = np.array([draft.request.temperature or 1.0 for draft in some])
            noise = self._keyed(some, hidden.shape[1]) if drawing and coupled else None
            width = max(self._wide(draft) for draft in some)
            grown = lattice.grow(hidden[rows], anchors, heat, width, noise, SHARPNESS)
            if grown is None:
                return False
            for number, draft in enumerate(some):
                draft.number = number
            self._grow(some, partial(_read, grown=grown))
        return True

    def _keyed(self, drafts: Sequence[_Draft], levels: int) -> Callable[..., torch.Tensor]:
        """The noise of every request at every level, on the device."""
        starts = [
            [draft.request.noise.start(len(draft.request.tokens) + level)]
            for draft in drafts
            if draft.request.noise is not None
            for level in range(levels)
        ]
        return partial(gumbel, upload(starts, self._device))

    def _note(self, drafts: Sequence[_Draft], depths: Depths) -> None:
        """Views of what the drafts were made of; nothing is copied."""
        levels = len(depths.tokens) // len(drafts)
        for draft in drafts:
            rows = slice(draft.place, draft.place + levels)
            self.moments[draft.request.id] = Moment(
                anchor=int(draft.request.tokens[-1]),
                heat=float(depths.heat[draft.place]),
                hidden=depths.hidden[rows],
                tokens=depths.tokens[rows],
                scores=depths.scores[rows],
                rest=depths.rest[rows],
            )

    def _forward(self, drafts: Sequence[_Draft]) -> torch.Tensor:
        """[R, D, H] of one packed forward for all requests."""
        context = self.memory.context
        anchors = upload([[d.request.tokens[-1] for d in drafts]], self._device)
        positions = upload([[len(d.request.tokens) - 1 for d in drafts]], self._device)
        before = torch.stack([draft.known.before for draft in drafts])[None]
        mask = context.mask([draft.known.owner for draft in drafts])
        extend = context.extend(len(drafts) * self.head.config.block)
        hidden: torch.Tensor = self.head(self.head.slots(anchors, before), positions, extend, mask)[
            0
        ]
        return hidden

    def _look(self, drafts: Sequence[_Draft], hidden: torch.Tensor) -> Depths | None:
        """Candidates of every place; None if any of it is not finite."""
        for place, draft in enumerate(drafts):
            draft.place = place * hidden.shape[1]
        heat = np.array([draft.request.temperature or 1.0 for draft in drafts])
        noise = self._noise(drafts, hidden.shape[1])
        return self._branches.look(hidden.flatten(0, 1), heat.repeat(hidden.shape[1]), noise)

    def _noise(self, drafts: Sequence[_Draft], levels: int) -> Noise | None:
        """Of every request at every level; None if no request draws."""
        if not self.reads_noise or all(draft.request.noise is None for draft in drafts):
            return None

        def of(tokens: Ints) -> Floats:
            found = np.zeros(tokens.shape)
            for draft in drafts:
                if (keyed := draft.request.noise) is not None:
                    for level in range(levels):
                        position, row = len(draft.request.tokens) + level, draft.place + level
                        found[row] = keyed.gumbel(position, tokens[row])
            return found

        return of

    def _grow(self, drafts: Sequence[_Draft], expand: Callable[[Asked], None]) -> None:
        """Rounds of expansions, while one of them can change a tree."""
        most = self.head.config.depth
        roots = [(draft, Node(int(draft.request.tokens[-1]), None, 0)) for draft in drafts]
        for draft, root in roots:
            draft.spots = {root: 0}
        expand(roots)
        for draft, root in roots:
            reach = min(draft.plan.depth, most, self._limit - len(draft.request.tokens) + 1)
            nodes, floor = draft.plan.nodes, draft.plan.floor or 0.0
            draft.sapling = Sapling(root, nodes, max(reach, 1), floor, patience=nodes)
        growing = list(drafts)
        while growing := [d for d in growing if d.sapling and d.sapling.sprout(self._wide(d))]:
            asked = [(d, node) for d in growing if d.sapling for node in d.sapling.sprouts]
            expand(asked)

    def _wide(self, draft: _Draft) -> int:
        """Nodes to expand together: large trees in about as many rounds as small ones."""
        return max(self._width, draft.plan.nodes // LARGE)

    def _expand(self, asked: Asked, depths: Depths) -> None:
        """Give nodes their children: the depth's candidates, scored for the node's own branch."""
        place = np.array([draft.place + node.depth for draft, node in asked])
        logq, unseen = self._branches.children(depths, place, self._states(asked))
        tokens, entropy, chance = depths.tokens[place], depths.entropy[place], logq
        if depths.noise is not None:
            draws = np.array([draft.request.noise is not None for draft, _ in asked])
            coupled = coupled_logq(logq, depths.noise[place], unseen, SHARPNESS)
            chance = np.where(draws[:, None], coupled, logq)
        hang([node for _, node in asked], tokens, logq, chance, entropy, self._siblings)

    def _states(self, asked: Asked) -> torch.Tensor:
        """[M, size] branch states of nodes: all roots, or none of them."""
        tokens = torch.tensor([node.token for _, node in asked], device=self._device)
        parents = [draft.states[node.above] for draft, node in asked if node.above is not None]
        if parents:
            found = self._branches.go_on(torch.stack(parents), tokens)
        else:
            found = self._branches.begin(tokens)
        for (draft, node), state in zip(asked, found.unbind(), strict=True):
            draft.states[node] = state
        return found


def _read(asked: Asked, grown: Grown) -> None:
    """Give nodes their children out of a lattice; those outside of it have none."""
    for draft, node in asked:
        node.children = []
        if (spot := draft.spots.get(node, -1)) < 0:
            continue
        at = (draft.number, node.depth, spot)
        node.margin, node.entropy = float(grown.margin[at]), float(grown.entropy[at[:2]])
        facts = (part[at].tolist() for part in (grown.tokens, grown.chance, grown.below))
        for token, odd, below in zip(*facts, strict=True):
            if isfinite(odd):
                child = Node(token, node, node.depth + 1)
                node.children.append((token, odd, child))
                draft.spots[child] = below


def for_target(stored: Stored, model: Any, **options: Any) -> CausalParallelDrafter:
    """A drafter with a stored head for ``model``; ``options`` are the drafter's own.

    Raises:
        HeadError: the head was made for another target; the field is named.
    """
    facts = describe(model)
    check_target(stored.target, facts)
    if (made := stored.target.get("digest")) is not None and (found := digest(model)) != made:
        raise HeadError("target.digest", found, f"the head was made for weights {made}")
    if (deepest := max(stored.head.config.taps)) >= facts.layers:
        raise HeadError("taps", deepest, f"layers 0 to {facts.layers - 1} of this target")
    head = stored.head.to(device=model.device, dtype=model.dtype)
    head.corrector.float()
    if head.bias is not None:
        head.bias.data = head.bias.data.float()
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    head.lend(embeddings.weight, output.weight)
    drafter = CausalParallelDrafter(head, facts.context_limit, **options)
    whole = {name: getattr(facts, name) for name in TARGET if hasattr(facts, name)}
    whole |= {"digest": made or digest(model), **stored.target}  # public heads know less
    drafter.stored = replace(stored, head=head, target=whole)
    return drafter
