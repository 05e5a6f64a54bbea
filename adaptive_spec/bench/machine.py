"""What a benchmark ran on: facts without which its figures mean nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import adaptive_spec

PACKAGES = ("torch", "transformers", "numpy", "tokenizers", "safetensors")


def machine(threads: int) -> dict[str, Any]:
    """Processor, memory and the versions that decide how fast it is."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_bytes": psutil.virtual_memory().total,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def versions() -> dict[str, str | None]:
    """Versions of this package and of those that it computes with."""
    return {"adaptive-spec": adaptive_spec.__version__, **{p: _version(p) for p in PACKAGES}}


def commit() -> str | None:
    """The git commit of a source checkout, ``-dirty`` if it was changed; None elsewhere."""
    folder = Path(adaptive_spec.__file__).parent
    if not (folder.parent / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
