"""When a request ends, and the truth about why.

Checked token by token, so a stop inside a block of accepted tokens cuts it there: the earliest
wins, and the token that triggers a stop is the last one emitted (as in transformers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Check = Callable[[Sequence[int], Sequence[int]], "Finish | None"]
"""(tokens committed so far, tokens of the running block) -> a reason to stop after the newest."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Why a request ended.

    ``reason`` is one of ``stop`` (end token, stop string or a caller's criterion), ``length`` (cap
    or context limit), ``time``, ``error``, ``closed``; ``detail`` says which one.
    """

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """The stop rules of one request."""

    max_new_tokens: int
    context_limit: int
    prompt_length: int
    end_tokens: frozenset[int] = frozenset()
    max_seconds: float | None = None
    checks: tuple[Check, ...] = ()

    @property
    def cap(self) -> int:
        """Most tokens this request can emit. The last one is never fed back, so the context limit
        bounds positions written, not tokens emitted."""
        return min(self.max_new_tokens, self.context_limit - self.prompt_length + 1)

    def before(self) -> Finish | None:
        """A reason not to start at all."""
        return self._length(0)

    def after(
        self, history: Sequence[int], block: Sequence[int], elapsed: float = 0.0
    ) -> Finish | None:
        """A reason to stop after the newest token.

        Args:
            history: prompt and tokens of earlier steps.
            block: tokens of this step so far, the newest last.
            elapsed: seconds since the request started.
        """
        if block[-1] in self.end_tokens:
            return Finish("stop", f"end token {block[-1]}")
        for check in self.checks:
            if (finish := check(history, block)) is not None:
                return finish
        if self.max_seconds is not None and elapsed > self.max_seconds:
            return Finish("time", f"max_time {self.max_seconds:g} s")
        return self._length(len(history) + len(block) - self.prompt_length)

    def _length(self, generated: int) -> Finish | None:
        if generated < self.cap:
            return None
        if self.max_new_tokens <= self.context_limit - self.prompt_length + 1:
            return Finish("length", f"max_new_tokens {self.max_new_tokens}")
        return Finish("length", f"context limit {self.context_limit}")
