"""Floors, doors and the wheel: what the layout promises, proved from the source."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "adaptive_spec"
LINKS = ("controllers", "profilers", "configs")

FLOORS = {
    1: "errors types registry controllers.base drafters.base profilers.base online.base",
    2: "tree walk sampling stopping packing filling profilers.* controllers.* budget_log log_file "
    "log_reader drafters.automaton drafters.blending drafters.coupling drafters.pairing merging",
    3: "uploading cache attention model_facts target selfcheck heads.* kernels.*",
    4: "drafters.* online.* config session requests drafting valuing deciding verifying reporting "
    "isolation share recovering decoder build calibrating",
    5: "hf calls arguments row_rules outputs cli.* bench.* testing.* training.* models fetching "
    "conversion user_cache prompts pictures options",
}
"""Floor -> modules; a name beats a star."""
MAY_KNOW_TRANSFORMERS = {"attention", "cache", "kernels.attach"}
"""Below the doors: ``target`` and ``selfcheck`` get the model handed in, ``cache`` subclasses,
``attention`` and ``kernels.attach`` register functions."""
MODEL_WORDS = {"past_key_values", "get_text_config", "_attn_implementation", "position_ids"}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module by its name below the package; ``__init__`` files hold no code, see below."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        if file.name != "__init__.py":
            found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def floor(module: str) -> int:
    for name in (module, f"{module.split('.')[0]}.*"):
        for level, listed in FLOORS.items():
            if name in listed.split():
                return level
    raise AssertionError(f"{module} has no floor: add it to the table in design and test")


def runtime(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from runtime(node)


def imported(tree: ast.Module, every: bool = False) -> set[str]:
    """Full names of what a module imports, lazily or not; with ``every`` for types only too."""
    names: set[str] = set()
    for node in ast.walk(tree) if every else runtime(tree):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {str(node.module)}
            names |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return names


def inside(names: set[str]) -> set[str]:
    """Those that are modules of the package, by their names below it."""
    short = {name.removeprefix("adaptive_spec.") for name in names if name != "adaptive_spec"}
    return {name for name in short if name in modules()}


def packages_reached(module: str) -> set[str]:
    """Top-level names that importing ``module`` can bring in at run time."""
    seen, todo, outside = set(), [module], set()
    while todo:
        here = todo.pop()
        if here not in seen:
            seen.add(here)
            names = imported(modules()[here])
            outside |= {name.split(".")[0] for name in names}
            todo.extend(inside(names))
    return outside


# -- floors ---------------------------------------------------------------------------------------


def test_every_module_imports_from_its_floor_or_below() -> None:
    wrong = [
        f"{module} (floor {floor(module)}) imports {other} (floor {floor(other)})"
        for module, tree in modules().items()
        for other in inside(imported(tree, every=True))
        if floor(other) > floor(module)
    ]
    assert wrong == []


def test_packages_only_say_what_they_hold() -> None:
    for file in sorted(PACKAGE.rglob("__init__.py")):
        names = imported(ast.parse(file.read_text()), every=True)
        assert file.parent == PACKAGE or not names, file


def test_imports_have_no_cycles() -> None:
    graph = {module: inside(imported(tree)) - {module} for module, tree in modules().items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_an_upward_import_is_found() -> None:
    """Negative control."""
    names = imported(ast.parse("from adaptive_spec import decoder\nimport adaptive_spec.hf"))
    assert inside(names) == {"decoder", "hf"}
    assert floor("decoder") > floor("tree")
    assert floor("controllers.base") == 1
    assert floor("controllers.fixed") == 2
    with pytest.raises(AssertionError, match="has no floor"):
        floor("utils")


def test_policies_and_profilers_never_reach_torch() -> None:
    free = [m for m in modules() if m.split(".")[0] in {"controllers", "profilers"}]
    assert len(free) >= 6
    for module in [*free, "types", "errors", "registry", "config", "tree", "walk", "stopping"]:
        assert not packages_reached(module) & {"torch", "transformers"}, module
    assert "torch" in packages_reached("decoder")


def test_only_the_cache_and_the_doors_know_transformers() -> None:
    for module, tree in modules().items():
        if module in MAY_KNOW_TRANSFORMERS or floor(module) == 5:
            continue
        names = {name.split(".")[0] for name in imported(tree, every=True)}
        assert "transformers" not in names, module


def test_only_the_target_knows_models() -> None:
    for module, tree in modules().items():
        if module in ("attention", "model_facts", "target", "kernels.attach") or floor(module) == 5:
            continue
        words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        words |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}  # type: ignore[misc]
        assert not words & MODEL_WORDS, module


@pytest.mark.parametrize("protocol", ["controllers/base.py"])
def test_the_protocol_file_is_short(protocol: str) -> None:
    assert len((PACKAGE / protocol).read_text().splitlines()) <= 60


def test_the_step_fits_on_one_screen() -> None:
    steps = [
        node
        for node in ast.walk(modules()["decoder"])
        if isinstance(node, ast.FunctionDef) and node.name == "_step"
    ]
    assert len(steps) == 1
    assert 10 < len(ast.unparse(steps[0]).splitlines()) <= 25


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, adaptive_spec, adaptive_spec.config, adaptive_spec.controllers.fixed\n"
        "import adaptive_spec.controllers.registry, adaptive_spec.profilers.base\n"
        "assert dir(adaptive_spec), adaptive_spec.Config\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert _python(code, ROOT).stdout.strip() == "[]"


# -- links ----------------------------------------------------------------------------------------


def _python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def _check_links(root: Path) -> None:
    for name in LINKS:
        link = root / name
        assert link.is_symlink(), name
        assert os.readlink(link) == f"adaptive_spec/{name}"
        assert link.resolve() == (root / "adaptive_spec" / name).resolve()
        assert any(link.iterdir())
    for name in ("controllers", "profilers"):
        done = _python(f"import {name}", root)
        assert done.returncode == 1
        assert f"ImportError: this folder is a door for readers: import adaptive_spec.{name}" in (
            done.stderr
        )


def test_links_are_doors_for_readers_only() -> None:
    _check_links(ROOT)


# -- what is handed out ---------------------------------------------------------------------------


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


needs_git = pytest.mark.skipif(
    not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a git checkout"
)


@needs_git
def test_a_fresh_clone_has_working_links(tmp_path: Path) -> None:
    _git("clone", "--quiet", "--no-hardlinks", str(ROOT), str(tmp_path / "clone"))
    _check_links(tmp_path / "clone")


PRIVATE = {
    "a machine's path": re.compile(r"/(?:work|root|home|Users|mnt)/\w"),
    "a package index": re.compile(
        r"index[-_]url[\s=:]+\S*//|\bpypi\.\w|pythonhosted\.|/simple/", re.IGNORECASE
    ),
    "a password in a link": re.compile(r"https?://[^/\s]*:[^/\s]*@"),
}


@needs_git
def test_tracked_files_name_no_machine_and_no_index() -> None:
    found = []
    for name in _git("ls-files", "-z").split("\0"):
        file = ROOT / name
        if not name or file.is_symlink() or not file.is_file() or file == Path(__file__):
            continue
        text = file.read_bytes().decode("utf-8", "replace")
        found += [
            f"{name}: {what}: {m.group()}" for what, p in PRIVATE.items() for m in p.finditer(text)
        ]
    assert found == []


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    source.mkdir()
    quiet = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, source / "adaptive_spec", ignore=quiet)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in LINKS:
        (source / name).symlink_to(f"adaptive_spec/{name}")
    words = "wheel . --quiet --no-deps --no-build-isolation --no-index --wheel-dir out"
    subprocess.run(
        [sys.executable, "-m", "pip", *words.split()], cwd=source, check=True, capture_output=True
    )
    (wheel,) = (source / "out").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    (info,) = tops - {"adaptive_spec"}
    assert re.fullmatch(r"adaptive_spec-[\w.]+\.dist-info", info)
    code = {name for name in names if not name.startswith(info)}
    wanted = {
        str(file.relative_to(ROOT))
        for file in PACKAGE.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert code == wanted
    assert {"adaptive_spec/py.typed", "adaptive_spec/configs/default.toml"} <= code
    assert f"{info}/licenses/LICENSE" in names
    assert "adaptive-spec = adaptive_spec.cli" in (
        zipfile.ZipFile(wheel).read(f"{info}/entry_points.txt").decode()
    )
