"""A suffix automaton that grows by one token at a time and counts what it has seen.

The automaton of a text is the smallest machine that reads exactly the substrings of that text
(Blumer, Blumer, Haussler, Ehrenfeucht, Chen, Seiferas 1985, "The smallest automaton recognizing
the subwords of a text"). A state stands for all substrings that end at the same set of positions;
its suffix link leads to the longest suffix that ends at more positions than that. Three facts make
it a drafter's data structure:

- ``next[v][c]`` says that c has followed the substrings of v, and ``count`` of the state it leads
  to says how often: the continuation frequencies of a context of *any* length are one dict away;
- the last state is the whole text, which was never seen before, but its suffix link is the longest
  suffix that was: the chain of links lists every useful context of the next token, longest first;
- a token costs amortised O(1) states and transitions, at most 2n and 3n for n tokens.

Exact counts would cost a walk over the whole chain of links for each token, and on a text such as
"aaaa..." that chain is as long as the text. The walk therefore stops after ``walk`` links: counts
are exact where chains are shorter than that, and else too low for the shortest contexts, the ones
that say least. Counts are never above the truth, and never below 1.
"""

from __future__ import annotations

from collections.abc import Iterable


class SuffixAutomaton:
    """Suffix automaton of a growing text, as flat lists indexed by state; state 0 is empty.

    Attributes:
        next: per state, token -> state after that token.
        link: per state, its suffix link; -1 for state 0.
        length: per state, length of its longest substring.
        count: per state, positions at which its substrings end (bounded below as said above).
        last: state of the whole text. It has no transitions.
    """

    __slots__ = ("count", "last", "length", "link", "next", "size", "walk")

    def __init__(self, walk: int = 32) -> None:
        self.next: list[dict[int, int]] = [{}]
        self.link = [-1]
        self.length = [0]
        self.count = [0]
        self.last = 0
        self.size = 0
        self.walk = walk

    def extend(self, tokens: Iterable[int]) -> None:
        """Append ``tokens`` one by one."""
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Append one token: amortised O(1) plus at most ``walk`` counts."""
        after, link, length, count = self.next, self.link, self.length, self.count
        new = len(link)
        self.size += 1
        after.append({})
        length.append(self.size)
        count.append(1)
        link.append(0)
        state = self.last
        self.last = new
        while state >= 0 and token not in after[state]:
            after[state][token] = new
            state = link[state]
        if state < 0:
            return
        seen = after[state][token]
        if length[seen] != length[state] + 1:
            seen = self._split(state, token, seen)
        link[new] = seen
        for _ in range(self.walk):
            if seen <= 0:
                return
            count[seen] += 1
            seen = link[seen]

    def _split(self, state: int, token: int, seen: int) -> int:
        """Part the shorter substrings of ``seen``, which now end at one position more, from it.

        The copy has ended wherever ``seen`` has, so it starts with the same count.
        """
        after, link, length = self.next, self.link, self.length
        copy = len(after)
        after.append(after[seen].copy())
        length.append(length[state] + 1)
        self.count.append(self.count[seen])
        link.append(link[seen])
        link[seen] = copy
        while state >= 0 and after[state].get(token) == seen:
            after[state][token] = copy
            state = link[state]
        return copy
