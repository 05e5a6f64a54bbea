"""Training: prompts, generation with states, shards, blocks, the loss, and runs that go on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptive_spec.errors import ConfigError, TrainingError
from adaptive_spec.heads.config import HeadConfig, target_facts
from adaptive_spec.heads.digest import digest
from adaptive_spec.heads.head import Head
from adaptive_spec.heads.store import load_head
from adaptive_spec.model_facts import decoder_layers, describe, head_facts
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.training.batches import batch_of
from adaptive_spec.training.beginning import fresh_head
from adaptive_spec.training.card import read_log
from adaptive_spec.training.data import Shards
from adaptive_spec.training.generating import LOOP, PERIOD, TIMES, Written, write
from adaptive_spec.training.measuring import Measured, measure
from adaptive_spec.training.objective import Weights, _entropy, _wanted, loss
from adaptive_spec.training.prompts import (
    Fence,
    Prompt,
    arithmetic_prompts,
    code_prompts,
    fenced,
    mixed,
)
from adaptive_spec.training.run import spread
from adaptive_spec.training.settings import ShapeSection, TrainingConfig, load_training_config
from adaptive_spec.training.trainer import Run, frequent

# -- prompts ---------------------------------------------------------------------------------------


def test_prompts_of_every_kind() -> None:
    code, sums = code_prompts(1), arithmetic_prompts(50, 1)
    assert len(code) > 500
    assert {one.kind for one in code} == {"code"}
    assert code == code_prompts(1) != code_prompts(2)
    assert len({one.text for one in sums}) > 40
    picked = mixed([code, sums], [0.8, 0.2], seed=3)
    assert len(picked) == 250
    assert sum(one.kind == "arithmetic" for one in picked) == 50


def test_what_resembles_a_fenced_text_is_left_out() -> None:
    fence = Fence(["Write a function that counts the vowels in a given word, please.", "Two words"])
    given = [
        Prompt("write a function THAT counts the vowels in a given sentence", "code"),
        Prompt("Two words", "chat"),
        Prompt("Two words more than that are fine", "chat"),
        Prompt("Write a function that counts vowels.", "code"),
        Prompt("Write a function that counts vowels.", "code"),
    ]
    assert [one.text for one in fenced(given, fence)] == [given[2].text, given[3].text]


def test_a_writer_asks_nothing_that_the_fence_keeps_out(tmp_path: Path) -> None:
    """Its own prompts, put behind a fence, never come again; questions to itself among them."""
    from adaptive_spec.models import load
    from adaptive_spec.testing.tiny import save_tiny
    from adaptive_spec.training.settings import DataSection
    from adaptive_spec.training.writing import Writer

    model, tokenizer = load(save_tiny(tmp_path / "model"), "float32")
    settings = DataSection(rows=4, max_new_tokens=8, longest_prompt=400, chat=0.4)

    def asked(fence: Fence) -> list[Prompt]:
        writer = Writer(model, tokenizer, decoder_layers(model), (0, 1), settings, fence)
        writer._questions = lambda seed: [  # type: ignore[method-assign]
            Prompt(f"Which of the {seed + n} cities by the sea would you visit first?", "chat")
            for n in range(8)
        ]
        return writer._prompts(0)

    open_field = asked(Fence([]))
    assert {one.kind for one in open_field} == {"code", "chat", "arithmetic"}
    kept_out = open_field[::2]
    rest = {one.text for one in asked(Fence(one.text for one in kept_out))}
    assert rest
    assert rest.isdisjoint(one.text for one in kept_out)


# -- generation ------------------------------------------------------------------------------------


def _written(model: Any, prompts: torch.Tensor, **changes: Any) -> list[Written]:
    options = {"max_new_tokens": 20, "temperature": 0.0, "end_tokens": [3], "seed": 0, **changes}
    return list(write(model, decoder_layers(model), (0, 1), prompts, **options))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "qwen3_moe"])
def test_greedy_batches_write_what_generate_writes(kind: str) -> None:
    model = tiny_model(kind)
    prompts = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [20, 21, 22, 23]])
    found = _written(model, prompts)
    assert len(found) == 3
    for one in found:
        row = one.tokens[:4].tolist()
        want = model.generate(
            torch.tensor([row]), max_new_tokens=20, do_sample=False, eos_token_id=3, pad_token_id=0
        )[0]
        size = len(one.tokens)
        assert one.tokens.tolist() == want[:size].tolist()
        with torch.no_grad():
            states = model(want[None, :size], output_hidden_states=True).hidden_states
        taps = torch.cat([states[1][0], states[2][0]], dim=-1)[: size - 1]
        assert torch.allclose(one.taps.float(), taps, atol=0.05, rtol=0.02)
        assert torch.allclose(one.final.float(), states[-1][0, : size - 1], atol=0.05, rtol=0.02)


def test_rows_leave_when_they_end_or_run_in_circles() -> None:
    model = tiny_model("llama")
    prompts = torch.randint(4, 60, (12, 5), generator=torch.Generator().manual_seed(0))
    long = _written(model, prompts, max_new_tokens=2 * LOOP, end_tokens=[])
    ends = {int(one.tokens[9]) for one in long}
    short = _written(model, prompts, max_new_tokens=2 * LOOP, end_tokens=sorted(ends))
    assert all(len(one.tokens) <= 10 or int(one.tokens[-1]) in ends for one in short)
    for one in long:
        answer = one.tokens[one.prompt :].tolist()
        for period in range(1, PERIOD + 1):
            size = max(LOOP, TIMES * period)
            tail = answer[-size:]
            assert len(tail) < size or tail[period:] != tail[:-period]
    sampled = _written(model, prompts, temperature=1.0, seed=1)
    again = _written(model, prompts, temperature=1.0, seed=1)
    assert [one.tokens.tolist() for one in sampled] == [one.tokens.tolist() for one in again]


# -- shards ----------------------------------------------------------------------------------------


def _text(
    size: int = 12, prompt: int = 4, seed: int = 0, taps: int = 2, hidden: int = 8
) -> Written:
    draw = torch.Generator().manual_seed(seed)
    return Written(
        torch.randint(4, 60, (size,), generator=draw, dtype=torch.int32),
        prompt,
        torch.randn(size - 1, taps * hidden, generator=draw).bfloat16(),
        torch.randn(size - 1, hidden, generator=draw).bfloat16(),
    )


def test_shards_come_back_and_keep_their_bound(tmp_path: Path) -> None:
    texts = [_text(10 + i, seed=i) for i in range(5)]
    shards = Shards(tmp_path, 1 << 30)
    path = shards.add(texts)
    for mine, theirs in zip(texts, shards.read(path), strict=True):
        assert torch.equal(mine.tokens, theirs.tokens)
        assert torch.equal(mine.taps, theirs.taps)
        assert torch.equal(mine.final, theirs.final)
        assert mine.prompt == theirs.prompt
    assert shards.tokens() == sum(len(one.tokens) - one.prompt for one in texts)
    small = Shards(tmp_path, int(2.5 * path.stat().st_size))
    for _ in range(4):
        small.add(texts)
    assert [one.stem for one in small.paths()] == ["000003", "000004"]
    assert small.bytes <= small.most_bytes
    known = small.paths()
    with pytest.raises(TrainingError, match="does not fit"):
        Shards(tmp_path, known[0].stat().st_size // 2).add(texts)
    assert small.paths() == known  # nothing was given up for what cannot be kept
    (tmp_path / ".000009.safetensors.tmp").write_bytes(b"torn")
    Shards(tmp_path, 1 << 30)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_damaged_shard_and_a_full_disk_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = Shards(tmp_path, 1 << 30)
    with pytest.raises(TrainingError, match="no training data"):
        next(shards.endless(0))
    path = shards.add([_text()])
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(TrainingError, match=path.name):
        shards.read(path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adaptive_spec.heads.store.save_file", full)
    with pytest.raises(TrainingError, match="No space left"):
        shards.add([_text()])
    assert len(shards.paths()) == 1


# -- blocks and loss -------------------------------------------------------------------------------


def test_a_slot_sees_the_context_and_earlier_slots_of_its_block() -> None:
    texts = [_text(14, 4, 1), _text(9, 3, 2)]
    batch = batch_of(texts, 5, 4, True, random.Random(0))
    size = batch.tokens.shape[1]
    assert batch.mask.shape == (2, 1, 20, size + 20)
    for row, text in enumerate(texts):
        for block in range(5):
            anchor = int(batch.anchors[row, block])
            assert text.prompt - 1 <= anchor < len(text.tokens) - 1
            for slot in range(4):
                seen = batch.mask[row, 0, 4 * block + slot]
                assert seen[:size].tolist() == [place < anchor for place in range(size)]
                own = [4 * block <= key <= 4 * block + slot for key in range(20)]
                assert seen[size:].tolist() == own
                valid = anchor + slot + 1 < len(text.tokens)
                assert bool(batch.valid[row, block, slot]) == valid
    assert batch.after(2)[0, 0].tolist() == [
        min(int(batch.anchors[0, 0]) + 2 + j, size - 1) for j in range(4)
    ]


def _head(model: Any, **changes: Any) -> Head:
    torch.manual_seed(1)
    known = {**head_facts(model), "taps": (0, 1), "block": 4, "layers": 1, "rank": 8}
    config = HeadConfig(**{**known, **changes})
    ids = None if config.draft_vocab is None else torch.arange(config.draft_vocab) + 2
    head = Head(config, ids)
    head.lend(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return head


@pytest.mark.parametrize("corrector", ["none", "low_rank", "recurrent_bias", "gated", "recurrent"])
def test_the_loss_falls_on_text_that_it_sees(corrector: str) -> None:
    model = tiny_model("llama")
    texts = _written(model, torch.tensor([[5, 6, 7], [9, 10, 11], [20, 21, 22]]), end_tokens=[])
    head = _head(model, corrector=corrector, draft_vocab=50)
    learner = torch.optim.AdamW(head.parameters(), lr=5e-3)
    luck, weights = torch.Generator().manual_seed(0), Weights(slots=64)
    losses = []
    for step in range(60):
        batch = batch_of(texts, 8, 4, True, random.Random(step))
        parts = loss(head, batch, weights, luck)
        learner.zero_grad()
        parts["total"].backward()
        learner.step()
        losses.append(float(parts["corrected"].detach()))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    assert measure(head.eval(), texts).acceptance_length > 1.3


def test_a_warm_start_goes_on_where_the_target_was() -> None:
    """Keys and values of the context are those of the target's own last layer."""
    model = tiny_model("llama")
    layers = list(decoder_layers(model))
    last = len(layers) - 1
    head = fresh_head(model, ShapeSection(layers=1, draft_vocab=None), (last - 1,))
    head.fc.weight.data.copy_(torch.eye(head.config.hidden))  # the one tap, and nothing beside it
    asked = dict[str, torch.Tensor]()
    hook = layers[last].self_attn.v_proj.register_forward_hook(
        lambda module, args, out: asked.update(values=out)
    )
    states = model(torch.tensor([[5, 9, 7, 3]]), output_hidden_states=True).hidden_states
    hook.remove()
    ((_, values),) = head.context(head.fuse([states[last]]), torch.arange(4)[None])
    assert torch.allclose(values.transpose(1, 2).flatten(2), asked["values"], atol=1e-5)
    assert torch.equal(head.layers[0].mlp.up_proj.weight, layers[last].mlp.up_proj.weight)
    assert torch.equal(head.norm.weight, model.base_model.norm.weight)


