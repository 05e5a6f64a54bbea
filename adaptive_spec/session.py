"""One request: its tokens, its rules, its counters. The door for hand-written loops.

    session = decoder.start(input_ids, max_new_tokens=100)
    while not session.finished:
        tokens = session.step()

The newest token is never in the cache: after every step the committed slots of a request number
prompt + generated - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from adaptive_spec.drafters.base import DraftRequest
from adaptive_spec.errors import SessionError
from adaptive_spec.sampling import Sampler
from adaptive_spec.stopping import Finish, Stopping
from adaptive_spec.types import Features, RequestStats

if TYPE_CHECKING:
    from adaptive_spec.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Rules:
    """How a request samples and when it stops: what the doors make of a caller's arguments."""

    sampler: Sampler
    stopping: Stopping
    seed: int | None = None
    padded: tuple[int, ...] | None = None
    """The prompt row as the caller gave it, padding included, for processors that look at it."""
    streamer: Any = None
    """A Hugging Face streamer: ``put`` after every commit, token by token, and ``end``."""
    first_turn_only: str | None = None
    """What of these rules counts from the first prompt, so that no further turn can follow."""
    keep_scores: bool = False
    keep_logits: bool = False


@dataclass(slots=True, weakref_slot=True, eq=False)
class Session:
    """State of one request. Made by ``decoder.start``; close it, or use it in a ``with`` block."""

    decoder: Decoder
    id: str
    rules: Rules
    policy: str
    owner: int
    draft: DraftRequest
    tokens: list[int]
    """Unpadded prompt and everything emitted."""
    prompt_length: int
    finish: Finish | None = None
    error: Exception | None = None
    """What ended the request, where ``finish.reason`` is ``error``."""
    stats: RequestStats = field(default_factory=RequestStats)
    scores: list[torch.Tensor] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    started: float = 0.0
    ended: float | None = None
    closed: bool = False
    release: Callable[[], Any] = lambda: None
    """Gives the slots back; runs by itself if the session is dropped without ``close``."""
    past_steps: int = 0
    """Steps of earlier turns."""
    recorded: bool = False
    """The log has this turn's record."""
    streamed: int | None = 0
    """Tokens that the streamer has seen; None once it was told the end."""
    _ids: torch.Tensor | None = None
    _filled: int = 0

    @property
    def generated(self) -> list[int]:
        """Tokens emitted so far."""
        return self.tokens[self.prompt_length :]

    @property
    def finished(self) -> bool:
        return self.finish is not None

    @property
    def finish_reason(self) -> str | None:
        """``stop``, ``length``, ``time``, ``error`` or ``closed``; None while decoding."""
        return self.finish.reason if self.finish else None

    @property
    def remaining(self) -> int:
        """Tokens that may still be emitted."""
        return self.rules.stopping.cap - (len(self.tokens) - self.prompt_length)

    def features(self, packed: int, pool_slots: int, generation: int = 0) -> Features:
        """What controllers may know."""
        return Features(
            request=self.id,
            step=self.past_steps + self.stats.steps,
            context=len(self.tokens),
            generated=len(self.tokens) - self.prompt_length,
            remaining=self.remaining,
            temperature=self.rules.sampler.temperature,
            packed=packed,
            pool_slots=pool_slots,
            generation=generation,
        )

    def step(self) -> list[int]:
        """One verified step of this request alone; the tokens it emitted."""
        return self.decoder.step([self])[0]

    def __iter__(self) -> Iterator[list[int]]:
        """Steps until finished."""
        while not self.finished:
            yield self.step()

    def set_policy(self, name: str) -> None:
        """Use another policy from the next step on. The text does not depend on it."""
        self.decoder.change_policy(self, name)

    def extend(self, ids: Sequence[int] | torch.Tensor, max_new_tokens: int | None = None) -> None:
        """Append a further turn of the user and make the session go on.

        Args:
            ids: [T] or [1, T] token ids.
            max_new_tokens: cap of this turn; None for the cap of the last one.
        """
        row = ids.reshape(-1).tolist() if isinstance(ids, torch.Tensor) else list(ids)
        self.decoder.extend_session(self, row, max_new_tokens)

    def close(self) -> None:
        """Give the slots back. Harmless if repeated."""
        self.decoder.close_session(self)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def check_open(self) -> None:
        """Raise SessionError unless the session can take a step."""
        if self.closed:
            raise SessionError(f"session {self.id} is closed")
        if self.finish is not None:
            raise SessionError(
                f"session {self.id} finished ({self.finish.reason}: {self.finish.detail}); "
                "extend() it, or start another"
            )

    def stream(self) -> None:
        """Hand what is new to the caller's streamer; nothing is lost if it raises in between."""
        streamer = self.rules.streamer
        if streamer is None or self.streamed is None:
            return
        while self.streamed < len(self.tokens):
            self.streamed += 1
            streamer.put(torch.tensor([self.tokens[self.streamed - 1]]))
        if self.finished:
            self.streamed = None
            streamer.end()

    def prefix(self, path: Sequence[int]) -> torch.Tensor:
        """[1, T] ids that processors see before the next token: prompt row, output, ``path``."""
        padded = self.rules.padded or ()
        shift = len(padded) - self.prompt_length if padded else 0
        count = len(self.tokens) + shift
        if self._ids is None or self._ids.shape[1] < count + len(path):
            self._ids = torch.empty(1, 2 * (count + len(path)) + 64, dtype=torch.long)
            self._ids[0, : len(padded)] = torch.tensor(padded, dtype=torch.long)
            self._filled = self.prompt_length if padded else 0
        fresh = self.tokens[self._filled :]
        self._ids[0, self._filled + shift : count] = torch.tensor(fresh, dtype=torch.long)
        self._filled = len(self.tokens)
        self._ids[0, count : count + len(path)] = torch.tensor(path, dtype=torch.long)
        return self._ids[:, : count + len(path)].to(self.decoder.target.device)

    def turn(self, ids: Sequence[int], stopping: Stopping) -> None:
        """Make everything so far, and ``ids``, the prompt of a further turn."""
        if self.rules.padded is not None:
            padded = (*self.rules.padded, *self.tokens[self.prompt_length :], *ids)
            self.rules = replace(self.rules, padded=padded)
        self.rules = replace(self.rules, stopping=stopping)
        self.tokens.extend(ids)
        self.prompt_length = len(self.tokens)
        self.finish, self.ended, self._ids = None, None, None
        self.streamed = len(self.tokens)
        self.past_steps += self.stats.steps
        self.stats, self.recorded = RequestStats(), False
        self.scores, self.logits = [], []


def stream(sessions: Sequence[Session]) -> None:
    """Feed every streamer; a consumer that raises does not cost the others their tokens."""
    problems: list[BaseException] = []
    for session in sessions:
        try:
            session.stream()
        except BaseException as problem:
            problems.append(problem)
    if problems:
        raise problems[0]
