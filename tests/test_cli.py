"""The command line as users meet it: what is printed where, and exit codes.

Everything runs in this process on a tiny random model with a byte-level tokenizer, so that any
text, broken characters included, goes through the real code in no time.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adaptive_spec import __version__, load_log
from adaptive_spec.bench.exactness import Comparison
from adaptive_spec.bench.settings import most_threads
from adaptive_spec.cli import demo as demo_command
from adaptive_spec.cli.demo_view import LiveView, Tree, draw, strip, visible
from adaptive_spec.cli.main import run
from adaptive_spec.cli.output import TextStream

ROOT = Path(__file__).parents[1]
CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a random Llama with 258 tokens: the bytes, an end token and a pad token."""
    folder = tmp_path_factory.mktemp("tiny")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<pad>", chat_template=CHAT
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=256,
        pad_token_id=257,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


class Called:
    """Exit code and output of one command."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.code = run(arguments)
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        (line,) = self.out.splitlines()
        return json.loads(line)


# -- generate --------------------------------------------------------------------------------------


def test_generate_json_has_the_promised_fields(
    tiny_folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    called = Called(
        capsys, "generate", "--model", tiny_folder, "--prompt", "abcabcabc",
        "--max-new-tokens", "24", "--ignore-eos", "--log", str(log), "--json",
    )  # fmt: skip
    answer = called.json
    assert called.code == 0
    assert set(answer) == {
        "text", "tokens", "finish_reason", "seconds", "tokens_per_second", "stats",
    }  # fmt: skip
    assert len(answer["tokens"]) == 24
    assert answer["finish_reason"] == "length"
    assert answer["tokens_per_second"] == pytest.approx(24 / answer["seconds"])
    stats = answer["stats"]
    assert set(stats) == {
        *("seed", "temperature", "prompt_tokens", "new_tokens", "policy", "drafter"),
        *("finish_detail", "num_steps", "num_spec_steps", "num_draft_tokens"),
        *("num_accepted_draft_tokens", "mean_acceptance_length", "draft_acceptance_rate"),
        *("acceptance_histogram", "draft_faults", "controller_faults", "memory_retries"),
        *("nonfinite_retries", "prefill_seconds", "draft_seconds", "draft_model_seconds"),
        *("verify_seconds", "sample_seconds", "host_seconds"),
    }
    assert stats["new_tokens"] == 24
    assert stats["seed"] is None
    assert stats["mean_acceptance_length"] == pytest.approx(24 / stats["num_steps"])
    assert len(load_log(log).steps) == stats["num_steps"]


def test_policies_write_the_same_text(tiny_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = [
        "generate",
        "--model",
        tiny_folder,
        "--prompt",
        "one two one two",
        "--max-new-tokens",
        "40",
    ]
    for sampling in ([], ["--temperature", "0.8", "--top-p", "0.9", "--seed", "7"]):
        plain = Called(capsys, *base, *sampling, "--policy", "plain", "--json").json
        fixed = Called(capsys, *base, *sampling, "--policy", "fixed:8", "--json").json
        assert plain["tokens"] == fixed["tokens"]
        assert plain["stats"]["num_draft_tokens"] == 0
        assert fixed["stats"]["seed"] == (7 if sampling else None)


def test_streamed_text_is_the_text_of_the_json(
    tiny_folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("naïve 文字 🙂", encoding="utf-8")
    base = ["generate", "--model", tiny_folder, "--prompt-file", str(prompt), "--raw"]
    base += ["--max-new-tokens", "60", "--temperature", "2", "--seed", "3", "--ignore-eos"]
    streamed = Called(capsys, *base)
    assert streamed.code == 0
    assert streamed.out == Called(capsys, *base, "--json").json["text"] + "\n"
    assert "60 tokens in" in streamed.err
    assert "tokens/s" in streamed.err
    assert "seed 3" in streamed.err


def test_prompt_from_stdin(
    tiny_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["generate", "--model", tiny_folder, "--max-new-tokens", "8", "--json"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hello")))
    piped = Called(capsys, *asked, "--prompt-file", "-").json
    assert piped["tokens"] == Called(capsys, *asked, "--prompt", "hello").json["tokens"]


def test_no_tokens_asked_for(tiny_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    called = Called(
        capsys,
        "generate",
        "--model",
        tiny_folder,
        "--prompt",
        "x",
        "--max-new-tokens",
        "0",
        "--json",
    )
    assert called.code == 0
    assert called.json["tokens"] == []
    assert called.json["finish_reason"] == "length"


def test_top_k_is_off_unless_given(tiny_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nearly even odds over 258 tokens: 40 draws from the best 50 only have odds below 1e-28."""
    asked = ["generate", "--model", tiny_folder, "--prompt", "hello", "--raw", "--ignore-eos"]
    asked += ["--max-new-tokens", "40", "--temperature", "1000", "--seed", "3", "--json"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_folder)
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    prompt = tokenizer("hello")["input_ids"]

    def worst_rank(*more: str) -> int:
        tokens = Called(capsys, *asked, *more).json["tokens"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(tokens)[:, None])
        return int((logits > chosen).sum(1).max())

    assert worst_rank() >= 50
    assert worst_rank("--top-k", "5") < 5


