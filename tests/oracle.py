"""What the tests compare with, and drafters that know the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from adaptive_spec.drafters.base import DraftRequest
from adaptive_spec.testing.drafters import ScriptedDrafter
from adaptive_spec.testing.tiny import VOCAB

Answers = dict[tuple[int, ...], list[int]]
"""Prompt -> prompt and output."""

_DRAW = np.random.default_rng(20)
PROMPTS = [_DRAW.integers(3, VOCAB, size=size).tolist() for size in (2, 5, 11, 23) for _ in "12345"]


def oracle(answers: Answers) -> Callable[[DraftRequest], list[int]]:
    """What a ``ScriptedDrafter`` reads the target's path from."""
    return lambda request: answers[tuple(request.tokens[: request.prompt_length])]


def by_transformers(model: Any, prompts: Sequence[list[int]], new: int, **call: Any) -> Answers:
    """Prompt and greedy output of ``model.generate``, prompts of one length at a time."""
    answers: Answers = {}
    for length in sorted({len(prompt) for prompt in prompts}):
        batch = torch.tensor([prompt for prompt in prompts if len(prompt) == length])
        rows = model.generate(batch, max_new_tokens=new, do_sample=False, **call).tolist()
        answers.update({tuple(row[:length]): row for row in rows})
    return answers


def spec(make: Any, model: Any, answers: Answers, pattern: Sequence[int], **rest: Any) -> Any:
    """A decoder whose drafts are right as often as ``pattern`` says."""
    policy = rest.pop("policy", "fixed:16")
    drafter = ScriptedDrafter(oracle(answers), pattern, rest.pop("decoys", 1))
    return make(model, policy, drafter=drafter, **rest)


def sampled(temperature: float, seed: int = 5) -> dict[str, Any]:
    """The arguments of a call at ``temperature``; 0 is greedy."""
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "seed": seed}
