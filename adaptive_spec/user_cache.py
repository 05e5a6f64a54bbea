"""The user's cache folder: things that take long to make, each made once, whole or not at all.

One build, in order (`build_once`):

1. already complete? Then nothing is locked or written, so a read-only cache works too.
2. take the lock of this destination; whoever comes second waits here and then finds the result;
3. remove what an interrupted build left behind (under the lock nobody else can be using it);
4. build everything in a staging folder beside the destination;
5. write the receipt (what was built, and the size of every file), flush to disk, rename.

Step 5 is the only moment at which the destination appears, and it appears whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adaptive_spec.errors import CatalogueError

HOME_VARIABLE = "ADAPTIVE_SPEC_HOME"
RECEIPT = "fetched.json"

Progress = Callable[[str, float | None], None]
"""``progress(stage, fraction)``: what is being done, and how far (0 to 1, None if unknown)."""

Fill = Callable[[Path, Path], None]
"""``fill(scratch, out)``: put the finished files into ``out``; ``scratch`` is thrown away."""


def silent(stage: str, fraction: float | None) -> None:
    """The null `Progress`."""


def cache_home() -> Path:
    """The user's cache folder of this package (it need not exist yet)."""
    if chosen := os.environ.get(HOME_VARIABLE):
        return Path(os.path.expanduser(chosen)).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative value is to be ignored.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "adaptive-spec"


def is_complete(folder: Path, key: str) -> bool:
    """Whether ``folder`` was built for ``key`` and still has every file at its full size."""
    try:
        receipt = json.loads((folder / RECEIPT).read_text("utf-8"))
        sizes: dict[str, int] = receipt["files"]
        same = receipt["key"] == key
        return same and all((folder / f).stat().st_size == size for f, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def build_once(
    destination: Path, key: str, fill: Fill, *, needs: int = 0, progress: Progress = silent
) -> Path:
    """Return ``destination``, built by ``fill`` if it is not there for this ``key`` yet.

    Args:
        key: names the content and how it is made; another key means building anew.
        needs: bytes of free disk that the build takes at its peak, for an early refusal.

    Raises:
        CatalogueError: from ``fill``, or if the cache folder cannot be written.
    """
    if is_complete(destination, key):
        return destination
    staging = destination.parent / f".{destination.name}.partial"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _locked(destination, progress):
            if is_complete(destination, key):
                return destination
            if staging.exists():
                shutil.rmtree(staging)
            _check_space(destination.parent, needs)
            try:
                scratch, out = staging / "scratch", staging / "out"
                scratch.mkdir(parents=True)
                out.mkdir()
                fill(scratch, out)
                _seal(out, key)
                if destination.exists():  # of another key, or damaged: it goes with the staging
                    destination.rename(staging / "old")
                out.rename(destination)
            finally:  # after Ctrl-C too; what a killed process leaves, the next fetch removes
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise CatalogueError(
            f"could not build {destination}: {error}; make room there, or set {HOME_VARIABLE} to "
            "a folder that can be written, and run the same command again"
        ) from error
    return destination


def _check_space(folder: Path, needs: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needs:
        raise CatalogueError(
            f"not enough disk space in {folder}: {needs / 1e6:.0f} MB needed, {free / 1e6:.0f} MB "
            f"free; make room, or set {HOME_VARIABLE} to a folder on a larger disk"
        )


def _seal(out: Path, key: str) -> None:
    """Write the receipt and flush every file, so that the rename cannot outrun the data."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    sizes = {path.relative_to(out).as_posix(): path.stat().st_size for path in files}
    receipt = out / RECEIPT
    receipt.write_text(json.dumps({"key": key, "files": sizes}, indent=1) + "\n", "utf-8")
    for path in [*files, receipt]:
        with path.open("rb") as opened:
            os.fsync(opened.fileno())


@contextmanager
def _locked(destination: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of ``destination``: among processes and threads, freed if the holder dies."""
    # The lock file stays: removing it would let two holders lock two files of the same name.
    with (destination.parent / f".{destination.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another fetch of {destination.name}", None)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
