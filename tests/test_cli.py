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

BAD = [
    ("--max-new-tokens -1", ["--max-new-tokens -1", "0 or more"]),
    ("--max-new-tokens many", ["--max-new-tokens many", "whole number, 0 or more"]),
    ("--max-new-tokens=1.5", ["--max-new-tokens 1.5", "0 or more"]),
    ("--temperature -0.1", ["--temperature -0.1", "[0, inf)"]),
    ("--temperature nan", ["--temperature nan", "[0, inf)"]),
    ("--top-p 0", ["--top-p 0", "(0, 1]"]),
    ("--top-p 1.5 --temperature 1", ["--top-p 1.5", "(0, 1]"]),
    ("--top-k -1", ["--top-k -1", "0 to"]),
    ("--seed -1", ["--seed -1", "0 to"]),
    ("--threads 0", ["--threads 0", "1 to"]),
    ("--threads two", ["--threads two", "1 to"]),
    ("--dtype float16", ["--dtype float16", "float32", "bfloat16"]),
    ("--policy fixt:3", ["'fixt'", "did you mean 'fixed'", "plain"]),
    ("--policy fixed:-3", ["fixed:-3", "0 to 1024"]),
    ("--drafter sufix", ["'sufix'", "did you mean 'suffix'"]),
    ("--drafter suffix+suffix", ["suffix+suffix", "once"]),
    ("--config nope", ["'nope'", "default"]),
    ("--set tree.max_node=3", ["tree.max_node", "did you mean 'max_nodes'"]),
    ("--set tree.max_nodes=-3", ["tree.max_nodes=-3", "0"]),
    ("--set nonsense", ["'nonsense'", "section.field=value"]),
    ("--prompt-file x", ["--prompt-file x", "not both"]),
    ("--model no-such-model", ["'no-such-model'", "smollm2-135m"]),
    ("--log /dev/null/x", ["/dev/null/x"]),
    ("--promt x", ["--promt", "--prompt"]),
]


@pytest.mark.parametrize(("flags", "said"), BAD, ids=[flags for flags, _ in BAD])
def test_bad_usage_is_one_clean_line(
    flags: str, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    called = Called(capsys, "generate", "--prompt", "hi", *flags.split(" "))
    *_, line = called.err.splitlines()
    assert called.code == 2
    assert called.out == ""
    assert line.startswith("error: ")
    assert "Traceback" not in called.err
    for words in said:
        assert words in line


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
