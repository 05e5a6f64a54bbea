"""Prompts to train on, none of them from a benchmark: functions of the standard library, questions
that the target asks itself, and arithmetic from templates.

A benchmark's prompts may be similar in kind, so every prompt is compared with the published sets by
its runs of words (``Fence``), and what shares one is left out.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

WORDS = 8
"""A prompt that shares a run of so many words with a fenced text is left out."""
LONGEST_CODE, LONGEST_DOC, SHORTEST_DOC = 1600, 600, 30
"""Characters of a function that is shown whole, and of a docstring."""
_SKIPPED = ("test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the user says, and where it comes from."""

    text: str
    kind: str
    """``code``, ``chat`` or ``arithmetic``."""


class Fence:
    """Keeps texts out that share a run of words with one of the given texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._runs = {run for text in texts for run in _runs(text)}

    def lets_in(self, text: str) -> bool:
        return self._runs.isdisjoint(_runs(text))


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    if 0 < len(words) < WORDS:
        yield tuple(words)
    for first in range(len(words) - WORDS + 1):
        yield tuple(words[first : first + WORDS])


_CODE = (
    "Write this Python function. Answer with the code only.\n\n```python\n{stub}\n```",
    "Complete the following Python function.\n\n```python\n{stub}\n```",
    "Implement `{name}` in Python.\n\n{doc}",
    "Write three unit tests for this function:\n\n```python\n{stub}\n```",
    "Explain what this Python function does, line by line.\n\n```python\n{body}\n```",
    "Add type annotations to this function and return all of it.\n\n```python\n{body}\n```",
    "Find possible problems in this function and suggest improvements.\n\n```python\n{body}\n```",
    "Write a docstring for this function.\n\n```python\n{bare}\n```",
)


def code_prompts(seed: int = 0) -> list[Prompt]:
    """Tasks about the documented functions of this Python's standard library, in random order."""
    luck, found = random.Random(seed), []
    for path in _sources():
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                found += _about(node, luck)
    luck.shuffle(found)
    return found


def _sources() -> list[Path]:
    """Modules of the standard library, sorted, so that a seed gives the same prompts."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not any(part in _SKIPPED for part in path.relative_to(root).parts)
    ]


def _about(node: ast.FunctionDef, luck: random.Random) -> list[Prompt]:
    """Two tasks about one function, if it is documented."""
    doc = ast.get_docstring(node)
    if doc is None or not SHORTEST_DOC <= len(doc) <= LONGEST_DOC:
        return []
    body = ast.unparse(node)
    node.body = node.body[1:] or [ast.Pass()]
    bare = ast.unparse(node)
    stub = f'def {node.name}({ast.unparse(node.args)}):\n    """{doc}"""'
    fitting = _CODE[:4] if len(body) > LONGEST_CODE else _CODE
    parts = {"name": node.name, "doc": doc, "stub": stub, "body": body, "bare": bare}
    return [Prompt(form.format(**parts), "code") for form in luck.sample(fitting, 2)]


_SUMS = (
    "What is {a} {op} {b}? Show every step.",
    "Compute ({a} {op} {b}) * {c} and explain the steps.",
    "A shop sells {things} for {b} each. What do {a} of them cost, and what is left of {big}?",
    "{name} has {a} {things} and gives {c} to each of {d} friends. How many are left? Explain.",
    "Continue the sequence {a}, {a1}, {a2}, {a3} with five more numbers and say how it goes on.",
    "Convert {a} hours into minutes and into seconds. Show the calculation.",
    "What is {c} percent of {big}? Show how you get there.",
    "List the first {d} multiples of {b}.",
)
_THINGS = ("apples", "stamps", "pencils", "marbles", "tickets", "candles", "buttons", "shells")
_NAMES = ("Ada", "Bruno", "Chen", "Dara", "Emil", "Fatou", "Greta", "Hugo")


def arithmetic_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """``count`` small sums with random numbers."""
    luck = random.Random(seed)
    found = []
    for _ in range(count):
        a, b = luck.randint(11, 99), luck.randint(3, 60)
        parts = {
            "a": a,
            "b": b,
            "a1": a + b,
            "a2": a + 2 * b,
            "a3": a + 3 * b,
            "c": luck.randint(2, 9),
            "d": luck.randint(3, 9),
            "big": luck.randint(20, 90) * 100,
            "op": luck.choice("+-*"),
            "things": luck.choice(_THINGS),
            "name": luck.choice(_NAMES),
        }
        found.append(Prompt(luck.choice(_SUMS).format(**parts), "arithmetic"))
    return found


def mixed(
    parts: Sequence[Sequence[Prompt]], shares: Sequence[float], seed: int = 0
) -> list[Prompt]:
    """Kinds in random order, each as often as its share says, as long as the scarcest lasts; a kind
    of which there is none is left out."""
    asked = [(len(part), share) for part, share in zip(parts, shares, strict=True)]
    whole = min((size / share for size, share in asked if share > 0 and size), default=0.0)
    picked = [
        prompt
        for part, share in zip(parts, shares, strict=True)
        for prompt in part[: int(whole * share)]
    ]
    random.Random(seed).shuffle(picked)
    return picked


def fenced(prompts: Iterable[Prompt], fence: Fence) -> list[Prompt]:
    """The prompts that share no run of words with what is fenced off, each once."""
    once = {prompt.text: prompt for prompt in prompts}
    return [prompt for prompt in once.values() if fence.lets_in(prompt.text)]
