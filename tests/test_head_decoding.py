"""A head through all that decoding does to it: rejections and every accepted length, plain steps,
further turns, a growing pool, requests that come and go (rows C5, L1, L6, L9, L11).

What it drafts is compared with the pass over the whole text that training uses: a context that is
off by one anywhere gives other log-probabilities.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracle import PROMPTS
from test_heads import PROMPT, _along, _slots, tiny_head, written

from adaptive_spec import tree as trees
from adaptive_spec.drafters.base import CandidateTree, Committed
from adaptive_spec.drafters.causal_parallel import CausalParallelDrafter
from adaptive_spec.heads.head import Head
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.sampling import KeyedNoise
from adaptive_spec.testing.drafters import ScriptedDrafter
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import plain, run
from adaptive_spec.types import ROOT

POLICIES = ("fixed:1", "fixed:3", "fixed:9", "fixed:16", "plain", "plain")


class Seen(CausalParallelDrafter):
    """Notes every proposal with the text that it was made for."""

    def __init__(self, head: Head, **options: Any) -> None:
        known = {"candidates": 1000, "siblings": 4, "coupled": False, "slots": 16, **options}
        super().__init__(head, 512, **known)
        self.seen: list[tuple[list[int], float, CandidateTree]] = []
        self.faults = 0

    def propose(self, requests: Any, plans: Any) -> list[CandidateTree]:
        grown = super().propose(requests, plans)
        for request, tree in zip(requests, grown, strict=True):
            if len(tree):
                self.seen.append((list(request.tokens), request.temperature or 1.0, tree))
        return grown


class Shifted(Seen):
    """Negative control: positions that are off by one."""

    def commit(self, requests: Any, news: Sequence[Committed]) -> None:
        super().commit(
            requests, [replace(new, positions=np.asarray(new.positions) + 1) for new in news]
        )


class Lagging(Seen):
    """Negative control: the states of the row before."""

    def commit(self, requests: Any, news: Sequence[Committed]) -> None:
        rows = [np.maximum(np.asarray(new.rows) - 1, 0) for new in news]
        super().commit(
            requests, [replace(new, rows=one) for new, one in zip(news, rows, strict=True)]
        )


def worst(model: Any, head: Head, drafter: Seen, every: int = 3) -> float:
    """The largest error of a log-probability, over the first nodes of every so-manieth tree."""
    assert len(drafter.seen) > 5
    found = 0.0
    for tokens, heat, tree in drafter.seen[::every]:
        text = written(model, [*tokens, 1, 1], len(tokens), head.config.taps)
        hidden = _slots(head, text, len(tokens) - 1)
        paths: list[list[int]] = []
        for node, parent in enumerate(tree.parent.tolist()[:6]):
            above = [tokens[-1]] if parent == ROOT else paths[parent]
            token = int(tree.token[node])
            want = float(_along(head, hidden, above, heat)[token])
            found = max(found, abs(float(tree.logq[node]) - want))
            paths.append([*above, token])
    return found


def decoded(model: Any, drafter: Seen, tokens: int, **call: Any) -> list[int]:
    """A turn under policies that change at random, and another turn; the text of the first."""
    luck = random.Random(len(POLICIES))
    with AdaptiveDecoder(model, {"policy": "fixed:9"}, drafter=drafter) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=tokens, **call)
        for turn in ([], [5, 6, 7]):
            if turn:
                first = list(session.generated)
                session.extend(turn, max_new_tokens=24)
            while not session.finished:
                session.set_policy(luck.choice(POLICIES))
                session.step()
        drafter.faults = session.stats.draft_faults
    return first


@pytest.mark.fault("C5", "L1", "L9")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_the_context_is_that_of_the_text(kind: str, temperature: float) -> None:
    """200 tokens and a further turn: rejections, plain steps between drafts, a pool that grows."""
    model = tiny_model(kind)
    head = tiny_head(model, corrector="recurrent_bias")
    drafter = Seen(head)
    call = {"do_sample": True, "temperature": temperature, "seed": 5} if temperature else {}
    assert decoded(model, drafter, 200, **call) == plain(model, PROMPT, max_new_tokens=200, **call)
    assert drafter.faults == 0
    assert worst(model, head, drafter) < 1e-3


@pytest.mark.fault("C5")
def test_a_context_that_is_off_by_one_would_show() -> None:
    """States of the row before are drafted from; positions with a gap are refused."""
    model = tiny_model("llama")
    head = tiny_head(model, corrector="recurrent_bias")
    want = plain(model, PROMPT, max_new_tokens=40)
    lagging, shifted = Lagging(head), Shifted(head)
    assert decoded(model, lagging, 40) == decoded(model, shifted, 40) == want
    assert lagging.faults == 0
    assert worst(model, head, lagging) > 1e-2
    assert shifted.faults > 0


@pytest.mark.fault("C5", "L6")
@pytest.mark.parametrize("pattern", [(0, 1, 2, 3), (4, 0, 3, 1), (2, 2, 0, 4)])
def test_the_context_survives_every_accepted_length(pattern: tuple[int, ...]) -> None:
    """Beside a drafter that is right as often as it is told to be."""
    model = tiny_model("qwen3")
    head = tiny_head(model, corrector="gated")
    text = [*PROMPT, *plain(model, PROMPT, max_new_tokens=70)]
    scripted, drafter = ScriptedDrafter(lambda request: text, pattern, decoys=1), Seen(head)
    with AdaptiveDecoder(model, {"policy": "fixed:14"}, drafter=[scripted, drafter]) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=60)
        while not session.finished:
            session.step()
        assert session.tokens == text[: len(PROMPT) + 60]
        lengths = session.stats.acceptance_histogram
    assert sum(count > 0 for count in lengths[:5]) >= len(set(pattern)) - 1
    assert worst(model, head, drafter, every=1) < 1e-3


@pytest.mark.fault("L11", "C5")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_requests_that_come_and_go_keep_their_own_context(count: int, temperature: float) -> None:
    model = tiny_model("llama")
    head = tiny_head(model, corrector="recurrent")
    drafter = Seen(head)
    prompts = [PROMPTS[(3 * place) % len(PROMPTS)] for place in range(count)]
    call = {"temperature": temperature, "do_sample": True} if temperature else {}
    calls = [{"max_new_tokens": 10 + 4 * (i % 3), "seed": i, **call} for i in range(count)]
    want = [plain(model, p, **one) for p, one in zip(prompts, calls, strict=True)]
    got: dict[int, list[int]] = {}
    with AdaptiveDecoder(model, {"policy": "fixed:6"}, drafter=drafter) as decoder:
        waiting, live = list(enumerate(prompts)), {}
        while waiting or live:
            if waiting:  # one more joins with every step
                place, prompt = waiting.pop(0)
                live[place] = decoder.start(prompt, **calls[place])
            decoder.step(list(live.values()))
            for place, session in list(live.items()):
                if session.finished:
                    got[place] = list(session.generated)
                    live.pop(place).close()
            decoder.check_integrity()
    assert [got[place] for place in range(count)] == want
    assert worst(model, head, drafter, every=2) < 1e-3


@pytest.mark.fault("L1")
@pytest.mark.parametrize("budget", ["1", "4", "9", "16", "40"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_twenty_prompts_with_every_budget(kind: str, budget: str) -> None:
    model = tiny_model(kind)
    drafter = CausalParallelDrafter(tiny_head(model, corrector="recurrent_bias"), 512)
    with AdaptiveDecoder(model, {"policy": f"fixed:{budget}"}, drafter=drafter) as decoder:
        for prompt in PROMPTS[:20]:
            assert run(decoder, prompt, max_new_tokens=24) == plain(
                model, prompt, max_new_tokens=24
            )


@pytest.mark.parametrize("nodes", [8, 24])
def test_trees_are_the_best_that_corrected_scores_have(nodes: int) -> None:
    """Against a heap that asks for one node at a time, at the drafter's own width."""
    model = tiny_model("llama")
    head = tiny_head(model, corrector="recurrent_bias")
    drafter = Seen(head, siblings=1000, width=2)
    with AdaptiveDecoder(model, {"policy": f"fixed:{nodes}"}, drafter=drafter) as decoder:
        run(decoder, PROMPT, max_new_tokens=20)
    far = [one for one in drafter.seen if len(one[0]) < len(PROMPT) + 20 - head.config.depth]
    assert len(far) > 5  # nearer to the end no tree is as deep
    for tokens, _, tree in far:
        text = written(model, [*tokens, 1, 1], len(tokens), head.config.taps)
        hidden = _slots(head, text, len(tokens) - 1)

        def expand(
            path: tuple[int, ...], tokens: list[int] = tokens, hidden: torch.Tensor = hidden
        ) -> list[tuple[int, float, tuple[int, ...]]]:
            logq = _along(head, hidden, [tokens[-1], *path], 1.0)
            order = logq.argsort(descending=True).tolist()
            return [(token, float(logq[token]), (*path, token)) for token in order]

        best = trees.grow((), expand, nodes, head.config.depth)
        assert len(tree) == len(best) == nodes
        assert survivals(tree) == pytest.approx(survivals(best), abs=1e-4)


