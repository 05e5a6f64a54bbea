"""Learning while decoding: the ring, trials of updates, and text that never depends on them
(rows U1, U3, U4; L1, L2, L9 with an update forced at every step)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from test_heads import PROMPT, tiny_head

from adaptive_spec.drafters.causal_parallel import CausalParallelDrafter
from adaptive_spec.errors import ArgumentError, UnknownNameError, UnsupportedError
from adaptive_spec.heads.digest import digest
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.online.arms import CorrectorArm, Outcome
from adaptive_spec.online.base import Feedback
from adaptive_spec.online.learner import FAILURES, HeadLearner
from adaptive_spec.online.lessons import Batch, Lessons
from adaptive_spec.online.policies import CostAware, Every, Opinion, View, find_rule
from adaptive_spec.online.rescoring import divergence, expected_lengths, log_chances
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import plain

SAMPLED = {"do_sample": True, "temperature": 0.8, "seed": 4}


def parts(
    kind: str = "llama", corrector: str = "recurrent_bias", rule: Any = None, **options: Any
) -> tuple[Any, CausalParallelDrafter, HeadLearner]:
    model = tiny_model(kind)
    drafter = CausalParallelDrafter(tiny_head(model, corrector=corrector), 1024)
    return model, drafter, HeadLearner(drafter, rule or Every(1), **options)


def decoded(
    model: Any, drafter: Any, learner: Any, tokens: int, policy: str = "fixed:8", **call: Any
) -> tuple[list[int], Any]:
    config = {"policy": policy}
    with AdaptiveDecoder(model, config, drafter=drafter, learner=learner) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=tokens, **call)
        while not session.finished:
            session.step()
        assert not decoder.faults.count
        return session.generated, session.stats


class Keeps(CorrectorArm):
    """Takes every finite update over, however bad it is."""

    def _judge(self, *args: Any) -> tuple[float, float]:
        return 1.0, 0.0


@pytest.mark.fault("U3", "L1", "L2", "L9")
@pytest.mark.parametrize("call", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_text_and_target_do_not_depend_on_updates(kind: str, call: dict[str, Any]) -> None:
    """An update after every step, taken over whatever it is worth."""
    model, drafter, learner = parts(kind)
    learner._arm = Keeps(drafter.head, rate=0.05, row_rate=0.3)
    before, weights = digest(model), drafter.head.corrector.outward.detach().clone()
    text, _ = decoded(model, drafter, learner, 80, **call)
    assert text == plain(model, PROMPT, max_new_tokens=80, **call)
    assert learner.updates > 10
    assert not torch.equal(drafter.head.corrector.outward, weights)
    assert digest(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_head_learns_what_it_is_told_again_and_again() -> None:
    """A target whose next token depends on the last one alone soon writes in a circle."""
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    frozen = CausalParallelDrafter(tiny_head(model, corrector="recurrent_bias"), 1024)
    _, still = decoded(model, frozen, None, 400)
    drafter = CausalParallelDrafter(tiny_head(model, corrector="recurrent_bias"), 1024)
    learner = HeadLearner(drafter, Every(8), rate=0.01, row_rate=0.1)
    _, learning = decoded(model, drafter, learner, 400)
    assert learner.updates >= 3
    assert learning.steps < 0.8 * still.steps
    assert learner.head_version == str(learner.updates)


@pytest.mark.parametrize("call", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("corrector", ["low_rank", "recurrent_bias"])
def test_lessons_are_scored_as_drafts_are(corrector: str, call: dict[str, Any]) -> None:
    """Chances of a lesson's candidates are those that the tree's nodes were given."""
    compared = 0

    class Compares(HeadLearner):
        def observe(self, feedback: Sequence[Feedback]) -> None:
            nonlocal compared
            for one in feedback:
                if (moment := self._drafter.moments.get(one.request)) is None:
                    continue
                batch = self._lessons(one, moment)
                rows, where = torch.unique(batch.rows, return_inverse=True)
                corrector = self._drafter.head.corrector
                keys = corrector.outward.detach()[rows]
                with torch.no_grad():
                    found = log_chances(corrector, self._drafter.head, batch, keys, where)
                for row, node in enumerate(one.path.tolist()[: len(moment.tokens)]):
                    for child in np.flatnonzero(one.tree.parent == node):
                        token = one.tree.token[child]
                        (place,) = np.flatnonzero(moment.tokens[int(batch.depth[row])] == token)
                        assert float(found[row, place]) == pytest.approx(
                            float(one.tree.logq[child]), abs=0.02
                        )
                        compared += 1
            super().observe(feedback)

    model = tiny_model("llama")
    drafter = CausalParallelDrafter(tiny_head(model, corrector=corrector), 1024, coupled=False)
    learner = Compares(drafter, Every(10**6))
    decoded(model, drafter, learner, 40, **call)
    assert compared > 50


def test_what_a_lesson_says() -> None:
    """The target's probabilities, the written tokens, the branches."""
    model, drafter, learner = parts(rule=Every(10**6))
    text, _ = decoded(model, drafter, learner, 60)
    config, wide = drafter.head.config, 64
    each = 2 * config.hidden + 12 * wide + 8 * config.block + 32  # as the module says, and facts
    assert learner.lessons.bytes == learner.lessons.capacity * each
    whole = [*PROMPT, *text]
    split = learner.lessons.split(10**6, torch.Generator().manual_seed(0))
    assert split is not None
    fit, held = split
    assert len(fit) + len(held) == learner.lessons.count
    seen = 0
    for batch in split:
        assert bool((batch.wanted.sum(dim=1) <= 1.0 + 1e-5).all())
        ids = drafter.head.target_ids(batch.rows)
        for row in range(len(batch)):
            branch = batch.path[row, : int(batch.depth[row]) + 1].tolist()
            if int(batch.tree[row]) < 0 or int(batch.right[row]) < 0:
                continue
            token = int(ids[row, int(batch.right[row])])
            told = [*branch, token]
            assert any(whole[first : first + len(told)] == told for first in range(len(whole))), (
                told
            )
            assert int(batch.wanted[row].argmax()) == int(batch.right[row])  # greedy
            seen += 1
    assert seen > 20
    assert set(fit.tree.tolist()) & set(held.tree.tolist()) <= {-1}


