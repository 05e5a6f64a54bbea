"""``adaptive-spec inspect``: right figures, honest sentences, and no log that it cannot read."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from adaptive_spec.budget_log import BudgetLog, LogSettings, RequestRecord, StepRecord
from adaptive_spec.cli.inspect import document, pick, requests_table, steps_table, summary
from adaptive_spec.cli.inspect_facts import Facts, read_facts
from adaptive_spec.cli.inspect_text import clean, places
from adaptive_spec.cli.inspect_words import change, findings
from adaptive_spec.cli.main import run
from adaptive_spec.cli.timeline import absent, axis, panels, render, running_mean
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.errors import ArgumentError
from adaptive_spec.tree import depths
from adaptive_spec.types import Decision, Features, Outcome, RequestStats, StepSeconds

SECONDS = StepSeconds(0.001, 0.04, 0.002, 0.0005)
EVIL = "evil\x1b]0;owned\x07\x1b[2J[bold]x[/bold]\u202e$\\frac{"
MODEL = {"draft": 1.0, "verify_base": 1.1, "verify_slope": 0.9, "host": 1.0}


def step(request: str, number: int, size: int = 4, emitted: int = 2, **changes: Any) -> StepRecord:
    """A step; ``changes`` are fields of the decision, of the outcome or of the record itself."""
    tree = CandidateTree.chain(list(range(size)))
    decided = {"reason": f"fixed: {size} nodes", "theta": None, "expected_tokens": 2.0}
    decided |= {k: changes.pop(k) for k in (*decided, "expected_seconds") if k in changes}
    outcome = Outcome(
        features=Features(request, number, 100 + number, 20, 80, 0.0, 1, 64),
        decision=Decision(size, **decided),
        offered=changes.pop("offered", 8),
        accepted=emitted - 1,
        emitted=emitted,
        seconds=changes.pop("seconds", SECONDS),
        finished=False,
    )
    fields: dict[str, Any] = {
        "outcome": outcome,
        "step_group": number,
        "pool_slots": 256,
        "policy": "fixed:8",
        "drafters": ["suffix"],
        "tree": tree,
        "depth": depths(tree.parent),
        "survival": np.full(size, 0.5),
        "accepted": [],
        "time": 1000.0 + number,
    }
    return StepRecord(**(fields | changes))


def end(request: str, steps: list[StepRecord], **changes: Any) -> RequestRecord:
    stats = RequestStats(prefill_seconds=0.01)
    for one in steps:
        outcome = one.outcome
        stats.add(outcome.decision.size, outcome.accepted, outcome.emitted, outcome.seconds)
    fields: dict[str, Any] = {
        "request": request,
        "seed": None,
        "temperature": 0.0,
        "prompt_tokens": 100,
        "new_tokens": stats.emitted,
        "policy": "fixed:8",
        "drafters": ["suffix"],
        "finish_reason": "length",
        "finish_detail": "max_new_tokens 8",
        "seconds": 0.5,
        "stats": stats,
        "time": 1010.0,
    }
    return RequestRecord(**(fields | changes))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "budget.jsonl")


@pytest.fixture
def write(path: str) -> Callable[..., list[StepRecord]]:
    """``write(*steps, ended=...)``: one request's records; returns the steps."""

    def records(*steps: StepRecord, ended: bool = True, **changes: Any) -> list[StepRecord]:
        log = BudgetLog(LogSettings(path))
        for record in steps:
            log.step(record)
        if ended:
            log.request(end(steps[0].outcome.features.request, list(steps), **changes))
        log.close()
        return list(steps)

    return records


class Called:
    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.code = run(["inspect", *arguments])
        self.out, self.err = capsys.readouterr()

    @property
    def words(self) -> str:
        """Output without its folding."""
        return " ".join(self.out.split())

    def row(self, first: str) -> list[str]:
        (line,) = [line for line in self.out.splitlines() if line.split()[:1] == [first]]
        return line.split()


def said(path: str, request: str = "a") -> str:
    facts = read_facts(path)
    return "\n".join(f.words for f in findings(facts.requests[request], facts))


def telling(path: str, request: str = "a") -> str:
    facts = read_facts(path)
    return "\n".join(f.words for f in findings(facts.requests[request], facts) if f.telling)


