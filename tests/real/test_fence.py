"""Nothing that a head learns from resembles a benchmark's prompt: checked against both sets."""

from __future__ import annotations

import re

import pytest

from adaptive_spec import prompts
from adaptive_spec.training.prompts import WORDS, Fence, arithmetic_prompts, code_prompts, fenced
from adaptive_spec.training.run import FENCED

pytestmark = pytest.mark.real


def _words(text: str) -> str:
    return " " + " ".join(re.findall(r"\w+", text.lower())) + " "


def test_the_prompt_builder_keeps_both_benchmarks_out() -> None:
    benchmark = [text for name in FENCED for text in prompts.texts(name)]
    assert len(benchmark) == 2 * 164 + 2 * 80  # prompts and solutions, both turns
    asked = {one.text for name in FENCED for one in prompts.suite(name, raw=True)}
    assert asked <= set(benchmark)
    fence = Fence(benchmark)
    assert not any(fence.lets_in(text) for text in benchmark)
    long = [text for text in benchmark if len(_words(text).split()) >= WORDS]
    assert len(long) > 300
    assert not any(fence.lets_in(f"Please answer this: {text} Thank you.") for text in long)
    built = fenced([*code_prompts(0)[:3000], *arithmetic_prompts(1000)], fence)
    assert len(built) > 1000
    inside = [_words(one.text) for one in built]
    whole = "|".join(inside)
    for text in benchmark:  # written differently from the fence: every run of eight words
        words = _words(text).split()
        for first in range(max(len(words) - 7, 1)):
            run = " " + " ".join(words[first : first + 8]) + " "
            assert run not in whole or len(words) < 8, run
