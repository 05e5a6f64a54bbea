"""The contract suites: what ships passes them, and every broken promise is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from adaptive_spec.controllers.fixed import FixedBudget
from adaptive_spec.controllers.marginal import MarginalGain
from adaptive_spec.controllers.registry import CONTROLLERS
from adaptive_spec.drafters.base import CandidateTree, Committed, DraftRequest
from adaptive_spec.drafters.suffix import SuffixDrafter
from adaptive_spec.testing.contracts import check_controller, check_drafter
from adaptive_spec.testing.controllers import LIES, LyingController, RandomBudget
from adaptive_spec.testing.drafters import RogueDrafter
from adaptive_spec.types import Decision, Outcome, Plan

SHIPPED = {
    entry.name: partial(entry.factory, None)
    for entry in CONTROLLERS.entries()
    if entry.factory.__module__.startswith("adaptive_spec.")
}
POLICIES: dict[str, Callable[[], Any]] = {
    **SHIPPED,
    "fixed:0": lambda: FixedBudget("0"),
    "fixed:64": lambda: FixedBudget("64"),
    "random": RandomBudget,
    "marginal:1": lambda: MarginalGain("1"),
    "marginal:inf": lambda: MarginalGain("inf"),
}


@pytest.mark.fault("K5")
@pytest.mark.parametrize("name", POLICIES)
def test_policies_keep_the_contract(name: str) -> None:
    check_controller(POLICIES[name])


@pytest.mark.parametrize("seed", range(3))
def test_the_suffix_drafter_keeps_the_contract(seed: int) -> None:
    check_drafter(SuffixDrafter, seed=seed)


# -- negative controls ----------------------------------------------------------------------------

HARMLESS = {"endless plan", "endless calls"}
"""Cut to the config's ``max_nodes`` and ``max_depth`` by design."""


@pytest.mark.fault("K8")
@pytest.mark.parametrize("lie", sorted(set(LIES) - HARMLESS))
def test_every_lie_breaks_the_contract(lie: str) -> None:
    with pytest.raises((AssertionError, RuntimeError, TypeError, ValueError, AttributeError)):
        check_controller(lambda: LyingController(**LIES[lie]))


class Nervous(FixedBudget):
    """Dies of strange feedback."""

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if not outcome.seconds.verify > 0:
                raise ValueError("no time passed")


class Poisoned(FixedBudget):
    """Lets NaN into its own state."""

    mean = 4.0

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self.mean = 0.9 * self.mean + outcome.seconds.verify
        self.nodes = int(min(self.mean, 16.0))


class Scribbler(FixedBudget):
    """Writes to what it was lent."""

    def cut(self, offers: Any, latency: Any) -> list[Decision]:
        for offer in offers:
            offer.survival[:] = 1.0
        return list(super().cut(offers, latency))


class Speechless(FixedBudget):
    """Gives no reason."""

    def cut(self, offers: Any, latency: Any) -> list[Decision]:
        return [Decision(size=0, reason="") for _ in offers]


class Orderly(FixedBudget):
    """Insists on the order of calls at the end."""

    def finish(self, request: str) -> None:
        {"r0": 1, "r1": 1, "r2": 1}[request]


@pytest.mark.parametrize("policy", [Nervous, Poisoned, Scribbler, Speechless, Orderly])
def test_broken_policies_fail(policy: type[FixedBudget]) -> None:
    with pytest.raises((AssertionError, ValueError, KeyError, OverflowError)):
        check_controller(policy)


def _swapped(tree: CandidateTree) -> CandidateTree:
    return replace(tree, parent=tree.parent[::-1].copy())


ROGUES: dict[str, Callable[[CandidateTree], Any]] = {
    "raises": lambda tree: 1 / 0,
    "nothing": lambda tree: None,
    "token too large": lambda tree: replace(tree, token=tree.token + 50),
    "negative token": lambda tree: replace(tree, token=tree.token - 50),
    "child before parent": _swapped,
    "twins": lambda tree: replace(tree, token=np.full(len(tree), 5)),
    "ragged": lambda tree: replace(tree, logq=tree.logq[:-1]),
    "NaN": lambda tree: replace(tree, logq=tree.logq * np.nan),
    "too many": lambda tree: CandidateTree.chain(range(40)),
    "too deep": lambda tree: CandidateTree.chain(range(8)),
}


@pytest.mark.parametrize("rogue", ROGUES)
def test_rogue_drafters_fail(rogue: str) -> None:
    with pytest.raises((AssertionError, ValueError, ZeroDivisionError, AttributeError, TypeError)):
        check_drafter(lambda: RogueDrafter(ROGUES[rogue]))


class Mixed(SuffixDrafter):
    """Confuses its requests."""

    def propose(self, requests: Sequence[DraftRequest], plans: Sequence[Plan]) -> Any:
        return super().propose(requests, plans)[::-1]


class Shrunk(SuffixDrafter):
    """A smaller plan gives other nodes, not fewer."""

    def propose(self, requests: Sequence[DraftRequest], plans: Sequence[Plan]) -> Any:
        if plans[0].nodes < 12:
            return [CandidateTree.chain([40, 41][: plan.nodes]) for plan in plans]
        return super().propose(requests, plans)


class Leaky(SuffixDrafter):
    """One history for all."""

    def commit(self, requests: Sequence[DraftRequest], news: Sequence[Committed]) -> None:
        for history in self._history.values():
            for new in news:
                history.extend(new.tokens)


class Once(SuffixDrafter):
    """Cannot forget twice."""

    def finish(self, request: DraftRequest) -> None:
        del self._history[request.id]


@pytest.mark.parametrize("drafter", [Mixed, Shrunk, Leaky, Once])
def test_broken_drafters_fail(drafter: type[SuffixDrafter]) -> None:
    with pytest.raises((AssertionError, KeyError)):
        check_drafter(drafter)
