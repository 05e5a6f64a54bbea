"""Configuration: TOML presets, strict and frozen, with overrides.

A config is a preset name (``default``), a path to a TOML file, a dict or a ``Config``; single
values are overridden as ``section.field=value``. Unknown keys are refused with the closest valid
name, values out of range with the range. A config holds names and numbers only: names resolve in
registries, never as code.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adaptive_spec.errors import ConfigError, UnknownNameError
from adaptive_spec.registry import closest

ConfigLike: TypeAlias = "Config | Mapping[str, Any] | str | Path | None"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TreeSection(_Section):
    """Bounds that hold for every policy."""

    max_nodes: int = Field(256, ge=0, le=1024, description="most draft nodes per request and step")
    max_depth: int = Field(32, ge=1, le=256, description="deepest draft node")
    sizes: list[Annotated[int, Field(ge=1, le=1 << 16)]] | None = Field(
        None,
        description="executable sizes: draft nodes of a forward, filled up to the next of them; "
        "[] fills nothing, none leaves it to the device",
    )


class CacheSection(_Section):
    """The slot pool."""

    slots: int = Field(512, ge=16, le=1 << 20, description="slots to begin with; grows by doubling")
    max_slots: int | None = Field(
        None, ge=16, description="most slots; none: context limit x open sessions"
    )
    prefill_chunk: int = Field(512, ge=1, le=1 << 16, description="prompt tokens per forward")


class LogSection(_Section):
    """The budget log."""

    path: str | None = Field(None, description="file to append to; none writes nothing")
    detail: bool = Field(True, description="per-node arrays, which make replay possible")
    text: bool = Field(False, description="token ids of the verified tree and the output")
    max_bytes: int = Field(16 << 20, ge=4096, description="size at which the file is rotated")
    files: int = Field(3, ge=1, le=100, description="files kept, the current one included")


class SuffixSection(_Section):
    """Options of the ``suffix`` drafter."""

    floor: float = Field(0.06, ge=0, lt=1, description="least estimated survival of a node")


class RecallSection(_Section):
    """Options of the ``recall`` drafter."""

    floor: float = Field(0.06, ge=0, lt=1, description="least estimated survival of a node")
    tokens: int = Field(
        1 << 16, ge=64, le=1 << 24, description="tokens of former answers that are kept"
    )


class DraftModelSection(_Section):
    """Options of the ``draft_model`` drafter."""

    width: int = Field(8, ge=1, le=64, description="nodes expanded per forward of the draft model")
    siblings: int = Field(8, ge=1, le=64, description="children considered per node")


class CausalParallelSection(_Section):
    """Options of the ``causal_parallel`` drafter."""

    head: str | None = Field(
        None, description="name, folder or hub id of a head; none: the one that ships"
    )
    width: int = Field(8, ge=1, le=64, description="nodes expanded together")
    siblings: int = Field(8, ge=1, le=64, description="children considered per node")


class OnlineSection(_Section):
    """Learning from the verifier while decoding."""

    updates: str = Field(
        "never",
        description="never, always, every:K[@ARM], cost-aware[:S], head-only[:S] or "
        "corrector-only[:S]: when the head may learn, and with cost-aware which former answers are "
        "remembered",
    )
    lessons: int = Field(
        4096,
        ge=64,
        le=1 << 20,
        description="verified nodes (2 KB each) and positions of text (6 KB) kept to learn from",
    )
    deadline: float = Field(
        0.25, gt=0, le=3600, description="seconds between two steps that learning may take"
    )
    background: bool = Field(False, description="learn in a thread of its own")


class Config(_Section):
    """Everything that can be set. See ``adaptive_spec/configs`` for the presets."""

    policy: str = Field("marginal", description="NAME or NAME:ARG, see `adaptive-spec policies`")
    drafter: str = Field(
        "auto",
        description="NAME[:ARG][+NAME...], see `adaptive-spec policies`; auto: the head that ships "
        "for the target together with suffix, or suffix alone",
    )
    coupled: bool = Field(
        True,
        description="when sampling, let drafters read the noise that the target will draw with",
    )
    calibration: str | None = Field(
        None, description="file of `adaptive-spec calibrate` to start from; none starts cold"
    )
    kernels: Literal["auto", "off"] = Field(
        "auto", description="Triton kernels: where they can run (on CUDA), or nowhere"
    )
    self_check: bool = Field(
        True,
        description="at start compare a small tree with plain logits, and run usual sizes once",
    )
    tree: TreeSection = TreeSection()
    cache: CacheSection = CacheSection()
    log: LogSection = LogSection()
    suffix: SuffixSection = SuffixSection()
    recall: RecallSection = RecallSection()
    draft_model: DraftModelSection = DraftModelSection()
    causal_parallel: CausalParallelSection = CausalParallelSection()
    online: OnlineSection = OnlineSection()

    def drafter_options(self, name: str) -> dict[str, Any]:
        """The drafter's own section as keyword options; {} for drafters without one."""
        section = getattr(self, name, None) if name in type(self).model_fields else None
        return section.model_dump() if isinstance(section, _Section) else {}