def _batch(trees: Sequence[int], wide: int = 4) -> Batch:
    count = len(trees)
    return Batch(
        hidden=torch.randn(count, 8).bfloat16(),
        path=torch.zeros(count, 3, dtype=torch.long),
        depth=torch.zeros(count, dtype=torch.long),
        rows=torch.arange(wide, dtype=torch.int32).expand(count, wide),
        scores=torch.randn(count, wide),
        rest=torch.zeros(count),
        heat=torch.ones(count),
        wanted=torch.full((count, wide), 1.0 / wide),
        right=torch.zeros(count, dtype=torch.long),
        tree=torch.tensor(list(trees)),
    )


@pytest.mark.fault("U4")
def test_the_ring_takes_no_more_memory_and_forgets_the_oldest() -> None:
    ring = Lessons(100)
    assert ring.split(10, torch.Generator()) is None
    ring.add(_batch([0, 0, 0, -1]))
    size = ring.bytes
    for tree in range(1, 30_000):
        ring.add(_batch([tree, tree, -1]))
    assert ring.bytes == size
    split = ring.split(10**6, torch.Generator())
    assert split is not None
    fit, held = split
    assert len(fit) + len(held) == 100
    kept = {*fit.tree.tolist(), *held.tree.tolist()} - {-1}
    assert min(kept) >= 30_000 - 34
    assert max(set(fit.tree.tolist())) < min(set(held.tree.tolist()) - {-1})
    assert 20 <= len(held) <= 26
    few, _ = ring.split(7, torch.Generator()) or (None, None)
    assert few is not None
    assert len(few) == 7
    ring.add(_batch([40_000] * 200))
    assert ring.bytes == size


