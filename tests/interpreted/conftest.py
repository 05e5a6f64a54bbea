"""Kernels under Triton's interpreter; ``test_kernels`` runs this folder in a process of its own.

Whether a kernel is interpreted is settled when it is imported, so others pass the folder by.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets use the kernels although they are on a CPU."""
    monkeypatch.setattr("adaptive_spec.target.refusal", lambda model: None)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What kernels are given to write into holds the worst that could be there."""
    real = torch.empty

    def empty(*size: Any, **how: Any) -> torch.Tensor:
        made = real(*size, **how)
        worst = float("nan") if made.is_floating_point() else torch.iinfo(made.dtype).max
        return made.fill_(worst) if made.dtype != torch.bool else made

    monkeypatch.setattr(torch, "empty", empty)
