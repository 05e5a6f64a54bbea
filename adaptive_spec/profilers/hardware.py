"""What the hardware could do at best, and which hardware it is.

Torch is not imported here: a model on a GPU cannot exist unless somebody has loaded torch, so it is
looked up among the loaded modules.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import adaptive_spec
from adaptive_spec.types import Architecture

Fingerprint = dict[str, str | int]

_GB, _TERA = 1e9, 1e12
_GPUS: tuple[tuple[str, float, float, float], ...] = (
    ("b200", 8000, 2250, 80),
    ("gh200", 4000, 989, 67),
    ("h200", 4800, 989, 67),
    ("h100 pcie", 2000, 756, 51),
    ("h100 nvl", 3900, 835, 60),
    ("h100", 3350, 989, 67),
    ("a100 40gb", 1555, 312, 19.5),
    ("a100", 1935, 312, 19.5),
    ("a6000", 768, 155, 38.7),
    ("a10g", 600, 70, 31.2),
    ("a10", 600, 125, 31.2),
    ("l40s", 864, 362, 91.6),
    ("l40", 864, 181, 90.5),
    ("l4", 300, 121, 30.3),
    ("v100", 900, 125, 15.7),
    ("t4", 320, 65, 8.1),
    ("5090", 1792, 209, 104.8),
    ("4090", 1008, 165, 82.6),
    ("4080", 717, 97, 48.7),
    ("3090", 936, 71, 35.6),
    ("3060", 360, 25, 12.7),
    ("mi300x", 5300, 1307, 163),
)
"""Words of the device name -> GB/s, dense half-precision and float32 TFLOP/s, as the makers publish
them. The first entry whose words all occur wins."""
_MEMORY = {"h100": 80 * _GB, "a100": 80 * _GB, "l4": 24 * _GB}
"""Bytes, of those that costs on paper are computed for."""

CPU_BANDWIDTH, CPU_THREADS = 5 * _GB, 20
"""Bytes per second that one thread streams, and threads after which memory is saturated."""
CPU_FLOPS = 40e9
"""Per thread and second. Half of what small AVX2 products reach, and one figure for all types:
whether a CPU multiplies bf16 fast or slowly is for the live multipliers to find out."""
_PER_SM_BANDWIDTH, _PER_SM_FLOPS, _HALF_FACTOR = 8 * _GB, 256e9, 4.0


@dataclass(frozen=True, slots=True)
class Peaks:
    """Upper bounds of a device for one dtype: bytes per second and FLOPs per second."""

    bandwidth: float
    flops: float


def peaks(facts: Architecture, threads: int) -> Peaks:
    """What the model's device could do at best with the model's dtype.

    Published figures for known GPUs; from the device's properties for others; for CPUs a
    deliberately low figure by thread count. Only the ratio of the two shapes a prediction:
    live multipliers correct the level of each.
    """
    wide = facts.dtype in ("float32", "float64")
    if not facts.device.startswith("cuda"):
        threads = max(threads, 1)
        return Peaks(CPU_BANDWIDTH * min(threads, CPU_THREADS), CPU_FLOPS * threads)
    gpu = _properties(facts.device)
    words = set(re.split(r"[^a-z0-9]+", str(getattr(gpu, "name", "")).lower()))
    for name, bandwidth, half, full in _GPUS:
        if words.issuperset(name.split()):
            return Peaks(bandwidth * _GB, (full if wide else half) * _TERA)
    return _estimated(gpu, wide)


def published(gpu: str, wide: bool = False) -> Peaks:
    """Peaks in half precision, or ``wide`` in float32, of a GPU by its words in the table."""
    rate, half, full = next(found for name, *found in _GPUS if name == gpu)
    return Peaks(rate * _GB, (full if wide else half) * _TERA)


def memory(gpu: str) -> float:
    """Bytes of a GPU's memory, as its maker publishes them."""
    return _MEMORY[gpu]


def fingerprint(facts: Architecture, threads: int) -> Fingerprint:
    """What a measurement is valid for: a stored one is refused where any of it differs."""
    kind = facts.device.partition(":")[0]
    return {
        "hardware": _hardware(facts.device),
        "device": kind,
        "dtype": facts.dtype,
        "threads": threads if kind == "cpu" else 0,
        "torch": _version("torch"),
        "adaptive_spec": adaptive_spec.__version__,
        "model_type": facts.model_type,
        "layers": facts.layers,
        "hidden": facts.hidden,
        "heads": facts.heads,
        "kv_heads": facts.kv_heads,
        "grouped": int(facts.grouped),
        "head_dim": facts.head_dim,
        "intermediate": facts.intermediate,
        "vocab": facts.vocab,
        "experts": facts.experts,
        "experts_per_token": facts.experts_per_token,
        "parameters": facts.parameters,
    }


def _hardware(device: str) -> str:
    """The GPU's name, or the processor's model and how many of it there are."""
    if device.startswith("cuda"):
        return str(getattr(_properties(device), "name", "unknown GPU"))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(models, "") or platform.processor() or platform.machine()
    return f"{name} x{os.cpu_count()}"


def _properties(device: str) -> Any:
    """What the driver says of a GPU; None without torch or without an answer."""
    torch = sys.modules.get("torch")
    try:
        return None if torch is None else torch.cuda.get_device_properties(device)
    except (RuntimeError, AssertionError, ValueError, AttributeError):
        return None


def _estimated(gpu: Any, wide: bool) -> Peaks:
    """For a GPU that the table does not know: bus width and clock, or typical figures per SM."""
    count = max(int(getattr(gpu, "multi_processor_count", 0) or 0), 16)
    kilohertz = float(getattr(gpu, "memory_clock_rate", 0) or 0)
    bits = float(getattr(gpu, "memory_bus_width", 0) or 0)
    bandwidth = 2e3 * kilohertz * bits / 8 or count * _PER_SM_BANDWIDTH
    return Peaks(bandwidth, count * _PER_SM_FLOPS * (1.0 if wide else _HALF_FACTOR))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
