"""Is it plain decoding's text? If not, was the first difference a near-tie?

A tree forward rounds differently from a forward of one token, so where the two best tokens are
all but equal the choice may flip, and the texts go apart from there. Such a near-tie is counted,
not blamed: plain's top-2 gap at that position (of the scores plus noise at temperature above 0) is
below 1e-4 in float32, or at most 2 units in the last place of the top logit in bfloat16. Any other
difference is a mismatch, and a bug.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from adaptive_spec.bench.contestants import NoDrafter
from adaptive_spec.bench.decoding import Batch
from adaptive_spec.budget_log import NullLog
from adaptive_spec.config import Config
from adaptive_spec.hf import AdaptiveDecoder

FLOAT32_GAP = 1e-4
BFLOAT16_ULPS = 2
_BFLOAT16_BITS = 7
"""Stored bits of the mantissa."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One request of one contestant against plain's."""

    tokens_compared: int
    """Up to and including the first difference: what comes after it is another text."""
    first_difference: int | None = None
    gap: float | None = None
    """Plain's top-2 gap at the first difference; None where its processors left one token."""
    near_tie: bool = False

    @property
    def identical(self) -> bool:
        return self.first_difference is None

    @property
    def mismatch(self) -> bool:
        """Different, and not to be explained by rounding."""
        return not self.identical and not self.near_tie


def first_difference(ours: Sequence[int], plain: Sequence[int]) -> int | None:
    """Index of the first token that differs or that only one has; None for equal lists."""
    for place, (mine, theirs) in enumerate(zip(ours, plain, strict=False)):
        if mine != theirs:
            return place
    return None if len(ours) == len(plain) else min(len(ours), len(plain))


def is_near_tie(gap: float, top_logit: float, dtype: str, temperature: float) -> bool:
    """Whether rounding may decide between the two best tokens.

    Args:
        gap: between their scores (plus noise); scores are logits over the temperature.
        top_logit: the largest raw logit, whose spacing bounds the rounding in bfloat16.
    """
    if dtype == "float32":
        return gap < FLOAT32_GAP
    unit = 2.0 ** (math.frexp(top_logit)[1] - 1 - _BFLOAT16_BITS)
    return gap <= BFLOAT16_ULPS * unit / (temperature or 1.0)


class Referee:
    """Keeps plain's texts and judges all others by them."""

    def __init__(
        self, model: Any, plain: Config, dtype: str, temperature: float, options: dict[str, Any]
    ) -> None:
        self._model, self._plain = model, plain
        self._dtype, self._temperature, self._options = dtype, temperature, options
        self._texts: dict[int, tuple[tuple[int, ...], ...]] = {}
        self._ties: dict[tuple[int, int, int], tuple[float, bool]] = {}

    def take(self, batch: Batch, tokens: tuple[tuple[int, ...], ...]) -> None:
        """Plain's texts of a batch; the first ones stay, so that plain must repeat itself."""
        self._texts.setdefault(batch.index, tokens)

    def compare(self, batch: Batch, tokens: Sequence[Sequence[int]]) -> list[Comparison]:
        """One comparison per request of the batch."""
        texts = self._texts[batch.index]
        places = [first_difference(a, b) for a, b in zip(tokens, texts, strict=True)]
        missing = {
            row: place
            for row, place in enumerate(places)
            if place is not None and (batch.index, row, place) not in self._ties
        }
        for row, tie in self._gaps(batch, missing).items():
            self._ties[batch.index, row, missing[row]] = tie
        compared = []
        for row, place in enumerate(places):
            if place is None:
                compared.append(Comparison(len(texts[row])))
            else:
                gap, near = self._ties.get((batch.index, row, place), (None, False))
                finite = None if gap is None or math.isinf(gap) else gap
                compared.append(Comparison(place + 1, place, finite, near))
        return compared

    def _gaps(self, batch: Batch, wanted: Mapping[int, int]) -> dict[int, tuple[float, bool]]:
        """Plain's top-2 gap, and whether it is a near-tie, at one position of some requests.

        Plain decoding is run again with the same batch, so that it rounds as it did, and is held to
        its own text, so that even another number of threads cannot lead it elsewhere.
        """
        texts = self._texts[batch.index]
        found: dict[int, tuple[float, bool]] = {}
        reach = {row: place for row, place in wanted.items() if place < len(texts[row])}
        if not reach:  # one text merely ends earlier than plain's: no choice of plain's explains it
            return found
        kernels = self._model.device.type != "cpu"  # which the check may drop
        quiet = self._plain.model_copy(update={"self_check": kernels})
        decoder = AdaptiveDecoder(self._model, quiet, drafter=NoDrafter(), log=NullLog())
        keep = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}
        sessions = []
        for prompt, seed in zip(batch.prompts, batch.seeds, strict=True):
            ids = torch.tensor([prompt])
            options = {**self._options, **keep}
            keyed = seed if self._temperature else None
            session = decoder.start(ids, seed=keyed, **options)
            stopping = replace(session.rules.stopping, end_tokens=frozenset())
            session.rules = replace(session.rules, stopping=stopping)
            sessions.append(session)
        for place in range(max(reach.values()) + 1):
            live = [(s, text) for s, text in zip(sessions, texts, strict=True) if place < len(text)]
            decoder.step([session for session, _ in live])
            for row, session in enumerate(sessions):
                if reach.get(row) == place:
                    scores, logits = session.scores[-1], session.logits[-1]
                    noisy = session.rules.sampler.perturbed(scores, len(session.tokens) - 1)
                    first, second = noisy.topk(2).values.tolist()
                    near = is_near_tie(
                        first - second, float(logits.max()), self._dtype, self._temperature
                    )
                    found[row] = first - second, near
            for session, text in live:
                session.tokens[-1] = text[place]  # the newest token is not in the cache yet
                session.scores.clear()
                session.logits.clear()
        for session in sessions:
            session.close()
        return found
