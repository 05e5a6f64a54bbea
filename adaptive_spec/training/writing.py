"""The target writes what a head learns from: prompts into batches, batches into shards.

Prompts come from the standard library, from the target itself and from templates (``prompts``).
For its own questions the target is shown the beginning of a user's turn and goes on by itself, at
temperature 1 (Magpie, Xu et al. 2024).
"""

from __future__ import annotations

import random
import zlib
from bisect import bisect_right
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
POOL = 8
"""Prompts that wait, in batches: among many there are enough of about one length."""
SPREAD = 8
"""Tokens by which the prompts of a batch may differ in length; shorter ones get blank lines."""
ASIDE = 12
"""One prompt in so many, told by its text, is never learned from."""
_MARK = "\x00"


class Writer:
    """Writes batches of answers for ever.

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
        limit: int = model.config.get_text_config().max_position_embeddings
        self._longest = min(settings.longest_prompt, limit - settings.max_new_tokens)
        self._waiting: list[list[int]] = []
        self._aside: list[list[int]] = []
        self._seen: set[int] = set()
        self._code: list[Prompt] = []

    def batches(self, batch: int = 0) -> Iterator[list[Written]]:
        """Answers of one batch of prompts after the other; ``batch`` were written before."""
        settings = self._settings
        if batch:  # what waits since the held-out text was written was asked before
            self._waiting.clear()
            self._code.clear()
        while True:
            luck = random.Random(settings.seed + batch)
            self._gather(batch, POOL * settings.rows)
            heat = 0.0 if luck.random() < settings.greedy else settings.temperature
            yield self._answers(self._waiting, luck, heat, settings.seed + batch)
            batch += 1

    def held_out(self, count: int) -> list[Written]:
        """At least ``count`` greedy answers to prompts that no batch holds, of all lengths."""
        found: list[Written] = []
        luck, seed = random.Random(self._settings.seed), self._settings.seed
        while len(found) < count:
            if len(self._aside) < count - len(found):
                self._gather(seed, len(self._waiting) + POOL * self._settings.rows)
            found += self._answers(self._aside, luck, 0.0, seed, most=max(count // 4, 1))
            seed += 1
        return found

    def _answers(
        self,
        waiting: list[list[int]],
        luck: random.Random,
        heat: float,
        seed: int,
        most: int | None = None,
    ) -> list[Written]:
        if not waiting:
            raise TrainingError("no prompts are left to write about")
        prompts = self._picked(waiting, luck, self._settings.rows if most is None else most)
        return list(self._write(prompts, self._settings.max_new_tokens, heat, seed))

    def _gather(self, batch: int, wanted: int) -> None:
        """Have ``wanted`` prompts wait, or as many as there are to be had."""
        tries = 0
        while len(self._waiting) < wanted and tries < POOL:
            before = len(self._waiting) + len(self._aside)
            for one in self._prompts(self._settings.seed + batch * POOL + tries):
                ids, mark = self._ids(self._template(one.text)), zlib.crc32(one.text.encode())
                if len(ids) <= self._longest and mark not in self._seen:
                    self._seen.add(mark)
                    (self._waiting if mark % ASIDE else self._aside).append(ids)
            tries += 1
            if len(self._waiting) + len(self._aside) == before:
                return

    def _prompts(self, seed: int) -> list[Prompt]:
        """Fresh prompts in the wanted mix; those about code once each before any comes again."""
        settings, most = self._settings, 8 * self._settings.rows
        if settings.code and len(self._code) < most:
            self._code += code_prompts(seed)
        asked = self._questions(seed) if settings.chat else []
        sums = arithmetic_prompts(most, seed)
        shares = (settings.code, settings.chat, settings.arithmetic)
        picked = mixed([self._code[:most], asked, sums], shares, seed)
        del self._code[: sum(one.kind == "code" for one in picked)]
        return fenced(picked, self._fence)

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
        try:
            found: str = self._tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=True
            )
        except ValueError as error:
            raise TrainingError(f"the target's tokenizer has no chat template: {error}") from error
        return found

    def _picked(self, waiting: list[list[int]], luck: random.Random, most: int) -> torch.Tensor:
        """[rows, length] prompts of about one length, taken from those that wait. Shorter ones get
        blank lines before what the user says, so that no row needs a mask."""
        head = len(self._ids(self._template(_MARK).partition(_MARK)[0]))
        waiting.sort(key=len)
        first = luck.randrange(max(len(waiting) - most, 0) + 1)
        last = bisect_right(waiting, len(waiting[first]) + SPREAD, key=len)
        rows = slice(first, min(first + most, last))
        picked = waiting[rows]
        del waiting[rows]
        length, blank = len(picked[-1]), self._ids("\n")[:1]
        return torch.tensor(
            [ids[:head] + blank * (length - len(ids)) + ids[head:] for ids in picked]
        )

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
