"""What ``generate`` hands back: sequences padded on the right, or the dict form.

Legend: T prompt tokens with padding, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation.utils import GenerateDecoderOnlyOutput

from adaptive_spec.session import Session


def assemble(ids: torch.Tensor, options: Any, sessions: Sequence[Session]) -> Any:
    """[rows, T + longest] sequences, padded on the right, or the dict form.

    Args:
        ids: [rows, T] prompts as the caller gave them.
        options: the call's ``GenerationConfig``.
    """
    pad = options.pad_token_id
    if pad is None:
        ends = options.eos_token_id
        pad = 0 if ends is None else (ends if isinstance(ends, int) else ends[0])
    longest = max(len(session.generated) for session in sessions)
    new = torch.full((len(sessions), longest), pad, dtype=ids.dtype, device=ids.device)
    for row, session in enumerate(sessions):
        new[row, : len(session.generated)] = torch.tensor(session.generated, dtype=ids.dtype)
    sequences = torch.cat([ids, new], dim=1)
    if not options.return_dict_in_generate:
        return sequences
    return GenerateDecoderOnlyOutput(
        sequences=sequences,
        scores=_stacked([session.scores for session in sessions], longest),
        logits=_stacked([session.logits for session in sessions], longest),
    )


def _stacked(rows: Sequence[Sequence[torch.Tensor]], longest: int) -> Any:
    """Per new token [rows, V]; rows that had finished hold -inf. None where nothing was kept."""
    kept = next((row[0] for row in rows if row), None)
    if kept is None:
        return None
    gone = torch.full_like(kept, -torch.inf)
    return tuple(
        torch.stack([row[i] if i < len(row) else gone for row in rows]) for i in range(longest)
    )
