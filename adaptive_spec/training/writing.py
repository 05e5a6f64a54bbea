"""The target writes what a head learns from: prompts into batches, batches into shards.

Prompts come from the standard library, from the target itself and from templates (``prompts``).
For its own questions the target is shown the beginning of a user's turn and goes on by itself, at
temperature 1 (Magpie, Xu et al. 2024).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from adaptive_spec.errors import TrainingError
from adaptive_spec.training.generating import Written, write
from adaptive_spec.training.prompts import (
    Fence,
    Prompt,
    arithmetic_prompts,
    code_prompts,
    fenced,
    mixed,
)
from adaptive_spec.training.settings import DataSection

QUESTION_TOKENS, LEAST_QUESTION = 64, 12
"""Tokens of a question that the target asks itself, at most, and characters at least."""
_MARK = "\x00"


class Writer:
    """Writes batches of answers for ever, of prompts that are asked once.

    Args:
        model, tokenizer: the target; its chat template is what prompts go through.
        layers: its decoder layers. taps: those whose states are kept.
        fence: texts that no prompt may resemble.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        layers: Sequence[Any],
        taps: Sequence[int],
        settings: DataSection,
        fence: Fence,
    ) -> None:
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._layers, self._taps, self._fence = layers, taps, fence
        ends = model.generation_config.eos_token_id
        self._ends = [ends] if isinstance(ends, int) else list(ends or [])
        self._code = code_prompts(settings.seed) if settings.code else []
        limit: int = model.config.get_text_config().max_position_embeddings
        self._longest = min(settings.longest_prompt, limit - settings.max_new_tokens)

    def batches(self, batch: int = 0) -> Iterator[list[Written]]:
        """Answers of one batch of prompts after the other; ``batch`` were written before."""
        settings, waiting = self._settings, list[list[int]]()
        while True:
            luck = random.Random(settings.seed + batch)
            if len(waiting) < 2 * settings.rows:
                fresh = [self._ids(self._template(one.text)) for one in self._prompts(batch)]
                waiting += [ids for ids in fresh if len(ids) <= self._longest]
            if not waiting:
                raise TrainingError("no prompts are left to write about")
            prompts = self._picked(waiting, luck)
            heat = 0.0 if luck.random() < settings.greedy else settings.temperature
            seed = settings.seed + batch
            yield list(self._write(prompts, settings.max_new_tokens, heat, seed))
            batch += 1

    def _prompts(self, batch: int) -> list[Prompt]:
        """Fresh prompts in the wanted mix."""
        settings, seed = self._settings, self._settings.seed + batch
        luck, most = random.Random(seed), 8 * settings.rows
        kinds = [
            luck.sample(self._code, min(most, len(self._code))),
            self._questions(seed) if settings.chat else [],
            arithmetic_prompts(most, seed),
        ]
        shares = (settings.code, settings.chat, settings.arithmetic)
        return fenced(mixed(kinds, shares, seed), self._fence)

    def _questions(self, seed: int) -> list[Prompt]:
        """What the target asks when it is handed the user's turn."""
        before, _, _ = self._template(_MARK).partition(_MARK)
        start = torch.tensor([self._ids(before)]).expand(2 * self._settings.rows, -1)
        asked = self._write(start, QUESTION_TOKENS, 1.0, seed)
        texts = [
            self._tokenizer.decode(one.tokens[one.prompt :], skip_special_tokens=True).strip()
            for one in asked
            if int(one.tokens[-1]) in self._ends
        ]
        return [Prompt(text, "chat") for text in texts if len(text) >= LEAST_QUESTION]

    def _template(self, text: str) -> str:
        turn = [{"role": "user", "content": text}]
        found: str = self._tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True
        )
        return found

    def _picked(self, waiting: list[list[int]], luck: random.Random) -> torch.Tensor:
        """[rows, length] prompts of about one length, taken from those that wait; cut to it at the
        beginning of what the user says, so that none is padded."""
        head = len(self._ids(self._template(_MARK).partition(_MARK)[0]))
        rows = min(self._settings.rows, len(waiting))
        waiting.sort(key=len)
        first = luck.randrange(len(waiting) - rows + 1)
        picked = waiting[first : first + rows]
        del waiting[first : first + rows]
        length = len(picked[0])
        return torch.tensor([ids[:head] + ids[head + len(ids) - length :] for ids in picked])

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return found

    def _write(self, prompts: torch.Tensor, most: int, heat: float, seed: int) -> Iterator[Written]:
        return write(
            self._model,
            self._layers,
            self._taps,
            prompts,
            max_new_tokens=most,
            temperature=heat,
            end_tokens=self._ends,
            seed=seed,
        )
