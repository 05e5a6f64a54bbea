"""Policies by name. ``adaptive-spec policies`` lists what is here."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from adaptive_spec.controllers.base import Controller
from adaptive_spec.registry import Registry

CONTROLLERS: Registry[Controller] = Registry("policy", "adaptive_spec.controllers")


def _plain(argument: str | None) -> Controller:
    module = import_module("adaptive_spec.controllers.plain")
    return cast(Controller, module.NoSpeculation(argument))


def _fixed(argument: str | None) -> Controller:
    module = import_module("adaptive_spec.controllers.fixed")
    return cast(Controller, module.FixedBudget(argument))


def _marginal(argument: str | None) -> Controller:
    module = import_module("adaptive_spec.controllers.marginal")
    return cast(Controller, module.MarginalGain(argument))


def _ratio(argument: str | None) -> Controller:
    module = import_module("adaptive_spec.controllers.ratio")
    return cast(Controller, module.BestRatio(argument))


CONTROLLERS.register("plain", _plain, "Never drafts: plain decoding through the same code.")
CONTROLLERS.register("fixed", _fixed, "fixed:N verifies the N best draft nodes in every step.")
CONTROLLERS.register(
    "marginal",
    _marginal,
    "Grows the tree while a node brings more tokens than its time is worth at the going rate; "
    "marginal:H sets the horizon of that rate in steps.",
)
CONTROLLERS.register(
    "ratio", _ratio, "Takes the size with the most expected tokens per second of the single step."
)
