"""The ``suffix`` drafter: guesses what followed the same words before, in this very request.

Code repeats its names, a rewrite repeats its source, an answer repeats its question. The drafter
keeps a suffix automaton of prompt and output, so the longest suffix of the text that occurred
before, and what came after it each time, is one link away. It has no model and nothing to load,
and it works from the first step (the idea of prompt lookup, and of SuffixDecoding,
arXiv 2411.04975; here with smoothed probabilities, so that a controller can price every node).

The distribution at a node blends contexts from the longest to shorter ones, as in prediction by
partial matching (Cleary and Witten 1984). A context of length L that was continued n times is
trusted with odds ``SCALE * L**LENGTH_POWER * n**COUNT_POWER / (1 + U)**DOUBT_POWER`` and splits
that probability among its continuations by their counts; the rest escapes to the next suffix link.
U is the length of that next context if it was continued in several ways, else 0: where a context
of 13 tokens left the choice open, 7 more that happen to agree prove little. Next to the root come
tokens that appeared again and again where no context foretold them (the "update exclusion" of that
method): commas, line breaks, keywords. A long unique match so becomes a deep chain near certainty,
a short one a few unlikely alternatives.

The constants come from replaying greedy output of a small chat model on prompts that no benchmark
contains: near the best tokens per step, and there the setting whose summed survival comes closest
to the tokens accepted. The length of a context says nearly everything, its count little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from math import log
from operator import itemgetter
from typing import TypeAlias

import numpy as np

from adaptive_spec import tree
from adaptive_spec.drafters.automaton import SuffixAutomaton
from adaptive_spec.drafters.base import CandidateTree, Committed, DraftRequest
from adaptive_spec.drafters.coupling import coupled_logq
from adaptive_spec.errors import ArgumentError
from adaptive_spec.types import Floats, Ints, Plan

SCALE = 0.35
LENGTH_POWER = 1.7
COUNT_POWER = 0.2
DOUBT_POWER = 1.5
TRUST_LIMIT = 0.99
"""No context is trusted more, however long: copying ends somewhere."""
NOVEL_TRUST = 0.7
"""Share of the last escape that goes to the frequent unforeseen tokens."""
ESCAPE_LIMIT = 0.05
"""Shorter contexts are not asked once less than this probability is left for them."""
FAN = 64
"""Continuations looked at per context, oldest first: bounds the time after a comma."""

_WEIGHT = [SCALE * length**LENGTH_POWER for length in range(64)]
_DOUBT = [(1 + length) ** -DOUBT_POWER for length in range(64)]

SHARPNESS = 0.6
"""Trust in its own probabilities against the noise, when drafting is coupled (``coupling``)."""

Context: TypeAlias = tuple[int, int, int]
"""State of the automaton, length of the suffix that was matched to reach it, depth in the tree."""
Child: TypeAlias = tuple[int, float, Context]
Gumbel: TypeAlias = Callable[[int, Ints], Floats]


class History:
    """What one request has said so far, and the distribution of what it says next.

    Attributes:
        automaton: suffix automaton of prompt and output.
        surprises: token -> times it came where no context foretold it.
        surprised: their sum.
        frequent: the tokens that surprised most often, at least twice, by falling count.
    """

    __slots__ = ("automaton", "contexts", "frequent", "siblings", "surprised", "surprises")

    def __init__(self, siblings: int, contexts: int, walk: int) -> None:
        self.automaton = SuffixAutomaton(walk)
        self.siblings = siblings
        self.contexts = contexts
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

    def children(self, context: Context, noise: Gumbel | None = None) -> list[Child]:
        """The likeliest next tokens after ``context``; their probabilities sum to less than 1.

        Args:
            noise: (depth, tokens) -> the keyed noise that the target will draw with; the tokens
                are then those that are likeliest given the noise.
        """
        after, link = self.automaton.next, self.automaton.link
        length, count = self.automaton.length, self.automaton.count
        chance: dict[int, float] = {}
        target: dict[int, Context] = {}
        state, matched, depth = context
        escape, asked = 1.0, 0
        while state > 0 and asked < self.contexts and escape > ESCAPE_LIMIT:
            if follow := after[state]:
                wide = len(follow) > FAN
                edges = islice(follow.items(), FAN) if wide else follow.items()
                seen = [(token, there, count[there]) for token, there in edges]
                total = sum([times for _, _, times in seen])
                if wide:
                    total = max(total, count[state] - 1)
                below = link[state]
                # Doubt: the next context is long, and still did not settle the choice.
                doubt = _DOUBT[min(length[below], 63)] if len(after[below]) > 1 else 1.0
                trust = doubt * _WEIGHT[min(matched, 63)] * total**COUNT_POWER
                trust = min(trust / (1.0 + trust), TRUST_LIMIT)
                share = escape * trust / total
                for token, there, times in seen:
                    if token in chance:
                        chance[token] += share * times
                    else:
                        chance[token] = share * times
                        target[token] = (there, matched + 1, depth + 1)
                escape *= 1.0 - trust
                asked += 1
            state = link[state]
            matched = length[state]
        if depth == 0 and self.frequent:  # next to the root only: too unlikely further down
            share = escape * NOVEL_TRUST / self.surprised
            for token in self.frequent:
                if token not in chance:
                    target[token] = (after[0][token], 1, 1)
                chance[token] = chance.get(token, 0.0) + share * self.surprises[token]
        scored = [(token, log(odds)) for token, odds in chance.items()]
        if noise is not None and scored:
            logq = np.array([score for _, score in scored])
            rest = max(1.0 - float(np.exp(logq).sum()), 1e-3)
            tokens = np.array([token for token, _ in scored])
            values = coupled_logq(logq, noise(depth, tokens), rest, SHARPNESS)
            scored = list(zip(tokens.tolist(), values.tolist(), strict=True))
        best = sorted(scored, key=itemgetter(1), reverse=True)[: self.siblings]
        return [(token, score, target[token]) for token, score in best]

    def grow(self, plan: Plan, floor: float = 0.0, noise: Gumbel | None = None) -> CandidateTree:
        """The likeliest ``plan.nodes`` continuations as a tree, those below ``floor`` left out."""
        root: Context = (self.automaton.last, 0, 0)
        known: dict[Context, list[Child]] = {}

        def expand(context: Context) -> list[Child]:
            if context not in known:
                known[context] = self.children(context, noise)
            return known[context]

        grown = tree.grow(root, expand, plan.nodes, plan.depth, floor)
        place: list[Context] = []
        for parent, rank in zip(grown.parent.tolist(), grown.rank.tolist(), strict=True):
            above = root if parent < 0 else place[parent]
            place.append(known[above][rank][2])
        count = self.automaton.count
        features = {
            "match_length": np.array([matched - 1 for _, matched, _ in place], dtype=np.float64),
            "count": np.array([count[state] for state, _, _ in place], dtype=np.float64),
        }
        return replace(grown, features=features)


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

    Node features: ``match_length`` (tokens of context that foretold the node, 0 for a merely
    frequent token) and ``count`` (how often that context was continued so).
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
        if argument is not None:
            raise ArgumentError("argument", argument, "the suffix drafter takes none")
        for field, value in (("siblings", siblings), ("contexts", contexts), ("walk", walk)):
            if value < 1:
                raise ArgumentError(field, value, "at least 1")
        if not 0 <= floor < 1:
            raise ArgumentError("floor", floor, "expected a number in [0, 1)")
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
        return self._history[request.id].grow(plan, floor, self._noise(request))

    def _noise(self, request: DraftRequest) -> Gumbel | None:
        """The request's noise by depth below the root; None where it is not to be read."""
        keyed, here = request.noise, len(request.tokens)
        if keyed is None or not self.reads_noise:
            return None
        return lambda depth, tokens: keyed.gumbel(here + depth, tokens)

    def commit(self, requests: Sequence[DraftRequest], news: Sequence[Committed]) -> None:
        """Learn the prompt, later the emitted tokens."""
        for request, new in zip(requests, news, strict=True):
            self._history[request.id].extend(new.tokens)

    def finish(self, request: DraftRequest) -> None:
        """Forget the request."""
        self._history.pop(request.id, None)
