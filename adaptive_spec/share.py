"""One request's way through a packed step: what is planned, drafted, decided and found for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from adaptive_spec import tree as trees
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.merging import Merged
from adaptive_spec.session import Session
from adaptive_spec.stopping import Finish
from adaptive_spec.types import Decision, Features, Offer, Plan


@dataclass(slots=True)
class Verdict:
    """What the walk made of one request's tree."""

    nodes: list[int] = field(default_factory=list)
    """Visited nodes, ROOT first: one per token."""
    tokens: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    """Nodes whose token was emitted."""
    finish: Finish | None = None
    error: Exception | None = None
    poisoned: bool = False
    """The walk met a row without finite logits; the tokens before it stand."""
    processed: list[torch.Tensor] = field(default_factory=list)
    """Per visited node [V]: scores after the processors, where the choice was not the argmax."""
    scores: list[torch.Tensor] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


@dataclass(slots=True)
class Share:
    """Filled from top to bottom as the step goes on."""

    session: Session
    features: Features
    plan: Plan = field(default_factory=lambda: Plan(nodes=0, depth=0))
    proposals: dict[int, CandidateTree] = field(default_factory=dict)
    """By place in the panel, what each drafter proposed."""
    merged: Merged = field(init=False)
    """The proposals as one tree, in best-first order."""
    offer: Offer = field(init=False)
    decision: Decision = field(init=False)
    tree: CandidateTree = field(default_factory=CandidateTree.empty)
    """What was verified: the best nodes, fewer than decided if memory ran out."""
    first_row: int = 0
    """Row of the root in the packed forward."""
    verdict: Verdict = field(default_factory=Verdict)
    retried: bool = False
    """The forward that counted was not the first: its seconds say nothing about its size."""
    stale: bool = False
    """The verdict comes from a forward of its own, not from the step's."""
    faults: list[str] = field(default_factory=list)

    def blame(self, fault: str | None) -> None:
        """Note a fault of the drafter, if there was one."""
        if fault is not None:
            self.faults.append(fault)
            self.session.stats.draft_faults += 1

    def cut(self, size: int) -> None:
        """Verify the ``size`` best candidates."""
        self.tree = trees.select(self.merged.tree, np.arange(size))
        self.decision = replace(self.decision, size=size)

    def halve(self) -> None:
        """Verify half as many nodes, after memory ran out."""
        self.session.stats.memory_retries += 1
        self._fall_back(len(self.tree) // 2, "out of memory: budget halved")

    def retry_plainly(self) -> None:
        """Start over with the root alone, after non-finite logits."""
        self.session.stats.nonfinite_retries += 1
        self.verdict, self.stale = Verdict(), True
        self._fall_back(0, "non-finite logits: retried plainly and alone")

    def _fall_back(self, size: int, why: str) -> None:
        """Overrule the decision; what it expected no longer holds."""
        self.retried = True
        self.faults.append(f"{why} to {size}")
        reason = f"{self.decision.reason}; {why}"
        self.decision = Decision(size=size, reason=reason, theta=self.decision.theta)
        self.cut(size)
