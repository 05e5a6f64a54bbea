"""The benchmark: figures from known times, texts judged by plain's, a whole run on a tiny model."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from adaptive_spec.bench import turns
from adaptive_spec.bench.contestants import contestants
from adaptive_spec.bench.decoding import Batch, Decoded, Ours, Peer, Threads, ignore_end, runner
from adaptive_spec.bench.exactness import Comparison, Referee, first_difference, is_near_tie
from adaptive_spec.bench.memory import measure
from adaptive_spec.bench.runner import run_bench
from adaptive_spec.bench.settings import BenchSettings, Disturbance, Vary
from adaptive_spec.bench.statistics import Record, best_elsewhere, speed_up
from adaptive_spec.budget_log import NullLog
from adaptive_spec.cli.bench import bench
from adaptive_spec.config import load_config
from adaptive_spec.errors import (
    AdaptiveSpecError,
    ArgumentError,
    ConfigError,
    UnknownNameError,
)
from adaptive_spec.log_reader import load_log

VOCAB = 97
END = 96


def tiny(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer of words, as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("tiny")
    tiny().save_pretrained(path)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{END}").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "own.jsonl"
    prompts = ["w1 w2 w3 w1 w2 w3 w1 w2", "w5 w6 w5 w6 w5", "w9 w8 w7 w9 w8 w7 w9"]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    return path


@pytest.fixture
def settings(folder: Path, suite: Path) -> dict[str, Any]:
    return {
        "model": str(folder),
        "suite": str(suite),
        "max_new_tokens": 12,
        "raw": True,
        "threads": 1,
        "ignore_eos": True,
    }


def decoded(tokens: int, seconds: float, **more: Any) -> Decoded:
    return Decoded(tokens=((1,) * tokens,), seconds=seconds, **more)


def record(*runs: tuple[int, Decoded]) -> Record:
    return Record(batches=1 + max(index for index, _ in runs), decoded=list(runs))


# -- statistics ----------------------------------------------------------------------------------


def test_speeds_add_up_over_prompts_and_repeats() -> None:
    own = record((0, decoded(10, 1.0)), (1, decoded(30, 1.0)), (0, decoded(10, 2.0)))
    plain = record((0, decoded(10, 4.0)), (1, decoded(30, 4.0)), (0, decoded(10, 4.0)))
    assert own.tokens_per_second() == pytest.approx(50 / 4)
    ratio = speed_up(own, plain, seed=0)
    assert ratio.value == pytest.approx((50 / 4) / (50 / 12))
    assert 2.6 < ratio.low <= ratio.value <= ratio.high < 4.1


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """90 % intervals from 30 prompts over 100 worlds: 0.90 +- 0.03, bootstraps run a bit low."""
    rng, hits = np.random.default_rng(5), 0
    truth = 1 / np.mean(1 / rng.normal(2.0, 0.5, 200_000).clip(0.5))
    for world in range(100):
        speeds = rng.normal(2.0, 0.5, 30).clip(0.5)
        own = record(*((i, decoded(10, 1 / speed)) for i, speed in enumerate(speeds)))
        plain = record(*((i, decoded(10, 1.0)) for i in range(30)))
        ratio = speed_up(own, plain, seed=world)
        hits += ratio.low <= truth <= ratio.high
    assert 78 <= hits <= 98


def test_repeats_of_a_prompt_are_no_further_evidence() -> None:
    once = [(i, decoded(10, 1.0 + i)) for i in range(4)]
    plain = [(i, decoded(10, 3.0)) for i in range(4)]
    single = speed_up(record(*once), record(*plain), seed=3)
    many = speed_up(record(*once * 5), record(*plain * 5), seed=3)
    assert (many.low, many.high) == pytest.approx((single.low, single.high))


def test_plain_against_itself_is_exactly_one() -> None:
    plain = record((0, decoded(10, 1.3)), (1, decoded(7, 0.4)))
    ratio = speed_up(plain, plain, seed=0)
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)


def test_best_of_several_is_picked_on_other_batches_than_it_is_scored_on() -> None:
    one = record((0, decoded(10, 1.0)), (1, decoded(10, 2.0)), (2, decoded(10, 9.0)))
    two = record((0, decoded(10, 3.0)), (1, decoded(10, 3.0)), (2, decoded(10, 3.0)))
    best = best_elsewhere([one, two])  # without batch 0: 11 s and 6 s; 1: 10, 6; 2: 3, 6
    assert best.seconds().tolist() == [3.0, 3.0, 9.0]
    assert best.tokens().tolist() == [10.0, 10.0, 10.0]
    alone = best_elsewhere([record((0, decoded(10, 2.0))), record((0, decoded(10, 1.0)))])
    assert alone.seconds().tolist() == [1.0]


def test_best_of_several_equals_gains_nothing_by_noise() -> None:
    rng, best, naive = np.random.default_rng(6), [], []
    for _ in range(60):
        same = [
            record(*((i, decoded(10, s)) for i, s in enumerate(rng.gamma(9.0, 1 / 9.0, 20))))
            for _ in range(5)
        ]
        best.append(best_elsewhere(same).seconds().sum() / 20)
        naive.append(min(one.seconds().sum() for one in same) / 20)
    assert np.mean(best) == pytest.approx(1.0, abs=0.03)
    assert np.mean(naive) < 0.94


def test_shares_and_lengths() -> None:
    one = decoded(12, 2.0, loop_seconds=1.0, model_seconds=0.9, steps=4, draft_nodes=32)
    own = record((0, one))
    assert own.acceptance_length() == 3.0
    assert own.nodes_per_step() == 8.0
    assert own.controller_share() == pytest.approx(0.1)
    peer = record((0, decoded(12, 2.0)))
    assert (peer.acceptance_length(), peer.nodes_per_step(), peer.controller_share()) == (None,) * 3


def test_a_request_counts_once_with_its_worst_repeat() -> None:
    same, tie = Comparison(20), Comparison(6, 5, 1e-6, near_tie=True)
    wrong = Comparison(3, 2, 0.5)
    own = Record(batches=3, compared={"a": [same, same], "b": [same, tie], "c": [tie, wrong]})
    exact = own.exactness()
    assert (exact.identical, exact.near_ties, exact.mismatches) == (1, 1, 1)
    assert exact.tokens_compared == 20 + 6 + 3


# -- exactness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "plain", "place"),
    [
        ([1, 2], [1, 2], None),
        ([1, 3], [1, 2], 1),
        ([1], [1, 2], 1),
        ([1, 2], [1], 1),
        ([], [], None),
    ],
)
def test_first_difference(ours: list[int], plain: list[int], place: int | None) -> None:
    assert first_difference(ours, plain) == place


def test_near_tie_limits() -> None:
    assert is_near_tie(9e-5, 20.0, "float32", 0.0)
    assert not is_near_tie(1e-4, 20.0, "float32", 0.0)
    unit = torch.finfo(torch.bfloat16).eps * 16  # spacing of bfloat16 in [16, 32)
    assert is_near_tie(2 * unit, 20.0, "bfloat16", 0.0)
    assert not is_near_tie(2.1 * unit, 20.0, "bfloat16", 0.0)
    assert is_near_tie(4 * unit, 20.0, "bfloat16", 0.5)  # scores are logits / temperature
    assert is_near_tie(2 * unit, -20.0, "bfloat16", 0.0)


def tie_model() -> LlamaForCausalLM:
    """Tokens 3 and 4 have the same logit everywhere: their top-2 gap is 0 when they lead."""
    model = tiny()
    with torch.no_grad():
        head = model.lm_head.weight
        head[3] = 8 * head[3]
        head[4] = head[3]
    return model


BATCH = Batch(0, ("a", "b"), ((3, 3, 5), (7, 8, 9, 10)), (11, 12))


def decode(model: LlamaForCausalLM, options: dict[str, Any]) -> Decoded:
    plain = contestants(BenchSettings("none", policies=("plain",)))[0]
    one = runner(plain, model, threads=Threads(1), log=NullLog(), self_check=False)
    return one.run(BATCH, "test", options)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_gap_is_that_of_plain_decoding(temperature: float) -> None:
    """At temperature 0 the gap is model(prefix)'s; above, flipping to the runner-up shows it."""
    model = tiny()
    ignore_end(model)
    options = BenchSettings("none", max_new_tokens=9, temperature=temperature).generation()
    plain = decode(model, options)
    referee = Referee(model, load_config("plain"), "float32", temperature, options)
    referee.take(BATCH, plain.tokens)
    changed = [list(plain.tokens[0]), list(plain.tokens[1])]
    changed[1][5] = (changed[1][5] + 1) % 90
    same, other = referee.compare(BATCH, changed)
    assert same == Comparison(9)
    assert (other.first_difference, other.tokens_compared) == (5, 6)
    assert other.mismatch
    assert other.gap is not None
    if temperature == 0:
        prefix = torch.tensor([[*BATCH.prompts[1], *plain.tokens[1][:5]]])
        first, second = model(prefix).logits[0, -1].topk(2).values.tolist()
        assert other.gap == pytest.approx(first - second, abs=1e-5)
    assert other.gap > 1e-4


