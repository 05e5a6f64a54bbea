"""From a config to objects: the one place where names become drafters and logs."""

from __future__ import annotations

from adaptive_spec.budget_log import BudgetLog, LogSettings, NullLog, open_log
from adaptive_spec.config import Config
from adaptive_spec.drafters.base import Drafter
from adaptive_spec.drafters.registry import DRAFTERS
from adaptive_spec.errors import UnsupportedError


def build_drafter(config: Config) -> Drafter:
    """The drafter that ``config.drafter`` names.

    Raises:
        UnknownNameError, ArgumentError: the name or its argument is not valid.
        UnsupportedError: several drafters joined by ``+``.
    """
    if "+" in config.drafter:
        raise UnsupportedError(
            f"drafter {config.drafter!r}: merging drafters with '+' is not supported yet; name one"
        )
    entry, argument = DRAFTERS.find(config.drafter)
    return entry.factory(argument, **config.drafter_options(entry.name))


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
