"""A hash of a target's weights, by which a head knows its target."""

from __future__ import annotations

import hashlib

import torch

SAMPLE = 64
"""Numbers of every weight that the digest looks at."""


def digest(model: torch.nn.Module) -> str:
    """A hash of the target's weights, equal in float32 and bfloat16 if they hold equal numbers."""
    found = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        found.update(f"{name} {tuple(weight.shape)}".encode())
        flat = weight.detach().flatten()
        some = flat[:: max(flat.numel() // SAMPLE, 1)][:SAMPLE]
        found.update(some.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return found.hexdigest()[:32]
