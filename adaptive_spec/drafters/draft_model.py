"""The ``draft_model`` drafter: a smaller language model with the target's token map grows the tree.

It has a slot pool of its own, which holds K and V of verified tokens only, the newest included. In
``propose`` one packed forward brings all requests up to date, and its last rows give the children
of the roots. Then the trees grow in rounds (``coupling.Sapling``), one packed forward each: up to
``width`` nodes per request together with their ancestors, because K and V of drafts are not kept.
Above temperature 0 children are ranked by the noise that the target draws with (``coupling``).

Failure costs drafts and nothing else: a request that leaves the draft model's context or
vocabulary, or whose logits are not finite, gets no tree, and its neighbours still get theirs.

Legend: M rows of a packed forward, or of nodes asked about; V the draft model's vocabulary; C
candidates looked at per node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch

from adaptive_spec.cache import SlotCache, SlotPool
from adaptive_spec.drafters.base import CandidateTree, Committed, DraftRequest
from adaptive_spec.drafters.coupling import Node, Sapling, couple, hang
from adaptive_spec.errors import ArgumentError
from adaptive_spec.packing import PackedBatch, Part, chain_part, pack
from adaptive_spec.target import Target
from adaptive_spec.types import Floats, Ints, Plan

CHUNK = 512
"""Most prompt tokens per forward."""
SHARED = 32
"""Requests that lack more tokens than this (new prompts) first get forwards of their own."""


@dataclass(slots=True, eq=False)
class _Context:
    """What the draft model knows of one request."""

    owner: int
    root: Node | None = None
    """The newest token, if K and V of all tokens are in the pool."""
    lost: bool = False
    """No more drafts for this request; its slots were given back."""


@dataclass(slots=True, eq=False)
class _Draft:
    """One request's way through a ``propose``."""

    request: DraftRequest
    plan: Plan
    context: _Context
    length: int
    sapling: Sapling | None = None
    """None until the context is complete, and where there is to be no tree."""


_Settle: TypeAlias = Callable[[Sequence[_Draft], PackedBatch, torch.Tensor], None]
"""Takes the logits of a packed forward, and commits those of its slots that are to stay."""


