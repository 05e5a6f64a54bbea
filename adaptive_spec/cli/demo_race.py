"""The engine of the demo: two decoders on one model, a step at a time, and the judgement after.

Whoever has used less time so far takes the next step, so noise hits both alike and the text grows
at its true relative speed. Drawing happens between the steps, off both clocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from rich.text import Text

from adaptive_spec.bench.decoding import Batch
from adaptive_spec.bench.exactness import Comparison, Referee
from adaptive_spec.budget_log import BudgetLog, StepRecord
from adaptive_spec.cli.demo_view import GREEN, Lane, Race, Tree, View
from adaptive_spec.cli.output import TextStream
from adaptive_spec.config import load_config
from adaptive_spec.errors import DecodingError
from adaptive_spec.hf import AdaptiveDecoder
from adaptive_spec.profilers.clock import monotonic
from adaptive_spec.prompts import encode

PLAIN = load_config("plain")
SPECULATIVE = load_config("default")

RACE_SECONDS = 28.0
"""Longest race, both lanes together: four of them end within three minutes on any machine."""


class Case(NamedTuple):
    """One prompt of the demo."""

    name: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Result:
    """A line of the final table: one prompt in one number format."""

    title: str
    plain: Lane
    speculative: Lane
    verdict: Comparison


class WatchedLog(BudgetLog):
    """A budget log that also keeps the newest step, so that it can be drawn."""

    last: StepRecord

    def step(self, record: StepRecord) -> None:
        self.last = record
        super().step(record)


class Racer:
    """A decoder at work on one prompt, with its own clock."""

    def __init__(
        self, decoder: AdaptiveDecoder, ids: torch.Tensor, lane: Lane, log: WatchedLog, title: str
    ) -> None:
        self.lane, self._log = lane, log
        began = monotonic()
        self.session = decoder.start(
            ids,
            request_id=f"{title} {lane.name}",
            max_new_tokens=lane.size,
            do_sample=False,
        )
        lane.seconds = monotonic() - began

    def step(self) -> StepRecord:
        """One step, with the lane's counts brought up to date.

        Raises:
            DecodingError: the target failed.
        """
        lane, session = self.lane, self.session
        began = monotonic()
        lane.tokens += session.step()
        lane.seconds += monotonic() - began
        if session.finish is not None and session.finish.reason == "error":
            raise DecodingError(session.finish.detail, [lane.tokens]) from session.error
        lane.finished = session.finished
        lane.accepted.append(len(self._log.last.accepted))
        lane.nodes.append(len(self._log.last.tree))
        return self._log.last


def races(
    model: Any,
    tokenizer: Any,
    label: str,
    dtype: str,
    cases: Sequence[Case],
    size: int,
    log: WatchedLog,
    view: View,
) -> Iterator[Result]:
    """Race every prompt on one model; a result each, as soon as it is there."""
    plain = AdaptiveDecoder(model, PLAIN, log=log)
    speculative = AdaptiveDecoder(model, SPECULATIVE, log=log)
    for index, case in enumerate(cases):
        title = f"{label} {case.name}"
        ids = encode(tokenizer, case.prompt)
        race = Race(title, case.prompt, Lane("plain", size), Lane(SPECULATIVE.policy, size))
        with ExitStack() as stack:
            racers = [
                Racer(plain, ids, race.plain, log, title),
                Racer(speculative, ids, race.speculative, log, title),
            ]
            for racer in racers:
                stack.enter_context(racer.session)
            view.begin(race)
            stack.callback(view.end, race)
            _run(race, racers, TextStream(tokenizer), tokenizer, view)
        both = min(len(race.plain.tokens), len(race.speculative.tokens))
        cut = not (race.plain.finished and race.speculative.finished)
        plain_text, text = (
            lane.tokens[:both] if cut else lane.tokens for lane in (race.plain, race.speculative)
        )
        batch = Batch(index, (case.name,), (tuple(ids[0].tolist()),), (0,))
        referee = Referee(model, PLAIN, dtype, 0.0, {"max_new_tokens": size, "do_sample": False})
        referee.take(batch, (tuple(plain_text),))
        (verdict,) = referee.compare(batch, [text])
        yield Result(title, race.plain, race.speculative, verdict)


def _run(
    race: Race, racers: Sequence[Racer], stream: TextStream, tokenizer: Any, view: View
) -> None:
    """Step until both have finished, or their time is up."""
    lanes = (race.plain, race.speculative)
    while waiting := [racer for racer in racers if not racer.lane.finished]:
        if sum(lane.seconds for lane in lanes) > RACE_SECONDS and all(
            lane.tokens for lane in lanes
        ):
            break
        racer = min(waiting, key=lambda racer: racer.lane.seconds)
        known = len(racer.lane.tokens)
        record = racer.step()
        new = Text()
        if racer.lane is race.speculative:
            tokens = racer.lane.tokens[known:]
            taken = len(record.accepted)
            new.append(stream.push(tokens[:taken]), style=GREEN)
            new.append(stream.push(tokens[taken:]))
            if racer.lane.finished:
                new.append(stream.end())
            race.speculative.text.append_text(new)
            race.tree = _sketch(record, tokens[taken:], tokenizer)
        view.step(race, new)


def _sketch(record: StepRecord, bonus: Sequence[int], tokenizer: Any) -> Tree:
    """The verified tree as something to draw."""
    return Tree(
        parent=record.tree.parent.tolist(),
        words=[tokenizer.decode([token]) for token in record.tree.token.tolist()],
        accepted=[int(node) for node in record.accepted],
        bonus=tokenizer.decode(bonus) if bonus else "",
    )
