"""A head measured by decoding with it: how far each budget gets, and how true its branches are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from adaptive_spec import models, prompts
from adaptive_spec.arguments import check_whole
from adaptive_spec.drafters.causal_parallel import CausalParallelDrafter, for_target
from adaptive_spec.errors import ArgumentError, DecodingError
from adaptive_spec.heads.corrector import Corrector
from adaptive_spec.heads.head import Head
from adaptive_spec.heads.public import load_any
from adaptive_spec.heads.shelf import find
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.model_facts import decoder_layers, describe
from adaptive_spec.options import about
from adaptive_spec.pictures import Chart, charts
from adaptive_spec.training.faithfulness import Text, branch_facts, places
from adaptive_spec.training.witness import Witness

BUDGETS = (1, 2, 4, 8, 16, 32, 64)
PRICED = 16
"""The budget at which a draft is held against a plain step; the two take turns."""
PLACES = 50
"""Places of plain decoding's texts at which branches are followed, spread over the prompts."""
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
    head = for_target(load_any(find(name)), loaded).head
    other = None if against is None else _companion(against, head, loaded)
    runs = _Runs(loaded, head, ids, max_new_tokens, tell)
    plain, priced = runs.of("fixed:0", f"fixed:{PRICED}")
    witness = Witness()
    lengths = {
        budget: priced.length if budget == PRICED else runs.of(f"fixed:{budget}")[0].length
        for budget in BUDGETS[:-1]
    }
    lengths[BUDGETS[-1]] = runs.of(f"fixed:{BUDGETS[-1]}", witness=witness)[0].length
    written = _texts(ids, plain.written)
    kinds = {"corrected": head, "uncorrected": other, "zeroed": _bare(head)}
    layers, facts = list(decoder_layers(loaded)), dict[str, dict[str, Any]]()
    for kind, one in kinds.items():
        if one is not None:
            tell(f"following branches, {kind}", None)
            facts[kind] = branch_facts(loaded, layers, one, written)
    tokens = torch.tensor([token for one in plain.written for token in one])
    known = head.draft_ids
    return {
        "tau_by_budget": {str(budget): length for budget, length in lengths.items()},
        **witness.facts(),
        "faithfulness": {kind: facts[kind]["gap"] if kind in facts else None for kind in kinds},
        "branch_hits": {kind: facts[kind]["hits"] if kind in facts else None for kind in kinds},
        "branch_places": facts["corrected"]["places"],
        "draft_share": priced.draft_seconds / plain.step_seconds,
        "coverage": 1.0 if known is None else float(torch.isin(tokens, known).float().mean()),
    }


def _companion(name: str, head: Head, model: Any) -> Head:
    """The head without a corrector to compare ``head`` with.

    Raises:
        ArgumentError: it has one, or differs in more than that.
    """
    found = for_target(load_any(find(name)), model).head
    config = head.config.shape
    wanted = replace(config, corrector="none", rank=found.config.rank)
    if found.config.shape != wanted:
        raise ArgumentError("against", name, "a head of the same shape, trained without corrector")
    return found


def _bare(head: Head) -> Head:
    """The same head with its corrector taken out."""
    bare = copy.copy(head)  # shares everything but the corrector
    bare._modules = {**head._modules, "corrector": Corrector()}
    return bare


def _texts(ids: Sequence[list[int]], written: Sequence[list[int]]) -> list[Text]:
    """Plain decoding's texts, and places spread over all of them."""
    left, found = PLACES, []
    for number, (prompt, answer) in enumerate(zip(ids, written, strict=True)):
        wanted = round(left / (len(ids) - number))
        spread = places(len(prompt), len(prompt) + len(answer), wanted)
        left -= len(spread)
        if spread:
            found.append(Text([*prompt, *answer], spread))
    return found


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
        self.written: list[list[int]] = []

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

    def add(self, session: Any) -> None:
        """A request that has ended."""
        stats = session.stats
        self.tokens += len(session.generated)
        self.steps += stats.steps
        self.written.append(session.generated)
        self.draft += stats.draft_seconds
        self.seconds += stats.verify_seconds + stats.sample_seconds + stats.host_seconds


class _Runs:
    """Decodes all prompts greedily, by the head alone; a decoder of its own for every run."""

    def __init__(
        self, model: Any, head: Head, ids: Sequence[list[int]], most: int, tell: Tell
    ) -> None:
        self._model, self._head, self._ids, self._tell = model, head, ids, tell
        self._options: dict[str, Any] = {"max_new_tokens": most, "do_sample": False}

    def of(self, *policies: str, witness: Witness | None = None) -> list[_Totals]:
        """Totals of policies that take turns with every prompt.

        Raises:
            DecodingError: something failed on the way, so that figures would be wrong.
        """
        totals, failed = [_Totals() for _ in policies], False
        limit = describe(self._model).context_limit
        drafter = CausalParallelDrafter(self._head, limit, coupled=False)
        parts = {} if witness is None else {"learner": witness}
        config = {"policy": policies[0]}
        with AdaptiveDecoder(self._model, config, drafter=drafter, **parts) as decoder:
            for number, ids in enumerate(self._ids):
                self._tell(f"decoding, {' and '.join(policies)}", number / len(self._ids))
                for policy, total in zip(policies, totals, strict=True):
                    with decoder.start(ids, policy=policy, **self._options) as session:
                        while not session.finished:
                            session.step()
                        total.add(session)
                        failed |= session.stats.draft_faults + session.stats.controller_faults > 0
            if failed or decoder.faults.count:
                which = ", ".join(sorted(decoder.faults.count)) or "the head, or its policy"
                raise DecodingError(f"figures would be wrong, because this failed: {which}")
        return totals