class DraftModelDrafter:
    """Drafts with a causal language model; see the module docstring.

    Args:
        model: a loaded Hugging Face model in eval mode, on any device; it may be the target itself.
            Its token map must be the target's, see ``pairing.check_pairing``.
        width: most nodes expanded per request and round.
        siblings: most children considered per node.
        coupled: above temperature 0, rank children by the noise that the target draws with.
        slots: slots to begin with; the pool grows by doubling, up to a context per request.
        candidates: likeliest tokens of a node that coupling looks at.

    Raises:
        UnsupportedError: a model that packed forwards would change; as for the target.
        ArgumentError: an option below 1.

    Node features: ``margin`` (top-1 minus top-2 log-probability) and ``entropy`` (nats) of the
    draft model after the node's parent. They and ``logq`` are at the request's temperature (1 for
    a greedy request); where the noise ranks, ``logq`` is the log-probability given the noise.
    """

    name = "draft_model"
    taps: tuple[int, ...] = ()
    has_model = True

    def __init__(
        self,
        model: Any,
        *,
        width: int = 8,
        siblings: int = 8,
        coupled: bool = True,
        slots: int = 512,
        candidates: int = 64,
        kernels: bool = True,
    ) -> None:
        options = {"width": width, "siblings": siblings, "slots": slots, "candidates": candidates}
        for option, value in options.items():
            if value < 1:
                raise ArgumentError(option, value, "at least 1")
        self.target, self.reads_noise = Target(model, kernels=kernels), coupled
        self._width, self._siblings = width, siblings
        self._candidates = max(candidates, siblings, 2)
        facts = self.target.architecture
        self._vocab, self._limit = facts.vocab, facts.context_limit
        self.pool = SlotPool(slots, facts.context_limit)
        self.cache = SlotCache(facts.layers, self.pool)
        self._contexts: dict[str, _Context] = {}

    def start(self, request: DraftRequest) -> None:
        """Open an empty context; the prompt is read when the first tree is wanted."""
        self.finish(request)
        self._contexts[request.id] = _Context(self.pool.join())

    def commit(self, requests: Sequence[DraftRequest], news: Sequence[Committed]) -> None:
        """Nothing to keep: ``propose`` reads what is new from ``request.tokens``."""

    def finish(self, request: DraftRequest) -> None:
        """Give the request's slots back, whatever state it is in."""
        if (context := self._contexts.pop(request.id, None)) is not None:
            self.pool.leave(context.owner)

    @torch.no_grad()
    def propose(
        self, requests: Sequence[DraftRequest], plans: Sequence[Plan]
    ) -> list[CandidateTree]:
        """The best ``plan.nodes`` nodes for each request; none where the model cannot draft.

        Raises:
            Whatever the model raises. Contexts stay true, and the next call goes on from them.
        """
        drafts = [
            _Draft(request, plan, self._contexts[request.id], len(request.tokens))
            for request, plan in zip(requests, plans, strict=True)
        ]
        live = [d for d in drafts if d.plan.nodes > 0 and d.plan.depth > 0 and self._readable(d)]
        self._catch_up(live)
        for draft in live:
            if (root := draft.context.root) is not None:
                # The deepest nodes are never fed to the model: they need no position of its own.
                reach = min(draft.plan.depth, self._limit - draft.length + 1)
                draft.sapling = Sapling(root, draft.plan.nodes, reach, draft.plan.floor or 0.0)
        self._grow(live)
        return [
            draft.sapling.tree() if draft.sapling else CandidateTree.empty() for draft in drafts
        ]

    # -- the verified text ----------------------------------------------------------------------

    def _readable(self, draft: _Draft) -> bool:
        """False, for good, once the text left the model's context or vocabulary."""
        if draft.context.lost or draft.length == 0:
            return False
        if draft.length > self._limit or max(self._missing(draft), default=0) >= self._vocab:
            self._lose(draft.context)
        return not draft.context.lost

    def _lose(self, context: _Context) -> None:
        context.lost, context.root = True, None
        self.pool.leave(context.owner)

    def _missing(self, draft: _Draft) -> list[int]:
        """Verified tokens whose K and V are not in the pool."""
        return list(draft.request.tokens[len(self.pool.slots(draft.context.owner)) :])

    def _catch_up(self, drafts: Sequence[_Draft]) -> None:
        """Complete every context, the newest token included, and learn what may follow it."""
        for draft in drafts:
            while not draft.context.lost and len(missing := self._missing(draft)) > SHARED:
                parts = [self._chain(draft, missing[:-1][:CHUNK])]
                self._packed([draft], parts, self._keep, last_only=True)
        late = [draft for draft in drafts if not draft.context.lost and self._missing(draft)]
        if late:
            parts = [self._chain(draft, self._missing(draft)) for draft in late]
            self._packed(late, parts, self._root)

    def _chain(self, draft: _Draft, tokens: Sequence[int]) -> Part:
        owner = draft.context.owner
        return chain_part(owner, tokens, len(self.pool.slots(owner)))

    def _keep(self, drafts: Sequence[_Draft], batch: PackedBatch, logits: torch.Tensor) -> None:
        """Every row is a verified token: its slot goes to the request."""
        for part, (start, end) in zip(batch.parts, pairwise(batch.starts.tolist()), strict=True):
            self.pool.commit(part.owner, batch.slots[start:end], part.positions)

    def _root(self, drafts: Sequence[_Draft], batch: PackedBatch, logits: torch.Tensor) -> None:
        """The last row of every part is a newest token, the root of the tree to come."""
        asked = [(draft, Node(int(draft.request.tokens[-1]), None, 0)) for draft in drafts]
        self._expand(asked, logits, (batch.starts[1:] - 1).tolist())
        for draft, root in asked:
            draft.context.root = root
        self._keep(drafts, batch, logits)

    # -- the trees ------------------------------------------------------------------------------

    def _grow(self, drafts: Sequence[_Draft]) -> None:
        """Rounds of one packed forward each, while one of them can change a tree."""
        while True:
            drafts = [d for d in drafts if d.sapling and d.sapling.sprout(self._width)]
            parts = [
                draft.sapling.part(draft.context.owner, draft.length - 1)
                for draft in drafts
                if draft.sapling
            ]
            if not parts or sum(len(part.tokens) for part in parts) > self.pool.free:
                return
            self._packed(drafts, parts, self._branch)

    def _branch(self, drafts: Sequence[_Draft], batch: PackedBatch, logits: torch.Tensor) -> None:
        """Give the sprouts their children. No slot is kept."""
        asked: list[tuple[_Draft, Node]] = []
        rows: list[int] = []
        for draft, start in zip(drafts, batch.starts.tolist(), strict=False):
            assert draft.sapling is not None
            asked += [(draft, node) for node in draft.sapling.sprouts]
            rows += [start + row for row in draft.sapling.rows]
        self._expand(asked, logits, rows)

    def _expand(
        self, asked: Sequence[tuple[_Draft, Node]], logits: torch.Tensor, rows: Sequence[int]
    ) -> None:
        """Set the children of every node asked about: what the model expects in its row."""
        requests = [draft.request for draft, _ in asked]
        chosen = logits[torch.tensor(rows, device=logits.device)]
        token, logq, entropy = _likeliest(chosen, requests, self._candidates)
        chance = logq
        if self.reads_noise:
            positions = [draft.length + node.depth for draft, node in asked]
            chance = couple(requests, positions, token, logq)
        hang([node for _, node in asked], token, logq, chance, entropy, self._siblings)

    # -- one forward ----------------------------------------------------------------------------

    def _packed(
        self,
        drafts: Sequence[_Draft],
        parts: Sequence[Part],
        settle: _Settle,
        last_only: bool = False,
    ) -> None:
        """One forward for all. If any of it is not finite: clean up, then each alone.

        A masked NaN in K or V poisons all rows of a forward (0 x NaN), so only alone does it show
        whose fault it is. That request loses its tree; all drafts, if its context is at stake.
        """
        batch = pack(parts, self.pool.reserve(sum(len(part.tokens) for part in parts)))
        try:
            inputs = self.target.prepare(self.cache, batch)
            logits = self.target.run(inputs, last_only=last_only).logits
            sound = bool(torch.isfinite(logits.amax(dim=-1)).all())
        except Exception:
            self.cache.shrink()  # the pool may have grown where there was no memory to follow
            raise
        if sound:
            settle(drafts, batch, logits)
            return
        sick = self.cache.purge()  # clears free slots too, those of this forward included
        for context in list(self._contexts.values()):
            if context.owner in sick:
                self._lose(context)
        for draft, part in zip(drafts, parts, strict=True):
            if draft.context.lost:
                draft.sapling = None
            elif len(drafts) > 1:
                self._packed([draft], [part], settle, last_only)
            elif draft.sapling is not None:
                draft.sapling = None
            else:
                self._lose(draft.context)


