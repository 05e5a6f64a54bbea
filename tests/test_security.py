"""No code from configs, names or checkpoints: row X2 of the fault table."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import adaptive_spec
from adaptive_spec.build import build_drafters, build_log
from adaptive_spec.config import load_config
from adaptive_spec.controllers.registry import CONTROLLERS
from adaptive_spec.deciding import Deciding
from adaptive_spec.drafters.registry import DRAFTERS, DraftContext
from adaptive_spec.errors import (
    AdaptiveSpecError,
    CatalogueError,
    ConfigError,
    LogError,
    UnknownNameError,
    UnsupportedError,
)
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.models import load
from adaptive_spec.profilers.base import NullLatency
from adaptive_spec.testing.tiny import tiny_model

# -- names never become code ----------------------------------------------------------------------

HOSTILE = [
    "canary",
    "canary:run",
    "canary.run",
    "os.system",
    "os:system",
    "builtins:eval",
    "__import__('canary')",
    "adaptive_spec.controllers.plain.NoSpeculation",
    "adaptive_spec.drafters.suffix:SuffixDrafter",
    "../canary",
    "./canary.py",
    "/canary.py",
    "file:canary.py",
    "plain;canary",
    "plain\ncanary",
    "plain\x00",
    "fixed:__import__('canary')",
    "fixed:1e9",
    "fixed:0x10",
    "fixed:१६",
    "fixed:²",
    "fixed: 3",
    "fixed:16:16",
    "fixed:" + "9" * 5000,
    "__class__",
    "__init__",
    "_entries",
    "",
    ":",
    " plain",
    "PLAIN",
    "suffix:canary.run",
    "suffix:../../canary",
    "draft_model:canary.run",
    "draft_model:../../canary",
    "causal_parallel:canary.run",
    "causal_parallel:../../canary",
    "causal_parallel:./canary.py",
]


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module within reach that leaves a trace when it is imported."""
    trace = tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w').close()\ndef run(*a, **k): return None\n"
    (tmp_path / "canary.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not trace.exists(), "the canary was imported"


@pytest.mark.fault("X2")
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:30])
def test_names_resolve_in_registries_only(name: str, canary: Path) -> None:
    config = load_config({"policy": name, "drafter": name})
    with pytest.raises(AdaptiveSpecError):
        Deciding(NullLatency(), 16, 16).add(config.policy)
    with pytest.raises(AdaptiveSpecError):
        build_drafters(config, DraftContext(None, load, lambda: None))
    known = {entry.name for entry in [*CONTROLLERS.entries(), *DRAFTERS.entries()]}
    assert name not in known


@pytest.mark.fault("X2")
@pytest.mark.parametrize(
    "config",
    [
        {"_target_": "canary.run"},
        {"class_path": "canary.run"},
        {"auto_map": {"AutoModel": "canary.run"}},
        {"import": "canary"},
        {"suffix": {"factory": "canary.run"}},
        {"tree": {"__class__": "canary.run"}},
        {"model_config": {"extra": "allow"}},
        {"__fields_set__": ["x"]},
        {"py/object": "canary.run"},
        "../default",
        "..",
        "configs/default",
        "default\x00",
        "canary",
        "canary.py",
        "canary.toml",
    ],
    ids=str,
)
def test_configs_are_data(config: Any, canary: Path) -> None:
    (canary / "canary.toml").symlink_to(canary / "canary.py")
    with pytest.raises((ConfigError, UnknownNameError)) as caught:
        load_config(config)
    assert "open(" not in str(caught.value), "the content of a file is not shown"


@pytest.mark.fault("X2")
def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "log").symlink_to(victim)
    with pytest.raises(LogError, match="symbolic link"):
        build_log(load_config({"log": {"path": str(tmp_path / "log")}}))
    assert victim.read_text() == "precious"


@pytest.mark.fault("X2")
@pytest.mark.parametrize("model_type", ["llama", "unheard_of"])
def test_code_in_a_checkpoint_is_never_run(model_type: str, canary: Path) -> None:
    folder = canary / "checkpoint"
    folder.mkdir()
    (folder / "canary_model.py").write_text((canary / "canary.py").read_text())
    run = "canary_model.run"
    auto = {"AutoConfig": run, "AutoModelForCausalLM": run, "AutoTokenizer": [run, run]}
    config = {"model_type": model_type, "architectures": ["Canary"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = {"tokenizer_class": "CanaryTokenizer", "auto_map": auto}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for name in (str(folder), "./checkpoint"):
        with pytest.raises(CatalogueError, match="could not be loaded"):
            load(name)


@pytest.mark.fault("X2")
def test_custom_generate_by_name_is_refused(canary: Path) -> None:
    decoder = AdaptiveDecoder(tiny_model("llama"))
    for door in (decoder.generate, decoder.start):
        with pytest.raises(UnsupportedError, match="custom_generate"):
            door(torch.tensor([[5, 6]]), custom_generate=str(canary), trust_remote_code=True)


# -- the source itself ----------------------------------------------------------------------------

PACKAGE = Path(adaptive_spec.__file__).parent
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "imp", "runpy", "code"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "os.system",
    "os.popen",
    "numpy.load",
    "np.load",
    "yaml.load",
    "pydoc.locate",
    "pkgutil.resolve_name",
    "importlib.util.spec_from_file_location",
}
SAFE = {"shell": False, "trust_remote_code": False, "allow_pickle": False, "weights_only": True}
LAZY = {"__init__.py"}
"""``adaptive_spec.__getattr__`` imports from its own constant table."""


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _dangers(source: str) -> list[str]:
    """What in ``source`` could run code that came as data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(f"from {node.module}")
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{name.name}" for name in node.names}
            found += sorted(names & ATTRIBUTES)
        elif isinstance(node, ast.Attribute) and _dotted(node) in ATTRIBUTES:
            found.append(_dotted(node))
        elif isinstance(node, ast.Name) and node.id in CALLS:
            found.append(node.id)
        elif isinstance(node, ast.Call):
            constant = bool(node.args) and isinstance(node.args[0], ast.Constant)
            if _dotted(node.func).endswith("import_module") and not constant:
                found.append("import_module of a name that is not a constant")
            for keyword in node.keywords:
                value, safe = keyword.value, SAFE.get(keyword.arg or "")
                if safe is not None and getattr(value, "value", None) is not safe:
                    found.append(f"{keyword.arg}={ast.unparse(value)}")
    return found


@pytest.mark.fault("X2")
def test_the_source_runs_no_data() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 40
    dangers = {
        str(file.relative_to(PACKAGE)): found
        for file in files
        if str(file.relative_to(PACKAGE)) not in LAZY and (found := _dangers(file.read_text()))
    }
    assert dangers == {}


@pytest.mark.fault("X2")
@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "run = exec",
        "import pickle",
        "from pickle import loads",
        "import dill.source",
        "torch.load(path)",
        "from torch import load",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=flag)",
        "np.load(path)",
        "f(weights_only=False)",
        "importlib.import_module(name)",
        "__import__(name)",
    ],
)
def test_the_walk_finds_every_danger(line: str) -> None:
    """Negative control of the test above."""
    assert _dangers(line)
    assert not _dangers("f(trust_remote_code=False, weights_only=True)\nmodel.eval()")
