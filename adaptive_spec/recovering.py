"""After non-finite logits: the pool is cleaned, and who got nothing is tried again, alone.

A masked NaN in K or V still poisons attention (0 x NaN), so one request's trouble may have reached
its neighbours in the same forward. What was verified before it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adaptive_spec.requests import Requests
from adaptive_spec.session import Session
from adaptive_spec.share import Share
from adaptive_spec.verifying import Verification


def recover(
    shares: Sequence[Share],
    check: Verification,
    requests: Requests,
    again: Callable[[Share], Verification],
    commit: Callable[[Sequence[Share], Verification], None],
) -> list[Session]:
    """Clear free slots, end requests whose own state is sick, retry plainly who got nothing.

    Args:
        check: the forward that had non-finite logits; its verdicts are committed.
        again: a forward and a verdict for one request.

    Returns:
        Sessions outside this step that ended because their slots were sick.
    """
    cache, pool = requests.cache, requests.pool
    cache.zero(slot for slot in check.batch.slots.tolist() if pool.owner[slot] < 0)
    sick = requests.fail_owners(cache.purge(), "non-finite keys or values")
    for share in shares:
        session = share.session
        if not share.verdict.poisoned or share.verdict.tokens or session.finished:
            continue
        share.retry_plainly()
        try:
            found = again(share)
        except Exception as error:  # the neighbours' tokens are committed: no way back
            session.error = error
            requests.fail(session, f"retry: {type(error).__name__}: {error}")
            continue
        if share.verdict.poisoned:
            cache.zero(found.batch.slots.tolist())
            requests.fail(session, f"non-finite logits at position {len(session.tokens)}")
        else:
            commit([share], found)
    ours = {id(share.session) for share in shares}
    return [session for session in sick if id(session) not in ours]
