"""The arm that decides which answers are remembered: it moves no weight, and a trial takes next to
nothing.

A trial asks what the answers that wait would have told about the newest of them. Of every verified
tree there it is known what was accepted; the gain is how much farther the copied chain would have
got, with the others beside what is remembered already against that alone. Remembering is cheap,
and what it brings can only be found out by it, so answers are remembered unless those of late have
shown that it does not pay for the lookups: hope, not proof, decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, takewhile

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
REMEMBERED = 128
"""Stretches of late that hope is drawn from, and one more that would have gained 1."""
PRICE = 0.01
"""Draft tokens per tree that lookups cost: 0.3 ms of a step, at 30 tokens/s."""


class RecallArm:
    """Hands the answers that wait to a ``recall`` drafter, where they may be worth it."""

    name = RECALL
    needs_passages, moves_head = False, False

    def __init__(self, drafter: RecallDrafter) -> None:
        drafter.taught = True
        self._drafter = drafter
        self._looked_at: list[Ended] = []
        self._late: deque[float] = deque(maxlen=REMEMBERED)

    def pieces(self) -> Iterator[Outcome | None] | None:
        waiting = list(self._drafter.waiting)
        return self._pieces(waiting) if len(waiting) >= LEAST else None

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
        several = [gains[at : at + STRETCH] for at in range(0, len(gains), STRETCH)]
        stretches = [float(np.mean(some)) for some in several]
        self._late.extend(stretches)
        hope = (sum(self._late) + 1.0) / (len(self._late) + 1.0)
        kept = hope > PRICE
        reason = "worth remembering" if kept else "not worth remembering"
        yield replace(Outcome.of(np.array(stretches)), kept=kept, reason=reason)

    def settle(self, kept: bool) -> None:
        """Remember those that were looked at; else they wait on, until others displace them."""
        looked_at, self._looked_at = self._looked_at, []
        if not kept:
            return
        for one in looked_at:
            self._drafter.memory.add(one.tokens)
        known, waiting = set(map(id, looked_at)), self._drafter.waiting
        while waiting and id(waiting[0]) in known:  # some may have been displaced meanwhile
            waiting.popleft()


def _gains(one: Ended, old: SuffixAutomaton, new: SuffixAutomaton) -> list[float]:
    """Of every tree of an answer, the draft tokens that ``new`` beside ``old`` would have added."""
    places = [(automaton, Place(automaton)) for automaton in (old, new)]
    gains, read = [], 0
    for before, accepted in one.steps:
        piece, ahead = one.tokens[read:before], one.tokens[before : before + FARTHEST]
        coming = list(takewhile(lambda token: token != END, ahead))
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