def test_keys_of_further_layers_take_their_own_norms() -> None:
    model = tiny_model("llama")
    layers = list(decoder_layers(model))[-2:]
    for number, layer in enumerate(layers):
        layer.input_layernorm.weight.data.uniform_(0.5 + number, 1.0 + number)
    head = fresh_head(model, ShapeSection(layers=2, draft_vocab=None), (0,))
    states = torch.randn(1, 3, head.config.hidden)
    normed = head.hidden_norm(states)
    for mine, theirs in zip(head.layers, layers, strict=True):
        wanted = theirs.self_attn.k_proj(theirs.input_layernorm(states))
        assert torch.allclose(mine.self_attn.k_proj(normed), wanted, atol=1e-5)
        slots = mine.self_attn.k_proj(mine.input_layernorm(states))  # a slot's own keys too
        assert torch.allclose(slots, wanted, atol=1e-5)
        asked = theirs.self_attn.q_proj(theirs.input_layernorm(states))
        assert torch.allclose(mine.self_attn.q_proj(mine.input_layernorm(states)), asked, atol=1e-5)


def test_the_tap_nearest_to_the_copied_layers_begins_the_context() -> None:
    model = tiny_model("llama")
    last = len(list(decoder_layers(model))) - 1
    head = fresh_head(model, ShapeSection(layers=1, draft_vocab=None), (last - 1, last))
    size = head.config.hidden
    near, far = head.fc.weight[:, :size], head.fc.weight[:, size:]
    assert float(near.detach().diagonal().mean()) > 0.9
    assert float(far.detach().diagonal().abs().mean()) < 0.1


