"""The ``suffix`` drafter: guesses what followed the same words before, in this very request.

Code repeats its names, a rewrite repeats its source, an answer repeats its question. The drafter
keeps a suffix automaton of prompt and output, so the longest suffix of the text that occurred
before, and what came after it each time, is one link away. It has no model and nothing to load,
and it works from the first step (the idea of prompt lookup, and of SuffixDecoding,
arXiv 2411.04975; here with smoothed probabilities, so that a controller can price every node:
``blending``). Next to the root come tokens that appeared again and again where no context foretold
them (the "update exclusion" of prediction by partial matching): commas, line breaks, keywords.
"""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_spec.drafters.automaton import SuffixAutomaton
from adaptive_spec.drafters.base import CandidateTree, Committed, DraftRequest
from adaptive_spec.drafters.blending import Blend, Context, Gumbel, check_options, noise_of
from adaptive_spec.types import Plan

NOVEL_TRUST = 0.7
"""Share of the last escape that goes to the frequent unforeseen tokens."""


class History(Blend):
    """What one request has said so far, and the distribution of what it says next.

    Attributes:
        automaton: suffix automaton of prompt and output.
        surprises: token -> times it came where no context foretold it.
        surprised: their sum.
        frequent: the tokens that surprised most often, at least twice, by falling count.
    """

    __slots__ = ("frequent", "surprised", "surprises")

    def __init__(self, siblings: int, contexts: int, walk: int) -> None:
        super().__init__(SuffixAutomaton(walk), siblings, contexts)
        self.surprises: dict[int, int] = {}
        self.surprised = 0
        self.frequent: list[int] = []

    def extend(self, tokens: Sequence[int]) -> None:
        """Append ``tokens``: amortised O(1) each."""
        automaton = self.automaton
        for token in map(int, tokens):
            automaton.append(token)
            if automaton.length[automaton.link[automaton.last]] < 2:
                self._surprise(token)

    def _surprise(self, token: int) -> None:
        """Count a surprise. One token moves up by one, so the top list stays exact."""
        counts, top = self.surprises, self.frequent
        times = counts[token] = counts.get(token, 0) + 1
        self.surprised += 1
        if times < 2:
            return
        if token in top:
            place = top.index(token)
        elif len(top) < self.siblings:
            place = len(top)
            top.append(token)
        elif times > counts[top[-1]]:
            place = len(top) - 1
        else:
            return
        while place and counts[top[place - 1]] < times:
            top[place] = top[place - 1]
            place -= 1
        top[place] = token

    def surprise(self, chance: dict[int, float], target: dict[int, Context], escape: float) -> None:
        """Next to the root only: further down the frequent tokens are too unlikely."""
        if not self.frequent:
            return
        after, share = self.automaton.next[0], escape * NOVEL_TRUST / self.surprised
        for token in self.frequent:
            if token not in chance:
                target[token] = (after[token], 1, 1)
            chance[token] = chance.get(token, 0.0) + share * self.surprises[token]

    def grow(self, plan: Plan, floor: float = 0.0, noise: Gumbel | None = None) -> CandidateTree:
        """The likeliest ``plan.nodes`` continuations of the text, none below ``floor``."""
        return self.grow_from((self.automaton.last, 0, 0), plan, floor, noise)


class SuffixDrafter:
    """Drafts from the request's own text; see the module docstring.

    Args:
        argument: refused, there is nothing to load.
        siblings: most children considered per node.
        contexts: most contexts blended per node, longest first.
        walk: most suffix links along which a new token is counted: bounds the time per token.
        floor: least estimated survival of a node. Where a row costs a few per cent of a step, a
            guess that is right once in thirty is not worth one; 0 offers everything. A plan's own
            floor goes before it.
        coupled: when sampling, prefer tokens that the request's noise favours.

    Raises:
        ArgumentError: an argument was given, or an option is below 1.
    """

    name = "suffix"
    taps: tuple[int, ...] = ()
    has_model = False

    def __init__(
        self,
        argument: str | None = None,
        *,
        coupled: bool = True,
        siblings: int = 16,
        contexts: int = 4,
        walk: int = 32,
        floor: float = 0.06,
    ) -> None:
        check_options(self.name, argument, floor, siblings=siblings, contexts=contexts, walk=walk)
        self._options, self._floor = (siblings, contexts, walk), floor
        self.reads_noise = coupled
        self._history: dict[str, History] = {}

    def start(self, request: DraftRequest) -> None:
        """Open an empty history; the prompt comes with the first ``commit``."""
        self._history[request.id] = History(*self._options)

    def propose(
        self, requests: Sequence[DraftRequest], plans: Sequence[Plan]
    ) -> list[CandidateTree]:
        """One tree per request; fewer nodes than planned where the text has not repeated."""
        return [self._tree(r, plan) for r, plan in zip(requests, plans, strict=True)]

    def _tree(self, request: DraftRequest, plan: Plan) -> CandidateTree:
        floor = self._floor if plan.floor is None else plan.floor
        return self._history[request.id].grow(plan, floor, noise_of(request, self.reads_noise))

    def commit(self, requests: Sequence[DraftRequest], news: Sequence[Committed]) -> None:
        """Learn the prompt, later the emitted tokens."""
        for request, new in zip(requests, news, strict=True):
            self._history[request.id].extend(new.tokens)

    def finish(self, request: DraftRequest) -> None:
        """Forget the request."""
        self._history.pop(request.id, None)
