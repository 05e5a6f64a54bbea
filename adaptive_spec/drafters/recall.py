"""The ``recall`` drafter: guesses what followed the same words in requests that have ended.

Traffic of one application repeats itself: the same questions in other words, the same helpers, the
same turns of phrase (SuffixDecoding, arXiv 2411.04975, keeps a tree of former outputs for it). Here
the answers of requests that have ended go into one suffix automaton, and every open request keeps
its place in it: the longest suffix of its text that some former answer holds. What followed there
is drafted with the probabilities of ``blending``.

Memory is bounded by ``tokens``: half-way a second automaton begins, and takes over once the first
is full, so that the newest quarter at least is always known and nothing is ever rebuilt at once. A
token takes half a kilobyte or less in each. Answers stay in this process, as ids, until newer ones
displace them or the decoder is gone; a prompt leaves no more than its last few tokens. What is
drafted from them cannot change a text, but it makes answers that resemble former ones come faster,
which whoever waits for them could notice, and a log with ``text`` holds the drafts: one decoder for
those who may know of each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from adaptive_spec.drafters.automaton import SuffixAutomaton
from adaptive_spec.drafters.base import CandidateTree, Committed, DraftRequest
from adaptive_spec.drafters.blending import END, Blend, check_options, noise_of
from adaptive_spec.errors import ArgumentError
from adaptive_spec.types import Plan

BEFORE = 4
"""Tokens of a prompt that are kept with its answer: what answers begin with."""
LONGEST = 64
"""Tokens by which a place is found again in another automaton."""
LEAST_TOKENS = 64
"""Fewer are no memory."""
WAITING = 64
"""Ended requests that wait until a learner has looked at them, at most."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer, with the steps that wrote it."""

    tokens: Sequence[int]
    """Answer after the last tokens of its prompt; ``END`` between two turns."""
    steps: Sequence[tuple[int, int]]
    """(tokens before it, draft tokens accepted) of every step."""


class Memory:
    """Answers of requests that have ended, the newest ones.

    Args:
        tokens: most tokens that are looked up.
        walk: most suffix links along which a new token is counted.
    """

    def __init__(self, tokens: int, walk: int = 32) -> None:
        self._tokens, self._walk = tokens, walk
        self.longest = tokens // 4 - 1  # and the end
        self.automaton = SuffixAutomaton(walk)
        self._next = SuffixAutomaton(walk)

    def add(self, text: Sequence[int]) -> None:
        """Remember a text; no more of its end than there is room for."""
        text = text[-self.longest :]
        if self.automaton.size + len(text) + 1 > self._tokens:
            self.automaton, self._next = self._next, SuffixAutomaton(self._walk)
        halfway = self.automaton.size + len(text) >= self._tokens // 2
        for automaton in (self.automaton, self._next) if halfway else (self.automaton,):
            automaton.extend(text)
            automaton.append(END)


class Place:
    """The longest suffix of a text that an automaton knows, while both grow. What the automaton
    learns is found by what comes after it."""

    __slots__ = ("_automaton", "_matched", "_newest", "_state")

    def __init__(self, automaton: SuffixAutomaton) -> None:
        self._newest: deque[int] = deque(maxlen=LONGEST)
        self._automaton, self._state, self._matched = automaton, 0, 0

    def follow(self, automaton: SuffixAutomaton, tokens: Iterable[int]) -> None:
        """The text goes on with ``tokens``; ``automaton`` may be another one than before."""
        if automaton is not self._automaton:
            self._automaton, self._state, self._matched = automaton, 0, 0
            tokens = [*self._newest, *tokens]
            self._newest.clear()
        after, link, length = automaton.next, automaton.link, automaton.length
        for token in tokens:
            self._newest.append(token)
            state, matched = self.found()
            while state and token not in after[state]:
                state = link[state]
                matched = length[state]
            there = after[state].get(token)
            self._state, self._matched = (0, 0) if there is None else (there, matched + 1)

    def found(self) -> tuple[int, int]:
        """State and length of the suffix. States part while an automaton grows: the shorter of
        their substrings move below."""
        link, length = self._automaton.link, self._automaton.length
        while self._state and self._matched <= length[link[self._state]]:
            self._state = link[self._state]
        return self._state, self._matched


