"""Budget log: what is written, that it never stops decoding, that the reader survives anything."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptive_spec.budget_log import (
    MAX_WORDS,
    BudgetLog,
    LogSettings,
    NullLog,
    RequestRecord,
    StepRecord,
    open_log,
)
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.errors import ArgumentError, LogError
from adaptive_spec.log_file import MAX_LINE
from adaptive_spec.log_reader import LogReader, load_log, read_log
from adaptive_spec.tree import depths
from adaptive_spec.types import Decision, Features, Outcome, RequestStats, StepSeconds

ARRAYS = {"predicted", "parent", "depth", "rank", "drafter", "logq", "survival", "accepted"}
HOSTILE = 'line\nreturn\r\u2028\u2029\x1b[31mred\x00\ud800"\\ NaN \U0001f600'


def step(
    nodes: int = 4, reason: str = "fixed: 4 nodes", theta: float | None = 31.5, **changes: Any
) -> StepRecord:
    numbers = np.random.default_rng(0)
    tree = CandidateTree(
        token=np.arange(nodes) + 70_000,
        parent=np.maximum(np.arange(nodes) - 3, -1),
        logq=-5 * numbers.random(nodes),
        rank=np.arange(nodes) % 3,
        drafter=np.zeros(nodes, dtype=np.int64),
    )
    predicted = tuple((0.1 * numbers.random(nodes + 1)).tolist())
    outcome = Outcome(
        features=Features("r1", 7, 120, 20, 80, 0.8, 1, 64),
        decision=Decision(nodes, reason, theta, 2.5, 0.05, predicted),
        offered=nodes,
        accepted=2,
        emitted=3,
        seconds=StepSeconds(0.001, 0.04, 0.002, 0.0005),
        finished=False,
    )
    fields: dict[str, Any] = {
        "outcome": outcome,
        "step_group": 9,
        "pool_slots": 256,
        "policy": "fixed:4",
        "drafters": ("suffix",),
        "tree": tree,
        "depth": depths(tree.parent),
        "survival": np.sort(numbers.random(nodes))[::-1],
        "accepted": np.arange(min(nodes, 2)),
        "emitted_tokens": [70_000, 70_003, 80_001],
        "multipliers": {"draft": 1.0, "verify_base": 1.1, "verify_slope": 0.9, "host": 1.0},
        "noise": "keyed",
    }
    return StepRecord(**(fields | changes))


def request(**changes: Any) -> RequestRecord:
    stats = RequestStats()
    stats.add(16, 2, 3, StepSeconds(0.001, 0.04, 0.002, 0.0005))
    fields: dict[str, Any] = {
        "request": "r1",
        "seed": 7,
        "temperature": 0.8,
        "prompt_tokens": 100,
        "new_tokens": 3,
        "policy": "fixed:16",
        "drafters": ["suffix"],
        "finish_reason": "length",
        "finish_detail": "max_new_tokens 3",
        "seconds": 0.5,
        "stats": stats,
    }
    return RequestRecord(**(fields | changes))


def lines(path: Path | str) -> list[dict[str, Any]]:
    """Strict: every line is one JSON object without NaN, and the file ends with a newline."""
    text = Path(path).read_bytes().decode("ascii")
    assert text.endswith("\n")

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return [json.loads(line, parse_constant=refuse) for line in text[:-1].split("\n")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "budget.jsonl"


@pytest.fixture
def log(path: Path) -> BudgetLog:
    return BudgetLog(LogSettings(str(path)))


# What is written


def test_step_fields(log: BudgetLog, path: Path) -> None:
    log.step(step(faults=["draft: ValueError"], time=12.5))
    (record,) = lines(path)
    assert record["schema"] == 1
    assert record["kind"] == "step"
    assert record["time"] == 12.5
    assert (record["request"], record["step"], record["step_group"]) == ("r1", 7, 9)
    assert (record["context"], record["pool_slots"], record["policy"]) == (120, 256, "fixed:4")
    assert (record["offered"], record["size"], record["theta"]) == (4, 4, 31.5)
    assert (record["expected_tokens"], record["expected_seconds"]) == (2.5, 0.05)
    assert len(record["predicted"]) == 5
    assert record["multipliers"]["verify_base"] == 1.1
    assert record["parent"] == [-1, -1, -1, 0]
    assert record["depth"] == [1, 1, 1, 2]
    assert record["accepted"] == [0, 1]
    assert (record["accepted_tokens"], record["emitted"]) == (2, 3)
    parts = {"draft": 0.001, "verify": 0.04, "sample": 0.002, "host": 0.0005, "update": 0.0}
    assert record["seconds"] == parts
    assert (record["noise"], record["head_version"], record["update_arm"]) == ("keyed", None, None)
    assert record["faults"] == ["draft: ValueError"]


def test_request_fields(log: BudgetLog, path: Path) -> None:
    record = request()
    log.request(record)
    log.request(request(seconds=0.0, stats=RequestStats(), seed=None))
    first, second = lines(path)
    assert first["tokens_per_second"] == 6.0
    assert record.stats.as_dict().items() <= first.items()
    for name in ("tokens_per_second", "mean_acceptance_length", "draft_acceptance_rate", "seed"):
        assert second[name] is None


def test_update_keeps_its_own_fields_and_the_head_of_every_record(
    log: BudgetLog, path: Path
) -> None:
    log.update({"arm": "calibrator", "expected_gain": 1.5, "schema": 9, "kind": "step", "time": 1})
    (record,) = lines(path)
    assert record == {
        "schema": 1,
        "kind": "update",
        "time": 1,
        "arm": "calibrator",
        "expected_gain": 1.5,
    }


def test_every_field_is_documented(tmp_path: Path) -> None:
    log = BudgetLog(LogSettings(str(tmp_path / "log"), text=True))
    log.step(step())
    log.request(request())
    page = (Path(__file__).parents[1] / "docs" / "log.md").read_text()
    for record in lines(log.path):
        missing = [name for name in record if f"`{name}`" not in page]
        assert not missing


def test_floats_in_arrays_are_short_and_close(log: BudgetLog, path: Path) -> None:
    record = step(64)
    log.step(record)
    (read,) = lines(path)
    np.testing.assert_allclose(read["logq"], record.tree.logq, rtol=5e-6)
    np.testing.assert_allclose(read["survival"], record.survival, rtol=5e-6)
    assert max(len(repr(value)) for value in read["logq"]) <= 12


@pytest.mark.parametrize("detail", [True, False])
@pytest.mark.parametrize("text", [True, False])
def test_detail_and_text(path: Path, detail: bool, text: bool) -> None:
    log = BudgetLog(LogSettings(str(path), detail=detail, text=text))
    log.step(step())
    (record,) = lines(path)
    assert (record.keys() >= ARRAYS) is detail
    assert record.keys().isdisjoint(ARRAYS) is not detail
    assert ("token" in record) is (detail and text)
    assert ("emitted_tokens" in record) is text
    assert ("70000" in path.read_text()) is text


def test_plain_step_has_empty_arrays(log: BudgetLog, path: Path) -> None:
    log.step(step(0, multipliers=None))
    (record,) = lines(path)
    assert record["parent"] == record["survival"] == record["accepted"] == []
    assert record["multipliers"] is None


def test_numpy_and_mappings_become_plain(log: BudgetLog, path: Path) -> None:
    log.update(
        {
            "array": np.arange(3, dtype=np.int32),
            "half": np.float32(0.5),
            "flag": np.bool_(True),
            "rates": types.MappingProxyType({"a": np.int64(2)}),
        }
    )
    (record,) = lines(path)
    assert record["array"] == [0, 1, 2]
    assert (record["half"], record["flag"], record["rates"]) == (0.5, True, {"a": 2})


def test_null_log_takes_everything() -> None:
    log = open_log(None)
    assert isinstance(log, NullLog)
    log.step(step())
    log.request(request())
    log.update({"arm": "skip"})
    log.close()
    assert log.path is None
    assert log.dropped == 0


def test_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, adaptive_spec.log_reader, adaptive_spec.budget_log; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_step_costs_little(log: BudgetLog) -> None:
    record = step(16)
    taken = []
    for _ in range(300):
        begin = time.perf_counter()
        log.step(record)
        taken.append(time.perf_counter() - begin)
    assert np.quantile(taken, 0.2) < 0.15e-3  # a low quantile: other processes share the cores


# Hostile values (R3)


@pytest.mark.fault("R3")
def test_hostile_strings_and_numbers_give_one_line_each(log: BudgetLog, path: Path) -> None:
    logq = np.array([np.nan, -np.inf, -1.0, -2.0])
    tree = CandidateTree(np.arange(4), np.full(4, -1), logq, np.arange(4), np.zeros(4, int))
    log.step(step(4, HOSTILE, np.nan, tree=tree, policy=HOSTILE, faults=[HOSTILE]))
    log.request(request(request=HOSTILE, finish_detail=HOSTILE, seconds=float("inf")))
    log.update({HOSTILE: HOSTILE, "gain": np.float32("nan"), "costs": (1.0, float("-inf"))})
    first, second, third = lines(path)
    assert first["theta"] is None
    assert first["logq"] == [None, None, -1.0, -2.0]
    assert first["reason"] == first["policy"] == first["faults"][0] == HOSTILE
    assert second["request"] == HOSTILE
    assert second["seconds"] is None
    assert third[HOSTILE] == HOSTILE
    assert third["gain"] is None
    assert third["costs"] == [1.0, None]
    assert list(read_log(path)) == [first, second, third]
    assert log.dropped == 0
    assert b"\x1b" not in path.read_bytes()


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda part: st.lists(part) | st.dictionaries(st.text(), part),
    max_leaves=20,
)


@pytest.mark.fault("R3")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(fields=st.dictionaries(st.text(), _values))
def test_any_json_value_gives_one_line(tmp_path: Path, fields: dict[str, Any]) -> None:
    log = BudgetLog(LogSettings(str(tmp_path / "any")))
    os.truncate(log.path, 0)
    log.update(fields)
    log.close()
    assert log.dropped == 0
    (last,) = read_log(log.path)
    assert [last] == lines(log.path)
    assert last["kind"] == "update"
    assert fields.keys() - {"schema", "kind"} <= last.keys()


@pytest.mark.fault("R3")
def test_long_words_are_cut_and_long_records_dropped(log: BudgetLog, path: Path) -> None:
    log.step(step(4, "x" * 10**6, faults=["y" * 10**6]))
    with pytest.warns(RuntimeWarning, match="dropped"):
        log.update({"junk": "z" * MAX_LINE})
    (record,) = lines(path)
    assert len(record["reason"]) == len(record["faults"][0]) == MAX_WORDS
    assert log.dropped == 1


# Never fatal (R2)


def loop() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


def nested() -> list[Any]:
    inside: list[Any] = []
    for _ in range(10**5):
        inside = [inside]
    return inside


UNSERIALISABLE = {
    "object": object(),
    "loop": loop(),
    "nested": nested(),
    "tuple key": {(1, 2): 3},
    "bytes": b"bytes",
    "set": {1},
    "complex": 1j,
    "huge": 10**5000,
}


@pytest.mark.fault("R2")
@pytest.mark.parametrize("name", UNSERIALISABLE)
def test_unserialisable_values_are_dropped(log: BudgetLog, path: Path, name: str) -> None:
    with pytest.warns(RuntimeWarning, match="dropped"):
        log.update({"value": UNSERIALISABLE[name]})
    log.update({"value": 1})
    assert log.dropped == 1
    assert len(lines(path)) == 1


@pytest.mark.fault("R2")
def test_records_of_the_wrong_kind_are_dropped(log: BudgetLog, path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="dropped"):
        log.step(None)  # type: ignore[arg-type]
    log.request("no record")  # type: ignore[arg-type]
    log.update(3)  # type: ignore[arg-type]
    assert log.dropped == 3
    assert path.read_bytes() == b""


@pytest.mark.fault("R2")
def test_full_disk_is_counted_and_warned_about_once(
    log: BudgetLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, line: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    log.step(step())
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        patch.setattr(os, "write", full)
        for _ in range(5):
            log.step(step())
    assert len(warned) == 1
    assert "No space left" in str(warned[0].message)
    assert log.dropped == 5
    log.step(step())
    assert len(lines(path)) == 2


@pytest.mark.fault("R2")
def test_line_cut_by_a_full_disk_spoils_only_itself(
    log: BudgetLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    log.update({"n": 0})
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, line: write(fd, line[:10]))
        with pytest.warns(RuntimeWarning, match="in part"):
            log.update({"n": 1})
    log.update({"n": 2})
    log.update({"n": 3})
    reader = LogReader(path)
    assert [record["n"] for record in reader] == [0, 2, 3]
    assert (reader.skipped, log.dropped) == (1, 1)


@pytest.mark.fault("R2")
def test_warnings_turned_into_errors_do_not_escape(log: BudgetLog) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.update({"value": object()})
    assert log.dropped == 1


@pytest.mark.fault("R2")
@pytest.mark.filterwarnings("ignore:budget log")
def test_closed_log_counts(log: BudgetLog, path: Path) -> None:
    log.update({"n": 0})
    log.close()
    log.close()
    log.update({"n": 1})
    assert log.dropped == 1
    assert len(lines(path)) == 1


@pytest.mark.fault("R2")
@pytest.mark.filterwarnings("ignore:budget log")
def test_descriptor_closed_or_reused_elsewhere(log: BudgetLog, tmp_path: Path) -> None:
    fd = log._file._fd
    os.close(fd)
    log.update({"n": 0})
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    os.dup2(other, fd)
    log.update({"n": 1})
    log.close()
    assert log.dropped == 2
    assert os.fstat(fd).st_size == 0
    os.close(fd)
    if other != fd:
        os.close(other)


@pytest.mark.fault("R2")
def test_file_removed_or_truncated_while_open(log: BudgetLog, path: Path) -> None:
    log.update({"n": 0})
    path.unlink()
    log.update({"n": 1})
    assert [record["n"] for record in lines(path)] == [1]
    os.truncate(path, 0)
    log.update({"n": 2})
    assert [record["n"] for record in lines(path)] == [2]
    assert log.dropped == 0


@pytest.mark.fault("R2")
def test_torn_end_of_an_earlier_run_is_separated(path: Path) -> None:
    log = BudgetLog(LogSettings(str(path)))
    log.update({"n": 0})
    log.update({"n": 1})
    log.close()
    os.truncate(path, path.stat().st_size - 5)
    log = BudgetLog(LogSettings(str(path)))
    log.update({"n": 2})
    loaded = load_log(path)
    assert [record["n"] for record in loaded.updates] == [0, 2]
    assert loaded.skipped == 1


@pytest.mark.fault("R2")
def test_symlink_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(LogError, match="symbolic link"):
        BudgetLog(LogSettings(str(link)))
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(LogError, match="symbolic link"):
        BudgetLog(LogSettings(str(link)))
    assert target.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.fault("R2")
@pytest.mark.filterwarnings("ignore:budget log")
def test_symlink_put_in_place_later_is_not_followed(
    log: BudgetLog, path: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    path.unlink()
    path.symlink_to(target)
    log.update({"n": 0})
    assert log.dropped == 1
    assert target.read_text() == "precious"


@pytest.mark.fault("R2")
def test_only_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for bad in (tmp_path / "fifo", tmp_path, Path("/dev/null"), tmp_path / "fifo" / "below"):
        with pytest.raises(LogError, match="cannot write"):
            BudgetLog(LogSettings(str(bad)))


def test_mode_parents_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0)
    try:
        log = BudgetLog(LogSettings("~/new/folder/log"))
    finally:
        os.umask(before)
    assert log.path == str(tmp_path / "new" / "folder" / "log")
    assert stat.S_IMODE(os.stat(log.path).st_mode) == 0o600
    old = tmp_path / "old"
    old.touch(0o644)
    BudgetLog(LogSettings(str(old)))
    assert stat.S_IMODE(old.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("field", "value"), [("path", ""), ("path", "a\0b"), ("max_bytes", 4095), ("files", 0)]
)
def test_settings_out_of_range(field: str, value: object) -> None:
    fields: dict[str, Any] = {"path": "log", field: value}
    with pytest.raises(ArgumentError, match=rf"log\.{field}="):
        LogSettings(**fields)


# Rotation


@pytest.mark.fault("R2")
@pytest.mark.parametrize("files", [1, 2, 3])
def test_total_size_is_bounded_and_the_newest_are_kept(path: Path, files: int) -> None:
    log = BudgetLog(LogSettings(str(path), max_bytes=4096, files=files))
    for n in range(500):
        log.update({"n": n, "pad": "x" * (n % 90)})
    names = {path.name, *(f"{path.name}.{n}" for n in range(1, files))}
    assert {file.name for file in path.parent.iterdir()} == names
    for file in path.parent.iterdir():
        assert file.stat().st_size <= 4096
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        lines(file)
    kept = [record["n"] for record in read_log(path, rotated=True)]
    assert kept == list(range(kept[0], 500))
    assert log.dropped == 0


@pytest.mark.fault("R2")
@pytest.mark.filterwarnings("ignore:budget log")
def test_rotation_that_fails_drops_and_stays_bounded(path: Path) -> None:
    (path.parent / f"{path.name}.1").mkdir()
    log = BudgetLog(LogSettings(str(path), max_bytes=4096, files=2))
    for n in range(200):
        log.update({"n": n})
    written = [record["n"] for record in lines(path)]
    assert written == list(range(len(written)))
    assert log.dropped == 200 - len(written) > 0
    assert path.stat().st_size <= 4096


@pytest.mark.fault("R2")
def test_nobody_waits_for_a_stuck_rotation(path: Path) -> None:
    log = BudgetLog(LogSettings(str(path), max_bytes=4096, files=2))
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for n in range(200):
            log.update({"n": n})
        assert len(lines(path)) == 200
    log.update({"n": 200})
    assert len(lines(path)) == 1
    assert log.dropped == 0


@pytest.mark.fault("R2")
def test_whoever_gets_the_lock_late_does_not_rotate_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (BudgetLog(LogSettings(str(path), max_bytes=4096, files=2)) for _ in range(2))
    first.update({"n": 1000, "time": 0})
    fits = 4096 // path.stat().st_size
    for n in range(1, fits):
        first.update({"n": 1000 + n, "time": 0})
    flock = fcntl.flock

    def late(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        second.update({"n": 1000 + fits, "time": 0})  # rotates while the first one asks to
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    first.update({"n": 1001 + fits, "time": 0})
    kept = [record["n"] - 1000 for record in read_log(path, rotated=True)]
    assert kept == list(range(fits + 2))


@pytest.mark.fault("R2")
def test_file_renamed_just_before_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = BudgetLog(LogSettings(str(path), max_bytes=4096, files=2))
    while path.stat().st_size < 4000:
        log.update({"pad": "x" * 60})
    before = len(lines(path))
    opened = os.open

    def late(name: str, flags: int, mode: int = 0o777) -> int:
        monkeypatch.setattr(os, "open", opened)
        path.rename(f"{path}.1")
        return opened(name, flags, mode)

    monkeypatch.setattr(os, "open", late)
    log.update({"pad": "x" * 60})
    assert log.dropped == 0
    assert len(list(read_log(path, rotated=True))) == before + 1


WRITER = """
import sys
from adaptive_spec.budget_log import BudgetLog, LogSettings
log = BudgetLog(LogSettings(sys.argv[1], max_bytes=8192, files=200))
for n in range(600):
    log.update({"writer": int(sys.argv[2]), "n": n, "pad": "x" * (n % 60)})
