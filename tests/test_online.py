"""Learning while decoding: the ring, trials of updates, and text that never depends on them
(rows U1, U3, U4; L1, L2, L9 with an update forced at every step)."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_heads import PROMPT, tiny_head

from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.drafters.causal_parallel import CausalParallelDrafter, Moment
from adaptive_spec.errors import ArgumentError, HeadError, UnknownNameError, UnsupportedError
from adaptive_spec.heads.config import HeadConfig
from adaptive_spec.heads.head import Head
from adaptive_spec.heads.store import save_head
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.online.alarm import STRETCH, Alarm, Stretches
from adaptive_spec.online.arms import CalibratorArm, CorrectorArm
from adaptive_spec.online.base import Feedback, NoUpdate
from adaptive_spec.online.cost_aware import CostAware
from adaptive_spec.online.full import FullArm
from adaptive_spec.online.learner import FAILURES, NEW, HeadLearner
from adaptive_spec.online.lessons import Batch, Lessons
from adaptive_spec.online.noting import lessons_of, overconfidence
from adaptive_spec.online.pace import Pace
from adaptive_spec.online.passages import Passages
from adaptive_spec.online.policies import Every, find_rule
from adaptive_spec.online.rescoring import divergence, expected_lengths, log_chances
from adaptive_spec.online.review import Review
from adaptive_spec.online.rules import ARMS, Opinion, View
from adaptive_spec.online.trials import Arm, Outcome
from adaptive_spec.profilers.clock import monotonic
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import plain
from adaptive_spec.types import Labels

SAMPLED = {"do_sample": True, "temperature": 0.8, "seed": 4}


Maker = Callable[[CausalParallelDrafter, Lessons, Passages], Arm]
SWIFT: dict[str, Maker] = {
    "full": lambda drafter, lessons, passages: FullArm(
        drafter.head, passages, rate=0.003, steps=2, least=1
    ),
    "corrector": lambda drafter, lessons, passages: CorrectorArm(
        drafter.head, lessons, rate=0.01, row_rate=0.1, least=1
    ),
    "calibrator": lambda drafter, lessons, passages: CalibratorArm(
        drafter.head, lessons, rate=0.3, least=1
    ),
}
"""Arms that learn fast, and judge by little."""
CAREFUL: dict[str, Maker] = {
    "full": lambda drafter, lessons, passages: FullArm(drafter.head, passages, rate=0.003, steps=2),
    "corrector": lambda drafter, lessons, passages: CorrectorArm(
        drafter.head, lessons, rate=0.01, row_rate=0.1
    ),
    "calibrator": lambda drafter, lessons, passages: CalibratorArm(drafter.head, lessons, rate=0.3),
}
"""Arms that learn fast, and judge by as much as they should."""


def parts(
    kind: str = "llama",
    corrector: str = "recurrent_bias",
    rule: Any = None,
    makers: dict[str, Maker] = SWIFT,
    **options: Any,
) -> tuple[Any, CausalParallelDrafter, HeadLearner]:
    model = tiny_model(kind)
    drafter = CausalParallelDrafter(tiny_head(model, corrector=corrector), 1024)
    rule = rule or Every(1, ("corrector",))
    return model, drafter, HeadLearner(drafter, rule, makers=makers, **options)


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


def last_of(model: Any, drafter: Any, learner: Any, requests: int) -> Any:
    """Facts of the last of several requests; texts differ by their prompts."""
    config = {"policy": "fixed:8"}
    with AdaptiveDecoder(model, config, drafter=drafter, learner=learner) as decoder:
        for number in range(requests):
            with decoder.start([*PROMPT, 20 + number], max_new_tokens=220) as session:
                while not session.finished:
                    session.step()
        assert not decoder.faults.count
        return session.stats


class Keeps:
    """Takes every finite update over, however bad it is."""

    def __init__(self, arm: Arm) -> None:
        self._arm, self.name = arm, arm.name
        self.needs_passages, self.moves_head = arm.needs_passages, arm.moves_head
        self.settle = arm.settle

    def pieces(self) -> Iterator[Outcome | None] | None:
        found = self._arm.pieces()
        return None if found is None else self._kept(found)

    def _kept(self, found: Iterator[Outcome | None]) -> Iterator[Outcome | None]:
        for one in found:
            yield one and Outcome(one.gain, one.error, one.reason != "not finite", one.reason)


WILD: dict[str, Maker] = {
    "full": lambda drafter, lessons, passages: Keeps(
        FullArm(drafter.head, passages, rate=0.05, steps=1, least=1)
    ),
    "corrector": lambda drafter, lessons, passages: Keeps(
        CorrectorArm(drafter.head, lessons, rate=0.05, row_rate=0.3, least=1)
    ),
    "calibrator": lambda drafter, lessons, passages: Keeps(
        CalibratorArm(drafter.head, lessons, rate=1.0, least=1)
    ),
}


def whole(model: Any) -> str:
    """Hash of every bit of every weight."""
    found = hashlib.sha256()
    for weight in model.state_dict().values():
        found.update(weight.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.fault("U3", "L1", "L2", "L9")
@pytest.mark.parametrize("call", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("arm", ARMS)
def test_text_and_target_do_not_depend_on_updates(
    arm: str, kind: str, call: dict[str, Any]
) -> None:
    """An update after every step, taken over whatever it is worth."""
    model, drafter, learner = parts(kind, rule=Every(1, (arm,)), makers=WILD)
    before = whole(model)
    weights = {k: v.clone() for k, v in drafter.head.state_dict().items()}
    tokens = 200 if arm == "full" else 80
    text, _ = decoded(model, drafter, learner, tokens, **call)
    assert text == plain(model, PROMPT, max_new_tokens=tokens, **call)
    assert learner.updates > 10
    changed = {k for k, v in drafter.head.state_dict().items() if not torch.equal(v, weights[k])}
    moved = {"calibrator": ("bias",), "corrector": ("corrector.",), "full": ("fc.", "layers.")}
    assert all(any(k.startswith(part) for k in changed) for part in moved[arm])
    assert arm == "full" or all(k.startswith(moved[arm]) for k in changed)
    assert whole(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.fault("C5")
def test_after_a_swap_the_context_is_that_of_the_new_head() -> None:
    """Keys, values and the newest state are those of a head that had the new weights all along."""
    model, drafter, learner = parts(rule=Every(5, ("full",)), makers=WILD)
    compared = 0

    class Looks(NoUpdate):
        observe, arm, head_version = learner.observe, None, None

        def between_steps(self, deadline: float) -> Any:
            nonlocal compared
            updates = learner.updates
            record = learner.between_steps(float("inf"))
            if learner.updates > updates:
                known = drafter.memory["r"]
                slots = drafter.memory.context.pool.slots(known.owner)
                taps = learner.passages.taps("r")[None, : len(slots)]
                with torch.no_grad():
                    fused = drafter.head.fuse([taps])
                    states = drafter.head.context(fused, torch.arange(len(slots))[None])
                for layer, (keys, values) in enumerate(states):
                    context = drafter.memory.context
                    assert torch.allclose(context._keys[layer][:, :, slots], keys, atol=1e-5)
                    assert torch.allclose(context._values[layer][:, :, slots], values, atol=1e-5)
                assert torch.allclose(known.before, fused[0, -1], atol=1e-5)
                compared += 1
            return record

    config = {"policy": "fixed:8"}
    with AdaptiveDecoder(model, config, drafter=drafter, learner=Looks()) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=250, request_id="r")
        while not session.finished:
            session.step()
        assert not decoder.faults.count
    assert compared > 3


@pytest.mark.parametrize("arm", ARMS)
def test_a_head_learns_what_it_is_told_again_and_again(arm: str) -> None:
    """A target whose next token depends on the last one alone soon writes in a circle."""
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    frozen = CausalParallelDrafter(tiny_head(model, corrector="recurrent_bias"), 1024)
    still = last_of(model, frozen, None, 3)
    drafter = CausalParallelDrafter(tiny_head(model, corrector="recurrent_bias"), 1024)
    learner = HeadLearner(drafter, Every(8, (arm,)), makers=SWIFT)
    learning = last_of(model, drafter, learner, 3)
    assert learner.updates >= 3
    assert learning.steps < (0.9 if arm == "calibrator" else 0.8) * still.steps
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
                batch = lessons_of(self._drafter.head, one, moment, self._trees)
                rows, where = torch.unique(batch.rows, return_inverse=True)
                corrector = self._drafter.head.corrector
                keys = corrector.outward.detach()[rows]
                with torch.no_grad():
                    found = log_chances(corrector, self._drafter.head, batch, keys, None, where)
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
    learner = Compares(drafter, Every(10**6, ("corrector",)))
    decoded(model, drafter, learner, 40, **call)
    assert compared > 50


def test_what_a_lesson_says() -> None:
    """The target's probabilities, the written tokens, the branches."""
    model, drafter, learner = parts(rule=Every(10**6, ("corrector",)))
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


