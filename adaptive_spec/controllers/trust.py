"""What expectations of executed trees are worth, by what came of them.

Edges are calibrated one by one, over everything that is verified. Trees are chosen because much is
expected of them, and whoever picks the most promising of many noisy estimates is disappointed on
average (the optimiser's curse; Smith and Winkler 2006). So what came true of all that was expected
of executed trees is followed as well, and the next expectation is cut by that share.
"""

from __future__ import annotations

from math import exp

MEMORY = 32.0
"""Expected tokens that are remembered."""
SUCCESS = 3.0
"""Weight of accepted tokens in that: better times are to be believed sooner than worse ones."""
DOUBT = 4.0
"""Tokens that are taken to have come as expected before anything was seen."""
MOST = 1.25
"""Bound of the share."""


class Trust:
    """Decayed tokens accepted over decayed tokens expected."""

    def __init__(self) -> None:
        self._accepted = self._expected = 0.0

    def successor(self) -> Trust:
        """For the next request: half of the evidence."""
        heir = Trust()
        heir._accepted, heir._expected = self._accepted / 2, self._expected / 2
        return heir

    @property
    def share(self) -> float:
        """By what an expected number of accepted tokens is to be multiplied."""
        share = (self._accepted + DOUBT) / (self._expected + DOUBT)
        return min(share, MOST)

    def observe(self, expected: float, accepted: int) -> None:
        """One executed tree, and what was expected of it by its edges alone."""
        keep = exp(-(expected + SUCCESS * accepted) / MEMORY)
        self._accepted = self._accepted * keep + accepted
        self._expected = self._expected * keep + expected
