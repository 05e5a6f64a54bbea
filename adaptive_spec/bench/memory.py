"""Peak memory of one contestant, measured in a process of its own.

    python -m adaptive_spec.bench.memory < job.json

The figure is the peak resident memory while decoding, minus what was resident after loading. Three
things would spoil it, so the child deals with them first:

- what is made once and stays (mapped weights that nobody has read, code, thread pools, primitives
  of the matrix library, one for every length of prompt) would count as memory of decoding: the
  contestant decodes a little of every prompt first;
- memory that was freed but not given back would hide what decoding needs: it is given back, and
  the allocator is told to do so from then on;
- the kernel's high-water mark remembers loading: it is reset through ``/proc/self/clear_refs``,
  and where that does not exist a thread samples instead.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adaptive_spec.bench.contestants import Contestant
from adaptive_spec.bench.decoding import Batch
from adaptive_spec.errors import DecodingError

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SAMPLE_SECONDS = 0.002
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
"""For every child alike: one arena that gives memory back, or fragments decide the figure."""
WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Job:
    """What a child decodes."""

    model: str
    dtype: str
    threads: int
    ignore_eos: bool
    contestant: Contestant
    batches: Sequence[Batch]
    options: dict[str, Any]

    def dump(self) -> str:
        facts = {name: getattr(self, name) for name in self.__slots__}
        one = self.contestant
        config = None if one.config is None else one.config.model_dump()
        plain = {"name": one.name, "policy": one.policy, "drafter": one.drafter}
        facts["contestant"] = {**plain, "lookup": one.lookup, "config": config}
        facts["batches"] = [asdict(batch) for batch in self.batches]
        return json.dumps(facts)

    @staticmethod
    def read(text: str) -> Job:
        from adaptive_spec.config import load_config

        facts = json.loads(text)
        one = facts["contestant"]
        one["config"] = None if one["config"] is None else load_config(one["config"])
        facts["contestant"] = Contestant(**one)
        facts["batches"] = [
            Batch(
                batch["index"],
                tuple(batch["ids"]),
                tuple(tuple(prompt) for prompt in batch["prompts"]),
                tuple(batch["seeds"]),
            )
            for batch in facts["batches"]
        ]
        return Job(**facts)


def peak_bytes(job: Job) -> int:
    """Run ``job`` in a child; peak resident bytes above what was resident after loading.

    Raises:
        DecodingError: the child failed; the message holds what it said.
    """
    command = [sys.executable, "-m", "adaptive_spec.bench.memory"]
    done = subprocess.run(
        command,
        input=job.dump(),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **ALLOCATOR},
    )
    if done.returncode != 0:
        said = "\n".join(done.stderr.strip().splitlines()[-3:]) or f"exit code {done.returncode}"
        raise DecodingError(f"measuring the memory of {job.contestant.name!r} failed: {said}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def measure(work: Callable[[], object]) -> int:
    """Peak resident bytes of this process during ``work``, above what is resident before."""
    _give_back()
    before = _resident("VmRSS")
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return _sampled(work) - before
    work()
    return _resident("VmHWM") - before


def _give_back() -> None:
    """Return freed memory to the system, where the C library can be asked to."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _resident(field: str) -> int:
    """Bytes under ``field`` of the process status; the present resident set elsewhere."""
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        import psutil

        return int(psutil.Process().memory_info().rss)
    (line,) = [line for line in lines if line.startswith(field + ":")]
    return int(line.split()[1]) * 1024


def _sampled(work: Callable[[], object]) -> int:
    """Highest of many samples while ``work`` runs."""
    highest, done = _resident("VmRSS"), threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(SAMPLE_SECONDS):
            highest = max(highest, _resident("VmRSS"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return highest


def main() -> None:
    """The child: read a job, load, decode, print one JSON object."""
    import torch

    from adaptive_spec.bench.decoding import Threads, ignore_end, runner
    from adaptive_spec.budget_log import NullLog
    from adaptive_spec.models import load

    job = Job.read(sys.stdin.read())
    torch.set_num_threads(job.threads)
    model, _ = load(job.model, job.dtype)
    if job.ignore_eos:
        ignore_end(model)

    def decode(batches: Sequence[Batch], options: dict[str, Any]) -> None:
        threads = Threads(job.threads)
        one = runner(job.contestant, model, threads=threads, log=NullLog(), self_check=True)
        for batch in batches:
            one.run(batch, "memory", options)

    decode(job.batches, {**job.options, "max_new_tokens": WARM_UP_TOKENS})
    print(json.dumps({"peak_bytes": measure(lambda: decode(job.batches, job.options))}))


if __name__ == "__main__":
    main()
