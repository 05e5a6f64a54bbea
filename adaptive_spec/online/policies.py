"""When to update: names to rules.

``never`` is no learner at all. A rule is asked after every step, sees how decoding goes, and says
whether a trial is worth its time; it is told what became of the trials it asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from adaptive_spec.errors import ArgumentError
from adaptive_spec.registry import Registry

NEVER = "never"
FRESH = 64
"""Verified trees after which ``always`` finds enough that is new."""


@dataclass(frozen=True, slots=True)
class View:
    """How decoding goes."""

    trees: int
    """Verified since the last trial."""
    tokens_per_second: float
    """Of late, updates included; 0 while unknown."""
    trees_per_second: float
    seconds: float
    """Since the first tree."""
    accepted: float
    """Draft tokens accepted in the newest tree."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """A decision that a rule came to, for the log."""

    act: bool
    reason: str
    expected_gain: float | None = None
    """Tokens per second."""
    expected_cost: float | None = None
    """Seconds of the trial."""


class UpdateRule(Protocol):
    """Says when an update is tried."""

    def ask(self, view: View) -> Opinion | None:
        """Whether to try one now; None where there was nothing to decide."""
        ...

    def told(self, gain: float, seconds: float) -> None:
        """What a trial brought: draft tokens per tree (0 if it was not kept), and its seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Every:
    """A fixed schedule."""

    trees: int

    def ask(self, view: View) -> Opinion | None:
        return Opinion(True, "scheduled") if view.trees >= self.trees else None

    def told(self, gain: float, seconds: float) -> None:
        return None


class CostAware:
    """Tries an update if what it may bring over the time to come is worth its own seconds.

    The gain of the next trial is drawn from what former ones brought (Thompson 1933), old ones
    counting less; a draw of g draft tokens per tree saves ``g * trees/s * horizon / (tokens/s)``
    seconds over the horizon. As long as decoding has gone on so far, it is expected to go on
    (``horizon`` None); a sudden fall of what is accepted makes former gains count no more and ends
    all waiting. A trial that brings nothing doubles the number of trees until the next question.

    Args:
        horizon: seconds of decoding still to come.
        margin: times its seconds that a trial must save.
    """

    FIRST, MOST = 32, 2048
    """Trees between two questions, at first and at most."""
    KEEP = 0.9
    """What a former trial counts for after each further one."""
    PRIOR_GAIN, PRIOR_SPREAD = 0.05, 0.05
    """What a trial is believed to bring before there was any, in draft tokens per tree."""
    FAST, SLOW, FALL = 1 / 16, 1 / 256, 3.0
    """Rates of two running means of accepted tokens, and the standard errors between them at which
    something has changed."""

    def __init__(self, horizon: float | None = None, margin: float = 1.5, seed: int = 0) -> None:
        self._horizon, self._margin = horizon, margin
        self._luck = np.random.default_rng(seed)
        self._wait = self.FIRST
        self._weight = self._gains = self._squares = 0.0
        self._cost: float | None = None
        self._fast = self._slow = self._spread = 0.0
        self._seen = 0

    def ask(self, view: View) -> Opinion | None:
        if self._fell(view.accepted):
            self._wait, self._weight, self._gains, self._squares = self.FIRST, 0.0, 0.0, 0.0
        if view.trees < self._wait or view.tokens_per_second <= 0:
            return None
        gain = self._draw()
        horizon = view.seconds if self._horizon is None else self._horizon
        more = gain * view.trees_per_second
        saved = more * horizon / view.tokens_per_second
        cost = 1.0 / view.trees_per_second if self._cost is None else self._cost
        if saved > self._margin * cost:
            return Opinion(True, f"saves {saved:.2f} s of {horizon:.0f}", more, cost)
        self._back_off()
        return Opinion(False, f"saves {saved:.2f} s of {horizon:.0f}: too little", more, cost)

    def told(self, gain: float, seconds: float) -> None:
        self._weight = self.KEEP * self._weight + 1.0
        self._gains = self.KEEP * self._gains + gain
        self._squares = self.KEEP * self._squares + gain * gain
        self._cost = seconds if self._cost is None else 0.8 * self._cost + 0.2 * seconds
        if gain > 0:
            self._wait = self.FIRST
        else:
            self._back_off()

    def _draw(self) -> float:
        """A gain, from the mean of former ones and one of the prior, with its uncertainty."""
        count = self._weight + 1.0
        mean = (self._gains + self.PRIOR_GAIN) / count
        spread = self.PRIOR_SPREAD**2 + self._squares + self.PRIOR_GAIN**2 - count * mean**2
        return float(self._luck.normal(mean, np.sqrt(max(spread, 0.0)) / count))

    def _back_off(self) -> None:
        self._wait = min(2 * self._wait, self.MOST)

    def _fell(self, accepted: float) -> bool:
        """Whether the last trees accepted far less than those before; then both means are equal."""
        self._seen += 1
        slow = max(self.SLOW, 1.0 / self._seen)
        self._spread += slow * ((accepted - self._slow) ** 2 - self._spread)
        self._slow += slow * (accepted - self._slow)
        self._fast += max(self.FAST, 1.0 / self._seen) * (accepted - self._fast)
        error = float(np.sqrt(self._spread * self.FAST / 2.0))
        fell = self._seen > 1.0 / self.FAST and self._slow - self._fast > self.FALL * error
        if fell:
            self._slow, self._seen = self._fast, int(1.0 / self.FAST)
        return fell


class _Never:
    def ask(self, view: View) -> Opinion | None:
        return None

    def told(self, gain: float, seconds: float) -> None:
        return None


def _every(argument: str | None) -> UpdateRule:
    if argument is None or not argument.isdecimal() or not 1 <= int(argument) <= 10**9:
        raise ArgumentError("updates", f"every:{argument}", "every:K, with K 1 or more trees")
    return Every(int(argument))


def _cost_aware(argument: str | None) -> UpdateRule:
    if argument is None:
        return CostAware()
    try:
        horizon = float(argument)
    except ValueError:
        horizon = 0.0
    if not 0.0 < horizon < float("inf"):
        allowed = "cost-aware:S, with S the seconds of decoding still to come"
        raise ArgumentError("updates", f"cost-aware:{argument}", allowed)
    return CostAware(horizon)


def _plain(name: str, rule: UpdateRule, argument: str | None) -> UpdateRule:
    if argument is not None:
        raise ArgumentError("updates", f"{name}:{argument}", f"{name} takes no argument")
    return rule


RULES: Registry[UpdateRule] = Registry("update rule", "adaptive_spec.updates")
RULES.register(
    NEVER,
    lambda argument=None: _plain(NEVER, _Never(), argument),
    "Leaves the draft head as it is.",
)
RULES.register(
    "always",
    lambda argument=None: _plain("always", Every(FRESH), argument),
    f"Tries an update whenever {FRESH} trees were verified since the last one.",
)
RULES.register("every", _every, "every:K tries an update after every K verified trees.")
RULES.register(
    "cost-aware",
    _cost_aware,
    "cost-aware[:S] tries an update if it should save more time than it takes, S seconds ahead.",
)


def find_rule(name: str) -> UpdateRule:
    """A new rule of the kind that ``NAME[:ARG]`` names.

    Raises:
        UnknownNameError, ArgumentError: there is none.
    """
    entry, argument = RULES.find(name.strip())
    return entry.factory(argument)
