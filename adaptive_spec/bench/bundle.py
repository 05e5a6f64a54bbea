"""The folder a benchmark leaves behind, so that its figures can be checked and used again.

- ``manifest.json``: settings, contestants with their configs, versions, machine, commit, times
  (``ended`` is null if the run did not get to its end);
- ``rows.json`` and ``rows.csv``: the table;
- ``requests.jsonl``: one line per contestant, dtype, repeat and request, written as it comes;
- ``log.jsonl``: the budget log of all our contestants; its request ids read
  ``DTYPE/CONTESTANT/REPEAT/PROMPT``, warm-ups have ``warm-up`` for the repeat. Wall seconds and
  tokens of every step are in it: what recovery from ``--disturb`` is computed from, with
  ``first_step`` of ``requests.jsonl`` as the step count at the start of each request.

No prompt and no token is written. An earlier bundle in the same folder is replaced, and nothing
else: files of these names that no benchmark wrote are left alone, with an error.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from adaptive_spec.budget_log import BudgetLog, LogSettings
from adaptive_spec.config import LogSection
from adaptive_spec.errors import ArgumentError

MANIFEST, ROWS, TABLE, REQUESTS, LOG = (
    "manifest.json",
    "rows.json",
    "rows.csv",
    "requests.jsonl",
    "log.jsonl",
)
LOG_BYTES = 1 << 30
"""A bundle keeps the whole log; a log that goes away at the end is kept small."""


class Bundle:
    """Writes to ``out``, or to a temporary folder that is gone after the ``with`` block.

    The log is written in any case: its cost belongs to what is measured.

    Raises:
        ArgumentError: the folder cannot be made or written, or holds files that are not ours.
    """

    def __init__(self, out: str | None, log: LogSection) -> None:
        self._stack = ExitStack()
        try:
            if out is None:
                temporary = tempfile.TemporaryDirectory(prefix="adaptive-spec-bench-")
                self.folder = Path(self._stack.enter_context(temporary))
            else:
                self.folder = Path(os.path.expanduser(out))
                self.folder.mkdir(parents=True, exist_ok=True)
                _check_ours(self.folder, out)
            for name in (MANIFEST, ROWS, TABLE, REQUESTS, LOG):
                (self.folder / name).unlink(missing_ok=True)
            self._requests: TextIO = self._stack.enter_context(
                (self.folder / REQUESTS).open("w", encoding="utf-8")
            )
        except OSError as error:
            raise ArgumentError("--out", out, f"a folder to write to ({error.strerror})") from error
        whole = {} if out is None else {"max_bytes": LOG_BYTES}
        path = str(self.folder / LOG)
        self.log = BudgetLog(LogSettings(path, detail=log.detail, text=log.text, **whole))
        self._stack.callback(self.log.close)

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def manifest(self, facts: Mapping[str, Any]) -> None:
        """Write the manifest, again at the end of the run."""
        self._json(MANIFEST, facts)

    def request(self, facts: Mapping[str, Any]) -> None:
        """Append one line to ``requests.jsonl``."""
        self._requests.write(json.dumps(facts, allow_nan=False) + "\n")
        self._requests.flush()

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the table."""
        self._json(ROWS, rows)
        with (self.folder / TABLE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def _json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=2, allow_nan=False)
        (self.folder / name).write_text(text + "\n", encoding="utf-8")


def _check_ours(folder: Path, out: str) -> None:
    """Raise ArgumentError if files would be replaced that no earlier benchmark left behind."""
    there = [name for name in (MANIFEST, ROWS, TABLE, REQUESTS, LOG) if (folder / name).exists()]
    if not there:
        return
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        ours = {"contestants", "settings"} <= manifest.keys()
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        allowed = f"another folder: {there[0]} in it was not written by a benchmark"
        raise ArgumentError("--out", out, allowed)
