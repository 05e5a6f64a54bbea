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
    guard: Guard
    trust: Trust
    crew: Crew
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
    """Draft tokens that lookups alone promised for every size, at the last decision; None unless
    there are other drafters too."""

    @property
    def due(self) -> bool:
        """Nothing pays of late, and this step is a probe."""
        return not self.guard.on and (self.guard.due or self.crew.looks)

    def follow(self, balance: Balance | None, gain: float | None) -> None:
        """One step. Before drafting stops altogether, the drafters that run a model do."""
        before = self.guard.on
        self.guard.observe(balance)
        if before and not self.guard.on and self.crew.full and self.lookups is not None:
            self.crew.dismiss(self.guard.lost)
            self.guard = Guard()
        else:
            self.crew.observe(gain)


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

    Each side verifies the size that is best for it; time is priced at the going rate.

    Returns:
        None if models were not asked, or nothing is known about time.
    """
    decision, lookups = outcome.decision, course.lookups
    predicted, theta = decision.predicted, decision.theta
    if lookups is None or not outcome.seconds.draft_model or predicted is None or theta is None:
        return None
    packed = max(outcome.features.packed, 1)
    price = theta * packed * (np.asarray(predicted) - predicted[0])
    sizes = min(len(lookups), len(price))
    with_models = float((course.share * course.promises[: len(price)] - price).max())
    without = float((course.share * lookups[:sizes] - price[:sizes]).max())
    return with_models - without - theta * outcome.seconds.draft_model


def worth(offer: Offer, course: Course) -> Floats:
    """[n] survival of the nodes of one request that may be verified, after trust.

    Beside requests that draft, one whose guard is off takes part if all that it could bring
    clears its bar, or if a probe is due.
    """
    course.promises = np.concatenate(([0.0], offer.survival.cumsum()))
    course.share, course.lookups = course.trust.share, None
    if offer.lookups is not None:
        course.lookups = np.concatenate(([0.0], offer.lookups.cumsum()))
    alive: Floats = np.minimum(offer.survival[: offer.largest] * course.share, 1.0)
    guard = course.guard
    return alive if guard.on or course.due or alive.sum() >= guard.bar else alive[:0]
