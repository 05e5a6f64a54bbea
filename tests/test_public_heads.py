"""Public head formats against a forward of their own, written from the published description."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from adaptive_spec.cache import SlotPool
from adaptive_spec.drafters.causal_parallel import for_target
from adaptive_spec.errors import HeadError
from adaptive_spec.heads.context import ContextSlots
from adaptive_spec.heads.public import load_any
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.model_facts import head_facts
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import plain, run

PROMPT = [5, 6, 7, 8, 5, 6, 9, 10]
HEADS, KV, DIM, INNER, BLOCK, MASK, RANK = 4, 2, 8, 48, 5, 7, 6


def checkpoint(folder: Path, model: Any, *, causal: bool, markov: bool, qk: bool) -> dict[str, Any]:
    """A random checkpoint in the public format; its tensors."""
    facts, draw = head_facts(model), torch.Generator().manual_seed(3)
    size, vocab = facts["hidden"], facts["vocab"]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * 0.2

    weights = {
        "fc.weight": random(size, 2 * size),
        "hidden_norm.weight": 1 + random(size),
        "norm.weight": 1 + random(size),
    }
    for layer in range(2):
        at = f"layers.{layer}."
        weights |= {
            at + "self_attn.q_proj.weight": random(HEADS * DIM, size),
            at + "self_attn.k_proj.weight": random(KV * DIM, size),
            at + "self_attn.v_proj.weight": random(KV * DIM, size),
            at + "self_attn.o_proj.weight": random(size, HEADS * DIM),
            at + "mlp.gate_proj.weight": random(INNER, size),
            at + "mlp.up_proj.weight": random(INNER, size),
            at + "mlp.down_proj.weight": random(size, INNER),
            at + "input_layernorm.weight": 1 + random(size),
            at + "post_attention_layernorm.weight": 1 + random(size),
        }
        if qk:
            weights |= {at + f"self_attn.{n}_norm.weight": 1 + random(DIM) for n in "qk"}
    if markov:
        weights |= {
            "markov_head.markov_w1.weight": random(vocab, RANK),
            "markov_head.markov_w2.weight": random(vocab, RANK),
            "confidence_head.proj.weight": random(1, size),
            "confidence_head.proj.bias": random(1),
        }
    about = {
        "hidden_size": size,
        "vocab_size": vocab,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "head_dim": DIM,
        "intermediate_size": INNER,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000.0,
        "block_size": BLOCK,
        "dflash_config": {"mask_token_id": MASK, "target_layer_ids": [0, 1]},
    }
    if causal:
        about["dflash_config"]["causal_head"] = True
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(about))
    return weights


SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def pitch(i: int, scaled: bool) -> float:
    """Radians per position of the i-th pair; scaled, one of four is kept, one mixed, two slowed."""
    plain = 5000.0 ** (-2 * i / DIM)
    turns = 64 * plain / (2 * math.pi)
    if not scaled or turns > 4.0:
        return plain
    if turns < 1.0:
        return plain / 8.0
    share = (turns - 1.0) / 3.0
    return (1.0 - share) * plain / 8.0 + share * plain


def described(
    w: dict[str, torch.Tensor],
    model: Any,
    taps: torch.Tensor,
    anchor: int,
    parents: list[int],
    causal: bool,
    scaled: bool = False,
) -> torch.Tensor:
    """[BLOCK - 1, V] logits of every mask slot, position by position, head by head."""

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        half = DIM // 2
        out = x.clone()
        for i in range(half):
            angle = position * pitch(i, scaled)
            cos, sin = math.cos(angle), math.sin(angle)
            out[i] = x[i] * cos - x[half + i] * sin
            out[half + i] = x[half + i] * cos + x[i] * sin
        return out

    table = model.get_input_embeddings().weight
    context = norm(taps @ w["fc.weight"].T, w["hidden_norm.weight"])
    start = len(context)
    x = table[torch.tensor([anchor] + [MASK] * (BLOCK - 1))]
    for layer in range(2):
        at = f"layers.{layer}.self_attn."
        own = norm(x, w[f"layers.{layer}.input_layernorm.weight"])
        rows = torch.cat([context, own])
        out = torch.zeros(BLOCK, HEADS * DIM)
        for head in range(HEADS):
            group = head // (HEADS // KV)
            q = (own @ w[at + "q_proj.weight"].T)[:, head * DIM : (head + 1) * DIM]
            k = (rows @ w[at + "k_proj.weight"].T)[:, group * DIM : (group + 1) * DIM]
            v = (rows @ w[at + "v_proj.weight"].T)[:, group * DIM : (group + 1) * DIM]
            if at + "q_norm.weight" in w:
                q, k = norm(q, w[at + "q_norm.weight"]), norm(k, w[at + "k_norm.weight"])
            q = torch.stack([turned(q[i], start + i) for i in range(BLOCK)])
            k = torch.stack([turned(k[i], i) for i in range(len(k))])
            for i in range(BLOCK):
                last = start + i + 1 if causal else len(k)
                weight = (k[:last] @ q[i] / math.sqrt(DIM)).softmax(0)
                out[i, head * DIM : (head + 1) * DIM] = weight @ v[:last]
        x = x + out @ w[at + "o_proj.weight"].T
        y = norm(x, w[f"layers.{layer}.post_attention_layernorm.weight"])
        mlp = f"layers.{layer}.mlp."
        gate = torch.nn.functional.silu(y @ w[mlp + "gate_proj.weight"].T)
        x = x + (gate * (y @ w[mlp + "up_proj.weight"].T)) @ w[mlp + "down_proj.weight"].T
    logits = norm(x, w["norm.weight"])[1:] @ model.get_output_embeddings().weight.T
    if "markov_head.markov_w1.weight" in w:
        one, two = w["markov_head.markov_w1.weight"], w["markov_head.markov_w2.weight"]
        logits = logits + one[torch.tensor(parents)] @ two.T
    return logits


@pytest.mark.fault("X1")
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("causal", "markov"), [(True, False), (False, False), (True, True), (False, True)], ids=str
)
@torch.no_grad()
def test_logits_are_those_of_the_description(
    tmp_path: Path, kind: str, causal: bool, markov: bool, scaled: bool
) -> None:
    model = tiny_model(kind)
    weights = checkpoint(tmp_path, model, causal=causal, markov=markov, qk=kind == "qwen3")
    if scaled:
        about = json.loads((tmp_path / "config.json").read_text())
        place = {"rope_scaling": SCALING} if causal else {"rope_parameters": SCALING}
        (tmp_path / "config.json").write_text(json.dumps({**about, **place}))
    head = load_any(tmp_path).head
    assert head.config.causal == causal
    head.lend(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    count, size = 6, head.config.hidden
    taps = torch.randn(count, 2 * size, generator=torch.Generator().manual_seed(1))
    anchor, parents = 11, [11, 20, 21, 22]

    context = ContextSlots(head.config, SlotPool(16, 64), torch.float32, torch.device("cpu"))
    owner, places = context.pool.join(), torch.arange(count)
    fused = head.fuse([taps])[None]
    context.write(owner, head.context(fused, places[None]), places.numpy())
    slots = head.slots(torch.tensor([[anchor]]), fused[:, -1:])
    hidden = head(slots, torch.tensor([[count]]), context.extend(BLOCK), context.mask([owner]))
    path = torch.tensor(parents)
    states = head.corrector.states(path, head.embed(path))
    got = head.logits(hidden[0, 0], states)

    want = described(weights, model, taps, anchor, parents, causal, scaled)
    assert (got - want).abs().max() / want.abs().max() < 1e-5
    for other in ((not causal, scaled), (causal, not scaled)):  # mask and pitch matter
        wrong = described(weights, model, taps, anchor, parents, *other)
        assert (got - wrong).abs().max() / want.abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("causal", "markov"), [(True, False), (False, False), (False, True)], ids=str
)
def test_public_heads_draft(tmp_path: Path, kind: str, causal: bool, markov: bool) -> None:
    model = tiny_model(kind)
    checkpoint(tmp_path, model, causal=causal, markov=markov, qk=kind == "qwen3")
    drafter = for_target(load_any(tmp_path), model)
    with AdaptiveDecoder(model, {"policy": "fixed:9"}, drafter=drafter) as decoder:
        session = decoder.start(PROMPT, max_new_tokens=25)
        while not session.finished:
            session.step()
        assert session.stats.num_draft_tokens > 50
        assert session.stats.draft_faults == 0
        assert session.generated == plain(model, PROMPT, max_new_tokens=25)
    by_name = {"policy": "fixed:9", "drafter": f"causal_parallel:{tmp_path}"}
    with AdaptiveDecoder(model, by_name) as decoder:
        assert run(decoder, PROMPT, max_new_tokens=25) == plain(model, PROMPT, max_new_tokens=25)


@pytest.mark.fault("X1", "X2")
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    model = tiny_model("llama")
    weights = checkpoint(tmp_path, model, causal=True, markov=False, qk=False)
    about = json.loads((tmp_path / "config.json").read_text())
    for name in ("block_size", "num_attention_heads", "hidden_size"):
        (tmp_path / "config.json").write_text(
            json.dumps({k: v for k, v in about.items() if k != name})
        )
        with pytest.raises(HeadError, match=name):
            load_any(tmp_path)
    for change, field in (
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": "4", "head_dim": None}, "num_attention_heads"),
        ({"rms_norm_eps": "x"}, "norm_eps"),
        ({"rope_theta": [1]}, "rope_theta"),
        ({"dflash_config": {**about["dflash_config"], "causal_head": "false"}}, "causal"),
        ({"dflash_config": {**about["dflash_config"], "mask_token_id": 10**9}}, "mask_token"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling"),
        ({"rope_scaling": {**SCALING, "factor": 0}}, "rope_scaling"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"use_sliding_window": True}, "use_sliding_window"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(HeadError, match=field):
            load_any(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**about, "num_key_value_heads": None}))
    with pytest.raises(HeadError, match="k_proj"):  # as many as heads: the weights have fewer
        load_any(tmp_path)
    eagle = tmp_path / "eagle"
    eagle.mkdir()
    (eagle / "pytorch_model.bin").write_bytes(b"never read")
    for known in (
        {"architectures": ["LlamaForCausalLMEagle3"]},
        {"architectures": ["LlamaForCausalLM"], "draft_vocab_size": 32000},
    ):
        (eagle / "config.json").write_text(json.dumps(known))
        with pytest.raises(HeadError, match="EAGLE-3 is not supported"):
            load_any(eagle)
    (tmp_path / "config.json").write_text(json.dumps({**about, "speculators_config": {}}))
    with pytest.raises(HeadError, match="speculators"):
        load_any(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(about))
    eagle = {f"midlayer.{name}": value for name, value in weights.items()}
    save_file(eagle, tmp_path / "model.safetensors")
    with pytest.raises(HeadError, match="EAGLE-3"):
        load_any(tmp_path)
