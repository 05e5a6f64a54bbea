"""The same budget in every step, whatever it brings."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_spec.errors import ArgumentError
from adaptive_spec.profilers.base import Latency
from adaptive_spec.types import Decision, Features, Offer, Outcome, Plan

DEFAULT_NODES = 16
MOST_NODES = 1024


class FixedBudget:
    """Verifies the ``nodes`` best draft nodes, or all that are offered if there are fewer."""

    def __init__(self, argument: str | None = None) -> None:
        text = str(DEFAULT_NODES) if argument is None else argument
        digits = text.isascii() and text.isdigit() and len(text) < 10
        if not (digits and int(text) <= MOST_NODES):
            allowed = f"fixed:N takes a whole number of nodes from 0 to {MOST_NODES}"
            raise ArgumentError("policy", f"fixed:{argument}", allowed)
        self.nodes = int(text)

    def plan(self, requests: Sequence[Features], latency: Latency) -> Sequence[Plan]:
        return [Plan(nodes=self.nodes, depth=min(self.nodes, r.remaining)) for r in requests]

    def cut(self, offers: Sequence[Offer], latency: Latency) -> Sequence[Decision]:
        return [self._decide(offer) for offer in offers]

    def _decide(self, offer: Offer) -> Decision:
        size = min(self.nodes, offer.largest)
        expected = 1.0 + float(offer.survival[:size].sum())
        if size == self.nodes:
            reason = f"fixed: {size} nodes"
        elif size == len(offer.survival):
            reason = f"fixed: {self.nodes} nodes wanted, {size} offered"
        else:
            reason = f"fixed: {self.nodes} nodes wanted, room for {size}"
        return Decision(size=size, reason=reason, expected_tokens=expected)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        return None

    def finish(self, request: str) -> None:
        return None
