"""Configuration, presets, overrides and registries: row X3 of the fault table."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from adaptive_spec.build import build_log, find_drafters
from adaptive_spec.config import Config, load_config, presets
from adaptive_spec.controllers.registry import CONTROLLERS
from adaptive_spec.drafters.registry import DRAFTERS
from adaptive_spec.errors import (
    AdaptiveSpecError,
    ArgumentError,
    ConfigError,
    UnknownNameError,
)
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.registry import Registry
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import run

# -- sources --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "logged", "plain"])
def test_every_preset_loads_and_names_what_exists(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(name)
    CONTROLLERS.find(config.policy)
    named = {"default": [], "logged": [], "plain": ["suffix"]}  # auto is settled by the target
    assert [entry.name for entry, _ in find_drafters(config)] == named[name]
    log = build_log(config)
    assert (log.path is not None) == (name == "logged")
    log.close()


def test_presets_are_listed_and_none_means_default() -> None:
    assert presets() == ["default", "logged", "plain"]
    assert load_config() == load_config("default") == Config()


def test_every_source_gives_the_same_config(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('policy = "fixed:3"\n[tree]\nmax_depth = 5\n')
    same = [
        load_config(path),
        load_config(str(path)),
        load_config({"policy": "fixed:3", "tree": {"max_depth": 5}}),
        load_config("default", ["policy=fixed:3", "tree.max_depth=5"]),
        load_config(Config(), ['policy="fixed:3"', "tree.max_depth = 5"]),
    ]
    assert all(config == same[0] for config in same)
    assert (same[0].policy, same[0].tree.max_depth, same[0].tree.max_nodes) == ("fixed:3", 5, 256)


def test_overrides_do_not_change_their_source() -> None:
    source = {"tree": {"max_depth": 5}}
    config = load_config(source, ["tree.max_depth=6", "cache.max_slots=none", "log.path=a=b.log"])
    assert config.tree.max_depth == 6
    assert config.log.path == "a=b.log"
    assert source == {"tree": {"max_depth": 5}}
    with pytest.raises(Exception, match="frozen"):
        config.policy = "plain"  # type: ignore[misc]


# -- X3: bad configs ------------------------------------------------------------------------------

BAD: list[tuple[Any, list[str], str]] = [
    ({"polcy": "plain"}, [], r"unknown key 'polcy' \(did you mean 'policy'\?\); valid: policy"),
    ({"tree": {"max_node": 3}}, [], r"'tree.max_node' \(did you mean 'max_nodes'\?\)"),
    ({"suffix": {"depth": 3}}, [], "unknown key 'suffix.depth'"),
    ({}, ["cach.slots=64"], r"'cach' \(did you mean 'cache'\?\)"),
    ({"tree": {"max_nodes": 1025}}, [], "tree.max_nodes=1025: .* less than or equal to 1024"),
    ({"tree": {"max_nodes": -1}}, [], "tree.max_nodes=-1: .* greater than or equal to 0"),
    ({"tree": {"max_depth": 0}}, [], "tree.max_depth=0: .* greater than or equal to 1"),
    ({"cache": {"slots": 15}}, [], "cache.slots=15: .* greater than or equal to 16"),
    ({"cache": {"max_slots": 2}}, [], "cache.max_slots=2: .* greater than or equal to 16"),
    ({"cache": {"prefill_chunk": 0}}, [], "cache.prefill_chunk=0: .* equal to 1"),
    ({"log": {"files": 101}}, [], "log.files=101: .* less than or equal to 100"),
    ({"tree": {"max_nodes": "16"}}, [], "tree.max_nodes='16': .* valid integer"),
    ({"tree": {"max_nodes": 16.0}}, [], "tree.max_nodes=16.0: .* valid integer"),
    ({"tree": {"max_nodes": True}}, [], "tree.max_nodes=True: .* valid integer"),
    ({"tree": {"max_nodes": float("nan")}}, [], "tree.max_nodes=nan: "),
    ({"self_check": "yes"}, [], "self_check='yes': .* valid boolean"),
    ({"policy": 16}, [], "policy=16: .* valid string"),
    ({"tree": 5}, [], "tree=5: "),
    ({}, ["tree.max_nodes=many"], "tree.max_nodes='many'"),
    ({}, ["tree.max_nodes"], "not of the form section.field=value"),
    ({}, ["=5"], "not of the form section.field=value"),
    ({"policy": "plain"}, ["policy.size=5"], "'policy' is not a section"),
    ("missing.toml", [], "cannot be read"),
]


@pytest.mark.fault("X3")
@pytest.mark.parametrize(("source", "overrides", "message"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_config_says_what_is_wrong(source: Any, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(source, overrides)


@pytest.mark.fault("X3")
def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"polcy": 1, "tree": {"max_depth": 0}})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.fault("X3")
def test_unreadable_files(tmp_path: Path) -> None:
    contents = [b"policy = ", b"\xff\xfe", b"a = 1\na = 2\n"]
    for i, content in enumerate(contents):
        path = tmp_path / f"{i}.toml"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read"):
            load_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


@pytest.mark.fault("X3")
@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ("defualt", UnknownNameError, "did you mean 'default'"),
        ({"policy": "fxed:3"}, UnknownNameError, r"unknown policy 'fxed' \(did you mean 'fixed'"),
        ({"drafter": "sufix"}, UnknownNameError, "unknown drafter 'sufix' .*'suffix'"),
        ({"policy": "fixed:1025"}, ArgumentError, "from 0 to 1024"),
        ({"policy": "fixed:-1"}, ArgumentError, "from 0 to 1024"),
        ({"policy": "fixed:many"}, ArgumentError, "from 0 to 1024"),
        ({"policy": "plain:3"}, ArgumentError, "takes no argument"),
        ({"drafter": "suffix:3"}, ArgumentError, "takes none"),
        ({"drafter": "suffix+suffix"}, ArgumentError, "every drafter may come once"),
    ],
    ids=str,
)
def test_a_bad_name_is_refused_at_construction(
    config: Any, error: type[AdaptiveSpecError], message: str
) -> None:
    with pytest.raises(error, match=message):
        AdaptiveDecoder(tiny_model("llama"), config)


@pytest.mark.fault("X3")
def test_a_bad_policy_of_a_session_leaves_everything_as_it_was() -> None:
    decoder = AdaptiveDecoder(tiny_model("llama"))
    with decoder.start([5, 6, 7], max_new_tokens=4) as session:
        for bad in ("fxed", "fixed:x", ""):
            with pytest.raises(AdaptiveSpecError):
                session.set_policy(bad)
        assert session.policy == "marginal"
        with pytest.raises(UnknownNameError):
            decoder.start([5, 6, 7], policy="fxed", max_new_tokens=4)
        list(session)
        session.extend([8])
        session.set_policy("fixed:2")
        list(session)
    assert decoder.cache.pool.high_water == 0


# -- registries and plug-ins ----------------------------------------------------------------------

PLUG_IN = """
from adaptive_spec.controllers.fixed import FixedBudget
from adaptive_spec.drafters.suffix import SuffixDrafter