def presets() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = files("adaptive_spec") / "configs"
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))


def load_config(source: ConfigLike = None, overrides: Sequence[str] = ()) -> Config:
    """Resolve a preset name, path, dict or Config, then apply ``section.field=value`` overrides.

    Raises:
        ConfigError: unreadable file, unknown key, value out of range.
        UnknownNameError: no preset of that name.
    """
    if isinstance(source, Config) and not overrides:
        return source
    values = _values(source)
    for override in overrides:
        _apply(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _values(source: ConfigLike) -> dict[str, Any]:
    if source is None:
        return _values("default")
    if isinstance(source, Config):
        return source.model_dump()
    if isinstance(source, Mapping):
        return {key: dict(v) if isinstance(v, Mapping) else v for key, v in source.items()}
    path = Path(source)
    if isinstance(source, str) and path.suffix != ".toml":
        if source not in presets():
            hint = closest(source, presets())
            raise UnknownNameError(
                f"no preset {source!r}{hint}; presets: {', '.join(presets())}; "
                "a file must end in .toml"
            )
        return tomllib.loads((files("adaptive_spec") / "configs" / f"{source}.toml").read_text())
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"config {str(source)!r} cannot be read: {error}") from None


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one ``section.field=value``; the value is TOML, or else a bare string."""
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"override {override!r} is not of the form section.field=value")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    value = None if value == "none" else value
    *sections, field = name.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {section!r} is not a section")
    values[field] = value


def _explain(error: ValidationError) -> str:
    """One line per problem: field, value, what is allowed, closest valid name."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _fields(problem["loc"][:-1])
            hint = closest(str(problem["loc"][-1]), known)
            lines.append(f"unknown key {where!r}{hint}; valid: {', '.join(known)}")
        else:
            allowed = _bounds(problem["loc"])
            lines.append(f"{where}={problem['input']!r}: {problem['msg']}{allowed}")
    return "\n".join(lines)


def _bounds(path: tuple[Any, ...]) -> str:
    """The range of the number at ``path``, in brackets; empty where there is none."""
    section: Any = Config
    field: Any = None
    for part in path:
        if part in getattr(section, "model_fields", ()):
            field = section.model_fields[part]
            section = type(field.default)
    marks = [] if field is None else [*field.metadata, *_marks(field.annotation)]
    found = {name: getattr(mark, name) for mark in marks for name in _SIGNS if hasattr(mark, name)}
    words = [f"{_SIGNS[name]} {bound}" for name, bound in found.items()]
    return f" (allowed: {', '.join(words)})" if words else ""


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _marks(annotation: Any) -> Iterator[Any]:
    """The bounds of the entries of a list."""
    for inner in getattr(annotation, "__metadata__", ()):
        yield from inner.metadata
    for argument in get_args(annotation):
        yield from _marks(argument)


def _fields(path: tuple[Any, ...]) -> list[str]:
    """Valid keys of the section at ``path``."""
    section: type[BaseModel] = Config
    for part in path:
        section = type(section.model_fields[part].default)
    return list(section.model_fields)
