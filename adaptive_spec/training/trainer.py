"""The training run: write, learn, write more, check, keep the head; resumable at any step.

OUT/head        the newest head, unless a former one was better by more than chance, in the format
                of ``heads.store``, with its model card and curves
OUT/state       what is needed to go on: the newest weights, the optimiser's moments, counts
OUT/data        shards of written text; OUT/held_out those that are never learned from
OUT/log.jsonl   a line per check: losses, acceptance by slot, text written, seconds
OUT/curves.png  the same, drawn
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from adaptive_spec.errors import TrainingError
from adaptive_spec.heads.head import Head
from adaptive_spec.heads.store import Stored, save_head
from adaptive_spec.pictures import save
from adaptive_spec.training import checkpoint
from adaptive_spec.training.batches import batches
from adaptive_spec.training.card import CURVES, curves, read_log, write_card
from adaptive_spec.training.data import Shards
from adaptive_spec.training.generating import Written
from adaptive_spec.training.measuring import Measured, measure
from adaptive_spec.training.objective import Weights, loss
from adaptive_spec.training.settings import LearningSection, TrainingConfig
from adaptive_spec.training.writing import Writer

HEAD, DATA, HELD_OUT, LOG = "head", "data", "held_out", "log.jsonl"
LEAST_RATE = 0.1
"""Share of the learning rate that is left at the end."""

Tell = Callable[[str, float | None], None]


class Run:
    """One training run in a folder.

    Args:
        head: freshly made; replaced by what the folder holds if it was made before.
        target: facts of the target for the head's config, see ``heads.config.target_facts``.
        writer: where text comes from.
        name: of the target, for the model card.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainingConfig,
        head: Head,
        target: dict[str, Any],
        writer: Writer,
        tell: Tell,
        name: str,
    ) -> None:
        self._folder, self._config, self._tell, self._name = folder, config, tell, name
        self.head, self._target, self._writer = head, target, writer
        data = config.data
        self.shards = Shards(folder / DATA, data.most_bytes)
        self.held = Shards(folder / HELD_OUT, data.most_bytes)
        self._learner = torch.optim.AdamW(
            head.parameters(), lr=config.learning.rate, weight_decay=config.learning.decay
        )
        self.step, self._best, self._batches, self._seconds = 0, 0.0, 0, 0.0
        self._began: float | None = None  # when learning was last looked at
        self.begun: dict[str, Any] | None = None
        """What is known of the training of the head that this run began with."""
        self._source: Iterator[list[Written]] | None = None

    def fits(self, given: Stored) -> bool:
        """Whether this run can begin with a head: same target, same shape but for a corrector that
        this run's head does without."""
        mine, theirs = self.head.config.shape, given.head.config.shape
        if mine.corrector == "none":
            theirs = replace(theirs, corrector="none", rank=mine.rank)
        return mine == theirs and given.target["digest"] == self._target["digest"]

    def begin(self, given: Stored) -> None:
        """Begin with the weights of a head that ``fits``; the text will be other text than it was
        trained on."""
        self.head.take(given.head)
        self.begun = dict(given.training)
        self._batches = int(self.begun.get("batches", self.begun.get("step", 0)))

    # -- data -----------------------------------------------------------------------------------

    def written(self) -> int:
        """Answer tokens on disk."""
        return self.shards.tokens()

    def write(self, most: int) -> None:
        """Write batches until ``most`` answer tokens are there, or as many as the disk may hold;
        held-out text first of all."""
        if not self.held.paths():
            self._tell("writing text to be held out", None)
            self.held.add(self._writer.held_out(self._config.learning.held_out))
        self.shards.most_bytes = max(self._config.data.most_bytes - self.held.bytes, 1)
        while (have := self.written()) < most:
            self._tell("writing text to learn from", have / most)
            if self._source is None:
                self._source = self._writer.batches(self._batches)
            texts = next(self._source)
            self._batches += 1
            if texts:
                self.shards.add(texts)
            self._save_state()
            if self.shards.full:
                return

    # -- learning -------------------------------------------------------------------------------

    def learn(self) -> Measured:
        """Go on from the present step to the last; what the held-out texts say at the end.

        If it is interrupted, it can be gone on from the last step.
        """
        self._began = time.perf_counter()
        try:
            return self._learn()
        except KeyboardInterrupt:
            self._save_state()
            raise
        finally:
            self._began = None

    def _learn(self) -> Measured:
        learning, data = self._config.learning, self._config.data
        weights = Weights(learning.base, learning.token, learning.reach, learning.slots)
        luck = torch.Generator().manual_seed(learning.seed + self.step)
        stream, found = self._stream(learning), None
        recent: list[dict[str, float]] = []
        if self.step == 0 and self.begun is not None:
            found = self.check(recent)  # what it begins with is the best so far
        while self.step < learning.steps:
            if self.step % learning.write_every == 0 and self.written() < data.tokens:
                self.write(min(self.written() + 1, data.tokens))
                stream = self._stream(learning)
            recent.append(self._learn_one(next(stream), weights, luck))
            self.step += 1
            self._tell("learning", self.step / learning.steps)
            if self.step % learning.check_every == 0 or self.step == learning.steps:
                found, recent = self.check(recent), []
        return found if found is not None else self.check(recent)

    def _stream(self, learning: LearningSection) -> Iterator[Any]:
        config = self.head.config
        return batches(
            self.shards.endless(learning.seed + self.step),
            sequences=learning.sequences,
            anchors=learning.anchors,
            block=config.block,
            causal=config.causal,
            seed=learning.seed + self.step,
        )

    def _learn_one(self, batch: Any, weights: Weights, luck: torch.Generator) -> dict[str, float]:
        learning = self._config.learning
        for group in self._learner.param_groups:
            group["lr"] = learning.rate * _schedule(self.step, learning)
        self.head.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts = loss(self.head, batch, weights, luck)
        self._learner.zero_grad(set_to_none=True)
        parts["total"].backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.head.parameters(), learning.clip)
        if bool(torch.isfinite(norm)):  # else this step teaches nothing
            self._learner.step()
        return {name: float(value.detach()) for name, value in parts.items()}

    def check(self, recent: Sequence[dict[str, float]]) -> Measured:
        """Measure on held-out text, write a line of the log, and keep the head.

        It replaces the one that was kept unless it is worse than the best by more than the standard
        error of the measurement: less is chance, and the newer one has seen more.
        """
        self._lap()
        self.head.eval()
        texts = [text for path in self.held.paths() for text in self.held.read(path)]
        found = measure(self.head, texts)
        losses = {
            name: sum(one[name] for one in recent) / len(recent) for name in (recent or [{}])[0]
        }
        line = {
            "step": self.step,
            "seconds": self._seconds,
            "written_tokens": self.written(),
            **losses,
            **found.as_dict(),
        }
        about = {
            "step": self.step,
            "held_out": found.as_dict(),
            "config": self._config.model_dump(),
            "batches": self._batches,
            "begun": self.begun,
        }
        try:
            _append(self._folder / LOG, json.dumps(line))
            save(self._folder / CURVES, curves(self._name, read_log(self._folder / LOG)))
            if found.acceptance_length >= self._best - found.error:
                save_head(self._folder / HEAD, self.head, self._target, about)
                write_card(self._folder / HEAD, self._name, self._folder / LOG)
                self._best = max(self._best, found.acceptance_length)  # last: it may be cut off
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"cannot write to {self._folder}: {error}") from error
        self._save_state()
        return found

    def _lap(self) -> None:
        """Count the seconds of learning so far."""
        if self._began is not None:
            now = time.perf_counter()
            self._seconds, self._began = self._seconds + now - self._began, now

    # -- going on -------------------------------------------------------------------------------

    def _save_state(self) -> None:
        self._lap()
        counts = {
            "step": self.step,
            "best": self._best,
            "batches": self._batches,
            "seconds": self._seconds,
            "begun": self.begun,
        }
        checkpoint.save(self._folder, counts, self.head, self._target, self._learner)

    def resume(self) -> bool:
        """Take up a run that was begun in this folder; False if there is none.

        Raises:
            TrainingError: it was begun for another target or another head.
        """
        counts = checkpoint.load(self._folder, self.head, self._target, self._learner)
        if counts is None:
            return False
        self.step, self._best = int(counts["step"]), float(counts["best"])
        self._batches, self._seconds = int(counts["batches"]), float(counts["seconds"])
        self.begun = counts.get("begun")
        return True


def _append(log: Path, line: str) -> None:
    """Add a line; one that was cut off before it stays a line of its own."""
    with log.open("a+b") as file:
        file.seek(0, 2)
        if size := file.tell():
            file.seek(size - 1)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())


def frequent(texts: Iterator[Written], count: int, always: Sequence[int]) -> torch.Tensor:
    """[count] ids, ascending: ``always`` and the most frequent tokens of the answers."""
    seen: Counter[int] = Counter()
    for text in texts:
        seen.update(text.tokens[text.prompt :].tolist())
    picked = dict.fromkeys(always)
    for token, _ in seen.most_common():
        if len(picked) >= count:
            break
        picked[token] = None
    lowest = (token for token in range(count * 2) if token not in picked)
    while len(picked) < count:
        picked[next(lowest)] = None
    return torch.tensor(sorted(picked))


def _schedule(step: int, learning: LearningSection) -> float:
    """Warm-up, then a cosine down to ``LEAST_RATE``."""
    if step < learning.warmup:
        return (step + 1) / learning.warmup
    way = (step - learning.warmup) / max(learning.steps - learning.warmup, 1)
    return LEAST_RATE + (1.0 - LEAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * min(way, 1.0)))
