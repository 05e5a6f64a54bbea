"""Written text with its states on disk: shards within a stated bound, the oldest replaced first.

A shard is a safetensors file of one batch of sequences. Writing is atomic, so an interruption
leaves whole shards; what fills a shard that never came to be is written again.

Legend: T tokens of a sequence, N of a shard, n taps, H hidden.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from adaptive_spec.errors import TrainingError
from adaptive_spec.heads.store import write_tensors
from adaptive_spec.training.generating import Written

HEADER = 512
"""Bytes of a shard beside its tensors, at most."""


class Shards:
    """A folder of shards.

    Args:
        most_bytes: bound of all shards together; when it is reached, the oldest one goes.
    """

    def __init__(self, folder: str | Path, most_bytes: int) -> None:
        self.folder, self.most_bytes = Path(folder), most_bytes
        self.full = False
        """The bound was reached: for a new shard an old one goes."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for torn in self.folder.glob(".*.tmp"):
                torn.unlink(missing_ok=True)
        except OSError as error:
            raise TrainingError(f"cannot write training data to {folder}: {error}") from error

    def paths(self) -> list[Path]:
        """Shards by age, the oldest first."""
        found = (path for path in self.folder.glob("*.safetensors") if path.stem.isdigit())
        return sorted(found, key=lambda path: int(path.stem))

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths())

    def tokens(self) -> int:
        """Tokens of answers in all shards, from their headers."""
        total = 0
        for path in self.paths():
            try:
                with safe_open(path, framework="pt") as file:
                    total += int((file.metadata() or {}).get("answer_tokens", 0))
            except (OSError, SafetensorError) as error:
                raise TrainingError(f"cannot read training data {path}: {error}") from error
        return total

    def add(self, sequences: Sequence[Written]) -> Path:
        """Write a shard.

        Raises:
            TrainingError: there is no room on the disk, or the folder cannot be written.
        """
        known = self.paths()
        path = self.folder / f"{int(known[-1].stem) + 1 if known else 0:06d}.safetensors"
        sizes = torch.tensor([[len(one.tokens), one.prompt] for one in sequences])
        tensors = {
            "sizes": sizes,
            "tokens": torch.cat([one.tokens for one in sequences]),
            "taps": torch.cat([one.taps for one in sequences]),
            "final": torch.cat([one.final for one in sequences]),
        }
        about = {"answer_tokens": str(int((sizes[:, 0] - sizes[:, 1]).sum()))}
        self._make_room(sum(value.nbytes for value in tensors.values()) + HEADER)
        try:
            write_tensors(path, tensors, about)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"cannot write training data to {self.folder}: {error}") from error
        return path

    def _make_room(self, needed: int) -> None:
        """Let the oldest shards go until ``needed`` more bytes fit.

        Raises:
            TrainingError: they never will.
        """
        if needed > self.most_bytes:
            raise TrainingError(
                f"a batch of {needed:,} bytes does not fit into the {self.most_bytes:,} that "
                f"{self.folder} may hold: set data.most_bytes higher, or data.rows lower"
            )
        while self.bytes + needed > self.most_bytes and (known := self.paths()):
            self.full = True
            known[0].unlink()

    def read(self, path: Path) -> list[Written]:
        """The sequences of a shard.

        Raises:
            TrainingError: it cannot be read.
        """
        try:
            with safe_open(path, framework="pt") as file:
                sizes, tokens = file.get_tensor("sizes").tolist(), file.get_tensor("tokens")
                taps, final = file.get_tensor("taps"), file.get_tensor("final")
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"cannot read training data {path}: {error}") from error
        found, first, row = [], 0, 0
        for size, prompt in sizes:
            rows = slice(row, row + size - 1)
            found.append(Written(tokens[first : first + size], prompt, taps[rows], final[rows]))
            first, row = first + size, row + size - 1
        return found

    def endless(self, seed: int, held: int = 4) -> Iterator[Written]:
        """Sequences in random order for ever; ``held`` shards are mixed, new ones are seen."""
        luck = random.Random(seed)
        while True:
            paths = self.paths()
            if not paths:
                raise TrainingError(f"no training data in {self.folder}")
            luck.shuffle(paths)
            for place in range(0, len(paths), held):
                pool = [one for path in paths[place : place + held] if path.exists()
                        for one in self.read(path)]  # fmt: skip
                luck.shuffle(pool)
                yield from pool
