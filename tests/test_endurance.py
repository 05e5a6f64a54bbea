"""Long texts and many requests: nothing grows but the context itself."""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptive_spec import AdaptiveDecoder
from adaptive_spec.drafters.suffix import SuffixDrafter
from adaptive_spec.testing.tiny import tiny_model

PROMPT = [5, 6, 7, 5, 6, 7]
NODES = 16
EVERY, PAGE = 10, 1 << 15
"""Trees between two leaks, and numbers of 8 bytes that one takes: too many for a reused heap."""
SLACK = 4 << 20
"""Bytes for the history of 1,500 tokens and the allocator's own."""


class Leaking(SuffixDrafter):
    """Keeps a page of its own for every tenth tree."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[np.ndarray] = []
        self.trees = 0

    def propose(self, requests: Any, plans: Any) -> Any:
        self.trees += 1
        if self.trees % EVERY == 0:
            self.kept.append(np.ones(PAGE))
        return super().propose(requests, plans)


def held(decoder: AdaptiveDecoder) -> int:
    """Bytes of the cache."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in decoder.cache.layers)


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("leak", [False, True], ids=["", "control"])
def test_two_thousand_tokens(leak: bool) -> None:
    """High-water mark and pool follow the context, and from token 500 on so does the process.

    The control leaks 256 KiB every ten steps.
    """
    model = tiny_model("llama", max_position_embeddings=4096)
    drafter = Leaking() if leak else SuffixDrafter()
    decoder = AdaptiveDecoder(model, {"policy": f"fixed:{NODES}"}, drafter=drafter)
    with decoder.start(PROMPT, max_new_tokens=2000, do_sample=True, top_k=0, seed=3) as session:
        began = 0
        while not session.finished:
            session.step()
            assert decoder.cache.pool.high_water <= len(session.tokens) + 1 + NODES
            if not began and len(session.generated) >= 500:
                began = resident() - held(decoder)
        decoder.check_integrity()
        assert len(session.generated) == 2000
        assert session.stats.num_accepted_draft_tokens > 0
        assert len(decoder.cache.pool) <= 4096
        assert max(layer.keys.shape[2] for layer in decoder.cache.layers) <= 4096
        if sys.platform == "linux":
            grown = resident() - held(decoder) - began
            print(f"{grown / 2**20:.2f} MiB besides the cache")
            assert (grown > SLACK) == leak
    assert decoder.cache.pool.high_water == 0


@pytest.mark.filterwarnings("ignore")  # pytest keeps every warning
def test_many_requests_leave_nothing(make: Any, tiny: Any) -> None:
    """A request that is over leaves less than 100 bytes on the host."""
    decoder = make(tiny("llama"), "fixed:4")

    def serve(count: int) -> None:
        for i in range(count):
            with decoder.start([*PROMPT, 3 + i % 90], max_new_tokens=4) as session:
                for _ in session:
                    pass

    held = []
    tracemalloc.start()
    for _ in range(5):
        serve(60)
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # Tables of the interpreter grow in jumps; what a request leaves behind shows in every round.
    assert min(later - earlier for earlier, later in pairwise(held)) < 60 * 100
    assert decoder.requests.open_sessions() == []
    decoder.check_integrity()
