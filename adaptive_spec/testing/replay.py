"""Recorded texts on a machine on paper: the whole decoder at the speed of the host.

Greedy text is a fixed function of its prompt, so a recorded output can be decoded again without the
model: the target answers from the record, and its clock moves by what a forward of that many rows
takes on the machine in question. Drafters, acceptance, latency model, policy and guard are the real
ones. Policies are thus compared on real text without a machine's noise, in seconds; what replay
does not know is what the target would say off the recorded path (it says nothing there). Drafters
that run a model answer from a record as well (``testing.recording``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch

from adaptive_spec import tree as trees
from adaptive_spec.build import LEARN_EVERY, build_drafters, build_models
from adaptive_spec.cache import SlotCache
from adaptive_spec.config import load_config
from adaptive_spec.decoder import Decoder
from adaptive_spec.drafters.base import CandidateTree, Committed, Drafter, DraftRequest
from adaptive_spec.drafters.registry import DraftContext
from adaptive_spec.errors import UnsupportedError
from adaptive_spec.packing import PackedBatch
from adaptive_spec.profilers.acceptance import OnlineAcceptance
from adaptive_spec.sampling import Sampler
from adaptive_spec.session import Rules
from adaptive_spec.stopping import Stopping
from adaptive_spec.target import Target, Verified
from adaptive_spec.testing.simulator import SMALL
from adaptive_spec.types import Architecture, Labels, Plan

HOST, DRAFT = 0.0013, 0.0004
"""Seconds of a step's host work, and of asking a drafter."""
ELSEWHERE = 0
"""The target's token off the path: none of a recorded text, whose ids start at 1."""

Curve = Callable[[int], float]
"""Rows of a forward -> seconds."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A prompt and what a model answered, greedily. Ids start at 1."""

    prompt: Sequence[int]
    output: Sequence[int]
    drafts: Mapping[str, Sequence[CandidateTree]] = field(default_factory=dict)
    """By drafter, the tree that it proposed before every token of the output but the last."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a policy made of some texts."""

    tokens: int
    steps: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def acceptance_length(self) -> float:
        return self.tokens / self.steps


class RecordTarget:
    """Stands in for ``Target``: answers from the text it is shown, one request at a time.

    Args:
        facts: the model on paper; its vocabulary is one more than the largest id.
        noise: standard deviation of log seconds, drawn anew for every forward.
    """

    def __init__(self, facts: Architecture, curve: Curve, noise: float, seed: int) -> None:
        self.architecture = facts
        self.device = torch.device("cpu")
        self.kernels = None
        self.text = np.empty(0, dtype=np.int64)
        self.now = 0.0
        self._curve, self._noise, self._luck = curve, noise, np.random.default_rng(seed)

    def clock(self) -> float:
        return self.now

    def prepare(self, cache: SlotCache, batch: PackedBatch) -> dict[str, Any]:
        cache.aim(batch.slots, self.device)
        self.now += HOST
        return {"batch": batch}

    def run(self, inputs: dict[str, Any], *, last_only: bool = False) -> Verified:
        """Logits [M, V], 1 for the next token of the record and 0 elsewhere."""
        batch: PackedBatch = inputs["batch"]
        (part,) = batch.parts
        wrong = part.tokens != self.text[part.positions]
        lost = (part.sees & wrong).any(axis=1)
        after = self.text[np.minimum(part.positions + 1, len(self.text) - 1)]
        logits = torch.zeros(len(batch.tokens), self.architecture.vocab)
        answer = torch.from_numpy(np.where(lost, ELSEWHERE, after))
        logits[torch.arange(len(answer)), answer] = 1.0
        if last_only:  # prefill is free
            return Verified(logits[-1:], {})
        self.now += self._curve(len(batch.tokens)) * float(
            np.exp(self._luck.normal(0.0, self._noise))
        )
        return Verified(logits, {})

    def verdict(self, logits: torch.Tensor) -> None: ...

    def close(self) -> None: ...