def survivals(tree: CandidateTree) -> list[float]:
    """Log-probabilities of the paths to all nodes."""
    found: list[float] = []
    for above, logq in zip(tree.parent.tolist(), tree.logq.tolist(), strict=True):
        found.append(logq + (found[above] if above != ROOT else 0.0))
    return found


@pytest.mark.fault("L12")
def test_under_noise_the_candidates_are_those_that_may_be_drawn() -> None:
    """Eight candidates of a flat head: the best child is the one that wins with the noise among all
    tokens, not among the eight likeliest."""
    model = tiny_model("llama")
    head = tiny_head(model, corrector="none")
    drafter = Seen(head, candidates=8, coupled=True)
    noise, others = KeyedNoise(5), 0
    with AdaptiveDecoder(model, {"policy": "fixed:6"}, drafter=drafter) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=40, do_sample=True, temperature=0.8, seed=5)
        while not session.finished:
            session.step()
    for tokens, heat, tree in drafter.seen:
        text = written(model, [*tokens, 1, 1], len(tokens), head.config.taps)
        scores = head.logits(_slots(head, text, len(tokens) - 1)[0]).double() / heat
        gumbel = noise.gumbel(len(tokens), np.arange(len(scores)))
        best = int(np.argmax(scores.detach().numpy() + gumbel))
        others += best not in scores.topk(8).indices.tolist()
        assert int(tree.token[tree.parent == ROOT][0]) == best
    assert others > len(drafter.seen) / 4
