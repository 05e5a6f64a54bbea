"""From the host to the device without waiting for it.

torch copies from ordinary host memory only after the device has done all it was asked to; from
pinned memory it goes on. The pinned buffer is kept until the copy is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def upload(values: Sequence[Any] | np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """A tensor of ``values`` on ``device``; on a CPU arrays are shared, not copied."""
    found = (
        torch.from_numpy(values)
        if isinstance(values, np.ndarray)
        else torch.tensor(values, device="cpu")
    )
    if device.type != "cuda":
        return found.to(device)
    return found.pin_memory().to(device, non_blocking=True)
