"""What ``stream:target-drift`` does to the target, and how far each contestant's head comes back.

A head is measured alone: a tree of fixed size on prompts that are in no stream, so that neither the
policy nor the texts differ between two measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch

from adaptive_spec import prompts
from adaptive_spec.bench.decoding import Batch, Ours, Threads
from adaptive_spec.bench.drift import RANK, Drift, ordinary, perplexity
from adaptive_spec.bench.stream_prompts import KINDS
from adaptive_spec.budget_log import NullLog
from adaptive_spec.drafters.causal_parallel import CausalParallelDrafter
from adaptive_spec.hf import AdaptiveDecoder

PROMPTS, TOKENS, POLICY = 16, 64, "fixed:8"
"""Of a measurement."""
OTHER = 1_000_000_007
"""Seed of the prompts."""
BASIS = 4
"""Texts whose hidden states give the directions of the turn."""


class Drifting:
    """The drift of one stream.

    Args:
        decoders: of the contestants, by name; the head of the first one that has any sets the
            scale, so it must not learn.
        kind, raw: of the prompts that heads are measured on.

    Raises:
        UnsupportedError: the target is not one that can be turned.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        decoders: Mapping[str, AdaptiveDecoder],
        kind: str,
        raw: bool,
    ) -> None:
        self._model = model
        self._texts = ordinary(tokenizer)
        self._drift = Drift(model, self._texts[:BASIS])
        self._heads = {
            name: drafter
            for name, decoder in decoders.items()
            for drafter in decoder.drafting.drafters
            if isinstance(drafter, CausalParallelDrafter)
        }
        asked = islice(KINDS[kind](OTHER), PROMPTS)
        ids = [tuple(prompts.encode(tokenizer, text, raw)[0].tolist()) for text in asked]
        self._batches = [Batch(n, (str(n),), (one,), (0,)) for n, one in enumerate(ids)]
        self._before = self._after = 0.0

    def begin(self) -> dict[str, Any]:
        """Turn the target; what that did, for the result."""
        before = perplexity(self._model, self._texts)
        first = next(iter(self._heads.values()), None)
        if first is None:
            angle = 0.0
        else:
            angle, self._before, self._after = self._drift.scale(lambda: self._acceptance(first))
        self._lend()
        return {
            "rank": RANK,
            "angle": angle,
            "perplexity": [before, perplexity(self._model, self._texts)],
            "acceptance_length": [self._before, self._after],
        }

    def recovered(self) -> dict[str, Any]:
        """Acceptance length of every head now, and which share of the loss that makes up for."""
        now = {name: self._acceptance(drafter) for name, drafter in self._heads.items()}
        lost = self._before - self._after
        shares = {name: (found - self._after) / lost for name, found in now.items() if lost > 0}
        return {"acceptance_length_end": now, "recovered": shares}

    def end(self) -> None:
        """The target is as it was."""
        self._drift.end()
        self._lend()

    def _lend(self) -> None:
        """Heads borrow the weights that the target has now."""
        model = self._model
        lent = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        for drafter in self._heads.values():
            drafter.head.lend(*lent)

    def _acceptance(self, drafter: CausalParallelDrafter) -> float:
        """Tokens per forward of the head alone."""
        self._lend()
        config = {"policy": POLICY, "self_check": self._model.device.type != "cpu"}
        tokens = steps = 0
        with AdaptiveDecoder(self._model, config, drafter=drafter, log=NullLog()) as decoder:
            alone = Ours(decoder, Threads(torch.get_num_threads()))
            for batch in self._batches:
                run = alone.run(batch, "drift", {"max_new_tokens": TOKENS})
                tokens += sum(map(len, run.tokens))
                steps += run.steps or 0
        return tokens / max(steps, 1)
