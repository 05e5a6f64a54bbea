"""Why a request was fast or slow, in sentences that can be checked against its steps.

Only what the log shows: a change is named where it is beyond chance, a cause only where the log
names one (a reason, a fault).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from adaptive_spec.cli.inspect_facts import OPEN, Facts, Request, ratio
from adaptive_spec.cli.inspect_records import COUNTERS, FORWARD, Step
from adaptive_spec.cli.inspect_text import clean, figure, label, milliseconds, places, runs

TELLING: Final = 0.2
"""Relative difference from which on something may explain a slow request."""
SIDE: Final = 8
"""Fewest steps on either side of a change."""
CERTAIN: Final = 4.0
"""Standard errors of a change: by chance the largest of 1000 splits gets there in under 1 %."""
LISTED: Final = 3
"""Stretches, kinds of faults, slowest steps that are listed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence, and whether it may be why a request is slow."""

    words: str
    telling: bool = False


def findings(request: Request, facts: Facts) -> list[Finding]:
    """All that can be said, the overview first."""
    steps, row = request.steps, request.row()
    return [
        _overview(row),
        *_time(request, row),
        *_packed(steps, facts),
        *_expectations(steps),
        *_changes(steps),
        *_policies(steps),
        *_undrafted(steps),
        *_faults(steps, row),
        *_corrections(steps),
        *_slowest(steps),
    ]


def change(values: Sequence[float]) -> int | None:
    """The index from which on the mean differs most, if that is beyond chance.

    The largest two-sample t over all splits. Text and timings come in regions, so what it finds
    may be one region of several; it is where a look at the steps pays.
    """
    n, series = len(values), np.asarray(values, dtype=np.float64)
    if n < 2 * SIDE:
        return None
    rounding = 1e-12 * float((series**2).mean())
    series = series - series.mean()
    left = np.arange(SIDE, n - SIDE + 1)
    sums = np.cumsum(series)[left - 1]  # those of the right side are the negatives
    between = sums**2 * n / (left * (n - left))
    best = int(np.argmax(between))
    within = max(float((series**2).sum() - between[best]) / (n - 2), rounding)
    return int(left[best]) if between[best] > CERTAIN**2 * within else None


def _overview(row: dict[str, Any]) -> Finding:
    here, count = row["steps_in_log"], row["num_steps"]
    words = f"{row['new_tokens']} tokens in {count} steps"
    if row["seconds"] is not None:
        rate = figure(row["tokens_per_second"], 2)
        words += f" and {figure(row['seconds'], 2)} s ({rate} tokens/s)"
    if row["finish_reason"] == OPEN:
        words += "; the log does not hold its end: it still runs, was killed, or the record is gone"
    else:
        words += f"; ended by {clean(row['finish_reason'], 40)}"
        if row["finish_detail"]:
            words += f" ({clean(row['finish_detail'], 200)})"
    if here < count:
        words += f"; only {here} of its steps are in the log"
    return Finding(f"{words}.", telling=row["finish_reason"] == "error")


def _time(request: Request, row: dict[str, Any]) -> list[Finding]:
    """Where the seconds went: by part, and outside of the steps."""
    parts, outside = request.parts, 0.0
    if row["finish_reason"] != OPEN and row["seconds"]:
        parts["prefill"] = row["prefill_seconds"] or 0.0
        outside = parts["outside its steps"] = max(row["seconds"] - sum(parts.values()), 0.0)
    total = sum(parts.values())
    if not total:
        return []
    ranked = sorted(parts.items(), key=lambda item: -item[1])
    words = [f"{name} {value / total:.0%}" for name, value in ranked if value / total >= 0.005]
    found = [Finding(f"Time: {', '.join(words)}.")]
    if outside > TELLING * total:
        sentence = f"{figure(outside, 2)} s passed outside its steps"
        found.append(Finding(f"{sentence} (the caller, other requests, streaming).", telling=True))
    return found


def _packed(steps: Sequence[Step], facts: Facts) -> list[Finding]:
    counts = [facts.forwards[step.forward] for step in steps]
    packed = [count for count in counts if count > 1]
    if not packed:
        return []
    words = (
        f"{len(packed)} of {len(steps)} steps shared their forward, up to {max(packed)} requests"
    )
    return [Finding(f"{words} in one; seconds are those of the whole forward.")]


def _expectations(steps: Sequence[Step]) -> list[Finding]:
    seconds: list[tuple[float, float]] = [
        (1e3 * s.expected_seconds, 1e3 * s.total)
        for s in steps
        if s.expected_seconds is not None and s.total is not None
    ]
    tokens: list[tuple[float, float]] = [
        (s.expected_tokens, s.emitted)
        for s in steps
        if s.expected_tokens is not None and s.emitted is not None
    ]
    found = []
    for unit, pairs, worse in (("ms", seconds, 1.0), ("tokens", tokens, -1.0)):
        if pairs:
            wanted, got = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
            off = got / wanted - 1.0 if wanted else 0.0
            words = f"Expected {figure(wanted, 2)} {unit} per step, realised {figure(got, 2)}"
            words += f" ({off:+.0%}, mean of {len(pairs)} steps)."
            found.append(Finding(words, telling=worse * off > TELLING))
    return found


def _changes(steps: Sequence[Step]) -> list[Finding]:
    """Where acceptance or the pace changed."""
    found = []
    gave = [(label(step), step.emitted) for step in steps if step.emitted is not None]
    at = change([tokens for _, tokens in gave])
    if at is not None:
        before, after = (float(np.mean([v for _, v in side])) for side in (gave[:at], gave[at:]))
        if _apart(before, after):
            verb = "fell" if after < before else "rose"
            words = f"Acceptance {verb} at step {gave[at][0]}: {before:.2f} tokens per step before"
            found.append(Finding(f"{words}, {after:.2f} from there on.", after < before))
    took = [(label(step), step.total) for step in steps if step.total]
    at = change([float(np.log(seconds)) for _, seconds in took])
    if at is not None:
        before, after = (float(np.median([v for _, v in side])) for side in (took[:at], took[at:]))
        if _apart(before, after):
            verb = "slower" if after > before else "faster"
            words = f"Steps became {verb} at step {took[at][0]}: median {milliseconds(before)} ms"
            words += f" before, {milliseconds(after)} ms from there on."
            found.append(Finding(words, after > before))
    return found


def _apart(one: float, other: float) -> bool:
    return abs(one - other) > TELLING * min(one, other)


def _policies(steps: Sequence[Step]) -> list[Finding]:
    named = [(step, step.policy) for step in steps if step.policy is not None]
    new = [b for a, b in pairwise(named) if a[1] != b[1]]
    if not new:
        return []
    words = [f"{clean(policy, 60)} from step {label(step)}" for step, policy in new[:LISTED]]
    more = f" and {len(new) - LISTED} changes more" if len(new) > LISTED else ""
    return [Finding(f"The policy changed: {', '.join(words)}{more}.")]


def _undrafted(steps: Sequence[Step]) -> list[Finding]:
    """Steps that verified no draft; their longest stretches, with the reason given most often."""
    none = [i for i, step in enumerate(steps) if step.size == 0]
    if not none:
        return []
    if len(none) == len(steps):
        return [Finding(f"No step verified a draft: {_reason(steps)}")]
    words = f"{len(none)} of {len(steps)} steps verified no draft: {places(steps, none)}."
    found = [Finding(words)]
    for first, last in sorted(runs(none), key=lambda run: run[0] - run[1])[:LISTED]:
        stretch = steps[first : last + 1]
        if len(stretch) >= LISTED:
            offered = any(step.offered for step in stretch)
            what = "declined what was offered" if offered else "nothing was offered"
            where = places(steps, range(first, last + 1))
            found.append(Finding(f"Plain at steps {where} ({what}): {_reason(stretch)}", True))
    return found


def _reason(steps: Sequence[Step]) -> str:
    return clean(Counter(step.reason for step in steps).most_common(1)[0][0], 200)


def _faults(steps: Sequence[Step], row: dict[str, Any]) -> list[Finding]:
    """Faults by their words, and what the end record counts."""
    where: dict[str, list[int]] = {}
    for position, step in enumerate(steps):
        for fault in dict.fromkeys(step.faults):
            where.setdefault(fault, []).append(position)
    ranked = sorted(where.items(), key=lambda item: -len(item[1]))
    words = [f"Fault at step {places(steps, at)}: {clean(f, 200)}" for f, at in ranked[:LISTED]]
    if len(ranked) > LISTED:
        words.append(f"{len(ranked) - LISTED} further kinds of faults.")
    counted = [f"{name.replace('_', ' ')} {row[name]}" for name in COUNTERS if row[name]]
    words += [f"Counted by its end: {', '.join(counted)}."] if counted else []
    return [Finding(line, telling=True) for line in words]


def _corrections(steps: Sequence[Step]) -> list[Finding]:
    """What the latency model was corrected by at the end, where that is much."""
    last = next((step.multipliers for step in reversed(steps) if step.multipliers), {})
    off = [f"{name} {figure(value, 2)}" for name, value in last.items() if _apart(1.0, value)]
    return [Finding(f"Latency model corrected at the end: {', '.join(off)}.")] if off else []


def _slowest(steps: Sequence[Step]) -> list[Finding]:
    timed = [(step, step.total) for step in steps if step.total is not None]
    words = []
    for step, total in sorted(timed, key=lambda pair: -pair[1])[:LISTED]:
        part = max(FORWARD, key=lambda name: step.seconds.get(name, 0.0))
        share = ratio(step.seconds.get(part, 0.0), total) or 0.0
        words.append(f"step {label(step)} {milliseconds(total)} ms ({part} {share:.0%})")
    if not words:
        return []
    median = milliseconds(float(np.median([total for _, total in timed])))
    return [Finding(f"Slowest: {', '.join(words)}; the median is {median} ms.")]
