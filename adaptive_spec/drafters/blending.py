"""What comes next after a context, as a suffix automaton remembers it, and trees of it.

The distribution at a node blends contexts from the longest to shorter ones, as in prediction by
partial matching (Cleary and Witten 1984). A context of length L that was continued n times is
trusted with odds ``SCALE * L**LENGTH_POWER * n**COUNT_POWER / (1 + U)**DOUBT_POWER`` and splits
that probability among its continuations by their counts; the rest escapes to the next suffix link.
U is the length of that next context if it was continued in several ways, else 0: where a context
of 13 tokens left the choice open, 7 more that happen to agree prove little. A long unique match so
becomes a deep chain near certainty, a short one a few unlikely alternatives.

The constants come from replaying greedy output of a small chat model on prompts that no benchmark
contains: near the best tokens per step, and there the setting whose summed survival comes closest
to the tokens accepted. The length of a context says nearly everything, its count little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from math import log
from operator import itemgetter
from typing import TypeAlias

import numpy as np

from adaptive_spec import tree
from adaptive_spec.drafters.automaton import SuffixAutomaton
from adaptive_spec.drafters.base import CandidateTree, DraftRequest
from adaptive_spec.drafters.coupling import coupled_logq
from adaptive_spec.errors import ArgumentError
from adaptive_spec.types import Floats, Ints, Plan

SCALE = 0.35
LENGTH_POWER = 1.7
COUNT_POWER = 0.2
DOUBT_POWER = 1.5
TRUST_LIMIT = 0.99
"""No context is trusted more, however long: copying ends somewhere."""
ESCAPE_LIMIT = 0.05
"""Shorter contexts are not asked once less than this probability is left for them."""
FAN = 64
"""Continuations looked at per context, oldest first: bounds the time after a comma."""
END = -1
"""Stands between two texts of one automaton; nobody drafts it."""

_WEIGHT = [SCALE * length**LENGTH_POWER for length in range(64)]
_DOUBT = [(1 + length) ** -DOUBT_POWER for length in range(64)]

SHARPNESS = 0.6
"""Trust in its own probabilities against the noise, when drafting is coupled (``coupling``)."""

Context: TypeAlias = tuple[int, int, int]
"""State of the automaton, length of the suffix that was matched to reach it, depth in the tree."""
Child: TypeAlias = tuple[int, float, Context]
Gumbel: TypeAlias = Callable[[int, Ints], Floats]


class Blend:
    """The distribution of what comes next, by what an automaton has read.

    Args:
        siblings: most children considered per node.
        contexts: most contexts blended per node, longest first.
        shortest: tokens of the shortest context that is asked.
    """

    __slots__ = ("automaton", "contexts", "shortest", "siblings")

    def __init__(
        self, automaton: SuffixAutomaton, siblings: int, contexts: int, shortest: int = 1
    ) -> None:
        self.automaton = automaton
        self.siblings, self.contexts, self.shortest = siblings, contexts, shortest

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
                if matched < self.shortest:
                    break
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
        if depth == 0:
            self.surprise(chance, target, escape)
        chance.pop(END, None)
        scored = [(token, log(odds)) for token, odds in chance.items()]
        if noise is not None and scored:
            logq = np.array([score for _, score in scored])
            rest = max(1.0 - float(np.exp(logq).sum()), 1e-3)
            tokens = np.array([token for token, _ in scored])
            values = coupled_logq(logq, noise(depth, tokens), rest, SHARPNESS)
            scored = list(zip(tokens.tolist(), values.tolist(), strict=True))
        best = sorted(scored, key=itemgetter(1), reverse=True)[: self.siblings]
        return [(token, score, target[token]) for token, score in best]

    def surprise(self, chance: dict[int, float], target: dict[int, Context], escape: float) -> None:
        """Share what the contexts of the root left over (``escape``) among other tokens."""

    def grow_from(
        self, root: Context, plan: Plan, floor: float = 0.0, noise: Gumbel | None = None
    ) -> CandidateTree:
        """The likeliest ``plan.nodes`` continuations of ``root`` as a tree, none below ``floor``.

        Node features: ``match_length`` (tokens of context that foretold the node, 0 for one that
        no context did) and ``count`` (how often that context was continued so).
        """
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


def noise_of(request: DraftRequest, coupled: bool) -> Gumbel | None:
    """The request's noise by depth below the root; None where it is not to be read."""
    keyed, here = request.noise, len(request.tokens)
    if keyed is None or not coupled:
        return None
    return lambda depth, tokens: keyed.gumbel(here + depth, tokens)


def check_options(name: str, argument: str | None, floor: float, **least_one: int) -> None:
    """What drafters that look up have in common.

    Raises:
        ArgumentError: an argument was given, an option is below 1, or the floor is no probability.
    """
    if argument is not None:
        raise ArgumentError("argument", argument, f"the {name} drafter takes none")
    for field, value in least_one.items():
        if value < 1:
            raise ArgumentError(field, value, "at least 1")
    if not 0 <= floor < 1:
        raise ArgumentError("floor", floor, "expected a number in [0, 1)")
