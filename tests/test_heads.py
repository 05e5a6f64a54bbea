"""Draft heads: shapes, masks, context in slots, correctors, storage (rows C5, M2, X1)."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptive_spec.cache import SlotPool
from adaptive_spec.drafters.causal_parallel import CausalParallelDrafter, for_target
from adaptive_spec.errors import HeadError
from adaptive_spec.heads.blocks import answers
from adaptive_spec.heads.config import CORRECTORS, HeadConfig, target_facts
from adaptive_spec.heads.context import ContextSlots
from adaptive_spec.heads.corrector import LowRank
from adaptive_spec.heads.digest import digest
from adaptive_spec.heads.head import Head
from adaptive_spec.heads.store import WEIGHTS, Stored, load_head, save_head
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.model_facts import describe, head_facts
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import check_state, plain, run
from adaptive_spec.training.batches import batch_of
from adaptive_spec.training.generating import Written

PROMPT = [5, 6, 7, 8, 5, 6, 9, 10, 5, 6, 11, 12]


def tiny_head(model: Any, seed: int = 0, **changes: Any) -> Head:
    """A random head for a tiny model, with the model's weights lent to it."""
    torch.manual_seed(seed)
    known = {**head_facts(model), "taps": (0, 1), "block": 4, "layers": 2, "rank": 8}
    config = HeadConfig(**{**known, **changes})
    ids = None if config.draft_vocab is None else torch.arange(config.draft_vocab) + 2
    head = Head(config, ids).eval()
    for name, weight in head.named_parameters():
        if "corrector" in name:
            torch.nn.init.normal_(weight, std=0.5)
    torch.nn.init.uniform_(head.norm.weight, 0.5, 1.5)
    head.lend(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return head


def facts_of(model: Any) -> dict[str, Any]:
    return {**target_facts(describe(model)), "digest": digest(model)}


def written(model: Any, tokens: list[int], prompt: int, taps: tuple[int, ...]) -> Written:
    """A text with its states, from a forward over all of it."""
    with torch.no_grad():
        found = model(torch.tensor([tokens]), output_hidden_states=True)
    states = [found.hidden_states[tap + 1][0, :-1] for tap in taps]
    final = found.hidden_states[-1][0, :-1]
    return Written(torch.tensor(tokens, dtype=torch.int32), prompt, torch.cat(states, -1), final)


@pytest.mark.fault("L1", "C5")
@pytest.mark.parametrize("corrector", CORRECTORS)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "qwen3_moe"])
def test_text_and_state_do_not_depend_on_the_head(kind: str, corrector: str) -> None:
    model = tiny_model(kind)
    want = plain(model, PROMPT, max_new_tokens=30)
    drafter = CausalParallelDrafter(tiny_head(model, corrector=corrector), 512)
    config = {"policy": "fixed:9"}
    with AdaptiveDecoder(model, config, drafter=drafter) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=30)
        while not session.finished:
            session.step()
            check_state(session)
        assert session.generated == want
        assert session.stats.num_draft_tokens > 0
        assert session.stats.draft_faults == 0


@pytest.mark.fault("L12")
@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.2])
@pytest.mark.parametrize("coupled", [True, False])
def test_sampled_text_does_not_depend_on_the_head(temperature: float, coupled: bool) -> None:
    model = tiny_model("llama")
    call = {"max_new_tokens": 40, "do_sample": True, "temperature": temperature, "seed": 5}
    want = plain(model, PROMPT, **call)
    drafter = CausalParallelDrafter(tiny_head(model, corrector="gated"), 512, coupled=coupled)
    with AdaptiveDecoder(model, {"policy": "fixed:9"}, drafter=drafter) as decoder:
        assert run(decoder, PROMPT, **call) == want


