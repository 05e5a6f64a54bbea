"""From a model's name to a trained head: what a training run is made of."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from adaptive_spec import models, prompts
from adaptive_spec.errors import ArgumentError, TrainingError
from adaptive_spec.heads.config import CORRECTORS, target_facts
from adaptive_spec.heads.digest import digest
from adaptive_spec.heads.shelf import find
from adaptive_spec.heads.store import load_head
from adaptive_spec.model_facts import decoder_layers, describe, refuse
from adaptive_spec.options import about
from adaptive_spec.training.beginning import fresh_head
from adaptive_spec.training.measuring import Measured
from adaptive_spec.training.prompts import Fence
from adaptive_spec.training.settings import ShapeSection, TrainingConfig
from adaptive_spec.training.trainer import Run, Tell, frequent
from adaptive_spec.training.writing import Writer

TAPS = 5
FENCED = ("humaneval", "chat")
"""Suites of which nothing is trained on."""


def spread(layers: int, count: int = TAPS) -> tuple[int, ...]:
    """Layers to tap, spread over the depth (JetSpec: round(1 + i (L - 4) / (n - 1)))."""
    if layers < count + 3:
        return tuple(range(max(layers - 1, 1)))
    return tuple(round(1 + i * (layers - 4) / (count - 1)) for i in range(count))


def train(
    model: str, out: str | Path, config: TrainingConfig, tell: Tell, begin: str | None = None
) -> Measured:
    """Train a head, or go on with the run that ``out`` holds.

    Args:
        begin: a head to begin with (name, folder or hub id): its weights; optimiser and data are
            fresh. A run that is under way goes on instead.

    Raises:
        ArgumentError: a setting that does not fit the model.
        TrainingError: ``out`` holds another run, or cannot be written.
        HeadError: ``begin`` is not sound.
    """
    folder = Path(out)
    if config.head.corrector not in CORRECTORS:
        raise ArgumentError("corrector", config.head.corrector, f"one of {', '.join(CORRECTORS)}")
    with about("--model", model):
        loaded, tokenizer = models.load(model, "bfloat16", progress=tell)
    refuse(loaded)
    facts = describe(loaded)
    shape = config.head
    taps = spread(facts.layers) if shape.taps is None else tuple(shape.taps)
    if not taps or max(taps) >= facts.layers or min(taps) < 0:
        raise ArgumentError("taps", list(taps), f"layers 0 to {facts.layers - 1}")
    if shape.draft_vocab is not None and shape.draft_vocab > facts.vocab:
        raise ArgumentError("draft_vocab", shape.draft_vocab, f"at most {facts.vocab}")
    if config.data.max_new_tokens < (least := shape.block + 2):
        allowed = f"at least {least}, which a block of {shape.block} needs"
        raise ArgumentError("max_new_tokens", config.data.max_new_tokens, allowed)
    with _alone(folder):
        fence = Fence(text for name in FENCED for text in prompts.texts(name, progress=tell))
        writer = Writer(loaded, tokenizer, list(decoder_layers(loaded)), taps, config.data, fence)
        target = {**target_facts(facts), "digest": digest(loaded)}
        head = fresh_head(loaded, config.head, taps)
        run = Run(folder, config, head, target, writer, tell, model)
        run.resume()
        if begin is not None and run.step == 0 and run.begun is None:
            with about("--begin", begin):
                given = load_head(find(begin))
            if not run.fits(given):
                allowed = "a head for this target, of the shape that the settings ask for"
                raise ArgumentError("begin", begin, f"{allowed} (its corrector may be left out)")
            run.begin(given)
        run.write(min(config.data.first_tokens, config.data.tokens))
        if run.step == 0 and run.begun is None and head.draft_ids is not None:
            head.draft_ids.copy_(_vocabulary(run, config.head, tokenizer))
        head.lend(
            loaded.get_input_embeddings().weight.detach().float(),
            loaded.get_output_embeddings().weight.detach().float(),
        )
        return run.learn()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock, which is freed if the holder dies.

    Raises:
        ArgumentError: it cannot be made. TrainingError: another process trains there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        allowed = f"a folder to write to ({error.strerror})"
        raise ArgumentError("out", str(folder), allowed) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"another process is training in {folder}") from None
        yield


def _vocabulary(run: Run, shape: ShapeSection, tokenizer: Any) -> torch.Tensor:
    """The tokens that the target writes most, its special ones among them."""
    assert shape.draft_vocab is not None
    texts = (text for path in run.shards.paths() for text in run.shards.read(path))
    special = [one for one in tokenizer.all_special_ids if one < run.head.config.vocab]
    return frequent(texts, shape.draft_vocab, special[: shape.draft_vocab])
