"""One executed step as the latency model sees it: seconds by part, or no measurement at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from adaptive_spec.profilers.roofline import Roofline, Spot
from adaptive_spec.types import Floats, Ints, StepSeconds, Work

VERIFY, HOST = "verify", "host"
DRAFT = "draft:"
"""Prefix of the parts that are drafters."""

LEAST, MOST = 1e-6, 86_400.0
"""Seconds: a verification outside is no measurement; other parts below count as ``LEAST``."""
NODES_PER_UNIT = 32.0
"""Host work is 1 unit per step, 1 per request, and 1 per so many nodes (packing, mask, walk);
measured on one core: 0.9 ms without nodes, 1.5 with 8, 1.7 with 32, 2.0 with 58."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured step."""

    spot: Spot
    """The size that was verified."""
    seconds: Mapping[str, float]
    """Part -> seconds."""
    host_units: float

    def per_unit(self, part: str) -> float:
        """What the level of a part is measured in: seconds, for the host per unit of its work."""
        return self.seconds[part] / (self.host_units if part == HOST else 1.0)


def host_units(nodes: Ints, requests: int) -> Floats:
    """[N] units of host work in steps of ``nodes`` [N] draft nodes."""
    return np.asarray(nodes / NODES_PER_UNIT + (1.0 + requests))


def take(
    work: Work, seconds: StepSeconds, roofline: Roofline, drafting: Callable[[str], float]
) -> Sample | None:
    """The step by part; None if it is no measurement: zero, negative or not finite seconds.

    Args:
        drafting: seconds that a drafter is expected to take; where only the sum of several drafters
            was measured, it is split in that proportion.
    """
    every = [seconds.verify, seconds.sample, seconds.host, seconds.draft]
    every += [spent for _, spent in seconds.drafts]
    if not all(0.0 <= spent <= MOST for spent in every) or seconds.verify < LEAST:
        return None
    if len(work.nodes) != 1 or work.nodes[0] < 0 or work.requests < 1 or work.context < 0:
        return None
    parts = {VERIFY: seconds.verify, HOST: max(seconds.host + seconds.sample, LEAST)}
    drafts = list(seconds.drafts)
    if work.drafters and not drafts:
        expected = {name: drafting(name) for name in work.drafters}
        share = seconds.draft / sum(expected.values())
        drafts = [(name, each * share) for name, each in expected.items()]
    for name, spent in drafts:
        parts[DRAFT + name] = max(spent, LEAST)
    nodes = int(work.nodes[0])
    spot = roofline.spot(nodes, work.requests, work.context)
    return Sample(spot, parts, 1.0 + work.requests + nodes / NODES_PER_UNIT)
