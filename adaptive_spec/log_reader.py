"""Reading a budget log, which may be cut short, still growing, written by a newer version, or junk.

Whatever stands in the file, reading goes on: a line that is no record of schema 1 is skipped and
counted. Fields that this version does not know are kept.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeAlias

from adaptive_spec.budget_log import KINDS, SCHEMA
from adaptive_spec.errors import LogError
from adaptive_spec.log_file import MAX_LINE

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Log:
    """A whole log in memory, each list in the order of writing."""

    steps: list[Record] = field(default_factory=list)
    requests: list[Record] = field(default_factory=list)
    updates: list[Record] = field(default_factory=list)
    skipped: int = 0
    unknown_schema: Counter[int] = field(default_factory=Counter)


class LogReader:
    """Iterates over the records of ``path``; with ``rotated`` over ``path.2``, ``path.1`` first.

    The counters belong to the newest iteration. Raises LogError if a file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], rotated: bool = False) -> None:
        self.path = Path(os.path.expanduser(path))
        self.rotated = rotated
        self.skipped = 0
        """Lines that are no record: torn, not JSON, too long, of an unknown kind or schema."""
        self.unknown_schema: Counter[int] = Counter()
        """Schema version -> lines, for the versions that this reader refuses."""

    def __iter__(self) -> Iterator[Record]:
        self.skipped = 0
        self.unknown_schema.clear()
        with ExitStack() as stack:
            for file in self._open(stack):
                for line in _lines(file):
                    if (record := self._record(line)) is not None:
                        yield record

    def _open(self, stack: ExitStack) -> list[BinaryIO]:
        """The files, oldest first. Opened newest first, so that a rotation in between hides none:
        it shows a file twice, which its inode gives away."""
        paths = [self.path, *self._older()] if self.rotated else [self.path]
        files: dict[tuple[int, int], BinaryIO] = {}
        try:
            for path in paths:
                if path == self.path and len(paths) > 1 and not path.exists():
                    continue  # between the renaming of the old file and the first line of the new
                file = stack.enter_context(path.open("rb"))
                found = os.fstat(file.fileno())
                files.setdefault((found.st_dev, found.st_ino), file)
        except (OSError, ValueError) as error:
            raise LogError(f"cannot read the budget log {str(self.path)!r}: {error}") from error
        return list(files.values())[::-1]

    def _older(self) -> list[Path]:
        """Rotated files, newest first."""
        pattern = re.compile(re.escape(self.path.name) + r"\.([1-9][0-9]{0,8})", re.ASCII)
        try:
            siblings = list(self.path.parent.iterdir())
        except OSError:
            return []
        found = [(int(m[1]), p) for p in siblings if (m := pattern.fullmatch(p.name))]
        return [path for _, path in sorted(found)]

    def _record(self, line: bytes | None) -> Record | None:
        """The record in a line, else None, counted. A blank line separates off a torn one."""
        if line is not None and not line.strip():
            return None
        try:
            record = _json.decode((line or b"").decode("utf-8"))
        except (ValueError, RecursionError):  # not UTF-8, not JSON, or nested without end
            record = None
        if isinstance(record, dict):
            version, kind = record.get("schema"), record.get("kind")
            if type(version) is int and version != SCHEMA:
                self.unknown_schema[version] += 1
            elif type(version) is int and kind in KINDS:
                return record
        self.skipped += 1
        return None


def read_log(path: str | os.PathLike[str], rotated: bool = False) -> Iterator[Record]:
    """The records of a log, in the order of writing. Use LogReader to learn what was skipped."""
    return iter(LogReader(path, rotated))


def load_log(path: str | os.PathLike[str], rotated: bool = False) -> Log:
    """A whole log, sorted by kind. Raises LogError if it cannot be opened."""
    reader = LogReader(path, rotated)
    lists: dict[str, list[Record]] = {kind: [] for kind in KINDS}
    for record in reader:
        lists[record["kind"]].append(record)
    return Log(
        steps=lists["step"],
        requests=lists["request"],
        updates=lists["update"],
        skipped=reader.skipped,
        unknown_schema=reader.unknown_schema,
    )


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines of a file; None for one that is longer than any that is ever written."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)
        yield None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_json = json.JSONDecoder(parse_constant=_refuse)
