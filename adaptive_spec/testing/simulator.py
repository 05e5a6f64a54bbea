"""A machine and a text on paper: what a policy makes of them, without a model.

Steps cost what a ``Machine`` says and accept what a ``Text`` says; policy and latency model are the
real ones. Good for questions about policies that take thousands of steps or a machine that obeys:
break-even points, jumps of one cost alone, horizons. Use the same seed for the policies that are
compared, so that they meet the same text and the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from adaptive_spec.controllers.base import Controller
from adaptive_spec.controllers.fixed import FixedBudget
from adaptive_spec.profilers.base import Latency, NullLatency
from adaptive_spec.types import (
    Architecture,
    Features,
    Floats,
    Offer,
    Outcome,
    Plan,
    StepSeconds,
    Work,
)

DRAFTER = "simulated"
SMALL = Architecture(
    model_type="llama",
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    intermediate=1536,
    vocab=49152,
    context_limit=8192,
    windows=(None,) * 30,
    experts=0,
    experts_per_token=0,
    tied_embeddings=True,
    dtype="bfloat16",
    device="cpu",
    parameters=134_515_008,
)
"""A small Llama with grouped-query attention and tied embeddings: SmolLM2-135M in bf16."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Seconds of a step. ``curve`` [nodes + 1] replaces ``base + slope * nodes`` if given."""

    base: float = 0.060
    slope: float = 0.0015
    draft: float = 0.0003
    host: float = 0.0005
    noise: float = 0.0
    """Standard deviation of log seconds, drawn anew for every step."""
    curve: tuple[float, ...] | None = None

    def seconds(self, nodes: int, drafted: bool, rng: np.random.Generator) -> StepSeconds:
        """What a step of that size takes."""
        verify = self.base + self.slope * nodes if self.curve is None else self.curve[nodes]
        wobble = float(np.exp(rng.normal(0.0, self.noise))) if self.noise else 1.0
        draft = self.draft * wobble if drafted else 0.0
        return StepSeconds(
            draft=draft,
            verify=verify * wobble,
            host=self.host * wobble,
            drafts=((DRAFTER, draft),) if drafted else (),
        )

    def scaled(self, **factors: float) -> Machine:
        """The same machine with some of its costs multiplied."""
        return replace(self, **{name: getattr(self, name) * by for name, by in factors.items()})


@dataclass(frozen=True, slots=True)
class Text:
    """How predictable the next tokens are.

    Args:
        difficulty: (step, rng) -> probability that one more token of the chain is accepted.
        claimed: what the drafter makes of that probability; the truth by default.
    """

    difficulty: Callable[[int, np.random.Generator], float]
    claimed: Callable[[float], float] = lambda edge: edge


@dataclass(slots=True)
class Trace:
    """What happened, step by step."""

    size: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    reason: list[str] = field(default_factory=list)

    def rate(self, first: int = 0, last: int | None = None) -> float:
        """Tokens per second from step ``first`` to before step ``last``."""
        part = slice(first, last)
        return sum(self.tokens[part]) / sum(self.seconds[part])


def simulate(
    controller: Controller,
    latency: Latency,
    machine: Callable[[int], Machine],
    text: Text,
    steps: int,
    seed: int = 0,
    most: int = 64,
) -> Trace:
    """Run one request; the same policy and latency model may then serve another.

    Args:
        machine: step -> the machine as it is then.
        most: nodes that the drafter can propose at all: a chain of that length.
    """
    luck, noise, trace = np.random.default_rng(seed), np.random.default_rng(seed + 1), Trace()
    context = 100  # attention is not simulated
    for step in range(steps):
        now = machine(step)
        edge = text.difficulty(step, luck)
        lucky = luck.random(most) < edge
        run = int(most if lucky.all() else np.argmin(lucky))
        features = Features("r", step, context, context - 100, 10**6, 0.0, 1, context)
        (plan,) = controller.plan([features], latency)
        offer = _offer(features, plan, text.claimed(edge), most)
        (decision,) = controller.cut([offer], latency)
        accepted = min(run, decision.size)
        seconds = now.seconds(decision.size, plan.nodes > 0, noise)
        work = Work(np.array([decision.size]), 1, context, (DRAFTER,) if plan.nodes > 0 else ())
        latency.observe(work, seconds)
        controller.observe(
            [
                Outcome(
                    features, decision, len(offer.survival), accepted, accepted + 1, seconds, False
                )
            ]
        )
        trace.size.append(decision.size)
        trace.drafted.append(plan.nodes > 0)
        trace.tokens.append(accepted + 1)
        trace.seconds.append(seconds.total)
        trace.reason.append(decision.reason)
    controller.finish("r")
    return trace


def _offer(features: Features, plan: Plan, edge: float, most: int) -> Offer:
    survival: Floats = np.power(edge, np.arange(1.0, min(plan.nodes, most) + 1))
    if plan.floor is not None:
        survival = survival[survival >= plan.floor]
    survival.setflags(write=False)
    return Offer(features, survival, len(survival))


def best_fixed(
    machine: Machine, text: Text, steps: int, sizes: tuple[int, ...], seed: int = 0
) -> float:
    """Tokens per second of the best budget that never changes, chosen and scored on other draws."""

    def rate(size: int, start: int) -> float:
        fixed = FixedBudget(str(size))
        return simulate(fixed, NullLatency(), lambda _: machine, text, steps, start).rate()

    chosen = max(sizes, key=lambda size: rate(size, seed + 1000))
    return rate(chosen, seed)
