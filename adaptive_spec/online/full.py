"""The arm that moves the whole head: gradient steps on passages, with weights of its own.

A copy in float32 learns and is rounded into what drafts when it is taken over; the head's context
is then computed anew. That costs tens of times what an update of the corrector costs.

Legend: B windows, A anchors, b slots, n valid slots, V draft vocabulary, K likeliest tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from adaptive_spec.errors import UnsupportedError
from adaptive_spec.heads.blocks import answers
from adaptive_spec.heads.head import Head
from adaptive_spec.online.passages import Answered, Passages, Window, blocks_of
from adaptive_spec.online.trials import NOT_FINITE, Outcome, limited
from adaptive_spec.types import Floats

PIECE = 2
"""Windows between which a trial may wait."""
REACH = 0.05
"""What a slot counts for at least that is hardly ever reached."""
LEAST = 1e-6
"""Of all probability, what is left to other tokens at least."""


class FullArm:
    """Gradient steps on all weights of a head.

    Args:
        head: the one that drafts. passages: texts with their taps.
        rate: learning rate (Adam).
        steps: gradient steps of a trial. windows, anchors: of each step.
        base: weight of the distribution before the corrector, which chooses the candidates.
        judges, least: windows that are held out, at most and at least.

    Raises:
        UnsupportedError: a head whose slots guess their own token (``ahead`` false).
    """

    name = "full"
    needs_passages, moves_head = True, True

    def __init__(
        self,
        head: Head,
        passages: Passages,
        *,
        rate: float = 2e-4,
        steps: int = 8,
        windows: int = 4,
        anchors: int = 16,
        base: float = 0.3,
        judges: int = 12,
        least: int = 6,
    ) -> None:
        if not head.config.ahead:
            raise UnsupportedError("online updates of the whole head: only where ahead is true")
        self._live, self._passages = head, passages
        self._steps, self._windows, self._anchors = steps, windows, anchors
        self._base, self._judges, self._least, self._rate = base, judges, least, rate
        self._luck = random.Random(0)
        self._copy: Head | None = None
        self._rounded: Head | None = None
        self._adam: torch.optim.Optimizer | None = None

    def pieces(self) -> Iterator[Outcome | None] | None:
        split = self._passages.split(self._least)
        return None if split is None else self._pieces(*split)

    def _pieces(self, fit: list[Window], held: list[Window]) -> Iterator[Outcome | None]:
        learner, adam = self._learner(), self._adam
        assert adam is not None
        for _ in range(self._steps):
            some = self._luck.sample(fit, min(self._windows, len(fit)))
            for first in range(0, len(some), PIECE):
                piece = some[first : first + PIECE]
                with torch.inference_mode(False), torch.enable_grad():
                    batch = self._blocks(piece)
                    with self._fast():
                        loss = self._loss(learner, batch) * (len(piece) / len(some))
                    loss.backward()  # type: ignore[no-untyped-call]
                yield None
            with torch.inference_mode(False):
                if sound := limited(list(learner.parameters())):
                    adam.step()
                adam.zero_grad(set_to_none=True)
            if not sound:
                yield NOT_FINITE
                return
        some = self._luck.sample(held, min(self._judges, len(held)))
        judged, gains = self._as_drafted(learner), []
        for first in range(0, len(some), PIECE):
            batch = self._blocks(some[first : first + PIECE])
            with torch.no_grad(), self._fast():
                gains.append(_lengths(judged, batch) - _lengths(self._live, batch))
            yield None
        yield Outcome.of(np.concatenate(gains))

    def settle(self, kept: bool) -> None:
        """Round the copy into what drafts, or make it what drafts; then Adam begins anew."""
        if self._copy is None:
            return
        learner, live = self._copy, dict(self._live.named_parameters())
        with torch.no_grad():
            for name, weight in learner.named_parameters():
                if kept:
                    live[name].data.copy_(weight)
                else:
                    weight.data.copy_(live[name])
                    weight.grad = None
        if not kept:
            self._adam = self._optimiser(learner)

    def _learner(self) -> Head:
        """The copy; it borrows the same output layer and embeddings of the target."""
        if self._copy is None:
            live = self._live
            with torch.inference_mode(False), torch.no_grad():
                made = Head(live.config, live.draft_ids).to(live.output.device).float()
                made.load_state_dict(live.state_dict())
                made.borrow(live)
                self._copy = made.requires_grad_()
            self._adam = self._optimiser(made)
        return self._copy

    def _as_drafted(self, learner: Head) -> Head:
        """The copy as it would draft: rounded as what drafts is, else rounding would be judged."""
        live = dict(self._live.named_parameters())
        with torch.inference_mode(False), torch.no_grad():
            if self._rounded is None:
                made = Head(self._live.config, self._live.draft_ids).to(self._live.output.device)
                for name, weight in made.named_parameters():
                    weight.data = weight.data.to(live[name].dtype)
                made.borrow(self._live)
                self._rounded = made.requires_grad_(False)
            for name, weight in self._rounded.named_parameters():
                weight.copy_(learner.get_parameter(name))
        return self._rounded

    def _optimiser(self, learner: Head) -> torch.optim.Optimizer:
        return torch.optim.Adam(learner.parameters(), lr=self._rate, betas=(0.9, 0.99))

    def _blocks(self, windows: Sequence[Window]) -> Answered:
        config, device = self._live.config, self._live.output.device
        found = blocks_of(windows, self._anchors, config.block, config.causal, self._luck)
        return found if device.type == "cpu" else found.to(device)

    def _fast(self) -> torch.autocast:
        output = self._live.output
        reduced = output.dtype != torch.float32
        return torch.autocast(output.device.type, output.dtype if reduced else None, reduced)

    def _loss(self, learner: Head, batch: Answered) -> torch.Tensor:
        """KL to the target (up to a constant) over its likeliest tokens and the remaining mass,
        slots weighed by how likely the tokens before them are to be accepted."""
        said = answers(learner, batch)
        hidden, states = said.hidden[batch.valid], said.states[batch.valid]
        plain, corrected = learner.both_logits(hidden, states)
        chances = _log_chances(corrected)
        weight = _weights(learner, chances, batch)
        loss = (weight * _divergence(learner, chances, batch)).sum() / weight.sum()
        if corrected is plain:
            return loss
        before = (weight * _divergence(learner, _log_chances(plain), batch)).sum() / weight.sum()
        return loss + self._base * before


def _log_chances(scores: torch.Tensor) -> torch.Tensor:
    """[n, V] -> log-probabilities; torch's own is many times slower on a CPU in bfloat16."""
    wide = scores.float()
    wide = wide - wide.detach().amax(dim=-1, keepdim=True)
    return wide - wide.exp().sum(dim=-1, keepdim=True).log()