@dataclass(slots=True, eq=False)
class _Open:
    place: Place
    text: list[int] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    turn: int = 0
    """Where in ``text`` the newest prompt begins."""

    def prompt(self, tokens: Sequence[int]) -> None:
        """A prompt, or a further part of one."""
        if self.steps and self.steps[-1][0] >= self.turn:  # a further turn
            self.text.append(END)
            self.turn = len(self.text)
        self.text[self.turn :] = [*self.text[self.turn :], *tokens][-BEFORE:]

    def step(self, tokens: Sequence[int]) -> None:
        self.steps.append((len(self.text), len(tokens) - 1))
        self.text += tokens


class RecallDrafter:
    """Drafts from the answers of requests that have ended; see the module docstring.

    Args:
        argument: refused, there is nothing to load.
        tokens: most tokens that are remembered.
        siblings, contexts, walk, floor, coupled: as of ``suffix``.
        shortest: tokens of the shortest context that is asked.

    Attributes:
        taught: a learner decides which of the answers that are ``waiting`` are remembered; else
            every one is, before the next request.

    Raises:
        ArgumentError: an argument was given, or an option is out of range.
    """

    name = "recall"
    taps: tuple[int, ...] = ()
    has_model = False

    def __init__(
        self,
        argument: str | None = None,
        *,
        coupled: bool = True,
        tokens: int = 1 << 16,
        siblings: int = 8,
        contexts: int = 3,
        shortest: int = 2,
        walk: int = 32,
        floor: float = 0.06,
    ) -> None:
        if tokens < LEAST_TOKENS:
            raise ArgumentError("tokens", tokens, f"at least {LEAST_TOKENS}")
        sizes = {"siblings": siblings, "contexts": contexts, "walk": walk}
        check_options(self.name, argument, floor, **sizes, shortest=shortest)
        self.memory = Memory(tokens, walk)
        self.reads_noise, self.taught = coupled, False
        self.waiting: deque[Ended] = deque(maxlen=WAITING)
        self._tokens = tokens
        self._options, self._floor = (siblings, contexts, shortest), floor
        self._open: dict[str, _Open] = {}

    def start(self, request: DraftRequest) -> None:
        """A text begins; its prompt comes with the first ``commit``."""
        self._open[request.id] = _Open(Place(self.memory.automaton))
        self._tidy()

    def propose(
        self, requests: Sequence[DraftRequest], plans: Sequence[Plan]
    ) -> list[CandidateTree]:
        """One tree per request; an empty one where no former answer fits."""
        return [self._tree(r, plan) for r, plan in zip(requests, plans, strict=True)]

    def _tree(self, request: DraftRequest, plan: Plan) -> CandidateTree:
        place, automaton = self._open[request.id].place, self.memory.automaton
        place.follow(automaton, ())
        state, matched = place.found()
        if not state:
            return CandidateTree.empty()
        floor = self._floor if plan.floor is None else plan.floor
        noise = noise_of(request, self.reads_noise)
        return Blend(automaton, *self._options).grow_from((state, matched, 0), plan, floor, noise)

    def commit(self, requests: Sequence[DraftRequest], news: Sequence[Committed]) -> None:
        """Follow the prompt, later the emitted tokens."""
        for request, new in zip(requests, news, strict=True):
            this, tokens = self._open[request.id], [int(token) for token in new.tokens]
            if not tokens:
                continue
            if new.tree is None:
                this.prompt(tokens)
                if len(tokens) > LONGEST:  # what lies between is not followed
                    this.place, tokens = Place(self.memory.automaton), tokens[-LONGEST:]
            else:
                this.step(tokens)
            this.place.follow(self.memory.automaton, tokens)

    def finish(self, request: DraftRequest) -> None:
        """The answer is complete."""
        this = self._open.pop(request.id, None)
        if this is None or not this.steps:
            return
        early = max(len(this.text) - self.memory.longest, 0)
        steps = [(at - early, accepted) for at, accepted in this.steps if at >= early]
        self.waiting.append(Ended(this.text[early:], steps))  # by whichever thread lets go of it

    def _tidy(self) -> None:
        """Remember what waits, or keep it within a quarter of what may be remembered."""
        size = sum(len(one.tokens) for one in list(self.waiting))
        while self.waiting and (not self.taught or size > self._tokens // 4):
            oldest = self.waiting.popleft()
            size -= len(oldest.tokens)
            if not self.taught:
                self.memory.add(oldest.tokens)
