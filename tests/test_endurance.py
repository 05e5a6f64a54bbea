"""Long texts and many requests: nothing grows but the context itself."""

from __future__ import annotations

import gc
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest

from adaptive_spec import AdaptiveDecoder
from adaptive_spec.testing.tiny import tiny_model

PROMPT = [5, 6, 7, 5, 6, 7]
NODES = 16


def test_two_thousand_tokens() -> None:
    """High-water mark and pool follow the context; host memory grows with the history only."""
    model = tiny_model("llama", max_position_embeddings=4096)
    decoder = AdaptiveDecoder(model, {"policy": f"fixed:{NODES}"})
    with decoder.start(PROMPT, max_new_tokens=2000, do_sample=True, top_k=0, seed=3) as session:
        for _ in session:
            assert decoder.cache.pool.high_water <= len(session.tokens) + 1 + NODES
        decoder.check_integrity()
        assert len(session.generated) == 2000
        assert session.stats.num_accepted_draft_tokens > 0
        assert len(decoder.cache.pool) <= 4096
        assert max(layer.keys.shape[2] for layer in decoder.cache.layers) <= 4096
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