def _divergence(head: Head, chances: torch.Tensor, batch: Answered) -> torch.Tensor:
    """[n] cross-entropy with the target; what cannot be drafted is part of the rest."""
    rows = torch.arange(len(batch.tokens), device=batch.tokens.device)[:, None, None]
    at = batch.after(0)
    best = batch.best[rows, at][batch.valid].long()
    wanted = batch.chance[rows, at][batch.valid].float()
    place, known = _draft_places(head, best)
    wanted = wanted * known
    rest = (1.0 - wanted.sum(dim=1)).clamp(min=0.0)
    found = chances.gather(1, place)
    others = (1.0 - (found.exp() * (wanted > 0)).sum(dim=1)).clamp(min=LEAST).log()
    return -(wanted * found).sum(dim=1) - rest * others


def _written(head: Head, chances: torch.Tensor, batch: Answered) -> torch.Tensor:
    """[B, A, b] what the tokens that were written are given; 0 where nothing is known."""
    rows = torch.arange(len(batch.tokens), device=batch.tokens.device)[:, None, None]
    place, known = _draft_places(head, batch.tokens[rows, batch.after(1)][batch.valid])
    chance = chances.gather(1, place[:, None])[:, 0].exp() * known
    found = chance.new_zeros(batch.valid.shape)
    found[batch.valid] = chance
    return found


def _weights(head: Head, chances: torch.Tensor, batch: Answered) -> torch.Tensor:
    """[n] the product of what the written tokens before a slot were given."""
    with torch.no_grad():
        chance = _written(head, chances, batch)
        reach = torch.cat([torch.ones_like(chance[..., :1]), chance[..., :-1]], dim=-1)
        return reach.cumprod(dim=-1).clamp(min=REACH)[batch.valid]


def _lengths(head: Head, batch: Answered) -> Floats:
    """[B] draft tokens that a chain drawn from the head would be right in, on average; of every
    window one number, because its anchors are next to each other."""
    said = answers(head, batch)
    chances = _log_chances(head.logits(said.hidden[batch.valid], said.states[batch.valid]))
    found = _written(head, chances, batch).double().cumprod(dim=-1).sum(dim=-1)
    return np.asarray(found.mean(dim=1).cpu().numpy())


def _draft_places(head: Head, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Target ids -> draft ids, and whether they can be drafted (else the id is of another)."""
    if head.draft_ids is None:
        return tokens, torch.ones_like(tokens, dtype=torch.bool)
    place = head.draft_rows(tokens).clamp(max=len(head.draft_ids) - 1)
    return place, head.draft_ids[place] == tokens
