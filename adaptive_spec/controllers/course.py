"""What is remembered of one request, and what its last step brought and cost."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from adaptive_spec.controllers.guard import Balance, Guard
from adaptive_spec.controllers.rates import GoingRate
from adaptive_spec.controllers.trust import Trust
from adaptive_spec.types import Floats, Offer, Outcome

HICCUP = 4.0
"""A probe counts for no more than so many times its price, unless the last one cost more too."""
FIRST, DEEPEST = 32, 32
"""Nodes to ask a drafter for at first, and levels at most."""


@dataclass(slots=True)
class Way:
    """What is remembered of one way of drafting: by all drafters, or by lookups alone. That lookups
    lose says nothing of models, and the other way round."""

    guard: Guard = field(default_factory=Guard)
    trust: Trust = field(default_factory=Trust)
    """In its trees."""

    def successor(self) -> Way:
        """For the next request: half of the evidence."""
        return Way(self.guard.successor(), self.trust.successor())


@dataclass(slots=True)
class Course:
    """What is remembered of one request."""

    rate: GoingRate
    everyone: Way = field(default_factory=Way)
    lookups: Way = field(default_factory=Way)
    """Where there are both kinds of drafters, and those that run a model rest."""
    models: bool = True
    """This step asks drafters that run a model."""
    decided: int | None = None
    """Step of the last decision, until it is known what came of it."""
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
    last_probe: float = 0.0
    """Seconds of drafting of the last probe."""
    promises: Floats = field(default_factory=lambda: np.zeros(1))
    """[n+1] draft tokens that the edges of a tree of every size promised, at the last decision."""
    share: float = 1.0
    """Of promises, that was trusted then."""

    def successor(self, rate: GoingRate) -> Course:
        """For the next request: what was learned, with half the evidence."""
        everyone, lookups = self.everyone.successor(), self.lookups.successor()
        return Course(rate, everyone, lookups, last_probe=self.last_probe)

    @property
    def way(self) -> Way:
        """That of this step."""
        return self.everyone if self.models else self.lookups

    @property
    def guard(self) -> Guard:
        """Whether drafting in this way pays."""
        return self.way.guard

    @property
    def believed(self) -> Trust:
        """What promises of this step are worth: those of the drafters that it asks."""
        return self.way.trust

    def follow(self, outcome: Outcome | None, look: bool) -> bool:
        """One step; True if drafting just stopped paying.

        Args:
            outcome: None if nothing was drafted, or a stop cut it short.
            look: it was drafted in a way that is only being looked at: no reason to stop drafting.
        """
        before = self.guard.on
        if outcome is None:
            self.guard.observe(None)
            return False
        if outcome.decision.size:
            promised = float(self.promises[outcome.decision.size])
            self.believed.observe(promised, outcome.emitted - 1)
        self.guard.observe(None if look and before else balance(outcome, self))
        return before and not self.guard.on


def balance(outcome: Outcome, course: Course) -> Balance | None:
    """What drafting brought in this step; None where nothing is known about time."""
    decision, packed = outcome.decision, max(outcome.features.packed, 1)
    predicted = decision.predicted
    if predicted is None or decision.size >= len(predicted):
        return None
    own = (predicted[decision.size] - predicted[0]) * packed
    drafting = course.draft_seconds
    if not course.guard.on:  # a first draft may take far longer, and probes are paid one by one
        spent = outcome.seconds.draft
        believed = HICCUP * max(drafting, course.last_probe)
        drafting, course.last_probe = max(drafting, min(spent, believed)), spent
    draft, nodes = drafting / course.plain_seconds, own / course.plain_seconds
    promised = float(course.promises[decision.size])
    expected, accepted = course.share * promised, outcome.emitted - 1
    return Balance(draft, draft + nodes, promised, expected, accepted)


def worth(offer: Offer, course: Course) -> Floats:
    """[n] survival of the nodes of one request that may be verified, after trust.

    Beside requests that draft, one whose guard is off takes part if all that it could bring
    clears its bar, or if a probe is due.
    """
    course.promises = np.concatenate(([0.0], offer.survival.cumsum()))
    course.share = course.believed.share
    alive: Floats = np.minimum(offer.survival[: offer.largest] * course.share, 1.0)
    guard = course.guard
    return alive if guard.on or guard.due or alive.sum() >= guard.bar else alive[:0]
