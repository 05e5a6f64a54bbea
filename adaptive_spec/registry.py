"""Typed registries of names: the only way from a config to code.

A name takes one argument as ``NAME:ARG``. Third parties add names in process with ``register`` or
through an entry-point group; a config can never name a dotted path.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from adaptive_spec.errors import UnknownNameError

T = TypeVar("T")

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""``org/name`` on the Hugging Face hub."""


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A registered name: how to build it, and what it does in one sentence."""

    name: str
    factory: Callable[..., T]
    summary: str


def closest(name: str, known: list[str]) -> str:
    """A hint for an error message: the most similar known name, if any is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _late(point: EntryPoint) -> Callable[..., Any]:
    """A factory that imports the plug-in when it is first asked for."""
    return lambda *args, **options: point.load()(*args, **options)


class Registry(Generic[T]):
    """Names of one kind. Factories import what they need when they are called."""

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, factory: Callable[..., T], summary: str) -> None:
        """Add or replace a name. ``factory(arg, **options)`` gets the text after the colon."""
        if not name.replace("-", "_").isidentifier():
            raise ValueError(f"{self.kind} name {name!r} must be letters, digits, '-' and '_'")
        self._entries[name] = Entry(name, factory, summary)

    def entries(self) -> list[Entry[T]]:
        """All known names, those of installed plug-ins included, sorted."""
        for point in entry_points(group=self.group):
            if point.name not in self._entries:
                summary = f"plug-in {point.value}"
                self._entries[point.name] = Entry(point.name, _late(point), summary)
        return sorted(self._entries.values(), key=lambda entry: entry.name)

    def find(self, spec: str) -> tuple[Entry[T], str | None]:
        """The entry and the argument that ``NAME[:ARG]`` names.

        Raises:
            UnknownNameError: with the closest valid name.
        """
        name, colon, argument = spec.partition(":")
        known = {entry.name: entry for entry in self.entries()}
        if name not in known:
            names = list(known)
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}{closest(name, names)}; known: {', '.join(names)}"
            )
        if colon and not argument:
            raise UnknownNameError(f"{self.kind} {spec!r}: nothing stands after the colon")
        return known[name], argument if colon else None