def spoil(learner: HeadLearner, arm: str) -> None:
    """What is remembered holds a NaN."""
    if arm == "full":
        assert learner.passages is not None
        for text in (*learner.passages._open.values(), *learner.passages._ended):
            text.whole("taps")[:, 0] = float("nan")
    else:
        assert learner.lessons._kept is not None
        learner.lessons._kept.scores[:, 0] = float("nan")


def asked_again(learner: HeadLearner) -> Any:
    """What the learner does after a further tree."""
    learner._trees += 1
    return learner.between_steps(float("inf"))


@pytest.mark.fault("U1")
@pytest.mark.parametrize("arm", ARMS)
def test_what_is_not_finite_leaves_the_weights_as_they_were(arm: str) -> None:
    model, drafter, learner = parts(rule=Every(10**6, (arm,)))
    decoded(model, drafter, learner, 300)
    before = {k: v.clone() for k, v in drafter.head.state_dict().items()}
    spoil(learner, arm)
    learner._rule = Every(1, (arm,))
    told = [one for one in (asked_again(learner) for _ in range(FAILURES + 2)) if one is not None]
    off = "not finite; learning is off"
    assert [record["reason"] for record in told] == ["not finite"] * (FAILURES - 1) + [off]
    assert learner.off
    assert not drafter.wants_moments
    assert drafter.passages is None
    for name, value in drafter.head.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.fault("U1")
