"""Fast batched generation by the target, hidden states kept on the way.

All rows of a batch have prompts of the same length, so no mask is needed: attention then runs
without padding and without copying grouped keys and values, which is half of a step otherwise. Rows
that have ended, or run in circles, leave the batch. The states of the tapped layers and those
before the output layer are captured while generating: they cost nothing but memory.

Legend: B rows, T tokens of a row (prompt and answer), H hidden, n taps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from adaptive_spec.attention import Grouped

LOOP, TIMES, PERIOD = 48, 3, 48
"""A row runs in circles if its last tokens, at least LOOP of them and TIMES their period, repeat
with a period of at most PERIOD."""
COMPACT = 0.9
"""Share of live rows below which the others are taken out of the batch."""


@dataclass(frozen=True, slots=True)
class Written:
    """One prompt and answer, with the states behind every token but the last."""

    tokens: torch.Tensor
    """[T] int32."""
    prompt: int
    """Tokens of the prompt."""
    taps: torch.Tensor
    """[T - 1, n * H] bfloat16 outputs of the tapped layers."""
    final: torch.Tensor
    """[T - 1, H] bfloat16 input of the output layer."""


class Capture:
    """While entered, keeps the outputs of some decoder layers."""

    def __init__(self, layers: Sequence[Any], taps: Sequence[int]) -> None:
        self._layers, self._taps = layers, taps
        self._hooks: list[Any] = []
        self._found: dict[int, torch.Tensor] = {}

    def __enter__(self) -> Capture:
        self._hooks = [self._layers[t].register_forward_hook(self._keep(t)) for t in self._taps]
        return self

    def __exit__(self, *exc: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, tap: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            self._found[tap] = output if isinstance(output, torch.Tensor) else output[0]

        return hook

    def taken(self) -> torch.Tensor:
        """[B, t, n * H] of the last forward."""
        return torch.cat([self._found[tap] for tap in self._taps], dim=-1)


@dataclass(frozen=True, slots=True)
class _Step:
    """States of one forward, and which rows it was made for."""

    rows: torch.Tensor
    taps: torch.Tensor
    final: torch.Tensor


@torch.inference_mode()
def write(
    model: Any,
    layers: Sequence[Any],
    taps: Sequence[int],
    prompts: torch.Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    end_tokens: Sequence[int],
    seed: int,
) -> Iterator[Written]:
    """Answers to prompts of one length, as they end.

    Args:
        model: causal language model; ``layers`` its decoder layers.
        prompts: [B, length] ids.
        temperature: 0 for greedy.

    Yields:
        Answers that ended or reached the cap; of those that run in circles, what came before.
    """
    luck = torch.Generator().manual_seed(seed)
    ends, body, output = (
        torch.tensor(list(end_tokens)),
        model.base_model,
        model.get_output_embeddings(),
    )
    grouped = Grouped(model)
    rows, done = torch.arange(len(prompts)), torch.zeros(len(prompts), dtype=torch.bool)
    cache, steps, tokens, fresh = DynamicCache(), [], prompts, prompts
    length = prompts.shape[1]
    with Capture(layers, taps) as capture:
        for step in range(1, max_new_tokens + 1):
            with grouped():
                said = body(input_ids=fresh, past_key_values=cache, use_cache=True)
            final = said.last_hidden_state
            steps.append(_Step(rows, capture.taken(), final))
            fresh = _choose(output(final[:, -1]).float(), temperature, luck)[:, None]
            tokens = torch.cat([tokens, fresh], dim=1)
            circles = _circles(tokens[:, length:])
            leaving = torch.isin(fresh[:, 0], ends) | (circles > 0) | (step == max_new_tokens)
            for place in (leaving & ~done).nonzero()[:, 0].tolist():
                cut = int(circles[place])
                if (found := _row(tokens[place], length, steps, int(rows[place]), cut)) is not None:
                    yield found
            done = done | leaving
            if bool(done.all()):
                return
            if float((~done).float().mean()) < COMPACT:
                stay = (~done).nonzero()[:, 0]
                cache.batch_select_indices(stay)
                rows, tokens, fresh, done = rows[stay], tokens[stay], fresh[stay], done[stay]


def _choose(scores: torch.Tensor, temperature: float, luck: torch.Generator) -> torch.Tensor:
    """[B] next tokens of [B, V] logits."""
    if temperature == 0:
        return scores.argmax(dim=-1)
    summed = (scores / temperature).softmax(dim=-1).cumsum(dim=-1)
    drawn = torch.rand(len(scores), 1, generator=luck) * summed[:, -1:]
    return torch.searchsorted(summed, drawn)[:, 0].clamp(max=scores.shape[1] - 1)


def _circles(answers: torch.Tensor) -> torch.Tensor:
    """[B] tokens by which rows repeat themselves, all but the first time; 0 where they do not."""
    found = torch.zeros(len(answers), dtype=torch.long)
    for period in range(PERIOD, 0, -1):
        size = max(LOOP, TIMES * period)
        if answers.shape[1] >= size:
            tail = answers[:, -size:]
            same = (tail[:, period:] == tail[:, :-period]).all(dim=1)
            found[same] = size - period
    return found


def _row(
    tokens: torch.Tensor, prompt: int, steps: Sequence[_Step], row: int, cut: int
) -> Written | None:
    """One row with its states, ``cut`` tokens shorter; None if too little is left."""
    size = len(tokens) - cut
    if size <= prompt + 1:
        return None
    places = [int((step.rows == row).nonzero()) for step in steps]
    taps = torch.cat([step.taps[at] for step, at in zip(steps, places, strict=True)])
    final = torch.cat([step.final[at] for step, at in zip(steps, places, strict=True)])
    return Written(
        tokens=tokens[:size].to(torch.int32).clone(),
        prompt=prompt,
        taps=taps[: size - 1].to(torch.bfloat16),
        final=final[: size - 1].to(torch.bfloat16),
    )
