"""``adaptive-spec inspect``: a budget log as tables, sentences, JSON or a timeline.

Tables go to stdout, remarks to stderr. Everything that comes from the log passes ``clean`` and is
printed as plain text, so that nothing in it reaches the terminal as an escape or as markup.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from adaptive_spec.cli.catalogue import Json
from adaptive_spec.cli.inspect_facts import OPEN, Facts, Request, read_facts
from adaptive_spec.cli.inspect_records import FORWARD, Step
from adaptive_spec.cli.inspect_text import clean, figure, label, milliseconds, percent
from adaptive_spec.cli.inspect_words import Finding, findings
from adaptive_spec.cli.output import print_json, remark
from adaptive_spec.errors import ArgumentError

WIDTH = 160
"""Columns where there is no terminal to ask."""
ROOM = 100
"""Columns that the tables need; a narrower terminal folds their lines itself."""
NAME = 64
"""Characters shown of a name or an id."""
CLOSEST = 3
"""Ids that are suggested for one that is not there."""
_HEADINGS = (
    *("step", "context", "offered", "size", "accepted", "emitted"),
    *("expected", "theta", "exp.ms", "ms"),
)


def inspect(
    log: Annotated[str, typer.Argument(help="A budget log; files rotated away are read too.")],
    request: Annotated[
        str | None, typer.Option(help="Only this request: its id, or how the id begins.")
    ] = None,
    png: Annotated[
        str | None, typer.Option(help="Draw a timeline: of --request, else the longest one.")
    ] = None,
    json: Json = False,
) -> None:
    """Explain a budget log: what became of each request, and why each step got its budget."""
    picture = None if png is None else _picture(png, log)
    facts = read_facts(log)
    chosen = None if request is None else pick(facts, request)
    shown = list(facts.requests.values()) if chosen is None else [chosen]
    if json:
        print_json(document(facts, shown))
    else:
        _print(requests_table(shown))
        if chosen is not None:
            _print(Text(), steps_table(chosen.steps), Text())
            _print(*map(_sentence, findings(chosen, facts)))
        _print(Text(), *(Text(line, style="dim") for line in summary(facts)))
    if picture is not None:
        _draw(picture, chosen, facts)


def document(facts: Facts, requests: Sequence[Request]) -> dict[str, Any]:
    """What ``--json`` prints; ``totals`` and the counters are those of the whole log."""
    rows = [{**r.row(), "findings": [f.words for f in findings(r, facts)]} for r in requests]
    return {
        "requests": rows,
        "steps": [step.as_dict() for request in requests for step in request.steps],
        "totals": facts.totals(),
        "skipped": facts.skipped,
        "odd_fields": facts.odd,
        "unknown_schema": {str(version): n for version, n in facts.unknown_schema.items()},
    }


def pick(facts: Facts, wanted: str) -> Request:
    """The request of that id, as it is or as it is shown; else the only one that begins so.

    Raises ArgumentError: there is none, or there are several.
    """
    known = [(request, clean(request.id, len(request.id))) for request in facts.requests.values()]
    fits = [request for request, shown in known if wanted in (request.id, shown)]
    if not fits:
        fits = [r for r, shown in known if r.id.startswith(wanted) or shown.startswith(wanted)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        few = ", ".join(clean(request.id, NAME) for request in fits[:CLOSEST])
        raise ArgumentError("request", wanted, f"{len(fits)} requests begin so, such as {few}")
    ids = [clean(request.id, NAME) for request in facts.requests.values()][-1000:]
    close = difflib.get_close_matches(wanted[:NAME], ids, CLOSEST, 0.4) or ids[-CLOSEST:]
    which = f"the closest are {', '.join(close)}" if close else "it holds none at all"
    raise ArgumentError("request", wanted, f"no request of this log; {which}")


def requests_table(requests: Sequence[Request]) -> Table:
    """One row per request."""
    table = _table()
    for heading in ("request", "policy", "drafters"):
        table.add_column(heading, overflow="fold")
    numbers = ("steps", "tokens", "budget", "accepted", "tokens/s", *FORWARD)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("finish", overflow="fold")
    for request in requests:
        row = request.row()
        split = row["shares"] or {}
        table.add_row(
            Text(clean(request.id, NAME)),
            Text(clean(", ".join(row["policies"]), NAME) or "-"),
            Text(clean(", ".join(row["drafters"]), NAME) or "-"),
            str(row["num_steps"]),
            str(row["new_tokens"]),
            _budget(row),
            figure(row["mean_acceptance_length"], 2),
            figure(row["tokens_per_second"], 2),
            *(percent(split.get(part)) for part in FORWARD),
            _finish(row),
        )
    return table


def steps_table(steps: Sequence[Step]) -> Table:
    """One row per step: what was decided on which grounds, and what came of it."""
    # All figures of a row in one cell: rich takes its time for every cell, and steps are many.
    rows = [_HEADINGS, *map(_figures, steps)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" ".join(map(str.rjust, row, widths)) for row in rows]
    table = _table()
    table.add_column(lines[0], no_wrap=True)
    table.add_column("why", overflow="fold")
    policy: str | None = None
    for step, line in zip(steps, lines[1:], strict=True):
        table.add_row(line, _why(step, policy), style="red" if step.faults else None)
        policy = step.policy or policy
    return table


def summary(facts: Facts) -> list[str]:
    """Totals, and what of the log could not be used."""
    sums = facts.totals()
    words = f"whole log: requests {sums['requests']} ({sums['open']} open)"
    words += f", tokens {sums['new_tokens']}"
    if sums["seconds"]:
        rate = figure(sums["tokens_per_second"], 2)
        words += f" in {figure(sums['seconds'], 2)} s ({rate} tokens/s together)"
    lines = [f"{words}, steps {sums['num_steps']}"]
    if sums["shares"] is not None:
        split = ", ".join(f"{part} {percent(share)}" for part, share in sums["shares"].items())
        seconds = figure(sums["forward_seconds"], 2)
        lines.append(f"forwards in the log: {sums['forwards_in_log']} in {seconds} s: {split}")
    if (updates := facts.updates.line()) is not None:
        lines.append(updates)
    if facts.skipped:
        lines.append(f"skipped lines, which are no records: {facts.skipped}")
    if facts.odd:
        lines.append(f"fields left out, missing or nonsense: {facts.odd}")
    for version, count in list(facts.unknown_schema.items())[:CLOSEST]:
        shown = clean(str(version), 20)
        lines.append(f"lines of schema {shown}, which this version cannot read: {count}")
    return lines


def _figures(step: Step) -> tuple[str, ...]:
    counts = (step.context, step.offered, step.size, step.accepted_tokens, step.emitted)
    return (
        label(step),
        *("-" if count is None else str(count) for count in counts),
        figure(step.expected_tokens, 2),
        figure(step.theta),
        milliseconds(step.expected_seconds),
        milliseconds(step.total),
    )


def _why(step: Step, policy: str | None) -> Text:
    """The reason; before it a change of policy, after it the faults."""
    lines = []
    if step.policy is not None and policy is not None and step.policy != policy:
        lines.append(Text(f"policy is now {clean(step.policy, NAME)}", style="bold"))
    lines.append(Text(clean(step.reason) or "-"))
    lines += [Text(f"FAULT: {clean(fault)}", style="bold red") for fault in step.faults]
    return Text("\n").join(lines)


def _sentence(finding: Finding) -> Text:
    mark = "! " if finding.telling else "  "
    return Text(mark + finding.words, style="bold yellow" if finding.telling else "")


def _finish(row: dict[str, Any]) -> Text:
    styles = {OPEN: "yellow", "error": "bold red"}
    turns = f" ({row['turns']} turns)" if row["turns"] > 1 else ""
    return Text(clean(row["finish_reason"], NAME) + turns, styles.get(row["finish_reason"], ""))


def _budget(row: dict[str, Any]) -> str:
    """Mean, and the range where the steps are there to tell."""
    low, high = row["budget_min"], row["budget_max"]
    return figure(row["budget_mean"]) + ("" if low is None else f" ({low}-{high})")


def _table() -> Table:
    return Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")


def _print(*parts: RenderableType) -> None:
    console = Console(highlight=False)
    console.width = max(console.width, ROOM) if console.is_terminal else WIDTH
    for part in parts:
        console.print(part)


def _picture(png: str, log: str) -> Path:
    """Where the timeline goes. Raises ArgumentError."""
    try:
        path = Path(png).expanduser()
        is_log = path.resolve() == Path(log).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ArgumentError("png", png, f"is no name of a file ({error})") from error
    if path.suffix.lower() != ".png":
        raise ArgumentError("png", png, "expected the name of a .png file")
    if is_log:
        raise ArgumentError("png", png, "expected another file than the log itself")
    return path


def _draw(path: Path, chosen: Request | None, facts: Facts) -> None:
    """Draw and write the timeline; exit code 1 if that fails."""
    request = chosen or max(facts.requests.values(), key=lambda r: len(r.steps), default=None)
    if request is None or not request.steps:
        remark("error: --png: the log holds no steps to draw")
        raise typer.Exit(1)
    from adaptive_spec.cli.timeline import render
    from adaptive_spec.pictures import save

    name = clean(request.id, NAME)
    picture = render(f"request {name}", request.steps)
    try:
        save(path, picture)
    except OSError as error:
        remark(f"error: --png {clean(str(path))}: cannot be written ({error.strerror or error})")
        raise typer.Exit(1) from error
    which = "" if chosen else ", the one with the most steps"
    remark(f"timeline of request {name}{which}: {clean(str(path))}")
