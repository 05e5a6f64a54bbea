"""A head measured by decoding with it: how far each budget gets, and how true its branches are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from adaptive_spec import models, prompts
from adaptive_spec.arguments import check_whole
from adaptive_spec.drafters.causal_parallel import for_target
from adaptive_spec.errors import ArgumentError
from adaptive_spec.heads.corrector import Corrector
from adaptive_spec.heads.head import Head
from adaptive_spec.heads.public import load_any
from adaptive_spec.heads.shelf import find
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.options import about
from adaptive_spec.pictures import Chart, charts
from adaptive_spec.target import describe
from adaptive_spec.training.witness import WatchedDrafter, Witness

BUDGETS = (1, 2, 4, 8, 16, 32, 64)
PRICED = 16
"""The budget at which a draft is held against a plain step."""
TREES = 50
"""Trees whose branches are followed, spread over the prompts."""
Tell = Callable[[str, float | None], None]


def report(
    name: str,
    model: str,
    suite: str,
    *,
    limit: int,
    max_new_tokens: int,
    dtype: str,
    tell: Tell,
    against: str | None = None,
) -> dict[str, Any]:
    """Decode the prompts of ``suite`` greedily with every budget, by the head alone.

    Args:
        name: of a head that ships, a folder or a hub id.
        against: a head of the same size trained without a corrector: ``uncorrected`` in
            ``faithfulness`` and ``branch_hits``, which is None without one.

    Raises:
        HeadError: the head cannot be read, or belongs to another target.
        ArgumentError, UnknownNameError: the prompts cannot be read.
    """
    check_whole("limit", limit, 1)
    check_whole("max_new_tokens", max_new_tokens, 1)
    with about("--prompts", suite):
        texts = prompts.suite(suite, limit, progress=tell)
    with about("--model", model):
        loaded, tokenizer = models.load(model, dtype, progress=tell)
    ids = [prompts.encode(tokenizer, one.text)[0].tolist() for one in texts]
    options = {"max_new_tokens": max_new_tokens, "do_sample": False}
    drafter = for_target(load_any(find(name)), loaded, coupled=False)

    def decode(policy: str, watched: WatchedDrafter, witness: Witness | None = None) -> _Totals:
        parts = {} if witness is None else {"learner": witness}
        with AdaptiveDecoder(loaded, {"policy": policy}, drafter=watched, **parts) as decoder:
            return _decoded(decoder, ids, options, lambda f: tell(f"decoding, {policy}", f))

    def fresh(head: Head) -> WatchedDrafter:
        return WatchedDrafter(head, describe(loaded).context_limit, coupled=False)

    def witnessed(head: Head) -> tuple[_Totals, dict[str, Any]]:
        watched = fresh(head)
        witness = Witness(watched, -(-TREES // len(ids)))
        return decode(f"fixed:{BUDGETS[-1]}", watched, witness), witness.facts()

    plain = decode("fixed:0", fresh(drafter.head))
    runs = {budget: decode(f"fixed:{budget}", fresh(drafter.head)) for budget in BUDGETS[:-1]}
    runs[BUDGETS[-1]], facts = witnessed(drafter.head)
    bare = copy.copy(drafter.head)  # shares everything but the corrector
    bare._modules = {**drafter.head._modules, "corrector": Corrector()}
    others = {"zeroed": witnessed(bare)[1]}
    if against is not None:
        other = for_target(load_any(find(against)), loaded, coupled=False).head
        if other.config.corrector != "none":
            raise ArgumentError("against", against, "a head that was trained without a corrector")
        others["uncorrected"] = witnessed(other)[1]
    kinds = {"corrected": facts, "uncorrected": others.get("uncorrected"), **others}
    known = drafter.head.draft_ids
    written = torch.tensor(plain.written)
    covered = 1.0 if known is None else float(torch.isin(written, known).float().mean())
    return {
        "tau_by_budget": {str(budget): run.length for budget, run in runs.items()},
        "acceptance_by_depth": facts["acceptance_by_depth"],
        "acceptance_by_rank": facts["acceptance_by_rank"],
        "faithfulness": {kind: one and one["gap"] for kind, one in kinds.items()},
        "branch_hits": {kind: one and one["hits"] for kind, one in kinds.items()},
        "branch_trees": facts["trees"],
        "draft_share": runs[PRICED].draft_seconds / plain.step_seconds,
        "coverage": covered,
    }


def picture(name: str, found: Mapping[str, Any]) -> bytes:
    """The curves of a report, as a PNG."""

    def line(values: Mapping[str, float]) -> tuple[list[float], list[float]]:
        return [float(key) for key in values], list(values.values())

    hits = {kind: line(values) for kind, values in found["branch_hits"].items() if values}
    depths, ranks = found["acceptance_by_depth"], found["acceptance_by_rank"]
    panels = [
        Chart(
            "acceptance length by budget",
            "draft nodes",
            "tokens per step",
            {"head alone": line(found["tau_by_budget"])},
            log_x=True,
        ),
        Chart("accepted by depth", "depth", "share of those visited", {"all": line(depths)}),
        Chart("accepted by rank", "rank among siblings", "share", {"all": line(ranks)}),
        Chart("best child right, branches 2 to 5", "depth", "share", hits),
    ]
    return charts(f"head {name}", panels)


class _Totals:
    """Sums over the requests of one policy."""

    def __init__(self) -> None:
        self.tokens = self.steps = 0
        self.seconds = self.draft = 0.0
        self.written: list[int] = []

    @property
    def length(self) -> float:
        """Tokens of a step."""
        return self.tokens / self.steps

    @property
    def draft_seconds(self) -> float:
        """Of a step."""
        return self.draft / self.steps

    @property
    def step_seconds(self) -> float:
        """Of a step, drafting left out."""
        return self.seconds / self.steps


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