# -- figures ---------------------------------------------------------------------------------------

SIZES, EMITTED = (8, 4, 0, 4), (3, 2, 1, 2)


def four(request: str = "a", **changes: Any) -> list[StepRecord]:
    pairs = zip(SIZES, EMITTED, strict=True)
    return [step(request, i, size, gave, **changes) for i, (size, gave) in enumerate(pairs)]


def test_the_row_is_what_the_steps_add_up_to(
    path: str, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(*four())
    called = Called(capsys, path)
    assert called.code == 0
    # 16 nodes and 8 tokens in 4 steps; 8 tokens in 0.5 s; 1 : 40 : 2 : 0.5 ms
    wanted = "a fixed:8 suffix 4 8 4.0 (0-8) 2.00 16.00 2% 92% 5% 1% length"
    assert called.row("a") == wanted.split()
    assert (
        "requests 1 (0 open), tokens 8 in 0.50 s (16.00 tokens/s together), steps 4" in called.out
    )
    assert "forwards in the log: 4 in 0.17 s" in called.out


def test_json_has_the_promised_fields(
    path: str, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(*four())
    write(*four("b", policy="plain"))
    called = Called(capsys, path, "--json")
    (line,) = called.out.splitlines()
    found = json.loads(line)
    assert called.code == 0
    assert [row["request"] for row in found["requests"]] == ["a", "b"]
    assert len(found["steps"]) == 8
    assert (found["skipped"], found["odd_fields"], found["unknown_schema"]) == (0, 0, {})
    row = found["requests"][0]
    figures = {
        "num_steps": 4, "steps_in_log": 4, "new_tokens": 8, "turns": 1, "seconds": 0.5,
        "budget_mean": 4.0, "budget_min": 0, "budget_max": 8, "mean_acceptance_length": 2.0,
        "tokens_per_second": 16.0, "prefill_seconds": 0.01, "finish_reason": "length",
        "finish_detail": "max_new_tokens 8", "policies": ["fixed:8"], "drafters": ["suffix"],
    }  # fmt: skip
    assert figures.items() <= row.items()
    assert row["shares"]["verify"] == pytest.approx(40 / 43.5)
    assert sum(row["shares"].values()) == pytest.approx(1)
    assert row["findings"]
    first = found["steps"][0]
    assert (first["step"], first["size"], first["offered"], first["emitted"]) == (0, 8, 8, 3)
    assert first["multipliers"] is None
    assert first["seconds"]["verify"] == 0.04
    alone = json.loads(Called(capsys, path, "--request", "b", "--json").out)
    assert [row["request"] for row in alone["requests"]] == ["b"]
    assert {record["request"] for record in alone["steps"]} == {"b"}


def test_a_shared_forward_counts_once(path: str, write: Any) -> None:
    write(*four("a"))
    write(*four("b"))
    write(step("c", 0, seconds=StepSeconds(verify=0.1)), seconds=0.2, time=2000.0)
    facts = read_facts(path)
    sums = facts.totals()
    assert (sums["requests"], sums["num_steps"], sums["forwards_in_log"]) == (3, 9, 5)
    assert sums["forward_seconds"] == pytest.approx(4 * 0.0435 + 0.1)
    # a and b ran in the same half second, c (of another decoder: it has a forward 0 too) alone
    assert sums["seconds"] == pytest.approx(0.5 + 0.2)
    assert sums["tokens_per_second"] == pytest.approx((8 + 8 + 2) / 0.7)
    assert facts.requests["a"].row()["tokens_per_second"] == 16.0
    assert "4 of 4 steps shared their forward, up to 2 requests in one" in said(path)
    assert "shared" not in said(path, "c")


def test_a_request_without_an_end_is_open(
    path: str, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(*four(), ended=False)
    called = Called(capsys, path)
    row = read_facts(path).requests["a"].row()
    assert called.row("a")[-1] == "open"
    assert row["seconds"] == pytest.approx(3 + 0.0435)  # first step's begin to last step's end
    assert row["tokens_per_second"] == pytest.approx(8 / 3.0435)
    assert (row["num_steps"], row["budget_mean"], row["new_tokens"]) == (4, 4.0, 8)
    assert row["mean_acceptance_length"] == 2.0
    assert "does not hold its end" in said(path)
    write(*four())  # the end of that turn, and
    write(step("a", 8), ended=False)  # a further one that is still running
    row = read_facts(path).requests["a"].row()
    assert (row["turns"], row["finish_reason"], row["new_tokens"]) == (2, "open", 8 + 2)


def test_rotated_files_are_read_and_lost_steps_are_named(tmp_path: Path) -> None:
    log = BudgetLog(LogSettings(str(tmp_path / "log"), max_bytes=4096, files=2))
    steps = [step("a", i) for i in range(40)]
    for record in steps:
        log.step(record)
    log.request(end("a", steps))
    assert (tmp_path / "log.1").exists()
    row = read_facts(log.path).requests["a"].row()
    here = (tmp_path / "log").read_text() + (tmp_path / "log.1").read_text()
    assert row["steps_in_log"] == here.count('"kind":"step"') < row["num_steps"] == 40
    assert row["new_tokens"] == 80
    assert row["budget_mean"] == 4.0
    assert f"only {row['steps_in_log']} of its steps are in the log" in said(log.path)


def test_null_fields_and_a_request_without_steps(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log = BudgetLog(LogSettings(path))
    log.request(end("a", [], seconds=0.0, finish_reason="error", finish_detail="prefill: no"))
    log.update({"arm": "skip"})
    log.update({"arm": "corrector", "kept": True, "realised_cost": 0.25, "decision": "saves 2 s"})
    log.update({"arm": "corrector", "kept": False, "realised_cost": 0.25, "decision": "a\x1bb"})
    log.update({"arm": "full", "kept": True, "gain": 0.1, "expected_cost": 3.0, "realised_cost": 4})
    log.update({"arm": "review", "kept": False, "realised_gain": -2.5, "decision": "undone"})
    called = Called(capsys, path)
    assert called.row("a") == ["a", "fixed:8", "suffix", "0", "0", *"-------", "error"]
    more = "full 1 of 1 kept in 4.00 s (thought: 3.00 s), promising 0.100 tokens per tree"
    assert more in called.words
    assert (
        "looked at afterwards: -2.50 tokens/s each, undone 1, skipped 1; the last" in called.words
    )
    words = "updates of the head: corrector 1 of 2 kept in 0.50 s, "
    assert words in called.words
    assert "\x1b" not in called.out
    called = Called(capsys, path, "--request", "a")
    assert called.code == 0
    assert "ended by error (prefill: no)" in called.words


def test_real_decoding_packed_and_in_turns(tiny: Any, make: Any, path: str) -> None:
    decoder = make(tiny("llama"), "fixed:4", log={"path": path})
    pair = [decoder.start([5, 6, 7, 5, 6, 7], max_new_tokens=9, request_id=n) for n in "ab"]
    forwards = 0
    while live := [session for session in pair if not session.finished]:
        decoder.step(live)
        forwards += 1
    pair[0].extend([5, 6], 4)
    for _ in pair[0]:
        forwards += 1
    decoder.close()
    facts = read_facts(path)
    first, second = (facts.requests[name].row() for name in "ab")
    assert (first["turns"], first["new_tokens"], first["finish_reason"]) == (2, 13, "length")
    assert (second["turns"], second["new_tokens"]) == (1, 9)
    assert first["mean_acceptance_length"] == pytest.approx(13 / first["num_steps"])
    sums = facts.totals()
    assert sums["forwards_in_log"] == forwards < sums["num_steps"]
    assert sums["seconds"] <= first["seconds"] + second["seconds"]
    assert (facts.odd, facts.skipped) == (0, 0)
    assert "shared their forward, up to 2 requests in one" in said(path)


# -- one request -----------------------------------------------------------------------------------


def test_the_steps_with_their_reasons(
    path: str, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    long = " ".join(f"because{i}" for i in range(48))
    write(
        step("a", 0, 8, 3, theta=31.5, expected_seconds=0.061),
        step("a", 1, 4, 2, reason=long),
        step("a", 2, 0, 1, policy="plain", reason="plain decoding"),
        step("a", 3, 0, 1, policy="plain", faults=["drafter propose: ValueError: no"]),
    )
    called = Called(capsys, path, "--request", "a")
    assert called.code == 0
    assert " ".join(called.row("0")) == "0 100 8 8 2 3 2.00 31.5 61.0 43.5 fixed: 8 nodes"
    assert " ".join(called.row("1")).startswith("1 101 8 4 1 2 2.00 - - 43.5 because0")
    assert all(f"because{i} " in called.words for i in range(48))
    assert re.search(r"\n +2 +102 .* policy is now plain", called.out)
    assert called.out.count("policy is now") == 1
    assert "FAULT: drafter propose: ValueError: no" in called.words
    assert "whole log: requests 1" in called.out


def test_a_request_is_found_by_its_id_or_how_it_begins(
    path: str, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("3fa9-1", "3fa9-10", "77b0-1"):
        write(step(name, 0))
    facts = read_facts(path)
    assert pick(facts, "3fa9-1").id == "3fa9-1"  # exact beats prefix
    assert pick(facts, "77").id == "77b0-1"
    several = Called(capsys, path, "--request", "3fa")
    assert several.code == 2
    assert "--request 3fa: 2 requests begin so, such as 3fa9-1, 3fa9-10" in several.err
    wrong = Called(capsys, path, "--request", "3fa9-2")
    assert wrong.code == 2
    assert wrong.out == ""
    assert wrong.err.startswith("error: --request 3fa9-2: no request of this log; the closest are")
    assert "3fa9-1" in wrong.err
    with pytest.raises(ArgumentError, match="holds none"):
        pick(Facts(), "x")


def test_what_happened_is_said_in_words(path: str, write: Any) -> None:
    slow = StepSeconds(verify=0.095)
    guard = {"policy": "guard", "expected_seconds": 0.061}
    steps = [step("a", i, 4, 3 + i % 2, seconds=SECONDS, **guard) for i in range(40)]
    steps += [step("a", i, 4, 1 + i % 2, seconds=slow, **guard) for i in range(40, 60)]
    fall_back = {"policy": "plain", "reason": "guard: plain is faster", "expected_tokens": 1.0}
    steps += [step("a", i, 0, 1, seconds=slow, **fall_back) for i in range(60, 79)]
    steps.append(step("a", 79, 4, 2, seconds=StepSeconds(draft=0.9, verify=0.1), faults=["boom"]))
    write(*steps, seconds=20.0)
    words = said(path)
    for sentence in (
        "Time: outside its steps 68%, verify 2",
        "Acceptance fell at step 40: 3.50 tokens per step before, 1.2",
        "Steps became slower at step 40: median 43.5 ms before, 95.0 ms from there on.",
        "Expected 61.00 ms per step, realised 60.67 (-1%, mean of 60 steps).",
        "The policy changed: plain from step 60, fixed:8 from step 79.",
        "19 of 80 steps verified no draft: 60-78.",
        "Plain at steps 60-78 (declined what was offered): guard: plain is faster",
        "Fault at step 79: boom",
        "Slowest: step 79 1000.0 ms (draft 90%), step 40 95.0 ms (verify 100%)",
    ):
        assert sentence in words
    marked = telling(path)
    for sentence in ("passed outside its steps", "fell at", "slower at", "Plain at", "Fault"):
        assert sentence in marked
    assert "Slowest" not in marked


def test_a_wrong_forecast_and_a_corrected_model_are_named(path: str, write: Any) -> None:
    sick = {**MODEL, "verify_base": 1.8}
    slow = StepSeconds(verify=0.095)
    plan = {"expected_seconds": 0.061, "expected_tokens": 3.0, "multipliers": sick}
    write(*(step("a", i, emitted=1, seconds=slow, **plan) for i in range(12)))
    marked = telling(path)
    assert "Expected 61.00 ms per step, realised 95.00 (+56%, mean of 12 steps)." in marked
    assert "Expected 3.00 tokens per step, realised 1.00 (-67%, mean of 12 steps)." in marked
    assert "Latency model corrected at the end: verify_base 1.80." in said(path)


def test_an_even_request_raises_no_alarm(path: str, write: Any) -> None:
    write(*(step("a", i, expected_seconds=0.0435, multipliers=MODEL) for i in range(60)),
          seconds=60 * 0.0435 + 0.05)  # fmt: skip
    assert telling(path) == ""
    for word in ("fell", "rose", "slower", "faster", "changed", "corrected", "Plain"):
        assert word not in said(path)


def test_plain_decoding_throughout_is_said_once(path: str, write: Any) -> None:
    write(
        *(step("a", i, 0, 1, reason="plain", expected_tokens=1.0) for i in range(30)), seconds=1.4
    )
    assert "No step verified a draft: plain" in said(path)
    assert telling(path) == ""


def test_a_change_is_found_and_chance_is_not() -> None:
    numbers = np.random.default_rng(0)
    alarms = sum(change(numbers.poisson(2.0, 300).tolist()) is not None for _ in range(500))
    assert alarms <= 10  # claimed: under 1 %, 5 of 500; 10 or fewer then in 99 % of all seeds
    series = [*numbers.poisson(3.0, 60), *numbers.poisson(1.0, 60)]
    found = change(series)
    assert found is not None
    assert abs(found - 60) <= 8
    assert change([3.0] * 10 + [1.0] * 10) == 10
    assert change([3.0] * 200) is None
    assert change([0.0] * 200) is None
    assert change([0.1 + 0.2] * 1000) is None
    assert change([1.0, 9.0] * 7) is None
    assert change([]) is None


def test_places() -> None:
    facts = Facts()
    for number in range(40):
        facts.add({"kind": "step", "request": "a", "step": number})
    steps = facts.requests["a"].steps
    assert places(steps, [3, 12, 13, 14]) == "3, 12-14"
    assert places(steps, range(0, 40, 2)) == "0, 2, 4, 6, 8 and 15 more"


# -- logs that nobody should have written ----------------------------------------------------------

STEP = {
    "schema": 1, "kind": "step", "time": 1.0, "request": "bad", "step": 0, "step_group": 0,
    "context": 5, "pool_slots": 8, "policy": "p", "drafters": ["d"], "offered": 1, "size": 1,
    "theta": 1.0, "expected_tokens": 1.0, "expected_seconds": 0.1, "multipliers": MODEL,
    "accepted_tokens": 0, "emitted": 1, "reason": "r", "faults": [],
    "seconds": {"draft": 0.0, "verify": 0.1, "sample": 0.0, "host": 0.0, "update": 0.0},
}  # fmt: skip
ODD: list[Any] = ["words", -1, True, 1e300, 10**400, 2.5, [], {}, [[3]], {"verify": "x"}, None, ""]
SKIPPED = [
    b'{"schema":1,"kind":"step","request":"tor',
    b"\xff\xfe\x00garbage",
    b"[1, 2]",
    b"NaN",
    b'{"schema":1,"kind":"step","request":"bad","theta":NaN}',
    b'{"schema":1,"kind":"dance","request":"bad"}',
    b'{"schema":"1","kind":"step","request":"bad"}',
    b'{"schema":1,"kind":"step","request":7}',
    b'{"schema":1,"kind":"step","request":""}',
    b'{"schema":1,"kind":"request","request":null}',
    b'{"schema":1,"kind":"request"}',
    b"[" * 100_000,
    b'{"schema":1,"kind":"step","step":' + b"9" * 5000 + b"}",
]


def every_view(capsys: pytest.CaptureFixture[str], path: str, request: str) -> list[Called]:
    """All ways to look at a log; each must work."""
    ways = [(), ("--json",), ("--request", request), ("--request", request, "--json")]
    views = [Called(capsys, path, *way) for way in ways]
    for view in views:
        assert view.code == 0
        assert "\x1b" not in view.out + view.err
    for view in views[1::2]:
        json.loads(view.out, parse_constant=pytest.fail)
    return views


@pytest.mark.fault("R3")
@pytest.mark.parametrize("line", SKIPPED, ids=range(len(SKIPPED)))
def test_lines_that_are_no_records_are_skipped_and_counted(
    line: bytes, path: str, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(*four())
    with Path(path).open("ab") as file:
        file.write(line + b"\n")
    views = every_view(capsys, path, "a")
    assert "skipped lines, which are no records: 1\n" in views[0].out
    assert json.loads(views[1].out)["skipped"] == 1
    assert views[0].row("a")[3] == "4"


@pytest.mark.fault("R3")
@pytest.mark.parametrize("name", sorted(STEP.keys() - {"schema", "kind", "request"}))
def test_odd_fields_are_left_out_and_counted(name: str) -> None:
    together = Facts()
    for value in ODD:
        facts = Facts()
        for record in ({**STEP, name: value}, {k: v for k, v in STEP.items() if k != name}):
            facts.add(record)
            together.add(record)
        nullable = name in ("theta", "expected_tokens", "expected_seconds", "multipliers")
        worded = name in ("policy", "reason", "drafters", "faults")
        assert facts.odd <= 2 - nullable
        if value == "words":
            assert facts.odd == 2 - nullable - worded
    look(together)
    fine = Facts()
    fine.add(dict(STEP))
    assert fine.odd == 0


def look(facts: Facts) -> str:
    """Everything that is shown of a log, without the command around it."""
    requests = list(facts.requests.values())
    json.dumps(document(facts, requests), allow_nan=False)
    screen = io.StringIO()
    console = Console(file=screen, width=120)
    console.print(requests_table(requests), *summary(facts))
    for request in requests:
        console.print(steps_table(request.steps))
        if request.steps:
            assert len(axis(request.steps)) == len(request.steps)
            absent(panels(request.steps))
    return screen.getvalue()


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda part: st.lists(part) | st.dictionaries(st.sampled_from(sorted(STEP)), part),
    max_leaves=5,
)
_records = st.fixed_dictionaries(
    {"kind": st.sampled_from(["step", "request", "update"]), "request": st.sampled_from("ab")},
    optional=dict.fromkeys(
        [*(STEP.keys() - {"schema", "kind", "request"}), "new_tokens", "num_steps",
         "mean_acceptance_length", "finish_reason", "verify_seconds", "draft_faults"], _values,
    ),
)  # fmt: skip


@pytest.mark.fault("R3")
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(records=st.lists(_records, max_size=5))
def test_any_record_can_be_shown(records: list[dict[str, Any]]) -> None:
    facts = Facts()
    for record in records:
        facts.add(record)
    assert "\x1b" not in look(facts)


@pytest.mark.fault("R3")
def test_nothing_of_a_log_reaches_the_terminal_raw(
    path: str, write: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hostile = {"policy": EVIL, "reason": EVIL, "faults": [EVIL], "drafters": [EVIL]}
    write(step(EVIL, 0, **hostile), finish_reason=EVIL, finish_detail=EVIL, policy=EVIL)
    picture = tmp_path / "evil.png"
    shown = clean(EVIL)
    assert shown == r"evil\x1b]0;owned\x07\x1b[2J[bold]x[/bold]\u202e$\frac{"
    views = [*every_view(capsys, path, shown), Called(capsys, path, "--png", str(picture))]
    views += [Called(capsys, path, "--request", "nobody")]
    for view in views:
        assert not {"\x1b", "\x07", "\u202e"} & set(view.out + view.err)
    assert "[bold]x[/bold]" in views[2].words
    assert shown in views[-1].err
    assert picture.stat().st_size > 1000
    assert json.loads(views[1].out)["requests"][0]["request"] == EVIL
    assert len(clean("x" * 10**6, 64)) == 64


def test_other_schemas_are_counted(
    path: str, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(*four())
    with Path(path).open("a") as file:
        file.write('{"schema":2,"kind":"step"}\n' * 3)
    assert "lines of schema 2, which this version cannot read: 3" in Called(capsys, path).out
    assert json.loads(Called(capsys, path, "--json").out)["unknown_schema"] == {"2": 3}


def test_missing_empty_and_unreadable_logs(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (path, str(tmp_path)):
        called = Called(capsys, wrong)
        assert called.code == 2
        assert called.out == ""
        assert called.err.startswith("error: cannot read the budget log")
    assert Called(capsys).code == 2
    Path(path).touch()
    called = Called(capsys, path)
    assert called.code == 0
    assert "requests 0 " in called.out
    assert Called(capsys, path, "--request", "a").code == 2


# -- the picture -----------------------------------------------------------------------------------


def pixels(data: bytes | Path) -> Any:
    """[height, width, 4] of an image that shows something: ink of several colours."""
    image = matplotlib.image.imread(io.BytesIO(data) if isinstance(data, bytes) else data)
    assert image.shape[1] == 1200
    ink = (image[..., :3] < 0.9).any(axis=-1).mean()
    assert 0.005 < ink < 0.5
    shades = (9 * image[..., :3]).round().astype(int) @ [100, 10, 1]
    assert len(np.unique(shades)) > 30
    return image


def test_the_timeline_of_the_request_or_of_the_longest(
    path: str, write: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = {"expected_seconds": 0.04, "multipliers": MODEL}
    write(*four("short"))
    write(*(step("long", i, **plan, faults=["x"] * (i == 20)) for i in range(50)))
    picture = tmp_path / "out" / "timeline.PNG"
    picture.parent.mkdir()
    called = Called(capsys, path, "--png", str(picture), "--json")
    assert called.code == 0
    json.loads(called.out)
    assert f"timeline of request long, the one with the most steps: {picture}" in called.err
    tall = pixels(picture)
    called = Called(capsys, path, "--png", str(picture), "--request", "sh")
    assert f"timeline of request short: {picture}" in called.err
    assert len(pixels(picture)) < len(tall)  # replaced; without the panel of multipliers
    assert list(picture.parent.iterdir()) == [picture]


def test_panels_without_numbers_are_left_out(path: str, write: Any) -> None:
    steps = four(expected_tokens=None)
    write(*steps)
    known = panels(read_facts(path).requests["a"].steps)
    assert absent(known) == ["tokens (expected)", "seconds (expected)", "multipliers"]
    facts = Facts()
    facts.add({"kind": "step", "request": "a"})
    facts.add({"kind": "step", "request": "a", "multipliers": {"host": 0}, "seconds": {"host": 0}})
    nothing = facts.requests["a"].steps
    assert absent(panels(nothing)[:3]) == ["context", "budget", "tokens"]
    for few in (nothing[:1], nothing, read_facts(path).requests["a"].steps[:1]):
        assert matplotlib.image.imread(io.BytesIO(render("t", few))).size


def test_the_axes_of_a_timeline() -> None:
    facts = Facts()
    for number in (4, 5, 9, 9):
        facts.add({**STEP, "step": number, "seconds": {"verify": 0.1 if number < 9 else 5.0}})
    steps = facts.requests["bad"].steps
    assert axis(steps[:3]).tolist() == [4, 5, 9]
    assert axis(steps).tolist() == [0, 1, 2, 3]
    assert [panel.log for panel in panels(steps[:3])] == [False, False, False, True, True]
    assert [panel.log for panel in panels(steps[:2])] == [False] * 4 + [True]
    mean = running_mean(np.array([np.nan, 2.0, 4.0, np.nan, 9.0]), window=2)
    np.testing.assert_equal(mean, [np.nan, 2.0, 3.0, 4.0, 9.0])


def test_a_picture_that_cannot_be_written(
    path: str,
    write: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(*four())
    monkeypatch.setattr("adaptive_spec.cli.timeline.render", lambda title, steps: b"picture")
    folder = tmp_path / "folder.png"
    folder.mkdir()
    for target in (tmp_path / "none" / "x.png", Path(path) / "x.png", folder):
        called = Called(capsys, path, "--png", str(target))
        assert called.code == 1
        assert re.match(
            rf"error: --png {re.escape(str(target))}: cannot be written \(\w", called.err
        )
        assert called.row("a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["budget.jsonl", "folder.png"]
    for name in ("x.jpg", "png", ".png", ""):
        called = Called(capsys, path, "--png", name)
        assert called.code == 2
        assert called.out == ""
        assert f"error: --png {name}: expected the name of a .png file" in called.err
    Path(path).rename(tmp_path / "log.png")
    called = Called(capsys, str(tmp_path / "log.png"), "--png", str(tmp_path / "log.png"))
    assert called.code == 2
    assert "another file than the log" in called.err
    (tmp_path / "empty").touch()
    called = Called(capsys, str(tmp_path / "empty"), "--png", str(tmp_path / "x.png"))
    assert called.code == 1
    assert "no steps to draw" in called.err


def test_nothing_heavy_is_imported_without_a_picture(path: str, write: Any) -> None:
    write(*four())
    script = (
        "import sys; from adaptive_spec.cli.main import run; "
        f"code = run(['inspect', {path!r}]) or run(['inspect', {path!r}, '--request', 'a']); "
        "heavy = {'matplotlib', 'torch', 'transformers'} & set(sys.modules); "
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
