"""Whether drafting pays at all: falls back to plain decoding, and probes for its return.

Choosing size 0 costs nothing, but the draft before it was paid for; and values may be wrong. So the
advantage over plain decoding is followed, in tokens per step: the surplus that was expected, less
what expectations have proven to exceed the truth by. Drafting stops while that is negative. Below
the executed size everything is known from the verified trees, so nothing is explored while drafting
goes on; from 0 it takes probes, and those are bounded in time. Where drafting costs next to nothing
the drafts are looked at even so, and a clear case is verified at once.

Hysteresis: leaving takes many steps, or a clear breach of what was expected; returning takes two
probes, hardly more failures in between, that promise a surplus and realise one. At a break-even
point the two states are thus far apart, and the pause doubles with every return that did not last.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

MEMORY, LONG_MEMORY = 32.0, 64.0
"""Drafted steps over which the expected surplus is averaged, and its excess."""
PATIENCE, HASTE = 16, 4
"""Drafted steps before a verdict; before one on values that are plainly too high."""
DOUBT = 2.0
"""Standard errors by which fewer tokens than expected must have come to prove an excess."""
LOSS = 0.01
"""Tokens per step that drafting may lose before it stops."""
PAUSE, LONGEST_PAUSE = 100, 1600
"""Steps before a weak surplus may bring drafting back; doubles when a return does not last."""
WEAK, CLEAR = 0.02, 0.25
"""Expected surplus in tokens per step that brings drafting back: after the pause, and before."""
PROBE_SHARE, RAREST_PROBE = 0.005, 50
"""Share of the time that probes may take, and the most steps between two of them: were they
rarer, good times would be missed, as one of the two that fall into 100 steps may fail by chance."""
SOON, DEAREST = 16, 0.012
"""Steps that another text has to wait for its first probe, at most; share of the time at which a
probe is too dear for that bound, and for the rarest: from 0.6 of a plain step on, drafting and
nodes together, two probes in 100 steps leave too little of a loss of 2 % for finding out."""
HIGHEST_BAR = 4.0
"""Surplus that no draft promises: looking has ended."""
LOOK_COST = 0.01
"""Cost of drafting, as a share of a plain step, up to which drafts are looked at all the time: they
are verified only if they promise a ``CLEAR`` surplus."""
PROBE_COST = 0.1
"""What the nodes of a probe may cost, as a share of a plain step; one node is verified at any
price, or nobody would learn what it costs."""


@dataclass(frozen=True, slots=True)
class Balance:
    """What drafting brought in one step, in tokens; time is priced at the plain rate."""

    draft: float
    """Cost of drafting."""
    cost: float
    """Of drafting and of the nodes verified."""
    promised: float
    """Draft tokens that the verified edges promised."""
    expected: float
    """Draft tokens that were expected to be accepted, after what became of earlier promises."""
    accepted: int

    @property
    def surplus(self) -> float:
        """Expected advantage over plain decoding."""
        return self.expected - self.cost

    @property
    def advantage(self) -> float:
        """Realised advantage over plain decoding."""
        return self.accepted - self.cost


class Guard:
    """One request's switch between drafting and plain decoding."""

    def __init__(self) -> None:
        self.on = True
        self.lost = 0.0
        """Tokens per step that drafting cost more than it brought when it was stopped."""
        self.looks = False
        """Drafting is so cheap that it goes on while nothing is verified."""
        self.bar = CLEAR
        """Surplus that a draft must promise to be verified while drafting is off and no probe due;
        doubles with every disappointment."""
        self._since, self._pause = 0, PAUSE
        self._next_probe, self._hits, self._misses = 0, 0, 0
        self._dear = 0
        """Steps over which the last probe costs ``DEAREST``."""
        self._reset()

    def _reset(self) -> None:
        self._seen, self._surplus, self._accepted, self._expected = 0, 0.0, 0.0, 0.0

    def successor(self) -> Guard:
        """For the next request: the same state, with half the evidence, and a probe soon."""
        heir = Guard()
        heir.on, heir.lost, heir._pause, heir._since = self.on, self.lost, self._pause, self._since
        heir._seen = min(self._seen // 2, PATIENCE // 2)
        heir._surplus, heir._accepted = self._surplus, self._accepted
        heir._expected = self._expected
        heir._next_probe, heir._dear = min(self._next_probe, max(SOON, self._dear)), self._dear
        heir.looks = self.looks
        heir.bar = max(self.bar / 2, CLEAR)
        return heir

    @property
    def drafts(self) -> bool:
        """True if this step should draft."""
        return self.on or self.due or (self.looks and self.bar < HIGHEST_BAR)

    @property
    def due(self) -> bool:
        """True if drafting is off and this step is a probe."""
        return not self.on and self._next_probe <= 0

    @property
    def words(self) -> str:
        """Why nothing is verified."""
        return (
            f"guard: plain step, drafting had been losing {self.lost:.3f} tokens a step; "
            f"next probe in {max(self._next_probe, 0)} steps"
        )

    def observe(self, balance: Balance | None) -> None:
        """One step; ``balance`` is None if nothing was drafted."""
        due, self._since, self._next_probe = self.due, self._since + 1, self._next_probe - 1
        if balance is None:
            return
        self.looks = balance.draft <= LOOK_COST
        if self.on:
            self._follow(balance)
        elif due or balance.cost > balance.draft:
            self._probed(balance)

    def _follow(self, balance: Balance) -> None:
        self._seen += 1
        short, long = 1.0 / min(self._seen, MEMORY), 1.0 / min(self._seen, LONG_MEMORY)
        self._surplus += (balance.surplus - self._surplus) * short
        self._expected += (balance.expected - self._expected) * long
        self._accepted += (balance.accepted - self._accepted) * long
        if self._since >= 4 * self._pause:
            self._pause = PAUSE  # this return has lasted
        spread = self._accepted * (1.0 + self._accepted) + long  # of a geometric count
        excess = max(self._expected - self._accepted - DOUBT * sqrt(spread * long), 0.0)
        patience = HASTE if excess > 0.0 else PATIENCE
        if self._seen >= patience and (gain := self._surplus - excess) < -LOSS:
            self.on, self.lost, self._since = False, -gain, 0
            self._pause_probes(balance.cost)

    def _pause_probes(self, cost: float) -> None:
        """Wait for the next probe until what the last one cost is a small share of the time."""
        self._hits = self._misses = 0
        self._dear = round(cost / DEAREST)
        self._next_probe = min(max(round(cost / PROBE_SHARE), 1), max(RAREST_PROBE, self._dear))

    def _probed(self, balance: Balance) -> None:
        """Probes go on until two have paid, or two more have not than have."""
        needed = WEAK if self._since >= self._pause else CLEAR
        paid = balance.promised - balance.cost > needed and balance.advantage > 0
        self._hits, self._misses = self._hits + paid, self._misses + (not paid)
        self._next_probe = 0
        if self._hits == 2:
            self.on, self._since, self.bar = True, 0, CLEAR
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._reset()
        elif self._misses == self._hits + 2 or self._hits == 0:
            if balance.cost > balance.draft:
                self.bar = min(2 * self.bar, HIGHEST_BAR)
            self._pause_probes(balance.cost * (self._hits + self._misses))
