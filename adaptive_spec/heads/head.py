"""The causal-parallel head: one forward drafts every depth (design, section 8; JetSpec, DFlash).

Slots ``[anchor, MASK x (b - 1)]`` attend to the fused context of the frozen target and, causally,
to earlier slots. The target's own embeddings and output layer are borrowed, never stored.

Legend: B sequences (1 when drafting), A blocks of b slots, T context tokens, n taps, H hidden, V
the draft vocabulary, K/V keys and values [B, kv_heads, ., d] of one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from adaptive_spec.errors import HeadError
from adaptive_spec.heads.config import HeadConfig
from adaptive_spec.heads.corrector import build_corrector
from adaptive_spec.heads.layers import Extend, HeadLayer, RMSNorm, rotation


class Head(nn.Module):
    """Weights of a head. ``lend`` gives it the target's embeddings and output layer.

    Args:
        config: its shape.
        draft_ids: [V] target id of every draft id, ascending; None where all tokens are drafted.

    Raises:
        HeadError: ``draft_ids`` do not fit the config.
    """

    draft_ids: torch.Tensor | None

    def __init__(self, config: HeadConfig, draft_ids: torch.Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        _check_ids(config, draft_ids)
        self.register_buffer("draft_ids", draft_ids)
        size, eps = config.hidden, config.norm_eps
        self.fc = nn.Linear(len(config.taps) * size, size, bias=False)
        self.hidden_norm = RMSNorm(size, eps)
        self.layers = nn.ModuleList([HeadLayer(config) for _ in range(config.layers)])
        self.norm = RMSNorm(size, eps)
        self.inject = nn.Linear(size, size, bias=False) if config.injection else None
        self.masks: nn.Parameter | None = None
        if config.own_masks:
            self.masks = nn.Parameter(torch.randn(max(config.block - 1, 0), size) * 0.02)
        self.corrector = build_corrector(config)
        self.bias: nn.Parameter | None = None
        """[V] added to all scores, learned while serving (``online``)."""
        if config.token_bias:
            self.token_bias()
        self._lent: list[torch.Tensor] = []  # in a list, so that they are no parameters of ours

    def lend(self, embeddings: torch.Tensor, output: torch.Tensor) -> None:
        """Borrow the target's weights: both [target vocabulary, H], in the head's dtype.

        Raises:
            HeadError: the shapes are not the target's that the head was made for.
        """
        wanted = (self.config.vocab, self.config.hidden)
        for name, weight in (("embeddings", embeddings), ("output layer", output)):
            if tuple(weight.shape) != wanted:
                raise HeadError(f"target.{name}", tuple(weight.shape), f"expected {wanted}")
        rows = output if self.draft_ids is None else output[self.draft_ids]
        self._lent[:] = [embeddings.detach(), rows.detach()]  # whoever borrowed it follows

    def borrow(self, other: Head) -> None:
        """Borrow what another head borrows, for the same target and the same draft vocabulary."""
        self._lent = other._lent

    def take(self, other: Head) -> None:
        """Go on from the weights and the scale of a head of the same shape.

        Its corrector is left out if this head has none.
        """
        own = self.state_dict()
        self.load_state_dict({k: v for k, v in other.state_dict().items() if k in own})
        self.config = replace(self.config, embed_scale=other.config.embed_scale)

    def token_bias(self) -> nn.Parameter:
        """The bias per draft token; one of zeros where there is none yet."""
        if self.bias is None:
            size = self.config.draft_vocab or self.config.vocab
            with torch.inference_mode(False):
                zeros = torch.zeros(size, device=self.fc.weight.device)
                self.bias = nn.Parameter(zeros, requires_grad=False)
            self.config = replace(self.config, token_bias=True)
        return self.bias

    @property
    def output(self) -> torch.Tensor:
        """[V, H] rows of the target's output layer that can be drafted."""
        return self._lent[1]

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """[...] target ids -> [..., H]."""
        return nn.functional.embedding(tokens, self._lent[0]) * self.config.embed_scale

    def target_ids(self, draft: torch.Tensor) -> torch.Tensor:
        """Draft ids -> target ids."""
        return draft if self.draft_ids is None else self.draft_ids[draft]

    def draft_rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """Target ids that can be drafted -> draft ids."""
        return tokens if self.draft_ids is None else torch.searchsorted(self.draft_ids, tokens)

    def fuse(self, taps: Sequence[torch.Tensor]) -> torch.Tensor:
        """n times [..., H] hidden states, in the order of ``config.taps`` -> [..., H]."""
        fused: torch.Tensor = self.hidden_norm(self.fc(torch.cat(list(taps), dim=-1)))
        return fused

    def context(
        self, fused: torch.Tensor, positions: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per layer K and V of fused states [B, T, H] at ``positions`` [B, T]."""
        turn = self._rotation(positions, fused.dtype)
        return [layer.self_attn.keys_values(fused, *turn) for layer in self._layers()]

    def slots(self, anchors: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Input of the slots.

        Args:
            anchors: [B, A] ids of the newest tokens.
            before: [B, A, H] fused states at the positions before them.

        Returns:
            [B, A, b, H].
        """
        first = self.embed(anchors)[:, :, None]
        if self.masks is not None:
            others = self.masks.expand(*anchors.shape, *self.masks.shape)
        else:
            mask = torch.full((), int(self.config.mask_token or 0), device=anchors.device)
            others = self.embed(mask).expand(*anchors.shape, self.config.block - 1, -1)
        slots = torch.cat([first, others], dim=2)
        return slots if self.inject is None else slots + self.inject(before)[:, :, None]

    def forward(
        self,
        slots: torch.Tensor,
        positions: torch.Tensor,
        extend: Sequence[Extend],
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Run the layers.

        Args:
            slots: [B, A, b, H] from ``slots``.
            positions: [B, A] of the anchors.
            extend: per layer, puts the slots' K and V behind those of the context.
            mask: [B, 1, A * b, S] who sees whom.

        Returns:
            [B, A, b or b - 1, H] states before the final norm, one per drafted depth.
        """
        size = self.config.block
        places = positions[..., None] + torch.arange(size, device=positions.device)
        turn = self._rotation(places.flatten(1), slots.dtype)
        x = slots.flatten(1, 2)
        for layer, more in zip(self._layers(), extend, strict=True):
            x = layer(x, *turn, more, mask)
        x = x.view(slots.shape)
        return x if self.config.ahead else x[:, :, 1:]

    def logits(self, hidden: torch.Tensor, state: torch.Tensor | None = None) -> torch.Tensor:
        """Scores of all draft ids. (Drafting scores a few of them: ``heads.branches``.)

        Args:
            hidden: [..., H] states of slots.
            state: [..., size] of the branches, for corrected scores, which have its dtype; None for
                the slot's own.

        Returns:
            [..., V].
        """
        query: torch.Tensor | None = None
        if state is not None:
            hidden = hidden.to(state.dtype)
            query = self.corrector.query(state, self.corrector.gates(hidden))
        if query is not None and (shift := self.corrector.shift(query)) is not None:
            hidden = hidden + shift
        normed: torch.Tensor = self.norm(hidden)
        scores = nn.functional.linear(normed, self.output.to(normed.dtype))
        if self.bias is not None:
            scores += self.bias.to(scores.dtype)
        bias = None if query is None else self.corrector.bias(query)
        return scores if bias is None else scores + bias

    def both_logits(
        self, hidden: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``logits`` of slots [..., H] without and with their branches' states [..., size]; one run
        of the output layer where the corrector only adds a bias to the scores."""
        query = self.corrector.query(state, self.corrector.gates(hidden.to(state.dtype)))
        plain = self.logits(hidden)
        if query is None:
            return plain, plain
        if self.corrector.shift(query) is not None:
            return plain, self.logits(hidden, state)
        bias = self.corrector.bias(query)
        return plain, plain if bias is None else plain + bias

    def keys(self) -> torch.Tensor:
        """[V, r] what draft tokens answer to a corrector's query, in the head's dtype."""
        return self.corrector.keys(self.output, self.norm.weight.detach())

    def _rotation(
        self, positions: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return rotation(positions, self.config, dtype)

    def _layers(self) -> Sequence[Any]:
        return list(self.layers)


def _check_ids(config: HeadConfig, ids: torch.Tensor | None) -> None:
    if (ids is None) != (config.draft_vocab is None):
        raise HeadError("draft_vocab", config.draft_vocab, "the id map comes with it, or neither")
    if ids is None:
        return
    sound = ids.dim() == 1 and len(ids) == config.draft_vocab and not ids.is_floating_point()
    if not sound or not bool((ids[1:] > ids[:-1]).all()) or int(ids[0]) < 0:
        raise HeadError("draft_ids", tuple(ids.shape), "ascending ids, one per draft token")
    if int(ids[-1]) >= config.vocab:
        raise HeadError("draft_ids", int(ids[-1]), f"ids below {config.vocab}")