def test_expected_lengths_by_hand() -> None:
    batch = _batch([5, 5, 6, -1, 6, 7])
    batch.right[5] = -1
    chance = torch.tensor([0.5, 0.4, 0.9, 0.1, 0.5, 0.3])
    found = torch.log(torch.cat([chance[:, None], torch.rand(6, 4)], dim=1))
    assert expected_lengths(found, batch) == pytest.approx([0.5 + 0.2, 0.9 + 0.45, 0.0])


def test_the_loss_is_least_at_the_target_and_heeds_visited_nodes_most() -> None:
    batch = _batch([1, -1])
    right = torch.cat([batch.wanted, torch.full((2, 1), 1e-9)], dim=1).log()
    assert float(divergence(right, batch, 0.1)) == pytest.approx(np.log(4.0), abs=1e-4)
    wrong = torch.tensor([[0.7, 0.1, 0.1, 0.05, 0.05]]).log()
    first = torch.cat([wrong, right[1:]])
    second = torch.cat([right[:1], wrong])
    least = float(divergence(right, batch, 0.1))
    assert float(divergence(first, batch, 0.1)) > float(divergence(second, batch, 0.1)) > least


@pytest.mark.fault("U1")
def test_what_is_not_finite_leaves_the_weights_as_they_were() -> None:
    model, drafter, learner = parts(rule=Every(10**6))
    decoded(model, drafter, learner, 60)
    before = {k: v.clone() for k, v in drafter.head.state_dict().items()}
    kept = learner.lessons._kept
    assert kept is not None
    kept.scores[:, 0] = float("nan")
    learner._rule = Every(1)
    records = []
    for _ in range(FAILURES + 2):
        learner._since, learner._asked = 5, -1
        records.append(learner.between_steps(float("inf")))
    told = [record for record in records if record is not None]
    assert [record["reason"] for record in told] == ["not finite"] * FAILURES
    for name, value in drafter.head.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_trial_that_is_no_better_leaves_no_trace() -> None:
    model, drafter, learner = parts(rule=Every(10**6))
    decoded(model, drafter, learner, 60)
    before = {k: v.clone() for k, v in drafter.head.state_dict().items()}

    class Refuses(CorrectorArm):
        def _judge(self, *args: Any) -> tuple[float, float]:
            return 0.1, 0.2

    learner._arm = arm = Refuses(drafter.head, rate=0.1, row_rate=1.0)
    learner._rule = Every(1)
    learner._since, learner._asked = 5, -1
    record = learner.between_steps(float("inf"))
    assert record is not None
    assert (record["kept"], record["reason"], learner.updates) == (False, "no better", 0)
    for name, value in drafter.head.state_dict().items():
        assert torch.equal(value, before[name]), name
    copied = dict(arm._copy.named_parameters())
    for name in arm._names:
        assert torch.equal(copied[name], before[f"corrector.{name}"])


def test_a_deadline_is_kept() -> None:
    model, drafter, learner = parts(rule=Every(10**6))
    decoded(model, drafter, learner, 60)
    learner._rule, learner._since, learner._asked = Every(1), 9, -1
    assert learner.between_steps(-1.0) is None
    split = learner.lessons.split(64, torch.Generator())
    assert split is not None
    asked = iter([False, True])
    outcome = learner._arm.trial(*split, late=lambda: next(asked))
    assert isinstance(outcome, Outcome)
    assert next(asked, None) is None  # one step was made, then it stopped


def view(trees: int, seconds: float = 100.0, accepted: float = 1.0) -> View:
    """Decoding at 40 tokens and 20 trees per second."""
    return View(trees, 40.0, 20.0, seconds, accepted)


def test_a_cost_aware_rule_tries_what_pays() -> None:
    """A trial of 0.1 s that brings 0.05 tokens per tree saves 0.025 s per second to come."""
    worth, dear = CostAware(horizon=100.0), CostAware(horizon=100.0)
    short = CostAware(horizon=0.1)
    tried = {"worth": 0, "dear": 0, "short": 0}
    for name, rule, cost in (("worth", worth, 0.1), ("dear", dear, 50.0), ("short", short, 0.1)):
        since = 0
        for _ in range(4000):
            since += 1
            opinion = rule.ask(view(since))
            if opinion is not None and opinion.act:
                assert opinion.expected_cost is not None
                tried[name] += 1
                since = 0
                rule.told(0.05, cost)
    assert tried["worth"] > 50
    assert tried["dear"] <= 3
    assert tried["short"] <= 3


