"""The life of requests: admitted, prefilled, extended, failed, closed; and the law they obey.

Conservation: every slot is owned once or free, and after every step a request owns exactly
prompt + generated - 1 slots (the newest token is never in the cache).
"""

from __future__ import annotations

import itertools
import uuid
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
import torch

from adaptive_spec.cache import SlotCache, SlotPool
from adaptive_spec.config import CacheSection
from adaptive_spec.drafters.base import Committed, DraftRequest, TokenView
from adaptive_spec.drafting import Panel
from adaptive_spec.errors import ArgumentError, SessionError, UnsupportedError
from adaptive_spec.packing import chain_part, pack
from adaptive_spec.profilers.clock import Clock
from adaptive_spec.session import Rules, Session
from adaptive_spec.stopping import Finish
from adaptive_spec.target import Target

if TYPE_CHECKING:
    from adaptive_spec.decoder import Decoder


class Requests:
    """Everything about requests that is not a decoding step."""

    def __init__(
        self,
        target: Target,
        drafting: Panel,
        settings: CacheSection,
        clock: Clock,
        forget: Callable[[str], None],
    ) -> None:
        facts = target.architecture
        self.target, self.drafting, self._clock = target, drafting, clock
        self.pool = SlotPool(settings.slots, facts.context_limit, settings.max_slots)
        self.cache = SlotCache(facts.layers, self.pool)
        self._forget = forget
        self._chunk = settings.prefill_chunk
        self._sessions: weakref.WeakValueDictionary[int, Session] = weakref.WeakValueDictionary()
        self._prefix, self._ids = uuid.uuid4().hex[:8], itertools.count()

    def open(
        self,
        decoder: Decoder,
        ids: Sequence[int],
        rules: Rules,
        policy: str,
        name: str | None = None,
    ) -> Session:
        """Admit a request and prefill its prompt.

        Args:
            name: what the log calls it; None for a name that no other decoder gives.

        Raises:
            ArgumentError: empty prompt, id out of the vocabulary, longer than the context.
            CacheError: the pool's limit cannot hold the prompt.
        """
        self._check_ids(ids, 0)
        if name in {session.id for session in self.open_sessions()}:
            raise ArgumentError("request_id", name, "another open session has this name")
        began = self._clock()
        tokens = [int(token) for token in ids]
        draft = DraftRequest(
            id=f"{self._prefix}-{next(self._ids)}" if name is None else name,
            tokens=TokenView(tokens),
            prompt_length=len(tokens),
            temperature=rules.sampler.temperature,
            noise=rules.sampler.noise,
            vocab=self.target.architecture.vocab,
        )
        owner = self.pool.join()
        session = Session(
            decoder, draft.id, rules, policy, owner, draft, tokens, len(tokens), started=began
        )
        gone = (self.cache, self.drafting, self._forget, draft, owner)
        session.release = weakref.finalize(session, _release, *gone)
        session.streamed = len(tokens)
        self._sessions[owner] = session
        session.finish = rules.stopping.before()
        session.stats.draft_faults += self.drafting.start(draft)
        self._prefill_or_release(session, 0)
        return session

    def extend(
        self, session: Session, ids: Sequence[int], max_new_tokens: int | None = None
    ) -> None:
        """Append a turn that ``check_turn`` let pass; counters and the clock start again."""
        known = len(session.tokens)
        session.started = self._clock()
        old = session.rules.stopping
        cap = old.max_new_tokens if max_new_tokens is None else max_new_tokens
        length = known + len(ids)
        session.turn(
            [int(token) for token in ids],
            replace(old, prompt_length=length, max_new_tokens=cap),
        )
        session.finish = session.rules.stopping.before()
        self._prefill_or_release(session, known)

    def check_turn(self, session: Session, ids: Sequence[int], max_new_tokens: int | None) -> None:
        """Raise unless a further turn can follow.

        Raises:
            SessionError: the session is closed, or failed.
            UnsupportedError: its rules count from the first prompt.
            ArgumentError: as for ``open``; a negative cap.
        """
        if session.closed or session.finish_reason == "error":
            raise SessionError(f"session {session.id} is {session.finish_reason or 'closed'}")
        if (anchored := session.rules.first_turn_only) is not None:
            raise UnsupportedError(
                f"{anchored} counts from the first prompt: start a new session for this turn"
            )
        whole = isinstance(max_new_tokens, Integral) and not isinstance(max_new_tokens, bool)
        if max_new_tokens is not None and not (whole and max_new_tokens >= 0):
            allowed = "expected a whole number, 0 or more"
            raise ArgumentError("max_new_tokens", max_new_tokens, allowed)
        self._check_ids(ids, len(session.tokens))

    def fail(self, session: Session, why: str) -> None:
        """End a request with reason ``error``: its tokens stay, its slots are cleared."""
        session.finish = Finish("error", why)
        self.cache.zero(self.pool.slots(session.owner))

    def fail_owners(self, owners: set[int], why: str) -> list[Session]:
        """Fail whatever requests own the given slots; those that had been running."""
        running = []
        for owner in owners:
            session = self._sessions.get(owner)
            if session is not None and session.finish_reason != "error":
                running += [] if session.finished else [session]
                self.fail(session, why)
        return running

    def open_sessions(self) -> list[Session]:
        """Sessions that hold slots."""
        return [session for session in list(self._sessions.values()) if not session.closed]

    def close(self, session: Session) -> None:
        """Give the slots back; an unfinished request ends as ``closed``."""
        if not session.closed:
            session.finish = session.finish or Finish("closed", "closed by the caller")
            session.closed = True
            session.release()

    def check_integrity(self) -> None:
        """Raise CacheError unless slots and requests add up."""
        sessions = self.open_sessions()
        expected = {session.owner: max(len(session.tokens) - 1, 0) for session in sessions}
        self.pool.check_integrity(expected)

    def _prefill_or_release(self, session: Session, told: int) -> None:
        try:
            self._prefill(session, told)
        except BaseException as error:
            session.finish = Finish("error", f"prefill: {type(error).__name__}: {error}")
            self.close(session)
            raise

    def _prefill(self, session: Session, told: int) -> None:
        """Put all tokens but the newest into the cache, in chunks.

        Args:
            told: how many tokens the drafter already knows. It learns tokens one ahead of rows.
        """
        began, tokens = self._clock(), session.tokens
        while True:
            done = len(self.pool.slots(session.owner))
            chunk = tokens[done:-1][: self._chunk]
            slots = self.pool.reserve(len(chunk))
            part = chain_part(session.owner, chunk, done)
            taps = {}
            if chunk:
                inputs = self.target.prepare(self.cache, pack([part], slots))
                result = self.target.run(inputs, last_only=True)
                taps = dict(result.taps)
                self.pool.commit(session.owner, slots, part.positions)
                if not torch.isfinite(result.logits.amax()):
                    self.fail_owners(self.cache.purge() | {session.owner}, _SICK_PROMPT)
                    break  # nothing is learned from such states
            known = done + len(chunk) + 1
            news = Committed(
                tokens=tokens[told:known],
                rows=np.arange(len(chunk)),
                slots=slots,
                positions=part.positions,
                taps=taps,
            )
            faults = self.drafting.commit([session.draft], [news])
            session.stats.draft_faults += len(faults[0])
            told = known
            if known >= len(tokens) or session.finish_reason == "error":
                break
        session.stats.prefill_seconds += self._clock() - began

    def _check_ids(self, ids: Sequence[int], before: int) -> None:
        facts = self.target.architecture
        if len(ids) == 0:
            raise ArgumentError("input_ids", list(ids), "a prompt needs at least one token")
        wrong = [token for token in ids if not 0 <= token < facts.vocab]
        if wrong:
            raise ArgumentError("input_ids", wrong[0], f"token ids lie in 0..{facts.vocab - 1}")
        if before + len(ids) > facts.context_limit:
            raise ArgumentError(
                "input_ids", f"{before + len(ids)} tokens", f"at most {facts.context_limit} fit"
            )


_SICK_PROMPT = "the prompt gives non-finite logits"


def _release(
    cache: SlotCache,
    drafting: Panel,
    forget: Callable[[str], None],
    draft: DraftRequest,
    owner: int,
) -> None:
    """What a session leaves behind; must not refer to the session itself."""
    cache.pool.leave(owner)
    drafting.finish(draft)
    forget(draft.id)
