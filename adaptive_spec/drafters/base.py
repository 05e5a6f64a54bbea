"""The drafter protocol and what crosses it.

Life cycle per request: ``start`` -> ``commit`` (the prefill) -> per step ``propose``
[-> ``extend``] -> ``commit`` (the verified tokens) -> ``finish``. All calls take every request of
the packed step at once. A drafter may raise, or return anything: the decoder checks it, drops it,
counts it and decodes plainly.

Legend: N nodes, F features per node, H hidden, T tokens committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, overload, runtime_checkable

import numpy as np

from adaptive_spec.types import ROOT, Floats, Ints, Plan

if TYPE_CHECKING:
    import torch


class Noise(Protocol):
    """The keyed Gumbel noise of a request, for drafters that couple to it."""

    def gumbel(self, position: int, tokens: Ints) -> Floats:
        """Noise of ``tokens`` as candidates for the token at ``position`` of the request."""
        ...

    def start(self, position: int) -> int:
        """State of its generator there, for noise on a device (``sampling.gumbel``)."""
        ...


class TokenView(Sequence[int]):
    """Reads a growing list of tokens; drafters cannot change what they are shown."""

    __slots__ = ("_tokens",)

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        return self._tokens[place]


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """A drafter's view of one request. ``tokens`` grows as the request does."""

    id: str
    tokens: Sequence[int]
    """Unpadded prompt and everything emitted; the last one is the root of the next tree."""
    prompt_length: int
    temperature: float
    noise: Noise | None
    """None at temperature 0."""
    vocab: int


@dataclass(frozen=True, slots=True)
class CandidateTree:
    """Draft nodes as flat arrays, parents before children. The root is implied.

    ``parent[i]`` is a node index below i, or ROOT. Depth-1 nodes guess the token after the root.
    """

    token: Ints
    parent: Ints
    logq: Floats
    """[N] log-probability that the drafter gives the node, given its parent."""
    rank: Ints
    """[N] rank among the siblings that the drafter considered, 0 is best."""
    drafter: Ints
    """[N] index into the decoder's list of drafters: who proposed the node."""
    features: Mapping[str, Floats] = field(default_factory=dict)
    """Named [N] arrays for the acceptance model: margin, entropy, match length, count, ..."""

    def __len__(self) -> int:
        return len(self.token)

    @staticmethod
    def empty() -> CandidateTree:
        none = np.empty(0, dtype=np.int64)
        return CandidateTree(none, none, np.empty(0), none, none)

    @staticmethod
    def chain(tokens: Sequence[int], logq: Floats | None = None) -> CandidateTree:
        """A single branch, deepest node last."""
        size = len(tokens)
        return CandidateTree(
            token=np.asarray(tokens, dtype=np.int64),
            parent=np.arange(ROOT, size + ROOT, dtype=np.int64),
            logq=np.zeros(size) if logq is None else logq,
            rank=np.zeros(size, dtype=np.int64),
            drafter=np.zeros(size, dtype=np.int64),
        )


@dataclass(frozen=True, slots=True)
class Committed:
    """What the verifier settled for one request. Tensors are valid until the next forward."""

    tokens: Sequence[int]
    """Tokens that entered the request: the prompt at prefill, the emitted tokens after a step."""
    rows: Ints
    """[T] rows of the taps whose K/V are now committed, in order of position."""
    slots: Ints
    """[T] their slots in the pool."""
    positions: Ints
    """[T] their positions in the request."""
    taps: Mapping[int, torch.Tensor]
    """Layer -> [rows, H]: hidden states after that layer for every row of the forward."""
    tree: CandidateTree | None = None
    """The verified tree; node i is row ``first_row + 1 + i``. None at prefill."""
    first_row: int = 0


class Drafter(Protocol):
    """Proposes candidate trees for several requests at a time."""

    name: str
    taps: tuple[int, ...]
    """Target layers whose hidden states ``commit`` needs; () for none."""
    reads_noise: bool
    """True if trees depend on ``DraftRequest.noise`` (coupled drafting)."""
    has_model: bool
    """True if drafting runs a model: its seconds then count as forward, not as controller."""

    def start(self, request: DraftRequest) -> None: ...

    def propose(
        self, requests: Sequence[DraftRequest], plans: Sequence[Plan]
    ) -> Sequence[CandidateTree]:
        """At most ``plan.nodes`` nodes of depth at most ``plan.depth`` for each request."""
        ...

    def commit(self, requests: Sequence[DraftRequest], news: Sequence[Committed]) -> None: ...

    def finish(self, request: DraftRequest) -> None: ...


@runtime_checkable
class ExtendingDrafter(Drafter, Protocol):
    """A drafter that can deepen its own trees by further calls (``Plan.calls``)."""

    def extend(
        self,
        requests: Sequence[DraftRequest],
        trees: Sequence[CandidateTree],
        plans: Sequence[Plan],
    ) -> Sequence[CandidateTree]:
        """The same trees, deepened; ``plan.nodes`` and ``plan.depth`` bound the result."""
        ...