def test_a_target_whose_sizes_say_nothing_gets_a_head_all_the_same() -> None:
    model = tiny_model("llama")
    model.get_input_embeddings().weight.data.zero_()
    head = fresh_head(model, ShapeSection(layers=1, draft_vocab=None), (0,))
    assert head.config.embed_scale == 1.0
    assert all(bool(torch.isfinite(weight).all()) for weight in head.parameters())


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "mistral", "qwen3_moe"])
def test_slots_begin_at_a_share_of_what_the_layers_know(kind: str, warm: bool) -> None:
    model = tiny_model(kind)
    shape = ShapeSection(layers=1, block=4, draft_vocab=None, warm_start=warm)
    head = fresh_head(model, shape, (0, 1))
    head.lend(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    anchors = torch.randint(4, head.config.vocab, (1, 200))
    size = float(head.embed(anchors).pow(2).mean().sqrt())
    copied = warm and kind != "gemma3"
    wanted = 1.0
    if copied:
        states = model(anchors, output_hidden_states=True).hidden_states[-2]
        wanted = 0.1 * float(states.detach().pow(2).mean().sqrt())
    assert 0.3 * wanted < size < 1.5 * wanted
    read = head.corrector.read(anchors, head.embed(anchors))
    assert 0.1 < float(read.detach().pow(2).mean().sqrt()) < 3.0


def test_taps_and_vocabulary() -> None:
    assert spread(30) == (1, 8, 14, 20, 27)
    assert spread(36) == (1, 9, 17, 25, 33)
    assert spread(2) == (0,)
    ids = frequent(iter([_text(30, 4, seed) for seed in range(3)]), 20, [0, 1])
    assert len(ids) == 20
    assert {0, 1} <= set(ids.tolist())
    assert bool((ids[1:] > ids[:-1]).all())


def test_kinds_that_are_missing_are_left_out() -> None:
    sums = arithmetic_prompts(10, 1)
    assert mixed([[], sums], [0.5, 0.5]) != []
    assert mixed([[], []], [0.5, 0.5]) == []


def test_the_entropy_and_its_slope_are_those_of_log_probabilities() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 11, generator=draw).double().requires_grad_()
    truth = torch.randn(6, 11, generator=draw).softmax(dim=-1)
    known = torch.tensor([3, -100, 0, 10, -100, 5])
    want = -(truth * scores.float().log_softmax(dim=-1)).sum(dim=-1).mean()
    want = want + 0.3 * torch.nn.functional.nll_loss(
        scores.float().log_softmax(dim=-1), known, ignore_index=-100
    )
    found = _entropy(scores, _wanted(truth.clone(), known, 0.3))
    assert torch.allclose(found, want)
    (slope,) = torch.autograd.grad(found, scores)
    assert torch.allclose(slope, torch.autograd.grad(want, scores)[0], atol=1e-6)


