"""Every drafter that can read the keyed noise ranks by it, unless the config says no."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from test_heads import facts_of, tiny_head

from adaptive_spec.drafters.base import CandidateTree, Noise
from adaptive_spec.heads.store import save_head
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.models import load
from adaptive_spec.testing.controllers import LyingController
from adaptive_spec.testing.tiny import save_tiny
from adaptive_spec.testing.yardsticks import run
from adaptive_spec.types import ROOT

PROMPT = [5, 6, 7, 8, 5, 6, 9, 10, 5, 6, 7, 8] * 3
CALL = {"max_new_tokens": 120, "do_sample": True, "temperature": 0.8, "top_k": 0, "seed": 5}
NOTHING = LyingController(cut=lambda decisions: [replace(d, size=0) for d in decisions])
"""Everything is drafted and nothing verified, so all drafters are asked at the same places."""


@dataclass
class Asked:
    """A tree, and what its drafter could read."""

    length: int
    noise: Noise
    tree: CandidateTree

    def children(self) -> dict[int, float]:
        """Children of the root by falling chance -> log-probability."""
        here = np.flatnonzero(self.tree.parent == ROOT)
        here = here[np.argsort(self.tree.rank[here], kind="stable")]
        return dict(zip(self.tree.token[here].tolist(), self.tree.logq[here], strict=True))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(save_tiny(tmp_path_factory.mktemp("target")), "float32")[0]


@pytest.fixture(scope="module")
def named(target: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Drafters as a config names them: a draft model that errs, and a head that knows little."""
    small, head = tmp_path_factory.mktemp("small"), tmp_path_factory.mktemp("head")
    near, _ = load(save_tiny(small), "float32")
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in near.parameters():
            weight.add_(0.1 * weight.std() * torch.randn(weight.shape, generator=draw))
    near.save_pretrained(small)
    save_head(head, tiny_head(target), facts_of(target), {}, dtype=torch.float32)
    models = {"draft_model": small, "causal_parallel": head}
    return {"suffix": "suffix", **{name: f"{name}:{folder}" for name, folder in models.items()}}


def ask(target: Any, drafter: str, coupled: bool) -> tuple[list[Asked], list[int]]:
    """What a drafter proposes at every place of a sampled text, and the text."""
    config = {"policy": "nothing", "drafter": drafter, "coupled": coupled, "self_check": False}
    decoder = AdaptiveDecoder(target, config, controllers={"nothing": NOTHING})
    assert decoder.drafting.reads_noise == (coupled,), "the config reaches the drafter"
    (wall,) = decoder.drafting._walls
    propose, asked = wall.drafter.propose, []

    def watched(requests: Any, plans: Any) -> Any:
        trees = propose(requests, plans)
        asked.append(Asked(len(requests[0].tokens), requests[0].noise, trees[0]))
        return trees

    wall.drafter.propose = watched  # type: ignore[method-assign]
    return asked, PROMPT + run(decoder, PROMPT, **CALL)


@pytest.mark.parametrize("name", ["suffix", "draft_model", "causal_parallel"])
def test_children_are_ranked_by_the_noise(target: Any, named: Any, name: str) -> None:
    coupled, text = ask(target, named[name], True)
    free, same = ask(target, named[name], False)
    assert text == same
    hits, swapped = {True: 0, False: 0}, 0
    for one, other in zip(coupled, free, strict=True):
        assert one.length == other.length
        ours, raw = one.children(), other.children()
        both = [token for token in ours if token in raw]
        gumbel = one.noise.gumbel(one.length, np.array(both, dtype=np.int64))
        scores = [raw[token] for token in both] + gumbel
        assert (np.diff(scores) <= 1e-6).all(), "by falling log q + g"
        swapped += both != [token for token in raw if token in ours]
        for which, found in ((True, ours), (False, raw)):
            hits[which] += next(iter(found), None) == text[one.length]
    assert swapped > 0
    assert hits[True] > hits[False]
