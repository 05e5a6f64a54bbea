"""The drafter behind a wall: whatever it does, a request gets a valid tree or none.

Faults (exceptions, malformed trees) are counted and reported in words; the request decodes plainly.
"""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_spec import tree
from adaptive_spec.drafters.base import CandidateTree, Committed, Drafter, DraftRequest
from adaptive_spec.errors import TreeError
from adaptive_spec.types import Plan


class Drafting:
    """Calls one drafter for many requests and checks everything that comes back."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self._off: dict[str, str] = {}
        """Requests whose drafter state is unknown because a life-cycle call raised."""

    def start(self, request: DraftRequest) -> str | None:
        """Introduce a request; a fault in words, or None."""
        try:
            self.drafter.start(request)
        except Exception as error:
            return self._switch_off(request, "start", error)
        return None

    def propose(
        self, requests: Sequence[DraftRequest], plans: Sequence[Plan]
    ) -> tuple[list[CandidateTree], list[str | None]]:
        """A checked tree (maybe empty) and a fault (or None) per request."""
        trees = [CandidateTree.empty() for _ in requests]
        faults: list[str | None] = [self._off.get(request.id) for request in requests]
        asked = [
            i for i, plan in enumerate(plans) if plan.nodes > 0 and plan.depth > 0 and not faults[i]
        ]
        if not asked:
            return trees, faults
        try:
            answers = self.drafter.propose([requests[i] for i in asked], [plans[i] for i in asked])
            if len(answers) != len(asked):
                raise TreeError(f"{len(answers)} trees for {len(asked)} requests")
        except Exception as error:
            for i in asked:
                faults[i] = _words("propose", error)
            return trees, faults
        for i, answer in zip(asked, answers, strict=True):
            try:
                trees[i] = self._checked(answer, requests[i], plans[i])
            except Exception as error:
                faults[i] = _words("propose", error)
        return trees, faults

    def _checked(self, answer: object, request: DraftRequest, plan: Plan) -> CandidateTree:
        if not isinstance(answer, CandidateTree):
            raise TreeError(f"{type(answer).__name__} is not a CandidateTree")
        tree.check(answer, request.vocab, plan.nodes)
        if len(answer) and (deepest := int(tree.depths(answer.parent).max())) > plan.depth:
            raise TreeError(f"depth {deepest}, at most {plan.depth} was asked for")
        return answer

    def commit(self, requests: Sequence[DraftRequest], news: Sequence[Committed]) -> list[str]:
        """Tell the drafter what was verified; faults in words."""
        alive = [i for i, request in enumerate(requests) if request.id not in self._off]
        if not alive:
            return []
        try:
            self.drafter.commit([requests[i] for i in alive], [news[i] for i in alive])
        except Exception as error:
            return [self._switch_off(requests[i], "commit", error) for i in alive]
        return []

    def finish(self, request: DraftRequest) -> None:
        """Forget a request, whatever state it is in."""
        try:
            self.drafter.finish(request)
        except Exception as error:
            self._switch_off(request, "finish", error)
        self._off.pop(request.id, None)

    def _switch_off(self, request: DraftRequest, call: str, error: Exception) -> str:
        self._off[request.id] = _words(call, error) + "; no more drafts for this request"
        return self._off[request.id]


def _words(call: str, error: Exception) -> str:
    return f"drafter {call}: {type(error).__name__}: {error}"
