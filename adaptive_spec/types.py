"""Facts that cross a boundary: frozen, plain values, no device tensors.

Legend: N draft nodes (the root is not one of them), D depth, R requests of one step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]

ROOT = -1
"""Parent index of nodes that hang on the root."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the cost of a forward depends on. Filled by ``target``, read by the profilers."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context_limit: int
    windows: tuple[int | None, ...]
    """Per layer: sliding window in positions, None for full attention."""
    experts: int
    experts_per_token: int
    tied_embeddings: bool
    dtype: str
    device: str
    parameters: int
    grouped: bool = False
    """Queries of a group share K and V as they are; else a forward of several rows copies them."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a controller may know of a request before anything is drafted: no device sync."""

    request: str
    step: int
    context: int
    """Tokens so far, the newest one (the root of the next tree) included."""
    generated: int
    remaining: int
    """Tokens that may still be emitted before the cap or the context limit."""
    temperature: float
    packed: int
    """Requests that share this forward."""
    pool_slots: int
    """High-water mark of the slot pool before this step: attention reads at least that many."""
    generation: int = 0
    """Another one wherever the draft head has become another head (``online``)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """First stage of a decision: what to draft. ``nodes == 0`` drafts nothing at all."""

    nodes: int
    depth: int
    drafters: tuple[str, ...] | None = None
    """Names of the drafters to ask; None asks whatever the config names."""
    models: bool = True
    """Also ask drafters that run a model."""
    calls: int = 1
    """Drafter calls: further ones let a drafter that can ``extend`` deepen its own tree."""
    floor: float | None = None
    """Least survival, by the drafter's own estimate, that is worth a node; None leaves it to the
    drafter."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What the drafters put on the table for one request, best node first."""

    features: Features
    survival: Floats
    """[N] falling: estimated probability that node i is reached and accepted."""
    largest: int
    """Largest executable size, by what was offered and what the pool could hold for this request
    alone; requests of one step that together want more are cut, the largest first."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Second stage: how much of the offer to verify, and why."""

    size: int
    reason: str
    theta: float | None = None
    """Going rate in tokens per second that the size was weighed against."""
    expected_tokens: float | None = None
    expected_seconds: float | None = None
    predicted: tuple[float, ...] | None = None
    """Predicted seconds of a step for every size 0..offered."""


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """Wall seconds of one step by part. ``sample`` is the choice that plain decoding also makes."""

    draft: float = 0.0
    verify: float = 0.0
    sample: float = 0.0
    host: float = 0.0
    update: float = 0.0
    draft_model: float = 0.0
    """Of ``draft``: the seconds of drafters that run a model."""
    drafts: tuple[tuple[str, float], ...] = ()
    """(drafter, seconds) of those that were asked."""

    @property
    def total(self) -> float:
        return self.draft + self.verify + self.sample + self.host + self.update

    @property
    def plausible(self) -> bool:
        """Every part can be a duration."""
        parts = (self.draft, self.verify, self.sample, self.host, self.update, self.draft_model)
        return all(0.0 <= part < inf for part in (*parts, *(spent for _, spent in self.drafts)))


@dataclass(frozen=True, slots=True)
class Seconds:
    """Predicted seconds of a step per total size, by part; arrays of equal length."""

    draft: Floats
    verify: Floats
    host: Floats


@dataclass(frozen=True, slots=True)
class Work:
    """What a packed step is made of: the input of the latency model."""

    nodes: Ints
    """Draft nodes summed over the requests; the model answers for each entry."""
    requests: int
    context: int
    """High-water mark of the slot pool: attention reads that many slots."""
    drafters: tuple[str, ...] = ()
    """Names of the drafters that are asked, each priced by itself; () drafts nothing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a decision."""

    features: Features
    decision: Decision
    offered: int
    accepted: int
    """Draft tokens accepted and kept."""
    emitted: int
    """Tokens emitted: accepted plus the bonus token, cut at a stop."""
    seconds: StepSeconds
    finished: bool


@dataclass(frozen=True, slots=True)
class Labels:
    """The verifier's verdict on every edge of a verified tree, for the acceptance model."""

    chosen: Floats
    """[N] 1 if the node carries the token chosen at its parent, 0 if not, NaN if unknown; between
    0 and 1 where the label is the target's probability of the edge."""
    visited: Bools
    """[N] the parent lies on the accepted path."""
    reach: Floats
    """[N] estimated probability of reaching the parent; 1 where it was visited."""


@dataclass(slots=True)
class RequestStats:
    """Per-request counters under the names that serving engines use."""

    steps: int = 0
    num_spec_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    emitted: int = 0
    acceptance_histogram: list[int] = field(default_factory=list)
    """Entry k: steps that accepted k draft tokens."""
    draft_faults: int = 0
    controller_faults: int = 0
    memory_retries: int = 0
    nonfinite_retries: int = 0
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    draft_model_seconds: float = 0.0
    verify_seconds: float = 0.0
    sample_seconds: float = 0.0
    host_seconds: float = 0.0

    def add(self, size: int, accepted: int, emitted: int, seconds: StepSeconds) -> None:
        """Count one verified step."""
        self.steps += 1
        self.num_spec_steps += size > 0
        self.num_draft_tokens += size
        self.num_accepted_draft_tokens += accepted
        self.emitted += emitted
        grow = accepted + 1 - len(self.acceptance_histogram)
        self.acceptance_histogram.extend([0] * grow)
        self.acceptance_histogram[accepted] += 1
        self.draft_seconds += seconds.draft
        self.draft_model_seconds += seconds.draft_model
        self.verify_seconds += seconds.verify
        self.sample_seconds += seconds.sample
        self.host_seconds += seconds.host

    @property
    def decode_seconds(self) -> float:
        """Seconds of all steps, prefill excluded."""
        return self.draft_seconds + self.verify_seconds + self.sample_seconds + self.host_seconds

    def as_dict(self) -> dict[str, Any]:
        """The per-request fields of the budget log and of ``generate --json``."""
        return {
            "num_steps": self.steps,
            "num_spec_steps": self.num_spec_steps,
            "num_draft_tokens": self.num_draft_tokens,
            "num_accepted_draft_tokens": self.num_accepted_draft_tokens,
            "mean_acceptance_length": self.emitted / self.steps if self.steps else None,
            "draft_acceptance_rate": (
                self.num_accepted_draft_tokens / self.num_draft_tokens
                if self.num_draft_tokens
                else None
            ),
            "acceptance_histogram": list(self.acceptance_histogram),
            "draft_faults": self.draft_faults,
            "controller_faults": self.controller_faults,
            "memory_retries": self.memory_retries,
            "nonfinite_retries": self.nonfinite_retries,
            "prefill_seconds": self.prefill_seconds,
            "draft_seconds": self.draft_seconds,
            "draft_model_seconds": self.draft_model_seconds,
            "verify_seconds": self.verify_seconds,
            "sample_seconds": self.sample_seconds,
            "host_seconds": self.host_seconds,
        }
