"""Whole decoders on kernels: exact text, few readings of the device, and a way out."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_heads import tiny_head
from torch.overrides import TorchFunctionMode

from adaptive_spec.bench import gpu_drafts
from adaptive_spec.bench.gpu import Shape, measured
from adaptive_spec.drafters.causal_parallel import CausalParallelDrafter
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.kernels import attach, candidates
from adaptive_spec.selfcheck import self_check
from adaptive_spec.target import Target
from adaptive_spec.testing.tiny import KINDS, tiny_model
from adaptive_spec.testing.yardsticks import plain, run

PROMPT = [5, 6, 7, 8, 5, 6, 9, 10, 5, 6, 11, 12]
pytestmark = pytest.mark.usefixtures("forced")


def decoder(model: Any, check: bool = False) -> AdaptiveDecoder:
    head = tiny_head(model, corrector="recurrent_bias", draft_vocab=64)
    drafter = CausalParallelDrafter(head, 256, siblings=4, candidates=16, kernels=candidates)
    config = {"policy": "fixed:8", "self_check": check}
    return AdaptiveDecoder(model, config, drafter=drafter)


def without(model: Any, prompt: list[int], **call: Any) -> list[int]:
    """Plain decoding under masks; at temperature 0 also what ``generate`` itself writes."""
    with AdaptiveDecoder(model, {"policy": "plain", "kernels": "off"}) as one:
        assert one.target.kernels is None
        text = run(one, prompt, **call)
    if not call.get("do_sample"):
        ids = torch.tensor([prompt])
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **call
        )
        assert written[0, len(prompt) :].tolist() == text
    return text


@pytest.mark.fault("C4")
@pytest.mark.parametrize("kind", list(KINDS))
def test_logits_of_a_tree(kind: str) -> None:
    """The start-up check: a branching tree on scattered slots, rows of nobody, another request."""
    target = Target(tiny_model(kind))
    assert target.kernels is not None
    assert self_check(target) < 1e-5
    assert target.kernels is not None


@pytest.mark.fault("L1", "L9")
@pytest.mark.parametrize(("kind", "temperature"), [("llama", 0.8), ("gemma3", 0.0), ("phi3", 0.0)])
def test_text_is_that_of_plain_decoding(kind: str, temperature: float) -> None:
    """Windows of 8 are passed by prompt and text."""
    model = tiny_model(kind)
    call: dict[str, Any] = {"max_new_tokens": 8}
    if temperature:
        call |= {"do_sample": True, "temperature": temperature, "seed": 3}
    with decoder(model) as one:
        assert one.target.kernels is not None
        text = run(one, PROMPT, **call)
        assert text == plain(model, PROMPT, **call)
        assert text == without(model, PROMPT, **call)
        assert one.target.kernels.layout is not None
        one.check_integrity()


def test_requests_side_by_side() -> None:
    model = tiny_model("gemma3")
    prompts = [PROMPT, PROMPT[:3], PROMPT[2:]]
    with decoder(model) as one:
        sessions = [one.start(prompt, max_new_tokens=5) for prompt in prompts]
        while open_ones := [session for session in sessions if not session.finished]:
            one.step(open_ones)
        for prompt, session in zip(prompts, sessions, strict=True):
            assert session.generated == plain(model, prompt, max_new_tokens=5)
            assert session.generated == without(model, prompt, max_new_tokens=5)


class Readings(TorchFunctionMode):
    """Counts what makes a host wait for its device, but for what the interpreter does itself."""

    NAMES = ("cpu", "item", "tolist", "numpy", "nonzero", "unique", "masked_select", "equal",
             "allclose", "__bool__", "__int__", "__float__", "__index__")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        chosen = name in ("__getitem__", "__setitem__") and self._by_mask(args[1])
        if (name in self.NAMES or chosen) and not self._within_triton():
            frame = sys._getframe(1)
            self.seen[f"{frame.f_code.co_filename.rpartition('/')[2]}:{name}"] += 1
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _by_mask(index: Any) -> bool:
        """How many rows a mask of truths chooses is known on the device only."""
        parts = index if isinstance(index, tuple) else (index,)
        return any(isinstance(one, torch.Tensor) and one.dtype == torch.bool for one in parts)

    @staticmethod
    def _within_triton() -> bool:
        frame = sys._getframe(2)
        while frame is not None:
            if "/triton/" in frame.f_code.co_filename:
                return True
            frame = frame.f_back  # type: ignore[assignment]
        return False


def test_a_step_reads_the_device_twice() -> None:
    """The lattice, and the verdict. (Reading an array that was read already counts again: `.cpu()`
    and the `.numpy()` behind it are one.)"""
    model = tiny_model("llama")
    with decoder(model) as one:
        sessions = [one.start(PROMPT[k:], max_new_tokens=40) for k in range(2)]
        one.step(sessions)
        for _ in range(3):
            with Readings() as readings:
                one.step(sessions)
            assert readings.seen["lattice.py:cpu"] == 1, readings.seen
            assert readings.seen["verifying.py:cpu"] == 1, readings.seen
            others = {name for name in readings.seen if not name.endswith((":numpy", ":cpu"))}
            assert not others
            assert sum(n for name, n in readings.seen.items() if name.endswith(":cpu")) == 2


def test_a_kernel_that_fails_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptive_spec.kernels import tree_attention

    def broken(*args: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(tree_attention, "tree_attention", broken)
    model = tiny_model("llama")
    with pytest.warns(UserWarning, match="under masks.*shared memory"):
        one = decoder(model, check=True)
    with one:
        assert one.target.kernels is None
        assert run(one, PROMPT, max_new_tokens=8) == plain(model, PROMPT, max_new_tokens=8)


@pytest.mark.parametrize("part", ["attention", "verdict"])
@pytest.mark.parametrize("calls", [0, 7])
def test_a_kernel_that_fails_later_costs_nobody_a_request(
    part: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a prefill or in a step, as where a variant does not fit a GPU."""
    from adaptive_spec.kernels import tree_attention, walk

    where, name = (tree_attention, "tree_attention") if part == "attention" else (walk, "peaks")
    real, left = getattr(where, name), [calls]

    def broken(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise ValueError("out of resource: shared memory")
        return real(*args, **options)

    model = tiny_model("llama")
    wanted = without(model, PROMPT, max_new_tokens=12)
    with decoder(model) as one:
        monkeypatch.setattr(where, name, broken)
        with pytest.warns(UserWarning, match="under masks.*shared memory"):
            assert run(one, PROMPT, max_new_tokens=12) == wanted
        assert one.target.kernels is None


def test_what_runs_out_of_memory_keeps_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptive_spec.kernels import tree_attention

    real, once = tree_attention.tree_attention, [True]

    def short(*args: Any, **options: Any) -> Any:
        if args[0].shape[1] > 3 and once.pop():
            once.append(False)
            raise RuntimeError("Triton Error [CUDA]: out of memory")
        once.append(False) if not once else None
        return real(*args, **options)

    model = tiny_model("llama")
    wanted = without(model, PROMPT, max_new_tokens=6)
    with decoder(model) as one:
        session = one.start(PROMPT, max_new_tokens=6)
        session.step()
        monkeypatch.setattr(tree_attention, "tree_attention", short)
        while not session.finished:
            session.step()
        assert session.generated == wanted
        assert one.target.kernels is not None


@pytest.mark.parametrize("wrong", ["top", "order"])
def test_a_verdict_that_is_wrong_is_seen_at_the_start(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adaptive_spec.kernels import walk

    real = walk.peaks if wrong == "top" else walk.walk

    def spoiled(*args: Any) -> Any:
        if wrong == "order":
            return real(*args).clamp(max=2)  # a walk that ends too early
        peak, top = real(*args)
        return peak, (top + 1) % args[0].shape[1]

    monkeypatch.setattr(walk, "peaks" if wrong == "top" else "walk", spoiled)
    with pytest.warns(UserWarning, match="the kernel that"):
        one = decoder(tiny_model("llama"), check=True)
    assert one.target.kernels is None


def test_the_start_takes_wide_tiles_and_split_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that decoding launches later is launched first there."""
    from adaptive_spec.kernels import tree_attention

    real, seen = tree_attention.tree_attention, set[tuple[int, bool]]()

    def watched(query: Any, key: Any, value: Any, layout: Any, **how: Any) -> Any:
        seen.add((layout.lanes, layout.longest >= 256))
        return real(query, key, value, layout, **how)

    monkeypatch.setattr(tree_attention, "tree_attention", watched)
    decoder(tiny_model("llama", max_position_embeddings=512), check=True)
    assert {lanes for lanes, _ in seen} >= {16, 64} or {lanes for lanes, _ in seen} >= {32, 64}
    assert True in {far for _, far in seen}


def test_what_the_target_costs_is_known_after_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are given up do not stay in the facts of the latency model."""
    from adaptive_spec import hf
    from adaptive_spec.kernels import tree_attention

    def broken(*args: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("no such instruction")

    facts: list[Any] = []
    real = hf.build_models

    def watched(config: Any, architecture: Any, *rest: Any) -> Any:
        facts.append(architecture)
        return real(config, architecture, *rest)

    monkeypatch.setattr(tree_attention, "tree_attention", broken)
    monkeypatch.setattr(hf, "build_models", watched)
    with pytest.warns(UserWarning, match="under masks"):
        one = decoder(tiny_model("llama"), check=True)
    assert facts == [one.target.architecture]


def test_a_kernel_that_is_wrong_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that is one too wide changes logits: the start-up check sees it."""
    made = attach.TreeKernels._mark
    monkeypatch.setattr(
        attach.TreeKernels, "_mark", lambda self, model, window: made(self, model, window and 99)
    )
    model = tiny_model("mistral", sliding_window=4)
    with pytest.warns(UserWarning, match="does not obey the mask"):
        one = decoder(model, check=True)
    assert one.target.kernels is None


def test_kernels_can_be_switched_off() -> None:
    with AdaptiveDecoder(tiny_model("llama"), {"kernels": "off"}) as one:
        assert one.target.kernels is None


def test_the_benchmark_compares_like_with_like() -> None:
    """As `bench-gpu` calls it, with sizes for an interpreter."""
    shape = Shape(2, 3, 10, heads=2, kv_heads=1, size=64)
    rows = measured(torch.device("cpu"), torch.float32, [shape], repeats=1)
    names = ["tree attention", "candidates", "children", "peaks", "walk"]
    assert [row["kernel"] for row in rows] == names
    assert not any(row["fails"] for row in rows)
    assert all(row["difference"] < 1e-4 and row["kernel_ms"] > 0 for row in rows)
    assert 0 < rows[0]["paper_ms"]["h100"] < rows[0]["paper_ms"]["l4"]


@pytest.mark.parametrize("wrong", ["ids", "rest", "chance"])
def test_the_benchmark_judges(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that is not the likeliest, a rest that is too large, children in another order."""
    cpu = torch.device("cpu")
    name = "children" if wrong == "chance" else "candidates"
    right = getattr(candidates, name)

    def spoiled(*args: Any, **how: Any) -> Any:
        found = right(*args, **how)
        if wrong == "chance":
            return replace(found, ids=found.ids.flip(1))
        if wrong == "rest":
            return replace(found, rest=found.rest + 0.01)
        ids = found.ids.clone()
        ids[1, 5] += 1
        return replace(found, ids=ids)

    monkeypatch.setattr(candidates, name, spoiled)
    measure = getattr(gpu_drafts, name)
    row = measure(cpu, torch.bfloat16, 1, 4, vocab=300)
    assert row["fails"]
    assert (row["wrong_ids"] > 0) == (wrong != "rest")
    monkeypatch.undo()
    assert not measure(cpu, torch.bfloat16, 1, 4, vocab=300)["fails"]