def policy(argument):
    return FixedBudget(argument or "2")

def drafter(argument, **options):
    return SuffixDrafter(argument, coupled=options["coupled"])
"""
POINTS = """
[adaptive_spec.controllers]
two = acme_plug_in:policy
plain = acme_plug_in:policy
broken = acme_plug_in:missing

[adaptive_spec.drafters]
acme = acme_plug_in:drafter
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution that offers policies and a drafter."""
    (tmp_path / "acme_plug_in.py").write_text(PLUG_IN)
    info = tmp_path / "acme_plug_in-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-plug-in\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    for registry in (CONTROLLERS, DRAFTERS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.delitem(sys.modules, "acme_plug_in", raising=False)


@pytest.mark.usefixtures("plug_in")
def test_an_installed_plug_in_is_found_and_imported_late() -> None:
    assert "two" in {point.name for point in entry_points(group="adaptive_spec.controllers")}
    entries = {entry.name: entry for entry in CONTROLLERS.entries()}
    assert set(entries) == {"plain", "fixed", "marginal", "ratio", "two", "broken"}
    assert "acme_plug_in:policy" in entries["two"].summary
    assert "plug-in" not in entries["plain"].summary, "built-in names cannot be taken over"
    assert "acme_plug_in" not in sys.modules
    model = tiny_model("llama")
    decoder = AdaptiveDecoder(model, {"policy": "two:3", "drafter": "acme"})
    tokens = run(decoder, [5, 6, 5, 6, 5], max_new_tokens=8)
    assert tokens == run(AdaptiveDecoder(model, "plain"), [5, 6, 5, 6, 5], max_new_tokens=8)
    with pytest.raises(AttributeError, match="missing"):
        AdaptiveDecoder(model, {"policy": "broken"})


def test_registering_in_process() -> None:
    registry: Registry[int] = Registry("number", "adaptive_spec.nothing")
    registry.register("one-and", lambda argument: 1 + int(argument or 0), "one and more")
    entry, argument = registry.find("one-and:41")
    assert entry.factory(argument) == 42
    for bad in ("a.b", "a:b", "", "a b", "../a", "1x"):
        with pytest.raises(ValueError, match="letters, digits"):
            registry.register(bad, lambda argument: 0, "bad")
