"""Kernels without a GPU: interpreted in own processes, compiled for a GPU that is not here, and
passed by where they cannot run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_head_decoding import PROMPT as TEXT
from test_head_decoding import decoded
from test_heads import tiny_head
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from adaptive_spec.bench import gpu
from adaptive_spec.bench.exactness import is_near_tie
from adaptive_spec.bench.settings import BenchSettings
from adaptive_spec.bench.turns import warm_up
from adaptive_spec.cache import SlotPool
from adaptive_spec.cli.main import app
from adaptive_spec.drafters.base import CandidateTree
from adaptive_spec.drafters.causal_parallel import CausalParallelDrafter
from adaptive_spec.errors import UnsupportedError
from adaptive_spec.heads.branches import Branches
from adaptive_spec.kernels import attach, cost, here, reference
from adaptive_spec.kernels import cost_of_drafts as drafts
from adaptive_spec.kernels.layout import Layouts, parents
from adaptive_spec.packing import chain_part, pack, tree_part
from adaptive_spec.target import is_out_of_memory
from adaptive_spec.testing.tiny import tiny_model
from adaptive_spec.testing.yardsticks import plain

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="no Triton here")
FOLDER = Path(__file__).parent / "interpreted"


@needs_triton
@pytest.mark.fault("L1", "L9", "C4")
@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_interpreted(file: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parent), str(FOLDER)])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, str(FOLDER / file)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout or "[100%]" in done.stdout


# -- compiled for a GPU that is not here ----------------------------------------------------------

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from adaptive_spec.kernels import candidates as c, tree_attention as a, walk as w
from adaptive_spec.kernels import cost_of_drafts as on_paper

assert on_paper.candidates.__defaults__ == (c.CHUNK,)
assert on_paper.peaks.__defaults__ == (w.CHUNK,)

STRIDES = "query_row query_head key_slot key_head value_slot value_head stride table_row"

def compiled(kernel, types, stages=3, **known):
    # pointers and strides are multiples of 16, as the JIT would find them
    names = kernel.arg_names
    signature = {n: "constexpr" if n in known else types.get(n, "i32") for n in names}
    even = [n for n in names if signature[n][0] == "*" or n in STRIDES.split()]
    attrs = {(names.index(n),): [["tt.divisibility", 16]] for n in even}
    source = ASTSource(kernel, signature=signature, constexprs=known, attrs=attrs)
    target = GPUTarget("cuda", 90, 32)
    found = triton.compile(source, target=target, options={"num_stages": stages})
    assert found.asm["cubin"] and found.metadata.shared <= 99 * 1024, (kernel, known)
    print(kernel.__name__, found.metadata.shared)

def typed(**lists):
    pairs = [(name, kind) for kind, names in lists.items() for name in names.split()]
    return {name: kind.replace("p_", "*") for name, kind in pairs}

for size, kind, splits in ((64, "bf16", 4), (128, "bf16", 1), (256, "bf16", 4), (256, "fp32", 4)):
    lanes, block, stages = a.fitted(64, 3, size * (2 if kind == "bf16" else 4))
    types = typed(p_fp32="partial summary", fp32="scale",
        p_i32="context parts tiles tree positions bits")
    types |= {name: "*" + kind for name in ("query", "key", "value", "out")}
    compiled(a._attend, types, stages, GROUP=3, SIZE=size, WIDE=size, LANES=lanes,
        PIECES=-(-21 // (lanes // 3)), TALL=21, BLOCK=block, BITS=32, SPLITS=splits)
compiled(a._add_up, typed(p_fp32="partial summary", p_bf16="out"), SIZE=64, WIDE=64, SPLITS=4)
compiled(c._survey, typed(p_bf16="logits", p_fp32="heat sums", p_i64="keys"), COUNT=64, CHUNK=2048)
compiled(c._merge, typed(p_i64="keys out"), COUNT=64, CHUNK=2048)
compiled(c._conclude, typed(p_i64="keys", p_fp32="sums heat scores facts", p_i32="ids",
    fp32="least"), COUNT=64, CHUNKS=32, IN_ORDER=True)
compiled(c._children, typed(p_i32="place ids tokens", p_bf16="table", fp32="sharpness",
    p_fp32="query scale scores rest unseen heat noise chance margins"),
    DRAWN=True, COUNT=64, WIDE=256, BEST=8)
compiled(w._best, typed(p_bf16="logits", p_i64="keys"), CHUNK=4096)
compiled(w._decide, typed(p_i64="keys", p_fp32="peak", p_i32="top"), CHUNKS=16)
for wide in (1, 64):
    compiled(w._follow, typed(p_i32="top token parent starts order"), WIDE=wide)
"""


