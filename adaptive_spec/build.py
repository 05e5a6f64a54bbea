"""From a config to objects: the one place where names become drafters, models of cost and logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptive_spec.budget_log import BudgetLog, LogSettings, NullLog, open_log
from adaptive_spec.config import Config
from adaptive_spec.drafters.base import Drafter
from adaptive_spec.drafters.registry import DRAFTERS, DraftContext
from adaptive_spec.errors import ArgumentError
from adaptive_spec.online.base import Learner, NoUpdate
from adaptive_spec.online.policies import find_rule
from adaptive_spec.online.rules import RECALL
from adaptive_spec.profilers import calibration
from adaptive_spec.profilers.acceptance import OnlineAcceptance
from adaptive_spec.profilers.hardware import fingerprint, peaks
from adaptive_spec.profilers.latency import LiveLatency
from adaptive_spec.profilers.residuals import KNOTS
from adaptive_spec.profilers.roofline import Coefficients, Roofline
from adaptive_spec.registry import Entry
from adaptive_spec.types import Architecture

AUTO, SUFFIX = "auto", "suffix"
LEARN_EVERY = 4
"""Verified trees between two refits of the acceptance model."""


def settle(config: Config, model: Any) -> Config:
    """``config`` with a drafter in place of ``auto``: what suits the target.

    That is the head that ships for its weights together with ``suffix``, or ``suffix`` alone; with
    ``recall`` where a rule of online updates decides what is remembered.
    """
    if config.drafter != AUTO:
        return config
    from adaptive_spec.heads.shelf import made_for

    head = config.causal_parallel.head or made_for(model)
    drafter = SUFFIX if head is None else f"causal_parallel:{head}+{SUFFIX}"
    if RECALL in find_rule(config.online.updates).arms:
        drafter = f"{drafter}+{RECALL}"
    return config.model_copy(update={"drafter": drafter})


def find_drafters(config: Config) -> list[tuple[Entry[Drafter], str | None]]:
    """Registry entries and arguments of the drafters that ``config.drafter`` names.

    An empty list for ``auto``, which only a target can settle.

    Raises:
        UnknownNameError: a name is not valid. ArgumentError: one comes twice.
    """
    if config.drafter == AUTO:
        return []
    found = [DRAFTERS.find(name) for name in _split(config.drafter)]
    names = [entry.name for entry, _ in found]
    if len(set(names)) < len(names):
        raise ArgumentError("drafter", config.drafter, "every drafter may come once")
    return found


def _split(names: str) -> list[str]:
    """``a+b:ARG`` at its plus signs, but not at those within a path that is an argument."""
    known, parts = {entry.name for entry in DRAFTERS.entries()}, list[str]()
    for part in names.split("+"):
        within = parts and "/" in parts[-1] and part.partition(":")[0].strip() not in known
        if within:
            parts[-1] = f"{parts[-1]}+{part}"
        else:
            parts.append(part)
    return [part.strip() for part in parts]


def build_drafters(config: Config, context: DraftContext) -> list[Drafter]:
    """The drafters that ``config.drafter`` names, in that order; ``suffix`` for ``auto``.

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
        for entry, argument in find_drafters(config) or [DRAFTERS.find(SUFFIX)]
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


def build_models(
    config: Config, facts: Architecture, threads: int, drafters: Sequence[str]
) -> tuple[LiveLatency, OnlineAcceptance]:
    """The live models of time and acceptance, from a stored calibration if the config names one.

    What a calibration knows of acceptance is used if it was learned with the same drafters.

    Args:
        threads: CPU threads that torch uses.

    Raises:
        CalibrationError: the calibration cannot be read, or is of another machine or model.
        ArgumentError: what it says of acceptance is damaged.
    """
    roofline = Roofline(facts, peaks(facts, threads))
    acceptance = OnlineAcceptance(drafters, every=LEARN_EVERY)
    if config.calibration is None:
        return LiveLatency(roofline), acceptance
    found = calibration.load(config.calibration, fingerprint(facts, threads))
    if found.acceptance and found.acceptance.get("drafters") == list(drafters):
        acceptance.restore(found.acceptance)
    return LiveLatency(roofline, calibration=found), acceptance


def build_learner(config: Config, drafters: Sequence[Drafter]) -> Learner:
    """The learner that ``config.online`` describes; ``NoUpdate`` for ``never``.

    Raises:
        UnknownNameError, ArgumentError: no such rule, or no drafter that could learn.
        UnsupportedError: the head has no corrector that can learn.
    """
    rule = find_rule(config.online.updates)
    if not rule.arms:
        return NoUpdate()
    from adaptive_spec.drafters.causal_parallel import CausalParallelDrafter
    from adaptive_spec.drafters.recall import RecallDrafter
    from adaptive_spec.online.learner import HeadLearner

    recall = next((one for one in drafters if isinstance(one, RecallDrafter)), None)
    for drafter in drafters:
        if isinstance(drafter, CausalParallelDrafter):
            return HeadLearner(
                drafter,
                rule,
                lessons=config.online.lessons,
                background=config.online.background,
                recall=recall,
            )
    allowed = "never: among the drafters is no causal_parallel, whose head could learn "
    allowed += "(suffix+recall remembers answers without one)"
    raise ArgumentError("online.updates", config.online.updates, allowed)


def save_models(
    path: str | Path,
    config: Config,
    facts: Architecture,
    threads: int,
    models: tuple[LiveLatency, OnlineAcceptance],
) -> None:
    """Store what was learned, as a calibration that a later decoder may start from.

    Raises:
        CalibrationError: see ``build_models``. OSError: the file cannot be written.
    """
    now = fingerprint(facts, threads)
    if config.calibration is None:
        flat, unknown = (0.0,) * len(KNOTS), calibration.Errors(0.0, 0.0, 0.0)
        base = calibration.Calibration(now, Coefficients(), flat, (), unknown)
    else:
        base = calibration.load(config.calibration, now)
    latency, acceptance = models
    learned = replace(base, latency=latency.state(), acceptance=acceptance.state())
    calibration.save(path, learned)
