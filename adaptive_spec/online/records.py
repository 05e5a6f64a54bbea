"""Records of decisions on updates, for the log (``docs/log.md``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from adaptive_spec.online.review import Verdict
from adaptive_spec.online.rules import Opinion
from adaptive_spec.online.trials import Outcome


def record(
    opinion: Opinion,
    found: Outcome | None,
    seconds: float | None,
    *,
    lessons: int,
    head_version: str | None,
) -> dict[str, Any]:
    """What was decided, and what came of it; without an outcome: skipped."""
    answer: dict[str, Any] = {
        "arm": opinion.arm or "skip",
        "decision": opinion.reason,
        "expected_gain": opinion.expected_gain,
        "expected_cost": opinion.expected_cost,
        "realised_gain": None,
        "realised_cost": seconds,
        "kept": False,
        "reason": None,
        "gain": None,
        "gain_error": None,
        "lessons": lessons,
        "head_version": head_version,
        "alarm": opinion.anew,
    }
    if found is not None:
        error = None if np.isinf(found.error) else found.error
        outcome = {"kept": found.kept, "reason": found.reason, "gain": found.gain}
        answer |= {**outcome, "gain_error": error}
    return answer


def review(
    make: Callable[[Opinion], dict[str, Any]], verdict: Verdict, trees_per_second: float
) -> dict[str, Any]:
    """What decoding itself showed of an update.

    Args:
        make: the record of an opinion.
    """
    stays = verdict.before is None
    words = "stays" if stays else "undone: trees accept less since"
    return make(Opinion("review", f"{verdict.arm} {words}")) | {
        "realised_gain": verdict.gain * trees_per_second,
        "gain": verdict.gain,
        "gain_error": verdict.error,
        "kept": stays,
    }
