"""``adaptive-spec demo``: what a newcomer sees first, and nothing in it is staged.

For both number formats and both prompts, plain and speculative decoding race on this machine
(`demo_race`), drawn live (`demo_view`). At the end the texts are compared token by token, and where
speculation was slower the table says so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from adaptive_spec.arguments import check_whole
from adaptive_spec.cli.demo_view import GREEN, view_for
from adaptive_spec.cli.output import progress, results
from adaptive_spec.errors import AdaptiveSpecError
from adaptive_spec.options import about
from adaptive_spec.user_cache import cache_home

if TYPE_CHECKING:
    from adaptive_spec.bench.exactness import Comparison
    from adaptive_spec.cli.demo_race import Result

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}

CODING = """\
Show this class again in a code block, then explain it.

```python
class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop()
```"""

CHAT = "What should I pack for a weekend of hiking in the mountains? Give a reason for each item."

WELCOME = """\
[bold]The same text in fewer forwards.[/] A drafter guesses a tree of continuations from what was \
written before; the model checks the whole tree at once and keeps what it would have written \
itself: [green]green[/] came from the tree.
"""

SLOWER = """\
Slower than plain in {where}. The policy falls back to plain decoding where guesses do not pay, \
but it learns both machine and text as it goes, and one short race on a busy machine is noisy.
"""

SLOW_MACHINE = (
    "Races were stopped halfway to end in time: this machine is slow, or busy with others."
)


def demo(
    model: Annotated[
        str, typer.Option(help="Catalogue name, Hugging Face folder or hub id.")
    ] = "smollm2-135m",
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens per answer.")] = 96,
    log: Annotated[
        Path | None, typer.Option(help="Budget log; by default a file in the cache folder.")
    ] = None,
) -> None:
    """Watch the tree at work, then compare plain and speculative decoding on this machine."""
    check_size(max_new_tokens)
    if log is None:
        log = cache_home() / "demo.jsonl"
        log.unlink(missing_ok=True)  # ours to replace: it holds the newest demo only
    results.print(WELCOME)
    began = time.perf_counter()
    found = run(model, max_new_tokens, log)
    results.print(table(found))
    slower = [result.title for result in found if speed_up(result) < 1]
    if slower:
        results.print("\n" + SLOWER.format(where=", ".join(slower)), style="yellow", end="")
    if not all(lane.finished for result in found for lane in (result.plain, result.speculative)):
        results.print(SLOW_MACHINE, style="dim")
    steps = sum(len(r.plain.nodes) + len(r.speculative.nodes) for r in found)
    results.print(f"\nlog: {log}", soft_wrap=True, markup=False)
    results.print(f"     {steps} steps, each with its tree, its budget and the reason", style="dim")
    picture(log, f"{found[-1].title} {found[-1].speculative.name}")
    results.print(f"done in {time.perf_counter() - began:.0f} s", style="dim")
    if any(result.verdict.mismatch for result in found):
        raise typer.Exit(1)


def check_size(max_new_tokens: float) -> None:
    """Raise ArgumentError unless a text can have this many tokens."""
    check_whole("max_new_tokens", max_new_tokens, 1)


def run(name: str, size: int, log_path: Path) -> list[Result]:
    """Race every prompt in every number format; the log is opened before anything is loaded."""
    found: list[Result] = []
    with progress() as show:
        from adaptive_spec import models

        with about("--model", name):
            models.resolve(name, progress=show)
        show("starting torch", None)
        from adaptive_spec.budget_log import LogSettings
        from adaptive_spec.cli.demo_race import Case, WatchedLog, races

    cases = (Case("coding", CODING), Case("chat", CHAT))
    with about("--log", str(log_path)):
        log = WatchedLog(LogSettings(path=str(log_path)))
    try:
        for label, dtype in DTYPES.items():
            with progress() as show:
                model, tokenizer = models.load(name, dtype, progress=show)
            view = view_for(results)
            found += races(model, tokenizer, label, dtype, cases, size, log, view)
    finally:
        log.close()
    return found


def picture(log: Path, request: str) -> None:
    """Draw the timeline of a request beside the log, if the log can be read back."""
    from adaptive_spec.cli.inspect_facts import read_facts
    from adaptive_spec.cli.timeline import render
    from adaptive_spec.pictures import save

    path = log.with_suffix(".png")
    try:
        save(path, render(f"request {request}", read_facts(str(log)).requests[request].steps))
    except (AdaptiveSpecError, OSError, KeyError):
        return
    results.print(f"timeline: {path}", soft_wrap=True, markup=False)
    more = f"     more with: adaptive-spec inspect {log}"
    results.print(more, style="dim", soft_wrap=True, markup=False)


def speed_up(result: Result) -> float:
    """Tokens per second, speculative over plain."""
    return result.speculative.rate / result.plain.rate if result.plain.rate else 1.0


def table(found: Sequence[Result]) -> Table:
    """Plain and speculative side by side."""
    policy = found[0].speculative.name
    drawn = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=0, pad_edge=False)
    drawn.add_column("", no_wrap=True)
    headings = ("plain\ntokens/s", f"{policy}\ntokens/s", "speed\n-up", "accept\nlength")
    for heading in (*headings, "nodes\n/ step"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    drawn.add_column("\nthe text")
    for result in found:
        gain = speed_up(result)
        drawn.add_row(
            result.title,
            f"{result.plain.rate:.1f}",
            f"{result.speculative.rate:.1f}",
            Text(f"{gain:.2f}x", style=GREEN if gain >= 1 else "yellow"),
            f"{result.speculative.acceptance_length:.2f}",
            f"{result.speculative.nodes_per_step:.1f}",
            verdict(result.verdict),
        )
    return drawn


def verdict(found: Comparison) -> Text:
    """The comparison in words; positions count from 1."""
    if found.first_difference is None:
        count = found.tokens_compared
        return Text(f"identical ({count} token{'s' * (count != 1)})", style=GREEN)
    place = f"token {found.first_difference + 1}"
    gap = "" if found.gap is None else f", gap {found.gap:.2g}"
    if found.near_tie:
        return Text(f"first differs at a near-tie ({place}{gap})", style="yellow")
    return Text(f"DIFFERS from plain ({place}{gap})", style="bold red")
