"""The arm that decides which answers are remembered: it moves no weight, and costs next to nothing.

A trial asks what the answers that wait would have told about the newest of them. Of every verified
tree there it is known what was accepted; the gain is how much farther the copied chain would have
got, with the others beside what is remembered already against that alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from adaptive_spec.drafters.automaton import SuffixAutomaton
from adaptive_spec.drafters.blending import END, FAN
from adaptive_spec.drafters.recall import Ended, Place, RecallDrafter
from adaptive_spec.online.rules import RECALL
from adaptive_spec.online.trials import Outcome

LEAST = 4
"""Answers that a trial needs."""
HELD_OUT = 0.25
"""Share of the newest answers that the others are judged by."""
SHORTEST, FARTHEST = 3, 16
"""Tokens of a context that a copy begins after, and of a copy at most."""
STRETCH = 8
"""Trees in a row that are judged as one: neighbours are alike."""


class RecallArm:
    """Hands the answers that wait to a ``recall`` drafter, where they are worth it."""

    name = RECALL
    needs_passages, moves_head = False, False

    def __init__(self, drafter: RecallDrafter) -> None:
        drafter.taught = True
        self._drafter = drafter
        self._looked_at: list[Ended] = []

    def pieces(self) -> Iterator[Outcome | None] | None:
        waiting = self._drafter.waiting
        return self._pieces(list(waiting)) if len(waiting) >= LEAST else None

    def _pieces(self, waiting: list[Ended]) -> Iterator[Outcome | None]:
        self._looked_at = waiting
        cut = len(waiting) - max(int(len(waiting) * HELD_OUT), 1)
        new = SuffixAutomaton()
        for one in waiting[:cut]:
            new.extend([*one.tokens, END])
        yield None
        gains: list[float] = []
        for one in waiting[cut:]:
            gains += _gains(one, self._drafter.memory.automaton, new)
            yield None
        pieces = range(0, len(gains), STRETCH)
        yield Outcome.of(np.array([np.mean(gains[at : at + STRETCH]) for at in pieces]))

    def settle(self, kept: bool) -> None:
        """Remember those that were looked at; else they wait on, until others displace them."""
        if not kept:
            return
        looked_at, self._looked_at = self._looked_at, []
        for one in looked_at:
            self._drafter.memory.add(one.tokens)
        known = set(map(id, looked_at))
        newer = [one for one in self._drafter.waiting if id(one) not in known]
        self._drafter.waiting.clear()
        self._drafter.waiting.extend(newer)


def _gains(one: Ended, old: SuffixAutomaton, new: SuffixAutomaton) -> list[float]:
    """Of every tree of an answer, the draft tokens that ``new`` beside ``old`` would have added."""
    places = [(automaton, Place(automaton)) for automaton in (old, new)]
    gains, read = [], 0
    for before, accepted in one.steps:
        piece, coming = one.tokens[read:before], one.tokens[before : before + FARTHEST]
        read = before
        found = []
        for automaton, place in places:
            place.follow(automaton, piece)
            found.append(_copied(automaton, *place.found(), coming))
        gains.append(float(max(accepted, *found) - max(accepted, found[0])))
    return gains


def _copied(automaton: SuffixAutomaton, state: int, matched: int, coming: Sequence[int]) -> int:
    """Tokens of ``coming`` that copying gets right: what followed most often, again and again."""
    if matched < SHORTEST:
        return 0
    count = automaton.count
    for right, token in enumerate(coming):
        follow = automaton.next[state]
        likeliest = max(islice(follow.items(), FAN), key=lambda edge: count[edge[1]], default=None)
        if likeliest is None or likeliest[0] != token:
            return right
        state = likeliest[1]
    return len(coming)
