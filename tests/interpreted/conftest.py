"""Kernels under Triton's interpreter; ``test_kernels`` runs this folder in a process of its own.

Whether a kernel is interpreted is settled when it is imported, so others pass the folder by.
"""

from __future__ import annotations

import os

import pytest

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets use the kernels although they are on a CPU."""
    monkeypatch.setattr("adaptive_spec.target.refusal", lambda model: None)