class RecordedDrafter:
    """Proposes what ``name`` proposed at the same place, as far as it is asked for."""

    taps: tuple[int, ...] = ()
    reads_noise = False
    has_model = True

    def __init__(self, name: str, seconds: float, target: RecordTarget) -> None:
        self.name, self._seconds, self._target = name, seconds, target
        self.drafts: Sequence[CandidateTree] = ()

    def start(self, request: DraftRequest) -> None: ...

    def commit(self, requests: Sequence[DraftRequest], news: Sequence[Committed]) -> None: ...

    def finish(self, request: DraftRequest) -> None: ...

    def propose(
        self, requests: Sequence[DraftRequest], plans: Sequence[Plan]
    ) -> list[CandidateTree]:
        self._target.now += self._seconds
        found = []
        for request, plan in zip(requests, plans, strict=True):
            tree = self.drafts[len(request.tokens) - request.prompt_length]
            alive = trees.survival(tree, np.exp(tree.logq))
            keep = (trees.depths(tree.parent) <= plan.depth) & (alive >= (plan.floor or 0.0))
            found.append(trees.select(tree, np.flatnonzero(keep)[: plan.nodes]))
        return found


def replay(
    texts: Sequence[Recorded],
    policy: str,
    curve: Curve,
    *,
    recorded: Mapping[str, float] | None = None,
    overrides: Sequence[str] = (),
    dtype: str = "bfloat16",
    noise: float = 0.1,
    seed: int = 0,
) -> Replayed:
    """Decode ``texts`` one after the other with one decoder.

    Args:
        recorded: seconds per call of drafters that answer from the record, by name; they are asked
            besides those of the config.
        dtype: of the machine on paper, which executable sizes depend on.
        overrides: of the default config, as ``section.field=value``.

    Raises:
        AssertionError: the decoder wrote another text.
    """
    drafted = [tree.token for text in texts for some in text.drafts.values() for tree in some]
    written = [max(*text.prompt, *text.output) for text in texts]
    vocab = 1 + max([*written, *(int(tokens.max(initial=0)) for tokens in drafted)])
    target = RecordTarget(replace(SMALL, vocab=vocab, dtype=dtype), curve, noise, seed)
    config = load_config(None, [*overrides, f"policy={policy}", "self_check=false"])
    context = DraftContext(None, _no_model, lambda: None)
    drafters: list[Drafter] = build_drafters(config, context)
    for drafter in drafters:
        _charge(drafter, target)
    answering = [RecordedDrafter(*each, target) for each in (recorded or {}).items()]
    drafters = [*answering, *drafters]
    names = [drafter.name for drafter in drafters]
    latency, _ = build_models(config, target.architecture, 1, names)
    decoder = Decoder(
        cast(Target, target),
        config,
        drafters,
        latency=latency,
        acceptance=OnPath(names, every=LEARN_EVERY),
        clock=target.clock,
    )
    steps = 0
    for text in texts:
        target.text = np.array([*text.prompt, *text.output], dtype=np.int64)
        for each in answering:
            each.drafts = text.drafts[each.name]
        stopping = Stopping(
            max_new_tokens=len(text.output),
            context_limit=SMALL.context_limit,
            prompt_length=len(text.prompt),
        )
        session = decoder.open_session(list(text.prompt), Rules(Sampler(), stopping))
        while not session.finished:
            decoder.step([session])
            steps += 1
        assert session.generated == list(text.output), "another text was decoded"
        assert not session.stats.draft_faults, "a recorded draft was refused"
        session.close()
    return Replayed(sum(len(text.output) for text in texts), steps, target.now)


class OnPath(OnlineAcceptance):
    """Learns on the recorded path only: elsewhere the record's target has no opinion."""

    def observe(self, tree: CandidateTree, labels: Labels, temperature: float) -> None:
        known = np.where(labels.visited, labels.chosen, np.nan)
        super().observe(tree, replace(labels, chosen=known), temperature)


def _charge(drafter: Any, target: RecordTarget) -> None:
    """Let every proposal take its time."""
    propose = drafter.propose

    def timed(*args: Any) -> Any:
        target.now += DRAFT
        return propose(*args)

    drafter.propose = timed


def _no_model(name: str) -> tuple[Any, Any]:
    raise UnsupportedError(f"draft model {name}: replay has none")