@pytest.mark.parametrize("background", [False, True])
def test_a_trial_that_raises_is_skipped(background: bool) -> None:
    class Raises(CorrectorArm):
        def _move(self) -> bool:
            raise ZeroDivisionError

    makers: dict[str, Maker] = {"corrector": lambda d, some, _: Raises(d.head, some)}
    model, drafter, learner = parts(
        rule=Every(1, ("corrector",)), makers=makers, background=background
    )
    with (
        warnings.catch_warnings(),
        AdaptiveDecoder(model, {"policy": "fixed:8"}, drafter=drafter, learner=learner) as decoder,
    ):
        warnings.simplefilter("ignore")
        session = decoder.start(PROMPT, max_new_tokens=80)
        while not session.finished:
            session.step()
        assert session.generated == plain(model, PROMPT, max_new_tokens=80)
    assert learner.updates == 0


@pytest.mark.parametrize("arm", ARMS)
def test_a_trial_that_is_no_better_leaves_no_trace(arm: str) -> None:
    class Refuses(Keeps):
        def _kept(self, found: Iterator[Outcome | None]) -> Iterator[Outcome | None]:
            for one in found:
                yield one and Outcome(0.1, 0.2, False, "no better")

    made: list[Any] = []

    def maker(drafter: Any, lessons: Any, passages: Any) -> Arm:
        made.append(SWIFT[arm](drafter, lessons, passages))
        return Refuses(made[0])

    model, drafter, learner = parts(rule=Every(10**6, (arm,)), makers={arm: maker})
    decoded(model, drafter, learner, 300)
    before = {k: v.clone() for k, v in drafter.head.state_dict().items()}
    learner._rule = Every(1, (arm,))
    record = asked_again(learner)
    assert (record["kept"], record["reason"], learner.updates) == (False, "no better", 0)
    for name, value in drafter.head.state_dict().items():
        assert torch.equal(value, before[name]), name
    if arm != "calibrator":  # whose copies are made anew for every trial
        for name, value in made[0]._copy.named_parameters():
            place = name if arm == "full" else f"corrector.{name}"
            assert name == "outward" or torch.equal(value, before[place]), name


@pytest.mark.fault("U2")
@pytest.mark.parametrize("arm", ARMS)
def test_labels_that_lie_about_the_past_are_found_out(arm: str) -> None:
    """The target is said to want what it never writes; what is held out tells the truth."""
    makers = {name: maker for name, maker in CAREFUL.items() if name == arm}
    model, drafter, learner = parts(rule=Every(10**6, (arm,)), makers=makers)
    last_of(model, drafter, learner, 8 if arm == "full" else 2)
    luck = torch.Generator().manual_seed(0)
    if arm == "full":
        assert learner.passages is not None
        fit, held = learner.passages.split() or ([], [])
        assert held
        for window in fit:  # slices of what is kept
            lies = torch.randint(0, 64, window.best.shape, generator=luck, dtype=torch.int32)
            window.best.copy_(lies)
    else:
        kept = learner.lessons._kept
        assert kept is not None
        kept.wanted.copy_(torch.rand(kept.wanted.shape, generator=luck) / 64)
    before = {k: v.clone() for k, v in drafter.head.state_dict().items()}
    learner._rule = Every(1, (arm,))
    for _ in range(20):
        record = asked_again(learner)
        assert record["kept"] == (record["gain"] > (record["gain_error"] or 0.0))
    if not learner.updates:
        for name, value in drafter.head.state_dict().items():
            assert torch.equal(value, before[name]), name
    assert learner.updates <= 3  # by chance, at one standard error


def test_a_deadline_is_kept() -> None:
    """A trial goes on where it stopped, a piece per step if need be, and is recorded once."""
    model, drafter, learner = parts(rule=Every(10**6, ("corrector",)))
    decoded(model, drafter, learner, 60)
    learner._rule, learner._asked = Every(1, ("corrector",)), -1
    assert learner.between_steps(-1.0) is None
    assert learner._trial is None
    passed, ticks = [], 0

    def clock() -> float:
        nonlocal ticks
        ticks += 1
        return float(ticks)

    learner._clock = clock
    while not passed or passed[-1] is None:
        passed.append(learner.between_steps(ticks + 1.5))  # late after any piece
    assert len(passed) == 5  # four gradient steps, and the judgement
    assert passed[-1]["realised_cost"] >= 5.0


@pytest.mark.parametrize("arm", ARMS)
def test_learning_in_a_thread_swaps_between_steps(arm: str) -> None:
    model, drafter, learner = parts(rule=Every(4, (arm,)), makers=WILD, background=True)
    text, _ = decoded(model, drafter, learner, 300)
    assert text == plain(model, PROMPT, max_new_tokens=300)
    assert learner.updates > 0
    assert not [one for one in threading.enumerate() if "adaptive-spec update" in one.name]