# -- runs ------------------------------------------------------------------------------------------


class Pen:
    """A writer of tiny texts."""

    def __init__(self, model: Any) -> None:
        self.model, self.asked = model, []

    def batches(self, batch: int = 0) -> Iterator[list[Written]]:
        while True:
            self.asked.append(batch)
            draw = torch.Generator().manual_seed(batch)
            yield _written(self.model, torch.randint(4, 60, (8, 5), generator=draw), end_tokens=[])
            batch += 1

    def held_out(self, count: int) -> list[Written]:
        draw = torch.Generator().manual_seed(99)
        return _written(self.model, torch.randint(4, 60, (count, 5), generator=draw), end_tokens=[])


SETTINGS = TrainingConfig.model_validate(
    {
        "data": {"tokens": 400, "first_tokens": 150},
        "learning": {
            "steps": 8,
            "sequences": 2,
            "anchors": 4,
            "slots": 16,
            "write_every": 3,
            "check_every": 4,
            "held_out": 3,
            "warmup": 2,
        },
    }
)


def _run(folder: Path, model: Any, settings: TrainingConfig = SETTINGS, **changes: Any) -> Run:
    facts = {**target_facts(describe(model)), "digest": digest(model)}
    head = _head(model, **{"corrector": "gated", **changes})
    return Run(folder, settings, head, facts, Pen(model), lambda *_: None, "tiny")  # type: ignore[arg-type]


