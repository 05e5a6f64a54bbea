"""A call of ``generate``: what is asked for is checked, what transformers made of it is split.

``checked`` runs before transformers prepares the call, ``prepared`` on what it hands to a
``custom_generate`` callable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.stopping_criteria import StoppingCriteriaList

from adaptive_spec.arguments import (
    check_inputs,
    check_model_inputs,
    check_supported,
    check_values,
)
from adaptive_spec.errors import ArgumentError, UnsupportedError
from adaptive_spec.row_rules import row_rules, stop_string_criteria, without_stop_strings
from adaptive_spec.sampling import derive_seed
from adaptive_spec.session import Rules
from adaptive_spec.types import Architecture

DEFAULT_TOP_K = 50
"""Of transformers, for models that name none."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call as transformers prepared it, one entry of ``rules`` and ``prompts`` per row."""

    input_ids: torch.Tensor
    prompts: list[list[int]]
    rules: list[Rules]
    options: Any


def checked(
    inputs: Any, seed: int | None, kwargs: Mapping[str, Any], tokenizer: Any, vocab: int
) -> tuple[dict[str, Any], int | None]:
    """Refuse bad arguments; returns what to hand to transformers, and a cap of 0 if asked.

    Raises:
        ArgumentError: a value out of range; UnsupportedError: an argument that is refused.
    """
    ids = kwargs.get("input_ids") if inputs is None else inputs
    if ids is None or (isinstance(ids, torch.Tensor) and ids.shape[-1] == 0):
        empty: list[int] | None = None if ids is None else []
        raise ArgumentError("input_ids", empty, "a prompt needs at least one token")
    options = kwargs.get("generation_config")
    given = {k: v for k, v in vars(options).items() if v is not None} if options else {}
    values = {**given, **kwargs, "seed": seed}
    check_inputs(kwargs)
    check_supported(values)
    check_values(values, vocab)
    passed = dict(kwargs)
    strings = passed.pop("stop_strings", None) or getattr(options, "stop_strings", None)
    if strings:
        if options is not None and options.stop_strings is not None:
            passed["generation_config"] = without_stop_strings(options)
        mine = stop_string_criteria(strings, tokenizer)
        passed["stopping_criteria"] = StoppingCriteriaList(
            [*(passed.get("stopping_criteria") or []), *mine]
        )
    if passed.get("max_new_tokens") == 0:
        return {**passed, "max_new_tokens": 1}, 0
    return passed, None


def prepared(
    input_ids: torch.Tensor,
    processors: Any,
    criteria: Sequence[Any],
    options: Any,
    seed: int | None,
    cap: int | None,
    inputs: Mapping[str, Any],
    facts: Architecture,
    own_top_k: int | None,
) -> Call:
    """Split a prepared batch into requests; refuses what cannot be honoured.

    Args:
        input_ids: [rows, tokens].
        cap: 0 if no token was asked for, else None.
        inputs: further arguments of the model.
        own_top_k: what the model's own config says; where the caller says nothing, transformers
            takes that or else its default, and clamps it to the vocabulary.
    """
    check_model_inputs(inputs)
    check_supported(vars(options))
    asked = {**vars(options), "seed": seed}
    if options.top_k == (DEFAULT_TOP_K if own_top_k is None else own_top_k):
        del asked["top_k"]
    check_values(asked, facts.vocab)
    mask = inputs.get("attention_mask")
    seen = torch.ones_like(input_ids) if mask is None else mask
    if seen.shape != input_ids.shape:
        raise ArgumentError("attention_mask", tuple(seen.shape), "expected [rows, tokens]")
    places = (seen.long().cumsum(-1) - 1).clamp(min=0)
    positions = inputs.get("position_ids")
    if positions is not None and not torch.equal(positions[seen != 0], places[seen != 0]):
        raise UnsupportedError("position_ids other than a count of the unmasked tokens")
    if options.do_sample and seed is None:
        seed = int(torch.randint(0, 2**63 - 1, ()))
    rows = len(input_ids)
    prompts = [ids[on != 0].tolist() for ids, on in zip(input_ids, seen, strict=True)]
    rules = [
        row_rules(
            padded=input_ids[row],
            prompt=prompts[row],
            row=row,
            rows=rows,
            processors=processors,
            criteria=criteria,
            options=options,
            seed=derive_seed(seed, row) if options.do_sample and seed is not None else None,
            context_limit=facts.context_limit,
            cap=cap,
        )
        for row in range(rows)
    ]
    return Call(input_ids, prompts, rules, options)
