"""One row of a prepared Hugging Face call as the rules of one request.

transformers prepares logits processors and stopping criteria for a whole padded batch; here every
visited node is processed alone, with its row's own padded prefix. Processors that hold something
per row are narrowed to their row; those that cannot be are refused by name.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation import logits_process as lp
from transformers.generation import stopping_criteria as sc

from adaptive_spec.errors import ArgumentError, UnsupportedError
from adaptive_spec.sampling import KeyedNoise, Sampler
from adaptive_spec.session import Rules
from adaptive_spec.stopping import Check, Finish, Stopping

_ROW_TENSORS = ("prompt_ignore_length", "encoder_input_ids")
_FIRST_TURN = (
    lp.MinLengthLogitsProcessor,
    lp.MinNewTokensLengthLogitsProcessor,
    lp.ForcedBOSTokenLogitsProcessor,
    lp.ForcedEOSTokenLogitsProcessor,
    lp.ExponentialDecayLengthPenalty,
    lp.SuppressTokensAtBeginLogitsProcessor,
    lp.EncoderRepetitionPenaltyLogitsProcessor,
    lp.EncoderNoRepeatNGramLogitsProcessor,
    lp.SynthIDTextWatermarkLogitsProcessor,
)
"""Processors that hold lengths or ids of the first prompt."""
_REFUSED = (lp.UnbatchedClassifierFreeGuidanceLogitsProcessor,)


def row_processor(processors: Sequence[Any], row: int, rows: int) -> Any:
    """The processors of one row, or None if there are none.

    Args:
        row: true index of the row in the (expanded) batch, as ``prefix_allowed_tokens_fn`` sees it.
        rows: rows of that batch.

    Raises:
        UnsupportedError: a processor that cannot be applied to a single node.
    """
    narrowed = [_narrow(processor, row, rows) for processor in processors]
    return lp.LogitsProcessorList(narrowed) if narrowed else None


def _narrow(processor: Any, row: int, rows: int) -> Any:
    if isinstance(processor, _REFUSED):
        raise UnsupportedError(f"{type(processor).__name__} cannot be applied to single nodes")
    if isinstance(processor, lp.PrefixConstrainedLogitsProcessor):
        allowed = processor._prefix_allowed_tokens_fn
        return lp.PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(row, ids), 1)
    if isinstance(processor, lp.EncoderNoRepeatNGramLogitsProcessor):
        mine = copy.copy(processor)
        place = row * processor.batch_size // rows
        mine.generated_ngrams, mine.batch_size = [processor.generated_ngrams[place]], 1
        return mine
    for name in _ROW_TENSORS:
        held = getattr(processor, name, None)
        if isinstance(held, torch.Tensor):
            mine = copy.copy(processor)
            place = row * held.shape[0] // rows
            setattr(mine, name, held[place : place + 1])
            return mine
    stateful = isinstance(processor, lp.SynthIDTextWatermarkLogitsProcessor)
    if stateful or not type(processor).__module__.startswith("transformers."):
        return _own(processor, rows)
    return processor


def _own(held: Any, rows: int) -> Any:
    """What a row may change without its neighbours noticing: a copy where there are several rows.

    Raises:
        UnsupportedError: it cannot be copied.
    """
    if rows == 1:
        return held
    try:
        return copy.deepcopy(held)
    except Exception as error:
        raise UnsupportedError(
            f"{type(held).__name__} cannot be copied, one per row ({error}): pass one row at a time"
        ) from None


def row_rules(
    *,
    padded: torch.Tensor,
    prompt: Sequence[int],
    row: int,
    rows: int,
    processors: Sequence[Any],
    criteria: Sequence[Any],
    options: Any,
    seed: int | None,
    context_limit: int,
    cap: int | None,
) -> Rules:
    """The rules of one row.

    Args:
        padded: [T] the row as the caller gave it.
        prompt: the row without its padding.
        options: the prepared ``GenerationConfig``.
        seed: the row's own seed; None at temperature 0.
        cap: overrides the most new tokens (0 is not expressible in transformers).
    """
    is_padded = len(padded) != len(prompt)
    ends: set[int] = set()
    checks: list[Check] = []
    most, seconds = context_limit, math.inf
    for criterion in criteria:
        if type(criterion) is sc.EosTokenCriteria:
            ends.update(criterion.eos_token_id.reshape(-1).tolist())
        elif type(criterion) is sc.MaxLengthCriteria:
            most = min(most, max(criterion.max_length - len(padded), 0))
        elif type(criterion) is sc.MaxTimeCriteria:
            gone = max(time.time() - criterion.initial_timestamp, 0.0)
            seconds = min(seconds, max(float(criterion.max_time) - gone, 0.0))
        else:
            checks.append(_check(_own(criterion, rows), padded, len(prompt)))
    sample = seed is not None
    return Rules(
        sampler=Sampler(
            processor=row_processor(processors, row, rows),
            noise=KeyedNoise(seed) if seed is not None else None,
            temperature=float(1.0 if options.temperature is None else options.temperature)
            if sample
            else 0.0,
        ),
        stopping=Stopping(
            max_new_tokens=most if cap is None else cap,
            context_limit=context_limit,
            prompt_length=len(prompt),
            end_tokens=frozenset(ends),
            max_seconds=None if seconds == math.inf else seconds,
            checks=tuple(checks),
        ),
        seed=seed,
        padded=tuple(padded.tolist()) if is_padded else None,
        first_turn_only=next(
            (type(one).__name__ for one in processors if isinstance(one, _FIRST_TURN)), None
        ),
        keep_scores=bool(options.return_dict_in_generate and options.output_scores),
        keep_logits=bool(options.return_dict_in_generate and options.output_logits),
    )


def _check(criterion: Any, padded: torch.Tensor, prompt_length: int) -> Check:
    """A Hugging Face criterion, called with one padded row as transformers would call it."""
    text = isinstance(criterion, sc.StopStringCriteria)
    detail = "stop string" if text else f"criterion {type(criterion).__name__}"
    head = padded.tolist()

    def check(history: Sequence[int], block: Sequence[int]) -> Finish | None:
        ids = torch.tensor([[*head, *history[prompt_length:], *block]], device=padded.device)
        done = criterion(ids, None)
        stopped = bool(done.all()) if isinstance(done, torch.Tensor) else bool(done)
        return Finish("stop", detail) if stopped else None

    return check


def stop_string_criteria(strings: str | Sequence[str] | None, tokenizer: Any) -> list[Any]:
    """Stop strings as a criterion; [] for none. Raises ArgumentError without a tokenizer."""
    if not strings:
        return []
    if tokenizer is None:
        raise ArgumentError("tokenizer", None, "stop_strings need the model's tokenizer")
    return [sc.StopStringCriteria(stop_strings=strings, tokenizer=tokenizer)]


def without_stop_strings(options: Any) -> Any:
    """A copy of a ``GenerationConfig`` whose stop strings are handled elsewhere."""
    fields = {**options.to_dict(), "stop_strings": None}
    return type(options).from_dict(fields)
