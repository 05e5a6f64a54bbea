"""When to update: names to rules.

``never`` is no learner at all. A rule sees how many trees were verified since the last trial and
says whether another one is due.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from adaptive_spec.errors import ArgumentError
from adaptive_spec.registry import Registry

NEVER = "never"
FRESH = 64
"""Verified trees after which ``always`` finds enough that is new."""


class UpdateRule(Protocol):
    """Says when an update is tried."""

    def due(self, trees: int) -> bool:
        """Whether to try one now, ``trees`` after the last trial."""
        ...


@dataclass(frozen=True, slots=True)
class Every:
    """A fixed schedule."""

    trees: int

    def due(self, trees: int) -> bool:
        return trees >= self.trees


def _every(argument: str | None) -> UpdateRule:
    if argument is None or not argument.isdecimal() or not 1 <= int(argument) <= 10**9:
        raise ArgumentError("updates", f"every:{argument}", "every:K, with K 1 or more trees")
    return Every(int(argument))


def _plain(name: str, rule: UpdateRule, argument: str | None) -> UpdateRule:
    if argument is not None:
        raise ArgumentError("updates", f"{name}:{argument}", f"{name} takes no argument")
    return rule


class _Never:
    def due(self, trees: int) -> bool:
        return False


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


def find_rule(name: str) -> UpdateRule:
    """The rule that ``NAME[:ARG]`` names.

    Raises:
        UnknownNameError, ArgumentError: there is none.
    """
    entry, argument = RULES.find(name.strip())
    return entry.factory(argument)
