"""The benchmark from its settings to its result.

    settings -> contestants, prompts -> per dtype: load, take turns (``turns``) -> rows, bundle

One process and one model object; several dtypes come one after another.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch

from adaptive_spec import models, prompts
from adaptive_spec.bench import machine as facts
from adaptive_spec.bench.bundle import Bundle
from adaptive_spec.bench.contestants import Contestant, contestants, settled
from adaptive_spec.bench.decoding import Batch, Threads, ignore_end, runner
from adaptive_spec.bench.result import BenchResult, Row
from adaptive_spec.bench.settings import BenchSettings
from adaptive_spec.bench.turns import Turns
from adaptive_spec.budget_log import NullLog
from adaptive_spec.errors import ArgumentError
from adaptive_spec.model_facts import refuse
from adaptive_spec.options import about
from adaptive_spec.user_cache import Progress, silent


def run_bench(settings: BenchSettings, progress: Progress = silent) -> BenchResult:
    """Run the benchmark that ``settings`` describe.

    Args:
        progress: called between the timed parts only, with what is done and how far it is.

    Raises:
        ArgumentError, UnknownNameError, ConfigError, UnsupportedError: bad settings, before any
            earlier bundle is touched; DecodingError: a request failed.
    """
    names = contestants(settings)
    with about("--suite", settings.suite):
        suite = prompts.suite(settings.suite, settings.limit, raw=settings.raw, progress=progress)
    with about("--model", settings.model):
        models.resolve(settings.model, progress=progress)
    with _threads(settings.threads) as threads:
        loaded = [_load(settings, settings.dtypes[0], suite, progress)]
        names = settled(names, loaded[0][0])
        _rehearse(names, loaded[0][0], threads)
        plain = names[0].config
        assert plain is not None
        with Bundle(settings.out, plain.log) as bundle:
            manifest = _manifest(settings, names, suite, threads)
            bundle.manifest(manifest)
            rows: list[Row] = []
            for number, dtype in enumerate(settings.dtypes):
                if number:
                    gc.collect()  # the last model goes before the next one is there
                    loaded.append(_load(settings, dtype, suite, progress))
                turns = Turns(settings, names, dtype, threads, *loaded.pop(), bundle)
                found = turns.rows(_part(progress, number, len(settings.dtypes)))
                bundle.rows([asdict(row) for row in (*rows, *found)])  # whatever comes next
                rows.extend(turns.with_memory(found, progress))
                del turns
            result = BenchResult(
                rows=tuple(rows),
                machine=manifest["machine"],
                out=None if settings.out is None else str(bundle.folder),
                memory=settings.memory,
                baseline=settings.baseline is not None,
            )
            bundle.rows(result.table())
            bundle.manifest({**manifest, "ended": _now()})
    return result


def _load(
    settings: BenchSettings, dtype: str, suite: Sequence[prompts.Prompt], progress: Progress
) -> tuple[Any, list[Batch]]:
    """Load the model, encode the prompts, and check that both fit together."""
    model, tokenizer = models.load(settings.model, dtype, settings.device, progress=progress)
    refuse(model)
    if settings.ignore_eos:
        ignore_end(model)
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    encoded = [prompts.encode(tokenizer, one.text, settings.raw)[0].tolist() for one in suite]
    limit = model.config.get_text_config().max_position_embeddings
    for prompt, ids in zip(suite, encoded, strict=True):
        if len(ids) + settings.max_new_tokens > limit:
            room = f"at most {limit - len(ids)}: {prompt.id} has {len(ids)} tokens of {limit}"
            raise ArgumentError("--max-new-tokens", settings.max_new_tokens, room)
    batches: list[Batch] = []
    for start in range(0, len(suite), settings.batch):
        part = range(start, min(start + settings.batch, len(suite)))
        batches.append(
            Batch(
                index=len(batches),
                ids=tuple(suite[i].id for i in part),
                prompts=tuple(tuple(encoded[i]) for i in part),
                seeds=tuple(settings.seed + i for i in part),
            )
        )
    return model, batches


def _rehearse(names: Sequence[Contestant], model: Any, threads: int) -> None:
    """Make every contestant once, so that one that cannot be made costs no earlier bundle."""
    for one in names:
        runner(one, model, threads=Threads(threads), log=NullLog(), self_check=False)


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    """torch's threads for the run, put back afterwards."""
    before = torch.get_num_threads()
    chosen = before if count is None else count
    torch.set_num_threads(chosen)
    try:
        yield chosen
    finally:
        torch.set_num_threads(before)


def _part(progress: Progress, number: int, parts: int) -> Progress:
    """Progress of one of several equal parts."""

    def tell(stage: str, fraction: float | None) -> None:
        progress(stage, None if fraction is None else (number + fraction) / parts)

    return tell


def _manifest(
    settings: BenchSettings,
    names: Sequence[Contestant],
    suite: Sequence[prompts.Prompt],
    threads: int,
) -> dict[str, Any]:
    return {
        "started": _now(),
        "ended": None,
        "settings": asdict(settings),
        "contestants": [
            {
                "name": one.name,
                "policy": one.policy,
                "drafter": one.drafter,
                "config": None if one.config is None else one.config.model_dump(),
            }
            for one in names
        ],
        "prompts": [prompt.id for prompt in suite],
        "versions": facts.versions(),
        "commit": facts.commit(),
        "machine": facts.machine(threads),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