def test_raw_leaves_the_chat_template_out(
    tiny_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_folder)
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    asked = ["generate", "--model", tiny_folder, "--prompt", "hello", "--ignore-eos", "--json"]
    texts = []
    for more, read in ([], "[user] hello\n[assistant] "), (["--raw"], "hello"):
        answer = Called(capsys, *asked, "--max-new-tokens", "8", *more).json
        ids = torch.tensor([tokenizer(read)["input_ids"]])
        assert answer["stats"]["prompt_tokens"] == ids.shape[1]
        wanted = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)
        assert answer["tokens"] == wanted[0, ids.shape[1] :].tolist()
        texts.append(answer["tokens"])
    assert texts[0] != texts[1]


def test_a_flag_beats_set_and_set_beats_the_config(
    tiny_folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config, logs = tmp_path / "own.toml", [tmp_path / name for name in "abc"]
    config.write_text(f'policy = "fixed:2"\n[log]\npath = "{logs[0]}"\n')
    asked = ["generate", "--model", tiny_folder, "--prompt", "abab", "--max-new-tokens", "4"]
    layers = [
        ["--config", str(config)],
        ["--set", "policy=fixed:1", "--set", "policy=fixed:3", "--set", f"log.path={logs[1]}"],
        ["--policy", "fixed:4", "--log", str(logs[2])],
    ]
    for count, (policy, log) in enumerate(zip(("2", "3", "4"), logs, strict=True), start=1):
        assert not log.exists()
        flags = [flag for layer in reversed(layers[:count]) for flag in layer]
        called = Called(capsys, *asked, "--json", *flags)
        assert called.json["stats"]["policy"] == f"fixed:{policy}"
        assert log.exists()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_take_effect(
    tiny_folder: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
) -> None:
    monkeypatch.setattr("adaptive_spec.bench.settings.most_threads", lambda: 2)
    forward, before, seen = LlamaForCausalLM.forward, torch.get_num_threads(), set()

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.add(torch.get_num_threads())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", watched)
    asked = ["generate", "--model", tiny_folder, "--prompt", "x", "--max-new-tokens", "2"]
    try:
        assert Called(capsys, *asked, "--threads", str(threads)).code == 0
    finally:
        torch.set_num_threads(before)
    assert seen == {threads}


def test_flags_that_do_nothing_are_named(
    tiny_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    called = Called(
        capsys, "generate", "--model", tiny_folder, "--prompt", "x", "--max-new-tokens", "1",
        "--top-k", "5", "--seed", "0",
    )  # fmt: skip
    assert "--top-k has no effect at --temperature 0" in called.err
    assert "--seed has no effect" in called.err


def test_text_stream_never_splits_a_character(tiny_folder: str) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_folder)
    text = "é文🙂 x"
    stream = TextStream(tokenizer)
    pieces = [stream.push([token]) for token in tokenizer(text)["input_ids"]]
    assert "".join(pieces) + stream.end() == text
    assert "\ufffd" not in "".join(pieces)
    broken = TextStream(tokenizer)
    assert broken.push(tokenizer("🙂")["input_ids"][:2]) == ""
    assert set(broken.end()) == {"\ufffd"}


# -- bad usage -------------------------------------------------------------------------------------

COUNT = "a whole number, 1 or more"
CORES = f"a whole number, 1 to {most_threads()}"
PRESETS = "presets: default, logged, plain"
POLICIES = "known: fixed, marginal, plain, ratio"
DRAFTERS = "known: causal_parallel, draft_model, recall, suffix"
BAD: dict[str, list[tuple[str, list[str]]]] = {
    "generate --prompt hi": [
        ("--max-new-tokens -1", ["a whole number, 0 or more"]),
        ("--max-new-tokens many", ["a whole number, 0 or more"]),
        ("--max-new-tokens=1.5", ["a whole number, 0 or more"]),
        ("--temperature -0.1", ["[0, inf)"]),
        ("--temperature nan", ["[0, inf)"]),
        ("--temperature hot", ["[0, inf)"]),
        ("--top-p 0.0", ["(0, 1]"]),
        ("--top-p 1.5", ["(0, 1]"]),
        ("--top-k -1", ["0 to"]),
        ("--top-k few", ["0 to"]),
        ("--seed -1", ["0 to 9223372036854775807"]),
        ("--seed x", ["0 to 9223372036854775807"]),
        ("--threads 0", [CORES]),
        ("--threads two", [CORES]),
        ("--dtype float16", ["float32", "bfloat16"]),
        ("--policy fixt:3", ["'fixt'", "did you mean 'fixed'", POLICIES]),
        ("--policy fixed:-3", ["0 to 1024"]),
        ("--drafter sufix", ["'sufix'", "did you mean 'suffix'", DRAFTERS]),
        ("--drafter suffix+suffix", ["once"]),
        ("--config nope", ["'nope'", PRESETS]),
        ("--config nope.toml", ["cannot be read"]),
        ("--set tree.max_node=3", ["did you mean 'max_nodes'", "max_depth"]),
        ("--set tree.max_nodes=-3", [">= 0, <= 1024"]),
        ("--set tree.max_nodes=many", [">= 0, <= 1024"]),
        ("--set tree.sizes=[0]", [">= 1, <= 65536"]),
        ("--set suffix.floor=1", [">= 0, < 1"]),
        ("--set nonsense", ["section.field=value"]),
        ("--set policy=fixt", ["did you mean 'fixed'", POLICIES]),
        ("--set log.path=/dev/null/x", ["cannot write"]),
        ("--prompt-file x", ["not both"]),
        ("--model no-such-model", ["known: smollm2-135m", "org/name"]),
        ("--log /dev/null/x", ["cannot write"]),
    ],
    "bench": [
        *((f"{flag} {bad}", [COUNT]) for flag in ("--limit", "--repeats") for bad in ("0", "x")),
        *((f"--batch {bad}", [COUNT]) for bad in ("0", "x")),
        *((f"--max-new-tokens {bad}", [COUNT]) for bad in ("0", "x")),
        *((f"--seed {bad}", [f"0 to {2**62}"]) for bad in ("-1", "x", str(2**62 + 1))),
        *((f"--threads {bad}", [CORES]) for bad in ("0", "x", "10000")),
        ("--temperature -1.0", ["0 or more"]),
        ("--temperature hot", ["0 or more"]),
        ("--top-p 0.0", ["(0, 1]"]),
        ("--top-p x", ["(0, 1]"]),
        ("--dtype float16", ["float32", "bfloat16"]),
        ("--policies fixt", ["did you mean 'fixed'", POLICIES]),
        ("--policies fixed:x", ["0 to 1024"]),
        ("--drafters sufix", ["did you mean 'suffix'", DRAFTERS]),
        ("--peers vllm", ["hf, hf-prompt-lookup:N"]),
        ("--peers hf-prompt-lookup:0", ["1 or more"]),
        ("--baseline nope", ["one of plain"]),
        ("--suite nope", ["known: humaneval, chat", "FILE.jsonl"]),
        ("--suite nope.jsonl", ["cannot be read"]),
        ("--model nope --suite SUITE", ["known: smollm2-135m", "org/name"]),
        ("--config nope", [PRESETS]),
        ("--set nonsense", ["section.field=value"]),
        ("--set tree.max_nodes=-3", [">= 0, <= 1024"]),
        ("--set policy=fixt", ["did you mean 'fixed'", POLICIES]),
        ("--set log.path=x", ["keeps the log itself"]),
        ("--vary nonsense", ["KEY=a,b"]),
        ("--vary tree.max_dept=1", ["did you mean 'max_depth'"]),
        ("--vary tree.max_depth=0", [">= 1, <= 256"]),
        ("--disturb nonsense", ["threads=K@S"]),
        ("--disturb threads=9999@5", [f"K from 1 to {most_threads()}"]),
    ],
    "demo": [
        ("--max-new-tokens 0", [COUNT]),
        ("--max-new-tokens x", [COUNT]),
        ("--model nope", ["known: smollm2-135m"]),
        ("--log /dev/null/x --model MODEL", ["cannot write"]),
    ],
    "calibrate": [
        ("--threads x", [CORES]),
        ("--dtype float16", ["float32", "bfloat16"]),
        ("--model nope", ["known: smollm2-135m"]),
        ("--out /dev/null/x", ["a folder that exists"]),
    ],
    "train --out /dev/null/x": [
        ("--threads x", [CORES]),
        ("--config nope.toml", ["cannot be read"]),
        ("--model nope", ["known: smollm2-135m"]),
    ],
    "heads report nope --prompts SUITE": [
        ("--limit 0", [COUNT]),
        ("--limit x", [COUNT]),
        ("--max-new-tokens x", [COUNT]),
        ("--threads x", [CORES]),
        ("--model nope", ["known: smollm2-135m"]),
    ],
    "inspect /dev/null": [("--png x", [".png"]), ("--request x", ["none at all"])],
}


@pytest.mark.parametrize(
    ("command", "flags", "said"),
    [(command, *row) for command, rows in BAD.items() for row in rows],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_bad_usage_is_one_clean_line(
    command: str,
    flags: str,
    said: list[str],
    tiny_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It begins with the option and its value, and says what is allowed."""
    (tmp_path / "own.jsonl").write_text('{"prompt": "x"}')
    places = {"SUITE": str(tmp_path / "own.jsonl"), "MODEL": tiny_folder}
    words = [places.get(word, word) for word in f"{command} {flags}".split(" ")]
    called = Called(capsys, *words)
    *_, line = called.err.splitlines()
    assert called.code == 2
    assert called.out == "" or command == "demo"
    flag, value = flags.replace("=", " ", flags.startswith("--max-new-tokens=")).split(" ")[:2]
    assert line.startswith(f"error: {flag} {value}: ")
    assert "Traceback" not in called.err
    for words_said in said:
        assert words_said in line


def test_an_unknown_option_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    called = Called(capsys, "generate", "--promt", "x")
    assert called.code == 2
    assert "--promt" in called.err
    assert "--prompt" in called.err.replace("--promt", "")


def test_a_prompt_is_needed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--prompt TEXT or --prompt-file FILE" in Called(capsys, "generate").err
    missing = Called(capsys, "generate", "--prompt-file", str(tmp_path / "none"))
    assert missing.code == 2
    assert "No such file" in missing.err
    (tmp_path / "latin").write_bytes(b"\xe9t\xe9")
    latin = Called(capsys, "generate", "--prompt-file", str(tmp_path / "latin"))
    assert latin.code == 2
    assert "UTF-8" in latin.err


def test_failures_exit_1_and_interrupts_130(
    tiny_folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["generate", "--model", tiny_folder, "--prompt", "x", "--max-new-tokens", "5"]
    forward = LlamaForCausalLM.forward

    def sick(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.logits = torch.full_like(out.logits, float("nan"))
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", sick)
    failed = Called(capsys, *asked, "--set", "self_check=false", "--json")
    assert failed.code == 1
    assert "non-finite" in failed.err
    assert failed.json["finish_reason"] == "error"

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(LlamaForCausalLM, "forward", interrupted)
    assert Called(capsys, *asked).code == 130


# -- catalogues ------------------------------------------------------------------------------------


def test_models(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ADAPTIVE_SPEC_HOME", str(tmp_path))
    (entry,) = Called(capsys, "models", "--json").json["models"]
    assert entry["name"] == "smollm2-135m"
    assert entry["licence"] == "Apache-2.0"
    assert entry["fetched"] is False
    shown = Called(capsys, "models").out
    for words in ("smollm2-135m", "Apache-2.0", "135M", "93 MB", "models fetch smollm2-135m"):
        assert words in shown
    wrong = Called(capsys, "models", "fetch", "smollm")
    assert wrong.code == 2
    assert "did you mean 'smollm2-135m'" in wrong.err


def test_policies(capsys: pytest.CaptureFixture[str]) -> None:
    listed = Called(capsys, "policies", "--json").json
    assert {entry["name"] for entry in listed["policies"]} >= {"plain", "fixed"}
    assert {entry["name"] for entry in listed["drafters"]} >= {"suffix"}
    assert all(entry["summary"] for kind in listed.values() for entry in kind)
    shown = Called(capsys, "policies").out
    assert "fixed:N" in shown
    assert "suffix" in shown


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert Called(capsys, "--version").out == f"adaptive-spec {__version__}\n"
    shown = Called(capsys, "--help")
    assert shown.code == 0
    for command in ("demo", "generate", "bench", "models", "policies"):
        assert command in shown.out
    assert Called(capsys, "generat").code == 2


def test_the_command_line_starts_light() -> None:
    script = (
        "import sys; from adaptive_spec.cli.main import run; run(['policies', '--json']); "
        "run(['generate', '--prompt', 'x', '--top-p', '7']); run(['models']); "
        "sys.exit(sum(name in sys.modules for name in ('torch', 'transformers')))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


# -- demo ------------------------------------------------------------------------------------------


def test_demo_on_a_pipe(
    tiny_folder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = tmp_path / "demo.jsonl"
    called = Called(
        capsys, "demo", "--model", tiny_folder, "--max-new-tokens", "20", "--log", str(log)
    )  # fmt: skip
    assert called.code == 0, called.out
    for title in ("fp32 coding", "fp32 chat", "bf16 coding", "bf16 chat"):
        assert called.out.count(title) >= 2  # a heading, and a line of the table
    assert "accepted per step" in called.out
    assert called.out.count("identical (") + called.out.count("first differs at") == 4
    assert f"log: {log}" in called.out
    assert f"timeline: {log.with_suffix('.png')}" in called.out
    assert log.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    found = load_log(log)
    assert {step["policy"] for step in found.steps} == {"plain", "marginal"}
    assert len({request["request"] for request in found.requests}) == 8


def test_demo_on_a_terminal(
    tiny_folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=30)
    monkeypatch.setattr(demo_command, "results", console)
    assert isinstance(demo_command.view_for(console), LiveView)
    log = tmp_path / "demo.jsonl"
    assert run(["demo", "--model", tiny_folder, "--max-new-tokens", "12", "--log", str(log)]) == 0
    shown = Text.from_ansi(screen.getvalue()).plain
    for words in ("nodes checked in one forward", "●", "tokens/s", "fp32 chat"):
        assert words in shown


def test_demo_refuses_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    called = Called(capsys, "demo", "--max-new-tokens", "0")
    assert called.code == 2
    assert "--max-new-tokens 0: expected a whole number, 1 or more" in called.err


def test_the_verdict_is_what_was_computed() -> None:
    said = [
        demo_command.verdict(found).plain
        for found in (
            Comparison(96),
            Comparison(41, 40, 0.06, near_tie=True),
            Comparison(41, 40, 0.8),
        )
    ]
    assert said == [
        "identical (96 tokens)",
        "first differs at a near-tie (token 41, gap 0.06)",
        "DIFFERS from plain (token 41, gap 0.8)",
    ]


def test_a_tree_is_drawn_with_its_accepted_path_first() -> None:
    tree = Tree(parent=[-1, -1, 1, 1], words=["a", "b", "c", "d"], accepted=[1, 3])
    assert [line.plain for line in draw(tree, 40)] == ["●─b─d", "   └c", " └a"]
    lines = Tree(parent=[-1, 0], words=["\n", "    "], accepted=[0])
    assert [line.plain for line in draw(lines, 40)] == ["●─⏎─····"]
    assert draw(tree, 4)[0].plain == "●─b…"
    assert strip([0, 1, 2, 3, 16, 400]) == "·▁▁▂██"
    assert visible(" a\n\t\x1b") == "·a⏎⇥�"


# -- doors beside the command line -----------------------------------------------------------------


def test_make_has_the_targets_that_people_guess() -> None:
    shown = subprocess.run(
        ["make", "-C", str(ROOT), "help"], check=True, capture_output=True, text=True
    ).stdout
    for target in ("demo", "test", "test-fast", "lint", "bench", "venv", "clean"):
        assert f"make {target} " in shown
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert "torch==2.13.0" in pins
    assert all("==" in pin for pin in pins if pin and not pin.startswith("#"))
