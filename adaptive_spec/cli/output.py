"""What goes where: results on stdout, progress and remarks on stderr.

So ``adaptive-spec generate --json > answer.json`` gives a clean file while the terminal still shows
what is going on. On a terminal progress is a bar; elsewhere it is one line per stage.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from adaptive_spec import user_cache

results = Console(highlight=False)
remarks = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document on one line of stdout, plain ASCII: right in every locale."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


def remark(text: str) -> None:
    """One line on stderr, as it stands: no markup, no folding."""
    remarks.print(text, markup=False, soft_wrap=True)


@contextmanager
def progress(quiet: bool = False) -> Iterator[user_cache.Progress]:
    """Shows the stages of a slow job (fetching, loading) on stderr while the block runs.

    Args:
        quiet: draw only when told to: a thread of its own would disturb what is being timed.
    """
    if not remarks.is_terminal:
        yield _Lines()
        return
    text = TextColumn("{task.description}", markup=False)
    columns = (*(() if quiet else (SpinnerColumn(),)), text, BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=remarks, auto_refresh=not quiet, transient=True) as bars:
        task = bars.add_task("", total=None)

        def show(stage: str, fraction: float | None) -> None:
            total = None if fraction is None else 1.0
            bars.update(task, description=stage, total=total, completed=fraction or 0.0)
            if quiet:
                bars.refresh()

        yield show


class _Lines:
    """A line when a stage begins; fractions of it are not worth one."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, stage: str, fraction: float | None) -> None:
        if stage != self._last:
            self._last = stage
            remark(stage)


class TextStream:
    """Token ids in, text out: pieces that never end in the middle of a character.

    One character may take several tokens, and tokenizers treat the first token of a text specially;
    so what is decoded is always a window that begins at an earlier boundary, less that window's
    already known text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._known = 0
        """Tokens of the window whose text has been given out."""

    def push(self, tokens: Sequence[int]) -> str:
        """The text that is certain after these tokens; may be empty."""
        if not tokens:
            return ""
        self._window.extend(tokens)
        return self._take(final=False)

    def end(self) -> str:
        """What is left, incomplete characters included."""
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        before = self._decode(self._window[: self._known])
        now = self._decode(self._window)
        if now.endswith("\ufffd") and not final:
            return ""
        self._window = self._window[self._known :]
        self._known = len(self._window)
        return now[len(before) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""