def test_exact_ties_are_near_ties_and_short_texts_are_not() -> None:
    model = tie_model()
    ignore_end(model)
    options = BenchSettings("none", max_new_tokens=9).generation()
    plain = decode(model, options)
    row = next(i for i, text in enumerate(plain.tokens) if 3 in text)
    place = plain.tokens[row].index(3)  # the lower id wins the tie
    referee = Referee(model, load_config("plain"), "float32", 0.0, options)
    referee.take(BATCH, plain.tokens)
    changed = [list(text) for text in plain.tokens]
    changed[row][place] = 4
    comparison = referee.compare(BATCH, changed)[row]
    assert comparison.near_tie
    assert comparison.gap == 0.0
    longer = [[*text, 1] for text in plain.tokens]
    assert all(one.mismatch and one.gap is None for one in referee.compare(BATCH, longer))


# -- settings and contestants --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("threads", 0, "--threads"),
        ("threads", 10_000, "--threads"),
        ("temperature", -0.1, "--temperature"),
        ("temperature", float("nan"), "--temperature"),
        ("top_p", 0.0, "--top-p"),
        ("seed", -1, "--seed"),
        ("repeats", 0, "--repeats"),
        ("batch", 0, "--batch"),
        ("limit", 0, "--limit"),
        ("max_new_tokens", 0, "--max-new-tokens"),
        ("dtypes", ("float16",), "--dtype"),
        ("dtypes", (), "--dtype"),
        ("policies", (), "--policies"),
        ("drafters", (), "--drafters"),
    ],
)
def test_values_out_of_range_name_their_option(field: str, value: Any, said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        BenchSettings("smollm2-135m", **{field: value})
    assert said in str(caught.value)
    shown = value[0] if isinstance(value, tuple) and value else value
    assert isinstance(shown, tuple) or repr(shown) in str(caught.value)


@pytest.mark.parametrize(
    "more", [{"batch": 2}, {"temperature": 0.5}, {"disturb": Disturbance(1, 5)}]
)
def test_peers_run_alone_and_greedily(more: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="--peers='hf'"):
        BenchSettings("smollm2-135m", peers=("hf",), **more)


@pytest.mark.parametrize(
    "text", ["", "threads", "threads=1", "threads=0@5", "cores=1@5", "threads=x@5"]
)
def test_disturbances(text: str) -> None:
    assert Disturbance.parse("threads=1@200") == Disturbance(1, 200)
    with pytest.raises(ArgumentError, match="--disturb"):
        Disturbance.parse(text)


@pytest.mark.parametrize(
    "text", ["tree.max_depth", "=1", "tree.max_depth=", "policy=a,b", "log.path=x"]
)
def test_vary(text: str) -> None:
    assert Vary.parse("tree.max_depth=4, 8") == Vary("tree.max_depth", ("4", "8"))
    assert Vary.parse("tree.sizes=[],[4, 16],none").values == ("[]", "[4, 16]", "none")
    with pytest.raises(ArgumentError, match="--vary"):
        Vary.parse(text)


def test_plain_decoding_varies_by_kernels_alone() -> None:
    vary = (Vary.parse("kernels=auto,off"),)
    found = contestants(BenchSettings("m", policies=("plain", "fixed:4"), vary=vary))
    assert [one.name for one in found] == [
        "plain",
        "plain[kernels=auto]",
        "plain[kernels=off]",
        "fixed:4[kernels=auto]",
        "fixed:4[kernels=off]",
    ]


def test_contestants_are_policies_times_drafters_times_values_and_peers() -> None:
    vary = (Vary.parse("tree.max_depth=4,8"),)
    found = contestants(
        BenchSettings("m", policies=("fixed:4", "plain", "fixed:8"), vary=vary, peers=("hf",))
    )
    assert [one.name for one in found] == [
        "plain",
        "fixed:4[tree.max_depth=4]",
        "fixed:4[tree.max_depth=8]",
        "fixed:8[tree.max_depth=4]",
        "fixed:8[tree.max_depth=8]",
        "hf",
    ]
    depths = [one.config.tree.max_depth for one in found[1:-1] if one.config]
    assert depths == [4, 8, 4, 8]
    assert [one.policy for one in found] == ["plain", *["fixed:4"] * 2, *["fixed:8"] * 2, None]


def test_names_carry_the_drafter_where_drafters_vary(monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptive_spec.drafters import registry

    monkeypatch.setattr(registry.DRAFTERS, "_entries", dict(registry.DRAFTERS._entries))
    registry.DRAFTERS.register("other", registry._suffix, "for this test")
    found = contestants(
        BenchSettings("m", drafters=("suffix", "other"), overrides=("policy=fixed:2",))
    )
    assert [one.name for one in found] == ["plain", "fixed:2/suffix", "fixed:2/other"]


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"policies": ("fixt:16",)}, UnknownNameError, "fixed"),
        ({"policies": ("fixed:x",)}, ArgumentError, "fixed:x"),
        ({"drafters": ("sufix",)}, UnknownNameError, "suffix"),
        ({"drafters": ("suffix+suffix",)}, ArgumentError, "every drafter may come once"),
        ({"vary": (Vary("tree.max_dept", ("1",)),)}, ConfigError, "max_depth"),
        ({"vary": (Vary("coupled", ("true",)),) * 2}, ArgumentError, "may vary once"),
        ({"overrides": ("log.path=x",)}, ArgumentError, "keeps the log itself"),
        ({"policies": ("plain",), "drafters": ("sufix",)}, UnknownNameError, "suffix"),
        ({"overrides": ("nonsense",)}, ConfigError, "nonsense"),
        ({"config": "nonsense"}, UnknownNameError, "nonsense"),
        ({"peers": ("vllm",)}, ArgumentError, "hf-prompt-lookup:N"),
        ({"peers": ("hf-prompt-lookup",)}, ArgumentError, "hf-prompt-lookup"),
        ({"peers": ("hf-prompt-lookup:0",)}, ArgumentError, "hf-prompt-lookup:0"),
        ({"baseline": "fixed:9"}, ArgumentError, "--baseline='fixed:9'.*plain"),
        ({"baseline": "best:fixed"}, ArgumentError, "best:plain"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_loaded(
    more: dict[str, Any], error: type[AdaptiveSpecError], said: str
) -> None:
    with pytest.raises(error, match=said):
        run_bench(BenchSettings("no-such-model", **more))


# -- whole runs ----------------------------------------------------------------------------------


def test_a_whole_run(settings: dict[str, Any], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    result = run_bench(
        BenchSettings(
            **settings,
            policies=("fixed:6",),
            peers=("hf", "hf-prompt-lookup:3"),
            baseline="hf",
            repeats=2,
            out=str(tmp_path / "out"),
        )
    )
    assert torch.get_num_threads() == threads
    rows = {row["name"]: row for row in result.as_dict()["rows"]}
    assert list(rows) == ["plain", "fixed:6", "hf", "hf-prompt-lookup:3"]
    for row in rows.values():
        assert (row["identical"], row["near_ties"], row["mismatches"]) == (3, 0, 0)
        assert (row["requests"], row["tokens_compared"]) == (3, 36)
        assert row["low"] <= row["speedup"] <= row["high"]
        assert row["versus_low"] <= row["versus_baseline"] <= row["versus_high"]
        assert set(row) == KEYS | VERSUS
        assert row["tokens_per_second"] > 0
        assert "peak_memory_ratio" not in row
    plain, fixed, hf = rows["plain"], rows["fixed:6"], rows["hf"]
    assert plain["speedup"] == plain["low"] == plain["high"] == hf["versus_baseline"] == 1.0
    assert plain["acceptance_length"] == 1.0
    assert plain["nodes_per_step"] == 0.0
    assert fixed["acceptance_length"] > 1.0
    assert 0 < fixed["nodes_per_step"] <= 6
    assert 0 < fixed["controller_share"] < 1
    assert fixed["versus_baseline"] == pytest.approx(fixed["speedup"] / hf["speedup"])
    assert hf["acceptance_length"] is hf["controller_share"] is hf["policy"] is None
    assert result.mismatches == 0

    out = tmp_path / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["ended"] >= manifest["started"]
    assert manifest["machine"]["threads"] == 1
    assert json.loads((out / "rows.json").read_text()) == result.as_dict()["rows"]
    with (out / "rows.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == list(rows)
    lines = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * 3 * 2
    assert {line["turn"] for line in lines if line["contestant"] == "plain"} != {0}
    log = load_log(out / "log.jsonl")
    mine = [s for s in log.steps if s["request"].startswith("float32/fixed:6/1/")]
    assert sum(step["emitted"] for step in mine) == 36
    assert {request["request"] for request in log.requests} >= {"float32/plain/0/own/1"}


def test_sampled_batches_give_plains_text(settings: dict[str, Any]) -> None:
    result = run_bench(
        BenchSettings(**settings, policies=("fixed:4", "fixed:9"), temperature=0.8, batch=2)
    )
    assert [row.identical for row in result.rows] == [3, 3, 3]
    assert all(row.batch == 2 for row in result.rows)


def test_several_dtypes_one_after_another(settings: dict[str, Any]) -> None:
    result = run_bench(
        BenchSettings(**settings, limit=1, dtypes=("float32", "bfloat16"), policies=("fixed:4",))
    )
    assert [(row.name, row.dtype) for row in result.rows] == [
        ("plain", "float32"),
        ("fixed:4", "float32"),
        ("plain", "bfloat16"),
        ("fixed:4", "bfloat16"),
    ]


def test_end_tokens_stop_all_alike_unless_ignored() -> None:
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[END] = model.lm_head.weight[:END].mean(0) * 40
    options = BenchSettings("none", max_new_tokens=40).generation()
    single = Batch(0, ("a",), ((END, 3, END, 5),), (0,))  # END is the padding id as well
    one, *_ = contestants(BenchSettings("none", policies=("plain",)))

    def texts() -> list[tuple[int, ...]]:
        ours = runner(one, model, threads=Threads(1), log=NullLog(), self_check=False)
        runs = [ours, Peer(model, None, Threads(1)), Peer(model, 3, Threads(1))]
        return [run.run(single, "test", options).tokens[0] for run in runs]

    stopped = texts()
    assert len(set(stopped)) == 1
    ignore_end(model)
    full = texts()
    assert len(set(full)) == 1
    assert len(full[0]) == 40
    assert full[0][: len(stopped[0])] == stopped[0]


def test_disturbance_hits_every_contestant_at_its_own_step(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes: list[int] = []
    monkeypatch.setattr("adaptive_spec.bench.decoding.torch.get_num_threads", lambda: 0)
    monkeypatch.setattr("adaptive_spec.bench.decoding.torch.set_num_threads", changes.append)
    monkeypatch.setattr("adaptive_spec.bench.settings.most_threads", lambda: 7)
    run_bench(
        BenchSettings(
            **settings,
            policies=("fixed:4",),
            disturb=Disturbance.parse("threads=7@14"),
            out=str(tmp_path),
        )
    )
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    plain = [line for line in lines if line["contestant"] == "plain"]
    assert [line["first_step"] for line in plain] == [0, 12, 24]
    assert [line["threads"] for line in plain] == [1, 7, 7]
    fixed = [line for line in lines if line["contestant"] == "fixed:4"]
    reached = [line["first_step"] + line["stats"]["num_steps"] >= 14 for line in fixed]
    assert [line["threads"] for line in fixed] == [7 if r else 1 for r in reached]
    assert changes[-1] == 0  # what was there before the run
    assert 7 in changes


class _Liar:
    """A contestant that emits one wrong token."""

    def __init__(self, honest: Ours) -> None:
        self._honest = honest

    def run(self, batch: Batch, label: str, options: dict[str, Any]) -> Decoded:
        good = self._honest.run(batch, label, options)
        (text,) = good.tokens
        wrong = (*text[:4], (text[4] + 1) % 90, *text[5:])
        return Decoded(tokens=(wrong,), seconds=good.seconds)


def invoke(folder: Path, suite: Path, options: str) -> Any:
    app = typer.Typer()
    app.command()(bench)
    same = "--raw --policies fixed:3 --threads 1 --ignore-eos"
    given = ["--model", str(folder), "--suite", str(suite), *same.split(), *options.split()]
    return CliRunner().invoke(app, given)


KEYS = {
    *("name", "policy", "drafter", "suite", "dtype", "temperature", "threads", "batch"),
    *("tokens_per_second", "speedup", "low", "high", "acceptance_length", "identical"),
    *("near_ties", "mismatches", "tokens_compared", "requests", "controller_share"),
    "nodes_per_step",
}
VERSUS = {"versus_baseline", "versus_low", "versus_high"}


def test_json_is_all_that_stdout_gets(folder: Path, suite: Path) -> None:
    outcome = invoke(folder, suite, "--limit 2 --json --max-new-tokens 6")
    assert outcome.exit_code == 0, outcome.output
    told = json.loads(outcome.stdout)
    assert set(told) == {"rows", "machine"}
    assert [row["name"] for row in told["rows"]] == ["plain", "fixed:3"]
    assert all(set(row) == KEYS for row in told["rows"])


def test_the_table_shows_names_as_they_are(folder: Path, suite: Path) -> None:
    options = "--limit 1 --max-new-tokens 4 --vary tree.max_depth=4,8"
    outcome = invoke(folder, suite, options)
    assert outcome.exit_code == 0, outcome.output
    assert "fixed:3[tree.max_depth=4]" in outcome.stdout
    assert "warm-up" in outcome.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_mismatch_exits_1(
    folder: Path, suite: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, as_json: bool
) -> None:
    honest = turns.runner

    def lying(one: Any, model: Any, **parts: Any) -> Any:
        built = honest(one, model, **parts)
        return built if one.name == "plain" else _Liar(built)

    monkeypatch.setattr(turns, "runner", lying)
    options = f"--max-new-tokens 8 --dtype {dtype}{' --json' * as_json}"
    outcome = invoke(folder, suite, options)
    assert outcome.exit_code == 1
    if as_json:
        plain, lying_one = json.loads(outcome.stdout)["rows"]
        assert (plain["mismatches"], plain["near_ties"]) == (0, 0)
        ties = lying_one["near_ties"]  # bfloat16 has some at the place of the wrong token
        assert lying_one["mismatches"] == 3 - ties > 0
        assert ties == 0 or dtype == "bfloat16"
    else:
        assert ("3 mismatches" if dtype == "float32" else " mismatches") in outcome.stdout


def test_prompts_that_do_not_fit_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("earlier")
    with pytest.raises(ArgumentError, match=r"--max-new-tokens=250 .*at most 248"):
        run_bench(BenchSettings(**{**settings, "max_new_tokens": 250, "out": str(tmp_path)}))
    assert (tmp_path / "rows.json").read_text() == "earlier"


def test_unwritable_bundle(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="--out"):
        run_bench(BenchSettings(**settings, out=str(tmp_path / "file")))


def test_files_of_others_are_not_replaced(settings: dict[str, Any], tmp_path: Path) -> None:
    mine = tmp_path / "requests.jsonl"
    mine.write_text('{"prompt": "mine"}')
    with pytest.raises(ArgumentError, match=r"--out.*requests\.jsonl in it was not written"):
        run_bench(BenchSettings(**settings, out=str(tmp_path)))
    assert mine.read_text() == '{"prompt": "mine"}'


def test_a_contestant_that_cannot_be_made_costs_no_bundle(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    run_bench(BenchSettings(**settings, limit=1, policies=("plain",), out=str(tmp_path)))
    before = (tmp_path / "rows.json").read_text()
    bad = {**settings, "overrides": ("calibration=/nowhere/at/all",)}
    with pytest.raises(AdaptiveSpecError, match="nowhere"):
        run_bench(BenchSettings(**bad, out=str(tmp_path)))
    assert (tmp_path / "rows.json").read_text() == before


def test_one_token_left_by_the_processors_is_no_gap() -> None:
    """Plain's nucleus held a single token: the gap to the next is infinite, and no number."""
    referee = Referee.__new__(Referee)
    referee._texts, referee._ties = {0: ((1, 2),)}, {(0, 0, 1): (float("inf"), False)}
    (found,) = referee.compare(Batch(0, ("a",), ((5,),), (0,)), [(1, 3)])
    assert found.gap is None
    assert found.mismatch


# -- memory --------------------------------------------------------------------------------------


def allocate() -> None:
    for _ in range(2):
        block = bytearray(b"x") * (40 << 20)
        time.sleep(0.05)  # lets a sampling thread look
        del block


@pytest.mark.parametrize("sampled", [False, True])
def test_peak_memory_is_what_was_added(
    sampled: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if sampled:
        monkeypatch.setattr("adaptive_spec.bench.memory._RESET", tmp_path / "none" / "there")
    assert measure(allocate) == pytest.approx(40 << 20, rel=0.25)


def test_memory_in_own_processes(folder: Path, suite: Path) -> None:
    options = "--limit 1 --max-new-tokens 12 --memory --baseline fixed:3 --json"
    outcome = invoke(folder, suite, options)
    assert outcome.exit_code == 0, outcome.output
    plain, fixed = json.loads(outcome.stdout)["rows"]
    assert set(plain) == set(fixed) == KEYS | VERSUS | {"peak_memory_ratio"}
    assert plain["peak_memory_ratio"] == 1.0
    assert fixed["peak_memory_ratio"] > 0
    assert fixed["versus_low"] == fixed["versus_baseline"] == fixed["versus_high"] == 1.0
