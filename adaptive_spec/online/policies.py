"""When to update: names to rules. ``never`` is no learner at all."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_spec.errors import ArgumentError
from adaptive_spec.online.cost_aware import CostAware
from adaptive_spec.online.rules import ARMS, EVERY_ARM, Opinion, UpdateRule, View
from adaptive_spec.registry import Registry

NEVER = "never"
FRESH = 64
"""Verified trees after which ``always`` finds enough that is new."""
LONGEST = 1e9
"""Seconds of decoding still to come, at most."""


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

    def reviewed(self, stays: bool) -> None:
        return None


class _Never:
    arms: tuple[str, ...] = ()
    several, sparse = False, 1

    def ask(self, view: View, arms: Sequence[str]) -> Opinion | None:
        return None

    def told(self, arm: str, gain: float, error: float, seconds: float) -> None:
        return None

    def reviewed(self, stays: bool) -> None:
        return None


def _every(argument: str | None) -> UpdateRule:
    count, at, arm = (argument or "").partition("@")
    if not count.isdecimal() or not 1 <= int(count) <= 10**9 or (at and arm not in EVERY_ARM):
        allowed = (
            f"every:K or every:K@ARM, with K 1 or more trees, ARM one of {', '.join(EVERY_ARM)}"
        )
        raise ArgumentError("updates", f"every:{argument}", allowed)
    return Every(int(count), (arm,) if at else ARMS)


def _cost_aware(name: str, arms: tuple[str, ...], argument: str | None) -> UpdateRule:
    if argument is None:
        return CostAware(arms=arms)
    try:
        horizon = float(argument)
    except ValueError:
        horizon = 0.0
    if not 0.0 < horizon <= LONGEST:
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
    lambda argument=None: _cost_aware("cost-aware", EVERY_ARM, argument),
    "cost-aware[:S] tries an update if it should save more time than it takes, S seconds ahead.",
)
RULES.register(
    "head-only",
    lambda argument=None: _cost_aware("head-only", ARMS, argument),
    "head-only[:S] is cost-aware without the memory of answers that have ended.",
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
