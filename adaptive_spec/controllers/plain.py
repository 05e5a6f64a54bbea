"""The null policy: budget 0 in every step. The baseline of every test and benchmark."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_spec.errors import ArgumentError
from adaptive_spec.profilers.base import Latency
from adaptive_spec.types import Decision, Features, Offer, Outcome, Plan

NOTHING = Plan(nodes=0, depth=0)


class NoSpeculation:
    """Never drafts anything."""

    def __init__(self, argument: str | None = None) -> None:
        if argument is not None:
            raise ArgumentError("policy", f"plain:{argument}", "plain takes no argument")

    def plan(self, requests: Sequence[Features], latency: Latency) -> Sequence[Plan]:
        return [NOTHING] * len(requests)

    def cut(self, offers: Sequence[Offer], latency: Latency) -> Sequence[Decision]:
        return [Decision(size=0, reason="plain: never drafts")] * len(offers)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        return None

    def finish(self, request: str) -> None:
        return None
