"""Prompts of streams: as many as are wanted, from templates, none of them from a published suite.

A part of a stream is one kind of text. What is asked differs from prompt to prompt, as it would in
the traffic of one application.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, product

from adaptive_spec.training.prompts import arithmetic_prompts

_TASKS = (
    "reverses the words of a sentence", "counts how often every letter occurs in a text",
    "finds the second largest number in a list", "merges two sorted lists",
    "checks whether brackets are balanced", "turns a Roman numeral into a number",
    "rotates a matrix by ninety degrees", "removes duplicates and keeps the order",
    "computes the median of a list", "splits a list into chunks of a given size",
    "finds the longest common prefix of several words", "converts seconds to hours and minutes",
    "groups words that are anagrams of each other", "flattens a nested list",
    "validates an IPv4 address", "computes the moving average of a series",
    "finds all pairs that add up to a target", "encodes a text by run lengths",
    "parses a line of comma-separated values", "computes the greatest common divisor",
    "lists all prime numbers below a limit", "checks whether a year is a leap year",
    "sorts people by age and then by name", "counts the vowels of a text",
    "finds the first character that does not repeat", "computes compound interest",
    "transposes a table", "converts a number to binary", "finds the missing number of a sequence",
    "computes the distance between two points", "turns snake case into camel case",
    "truncates a text to a number of words", "checks whether two rectangles overlap",
    "computes the factorial without recursion", "shuffles a deck of cards",
    "keeps the last ten values that it was given", "counts the words of a file",
    "finds the most frequent word", "sums the digits of a number", "pads a number with zeros",
)  # fmt: skip
_PYTHON = (
    "Write a Python function that {task}. Answer with the code only.",
    "Write a Python function that {task}, with type hints and a docstring.",
    "I need Python code that {task}. Show an example of its use.",
    "Write a small Python class that {task}.",
)
_OTHER = (
    "Write a JavaScript function that {task}. Answer with the code only.",
    "Write a Java method that {task}. Answer with the code only.",
    "Write a Go function that {task}, with a short main that calls it.",
    "Write a C function that {task}, with a main that prints an example.",
)
_TOPICS = (
    "how bread rises", "why the sea is salty", "what a mortgage is", "how vaccines work",
    "how to learn a language", "the causes of inflation", "how a bicycle stays upright",
    "what makes a good friend", "how to plan a garden", "why leaves change colour",
    "how the postal service works", "what a budget is good for", "how to sleep better",
    "how rivers shape valleys", "why we dream", "how to write a letter of thanks",
    "what a library does", "how to train for a long walk", "how glass is made",
    "why cats purr", "how elections work", "what a good breakfast is",
    "how to keep houseplants alive", "how tides come about", "what museums are for",
    "how to prepare for an interview", "why people tell stories", "how clocks keep time",
    "how to save water at home", "what makes music sad", "how to choose a bicycle",
    "why bridges do not fall down", "how coffee gets to the cup", "what a co-operative is",
    "how to deal with noise", "how mountains grow", "why some soils are red",
    "how to read a map", "what trains are good for", "how to make soup",
)  # fmt: skip
_QUESTIONS = (
    "Explain {topic} to a child.",
    "Give me three things to know about {topic}.",
    "Write a short paragraph about {topic}.",
    "What do most people get wrong about {topic}?",
)


def _filled(forms: tuple[str, ...], name: str, values: tuple[str, ...], seed: int) -> Iterator[str]:
    """All forms with all values in random order, again and again in other orders."""
    luck = random.Random(seed)
    while True:
        found = [form.format(**{name: value}) for form, value in product(forms, values)]
        luck.shuffle(found)
        yield from found


def _sums(seed: int) -> Iterator[str]:
    luck = random.Random(seed)
    return chain.from_iterable(
        [one.text for one in arithmetic_prompts(64, luck.randrange(1 << 30))] for _ in iter(int, 1)
    )


def _mixed(seed: int) -> Iterator[str]:
    luck = random.Random(seed)
    kinds = [KINDS[name](seed + 1) for name in ("code", "chat", "arithmetic")]
    while True:
        yield next(luck.choice(kinds))


KINDS: Mapping[str, Callable[[int], Iterator[str]]] = {
    "code": lambda seed: _filled(_PYTHON, "task", _TASKS, seed),
    "chat": lambda seed: _filled(_QUESTIONS, "topic", _TOPICS, seed),
    "arithmetic": _sums,
    "other-code": lambda seed: _filled(_OTHER, "task", _TASKS, seed),
    "mixed": _mixed,
}
"""Kind of text -> endless prompts of it for a seed."""
