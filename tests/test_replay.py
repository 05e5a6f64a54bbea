"""Policies on recorded text: source code of this package stands in for a model's output."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from adaptive_spec.drafters.draft_model import DraftModelDrafter
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.testing.recording import record
from adaptive_spec.testing.replay import Curve, Recorded, replay
from adaptive_spec.testing.tiny import tiny_model

SOURCE = Path(__file__).parent.parent / "adaptive_spec"
FIXED = ("fixed:4", "fixed:8", "fixed:16", "fixed:32")


@cache
def texts() -> list[Recorded]:
    """Files as tokens: two thirds are the prompt, what follows is to be decoded."""
    ids: dict[str, int] = {}
    found = []
    for path in sorted(SOURCE.glob("*.py"))[:24]:
        words = re.findall(r"\w+|[^\w ]| +", path.read_text(encoding="utf-8"))[:400]
        tokens = [ids.setdefault(word, len(ids) + 1) for word in words]
        if len(tokens) == 400:
            found.append(Recorded(tokens[:270], tokens[270:]))
    return found


def stairs(*points: tuple[int, float]) -> Curve:
    rows, seconds = zip(*points, strict=True)
    return lambda size: float(np.interp(size, rows, seconds))


FLAT = stairs((1, 0.046), (2, 0.050), (8, 0.055), (17, 0.065), (33, 0.090), (65, 0.133))
STEEP = stairs((1, 0.066), (2, 0.071), (4, 0.100), (8, 0.134), (33, 0.171), (65, 0.285))
JUMP = stairs((1, 0.075), (2, 0.122), (17, 0.128), (33, 0.165), (65, 0.230))
"""Curves as measured on CPUs: bfloat16, and float32 on two machines."""


@pytest.mark.parametrize(
    ("curve", "dtype"), [(FLAT, "bfloat16"), (STEEP, "float32"), (JUMP, "float32")]
)
def test_marginal_is_at_least_as_fast_as_the_best_fixed_budget(curve: Curve, dtype: str) -> None:
    assert len(texts()) > 10

    def rate(policy: str) -> float:
        return replay(texts(), policy, curve, dtype=dtype).tokens_per_second

    ours = rate("marginal")
    assert ours > 0.99 * max(map(rate, FIXED))
    assert ours > 1.1 * rate("plain")


def test_replay_charges_what_the_curve_says() -> None:
    some = texts()[:2]
    done = replay(some, "plain", lambda rows: 0.05, noise=0.0)
    assert done.acceptance_length == 1.0
    assert done.seconds == pytest.approx(done.steps * (0.05 + 0.0013), rel=0.05)
    dear = replay(some, "fixed:8", lambda rows: 0.05 * rows, noise=0.0, overrides=["tree.sizes=[]"])
    assert dear.tokens_per_second < done.tokens_per_second
    assert dear.acceptance_length > 1.2


def test_a_recorded_drafter_is_replayed_as_it_drafted() -> None:
    """On tiny models: the same text in the same steps as with the drafter itself."""
    model = tiny_model("llama")
    drafter = DraftModelDrafter(tiny_model("llama", seed=0))
    prompts = [[5, 6, 7, 8], [9, 10, 11]]
    texts = record(model, drafter, prompts, max_new_tokens=20, nodes=12, depth=4, floor=0.0)
    config = {"policy": "fixed:4", "tree": {"max_depth": 4}}
    with AdaptiveDecoder(model, config, drafter=drafter) as decoder:
        for text in texts:
            assert len(text.drafts["draft_model"]) == len(text.output) - 1 == 19
            with decoder.start(list(text.prompt), max_new_tokens=20) as session:
                while not session.finished:
                    session.step()
                assert session.generated == list(text.output)
            steps = replay(
                [text],
                "fixed:4",
                lambda rows: 0.05,
                recorded={"draft_model": 0.01},
                overrides=["tree.max_depth=4", "tree.sizes=[]", "suffix.floor=0.99"],
                noise=0.0,
            ).steps
            assert steps == session.stats.steps
