"""From a config to objects: the one place where names become drafters, models of cost and logs."""

from __future__ import annotations

from collections.abc import Sequence

from adaptive_spec.budget_log import BudgetLog, LogSettings, NullLog, open_log
from adaptive_spec.config import Config
from adaptive_spec.drafters.base import Drafter
from adaptive_spec.drafters.registry import DRAFTERS, DraftContext
from adaptive_spec.errors import ArgumentError
from adaptive_spec.profilers import calibration
from adaptive_spec.profilers.acceptance import OnlineAcceptance
from adaptive_spec.profilers.base import Acceptance, Latency
from adaptive_spec.profilers.hardware import fingerprint, peaks
from adaptive_spec.profilers.latency import LiveLatency
from adaptive_spec.profilers.roofline import Roofline
from adaptive_spec.registry import Entry
from adaptive_spec.types import Architecture


def find_drafters(config: Config) -> list[tuple[Entry[Drafter], str | None]]:
    """Registry entries and arguments of the drafters that ``config.drafter`` names.

    Raises:
        UnknownNameError: a name is not valid. ArgumentError: one comes twice.
    """
    found = [DRAFTERS.find(name.strip()) for name in config.drafter.split("+")]
    names = [entry.name for entry, _ in found]
    if len(set(names)) < len(names):
        raise ArgumentError("drafter", config.drafter, "every drafter may come once")
    return found


def build_drafters(config: Config, context: DraftContext) -> list[Drafter]:
    """The drafters that ``config.drafter`` names, in that order.

    Raises:
        UnknownNameError, ArgumentError: a name or its argument is not valid.
        UnsupportedError: a draft model that does not fit the target.
    """
    return [
        entry.factory(
            argument,
            **config.drafter_options(entry.name),
            coupled=config.coupled,
            context=context,
        )
        for entry, argument in find_drafters(config)
    ]


def build_log(config: Config) -> BudgetLog | NullLog:
    """The budget log that ``config.log`` describes; a null object without a path."""
    log = config.log
    if log.path is None:
        return open_log(None)
    return open_log(
        LogSettings(
            path=log.path,
            detail=log.detail,
            text=log.text,
            max_bytes=log.max_bytes,
            files=log.files,
        )
    )


def build_latency(config: Config, facts: Architecture, threads: int) -> Latency:
    """The live latency model of a target, from a stored calibration if the config names one.

    Args:
        threads: CPU threads that torch uses.

    Raises:
        CalibrationError: the calibration cannot be read, or is of another machine or model.
    """
    roofline = Roofline(facts, peaks(facts, threads))
    if config.calibration is None:
        return LiveLatency(roofline)
    found = calibration.load(config.calibration, fingerprint(facts, threads))
    return LiveLatency(roofline, calibration=found)


def build_acceptance(drafters: Sequence[str]) -> Acceptance:
    """The acceptance model of these drafters."""
    return OnlineAcceptance(drafters)
