"""Streams: long runs of requests in a fixed order, on which rules of online updates compete.

Every contestant has one decoder for the whole stream, whose head learns or does not. They take
turns on every batch, so that noise hits all alike; what learning takes is part of their seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from adaptive_spec import models, prompts
from adaptive_spec.bench.contestants import PLAIN, Contestant, contestants, settled
from adaptive_spec.bench.decoding import Batch, Ours, Threads, runner
from adaptive_spec.bench.drift import loop_rate
from adaptive_spec.bench.drifting import Drifting
from adaptive_spec.bench.machine import machine
from adaptive_spec.bench.settings import BenchSettings, unknown
from adaptive_spec.bench.statistics import Record, speed_up
from adaptive_spec.bench.stream_prompts import KINDS
from adaptive_spec.bench.stream_result import Course, StreamResult, StreamRow, length
from adaptive_spec.budget_log import NullLog
from adaptive_spec.errors import ArgumentError
from adaptive_spec.model_facts import refuse
from adaptive_spec.online.learner import HeadLearner
from adaptive_spec.online.policies import NEVER
from adaptive_spec.user_cache import Progress, silent

PREFIX = "stream:"
HOT = 1.5
"""Temperature of ``adversarial``: most of what a head guesses is wrong."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a stream."""

    kind: str
    share: float = 1.0
    """Of the tokens per part that were asked for."""
    drifted: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """Parts one after the other."""

    parts: tuple[Part, ...]
    plain: bool = False
    """Plain decoding takes part."""
    temperature: float | None = None


STREAMS: dict[str, Stream] = {
    "stationary": Stream((Part("mixed"),)),
    "domains": Stream(tuple(map(Part, ("code", "chat", "arithmetic", "other-code")))),
    "target-drift": Stream((Part("mixed", 0.2), Part("mixed", 0.8, drifted=True))),
    "adversarial": Stream((Part("mixed"),), plain=True, temperature=HOT),
}


def find_stream(suite: str) -> Stream:
    """The stream that ``stream:NAME`` names.

    Raises:
        ArgumentError: there is none.
    """
    name = suite.removeprefix(PREFIX)
    if name not in STREAMS:
        raise unknown("--suite", suite, [f"{PREFIX}{one}" for one in STREAMS])
    return STREAMS[name]


def run_stream(
    settings: BenchSettings,
    tokens: int,
    progress: Progress = silent,
    keep: Any = None,
) -> StreamResult:
    """Run a stream.

    Args:
        settings: ``suite`` names the stream; rules vary by ``online.updates``.
        tokens: of every part, as the first contestant writes them.
        keep: called with the result so far after every batch.

    Raises:
        ArgumentError, UnknownNameError, ConfigError, UnsupportedError: bad settings.
        DecodingError: a request failed.
    """
    stream = find_stream(settings.suite)
    _check(settings, tokens)
    if stream.temperature is not None:
        settings = replace(settings, temperature=stream.temperature)
    names = contestants(settings)
    where = settings.model, settings.dtypes[0], settings.device
    model, tokenizer = models.load(*where, progress=progress)
    refuse(model)
    names = [one for one in settled(names, model) if stream.plain or one.name != PLAIN]
    if any(one.config is not None and one.config.online.background for one in names):
        allowed = "off in a stream: a thread of one contestant would slow the others down"
        raise ArgumentError("online.background", True, allowed)
    names = _by_rule(names)
    if NEVER not in {_rule(one) for one in names}:
        raise ArgumentError("--updates", ",".join(map(_rule, names)), "never among them")
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads or before)
    try:
        return _Run(settings, stream, names, model, tokenizer).run(tokens, progress, keep)
    finally:
        torch.set_num_threads(before)


def _check(settings: BenchSettings, tokens: int) -> None:
    """Options that a stream does not know are refused rather than passed over."""
    if len(settings.dtypes) > 1:
        raise ArgumentError("--dtype", ",".join(settings.dtypes), "one for a stream")
    if tokens < 1:
        raise ArgumentError("--tokens", tokens, "at least 1")
    for option, given in (
        ("--repeats", settings.repeats > 1),
        ("--disturb", settings.disturb is not None),
        ("--memory", settings.memory),
    ):
        if given:
            raise ArgumentError(option, given, "not in a stream")


def _rule(one: Contestant) -> str:
    """The rule of updates of a contestant; plain has none."""
    return PLAIN if one.config is None else one.config.online.updates.strip()


def _by_rule(names: Sequence[Contestant]) -> list[Contestant]:
    """``never`` first, since all are compared with it, and plain last; called by their rules where
    nothing else differs."""
    rules = {one.name: one.config.online.updates for one in names if one.config is not None}
    rules |= {PLAIN: PLAIN}
    known = [rules[one.name] for one in names if one.name in rules]
    if len(set(known)) == len(names):
        names = [replace(one, name=rules[one.name]) for one in names]
    never = {NEVER, *(name for name, rule in rules.items() if rule == NEVER)} - {PLAIN}
    return sorted(names, key=lambda one: (one.name == PLAIN, one.name not in never))