@needs_triton
def test_kernels_compile_for_a_gpu() -> None:
    """To machine code for compute capability 9.0, within the shared memory of smaller ones."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(done.stdout.splitlines()) == 13


# -- layouts --------------------------------------------------------------------------------------


def flat(*above: int) -> CandidateTree:
    none = np.zeros(len(above), dtype=np.int64)
    return CandidateTree(np.arange(len(above)), np.array(above), np.zeros(len(above)), none, none)


def test_a_layout_follows_its_pool() -> None:
    """Slots stay in the table from step to step; rows of requests that left are used again."""
    pool, layouts = SlotPool(4, 4096), Layouts(torch.device("cpu"), 3)
    owners = [pool.join() for _ in range(3)]
    luck = np.random.default_rng(0)
    for step in range(40):
        if step % 9 == 8:
            pool.leave(owners.pop(0))
            owners.append(pool.join())
        parts = [
            chain_part(owner, [0] * int(luck.integers(1, 30)), len(pool.slots(owner)))
            for owner in luck.permutation(owners)[: 1 + step % 3]
        ]
        slots = luck.permutation(pool.reserve(sum(len(part.tokens) for part in parts)))
        batch = pack(parts, slots, fill=step % 2)
        layout = layouts.lay(pool, batch)
        for number, part in enumerate(parts):
            row, length, first, size, end = layout.parts[number].tolist()
            assert layout.context[row, :length].tolist() == pool.slots(part.owner)
            rows = slice(*batch.starts[number : number + 2])
            assert layout.tree[0, first : first + size].tolist() == slots[rows].tolist()
            assert (first, end) == (rows.start, rows.stop)
        for part, first in zip(parts, batch.starts.tolist(), strict=False):
            pool.commit(part.owner, slots[first : first + len(part.tokens)], part.positions)
    assert layouts._table.shape[0] <= 8


def test_an_upload_that_fails_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is tried again with less; slots must not be taken for known."""
    pool, layouts = SlotPool(16, 64), Layouts(torch.device("cpu"), 1)
    owner = pool.join()
    pool.commit(owner, pool.reserve(10)[3:9], np.arange(6))
    batch = pack([chain_part(owner, [7], 6)], pool.reserve(1))

    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patched:
        patched.setattr("adaptive_spec.kernels.layout.upload", fail)
        with pytest.raises(torch.OutOfMemoryError):
            layouts.lay(pool, batch)
    layout = layouts.lay(pool, batch)
    assert layout.context[0, :6].tolist() == pool.slots(owner)


def test_another_pool_is_another_table() -> None:
    """Owners of two pools may have the same number."""
    layouts = Layouts(torch.device("cpu"), 1)
    for shift in (0, 3):
        pool = SlotPool(16, 64)
        owner = pool.join()
        pool.commit(owner, pool.reserve(8)[shift : shift + 4], np.arange(4))
        batch = pack([chain_part(owner, [7], 4)], pool.reserve(1))
        layout = layouts.lay(pool, batch)
        assert layout.context[0, :4].tolist() == [shift, shift + 1, shift + 2, shift + 3]


