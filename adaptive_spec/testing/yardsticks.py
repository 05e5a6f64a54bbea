"""The two yardsticks: E (exact: the same tokens as plain decoding) and S (state: what the cache
holds is what a fresh prefill of the same tokens would hold)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from adaptive_spec.decoder import Decoder
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.session import Session
from adaptive_spec.target import Target


def run(
    decoder: Any,
    prompt: Sequence[int],
    after_step: Callable[[Session], None] | None = None,
    **call: Any,
) -> list[int]:
    """New tokens of one session, stepped to its end; ``call`` as for ``decoder.start``."""
    with decoder.start(list(prompt), **call) as session:
        while not session.finished:
            session.step()
            if after_step is not None:
                after_step(session)
        tokens: list[int] = session.generated
        return tokens


def plain(model: Any, prompt: Sequence[int], **call: Any) -> list[int]:
    """New tokens of plain decoding: what everything else must equal."""
    return run(AdaptiveDecoder(model, "plain"), prompt, **call)


@torch.no_grad()
def check_state(session: Session, tolerance: float = 1e-5) -> None:
    """Raise AssertionError unless the session's slots hold what a fresh prefill gives.

    Counts add up, every slot is finite, and every layer's K and V of the owned slots are within
    ``tolerance`` (relative to the largest entry) of those of the unmodified model.
    """
    decoder: Decoder = session.decoder
    decoder.check_integrity()
    for layer in decoder.cache.layers:
        for tensor in (layer.keys, layer.values):
            assert tensor is None or bool(torch.isfinite(tensor).all()), "non-finite slot"
    slots = decoder.requests.pool.slots(session.owner)
    if not slots:
        return
    target: Target = decoder.target
    ids = torch.tensor([session.tokens[:-1]], device=target.device)
    fresh = target.model(ids, use_cache=True).past_key_values
    for mine, theirs in zip(decoder.cache.layers, fresh.layers, strict=True):
        for kept, wanted in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
            have = kept[:, :, slots][:, :, -wanted.shape[2] :]
            scale = max(float(wanted.abs().max()), 1.0)
            worst = float((have - wanted).abs().max()) / scale
            assert worst <= tolerance, f"K/V of the owned slots are off by {worst:.1e}"
