"""Drafters by name. ``a+b`` (several drafters merged into one tree) is refused by name for now."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

from adaptive_spec.drafters.base import Drafter
from adaptive_spec.registry import Registry

DRAFTERS: Registry[Drafter] = Registry("drafter", "adaptive_spec.drafters")


def _suffix(argument: str | None, **options: Any) -> Drafter:
    module = import_module("adaptive_spec.drafters.suffix")
    return cast(Drafter, module.SuffixDrafter(argument, **options))


DRAFTERS.register(
    "suffix",
    _suffix,
    "Looks up what followed the current suffix earlier in prompt and output; needs no training.",
)