def test_bits_and_parents() -> None:
    pool = SlotPool(128, 128)
    trees = [flat(-1, -1, 0, 2, 1), flat(), CandidateTree.chain(list(range(40)))]
    parts = [tree_part(pool.join(), 1, 0, tree) for tree in trees]
    batch = pack(parts, pool.reserve(6 + 1 + 41), fill=2)
    layout = Layouts(torch.device("cpu"), 1).lay(pool, batch)
    assert layout.bits.shape == (50, 2)
    words = layout.bits.to(torch.int64) & 0xFFFFFFFF
    assert words[:7, 0].tolist() == [0b1, 0b11, 0b101, 0b1011, 0b11011, 0b100101, 0b1]
    assert words[47].tolist() == [0xFFFFFFFF, 0x1FF]
    assert words[48:].tolist() == [[1, 0], [1, 0]]
    assert parents(batch)[:9].tolist() == [-1, 0, 0, 1, 3, 2, -1, -1, 7]


# -- lattices, with the plain torch of the kernels ------------------------------------------------


class Both(CausalParallelDrafter):
    """Compares every tree out of a lattice with the one that rounds of questions grow."""

    compared, worst = 0, 0.0

    def propose(self, requests: Any, plans: Any) -> list[CandidateTree]:
        found = super().propose(requests, plans)
        lattice, self._lattice = self._lattice, None
        wanted = super().propose(requests, plans)
        self._lattice = lattice
        for one, other in zip(found, wanted, strict=True):
            assert one.parent.tolist() == other.parent.tolist()
            assert one.token.tolist() == other.token.tolist()
            facts = [(one.logq, other.logq)]
            facts += [(one.features[name], other.features[name]) for name in other.features]
            for left, right in facts if len(other) else ():
                self.worst = max(self.worst, float(np.abs(left - right).max()))
            self.compared += len(other) > 0
        return found


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("corrector", ["none", "low_rank", "recurrent_bias", "gated", "recurrent"])
def test_a_wide_lattice_gives_the_same_trees(corrector: str, temperature: float) -> None:
    model = tiny_model("llama")
    head = tiny_head(model, corrector=corrector, draft_vocab=64)
    drafter = Both(head, 256, kernels=reference, candidates=32, siblings=4, width=32)
    call = {"do_sample": True, "temperature": temperature, "seed": 5} if temperature else {}
    text = decoded(model, drafter, 40, **call)
    assert text == plain(model, TEXT, max_new_tokens=40, **call)
    assert drafter.faults == 0
    assert drafter.compared > 20
    assert drafter.worst < 1e-4
    assert temperature or drafter.worst > 0.0


def test_a_lattice_of_bfloat16_scores() -> None:
    """Scores tie often in half precision; trees are those of rounds all the same.

    Texts part at a tie of the target itself, if anywhere.
    """
    model = tiny_model("llama").bfloat16()
    head = tiny_head(model, corrector="recurrent_bias", draft_vocab=64).bfloat16()
    head.corrector.float()
    drafter = Both(head, 256, kernels=reference, candidates=32, siblings=4, width=32)
    got, wanted = decoded(model, drafter, 30), plain(model, TEXT, max_new_tokens=30)
    assert len(got) == len(wanted)
    if got != wanted:
        place = next(i for i in range(30) if got[i] != wanted[i])
        with torch.no_grad():
            scores = model(torch.tensor([[*TEXT, *wanted[:place]]])).logits[0, -1].float()
        (first, second), tokens = scores.topk(2)
        assert {got[place], wanted[place]} == {*tokens.tolist()}
        assert is_near_tie(float(first - second), float(first), "bfloat16", 0.0)
    assert drafter.faults == 0
    assert drafter.compared > 10


def test_a_narrow_lattice_still_drafts() -> None:
    """Nodes outside of it have no children; the text is the same."""
    model = tiny_model("llama")
    head = tiny_head(model, corrector="recurrent_bias")
    drafter = CausalParallelDrafter(head, 256, kernels=reference, siblings=2, width=1)
    drafter.faults = 0  # type: ignore[attr-defined]
    assert decoded(model, drafter, 40) == plain(model, TEXT, max_new_tokens=40)  # type: ignore[arg-type]
    assert drafter.faults == 0  # type: ignore[attr-defined]