sys.exit(log.dropped)
"""


@pytest.mark.fault("R2")
def test_two_writers_lose_and_tear_nothing(path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, str(n)]) for n in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    files = [file for file in path.parent.iterdir() if file.stat().st_size]
    assert len(files) > 5
    for file in files:
        lines(file)
    loaded = load_log(path, rotated=True)
    assert loaded.skipped == 0
    expected = [(writer, n) for writer in range(2) for n in range(600)]
    assert sorted((record["writer"], record["n"]) for record in loaded.updates) == expected


@pytest.mark.fault("R2")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_child_shares_the_log(path: Path) -> None:
    log = BudgetLog(LogSettings(str(path), max_bytes=4096, files=200))
    child = os.fork()
    for n in range(300):
        log.update({"child": child == 0, "n": n})
    if child == 0:
        os._exit(log.dropped > 0)
    assert os.waitpid(child, 0)[1] == 0
    loaded = load_log(path, rotated=True)
    assert (len(loaded.updates), loaded.skipped, log.dropped) == (600, 0, 0)


# The reader

HEAD = b'{"schema":1,"kind":"update"'


def test_load_sorts_by_kind(log: BudgetLog, path: Path) -> None:
    log.step(step())
    log.update({"arm": "skip"})
    log.request(request())
    log.step(step())
    loaded = load_log(path)
    counts = len(loaded.steps), len(loaded.requests), len(loaded.updates)
    assert counts == (2, 1, 1)
    assert (loaded.skipped, loaded.unknown_schema) == (0, {})


@pytest.mark.fault("R2")
def test_reader_skips_and_counts(path: Path) -> None:
    good = HEAD + b',"n":1,"of a later version":{"x":[1]}}'
    bad = [
        b"\x00\xff\xfe binary",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        HEAD + b',"n":NaN}',
        HEAD + b',"n":' + b"9" * 5000 + b"}",
        HEAD + b',"n":"' + b"x" * (2 * MAX_LINE) + b'"}',
        HEAD,
        b"[1]",
        b"null",
        b'{"kind":"step"}',
        b'{"schema":1}',
        b'{"schema":true,"kind":"step"}',
        b'{"schema":"1","kind":"step"}',
        b'{"schema":1,"kind":"other"}',
        b'{"schema":1,"kind":["step"]}',
        "\ufeff".encode() + good,
    ]
    newer = [b'{"schema":2,"kind":"step"}'] * 3 + [b'{"schema":0}']
    path.write_bytes(b"\n".join([good, *bad, b"", *newer, good]))
    reader = LogReader(path)
    for _ in range(2):  # the counters belong to one pass
        assert [record["n"] for record in reader] == [1, 1]
        assert reader.skipped == len(bad) + len(newer)
        assert reader.unknown_schema == {2: 3, 0: 1}


_junk = st.binary() | st.sampled_from(
    [b"\n", HEAD, HEAD + b"}\n", b"{", b"[", b'"', b"\xff", b"1e999"]
)


@pytest.mark.fault("R2")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(parts=st.lists(_junk))
def test_reader_survives_junk(tmp_path: Path, parts: list[bytes]) -> None:
    path = tmp_path / "junk"
    path.write_bytes(b"".join(parts) + b"\n" + HEAD + b',"n":1}\n')
    reader = LogReader(path)
    records = list(reader)
    assert records[-1]["n"] == 1
    filled = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    assert len(records) + reader.skipped == len(filled)


@pytest.mark.fault("R2")
def test_every_truncation_reads(log: BudgetLog, path: Path, tmp_path: Path) -> None:
    log.update({"n": 1})
    log.update({"n": 2})
    whole = path.read_bytes()
    short = tmp_path / "short"
    for size in range(len(whole) + 1):
        short.write_bytes(whole[:size])
        reader = LogReader(short)
        read = [record["n"] for record in reader]
        assert read == [1, 2][: len(read)]
        assert reader.skipped <= 1


def test_rotated_files_come_oldest_first(path: Path) -> None:
    def line(n: int) -> bytes:
        return HEAD + b',"n":%d}\n' % n

    for n in (1, 2, 10):
        Path(f"{path}.{n}").write_bytes(line(n))
    for other in ("bak", "01", "1x"):
        Path(f"{path}.{other}").write_bytes(line(99))
    assert [record["n"] for record in read_log(path, rotated=True)] == [10, 2, 1]
    path.write_bytes(line(0))
    assert [record["n"] for record in read_log(path, rotated=True)] == [10, 2, 1, 0]
    assert [record["n"] for record in read_log(path)] == [0]


def test_file_seen_twice_is_read_once(log: BudgetLog, path: Path) -> None:
    log.update({"n": 0})
    os.link(path, f"{path}.1")
    assert len(list(read_log(path, rotated=True))) == 1


@pytest.mark.parametrize("rotated", [True, False])
def test_missing_log(tmp_path: Path, rotated: bool) -> None:
    for missing in (tmp_path / "none", tmp_path, tmp_path / "no" / "folder"):
        with pytest.raises(LogError, match="cannot read"):
            load_log(missing, rotated)
