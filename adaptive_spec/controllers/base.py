"""The controller protocol.

Life cycle: one controller serves every request of a decoder that names it. Per packed step it is
called ``plan`` (before drafting) -> ``cut`` (after drafting, before the forward) -> ``observe``
(after the commit); ``finish`` when a turn ends, and when a request leaves for another policy.
Lists run parallel to the requests of the step.

Rules: no torch, no device sync, no mutation of arguments, no reference kept to ``Offer.survival``
after ``cut`` returns. Raising or answering nonsense never harms a request: the decoder clamps or
falls back to plain decoding, counts it and logs it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from adaptive_spec.profilers.base import Latency
from adaptive_spec.types import Decision, Features, Offer, Outcome, Plan


class Controller(Protocol):
    """Decides, step by step and request by request, how much to draft and to verify."""

    def plan(self, requests: Sequence[Features], latency: Latency) -> Sequence[Plan]:
        """First stage: one plan per request. The price of drafting is weighed here."""
        ...

    def cut(self, offers: Sequence[Offer], latency: Latency) -> Sequence[Decision]:
        """Second stage: one decision per offer; ``0 <= size <= offer.largest``.

        Draft seconds are sunk by now. Sizes are nested: size n verifies the n best nodes.
        """
        ...

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """What came of the last decisions; seconds are those of the whole packed step."""
        ...

    def finish(self, request: str) -> None:
        """Forget a request."""
        ...
