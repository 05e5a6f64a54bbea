"""What a model writes and what a drafter proposes at every place of it, recorded for ``replay``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptive_spec.controllers.fixed import FixedBudget
from adaptive_spec.drafters.base import CandidateTree, Drafter, DraftRequest
from adaptive_spec.errors import DecodingError
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.profilers.base import Latency
from adaptive_spec.testing.replay import Recorded
from adaptive_spec.types import Decision, Features, Offer, Plan

_NAME = "recording"


class _Ask(FixedBudget):
    """A policy that has everything drafted and verifies nothing."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(str(plan.nodes))
        self._plan = plan

    def plan(self, requests: Sequence[Features], latency: Latency) -> Sequence[Plan]:
        return [self._plan for _ in requests]

    def cut(self, offers: Sequence[Offer], latency: Latency) -> Sequence[Decision]:
        return [Decision(0, "recording: nothing is verified") for _ in offers]


def record(
    model: Any,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    nodes: int = 48,
    depth: int = 8,
    floor: float = 0.003,
) -> list[Recorded]:
    """Greedy answers of ``model``, and a tree of ``drafter`` before every one of their tokens
    but the last, where nobody is asked.

    Args:
        nodes, depth, floor: of the trees, as in ``Plan``; replay can ask for less, not for more.

    Raises:
        DecodingError: the drafter failed.
    """
    plan = Plan(nodes=nodes, depth=depth, floor=floor)
    seen: list[CandidateTree] = []
    propose = drafter.propose

    def watched(requests: Sequence[DraftRequest], plans: Sequence[Plan]) -> Sequence[CandidateTree]:
        found = propose(requests, plans)
        seen.extend(found)
        return found

    drafter.propose = watched  # type: ignore[method-assign]
    try:
        return _recorded(model, drafter, prompts, max_new_tokens, seen, plan)
    finally:
        drafter.propose = propose  # type: ignore[method-assign]


def _recorded(
    model: Any,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    most: int,
    seen: list[CandidateTree],
    plan: Plan,
) -> list[Recorded]:
    answers, asking = [], {_NAME: _Ask(plan)}
    with AdaptiveDecoder(model, {"policy": _NAME}, drafter=drafter, controllers=asking) as decoder:
        for prompt in prompts:
            seen.clear()
            with decoder.start(list(prompt), max_new_tokens=most) as session:
                while not session.finished:
                    session.step()
                if session.stats.draft_faults:
                    raise DecodingError(f"{drafter.name} failed while it was recorded")
                output, drafts = list(session.generated), {drafter.name: tuple(seen)}
                answers.append(Recorded(list(prompt), output, drafts))
    return answers