def test_kernels_that_fail_are_given_up() -> None:
    """Whatever a compiler or a driver raises: drafts go on without them, with a warning."""
    model = tiny_model("llama")
    broken: Any = SimpleNamespace(candidates=reference.candidates)
    head = tiny_head(model, corrector="recurrent_bias")
    drafter = Both(head, 256, kernels=broken)
    assert drafter._lattice is not None
    with pytest.warns(UserWarning, match="without kernels"):
        text = decoded(model, drafter, 20)
    assert text == plain(model, TEXT, max_new_tokens=20)
    assert drafter._lattice is None
    assert drafter.faults == 0


# -- where kernels do not run ---------------------------------------------------------------------


def fake(**changes: Any) -> Any:
    """Facts of a model on a GPU, as far as ``refusal`` asks."""
    text = SimpleNamespace(head_dim=64, **changes.pop("text", {}))
    config = SimpleNamespace(_attn_implementation="sdpa", get_text_config=lambda: text)
    known = {"device": torch.device("cuda"), "dtype": torch.bfloat16, "config": config}
    return SimpleNamespace(**{**known, **changes})


def test_reasons_to_pass_the_kernels_by(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attach.refusal(fake()) is None
    assert "need CUDA" in str(attach.refusal(fake(device=torch.device("cpu"))))
    assert "float64" in str(attach.refusal(fake(dtype=torch.float64)))
    assert "capped" in str(attach.refusal(fake(text={"attn_logit_softcapping": 50.0})))
    wide = fake()
    wide.config.get_text_config().head_dim = 512
    assert "512" in str(attach.refusal(wide))
    eager = fake()
    eager.config._attn_implementation = "eager"
    assert "eager" in str(attach.refusal(eager))
    monkeypatch.setattr(here, "find_spec", lambda name: None)
    assert "not installed" in str(attach.refusal(fake()))
    assert here.for_device(torch.device("cuda")) is None


def test_never_on_a_cpu(make: Any, tiny: Any) -> None:
    assert here.for_device(torch.device("cpu")) is None
    with make(tiny("llama")) as decoder:
        assert decoder.target.kernels is None


def test_tensors_that_the_kernel_does_not_suit_are_refused() -> None:
    good = torch.zeros(1, 4, 3, 64), torch.zeros(1, 2, 9, 64), torch.zeros(1, 2, 9, 64)
    attach._check(*good, 2)
    attach._check(*good, 4)
    for bad in (
        (*good, 1),
        (good[0], good[1], good[2][..., :32], 2),
        (good[0], good[1].half(), good[2], 2),
        (good[0], good[1], torch.zeros(1, 2, 64, 9).mT, 2),
    ):
        with pytest.raises(UnsupportedError, match="attention kernel"):
            attach._check(*bad)


def test_options_that_the_kernel_does_not_know_are_refused() -> None:
    mark = torch.zeros(1, 1, 1, 1).as_subclass(attach.Mark)
    tensor = torch.zeros(1, 1, 1, 64)
    with pytest.raises(Exception, match="softcap"):
        attach.attend(None, tensor, tensor, tensor, mark, softcap=30.0)
    with pytest.raises(Exception, match="dropout"):
        attach.attend(None, tensor, tensor, tensor, mark, dropout=0.1)


def test_device_info(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = CliRunner().invoke(app, ["models", "--device-info"])
    assert line.exit_code == 0
    assert len(line.stdout.splitlines()) == 1
    assert "no kernels" in line.stdout
    data = json.loads(CliRunner().invoke(app, ["models", "--device-info", "--json"]).stdout)
    assert data == {"device": "cpu", "kernels": False, "reason": here.missing(torch.device("cpu"))}


# -- cost on paper, and the measurement that waits for a GPU --------------------------------------


def test_the_table_in_the_docs_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(app, ["bench-gpu", "--paper"])
    assert printed.exit_code == 0
    docs = (Path(__file__).parent.parent / "docs" / "kernels.md").read_text(encoding="utf-8")
    attention, drafts = printed.stdout.split("\n\n")
    assert attention in docs
    assert drafts in docs
    found = json.loads(CliRunner().invoke(app, ["bench-gpu", "--paper", "--json"]).stdout)
    assert len(found["paper"]) == len(attention.splitlines()) - 2
    assert len(found["drafts"]) == len(drafts.splitlines()) - 2
    pairs = [row[gpu] for row in found["paper"] for gpu in ("h100", "a100", "l4")]
    assert all(theirs is None or ours < theirs for ours, theirs in pairs)
    assert [None, None] in pairs


def test_what_does_not_fit_is_not_timed() -> None:
    """Weights take 16 GB of an L4's 24, keys and values of 64 requests of 128k 1,100."""
    rows = {(row["requests"], row["nodes"], row["context"]): row for row in gpu.paper()}
    assert rows[64, 16, 131072]["h100"] == [None, None]
    assert rows[1, 16, 131072]["l4"] == [None, None]
    assert None not in rows[1, 16, 32768]["l4"]
    asked = cost.by_kernel(gpu.PAPER, 64, 16, 131072)
    assert asked.held == pytest.approx(16.06e9 + 64 * (131072 + 17) * 131072, rel=1e-3)


def test_costs_by_hand() -> None:
    """One layer, one head, 15 nodes on 48 tokens: 16 rows, 64 keys, one tile."""
    facts = replace(
        gpu.PAPER, layers=1, heads=1, kv_heads=1, head_dim=64, windows=(None,), vocab=2048
    )
    ours, theirs = cost.by_kernel(facts, 1, 15, 48), cost.by_masks(facts, 1, 15, 48)
    assert ours.flops == theirs.flops == 4 * 16 * 64 * 64
    assert ours.bytes == 64 * (2 * 64 * 2 + 4) + 16 * (2 * 64 * 2 + 4)  # queries in, sums out
    assert theirs.bytes == 2 * 64 * 64 * 2 + 16 * 64 * (3 + 2) + 2 * 16 * 64 * 2
    split = cost.by_kernel(facts, 1, 15, 256)
    sums = 2 * 4 * 2 * 16 * (64 + 2)
    again = 16 * 64 * 2  # both splits read the queries
    assert split.bytes == (256 + 16) * (2 * 64 * 2 + 4) + 16 * (2 * 64 * 2 + 4) + again + sums
    assert (ours.carried, theirs.carried) == (4 * 16 * 7, 16 * 64)


def test_costs_of_drafts_by_hand() -> None:
    """Two chunks of scores, two depths of which one node and two nodes get children; 4 rows."""
    draft = drafts.Draft("", 4096, 8192, depths=2, rank=3, nodes=3, width=2, siblings=2, count=4)
    ours, theirs = drafts.candidates(draft, 5)
    keys = 8 * 2 * 4 * 2 + 8 * 4 * 2  # of two chunks written and read, of their best as well
    assert ours.bytes == 10 * (4096 * 2 + keys + 2 * 12 * 2 + 4 * 8 + 8)
    assert theirs.carried == 10 * 8 * (4 + 5)
    ours, theirs = drafts.children(draft, 5)
    read = 4 * 3 * 2 + 3 * 4 + 4 * (4 + 4) + (4 + 8) + (4 + 4)  # table, query, candidates, facts
    assert ours.bytes == 15 * (read + 2 * (4 + 4) + 4 + 4)
    assert ours.carried == 8 * (15 * (2 * 2 + 1) + 10 * 2)
    ours, theirs = drafts.peaks(draft, 5)
    assert ours.bytes == 20 * (8192 * 2 + 2 * 2 * 8 + 8)
    assert ours.bytes > theirs.bytes > 20 * 8192 * 2
    ours, theirs = drafts.walk(draft, 5)
    assert ours.bytes == 20 * 16 + 5 * (8 + 4 * 3)


class Moved(TorchDispatchMode):
    """Bytes of all tensors of ``size`` numbers that operations read or write."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.bytes = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "gather" not in str(func):
            for one in (*args, *(out if isinstance(out, tuple) else (out,))):
                if isinstance(one, torch.Tensor) and one.numel() == self.size:
                    self.bytes += one.numel() * one.element_size()
        return out


def test_what_torch_moves_for_candidates() -> None:
    """Counted while it does so."""
    branches = Branches(tiny_head(tiny_model("llama"), corrector="recurrent_bias"), 8)
    logits = torch.randn(3, branches._head.output.shape[0]).bfloat16()
    branches._head.logits = lambda hidden: logits  # type: ignore[method-assign]
    hidden = torch.zeros(3, branches._head.config.hidden)
    for heat, more in ((1.0, 0), (0.5, 8)):
        with torch.no_grad(), Moved(logits.numel()) as moved:
            assert branches.look(hidden, np.full(3, heat)) is not None
        assert moved.bytes == logits.numel() * (sum(drafts.PER_SCORE.values()) + more)


def test_other_requests_cost_the_masks_but_not_the_kernel() -> None:
    one, many = (cost.by_kernel(gpu.PAPER, count, 16, 1024) for count in (1, 64))
    assert 0.5 * 64 * one.bytes < many.bytes <= 64 * one.bytes  # alone, contexts are split
    alone, crowd = (cost.by_masks(gpu.PAPER, count, 16, 1024) for count in (1, 64))
    assert crowd.bytes > 500 * alone.bytes


def test_variants_are_compiled_before_the_clock_runs() -> None:
    """On a GPU every batch is decoded once untimed, as long as it will be."""
    batches: Any = ["short", "long"]
    settings = BenchSettings(model="x", device="cuda", max_new_tokens=100)
    assert warm_up(settings, batches) == (batches, settings.generation())
    few, options = warm_up(replace(settings, device="cpu"), batches)
    assert few == ["short"]
    assert options["max_new_tokens"] == 16


@pytest.mark.parametrize("fails", [False, True])
def test_bench_gpu_fails_where_kernels_do(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After everything was printed, with a line on which it was."""
    about = {"kernel": "peaks", "rows": 256, "kernel_ms": 1.0, "torch_ms": 2.0, "ratio": 2.0}
    row = {**about, "difference": 0.5, "bound": 1e-4, "wrong_ids": 3, "fails": fails}
    monkeypatch.setattr(here, "missing", lambda device: None)
    monkeypatch.setattr(here, "in_use", lambda device: "a GPU")
    monkeypatch.setattr(gpu, "measured", lambda device, dtype: [row])
    decoded = SimpleNamespace(rows=(), mismatches=0, as_dict=dict)
    monkeypatch.setattr("adaptive_spec.bench.runner.run_bench", lambda *_: decoded)
    found = CliRunner().invoke(app, ["bench-gpu", "--dtype", "float32"])
    assert "difference 5.0e-01" in found.stdout
    assert found.exit_code == int(fails), found.output
    assert ("peaks (256 rows) is not what torch computes" in found.stderr) == fails


def test_bench_gpu_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = CliRunner().invoke(app, ["bench-gpu"])
    assert isinstance(found.exception, UnsupportedError)
    assert "CUDA" in str(found.exception)


@pytest.mark.parametrize(
    ("words", "memory"),
    [
        ("Triton Error [CUDA]: out of memory", True),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", True),
        ("out of resource: shared memory, Required: 140032, Hardware limit: 101376", False),
    ],
)
def test_what_counts_as_out_of_memory(words: str, memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(words)) == memory


def test_a_broken_triton_is_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError(f"{name}: libcuda.so.1 is missing")

    monkeypatch.setattr(here, "missing", lambda device: None)
    monkeypatch.setattr(here, "import_module", broken)
    with pytest.warns(UserWarning, match="Triton fails.*libcuda"):
        assert here.for_device(torch.device("cuda")) is None
