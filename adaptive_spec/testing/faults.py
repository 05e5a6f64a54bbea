"""Faults injected into a target: non-finite values, exhausted memory; and a clock that obeys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from adaptive_spec.cache import SlotCache


class FakeClock:
    """Seconds that pass only when told: ``advance``, or ``tick`` seconds at every reading."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 0.0, tick

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


class NaNTarget:
    """While entered, rows of ``model``'s forwards on the slot cache become non-finite.

    Args:
        rows: ids [M] of the forward's rows -> [M] bool, which rows to hurt.
        value: NaN or an infinity.
        cache: hurt K and V of these rows too, as a model with a NaN inside would.
    """

    def __init__(
        self,
        model: Any,
        rows: Callable[[torch.Tensor], torch.Tensor],
        *,
        value: float = float("nan"),
        cache: bool = False,
    ) -> None:
        self._model, self._rows, self._value, self._cache = model, rows, value, cache
        self.hurt = 0
        """Rows hurt so far."""

    def __enter__(self) -> NaNTarget:
        self._hook = self._model.register_forward_hook(self._strike, with_kwargs=True)
        return self

    def __exit__(self, *exc: Any) -> None:
        self._hook.remove()

    def _strike(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        past = kwargs.get("past_key_values")
        if not isinstance(past, SlotCache):
            return output
        mask = self._rows(kwargs["input_ids"][0])
        if self._cache and bool(mask.any()):
            slots = past.write_slots[mask[: len(past.write_slots)]]
            for layer in past.layers:
                layer.keys[:, :, slots] = self._value
                layer.values[:, :, slots] = self._value
        kept = mask[-output.logits.shape[1] :]
        self.hurt += int(kept.sum())
        if bool(kept.any()):
            output.logits = output.logits.clone()
            output.logits[0, kept] = self._value
        return output


class OOMTarget:
    """While entered, forwards of more than ``rows`` rows on the slot cache run out of memory."""

    def __init__(self, model: Any, rows: int) -> None:
        self._model, self._rows = model, rows
        self.struck = 0

    def __enter__(self) -> OOMTarget:
        self._hook = self._model.register_forward_pre_hook(self._strike, with_kwargs=True)
        return self

    def __exit__(self, *exc: Any) -> None:
        self._hook.remove()

    def _strike(self, module: Any, args: Any, kwargs: Any) -> None:
        ours = isinstance(kwargs.get("past_key_values"), SlotCache)
        if ours and kwargs["input_ids"].shape[1] > self._rows:
            self.struck += 1
            raise torch.OutOfMemoryError("injected")