def test_a_cost_aware_rule_backs_off_and_a_fall_ends_that() -> None:
    rule, since, tried = CostAware(horizon=1e6), 0, []
    luck = np.random.default_rng(0)
    for step in range(20_000):
        since += 1
        level = 2.0 if step < 15_000 else 0.5
        opinion = rule.ask(view(since, accepted=float(luck.poisson(level))))
        if opinion is not None and opinion.act:
            tried.append(step)
            since = 0
            rule.told(0.0, 0.1)
    before = [step for step in tried if step < 15_000]
    assert 5 <= len(before) < 60  # a trial every 32 trees would be 468
    assert any(15_000 <= step < 15_200 for step in tried)


def test_without_a_horizon_decoding_goes_on_as_long_as_it_did() -> None:
    def first(seconds: float) -> bool:
        opinion = CostAware().ask(view(64, seconds))
        assert opinion is not None
        return opinion.act

    assert first(1000.0)
    assert not first(0.01)


def test_rules_and_configs_by_name() -> None:
    assert find_rule("never").ask(view(10**9)) is None
    assert find_rule("every:3").ask(view(3)) == Opinion(True, "scheduled")
    assert find_rule("every:3").ask(view(2)) is None
    assert find_rule("always").ask(view(10**3)) == Opinion(True, "scheduled")
    assert find_rule("cost-aware") is not find_rule("cost-aware")  # rules remember
    for wrong in ("every", "every:0", "every:x", "always:3", "cost-aware:x", "cost-aware:0"):
        with pytest.raises(ArgumentError):
            find_rule(wrong)
    with pytest.raises(UnknownNameError, match="always"):
        find_rule("alway")
    model = tiny_model("llama")
    with pytest.raises(ArgumentError, match="causal_parallel"):
        AdaptiveDecoder(model, {"drafter": "suffix", "online": {"updates": "always"}})
    drafter = CausalParallelDrafter(tiny_head(model, corrector="gated"), 512)
    with pytest.raises(UnsupportedError, match="gated"):
        AdaptiveDecoder(model, {"online": {"updates": "every:4"}}, drafter=drafter)


@pytest.mark.parametrize("rule", ["every:5", "cost-aware:1000"])
def test_updates_by_config_are_in_the_log(tmp_path: Any, rule: str) -> None:
    from adaptive_spec import load_log

    model = tiny_model("llama")
    drafter = CausalParallelDrafter(tiny_head(model, corrector="low_rank"), 512)
    path = tmp_path / "log.jsonl"
    config = {"policy": "fixed:6", "online": {"updates": rule}, "log": {"path": str(path)}}
    with torch.inference_mode(), AdaptiveDecoder(model, config, drafter=drafter) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=160)
        while not session.finished:
            session.step()
        assert not decoder.faults.count
    log = load_log(path)
    assert log.updates
    for record in log.updates:
        assert record["decision"]
        if record["arm"] == "skip":
            assert (record["reason"], record["kept"]) == (None, False)
            continue
        assert record["arm"] == "corrector"
        assert record["reason"] in ("better", "no better")
        assert record["kept"] == (record["reason"] == "better")
        assert record["realised_cost"] > 0
    assert sum(record["kept"] for record in log.updates) == int(log.updates[-1]["head_version"])


def test_a_wrong_rule_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from adaptive_spec.cli.main import run as command

    call = ["--set", "online.updates=evry:3"]
    for words in (["generate", "--prompt", "x"], ["bench", "--suite", "nowhere.jsonl"]):
        assert command([*words, *call]) == 2
        error = capsys.readouterr().err
        assert "--set online.updates=evry:3" in error
        assert "did you mean 'every'" in error
    assert command(["bench", "--suite", "x.jsonl", "--vary", "online.updates=never,every:0"]) == 2
    assert "every:0" in capsys.readouterr().err
