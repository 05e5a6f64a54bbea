"""What a benchmark run is asked to do: the options of ``adaptive-spec bench`` as plain values.

Everything that can be judged without a model is judged here, before anything is loaded; messages
name the option as it is typed.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from adaptive_spec.arguments import check_whole
from adaptive_spec.errors import ArgumentError
from adaptive_spec.models import DTYPES


@dataclass(frozen=True, slots=True)
class Vary:
    """A config key as a further factor: every contestant once per value."""

    key: str
    values: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> Vary:
        """Read ``KEY=a,b``; values are TOML, or else bare strings."""
        key, _, values = text.partition("=")
        found = split(values)
        if not key.strip() or not found:
            allowed = "expected KEY=a,b with a config key, like tree.max_depth=8,16"
            raise ArgumentError("--vary", text, allowed)
        if key.strip() in ("policy", "drafter"):
            raise ArgumentError("--vary", text, f"use --{_PLURAL[key.strip()]} for that key")
        if key.strip().startswith("log."):
            raise ArgumentError("--vary", text, "the benchmark keeps the log itself")
        return Vary(key.strip(), found)


_PLURAL = {"policy": "policies", "drafter": "drafters"}


@dataclass(frozen=True, slots=True)
class Disturbance:
    """A change of the machine: ``threads`` from decoding step ``step`` (from 1) on."""

    threads: int
    step: int

    @staticmethod
    def parse(text: str) -> Disturbance:
        """Read ``threads=K@S``."""
        what, _, rest = text.partition("=")
        count, _, step = rest.partition("@")
        if what.strip() != "threads" or not (_is_count(count) and _is_count(step)):
            allowed = (
                "expected threads=K@S: K torch threads from decoding step S on, both 1 or more"
            )
            raise ArgumentError("--disturb", text, allowed)
        if int(count) > (most := most_threads()):
            raise ArgumentError("--disturb", text, f"expected threads=K@S with K from 1 to {most}")
        return Disturbance(int(count), int(step))


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """One run of the benchmark. The fields are the options of the command, same names.

    Raises:
        ArgumentError: a value out of range, with the option's name.
    """

    model: str
    suite: str = "humaneval"
    limit: int | None = None
    max_new_tokens: int = 128
    dtypes: tuple[str, ...] = ("float32",)
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    repeats: int = 1
    threads: int | None = None
    batch: int = 1
    policies: tuple[str, ...] | None = None
    """None: the config's policy. ``plain`` runs in any case."""
    drafters: tuple[str, ...] | None = None
    """None: the config's drafter."""
    peers: tuple[str, ...] = ()
    baseline: str | None = None
    vary: tuple[Vary, ...] = ()
    disturb: Disturbance | None = None
    memory: bool = False
    ignore_eos: bool = False
    config: str | None = None
    overrides: tuple[str, ...] = ()
    raw: bool = False
    out: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.limit is not None:
            check_whole("--limit", self.limit, 1)
        check_whole("--max-new-tokens", self.max_new_tokens, 1)
        check_whole("--seed", self.seed, 0, 2**62)
        check_whole("--repeats", self.repeats, 1)
        check_whole("--batch", self.batch, 1)
        if self.threads is not None:
            check_whole("--threads", self.threads, 1, most_threads())
        if not 0 <= self.temperature < math.inf:
            raise ArgumentError("--temperature", self.temperature, "a number, 0 or more")
        if not 0 < self.top_p <= 1:
            raise ArgumentError("--top-p", self.top_p, "a number in (0, 1]")
        for option, names in (
            ("--dtype", self.dtypes),
            ("--policies", self.policies),
            ("--drafters", self.drafters),
        ):
            if names is not None and not names:
                raise ArgumentError(option, "", "at least one name, several separated by commas")
        for dtype in self.dtypes:
            if dtype not in DTYPES:
                raise ArgumentError("--dtype", dtype, f"one of {', '.join(DTYPES)}")
        if self.peers and (self.batch != 1 or self.temperature != 0):
            allowed = "Hugging Face peers run only at --batch 1 and --temperature 0"
            raise ArgumentError("--peers", self.peers[0], allowed)
        if self.peers and self.disturb is not None:
            allowed = "with --disturb there are no peers: their steps cannot be counted"
            raise ArgumentError("--peers", self.peers[0], allowed)

    def generation(self) -> dict[str, object]:
        """The arguments of ``generate`` that all contestants get alike; top-k is off."""
        options: dict[str, object] = {"max_new_tokens": self.max_new_tokens}
        if self.temperature == 0:
            return {**options, "do_sample": False}
        sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        return {**options, **sampling, "top_k": 0}


def split(text: str) -> tuple[str, ...]:
    """The entries of a comma-separated list, each once, blanks left out; brackets hold together."""
    parts = re.split(r",(?![^\[]*\])", text)
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def most_threads() -> int:
    """Processors of this machine: more threads than that only wait for each other."""
    return os.cpu_count() or 1


def unknown(option: str, value: str, known: Sequence[str]) -> ArgumentError:
    """The error for a name that is none of ``known``."""
    return ArgumentError(option, value, f"one of {', '.join(known)}")


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) >= 1
