"""Options of the command line: which one an error is about, and the config they add up to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from adaptive_spec.config import Config, load_config
from adaptive_spec.errors import AdaptiveSpecError


@contextmanager
def about(flag: str, value: str | None) -> Iterator[None]:
    """Errors raised inside are about this option, unless they know better; None claims nothing."""
    try:
        yield
    except AdaptiveSpecError as error:
        if error.option is None and value is not None:
            error.option = flag, value
        raise


def layered(source: str | None, overrides: Sequence[str]) -> Config:
    """The config of ``--config``, then every ``--set`` in turn; an error names which of them."""
    with about("--config", source):
        config = load_config(source)
    for override in overrides:
        with about("--set", override):
            config = load_config(config, [override])
    return config


def origin(
    key: str, flag: str, value: str | None, source: str | None, overrides: Sequence[str]
) -> tuple[str, str | None]:
    """The option that decides a config key: its own flag, else the last --set, else --config."""
    if value is not None:
        return flag, value
    own = [text for text in overrides if text.partition("=")[0].strip() == key]
    return ("--set", own[-1]) if own else ("--config", source)
