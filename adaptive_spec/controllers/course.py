"""What is remembered of one request, and what its last step brought and cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from adaptive_spec.controllers.crew import Crew
from adaptive_spec.controllers.guard import Balance, Guard
from adaptive_spec.controllers.rates import GoingRate
from adaptive_spec.controllers.trust import Trust
from adaptive_spec.types import Floats, Offer, Outcome

FIRST, DEEPEST = 32, 32
"""Nodes and levels to ask a drafter for at first."""


@dataclass(slots=True)
class Course:
    """What is remembered of one request."""

    rate: GoingRate
    guard: Guard = field(default_factory=Guard)
    crew: Crew = field(default_factory=Crew)
    trust: Trust = field(default_factory=Trust)
    """In trees of all drafters."""
    lookup_trust: Trust = field(default_factory=Trust)
    """In what drafters that run no model promise by themselves, where there are both kinds."""
    asked: bool = False
    """Its own plan of this step asked for nodes."""
    draft_nodes: int = FIRST
    """Nodes to ask for."""
    accepted: float = DEEPEST / 2
    """Draft tokens accepted at most of late, slowly forgotten."""
    least_survival: float = 0.01
    """Survival below which a node is not worth a row."""
    draft_seconds: float = 0.0
    plain_seconds: float = 1.0
    """Predicted, at the last decision."""
    promises: Floats = field(default_factory=lambda: np.zeros(1))
    """[n+1] draft tokens that the edges of a tree of every size promised, at the last decision."""
    share: float = 1.0
    """Of promises, that was trusted then."""
    lookups: Floats | None = None
    """[n] see ``Offer``, at the last decision."""

    def successor(self, rate: GoingRate) -> Course:
        """For the next request: what was learned, with half the evidence."""
        trust, lookup_trust = self.trust.successor(), self.lookup_trust.successor()
        return Course(rate, self.guard.successor(), self.crew.successor(), trust, lookup_trust)

    @property
    def due(self) -> bool:
        """Nothing pays of late, and this step is a probe."""
        return not self.guard.on and (self.guard.due or self.crew.looks)

    @property
    def believed(self) -> Trust:
        """What promises of this step are worth: those of the drafters that it asks."""
        return self.trust if self.crew.models else self.lookup_trust

    def follow(self, outcome: Outcome | None) -> None:
        """One step; ``outcome`` is None if nothing was drafted, or a stop cut it short.

        Before drafting stops altogether, the drafters that run a model do; what a look at them
        costs says nothing about lookups.
        """
        if outcome is None:
            self.guard.observe(None)
            self.crew.observe(None)
            return
        promised = float(self.promises[outcome.decision.size])
        if outcome.decision.size:
            self.believed.observe(promised, outcome.emitted - 1)
            if self.lookups is not None and self.crew.models:
                alone = float(self.lookups[: outcome.decision.size].sum())
                self.lookup_trust.observe(alone, outcome.accepted_lookups)
        before = self.guard.on
        self.guard.observe(None if self.crew.looks else balance(outcome, self))
        if before and not self.guard.on and self.crew.full and self.lookups is not None:
            self.crew.dismiss(self.guard.lost)
            self.guard = Guard()
        else:
            self.crew.observe(gain(outcome, self))


def balance(outcome: Outcome, course: Course) -> Balance | None:
    """What drafting brought in this step; None where nothing is known about time."""
    decision, packed = outcome.decision, max(outcome.features.packed, 1)
    predicted = decision.predicted
    if predicted is None or decision.size >= len(predicted):
        return None
    own = (predicted[decision.size] - predicted[0]) * packed
    drafting = course.draft_seconds
    if not course.guard.on:  # a first draft may take far longer, and probes are paid one by one
        drafting = max(drafting, outcome.seconds.draft)
    draft, nodes = drafting / course.plain_seconds, own / course.plain_seconds
    promised = float(course.promises[decision.size])
    expected, accepted = course.share * promised, outcome.emitted - 1
    return Balance(draft, draft + nodes, promised, expected, accepted)


def gain(outcome: Outcome, course: Course) -> float | None:
    """Tokens that models added to what lookups promised alone, less what they cost.

    Each side verifies the size that is best for it, and is trusted as far as its promises came
    true; time is priced at the going rate.

    Returns:
        None if models were not asked, or nothing is known about time.
    """
    decision, lookups = outcome.decision, course.lookups
    predicted, theta = decision.predicted, decision.theta
    if lookups is None or not outcome.seconds.draft_model or predicted is None or theta is None:
        return None
    price = theta * max(outcome.features.packed, 1) * (np.asarray(predicted) - predicted[0])
    alone = np.concatenate(([0.0], -np.sort(-lookups)))[: len(price)].cumsum()
    with_models = float((course.trust.share * course.promises[: len(price)] - price).max())
    without = float((course.lookup_trust.share * alone - price[: len(alone)]).max())
    return with_models - without - theta * outcome.seconds.draft_model


def worth(offer: Offer, course: Course) -> Floats:
    """[n] survival of the nodes of one request that may be verified, after trust.

    Beside requests that draft, one whose guard is off takes part if all that it could bring
    clears its bar, or if a probe is due.
    """
    course.promises = np.concatenate(([0.0], offer.survival.cumsum()))
    course.share, course.lookups = course.believed.share, offer.lookups
    alive: Floats = np.minimum(offer.survival[: offer.largest] * course.share, 1.0)
    guard = course.guard
    return alive if guard.on or course.due or alive.sum() >= guard.bar else alive[:0]
