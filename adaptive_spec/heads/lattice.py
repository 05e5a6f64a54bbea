"""All branches that a tree may take, computed on the device and fetched once.

``heads.branches`` asks for children round by round and reads every answer on the host, which is
cheap where host and device are one. On a GPU every reading waits for the device, so here the best W
nodes of every depth are expanded without asking: the states of their branches, their children and
the choice of the next W stay on the device, and one transfer brings the whole lattice. The host
grows its trees in it as before; only nodes outside the lattice cannot be expanded.

Legend: R requests, D depths, P = R * D places, C candidates of a place, W nodes of a depth, K
children of a node, V draft vocabulary, H hidden, r rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from adaptive_spec.heads.head import Head
from adaptive_spec.kernels.facts import Candidates
from adaptive_spec.kernels.here import on
from adaptive_spec.types import Floats, Ints
from adaptive_spec.uploading import upload

POOL = 512
"""Likeliest tokens of a place whose noise is looked up, where there is noise."""
SURE = 4
"""Likeliest tokens that are candidates whatever their noise."""
Noise = Callable[[torch.Tensor], torch.Tensor]
"""Target ids [P, n] -> the noise [P, n] that each place's token will be drawn with."""


@dataclass(frozen=True, slots=True)
class Grown:
    """A lattice on the host. Node (d, w) of request r is the w-th best of depth d; (0, 0) is the
    root, the newest token."""

    tokens: Ints
    """[R, D, W, K] target ids of the children of every node."""
    chance: Floats
    """[R, D, W, K] their log-probabilities, falling."""
    margin: Floats
    """[R, D, W] between the two likeliest candidates of a node."""
    entropy: Floats
    """[R, D] of the depth's own distribution, in nats."""
    below: Ints
    """[R, D, W, K] which node of the next depth the child is, -1 for none."""


