"""A head measured by decoding with it: how far each budget gets, and how true its branches are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from adaptive_spec import models, prompts
from adaptive_spec.drafters.causal_parallel import for_target
from adaptive_spec.heads.public import load_any
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.training.witness import WatchedDrafter, Witness

BUDGETS = (1, 2, 4, 8, 16, 32, 64)
Tell = Callable[[str, float | None], None]


def report(
    folder: str,
    model: str,
    suite: str,
    *,
    limit: int,
    max_new_tokens: int,
    dtype: str,
    tell: Tell,
) -> dict[str, Any]:
    """Decode the prompts of ``suite`` greedily with every budget, by the head alone.

    Raises:
        HeadError: the head cannot be read, or belongs to another target.
        ArgumentError, UnknownNameError: the prompts cannot be read.
    """
    texts = prompts.suite(suite, limit, progress=tell)
    loaded, tokenizer = models.load(model, dtype, progress=tell)
    ids = [prompts.encode(tokenizer, one.text)[0].tolist() for one in texts]
    stored = load_any(folder)
    drafter = for_target(stored, loaded, coupled=False)
    options = {"max_new_tokens": max_new_tokens, "do_sample": False}

    def decode(policy: str, watched: WatchedDrafter, learner: Witness | None = None) -> _Totals:
        parts = {} if learner is None else {"learner": learner}
        with AdaptiveDecoder(loaded, {"policy": policy}, drafter=watched, **parts) as decoder:
            return _decoded(decoder, ids, options, lambda f: tell(f"decoding, {policy}", f))

    def fresh() -> WatchedDrafter:
        return WatchedDrafter(drafter.head, loaded.config.max_position_embeddings, coupled=False)

    plain = decode("fixed:0", fresh())
    tau, last, witness = {}, plain, None
    for budget in BUDGETS:
        watched = fresh()
        witness = Witness(watched)
        last = decode(f"fixed:{budget}", watched, witness)
        tau[str(budget)] = last.tokens / last.steps
    assert witness is not None
    known = drafter.head.draft_ids
    written = torch.tensor(plain.written)
    covered = 1.0 if known is None else float(torch.isin(written, known).float().mean())
    return {
        "tau_by_budget": tau,
        **witness.facts(),
        "draft_share": (last.draft / last.steps) / (plain.seconds / plain.steps),
        "coverage": covered,
    }


class _Totals:
    """Sums over the requests of one policy."""

    def __init__(self) -> None:
        self.tokens = self.steps = 0
        self.seconds = self.draft = 0.0
        self.written: list[int] = []


def _decoded(
    decoder: AdaptiveDecoder,
    prompts_ids: Sequence[list[int]],
    options: dict[str, Any],
    tell: Callable[[float], None],
) -> _Totals:
    totals = _Totals()
    for number, ids in enumerate(prompts_ids):
        tell(number / len(prompts_ids))
        with decoder.start(ids, **options) as session:
            while not session.finished:
                session.step()
            stats = session.stats
            totals.tokens += len(session.generated)
            totals.steps += stats.steps
            totals.written += session.generated
            totals.draft += stats.draft_seconds
            totals.seconds += stats.verify_seconds + stats.sample_seconds + stats.host_seconds
    return totals
