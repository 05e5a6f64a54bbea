"""A target that changes under a head's feet: a seeded change of low rank, and what it does.

Every linear layer's weight gets a random matrix of rank 8 added, whose size is a share of its own
(Frobenius norm): what a fine-tune by low-rank adapters would do, without a direction. The target
stays one and the same object, so decoders on it go on; only their head knows another target.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adaptive_spec.target import decoder_layers

RANK = 8
TEXTS, TOKENS = 12, 320
"""Of the perplexity: parts of modules of the standard library."""
PERIODS, LOOP = 48, 48
"""A text runs in circles if its last ``LOOP`` tokens repeat with a period of at most ``PERIODS``,
three times or more."""


class Drift:
    """The change, to be put on and taken off.

    Args:
        model: the target. scale: size of the change of each weight, relative to it.
    """

    def __init__(self, model: Any, scale: float, seed: int = 0) -> None:
        self._model, self._scale, self._seed = model, scale, seed
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []

    @torch.no_grad()
    def begin(self) -> None:
        """Change the weights, once."""
        if self._before:
            return
        luck = torch.Generator().manual_seed(self._seed)
        for layer in decoder_layers(self._model):
            for module in layer.modules():
                if isinstance(module, torch.nn.Linear):
                    weight = module.weight
                    self._before.append((weight, weight.detach().clone()))
                    change = torch.randn(weight.shape[0], RANK, generator=luck) @ torch.randn(
                        RANK, weight.shape[1], generator=luck
                    )
                    size = self._scale * float(weight.float().norm() / change.norm())
                    weight.add_((size * change).to(weight))

    @torch.no_grad()
    def end(self) -> None:
        """Put the weights back, bit for bit."""
        for weight, before in self._before:
            weight.copy_(before)
        self._before.clear()


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any) -> float:
    """Of modules of the standard library, a text that the target did not write itself."""
    total = count = 0.0
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for path in paths[:: max(len(paths) // TEXTS, 1)][:TEXTS]:
        ids = tokenizer(path.read_text(encoding="utf-8")[2000:4000], return_tensors="pt").input_ids
        ids = ids[:, :TOKENS].to(model.device)
        if ids.shape[1] < 2:
            continue
        chances = model(ids).logits[0, :-1].float().log_softmax(dim=-1)
        total -= float(chances.gather(1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    return math.exp(total / max(count, 1.0))


def loop_rate(texts: Sequence[Sequence[int]]) -> float:
    """Share of texts that run in circles at their end."""
    return sum(map(_circles, texts)) / max(len(texts), 1)


def _circles(text: Sequence[int]) -> bool:
    for period in range(1, PERIODS + 1):
        tail = list(text[-max(LOOP, 3 * period) :])
        if len(tail) >= max(LOOP, 3 * period) and tail[period:] == tail[:-period]:
            return True
    return False
