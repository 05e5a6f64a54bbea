"""Contestants take turns on every batch, so that noise hits all of them alike.

    for repeat: for batch of prompts: for contestant in shuffled order: decode, timed

Every contestant has one decoder for the whole run and one untimed warm-up. Texts are compared with
plain's after every round, outside the clock. With ``--disturb`` the turns stay, and each contestant
has a step count and threads of its own (see ``Threads``); speeds in the table then mix both states
of the machine, and the log tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from adaptive_spec.bench.bundle import Bundle
from adaptive_spec.bench.contestants import PLAIN, Contestant, baseline
from adaptive_spec.bench.decoding import Batch, Decoded, Ours, Runner, Threads, runner
from adaptive_spec.bench.exactness import Comparison, Referee
from adaptive_spec.bench.memory import Job, peak_bytes
from adaptive_spec.bench.result import Row
from adaptive_spec.bench.settings import BenchSettings
from adaptive_spec.bench.statistics import Record, best_elsewhere, speed_up
from adaptive_spec.user_cache import Progress

WARM_UP_TOKENS = 16


class Turns:
    """All contestants on one loaded model."""

    def __init__(
        self,
        settings: BenchSettings,
        names: Sequence[Contestant],
        dtype: str,
        threads: int,
        model: Any,
        batches: Sequence[Batch],
        bundle: Bundle,
    ) -> None:
        self._settings, self._names, self._dtype = settings, names, dtype
        self._base, self._bundle, self._batches = threads, bundle, batches
        self._options = settings.generation()
        self._threads = {name.name: Threads(threads) for name in names}
        self._runners: dict[str, Runner] = {
            one.name: runner(
                one,
                model,
                threads=self._threads[one.name],
                log=bundle.log,
                self_check=one.name == PLAIN or settings.device != "cpu",
            )
            for one in names
        }
        assert names[0].config is not None
        self._referee = Referee(model, names[0].config, dtype, settings.temperature, self._options)
        self._records = {one.name: Record(len(batches)) for one in names}

    def rows(self, progress: Progress) -> list[Row]:
        """Warm up, take turns, compare, count; memory is measured later (``with_memory``)."""
        self._warm_up(progress)
        rng = np.random.default_rng(self._settings.seed)
        rounds = self._settings.repeats * len(self._batches)
        for number in range(rounds):
            repeat, place = divmod(number, len(self._batches))
            order = [self._names[i] for i in rng.permutation(len(self._names))]
            progress(f"{self._dtype}, repeat {repeat + 1}", number / rounds)
            self._turn(self._batches[place], repeat, order)
        return [self._row(one) for one in self._names]

    def with_memory(self, rows: Sequence[Row], progress: Progress) -> list[Row]:
        """The rows with peak memory, if it was asked for."""
        if not self._settings.memory:
            return list(rows)
        peaks = self._peaks(progress)
        base = max(peaks[PLAIN], 1)
        return [replace(row, peak_memory_ratio=peaks[row.name] / base) for row in rows]

    def _warm_up(self, progress: Progress) -> None:
        batches, options = warm_up(self._settings, self._batches)
        for one in self._names:
            progress(f"{self._dtype} warm-up {one.name}", 0.0)
            label = f"{self._dtype}/{one.name}/warm-up"
            for batch in batches:
                self._runners[one.name].run(batch, label, options)
            threads = self._threads[one.name]
            threads.steps, threads.disturb = 0, self._settings.disturb

    def _turn(self, batch: Batch, repeat: int, order: Sequence[Contestant]) -> None:
        """Every contestant decodes the batch once; then all texts are compared with plain's."""
        runs: dict[str, Decoded] = {}
        for one in order:
            label = f"{self._dtype}/{one.name}/{repeat}"
            runs[one.name] = self._runners[one.name].run(batch, label, self._options)
        self._referee.take(batch, runs[PLAIN].tokens)
        torch.set_num_threads(self._base)
        for place, one in enumerate(order):
            run, record = runs[one.name], self._records[one.name]
            compared = self._referee.compare(batch, run.tokens)
            record.decoded.append((batch.index, run))
            for request, comparison in zip(batch.ids, compared, strict=True):
                record.compared.setdefault(request, []).append(comparison)
            self._write(batch, repeat, place, one, run, compared)

    def _write(
        self,
        batch: Batch,
        repeat: int,
        place: int,
        one: Contestant,
        run: Decoded,
        compared: Sequence[Comparison],
    ) -> None:
        for row, request in enumerate(batch.ids):
            comparison = compared[row]
            self._bundle.request(
                {
                    "contestant": one.name,
                    "dtype": self._dtype,
                    "repeat": repeat,
                    "request": request,
                    "batch": batch.index,
                    "turn": place,
                    "prompt_tokens": len(batch.prompts[row]),
                    "tokens": len(run.tokens[row]),
                    "batch_tokens": sum(map(len, run.tokens)),
                    "seconds": run.seconds,
                    "loop_seconds": run.loop_seconds,
                    "first_step": run.first_step,
                    "threads": self._threads[one.name].count,
                    "identical": comparison.identical,
                    "near_tie": comparison.near_tie,
                    "mismatch": comparison.mismatch,
                    "first_difference": comparison.first_difference,
                    "gap": comparison.gap,
                    "tokens_compared": comparison.tokens_compared,
                    "stats": run.stats[row] if run.stats else None,
                }
            )

    def _peaks(self, progress: Progress) -> dict[str, int]:
        """Peak bytes of every contestant, each in a process of its own."""
        peaks = {}
        for number, one in enumerate(self._names):
            progress(f"{self._dtype} memory {one.name}", number / len(self._names))
            job = Job(
                model=self._settings.model,
                dtype=self._dtype,
                threads=self._base,
                ignore_eos=self._settings.ignore_eos,
                contestant=one,
                batches=self._batches,
                options=self._options,
            )
            peaks[one.name] = peak_bytes(job)
        return peaks

    def _row(self, one: Contestant) -> Row:
        settings, record = self._settings, self._records[one.name]
        speed = speed_up(record, self._records[PLAIN], settings.seed)
        against = None
        if settings.baseline is not None:
            stands = [self._records[name] for name in baseline(settings.baseline, self._names)]
            other = best_elsewhere(stands) if len(stands) > 1 else stands[0]
            against = speed_up(record, other, settings.seed)
        exact = record.exactness()
        return Row(
            name=one.name,
            policy=one.policy,
            drafter=one.drafter,
            suite=settings.suite,
            dtype=self._dtype,
            temperature=settings.temperature,
            threads=self._base,
            batch=settings.batch,
            tokens_per_second=record.tokens_per_second(),
            speedup=speed.value,
            low=speed.low,
            high=speed.high,
            acceptance_length=record.acceptance_length(),
            **asdict(exact),
            requests=len(record.compared),
            controller_share=record.controller_share(),
            nodes_per_step=record.nodes_per_step(),
            peak_memory_ratio=None,
            versus_baseline=against.value if against else None,
            versus_low=against.low if against else None,
            versus_high=against.high if against else None,
            kernels=_kernels(self._runners[one.name]),
        )


def warm_up(
    settings: BenchSettings, batches: Sequence[Batch]
) -> tuple[Sequence[Batch], dict[str, object]]:
    """What is decoded before any clock runs, and the arguments of ``generate`` for it.

    Where kernels are compiled on first use, that is everything once: which variants a batch needs
    depends on its length and on how far it goes. Elsewhere a few tokens of the first batch.
    """
    options = settings.generation()
    if settings.device != "cpu":
        return batches, options
    return batches[:1], {**options, "max_new_tokens": min(settings.max_new_tokens, WARM_UP_TOKENS)}


def _kernels(runner: Runner) -> bool | None:
    """Whether a contestant ended on the kernels; None where there is no choice."""
    if not isinstance(runner, Ours) or runner.decoder.target.device.type == "cpu":
        return None
    return runner.decoder.target.kernels is not None
