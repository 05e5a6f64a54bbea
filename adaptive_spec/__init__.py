"""Faster generation with a Hugging Face model, token for token the same.

Public names are lazy: importing the package imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from adaptive_spec.config import Config as Config
    from adaptive_spec.hf import AdaptiveDecoder as AdaptiveDecoder
    from adaptive_spec.log_reader import load_log as load_log
    from adaptive_spec.session import Session as Session

_PUBLIC = {
    "AdaptiveDecoder": "adaptive_spec.hf",
    "Config": "adaptive_spec.config",
    "Session": "adaptive_spec.session",
    "load_log": "adaptive_spec.log_reader",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