def test_a_run_writes_learns_checks_and_goes_on(tmp_path: Path) -> None:
    model = tiny_model("llama")
    run = _run(tmp_path, model)
    assert not run.resume()
    run.write(150)
    first = run.written()
    assert first >= 150
    run.learn()
    assert run.step == 8
    assert run.written() > first  # more was written on the way
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]
    assert {"corrected", "base", "accepted", "acceptance_length", "written_tokens"} <= set(lines[0])
    assert (tmp_path / "head" / "model.safetensors").exists()
    card = (tmp_path / "head" / "README.md").read_text()
    assert "Draft head for tiny" in card
    assert (tmp_path / "head" / "curves.png").read_bytes().startswith(b"\x89PNG")

    more = SETTINGS.model_copy(
        update={"learning": SETTINGS.learning.model_copy(update={"steps": 12})}
    )
    again = _run(tmp_path, model, more)
    assert again.resume()
    assert again.step == 8
    assert torch.equal(again.head.fc.weight, run.head.fc.weight)
    mine, theirs = again._learner.state_dict()["state"], run._learner.state_dict()["state"]
    assert torch.equal(mine[0]["exp_avg"], theirs[0]["exp_avg"])
    again.learn()
    assert again.step == 12


def test_a_run_that_begins_with_a_head_keeps_what_that_head_is_worth(tmp_path: Path) -> None:
    """Its weights, words and scale, other text; interrupted at once, it goes on with the same."""
    model = tiny_model("llama")
    first = _run(tmp_path / "one", model, draft_vocab=40)
    first.write(60)
    with torch.no_grad():
        first.head.draft_ids += 3
    first.head.lend(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    first.learn()
    stored = load_head(tmp_path / "one" / "head")
    assert stored.training["batches"] > 0

    second = _run(tmp_path / "two", model, draft_vocab=40)
    second.begin(stored)
    second.write(60)
    again = _run(tmp_path / "two", model, draft_vocab=40)  # interrupted while writing
    assert again.resume()
    assert again.begun == dict(stored.training)
    for name, value in stored.head.state_dict().items():
        assert torch.equal(again.head.state_dict()[name], value), name
    mine = {tuple(one.tokens.tolist()) for one in again.shards.read(again.shards.paths()[0])}
    theirs = {tuple(one.tokens.tolist()) for one in first.shards.read(first.shards.paths()[0])}
    assert mine != theirs
    again.head.lend(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    again.learn()
    steps = [line["step"] for line in read_log(tmp_path / "two" / "log.jsonl")]
    assert steps == [0, 4, 8]
    assert "begun with" in (tmp_path / "two" / "head" / "README.md").read_text()


def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    run = _run(tmp_path, model)
    run.write(60)
    learn, calls = run._learn_one, iter(range(100))

    def stop(*args: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return learn(*args)

    monkeypatch.setattr(run, "_learn_one", stop)
    with pytest.raises(KeyboardInterrupt):
        run.learn()
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 2, "torn')
    again = _run(tmp_path, model)
    assert again.resume()
    assert again.step == 2
    again.learn()
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [4, 8]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_check_that_is_cut_off_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    run = _run(tmp_path, model)
    run.write(60)

    def cut_off(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("adaptive_spec.training.trainer.write_card", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run.learn()
    for _ in range(3):
        again = _run(tmp_path, model)
        assert again.resume()
        again.learn()
    assert again.step == SETTINGS.learning.steps
    assert "Draft head for tiny" in (tmp_path / "head" / "README.md").read_text()
    assert load_head(tmp_path / "head").training["step"] == SETTINGS.learning.steps


def test_the_newest_head_is_kept_unless_a_former_one_was_clearly_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model = None, tiny_model("llama")
    kept = []
    run = _run(tmp_path, model)
    run.write(60)
    for step, length in enumerate([1.5, 2.0, 1.95, 1.85, 1.91, 2.3, 1.0]):
        found = Measured((0.5,), length, 1.0, 1.0, error=0.1)
        monkeypatch.setattr("adaptive_spec.training.trainer.measure", lambda *_, f=found: f)
        run.step = step
        run.check([])
        kept.append(load_head(tmp_path / "head").training["step"])
    assert kept == [0, 1, 2, 2, 4, 5, 5]


def test_the_error_of_a_measurement_is_that_of_its_texts() -> None:
    model = tiny_model("llama")
    draw = torch.Generator().manual_seed(0)
    texts = _written(model, torch.randint(4, 60, (12, 5), generator=draw), end_tokens=[])
    found = measure(_head(model).eval(), texts)
    assert found.acceptance_length > 1.0
    assert found.error > 0.0
    twice = measure(_head(model).eval(), [texts[0]] * 4)
    assert twice.error < 0.5 * found.error + 0.2  # the same text again says little new
    with pytest.raises(TrainingError, match="no held-out answer"):
        measure(_head(model).eval(), [_text(6)])


def test_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    from adaptive_spec.training.run import _alone

    first, second = _alone(tmp_path / "run"), _alone(tmp_path / "run")
    with first, pytest.raises(TrainingError, match="another process"), second:
        pass
    with _alone(tmp_path / "run"):  # free again
        pass


def test_a_run_without_a_corrector_begins_with_a_head_that_has_one(tmp_path: Path) -> None:
    """How the head to compare with is made: the rest of the weights, and no corrector."""
    model = tiny_model("llama")
    first = _run(tmp_path / "one", model, draft_vocab=40)
    first.write(60)
    first.head.lend(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    first.learn()
    given = load_head(tmp_path / "one" / "head")
    bare = _run(tmp_path / "two", model, draft_vocab=40, corrector="none")
    assert bare.fits(given)
    bare.begin(given)
    assert bare.head.config.corrector == "none"
    assert torch.equal(bare.head.fc.weight, given.head.fc.weight)
    assert torch.equal(bare.head.draft_ids, given.head.draft_ids)
    assert bare.head.config.embed_scale == given.head.config.embed_scale
    bare.write(60)
    bare.head.lend(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    bare.learn()
    assert not _run(tmp_path / "three", model, draft_vocab=40, block=5).fits(given)
    assert not _run(tmp_path / "four", model, draft_vocab=40).fits(load_head(tmp_path / "two/head"))


def test_a_full_disk_ends_a_run_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    run = _run(tmp_path, model)
    run.write(60)
    run.learn()
    weights = (tmp_path / "head" / "model.safetensors").read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adaptive_spec.heads.store.save_file", full)
    run._best = 0.0
    with pytest.raises(TrainingError, match="No space left"):
        run.check([])
    assert (tmp_path / "head" / "model.safetensors").read_bytes() == weights
    monkeypatch.undo()
    assert _run(tmp_path, model).resume()


def test_a_writer_pads_within_a_span_and_keeps_what_is_held_out_apart(tmp_path: Path) -> None:
    from adaptive_spec.models import load
    from adaptive_spec.testing.tiny import save_tiny
    from adaptive_spec.training.settings import DataSection
    from adaptive_spec.training.writing import SPREAD, Writer

    model, tokenizer = load(save_tiny(tmp_path / "model"), "float32")
    settings = DataSection(rows=6, max_new_tokens=8, longest_prompt=400, chat=0.0)
    writer = Writer(model, tokenizer, decoder_layers(model), (0, 1), settings, Fence([]))
    held = writer.held_out(4)
    source = writer.batches()
    texts = [one for _ in range(6) for one in next(source)]

    def prompts(some: list[Written]) -> set[tuple[int, ...]]:
        return {tuple(one.tokens[: one.prompt].tolist()) for one in some}

    assert len(held) >= 4
    assert prompts(held).isdisjoint(prompts(texts))
    assert len(prompts(texts)) == len(texts)  # none is asked twice
    later = Writer(model, tokenizer, decoder_layers(model), (0, 1), settings, Fence([]))
    later.held_out(4)  # has prompts of the first batches wait
    other = prompts(next(later.batches(40)))
    assert len(other & prompts(texts)) <= len(other) // 2
    blank = tokenizer("\n", add_special_tokens=False).input_ids[0]
    marked = [one.tokens[: one.prompt].tolist() for one in texts]
    runs = [max(len(list(g)) if k == blank else 0 for k, g in groupby(ids)) for ids in marked]
    assert 0 < max(runs) <= SPREAD + 3  # the templates have blank lines of their own
    assert len({one.prompt for one in texts}) > 1


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    run = _run(tmp_path, model)
    run.write(150)
    with pytest.raises(TrainingError, match="another head"):
        _run(tmp_path, model, block=5).resume()
    other = _run(tmp_path, model)
    other._target = {**other._target, "vocab": 1}
    with pytest.raises(TrainingError, match="another target"):
        other.resume()
    (tmp_path / "state.safetensors").write_text("{")
    with pytest.raises(TrainingError, match="taken up"):
        _run(tmp_path, model).resume()


def test_settings_are_strict(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[learning]\nsteps = 5\n[head]\nblock = 4\n")
    found = load_training_config(path)
    assert (found.learning.steps, found.head.block) == (5, 4)
    for text, word in (
        ("[learning]\nstep = 5", "step"),
        ("[head]\nblock = 0", "block"),
        ("x", "x"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=word):
            load_training_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_training_config(tmp_path / "none.toml")
    assert load_training_config(None) == TrainingConfig()


# -- the whole way ---------------------------------------------------------------------------------


SMALL_RUN = """
[head]
layers = 1
block = 3
draft_vocab = 200
rank = 8
[data]
tokens = 300
first_tokens = 100
rows = 6
max_new_tokens = 24
longest_prompt = 200
code = 0.5
chat = 0.0
arithmetic = 0.5
[learning]
steps = 4
sequences = 2
anchors = 4
slots = 16
check_every = 2
write_every = 2
held_out = 2
"""


def test_train_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head for a saved tiny model: trained, taken up again, and used by name."""
    from adaptive_spec import prompts
    from adaptive_spec.cli.main import run as command
    from adaptive_spec.hf import AdaptiveDecoder
    from adaptive_spec.models import load
    from adaptive_spec.testing.tiny import save_tiny
    from adaptive_spec.testing.yardsticks import plain
    from adaptive_spec.testing.yardsticks import run as decode

    asked: list[str] = []

    fenced_off = [one.text for one in arithmetic_prompts(400, 5)]

    def texts(name: str, **options: Any) -> list[str]:
        asked.append(name)
        return fenced_off

    monkeypatch.setattr(prompts, "texts", texts)
    model = save_tiny(tmp_path / "model")
    (tmp_path / "run.toml").write_text(SMALL_RUN)
    out = tmp_path / "out"
    call = ["train", "--model", model, "--out", str(out), "--config", str(tmp_path / "run.toml")]
    assert command([*call, "--threads", "1", "--json"]) == 0
    assert asked == ["humaneval", "chat"]
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    wordy = ("hours into minutes and into", "five more numbers and say", "of them cost, and what")
    assert any(words in text for text in fenced_off for words in wordy)  # sums that it would ask
    loaded, tokenizer = load(model, "float32")
    prompted = [
        tokenizer.decode(one.tokens[: one.prompt].tolist())
        for path in (out / "data").glob("*.safetensors")
        for one in Shards(out / "data", 1 << 30).read(path)
    ]
    assert any("multiples of" in text or "def " in text for text in prompted)
    assert not any(words in text for text in prompted for words in wordy)

    (tmp_path / "run.toml").write_text(SMALL_RUN.replace("steps = 4", "steps = 6"))
    assert command([*call, "--threads", "1"]) == 0
    assert len((out / "log.jsonl").read_text().splitlines()) == 3
    (tmp_path / "run.toml").write_text(SMALL_RUN.replace("block = 3", "block = 4"))
    assert command([*call, "--threads", "1"]) == 1

    config = {"policy": "fixed:6", "drafter": f"causal_parallel:{out / 'head'}+suffix"}
    with AdaptiveDecoder(loaded, config) as decoder:
        prompt = list(b"one two one two one")
        assert decode(decoder, prompt, max_new_tokens=20) == plain(
            loaded, prompt, max_new_tokens=20
        )


def test_a_report_of_a_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from adaptive_spec.cli.main import run as command
    from adaptive_spec.heads.store import save_head
    from adaptive_spec.models import load
    from adaptive_spec.testing.tiny import save_tiny

    name = save_tiny(tmp_path / "model")
    model, _ = load(name, "float32")
    facts = {**target_facts(describe(model)), "digest": digest(model)}
    head = _head(model, corrector="recurrent", block=5)
    for parameter in head.corrector.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    save_head(tmp_path / "head", head, facts, dtype=torch.float32)
    (tmp_path / "p.jsonl").write_text('{"prompt": "one two one two"}\n')
    call = f"heads report {tmp_path / 'head'} --model {name} --prompts {tmp_path / 'p.jsonl'}"
    png = tmp_path / "curves.png"
    options = f"--max-new-tokens 24 --dtype float32 --threads 1 --png {png}"
    assert command([*call.split(), *options.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["tau_by_budget"]) == ["1", "2", "4", "8", "16", "32", "64"]
    assert all(1.0 <= value <= 6.0 for value in found["tau_by_budget"].values())
    kinds = {"corrected", "uncorrected", "zeroed"}
    assert set(found["faithfulness"]) == kinds == set(found["branch_hits"])
    assert found["faithfulness"]["uncorrected"] is None
    assert found["faithfulness"]["corrected"] != found["faithfulness"]["zeroed"]
    assert set(found["branch_hits"]["corrected"]) == {"1", "2", "3", "4"}
    assert found["branch_places"] == 24  # from the prompt's last token to the last but one
    assert found["coverage"] == 1.0
    assert found["draft_share"] > 0
    assert png.read_bytes().startswith(b"\x89PNG")
    none = _head(model, corrector="none", block=5)
    save_head(tmp_path / "none", none, facts, dtype=torch.float32)
    assert command([*call.split(), *options.split(), "--against", str(tmp_path / "none")]) == 0
    assert "branches 2 to 5, uncorrected" in capsys.readouterr().out
    for other in (head, _head(model, corrector="none", block=6)):
        save_head(tmp_path / "other", other, facts, dtype=torch.float32)
        wrong = [*call.split(), *options.split(), "--against", str(tmp_path / "other")]
        assert command(wrong) == 2
        assert "trained without corrector" in capsys.readouterr().err


def test_bad_settings_of_a_run_are_named(tmp_path: Path) -> None:
    from adaptive_spec.cli.main import run as command
    from adaptive_spec.testing.tiny import save_tiny

    model, config = save_tiny(tmp_path / "model"), tmp_path / "run.toml"
    call = ["train", "--model", model, "--out", str(tmp_path / "out"), "--config", str(config)]
    for text in ("[head]\ntaps = [9]", "[head]\ncorrector = 'x'", "[head]\ndraft_vocab = 100000"):
        config.write_text(text)
        assert command([*call, "--threads", "1"]) == 2
    (tmp_path / "file").write_text("")
    config.write_text("")
    call[call.index(str(tmp_path / "out"))] = str(tmp_path / "file")
    assert command([*call, "--threads", "1"]) == 2
