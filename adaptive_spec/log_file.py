"""A file of JSON lines that several processes append to: private, bounded, rotating.

Each line is one ``os.write`` on an ``O_APPEND`` descriptor, so lines of two processes never mix. A
full file is renamed to ``path.1`` (and ``path.1`` to ``path.2``, ...) under a lock on its inode;
whoever gets the lock looks again whether the path still names that inode, because another process
may have rotated first. Nobody waits for the lock: while another process rotates, a line goes into
the file that is being renamed, where it is kept as well.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

MAX_LINE = 1 << 20
"""Bytes of the longest line that is written, and that the reader takes."""


class LineFile:
    """At most ``files`` files of ``max_bytes``, mode 0600, never written through a symbolic link.

    (While one process rotates, what others write may overrun ``max_bytes``, by MAX_LINE at most.)
    The constructor and ``append`` raise OSError or ValueError. Not safe between threads: the owner
    holds a lock. Between processes, and across a fork, it is.
    """

    def __init__(self, path: str, max_bytes: int, files: int) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))
        self._max_bytes = max_bytes
        self._files = files
        self._fd = -1
        self._torn = False
        self._inode = (0, 0)
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        self._open()

    def append(self, line: bytes) -> None:
        """Write one line, its newline included, whole or not at all where the disk allows."""
        if len(line) > min(self._max_bytes, MAX_LINE):
            raise ValueError(f"a record of {len(line)} bytes is too long")
        if _identity(os.fstat(self._fd)) != self._inode:
            raise OSError(errno.EBADF, "the descriptor was closed elsewhere")
        if not self._names(self._inode):
            self._open()  # another process rotated, or somebody removed the file
        coming = len(line) + self._torn
        if os.fstat(self._fd).st_size + coming > self._max_bytes:
            self._rotate(coming)
        if self._torn:
            line = b"\n" + line
        self._torn = os.write(self._fd, line) != len(line)
        if self._torn:
            raise OSError(errno.ENOSPC, "the line was written in part")

    def close(self) -> None:
        """May be called twice."""
        fd, self._fd = self._fd, -1
        with suppress(OSError):  # closed by somebody else, or its number reused: not ours
            if fd >= 0 and _identity(os.fstat(fd)) == self._inode:
                os.close(fd)

    def _names(self, inode: tuple[int, int]) -> bool:
        """Whether the path still names this inode."""
        try:
            return _identity(os.lstat(self.path)) == inode
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        """Open the path anew and let go of the old descriptor. Raises OSError, changing nothing."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(self.path, flags, 0o600)
        try:
            file = os.fstat(fd)
            if not stat.S_ISREG(file.st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            if stat.S_IMODE(file.st_mode) != 0o600:
                os.fchmod(fd, 0o600)
            # A crash or a full disk may have left half a line: start the next one on its own.
            torn = file.st_size > 0 and os.pread(fd, 1, file.st_size - 1) != b"\n"
        except BaseException:
            os.close(fd)
            raise
        old, self._fd, self._inode, self._torn = self._fd, fd, _identity(file), torn
        if old >= 0:
            os.close(old)

    def _rotate(self, coming: int) -> None:
        """Rename the full file out of the way, unless another process has done it already."""
        try:
            lock = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:  # renamed by another process a moment ago
            self._open()
            return
        try:
            # A descriptor of its own: a lock on self._fd would be shared with forked children.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _identity(os.fstat(lock)) == self._inode and self._names(self._inode):
                names = [self.path] + [f"{self.path}.{n}" for n in range(1, self._files)]
                for new, old in zip(names[:0:-1], names[-2::-1], strict=True):
                    with suppress(FileNotFoundError):
                        os.replace(old, new)
                if self._files == 1:
                    os.unlink(self.path)
            self._open()
        except BlockingIOError:
            # Somebody rotates right now and this line may still go in; but not for ever.
            if os.fstat(self._fd).st_size + coming > self._max_bytes + MAX_LINE:
                raise
        finally:
            os.close(lock)


def _identity(file: os.stat_result) -> tuple[int, int]:
    return file.st_dev, file.st_ino


def _plain(value: object) -> object:
    """What the encoder does not know by itself."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} cannot be written to the budget log")


def _finite(value: Any) -> Any:
    """A copy in which non-finite numbers are None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        return _finite(value.tolist())
    return value


# ASCII only: U+2028, escape sequences and lone surrogates cannot break a line or a terminal.
_json = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=_plain)


def encode(fields: dict[str, Any]) -> bytes:
    """One line, whatever the strings and numbers in ``fields``.

    Non-finite numbers become null, numpy values plain ones. Raises TypeError, ValueError or
    RecursionError for what JSON cannot hold.
    """
    try:
        text = _json.encode(fields)
    except ValueError:  # a non-finite number: rare, so only now is every value looked at
        text = _json.encode(_finite(fields))
    return text.encode("ascii") + b"\n"