class _Run:
    """One stream on one model."""

    def __init__(
        self,
        settings: BenchSettings,
        stream: Stream,
        names: Sequence[Contestant],
        model: Any,
        tokenizer: Any,
    ) -> None:
        self._settings, self._stream, self._names = settings, stream, names
        self._model, self._tokenizer = model, tokenizer
        threads = Threads(torch.get_num_threads())
        check = model.device.type != "cpu"  # everyone's kernels are to be looked at
        self._runners: dict[str, Ours] = {}
        for one in names:
            made = runner(
                one, model, threads=threads, log=NullLog(), self_check=one is names[0] or check
            )
            if not isinstance(made, Ours):
                raise ArgumentError("--peers", one.name, "a stream compares rules of updates")
            self._runners[one.name] = made
        self._first = next((one.name for one in names if one.name != PLAIN), names[0].name)
        self._courses = {one.name: Course() for one in names}
        self._records = {one.name: Record(0) for one in names}
        self._same = dict.fromkeys(self._courses, 0)
        self._requests = 0
        self._texts: list[list[tuple[int, ...]]] = []
        self._facts: dict[str, Any] = {}

    def run(self, tokens: int, progress: Progress, keep: Any) -> StreamResult:
        luck = np.random.default_rng(self._settings.seed)
        drift = self._drifting() if any(part.drifted for part in self._stream.parts) else None
        parts: list[dict[str, Any]] = []
        self._facts = {"suite": self._settings.suite, "began": time.time(), "parts": parts}
        self._warm_up()
        try:
            for place, part in enumerate(self._stream.parts):
                if part.drifted and drift is not None:
                    self._facts["drift"] = drift.begin()
                begun = len(self._texts)
                parts.append({**asdict(part), "first_batch": begun})
                self._part(part, place, tokens, luck, progress, keep)
                parts[-1]["loop_rate"] = loop_rate(
                    [text for batch in self._texts[begun:] for text in batch]
                )
            if drift is not None:
                self._facts["drift"] |= drift.recovered()
        finally:
            if drift is not None:
                drift.end()
        return self._result()

    def _drifting(self) -> Drifting:
        decoders = {name: one.decoder for name, one in self._runners.items()}
        kind = next(part.kind for part in self._stream.parts if part.drifted)
        return Drifting(self._model, self._tokenizer, decoders, kind, self._settings.raw)

    def _part(
        self, part: Part, place: int, tokens: int, luck: Any, progress: Progress, keep: Any
    ) -> None:
        asked, size = KINDS[part.kind](self._settings.seed + place), self._settings.batch
        wanted, written = part.share * tokens, 0
        while written < wanted:
            progress(f"{part.kind}, part {place + 1}", written / wanted)
            batch = self._batch(list(islice(asked, size)))
            written += self._turn(
                batch, [self._names[i] for i in luck.permutation(len(self._names))]
            )
            if keep is not None:
                keep(self._result())

    def _turn(self, batch: Batch, order: Sequence[Contestant]) -> int:
        """Everyone decodes the batch; tokens that the first contestant wrote."""
        options = self._settings.generation()
        runs = {one.name: self._runners[one.name].run(batch, one.name, options) for one in order}
        texts = runs[self._first].tokens
        self._texts.append(list(texts))
        self._requests += len(texts)
        for name, run in runs.items():
            self._records[name].decoded.append((batch.index, run))
            self._records[name].batches = len(self._texts)
            course, learner = self._courses[name], self._runners[name].decoder.learner
            course.tokens.append(sum(map(len, run.tokens)))
            course.seconds.append(run.seconds)
            course.steps.append(run.steps or 0)
            course.updates.append(learner.updates if isinstance(learner, HeadLearner) else 0)
            self._same[name] += sum(a == b for a, b in zip(run.tokens, texts, strict=True))
        return sum(map(len, texts))

    def _warm_up(self) -> None:
        options = {**self._settings.generation(), "max_new_tokens": 8}
        batch = self._batch(["Say hello."] * self._settings.batch)
        for name, one in self._runners.items():
            one.run(batch, f"{name}/warm-up", options)

    def _batch(self, texts: Sequence[str]) -> Batch:
        raw, number = self._settings.raw, len(self._texts)
        ids = [tuple(prompts.encode(self._tokenizer, text, raw)[0].tolist()) for text in texts]
        first = self._settings.seed + number * len(texts)
        return Batch(
            index=number,
            ids=tuple(f"{number}/{row}" for row in range(len(texts))),
            prompts=tuple(ids),
            seeds=tuple(range(first, first + len(texts))),
        )

    def _result(self) -> StreamResult:
        drifted = [part["first_batch"] for part in self._facts["parts"] if part["drifted"]]
        first = drifted[0] if drifted else max(len(self._texts) // 4, 1)
        return StreamResult(
            rows=tuple(self._row(one.name, first) for one in self._names),
            courses=self._courses,
            facts=self._facts,
            machine=machine(torch.get_num_threads()),
        )

    def _row(self, name: str, first: int) -> StreamRow:
        record, course = self._records[name], self._courses[name]
        versus = speed_up(record, self._records[self._first], self._settings.seed)
        quarter = max(len(self._texts) // 4, 1)
        other = self._records[self._first]
        last = speed_up(record.last(quarter), other.last(quarter), self._settings.seed)
        learner = self._runners[name].decoder.learner
        learned = learner if isinstance(learner, HeadLearner) else None
        row = StreamRow(
            name=name,
            tokens_per_second=record.tokens_per_second(),
            versus_never=versus.value,
            low=versus.low,
            high=versus.high,
            updates=learned.updates if learned else 0,
            trials=learned.trials if learned else 0,
            update_seconds=learned.seconds if learned else 0.0,
            break_even_tokens=learned.break_even() if learned else None,
            acceptance_length_first=length(course, slice(0, first)),
            acceptance_length_last=length(course, slice(-quarter, None)),
            identical=self._same[name],
            requests=self._requests,
            versus_never_last=last.value,
            last_low=last.low,
            last_high=last.high,
        )
        if not self._stream.plain:
            return row
        plain = speed_up(record, self._records[PLAIN], self._settings.seed)
        return replace(row, versus_plain=plain.value, plain_low=plain.low, plain_high=plain.high)
