"""Whether kernels can run here, and why not. Nothing is compiled, and Triton is not imported."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch


def missing(device: torch.device) -> str | None:
    """What kernels lack to run on ``device``; None if nothing."""
    if device.type != "cuda":
        return f"they need CUDA, this is {device.type}"
    return None if find_spec("triton") else "triton is not installed"


def for_device(device: torch.device) -> ModuleType | None:
    """``kernels.candidates`` where it can run; None, with a warning, where Triton is broken."""
    if missing(device):
        return None
    try:
        return import_module("adaptive_spec.kernels.candidates")
    except Exception as error:  # whatever an installation lacks
        warnings.warn(f"drafts go on without kernels, Triton fails: {error}", stacklevel=2)
        return None


def on(tensor: torch.Tensor) -> AbstractContextManager[None]:
    """Launch kernels on the tensor's own GPU, whichever is current."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def in_use(device: torch.device) -> str:
    """One line: the device, and the path that attention and candidates take on it."""
    if (lack := missing(device)) is None:
        found = torch.cuda.get_device_properties(device)
        name = f"{found.name}, {found.total_memory / 1e9:.0f} GB"
        return f"{name}: Triton kernels for tree attention, candidates and the greedy walk"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{device.type}{threads}: torch under masks, no kernels ({lack})"