def _likeliest(
    logits: torch.Tensor, requests: Sequence[DraftRequest], count: int
) -> tuple[Ints, Floats, Floats]:
    """The likeliest tokens of each row, best first, on the host in one transfer.

    Args:
        logits: [M, V].
        requests: [M] whose rows they are: temperature, and how many ids its target has.

    Returns:
        [M, C] tokens, [M, C] log-probabilities, [M] entropies in nats.
    """
    heat = [request.temperature or 1.0 for request in requests]
    scores = logits.float() / torch.tensor(heat, device=logits.device)[:, None]
    vocab = torch.tensor([request.vocab for request in requests], device=logits.device)
    if min(request.vocab for request in requests) < scores.shape[1]:
        ids = torch.arange(scores.shape[1], device=logits.device)
        scores = scores.masked_fill(ids >= vocab[:, None], -torch.inf)
    logq = scores.log_softmax(dim=-1)
    # As torch.special.entr, which is many times slower on a CPU; 0 where the probability is 0.
    entropy = -(logq.exp() * logq.clamp(min=-1e4)).sum(dim=-1, keepdim=True)
    best, token = logq.topk(min(count, logq.shape[1]), dim=-1)
    host = torch.cat([token.double(), best.double(), entropy.double()], dim=1).cpu().numpy()
    size = best.shape[1]
    return host[:, :size].astype(np.int64), host[:, size:-1], host[:, -1]