@pytest.mark.fault("C5")
@pytest.mark.parametrize("corrector", CORRECTORS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_drafts_after_many_steps_are_those_of_training(corrector: str, temperature: float) -> None:
    """Every node of every tree has the log-probability that one pass over the whole text gives."""
    model = tiny_model("llama")
    head = tiny_head(model, corrector=corrector)
    drafter = CausalParallelDrafter(head, 512, candidates=1000, siblings=4, coupled=False)
    seen: list[tuple[list[int], Any]] = []
    propose = drafter.propose

    def spy(requests: Any, plans: Any) -> Any:
        trees = propose(requests, plans)
        seen.append((list(requests[0].tokens), trees[0]))
        return trees

    drafter.propose = spy  # type: ignore[method-assign]
    call = {"temperature": temperature, "do_sample": temperature > 0, "max_new_tokens": 30}
    if temperature == 0:
        del call["temperature"]
    with AdaptiveDecoder(model, {"policy": "fixed:12"}, drafter=drafter) as decoder:
        run(decoder, PROMPT, **call)
    assert len(seen) > 5
    deepest = 0
    for tokens, tree in seen:
        text = written(model, [*tokens, 1, 1], len(tokens), head.config.taps)
        hidden = _slots(head, text, len(tokens) - 1)
        paths: list[list[int]] = []
        for node, parent in enumerate(tree.parent.tolist()):
            above = [tokens[-1]] if parent == -1 else paths[parent]
            token = int(tree.token[node])
            want = _along(head, hidden, above, temperature or 1.0)[token]
            assert tree.logq[node] == pytest.approx(float(want), abs=1e-4)
            paths.append([*above, token])
            deepest = max(deepest, len(above))
    assert deepest > 1


@torch.no_grad()
def _slots(head: Head, text: Written, anchor: int) -> torch.Tensor:
    """[D, H] states of the slots after ``anchor``, by the pass that training uses."""

    class Here:
        def sample(self, possible: Any, count: int) -> list[int]:
            return [anchor]

        def choices(self, possible: Any, k: int) -> list[int]:
            return []

    block = head.config.block
    batch = batch_of([text], 1, block, head.config.causal, Here())  # type: ignore[arg-type]
    return answers(head, batch).hidden[0, 0]


@torch.no_grad()
def _along(head: Head, hidden: torch.Tensor, path: list[int], heat: float) -> torch.Tensor:
    """[V] log-probabilities of what follows ``path``, the anchor first, as training has them."""
    ids = torch.tensor(path)
    states = head.corrector.states(ids, head.embed(ids))
    return (head.logits(hidden[len(path) - 1], states[-1]).float() / heat).log_softmax(-1)


@torch.no_grad()
def test_a_head_that_knows_the_target_is_accepted_for_200_tokens() -> None:
    """A target whose next token depends on the last alone, and a head that was told so."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    embeddings = model.get_input_embeddings().weight
    embeddings /= embeddings.pow(2).mean(dim=-1, keepdim=True).sqrt()  # the final norm is linear
    head = tiny_head(model, corrector="low_rank", rank=embeddings.shape[1], injection=False)
    assert isinstance(head.corrector, LowRank)
    assert head.masks is not None
    head.masks.zero_()
    for layer in head.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    head.corrector.inward.weight.copy_(torch.eye(embeddings.shape[1]))
    sure = 50.0  # a chain of best guesses, whatever the budget is spread over
    head.corrector.outward.copy_(sure * head.output * model.model.norm.weight)
    drafter = CausalParallelDrafter(head, 512, candidates=1000)
    config = {"policy": f"fixed:{4 * head.config.depth}"}
    with AdaptiveDecoder(model, config, drafter=drafter) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=200)
        while not session.finished:
            session.step()
        assert session.generated == plain(model, PROMPT, max_new_tokens=200)
        levels = head.config.depth
        assert session.stats.acceptance_histogram[levels] >= 200 // (levels + 1) - 1
        assert session.stats.steps <= 200 // (levels + 1) + 2


@pytest.mark.parametrize("corrector", ["low_rank", "recurrent_bias", "gated", "recurrent"])
def test_branches_have_children_of_their_own(corrector: str) -> None:
    """The same depth under another parent: without a corrector equal, with one different."""
    model = tiny_model("llama")

    def second_level(kind: str) -> list[list[tuple[int, float]]]:
        head = tiny_head(model, corrector=kind)
        drafter = CausalParallelDrafter(head, 512, siblings=4)
        trees: list[Any] = []
        propose = drafter.propose
        drafter.propose = lambda r, p: trees.append(propose(r, p)) or trees[-1]  # type: ignore
        with AdaptiveDecoder(model, {"policy": "fixed:24"}, drafter=drafter) as decoder:
            run(decoder, PROMPT, max_new_tokens=4)
        tree = trees[0][0]
        parents = [i for i in range(len(tree)) if tree.parent[i] == -1]
        found = []
        for parent in parents:
            below = np.flatnonzero(tree.parent == parent)[:2]
            found.append([(int(tree.token[i]), round(float(tree.logq[i]), 5)) for i in below])
        return [one for one in found if len(one) == 2]

    bare, own = second_level("none"), second_level(corrector)
    assert len(bare) > 1
    assert all(one == bare[0] for one in bare)
    assert len(own) > 1
    assert any(one != own[0] for one in own)


def test_packed_requests_draft_what_they_draft_alone() -> None:
    model = tiny_model("qwen3")
    head = tiny_head(model, corrector="gated")
    prompts = [PROMPT, PROMPT[3:], PROMPT[:2], [9]]

    def trees(groups: list[list[list[int]]]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for group in groups:
            drafter = CausalParallelDrafter(head, 512)
            propose = drafter.propose

            def spy(requests: Any, plans: Any, propose: Any = propose) -> Any:
                answer = propose(requests, plans)
                for request, tree in zip(requests, answer, strict=True):
                    found.setdefault(request.id, []).append((tree.token.tolist(), tree.logq))
                return answer

            drafter.propose = spy  # type: ignore[method-assign]
            with AdaptiveDecoder(model, {"policy": "fixed:6"}, drafter=drafter) as decoder:
                sessions = [
                    decoder.start(p, max_new_tokens=12, request_id=str(prompts.index(p)))
                    for p in group
                ]
                while live := [s for s in sessions if not s.finished]:
                    decoder.step(live)
        return found

    together, alone = trees([prompts]), trees([[p] for p in prompts])
    assert together.keys() == alone.keys()
    for name, steps in alone.items():
        for (mine, q), (theirs, p) in zip(steps, together[name], strict=True):
            assert mine == theirs
            assert np.allclose(q, p, atol=1e-4)


def test_a_pruned_vocabulary_drafts_its_own_tokens() -> None:
    model = tiny_model("llama")
    head = tiny_head(model, draft_vocab=20, corrector="low_rank")
    drafter = CausalParallelDrafter(head, 512)
    tokens: set[int] = set()
    propose = drafter.propose

    def spy(requests: Any, plans: Any) -> Any:
        answer = propose(requests, plans)
        tokens.update(answer[0].token.tolist())
        return answer

    drafter.propose = spy  # type: ignore[method-assign]
    with AdaptiveDecoder(model, {"policy": "fixed:16"}, drafter=drafter) as decoder:
        assert run(decoder, PROMPT, max_new_tokens=20) == plain(model, PROMPT, max_new_tokens=20)
    assert tokens
    assert tokens <= set(range(2, 22))


def test_slots_of_requests_that_are_gone_are_free() -> None:
    model = tiny_model("llama")
    drafter = CausalParallelDrafter(tiny_head(model), 512)
    with AdaptiveDecoder(model, {"policy": "fixed:4"}, drafter=drafter) as decoder:
        for _ in range(5):
            run(decoder, PROMPT, max_new_tokens=10)
        assert drafter.memory.context.pool.high_water == 0
        assert not drafter.memory._known


def test_taps_that_are_not_finite_cost_no_draft() -> None:
    model = tiny_model("llama")

    class Poisoned(CausalParallelDrafter):
        nodes = 0

        def commit(self, requests: Any, news: Any) -> None:
            for new in news:
                bad = {layer: taps * float("nan") for layer, taps in new.taps.items()}
                super().commit(requests, [replace(new, taps=bad)])

        def propose(self, requests: Any, plans: Any) -> Any:
            found = super().propose(requests, plans)
            self.nodes += min(len(tree) for tree in found)
            assert all(np.isfinite(tree.logq).all() for tree in found)
            return found

    drafter = Poisoned(tiny_head(model), 512)
    with AdaptiveDecoder(model, {"policy": "fixed:4"}, drafter=drafter) as decoder:
        assert run(decoder, PROMPT, max_new_tokens=10) == plain(model, PROMPT, max_new_tokens=10)
    assert drafter.nodes > 10


def test_a_context_that_holds_nothing_non_finite() -> None:
    """After a forward with NaN in it the draft slots are cleared, and the next draft is sound."""
    model = tiny_model("llama")
    head = tiny_head(model)
    context = ContextSlots(head.config, SlotPool(8, 64), torch.float32, torch.device("cpu"))
    extend = context.extend(4)
    shape = (1, head.config.kv_heads, 4, head.config.head_dim)
    extend[0](torch.full(shape, float("nan")), torch.zeros(shape))
    context.clear()
    keys, values = context.extend(4)[0](torch.zeros(shape), torch.zeros(shape))
    assert torch.isfinite(keys).all()
    assert torch.isfinite(values).all()


# -- storage ---------------------------------------------------------------------------------------


@pytest.mark.fault("M2")
def test_a_stored_head_comes_back(tmp_path: Path) -> None:
    model = tiny_model("llama")
    head = tiny_head(model, corrector="recurrent", draft_vocab=30)
    facts = facts_of(model)
    save_head(tmp_path, head, facts, {"step": 3}, dtype=torch.float32)
    found = load_head(tmp_path)
    assert found.head.config == head.config
    assert found.training == {"step": 3}
    for name, value in head.state_dict().items():
        assert torch.equal(found.head.state_dict()[name], value), name
    drafter = for_target(found, model)
    with AdaptiveDecoder(model, {"policy": "fixed:4"}, drafter=drafter) as decoder:
        assert run(decoder, PROMPT, max_new_tokens=10) == plain(model, PROMPT, max_new_tokens=10)


@pytest.mark.fault("M2")
@pytest.mark.parametrize("field", ["model_type", "layers", "hidden", "vocab", "digest"])
def test_a_head_for_another_target_is_refused(field: str) -> None:
    model = tiny_model("llama")
    facts = facts_of(model)
    other = {**facts, field: "x" if isinstance(facts[field], str) else facts[field] + 1}
    with pytest.raises(HeadError, match=field):
        for_target(Stored(tiny_head(model), other), model)


def test_the_digest_sees_a_change_and_no_dtype() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    before = digest(model)
    assert digest(model.float()) == before
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1
    assert digest(model) != before


@pytest.mark.fault("X1", "M2")
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": "other"}, "format"),
        ({"version": 2}, "version"),
        ({"head": []}, "head"),
        ({"head.block": 0}, "block"),
        ({"head.block": "8"}, "block"),
        ({"head.taps": "0"}, "taps"),
        ({"head.taps": []}, "taps"),
        ({"head.corrector": "x"}, "corrector"),
        ({"head.auto_map": "x.y"}, "auto_map"),
        ({"head.hidden": 8}, "expected"),
        ({"head.layers": 3}, "layers.2"),
        ({"head.rope_theta": "big"}, "rope_theta"),
        ({"head.causal": 1}, "causal"),
        ({"head.layers": 10**9}, "layers"),
        ({"head.intermediate": 10**6}, "expected"),
        ({"head.intermediate": 10**9}, "intermediate"),
        ({"head.mask_token": 10**9}, "mask_token"),
        ({"head.own_masks": False}, "mask_token"),
        ({"head.own_masks": False, "head.mask_token": "x"}, "mask_token"),
        ({"target": {}}, "target.model_type"),
        ({"target.digest": None}, "target.digest"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map"),
    ],
    ids=str,
)
def test_damaged_configs_are_refused_by_field(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    model = tiny_model("llama")
    save_head(tmp_path, tiny_head(model), facts_of(model))
    about = json.loads((tmp_path / "config.json").read_text())
    for key, value in change.items():
        section, _, name = key.rpartition(".")
        (about[section] if section else about)[name] = value
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(HeadError, match=field):
        load_head(tmp_path)


@pytest.mark.fault("X1")
def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with pytest.raises(HeadError, match="config"):
        load_head(tmp_path)
    head = tiny_head(model)
    save_head(tmp_path, head, facts_of(model))
    whole = (tmp_path / WEIGHTS).read_bytes()
    bomb = (1 << 62).to_bytes(8, "little") + b"{}"
    header = json.dumps({"fc.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}})
    lying = len(header).to_bytes(8, "little") + header.encode() + b"\x00" * 8
    pickled = pickle.dumps({"fc.weight": [1.0]})
    for damage in (b"", whole[: len(whole) // 2], b"\x00" * 100, bomb, lying, pickled):
        (tmp_path / WEIGHTS).write_bytes(damage)
        with pytest.raises(HeadError, match="safetensors"):
            load_head(tmp_path)
    for bad in ("inf", "nan"):
        with torch.no_grad():
            head.fc.weight[0, 0] = float(bad)
        save_head(tmp_path, head, facts_of(model))
        with pytest.raises(HeadError, match=r"fc\.weight"):
            load_head(tmp_path)


@pytest.mark.fault("X1")
def test_files_that_no_head_has_written(tmp_path: Path) -> None:
    model = tiny_model("llama")
    head = tiny_head(model, draft_vocab=20)
    save_head(tmp_path, head, facts_of(model))
    sound = load_file(tmp_path / WEIGHTS)
    for change, field in (
        ({"extra": torch.zeros(2)}, "extra"),
        ({"fc.weight": sound["fc.weight"].int()}, r"fc\.weight"),
        ({"fc.weight": sound["fc.weight"].double()}, r"fc\.weight"),
        ({"fc.weight": sound["fc.weight"].to(torch.float8_e4m3fn)}, r"fc\.weight"),
        ({"draft_ids": sound["draft_ids"].float()}, "draft_ids"),
        ({"draft_ids": sound["draft_ids"].flip(0)}, "draft_ids"),
    ):
        save_file({**sound, **change}, tmp_path / WEIGHTS)
        with pytest.raises(HeadError, match=field):
            load_head(tmp_path)
    for text in ("[" * 100_000, '{"head": ' + "9" * 5000 + "}", "[]", "\ud800"):
        (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(HeadError, match=r"config\.json"):
            load_head(tmp_path)


def test_saved_and_loaded_by_the_names_that_people_know(tmp_path: Path) -> None:
    model = tiny_model("llama")
    Stored(tiny_head(model), facts_of(model), {"step": 3}).save_pretrained(tmp_path)
    assert Stored.from_pretrained(tmp_path).training == {"step": 3}
    assert Stored.from_pretrained("smollm2-135m").target["vocab"] == 49152
    with pytest.raises(HeadError, match="a folder or a hub id"):
        Stored.from_pretrained("nothing of the kind")


@pytest.mark.fault("X2")
def test_code_beside_a_head_is_not_run(tmp_path: Path) -> None:
    model = tiny_model("llama")
    save_head(tmp_path, tiny_head(model), facts_of(model))
    trace = tmp_path / "trace"
    for name in ("__init__.py", "modeling_head.py", "config.py"):
        (tmp_path / name).write_text(f"open({str(trace)!r}, 'w').close()\n")
    assert for_target(load_head(tmp_path), model).head.config.block == 4
    assert not trace.exists()


@pytest.mark.fault("M2")
def test_taps_that_the_target_does_not_have_are_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(HeadError, match="taps"):
        for_target(Stored(tiny_head(model, taps=(0, 99)), facts_of(model)), model)


def test_inference_mode_leaves_a_head_usable() -> None:
    model = tiny_model("llama")
    drafter = CausalParallelDrafter(tiny_head(model), 512)
    want = plain(model, PROMPT, max_new_tokens=12)
    with AdaptiveDecoder(model, {"policy": "fixed:6"}, drafter=drafter) as decoder:
        for inference in (True, False, True, False):
            with torch.inference_mode(inference):
                session = decoder.start(PROMPT, max_new_tokens=12)
                while not session.finished:
                    session.step()
                assert session.generated == want
                assert session.stats.draft_faults == 0
                session.close()


def test_a_draft_that_was_interrupted_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    drafter = CausalParallelDrafter(tiny_head(model), 512)
    write = drafter.memory.context.write

    def interrupted(*given: Any) -> None:
        write(*given)
        monkeypatch.undo()
        raise KeyboardInterrupt

    with AdaptiveDecoder(model, {"policy": "fixed:6"}, drafter=drafter) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=12)
        monkeypatch.setattr(drafter.memory.context, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.step()
        while not session.finished:
            session.step()
        assert session.generated == plain(model, PROMPT, max_new_tokens=12)
        assert session.stats.draft_faults == 0
        assert session.stats.num_draft_tokens > 20


def test_configs_are_read_back() -> None:
    config = HeadConfig(hidden=16, vocab=32, taps=(0, 1), heads=2, kv_heads=1)
    assert HeadConfig.read(json.loads(json.dumps(config.as_dict()))) == config
    assert config.depth == 8
    assert replace(config, ahead=False).depth == 7