def test_the_corrector_costs_a_tenth_of_the_whole_head() -> None:
    """Floating-point work and memory of a trial on a head with the shipped one's proportions."""
    from torch.utils.flop_counter import FlopCounterMode

    config = HeadConfig(
        hidden=288, vocab=4096, taps=(0, 1, 2, 3, 4), layers=1, heads=9, kv_heads=3, head_dim=32,
        intermediate=768, block=6, corrector="recurrent_bias", rank=80,
    )  # fmt: skip
    torch.manual_seed(0)
    head = Head(config)
    lent = torch.randn(4096, 288) * 0.1
    head.lend(lent, lent)
    lessons, passages = Lessons(4096), Passages(4096)
    for tree in range(1500):
        depth = torch.arange(3)
        lessons.add(
            Batch(
                hidden=torch.randn(3, 288).bfloat16(),
                path=torch.randint(0, 4096, (3, 6)),
                depth=depth,
                rows=torch.randint(0, 4096, (3, 64)).int(),
                scores=torch.randn(3, 64),
                rest=torch.randn(3),
                heat=torch.ones(3),
                wanted=torch.full((3, 64), 1 / 80),
                right=torch.randint(0, 64, (3,)),
                tree=torch.full((3,), tree),
            )
        )
    for number in range(12):
        tokens = torch.randint(0, 4096, (300,))
        passages.write(str(number), tokens, torch.randn(300, 5 * 288), np.arange(300))
        best = torch.randint(0, 4096, (200, 16)).int()
        passages.answer(str(number), best, torch.full((200, 16), 1 / 20))
    work = {}
    for arm in (FullArm(head, passages), CorrectorArm(head, lessons)):
        pieces = arm.pieces()
        assert pieces is not None
        with FlopCounterMode(display=False) as counted:
            assert list(pieces)[-1] is not None
        work[arm.name] = counted.get_total_flops()
    assert work["full"] > 10 * work["corrector"] > 0


def view(trees: int, seconds: float = 100.0, overconfidence: Sequence[float] = ()) -> View:
    """Decoding at 40 tokens and 20 trees per second."""
    return View(trees, 40.0, 20.0, seconds, tuple(overconfidence))


def run(
    rule: CostAware, steps: int, gain: dict[str, float], cost: dict[str, float], **how: Any
) -> list[tuple[int, str]]:
    """Trees at which something was tried, one tree a step, and what.

    Args:
        level: what the overconfidence of a stretch is on average, by the step it ends at.
        error: of the gains, as the judge sees them; what they are then varies by as much.
    """
    tried, luck = [], np.random.default_rng(0)
    seconds, level, error = 0.0, how.get("level", lambda step: 0.0), how.get("error", 0.0)
    for step in range(1, steps + 1):
        seconds += 0.05
        ended = [float(luck.normal(level(step), 0.07))] if step % 32 == 0 else []
        opinion = rule.ask(view(step, seconds, ended), list(ARMS))
        if opinion is not None and opinion.arm is not None:
            tried.append((step, opinion.arm))
            seconds += cost[opinion.arm]
            seen = float(luck.normal(gain[opinion.arm], error))
            rule.told(opinion.arm, seen if seen > error else 0.0, error, cost[opinion.arm])
    return tried


COSTS = {"full": 2.0, "corrector": 0.1, "calibrator": 0.05}


