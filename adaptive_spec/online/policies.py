"""When to update: names to rules.

``never`` is no learner at all. A rule is asked after every step, sees how decoding goes, and says
whether a trial is worth its time; it is told what became of the trials it asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np

from adaptive_spec.errors import ArgumentError
from adaptive_spec.online.alarm import Alarm
from adaptive_spec.registry import Registry

NEVER = "never"
FRESH = 64
"""Verified trees after which ``always`` finds enough that is new."""


ARMS = ("full", "corrector", "calibrator")
"""What can be tried; a schedule takes the first one that the head allows."""


@dataclass(frozen=True, slots=True)
class View:
    """How decoding goes."""

    trees: int
    """Verified so far."""
    tokens_per_second: float
    """Of late, updates included; 0 while unknown."""
    trees_per_second: float
    seconds: float
    """Of decoding so far; time without requests does not count."""
    overconfidence: tuple[float, ...] = ()
    """Of the head, in those stretches of requests that have ended since the rule was asked last
    (``alarm``)."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """A decision that a rule came to, for the log."""

    arm: str | None
    """What to try; None to skip."""
    reason: str
    expected_gain: float | None = None
    """Tokens per second."""
    expected_cost: float | None = None
    """Seconds of the trial."""
    anew: bool = False
    """Text or target has changed: what is remembered is of another time."""


class UpdateRule(Protocol):
    """Says when an update is tried."""

    arms: tuple[str, ...]
    """Those that it may ask for, if the head allows them."""
    several: bool
    """It asks for more than the first one that the head allows."""
    sparse: int
    """One tree and one request in so many is watched as long as nothing has happened."""

    def ask(self, view: View, arms: Sequence[str]) -> Opinion | None:
        """What to try now, of ``arms``; None where there was nothing to decide."""
        ...

    def told(self, arm: str, gain: float, error: float, seconds: float) -> None:
        """What a trial brought: draft tokens per tree, 0 if it was not kept, with their standard
        error, and what it took."""
        ...


class Every:
    """A fixed schedule for the first arm that there is."""

    several, sparse = False, 1

    def __init__(self, trees: int, arms: tuple[str, ...] = ARMS) -> None:
        self.arms = arms
        self._trees, self._last = trees, 0

    def ask(self, view: View, arms: Sequence[str]) -> Opinion | None:
        if view.trees - self._last < self._trees:
            return None
        self._last = view.trees
        return Opinion(arms[0], "scheduled")

    def told(self, arm: str, gain: float, error: float, seconds: float) -> None:
        return None


@dataclass(slots=True)
class _Record:
    """What the trials of one arm brought, old ones counting less."""

    weight: float = 0.0
    gains: float = 0.0
    squares: float = 0.0
    cost: float | None = None
    hope: float = 0.0
    """What a trial is believed to bring before there was any, in draft tokens per tree."""
    wait: int = 0
    """Trees until it is asked about again."""
    asked: int = 0
    """Trees there were when it was."""


class CostAware:
    """Tries an update if what it may bring over the time to come is worth its own seconds.

    The gain of an arm's next trial is drawn from what its former ones brought (Thompson 1933), old
    ones counting less; a draw of g draft tokens per tree saves ``g * trees/s * horizon /
    (tokens/s)`` seconds over the horizon. Of the arms whose saving exceeds ``margin`` times their
    cost the one is tried that leaves most. As long as decoding has gone on so far, it is expected
    to go on (``horizon`` None). A trial that brings nothing doubles the trees until its arm is
    asked about again.

    Trials are paid from a purse, into which goes a small share of all decoding time, and of every
    kept trial half of what it is thought to save, but for ``LUCK`` standard errors: so a head that
    cannot be bettered costs little more than ``SHARE``. A head that is suddenly surer of its
    guesses than the target bears out (``alarm``) fills the purse for some trials of every arm, but
    with no more than ``RISK`` of all time so far, makes former gains count no more, lets hope that
    a part of what was lost can be won back and ends all waiting.

    Args:
        horizon: seconds of decoding still to come.
        margin: times its seconds that a trial must save.
        arms: those that may be tried.
    """

    SHARE = 0.005
    """Of decoding time, for trials whatever they bring."""
    BURST = 4.0
    """Trials of every arm that the purse has room for."""
    FIRST, MOST, POOR = 32, 4096, 256
    """Trees between two questions about an arm, at first and at most; at most where only the purse
    is in the way."""
    KEEP = 0.8
    """What a former trial counts for after each further one."""
    PRIOR_GAIN, PRIOR_SPREAD = 0.03, 0.03
    """What a trial is believed to bring before there was any, in draft tokens per tree."""
    BACK: ClassVar[dict[str, float]] = {"full": 0.5, "corrector": 0.05, "calibrator": 0.02}
    """Share of a loss that a trial is believed to win back: the corrector reads no states."""
    STEPS: ClassVar[dict[str, float]] = {"full": 40.0, "corrector": 2.0, "calibrator": 1.0}
    """What a trial is believed to cost then, in decoding steps."""
    FADE = 600.0
    """Seconds of decoding for which what a kept trial saves is believed in, at most; and in which
    there is no second alarm."""
    LUCK = 1.5
    """Standard errors of a gain that are not paid for: of many trials the lucky ones are kept."""
    AFTER = 3.0
    """Trials of every arm that an alarm fills the purse for."""
    RISK = 0.1
    """Of all decoding time so far, what an alarm may spend at most."""
    several, sparse = True, 4

    def __init__(
        self,
        horizon: float | None = None,
        margin: float = 1.5,
        arms: tuple[str, ...] = ARMS,
        seed: int = 0,
    ) -> None:
        self._horizon, self._margin, self.arms = horizon, margin, arms
        self._luck = np.random.default_rng(seed)
        self._records = {arm: _Record(hope=self.PRIOR_GAIN, wait=self.FIRST) for arm in arms}
        self._purse = self._seconds = self._worth = 0.0
        self._alarm = Alarm(self.FADE)

    def ask(self, view: View, arms: Sequence[str]) -> Opinion | None:
        self._earn(view)
        if view.tokens_per_second <= 0 or view.trees_per_second <= 0:
            return None
        horizon = view.seconds if self._horizon is None else self._horizon
        self._worth = min(horizon, self.FADE) * view.trees_per_second / view.tokens_per_second
        if anew := (risen := self._alarm.risen(view.overconfidence, view.seconds)) > 0:
            lost = risen * view.tokens_per_second / view.trees_per_second
            for arm, record in self._records.items():
                hope = max(self.BACK[arm] * lost, self.PRIOR_GAIN)
                self._records[arm] = _Record(
                    cost=record.cost, hope=hope, wait=self.FIRST, asked=view.trees
                )
            wanted = self.AFTER * sum(self._cost(arm, view) for arm in arms)
            self._purse = max(self._purse, min(wanted, self.RISK * view.seconds))
        due = [a for a in arms if view.trees - self._records[a].asked >= self._records[a].wait]
        if not due:
            words = f"the head is surer by {risen:.2f} than the target bears out: all begins anew"
            return Opinion(None, words, anew=True) if anew else None
        found = [self._judge(arm, view, horizon) for arm in due]
        for arm in due:
            self._records[arm].asked = view.trees
        saved, opinion = max(found, key=lambda one: one[0])
        if opinion.arm is None:
            for arm in due:
                self._back_off(arm, self.MOST if saved < 0.0 else self.POOR)
        return replace(opinion, anew=anew)

    def told(self, arm: str, gain: float, error: float, seconds: float) -> None:
        record, least = self._records[arm], max(gain - error, 0.0)
        record.weight = self.KEEP * record.weight + 1.0
        record.gains = self.KEEP * record.gains + least
        record.squares = self.KEEP * record.squares + least * least
        record.cost = seconds if record.cost is None else 0.7 * record.cost + 0.3 * seconds
        record.hope += (1.0 - self.KEEP) * (self.PRIOR_GAIN - record.hope)
        self._purse += 0.5 * max(gain - self.LUCK * error, 0.0) * self._worth - seconds
        if gain > 0:
            self._alarm.led_somewhere()
            record.wait = self.FIRST
        else:
            self._back_off(arm, self.MOST)

    def _judge(self, arm: str, view: View, horizon: float) -> tuple[float, Opinion]:
        """Seconds that a trial leaves over the horizon (less than 0: too little; 0: it cannot be
        paid), and what to do about it."""
        gain, cost = self._draw(arm), self._cost(arm, view)
        more = gain * view.trees_per_second
        saved = more * horizon / view.tokens_per_second
        words = f"{arm} saves {saved:.2f} s of {horizon:.0f}"
        if saved <= self._margin * cost:
            return -np.inf, Opinion(None, f"{words}: too little", more, cost)
        if cost > self._purse:
            return 0.0, Opinion(None, f"{words}: the purse holds {self._purse:.2f}", more, cost)
        return saved - cost, Opinion(arm, words, more, cost)

    def _earn(self, view: View) -> None:
        """Fill the purse for the time since the last question."""
        passed = max(view.seconds - self._seconds, 0.0)
        self._seconds = view.seconds
        self._purse += self.SHARE * passed
        if view.trees_per_second > 0:  # what is saved up for years is not spent in an hour
            most = self.BURST * sum(self._cost(arm, view) for arm in self.arms)
            self._purse = min(self._purse, most)

    def _cost(self, arm: str, view: View) -> float:
        known = self._records[arm].cost
        return self.STEPS[arm] / view.trees_per_second if known is None else known

    def _draw(self, arm: str) -> float:
        """A gain, from the mean of former ones and one of the prior, with its uncertainty."""
        record = self._records[arm]
        count = record.weight + 1.0
        mean = (record.gains + record.hope) / count
        spread = self.PRIOR_SPREAD**2 + record.squares + record.hope**2 - count * mean**2
        return float(self._luck.normal(mean, np.sqrt(max(spread, 0.0)) / count))

    def _back_off(self, arm: str, most: int) -> None:
        record = self._records[arm]
        record.wait = min(2 * record.wait, max(most, record.wait))


class _Never:
    arms: tuple[str, ...] = ()
    several, sparse = False, 1

    def ask(self, view: View, arms: Sequence[str]) -> Opinion | None:
        return None

    def told(self, arm: str, gain: float, error: float, seconds: float) -> None:
        return None


def _every(argument: str | None) -> UpdateRule:
    count, at, arm = (argument or "").partition("@")
    if not count.isdecimal() or not 1 <= int(count) <= 10**9 or (at and arm not in ARMS):
        allowed = f"every:K or every:K@ARM, with K 1 or more trees, ARM one of {', '.join(ARMS)}"
        raise ArgumentError("updates", f"every:{argument}", allowed)
    return Every(int(count), (arm,) if at else ARMS)


def _cost_aware(name: str, arms: tuple[str, ...], argument: str | None) -> UpdateRule:
    if argument is None:
        return CostAware(arms=arms)
    try:
        horizon = float(argument)
    except ValueError:
        horizon = 0.0
    if not 0.0 < horizon < float("inf"):
        allowed = f"{name}:S, with S the seconds of decoding still to come"
        raise ArgumentError("updates", f"{name}:{argument}", allowed)
    return CostAware(horizon, arms=arms)


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
RULES.register(
    "every", _every, "every:K[@ARM] tries an update of ARM (full) after every K verified trees."
)
RULES.register(
    "cost-aware",
    lambda argument=None: _cost_aware("cost-aware", ARMS, argument),
    "cost-aware[:S] tries an update if it should save more time than it takes, S seconds ahead.",
)
RULES.register(
    "corrector-only",
    lambda argument=None: _cost_aware("corrector-only", ("corrector",), argument),
    "corrector-only[:S] is cost-aware with the path-conditioned part of the head alone.",
)


def find_rule(name: str) -> UpdateRule:
    """A new rule of the kind that ``NAME[:ARG]`` names.

    Raises:
        UnknownNameError, ArgumentError: there is none.
    """
    entry, argument = RULES.find(name.strip())
    return entry.factory(argument)
