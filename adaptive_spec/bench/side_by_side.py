"""One thing computed in two ways on a device: how long each takes, and how far they are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from adaptive_spec.profilers.clock import device_timer, monotonic

Pair = tuple[torch.Tensor, torch.Tensor]
"""What a kernel gave, and what it should have given."""


def judged(pairs: Sequence[Pair], bound: float, wrong: int = 0) -> dict[str, Any]:
    """Whether figures are within ``bound`` (relative above 1), and no ids are ``wrong``."""
    difference = max(_apart(*pair) for pair in pairs)
    fails = wrong > 0 or not difference <= bound
    return {"difference": difference, "bound": bound, "wrong_ids": wrong, "fails": fails}


def _apart(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference; what is not finite in one only is infinitely far."""
    got, want = got.double(), want.to(got.device).double()
    error = (got - want).abs() / want.abs().clamp(min=1.0)
    return float(error.masked_fill(got == want, 0.0).nan_to_num(torch.inf).max())


def timed(
    device: torch.device, kernel: Callable[[], Any], plain: Callable[[], Any], repeats: int
) -> dict[str, float]:
    """Median milliseconds over turns, after one that is not counted."""
    timer = device_timer(device, monotonic)
    spent: list[list[float]] = [[], []]
    for turn in range(repeats + 1):
        for call, into in zip((kernel, plain), spent, strict=True):
            timer.start()
            call()
            timer.stop()
            seconds = timer.seconds()
            if turn:
                into.append(seconds)
    ours, theirs = (1e3 * median(one) for one in spent)
    return {"kernel_ms": ours, "torch_ms": theirs, "ratio": theirs / ours}
