"""The rule that weighs what an update may bring against its own seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from adaptive_spec.online.alarm import Alarm
from adaptive_spec.online.rules import ARMS, RECALL, Opinion, View


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
    kept trial of the head half of what it is thought to save, but for ``LUCK`` standard errors: so
    a head that cannot be bettered costs little more than ``SHARE``. What ``recall`` saves is no
    reason to try something dear. A head that is suddenly surer of its
    guesses than the target bears out (``alarm``) fills the purse for some trials of every arm, but
    with no more than ``RISK`` of all time so far for all alarms together, makes former gains count
    no more, lets hope that a part of what was lost can be won back and ends all waiting. What was
    credited for updates that decoding itself shows to be bad is taken back.

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
    RARE = 4000.0
    """Times its own seconds until it is asked about again, at most: what is cheap may ask often."""
    KEEP = 0.8
    """What a former trial counts for after each further one."""
    PRIOR_GAIN, PRIOR_SPREAD = 0.03, 0.03
    """What a trial is believed to bring before there was any, in draft tokens per tree."""
    BACK: ClassVar[dict[str, float]] = {
        "full": 0.5, "corrector": 0.05, "calibrator": 0.02, RECALL: 0.02,
    }  # fmt: skip
    """Share of a loss that a trial is believed to win back: the corrector reads no states."""
    STEPS: ClassVar[dict[str, float]] = {
        "full": 40.0, "corrector": 2.0, "calibrator": 1.0, RECALL: 0.5,
    }  # fmt: skip
    """What a trial is believed to cost then, in decoding steps."""
    FADE = 600.0
    """Seconds of decoding for which what a kept trial saves is believed in, at most; and in which
    there is no second alarm."""
    LUCK = 1.5
    """Standard errors of a gain that are not paid for: of many trials the lucky ones are kept."""
    AFTER = 3.0
    """Trials of every arm that an alarm fills the purse for."""
    RISK = 0.1
    """Of all decoding time so far, what alarms may have given at most."""
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
        self._purse = self._seconds = self._worth = self._given = self._credit = 0.0
        self._rate = 0.0  # trees per second
        self._alarm = Alarm(self.FADE)

    def ask(self, view: View, arms: Sequence[str]) -> Opinion | None:
        self._earn(view)
        risen = self._alarm.risen(view.overconfidence, view.seconds)
        if view.tokens_per_second <= 0 or view.trees_per_second <= 0:
            return None
        horizon = view.seconds if self._horizon is None else self._horizon
        self._rate = view.trees_per_second
        self._worth = min(horizon, self.FADE) * view.trees_per_second / view.tokens_per_second
        if risen > 0.0:
            self._begin_anew(risen, view, arms)
            words = "the head is surer than the target bears out, more so than before by"
            return Opinion(None, f"{words} {risen:.2f}: trials begin anew", anew=True)
        due = [a for a in arms if view.trees - self._records[a].asked >= self._records[a].wait]
        if not due:
            return None
        found = [self._judge(arm, view, horizon) for arm in due]
        saved, opinion = max(found, key=lambda one: one[0])
        for arm in due if opinion.arm is None else (opinion.arm,):  # the outbid bid again
            self._records[arm].asked = view.trees
            if opinion.arm is None:
                self._back_off(arm, self.MOST if saved < 0.0 else self.POOR)
        return opinion

    def told(self, arm: str, gain: float, error: float, seconds: float) -> None:
        record, least = self._records[arm], max(gain - error, 0.0)
        record.weight = self.KEEP * record.weight + 1.0
        record.gains = self.KEEP * record.gains + least
        record.squares = self.KEEP * record.squares + least * least
        record.cost = seconds if record.cost is None else 0.7 * record.cost + 0.3 * seconds
        record.hope += (1.0 - self.KEEP) * (self.PRIOR_GAIN - record.hope)
        sure = max(gain - self.LUCK * error, 0.0)
        credit = 0.5 * sure * self._worth if arm in ARMS else 0.0
        self._credit += credit
        self._purse += credit - seconds
        if sure > 0:
            self._alarm.led_somewhere()
        if gain > 0:
            record.wait = self.FIRST
        else:
            self._back_off(arm, self.MOST)

    def reviewed(self, stays: bool) -> None:
        if not stays:
            self._purse -= self._credit
            for arm, record in self._records.items():
                if arm in ARMS:
                    again = _Record(cost=record.cost, wait=self.MOST, asked=record.asked)
                    self._records[arm] = again
        self._credit = 0.0

    def _begin_anew(self, risen: float, view: View, arms: Sequence[str]) -> None:
        """After an alarm: hope, and money."""
        lost = risen * view.tokens_per_second / view.trees_per_second
        for arm, record in self._records.items():
            hope = max(self.BACK[arm] * lost, self.PRIOR_GAIN)
            self._records[arm] = _Record(
                cost=record.cost, hope=hope, wait=self.FIRST, asked=view.trees
            )
        wanted = self.AFTER * sum(self._cost(arm, view) for arm in arms)
        free = max(self.RISK * view.seconds - self._given, 0.0)
        given = min(max(wanted - max(self._purse, 0.0), 0.0), free)
        self._given += given
        self._purse += given

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
        believed = self.STEPS[arm] * view.packed / view.trees_per_second
        return believed if known is None else known

    def _draw(self, arm: str) -> float:
        """A gain, from the mean of former ones and one of the prior, with its uncertainty."""
        record = self._records[arm]
        count = record.weight + 1.0
        mean = (record.gains + record.hope) / count
        spread = self.PRIOR_SPREAD**2 + record.squares + record.hope**2 - count * mean**2
        return float(self._luck.normal(mean, np.sqrt(max(spread, 0.0)) / count))

    def _back_off(self, arm: str, most: int) -> None:
        record = self._records[arm]
        if record.cost is not None:
            most = min(most, max(int(self.RARE * record.cost * self._rate), self.FIRST))
        record.wait = min(2 * record.wait, max(most, record.wait))