class Lattice:
    """Grows lattices with ``head``.

    Args:
        head: with the target's weights lent to it.
        count: C, candidates of a place, a power of 2.
        siblings: K.
        kernels: ``kernels.candidates``, or ``kernels.reference``, which needs no Triton.
    """

    def __init__(self, head: Head, count: int, siblings: int, kernels: ModuleType) -> None:
        self._head, self._count, self._siblings = head, count, siblings
        self._kernels = kernels
        self._keys = head.keys()

    def refresh(self) -> None:
        """Look at the head's weights again."""
        self._keys = self._head.keys()

    def grow(
        self,
        hidden: torch.Tensor,
        anchors: torch.Tensor,
        heat: Floats,
        width: int,
        noise: Noise | None = None,
        sharpness: float = 1.0,
    ) -> Grown | None:
        """A lattice for every request.

        Args:
            hidden: [R, D, H] what the layers gave. anchors: [R] newest tokens.
            heat: [R] temperatures to draft at.
            width: W.
            noise: of those tokens that it is asked for; None where nothing is drawn.
            sharpness: see ``drafters.coupling``.

        Returns:
            None if any score is not finite.
        """
        with on(hidden):
            return self._grow(hidden, anchors, heat, width, noise, sharpness)

    def _grow(
        self,
        hidden: torch.Tensor,
        anchors: torch.Tensor,
        heat: Floats,
        width: int,
        noise: Noise | None,
        sharpness: float,
    ) -> Grown | None:
        requests, depths, _ = hidden.shape
        hot = upload(np.repeat(heat, depths).astype(np.float32), hidden.device)
        found, drawn, unseen = self._look(hidden.flatten(0, 1), hot, noise)
        wide = hidden.flatten(0, 1).float()
        gates, corrector = self._head.corrector.gates(wide), self._head.corrector
        first = torch.arange(requests, device=hidden.device, dtype=torch.int32) * depths
        state = corrector.read(anchors, self._head.embed(anchors).float())
        total = torch.zeros((requests, 1), device=hidden.device)
        levels: list[tuple[torch.Tensor, ...]] = []
        for depth in range(depths):
            nodes = total.shape[1]
            place = (first + depth).repeat_interleave(nodes)
            query = corrector.query(state, gates[place])
            scale = self._scale(wide[place], query)
            if query is None:
                query = torch.zeros((len(place), 1), device=hidden.device)
            born = self._kernels.children(
                place, query.contiguous(), scale, found, self._keys, hot, self._siblings,
                noise=drawn, unseen=unseen, sharpness=sharpness,
            )  # fmt: skip
            tokens = self._head.target_ids(born.ids)
            chance = born.chance.view(requests, nodes, -1)
            paths = (total[..., None] + chance).flatten(1)
            total, chosen = paths.topk(min(width, paths.shape[1]), dim=1)
            levels.append((tokens, chance, born.margin, chosen))
            parent = (
                chosen // self._siblings
                + torch.arange(requests, device=chosen.device)[:, None] * nodes
            )
            taken = tokens.view(requests, -1).gather(1, chosen).flatten().long()
            said = corrector.read(taken, self._head.embed(taken).float())
            state = corrector.step(state[parent.flatten()], said)
        return self._fetch(levels, found.entropy, requests, width)

    def _look(
        self, hidden: torch.Tensor, heat: torch.Tensor, noise: Noise | None
    ) -> tuple[Candidates, torch.Tensor | None, torch.Tensor | None]:
        """Candidates of every place; where there is noise also theirs, and what had none."""
        logits = self._head.logits(hidden)
        if noise is None:
            return self._kernels.candidates(logits, heat, self._count), None, None
        most = min(POOL, 1 << (logits.shape[1].bit_length() - 1))
        pool = self._kernels.candidates(logits, heat, max(most, self._count))
        drawn = noise(self._head.target_ids(pool.ids.long()))
        hot = pool.scores / heat[:, None]
        order = hot.argsort(dim=1, descending=True)[:, :SURE]
        wanted = (hot + drawn).scatter(1, order, torch.inf)
        chosen = wanted.topk(self._count, dim=1).indices
        left = hot.scatter(1, chosen, -torch.inf).logsumexp(dim=1)
        found = Candidates(
            scores=pool.scores.gather(1, chosen),
            ids=pool.ids.gather(1, chosen),
            rest=torch.logaddexp(pool.rest, left),
            entropy=pool.entropy,
        )
        return found, drawn.gather(1, chosen).float(), pool.rest

    def _scale(self, hidden: torch.Tensor, query: torch.Tensor | None) -> torch.Tensor:
        """[M, 2] what scores and corrections are multiplied by, see ``heads.branches``."""
        shift = None if query is None else self._head.corrector.shift(query)
        if shift is None:
            return hidden.new_ones((len(hidden), 2))
        norm = self._head.norm
        after = norm.scale(hidden + shift)
        return torch.cat([after / norm.scale(hidden), after], dim=1).contiguous()

    def _fetch(
        self,
        levels: list[tuple[torch.Tensor, ...]],
        entropy: torch.Tensor,
        requests: int,
        width: int,
    ) -> Grown | None:
        """One transfer of all of it."""
        flat = [part.reshape(-1).double() for level in levels for part in level]
        host = torch.cat([entropy.double(), *flat]).cpu().numpy()
        depths, best = len(levels), self._siblings
        tokens = np.zeros((requests, depths, width, best), dtype=np.int64)
        chance = np.full(tokens.shape, -np.inf)
        margin = np.full(tokens.shape[:3], np.nan)
        below = np.full(tokens.shape, -1, dtype=np.int64)
        at = entropy.numel()
        for depth, level in enumerate(levels):
            pieces = []
            for part in level:
                pieces.append(host[at : at + part.numel()].reshape(requests, -1))
                at += part.numel()
            nodes = pieces[2].shape[1]
            tokens[:, depth, :nodes] = pieces[0].reshape(requests, nodes, best)
            chance[:, depth, :nodes] = pieces[1].reshape(requests, nodes, best)
            margin[:, depth, :nodes] = pieces[2]
            chosen = pieces[3].astype(np.int64)
            rows = np.arange(requests)[:, None]
            below[rows, depth, chosen // best, chosen % best] = np.arange(chosen.shape[1])
        found = host[: entropy.numel()].reshape(requests, depths)
        if not np.isfinite(found).all():
            return None
        return Grown(tokens=tokens, chance=chance, margin=margin, entropy=found, below=below)