def test_a_cost_aware_rule_tries_what_pays() -> None:
    nothing = dict.fromkeys(ARMS, 0.0)
    good = {**nothing, "corrector": 0.05}
    tried = run(CostAware(), 20_000, good, COSTS)
    most = [arm for _, arm in tried[len(tried) // 2 :]]
    assert most.count("corrector") > 0.8 * len(most)
    assert len(tried) > 100
    dear = run(CostAware(), 20_000, good, dict.fromkeys(ARMS, 60.0))
    assert len(dear) <= 1
    assert run(CostAware(horizon=0.1), 20_000, good, COSTS) == []


def test_what_brings_nothing_costs_next_to_nothing() -> None:
    """A thousand seconds of decoding: at most the purse's share is spent."""
    tried = run(CostAware(), 20_000, dict.fromkeys(ARMS, 0.0), COSTS)
    assert 3 <= len(tried) < 40
    assert sum(COSTS[arm] for _, arm in tried) <= CostAware.SHARE * 1000.0 * 1.05


@pytest.mark.parametrize("error", [0.01, 0.04])
def test_lucky_trials_do_not_pay_for_themselves(error: float) -> None:
    """Of trials that bring nothing one in six looks better by more than its error."""
    tried = run(CostAware(), 40_000, dict.fromkeys(ARMS, 0.0), COSTS, error=error)
    assert sum(COSTS[arm] for _, arm in tried) <= 2.5 * CostAware.SHARE * 2000.0


@pytest.mark.parametrize("seed", range(4))
def test_texts_that_differ_raise_no_alarm(seed: int) -> None:
    """Ten thousand stretches (nine hours), two of each text, and no pause between alarms."""
    luck, alarm = np.random.default_rng(seed), Alarm(0.0)
    texts = np.repeat(luck.normal(0.0, 0.06, 5000), 2) + luck.normal(0.0, 0.03, 10_000)
    alarms = [place for place, value in enumerate(texts) if alarm.risen([value], 0.0)]
    assert len(alarms) <= 20


def test_false_alarms_cost_less_and_less() -> None:
    """A head that knows one kind of text and not the other, for ever, and cannot learn."""
    tried = run(
        CostAware(),
        100_000,
        dict.fromkeys(ARMS, 0.0),
        COSTS,
        level=lambda step: 0.0 if step // 2000 % 2 else 0.3,
    )
    spent = sum(COSTS[arm] for _, arm in tried)
    assert spent <= CostAware.SHARE * 5000.0 + 4 * CostAware.AFTER * sum(COSTS.values())


def test_an_alarm_ends_all_waiting() -> None:
    tried = run(
        CostAware(),
        20_000,
        dict.fromkeys(ARMS, 0.0),
        COSTS,
        level=lambda step: 0.0 if step < 15_000 else 0.3,
    )
    assert not any(14_000 <= step < 15_000 for step, _ in tried)
    assert len([step for step, _ in tried if 15_000 <= step < 15_700]) >= 3


@pytest.mark.parametrize("seed", range(4))
def test_a_changed_target_raises_the_alarm_and_pays_for_dear_trials(seed: int) -> None:
    """Figures of the shipped head and a target that was turned (docs/decisions.md)."""
    luck, rule, begun = np.random.default_rng(seed), CostAware(), list[int]()
    for arm in ARMS:
        rule.told(arm, 0.0, 0.02, COSTS[arm])
    values = luck.normal(0.0, 0.07, 400)
    values[100:] = luck.normal(0.21, 0.11, 300)
    for number, value in enumerate(values):
        opinion = rule.ask(view(number * 32, number * 1.6, [value]), ARMS)
        if opinion is not None and opinion.anew:
            begun.append(number)
            assert opinion.arm is None
            assert "surer" in opinion.reason
            hoped = rule.ask(view(number * 32 + 32, number * 1.6 + 2), ["full"])
            assert hoped is not None
            assert hoped.arm == "full", hoped.reason
    assert len(begun) == 1
    assert 100 < begun[0] < 125


def test_stretches_are_of_one_request_and_what_is_over_is_put_together() -> None:
    """A request is over once it has not been heard of for some steps."""
    found = Stretches()
    for step in range(STRETCH - 1):
        found.observe({"a": 1.0, "b": 0.0}, {"a", "b"})
        assert not found.ended, step
    found.observe({"a": 1.0, "b": float("nan")}, {"a", "b"})
    assert found.ended == [1.0]
    for _ in range(Stretches.TURNS):
        found.observe({}, {"c"})
        assert len(found.ended) == 1
    found.observe({"c": 0.5}, {"c"})  # b is over, after seven
    assert len(found.ended) == 1
    for _ in range(Stretches.TURNS + 1):
        found.observe({}, {"d"})
    assert found.ended == [1.0, pytest.approx(0.5 / STRETCH)]
    assert not any(found._open.values())
    assert set(found._heard) == {"d"}


def test_requests_that_take_turns_have_stretches_of_their_own() -> None:
    found = Stretches()
    for _ in range(STRETCH):
        for name, value in (("a", 0.0), ("b", 1.0)):
            found.observe({name: value}, {name})
    assert found.ended == [0.0, 1.0]


def test_a_change_within_the_pause_after_an_alarm_is_heard_when_it_ends() -> None:
    luck, alarm, raised = np.random.default_rng(0), Alarm(600.0), list[int]()
    for number in range(900):
        level = 0.25 if 60 <= number < 80 or number >= 250 else 0.0  # for a while, then for ever
        if alarm.risen([float(luck.normal(level, 0.07))], 1.6 * number):
            raised.append(number)
    assert len(raised) == 2
    assert 60 < raised[0] < 80
    assert 1.6 * (raised[0] + 375) <= 1.6 * raised[1] <= 1.6 * (raised[0] + 376)


@pytest.mark.parametrize("seed", range(4))
def test_text_that_varies_more_is_no_change(seed: int) -> None:
    """Of the same mean: from loops and copies to ordinary text."""
    luck, alarm = np.random.default_rng(seed), Alarm(0.0)
    values = [*luck.normal(0.0, 0.02, 60), *luck.normal(0.0, 0.09, 300)]
    assert sum(alarm.risen([float(value)], 0.0) > 0 for value in values) <= 1


def test_a_pause_does_not_grow_for_ever() -> None:
    alarm, seconds = Alarm(10.0), 0.0
    for number in range(4000):
        seconds += 1.0
        alarm.risen([0.5 if number // 100 % 2 else 0.0], seconds)
    assert alarm._pause == Alarm.LONGEST * 10.0


def test_alarms_together_give_no_more_than_their_share() -> None:
    """And less where the trials are dear; a debt is paid before anything is given."""
    rule, luck = CostAware(), np.random.default_rng(0)
    for number in range(2000):
        level = 0.3 if number // 40 % 2 else 0.0
        rule._alarm._calm = 0.0
        ended = [float(luck.normal(level, 0.05))]
        rule.ask(view(number * 32, number * 1.6, ended), ARMS)
        rule._purse = min(rule._purse, 0.0)
        assert rule._given <= CostAware.RISK * number * 1.6
    assert rule._given > 0.0


def test_what_an_undone_update_was_credited_with_is_taken_back() -> None:
    kept, undone = CostAware(seed=1), CostAware(seed=1)
    for rule in (kept, undone):
        rule.ask(view(64, 1000.0), ARMS)
        rule.told("corrector", 0.5, 0.01, 0.1)
        assert rule._purse > 5.0
    kept.reviewed(True)
    undone.reviewed(False)
    assert kept._purse > 5.0
    assert undone._purse < 5.0
    assert undone.ask(view(64 + CostAware.FIRST, 1000.0), ["corrector"]) is None
    undone.told("corrector", 0.0, 0.01, 0.1)
    before = undone._purse
    undone.reviewed(False)
    assert undone._purse == before, "nothing was kept since"


def test_a_trial_of_many_requests_is_believed_to_cost_as_many_steps() -> None:
    one, four = view(64), View(64, 160.0, 80.0, 100.0, packed=4.0)
    rule = CostAware()
    assert rule._cost("full", four) == rule._cost("full", one) == CostAware.STEPS["full"] / 20.0


def test_requests_that_take_turns_are_decoded_all_the_time() -> None:
    model, drafter, learner = parts(rule=CostAware(horizon=1000.0))
    config = {"policy": "fixed:8"}
    with AdaptiveDecoder(model, config, drafter=drafter, learner=learner) as decoder:
        a = decoder.start(PROMPT, max_new_tokens=60)
        b = decoder.start([*PROMPT, 9], max_new_tokens=60)
        while not (a.finished and b.finished):
            for session in (a, b):
                if not session.finished:
                    session.step()
    seen = learner._pace.view(0)
    assert seen.tokens_per_second > 0
    assert seen.packed == 1.0


def test_without_a_horizon_decoding_goes_on_as_long_as_it_did() -> None:
    def first(seconds: float) -> bool:
        rule = CostAware(arms=("corrector",))
        rule.ask(view(1, 0.0), ["corrector"])
        opinion = rule.ask(view(64, seconds), ["corrector"])
        assert opinion is not None
        return opinion.arm is not None

    assert first(1000.0)
    assert not first(0.01)


def test_rules_and_configs_by_name() -> None:
    assert find_rule("never").ask(view(10**9), ARMS) is None
    assert find_rule("every:3").ask(view(3), ARMS) == Opinion("full", "scheduled")
    assert find_rule("every:3").ask(view(3), ["corrector"]) == Opinion("corrector", "scheduled")
    assert find_rule("every:3").ask(view(2), ARMS) is None
    assert find_rule("always").ask(view(10**3), ARMS) == Opinion("full", "scheduled")
    assert find_rule("corrector-only:9").arms == ("corrector",)
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
        AdaptiveDecoder(model, {"online": {"updates": "corrector-only"}}, drafter=drafter)


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
        assert record["arm"] in ARMS
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


# -- what a reader found who tried to break it ----------------------------------------------------


def test_after_an_alarm_nothing_from_long_before_is_learned_from() -> None:
    """A rule that says so once: lessons and texts go, and every tree is watched again."""

    class Falls(Every):
        several = True
        fall = False

        def ask(self, view: View, arms: Sequence[str]) -> Opinion | None:
            fell, self.fall = self.fall, False
            return Opinion(None, "surer", anew=True) if fell else None

    rule = Falls(1, ("full", "corrector"))
    model, drafter, learner = parts(rule=rule)
    learner._sparse = 16
    with AdaptiveDecoder(model, {"policy": "fixed:8"}, drafter=drafter, learner=learner) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=200)
        learner._requests[session.id] = True
        while len(session.generated) < 100:
            session.step()
        before = learner._trees
        assert learner.passages is not None
        assert learner.passages.split() is not None
        rule.fall = True
        session.step()
        assert (learner._sparse, learner.lessons.count) == (1, 0)
        kept = sum(w.size for both in (learner.passages.split() or ((), ())) for w in both)
        assert kept <= NEW // 16 + 10, "one request in sixteen was watched"
        while not session.finished:
            session.step()
        kept = learner.lessons._kept
        assert kept is not None
        fresh = kept.tree[: learner.lessons.count]
        assert int(fresh[fresh >= 0].min()) > before
        assert learner.passages.taps(session.id) is not None, "what is open keeps its states"


@pytest.mark.parametrize("arm", ["full", "corrector"])
def test_a_swap_that_fails_leaves_all_as_it_was(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory while keys and values are computed anew, or while weights are copied."""
    model, drafter, learner = parts(rule=Every(4, (arm,)), makers=WILD)
    before = {k: v.clone() for k, v in drafter.head.state_dict().items()}
    refused: list[int] = []

    def broken(*args: Any) -> None:
        refused.append(1)
        raise MemoryError("no room")

    if arm == "full":
        monkeypatch.setattr(drafter.memory, "refresh", broken)
    else:
        monkeypatch.setattr(learner, "_changed", broken)
    text, _ = decoded(model, drafter, learner, 200)
    assert text == plain(model, PROMPT, max_new_tokens=200)
    assert refused
    assert (learner.updates, learner.trials) == (0, FAILURES)
    assert learner.off
    for name, value in drafter.head.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.fault("U2")
def test_an_update_after_which_trees_accept_less_is_undone() -> None:
    class Once(Every):
        def ask(self, view: View, arms: Sequence[str]) -> Opinion | None:
            return super().ask(view, arms) if view.trees < 160 else None

    model, drafter, learner = parts(rule=Once(80, ("corrector",)), makers=WILD)
    with AdaptiveDecoder(model, {"policy": "fixed:8"}, drafter=drafter, learner=learner) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=200)
        before = {k: v.clone() for k, v in drafter.head.state_dict().items()}
        while not learner.updates:
            session.step()
        assert any(not torch.equal(v, before[k]) for k, v in drafter.head.state_dict().items())
        for _ in range(Review.TREES):
            learner._review.tree(-3)  # far less than anything before
        record = asked_again(learner)
    assert record["arm"] == "review"
    assert record["kept"] is False
    assert record["realised_gain"] < 0
    for name, value in drafter.head.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.fault("U2")
def test_updates_that_follow_each_other_closely_are_judged_together() -> None:
    """Or none of them would ever be, and the weights to go back to would be bad ones."""
    model, drafter, learner = parts(rule=Every(10, ("corrector",)), makers=WILD)
    before = {k: v.clone() for k, v in drafter.head.state_dict().items()}
    with AdaptiveDecoder(model, {"policy": "fixed:8"}, drafter=drafter, learner=learner) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=400)
        while learner.updates < 4:
            session.step()
            learner._review._before.extend([3] * 8)
        for _ in range(Review.TREES):
            learner._review.tree(-3)
        told: list[bool] = []
        learner._rule.reviewed = told.append  # type: ignore[method-assign]
        assert asked_again(learner)["arm"] == "review"
    assert told == [False]
    for name, value in drafter.head.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.fault("U4")
def test_learning_that_is_off_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates that nobody would look at any more are undone."""
    model, drafter, learner = parts(rule=Every(8, ("full",)), makers=WILD)
    before = {k: v.clone() for k, v in drafter.head.state_dict().items()}
    with AdaptiveDecoder(model, {"policy": "fixed:8"}, drafter=drafter, learner=learner) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=400)
        while not learner.updates:
            session.step()

        def fails() -> Any:
            raise MemoryError("no room")

        monkeypatch.setattr(learner._arms["full"], "pieces", fails)
        while not learner.off:
            session.step()
        for _ in range(20):
            session.step()
        assert not decoder.faults.count
    assert learner.passages is None
    assert not learner._review._after
    assert learner._review.before is None
    for name, value in drafter.head.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_new_head_ends_the_rest_of_the_policies() -> None:
    """Whole heads only; a corrector's update is told to nobody."""
    model, drafter, learner = parts(rule=Every(10**6, ("full", "corrector")), makers=WILD)
    with AdaptiveDecoder(model, {"policy": "marginal"}, drafter=drafter, learner=learner) as found:
        session = found.start(PROMPT, max_new_tokens=300)
        while len(session.generated) < 150:
            session.step()
        policy = found.deciding._controllers["marginal"]
        policy._crew.dismiss()
        assert not policy._crew.models
        before = learner.generation
        learner._rule, learner._asked = Every(1, ("full",)), -1
        while learner.generation == before:
            session.step()
        session.step()
        assert policy._crew.models


def test_an_arm_without_anything_to_learn_from_makes_room_for_others() -> None:
    class Never(FullArm):
        def pieces(self) -> Any:
            return None

    class First(Every):
        several = True

    makers = {**SWIFT, "full": lambda drafter, lessons, passages: Never(drafter.head, passages)}
    model, drafter, learner = parts(rule=First(4, ARMS), makers=makers)
    asked: list[Sequence[str]] = []
    ask = learner._rule.ask
    learner._rule.ask = lambda view, arms: asked.append(arms) or ask(view, arms)  # type: ignore
    decoded(model, drafter, learner, 300)
    assert any("full" in arms for arms in asked)
    assert any(list(arms) == ["corrector", "calibrator"] for arms in asked)
    assert learner.trials > 0


def test_how_sure_a_head_was() -> None:
    """By hand: two candidates of scores 2 and 1, as much again as 1 elsewhere; the target 1, 0, 0
    over three tokens."""
    moment = Moment(
        hidden=torch.zeros(1, 4), tokens=np.array([[1, 2]]), scores=torch.tensor([[1.0, 2.0]]),
        rest=np.array([1.0]), anchor=0, heat=1.0,
    )  # fmt: skip
    logits = torch.tensor([[1.0, 0.0, 0.0]])
    feedback = Feedback(
        "a",
        CandidateTree.chain([]),
        np.array([-1]),
        [0],
        None,
        0.0,
        logits,
        {},  # type: ignore
    )
    e = np.e
    assert overconfidence(feedback, moment) == pytest.approx(
        e**2 / (e**2 + 2 * e) - 1 / (e + 2), abs=1e-6
    )
    assert np.isnan(overconfidence(feedback, replace(moment, heat=0.7)))


def test_rounding_is_no_gain() -> None:
    """A head in bfloat16 whose copy learns nothing: not kept, however often it is tried."""
    model, drafter, learner = parts(rule=Every(10**6, ("full",)))
    decoded(model, drafter, learner, 300)
    head = drafter.head.to(torch.bfloat16)
    head.lend(*(weight.bfloat16() for weight in (
        model.get_input_embeddings().weight, model.get_output_embeddings().weight)))  # fmt: skip
    assert learner.passages is not None
    for text in learner.passages._ended:
        text.taps = [piece.bfloat16() for piece in text.taps]
    still = FullArm(head, learner.passages, rate=0.0, steps=1, least=1)
    for _ in range(4):
        pieces = still.pieces()
        assert pieces is not None
        outcome = list(pieces)[-1]
        assert outcome is not None
        assert (outcome.gain, outcome.kept) == (0.0, False)


def test_a_schedule_keeps_only_the_arm_that_it_tries() -> None:
    _, drafter, learner = parts(rule=Every(64))
    assert list(learner._arms) == ["full"]
    assert not drafter.wants_moments
    assert drafter.head.bias is None


def test_a_pause_is_no_decoding() -> None:
    pace, now = Pace(), 0.0
    one = [_feedback("a", 2)]
    for _ in range(40):
        pace.step(now := now + 0.05, one)
    pace.step(now := now + 600.0, one)
    for _ in range(4):
        pace.step(now := now + 0.05, one)
    view = pace.view(1)
    assert view.seconds < 3.0
    assert view.trees_per_second > 15.0


def _feedback(request: str, tokens: int) -> Feedback:
    none: Any = None
    return Feedback(request, none, np.arange(tokens), [0] * tokens, none, 0.0, none, {})


def test_texts_that_are_not_finite_do_not_end_learning() -> None:
    passages = Passages(64)
    taps = torch.full((4, 6), float("inf"))
    passages.write("a", torch.arange(4), taps, np.arange(4))
    found = passages.taps("a")
    assert found is not None
    assert bool(torch.isfinite(found).all())


def test_every_place_of_a_batch_is_watched() -> None:
    _, _, learner = parts()
    learner._sparse = 16
    seen = [[learner._one_in_many() for _ in range(4)] for _ in range(400)]
    assert all(10 < sum(column) < 45 for column in zip(*seen, strict=True))


@pytest.mark.fault("U4")
def test_texts_take_no_more_memory() -> None:
    """Ten thousand requests of ten positions: what has ended stays within the capacity."""
    passages, most = Passages(200), 0
    for number in range(10_000):
        name = str(number)
        for first in (0, 5):
            passages.write(name, torch.arange(5), torch.zeros(5, 8), np.arange(first, first + 5))
            passages.answer(name, torch.ones(5, 16, dtype=torch.int32), torch.ones(5, 16))
        passages.end(name)
        most = max(most, sum(text.size for text in passages._ended))
    assert most <= 200
    assert not passages._open


@pytest.mark.fault("U4")
def test_a_hundred_thousand_steps_leave_a_learner_as_large_as_it_was() -> None:
    """Of ten thousand requests, two at a time, half of whose drafts it is told about."""
    _, drafter, learner = parts(rule=CostAware())
    hour = iter(range(10**9))
    learner._clock = lambda: 0.01 * next(hour)
    logits = torch.zeros(2, 64)
    none = Labels(np.zeros(0), np.zeros(0, dtype=np.bool_), np.zeros(0))
    empty = CandidateTree.empty()
    moment = Moment(0, 1.0, torch.zeros(1, 4), np.zeros((1, 2)), torch.zeros(1, 2), np.zeros(1))
    learner.lessons.add = lambda batch: None  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adaptive_spec.online.learner.lessons_of", lambda *args: None)
        for step in range(100_000):
            names = str(step // 20), str(step // 20 + 1)
            if step % 2:
                drafter.moments[names[0]] = moment
            learner.observe(
                [Feedback(n, empty, np.array([-1]), [1], none, 0.0, logits, {}) for n in names]
            )
            learner.between_steps(float("inf"))
    assert learner.trials == 0
    held = (
        learner._requests, learner._stretches._open, learner._stretches._heard,
        learner._stretches.ended, learner._review._before, learner._review._after, learner._paid,
        learner._pace._present, learner._rule._alarm._new, learner._unready, drafter.moments,
    )  # fmt: skip
    assert all(len(one) <= 1025 for one in held), [len(one) for one in held]


def test_a_learner_that_is_closed_leaves_its_drafter_alone() -> None:
    model, drafter, learner = parts(rule=Every(10**6, ("full", "corrector")))
    learner._arms["corrector"] = SWIFT["corrector"](drafter, learner.lessons, Passages(64))
    decoded(model, drafter, learner, 20)
    assert (drafter.wants_moments, drafter.passages, drafter.moments) == (False, None, {})


def test_closing_ends_a_thread_after_its_piece() -> None:
    pieces = threading.Event()

    class Slow(CorrectorArm):
        def pieces(self) -> Any:
            return self._slow()

        def _slow(self) -> Any:
            for _ in range(10_000):
                pieces.set()
                threading.Event().wait(0.01)
                yield None

    makers: dict[str, Maker] = {"corrector": lambda d, some, _: Slow(d.head, some)}
    model, drafter, learner = parts(makers=makers, background=True)
    began = monotonic()
    decoded(model, drafter, learner, 20)
    assert pieces.is_set()
    assert monotonic() - began < 30.0
    assert not any(one.name == "adaptive-spec update" for one in threading.enumerate())


def test_a_learner_that_is_refused_leaves_no_hooks(tiny: Any) -> None:
    model = tiny("llama")
    layers = [one for one in model.modules() if one._forward_hooks]
    head = tiny_head(model, corrector="gated", ahead=False)
    drafter = CausalParallelDrafter(head, 256)
    with pytest.raises(UnsupportedError):
        AdaptiveDecoder(model, {"online": {"updates": "corrector-only"}}, drafter=drafter)
    assert [one for one in model.modules() if one._forward_hooks] == layers


def test_a_folder_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    drafter = parts()[1]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(HeadError, match="folder"):
        save_head(tmp_path, drafter.head, {})
    assert (tmp_path / "config.json").read_text() == '{"model_type": "llama"}'
    save_head(tmp_path / "new", drafter.head, {})
    save_head(tmp_path / "new", drafter.head, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        save_head(tmp_path / "file", drafter.head, {})
