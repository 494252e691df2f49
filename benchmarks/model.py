"""Microseconds on a chip that nobody here measured: a law fitted to public measurements.

A launch takes

    once + start * cores + the slowest core,

and the cores together never less than

    bytes from HBM / read + bytes written back / back,   nor   all bytes / l2.

Reading binds: what a kernel writes stays in L2 until its lines are needed for others, so an output
costs nothing before reads and writes together exceed L2 (what is read past L2 does not count), and
in place nothing before q and k do (class Cache). Three of these numbers are fitted to measured
kernels, with operators held back (validation.py). What the rows cannot tell has two ends, FAST and
SLOW, and every result is the range between them.

A core's time comes from its pipes (pipes.py). Vector instructions take cycles a repeat, one more
for each bank conflict, and a latency before a dependent one may begin; transfers take their
latency, then bytes at what one of so many busy cores gets; and the scalar unit issues each of them
after the instructions that it needs for that itself, which are counted (scalar_cost.py).

Not modelled: depth of the issue queues, misses of the instruction cache, short rows of strided
transfers, other traffic on the chip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from npu_rope import _C, simulator

from benchmarks import pipes
from benchmarks.chip_tables import Tables
from benchmarks.pipes import LOAD, SCALAR, STORE, VECTOR, Memory, Step
from benchmarks.scalar_cost import Scalar

# Cycles before the first byte of a transfer is there (pypto's figures).
LOAD_LATENCY, STORE_LATENCY = 351, 207

# The table's names of what the kernels use, for one repeat without conflicts. Of Copy, Duplicate,
# And, Or and the shifts it knows nothing: they take what an instruction of as many operands takes,
# which is their documented rate.
INSTRUCTIONS = {"Add": "VADD", "Sub": "VSUB", "Mul": "VMUL", "Cast": "VCONV", "Muls": "VMULS",
                "Adds": "VADDS", "Copy": "VMULS", "Duplicate": "VADDS", "And": "VADD",
                "Or": "VADD", "ShiftLeft": "VADDS", "ShiftRight": "VADDS", "Brcb": "VMULS",
                "Sqrt": "VSQRT", "Div": "VDIV"}  # fmt: skip
# A repeat a cycle by the documents; their results are there as late as the table's one reduction's.
REDUCTIONS = ("BlockReduceSum", "PairReduceSum")
# To msopmodeling's interval between dependent instructions; pypto's latencies are that much longer.
MORE_LATENCY = 3
# For 64 lanes, the upper end of what was measured; the lower is half of it.
GATHER_CYCLES = 50
TRANSPOSE_BYTES = 256  # a cycle, by the documented rate; its latency as that of a conversion

ROUNDS = 8  # of the fixed point in run_core, at most


@dataclasses.dataclass(frozen=True)
class Law:
    """One end of what is known of a chip. Microseconds, and bytes a microsecond of all cores."""

    name: str
    once: float  # a launch, until the kernel's first instruction
    start: float  # one more core
    read: float  # from HBM, of a 910B2
    back: float  # written back to HBM, of a 910B2
    l2: float  # between L2 and the cores, both ways
    ports: tuple[float, float] | None  # bytes a cycle into and out of a core; None: msopmodeling's
    cpi: float  # cycles of a scalar instruction

    def launch(self, cores: int) -> float:
        return self.once + self.start * cores

    def core_ports(self, tables: Tables, mhz: float) -> tuple[float, float]:
        if self.ports is None:
            return tables.load_l2, tables.store_l2
        return self.ports[0] * mhz, self.ports[1] * mhz


# once: a kernel of one core takes 1.28 us in all (Add), less its transfers; or 0.35 us outside the
#   core and 1.0 us of a minimal kernel's scalar time (RotaryPositionEmbedding's profile).
# start: what 48 cores leave of a launch in cann-bench's rows; what Cast's rows in models show.
# read: fitted, as is back's first figure (validation.fit); asc-devkit's pure read of 302 MB.
# back: fitted to fp32 Sigmoid and to Maximum.
# l2, ports: CANN's documents and ini file; the lower figure there and msopmodeling's.
# cpi: asc-devkit's Add sample, 1.0 in its first case and up to 1.5 in larger ones.
FAST = Law("fast", 0.8, 0.03, 1.40e6, 1.22e6, 7e6, (110, 86), 1.0)
SLOW = Law("slow", 1.4, 0.11, 1.22e6, 0.95e6, 5e6, None, 1.5)
ENDS = (FAST, SLOW)

# HBM against that of a 910B2. The 910B4 by its documents; the 910B4-1 by msopmodeling's large Adds.
HBM = {"Ascend910B4": 0.5, "Ascend910B4-1": 0.65}


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes of one launch, of all cores."""

    read: float
    written: float
    hbm: float  # of those read: not in L2
    back: float  # written back to HBM to make room

    def floor(self, law: Law, soc: str) -> float:
        """Microseconds that they take at least."""
        return max(self.memory(law, soc), (self.read + self.written) / law.l2)

    def memory(self, law: Law, soc: str) -> float:
        return (self.hbm / law.read + self.back / law.back) / HBM.get(soc, 1.0)


class Cache:
    """L2 as whole tensors, least recently used first: what of them a launch finds there, and what
    it pushes out to HBM. Within a launch reads and writes are taken to alternate."""

    def __init__(self, soc: str, dirty: Mapping[str, float] | None = None) -> None:
        """dirty: tensors that were just written, where they fit."""
        self.capacity = _C.find_chip(soc).l2_bytes
        self.held: list[tuple[dict[str, float], float]] = []  # tensors of a launch, share of dirty
        if dirty and sum(dirty.values()) <= self.capacity:
            self.held.append((dict(dirty), 1.0))

    def run(
        self,
        reads: Mapping[str, float],
        writes: Mapping[str, float],
        moved: float = 0.0,
        past: Collection[str] = (),
    ) -> Traffic:
        """moved: bytes that are read where some are read twice, else what `reads` sums up to.
        past: what is read past L2 (SetL2CacheHint)."""
        lines = {name: size for name, size in reads.items() if name not in past} | {**writes}
        size = sum(lines.values())
        found = {name for tensors, _ in self.held for name in tensors}
        there = sum(reads[name] for name in past if name in found)
        if size + there > self.capacity:  # its own lines push out what it has yet to read
            found = set()
        hbm = sum(size for name, size in reads.items() if name not in found)
        kept_dirty = sum(  # was dirty before and is only read now
            share * tensors[name]
            for tensors, share in self.held
            for name in tensors
            if name in reads and name not in writes
        )
        self.held = [
            ({name: size for name, size in tensors.items() if name not in lines}, share)
            for tensors, share in self.held
        ]
        share = (sum(writes.values()) + kept_dirty) / size if size else 0.0
        back = 0.0
        over = size + sum(sum(tensors.values()) for tensors, _ in self.held) - self.capacity
        while over > 0 and self.held:
            tensors, dirty = self.held.pop(0)
            out = min(over, sum(tensors.values()))
            back += dirty * out
            over -= sum(tensors.values())
        if over > 0:  # it pushes out its own, too
            back += share * over
        else:
            self.held.append((lines, share))
        return Traffic(moved or sum(reads.values()), sum(writes.values()), hbm, back)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """All in microseconds."""

    launch: float
    work: float  # without the launch
    bytes_alone: float  # what the bytes take by the law
    busy: dict[str, float]  # of the slowest core, by pipe
    cores: int

    @property
    def total(self) -> float:
        return self.launch + self.work

    @property
    def binds(self) -> str:
        """What takes most of the time: the launch, memory, or a pipe."""
        parts = {"launch": self.launch, "memory": self.bytes_alone}
        parts |= {pipe: self.busy.get(pipe, 0.0) for pipe in (VECTOR, SCALAR)}
        return max(parts, key=parts.__getitem__)


def run_core(
    steps: Sequence[Step], tables: Tables, soc: str, law: Law, cores: int, traffic: Traffic
) -> float:
    """A core's time where `cores` of them do the same out of step: while some work, the others
    have the memory. How many move data at one time is the fixed point; never less than what all
    bytes take."""
    chip = _C.find_chip(soc)
    load, store = law.core_ports(tables, chip.mhz)
    if traffic.hbm > 0:
        load = min(load, tables.load[min(cores, max(tables.load))])
    floor, memory = traffic.floor(law, soc), traffic.memory(law, soc)
    loading = moving = float(cores)
    us = 0.0
    for _ in range(ROUNDS):
        before = us
        read = min(load, traffic.read / memory / max(loading, 1.0)) if memory > 0 else load
        us = pipes.run(steps, Memory(read, store, law.l2 / max(moving, 1.0)))
        then_loading = cores * pipes.moving(steps, (LOAD,)) / us
        then_moving = cores * pipes.moving(steps, (LOAD, STORE)) / us
        if us <= floor or abs(us - before) < 0.005 * us:
            break
        loading, moving = (loading + then_loading) / 2, (moving + then_moving) / 2
    return max(us, floor)


def steps_of(
    trace: simulator.Trace, number: int, tables: Tables, law: Law, scalar: Scalar
) -> list[Step]:
    """A core's instructions as steps, each behind an equal share of what the scalar unit does."""
    core, mhz = trace.cores[number], _C.find_chip(trace.soc).mhz
    issue = scalar.instructions(core) / max(1, len(core.events)) * law.cpi / mhz
    steps = []
    for event in core.events:
        if event.pipe in (LOAD, STORE):
            wait = LOAD_LATENCY if event.pipe == LOAD else STORE_LATENCY
            work = float(event.blocks * event.block_bytes)
        elif event.pipe == VECTOR:
            cycles, wait = vector_cycles(event, tables)
            work = cycles / mhz
        else:
            work, wait = 1 / mhz, 0
        index = len(steps)
        steps.append(Step(SCALAR, issue, 0.0, (), event.api))
        waits = [2 * other + 1 for other in core.dependencies(event)] + [index]
        steps.append(Step(event.pipe, work, wait / mhz, waits, event.api))
    return steps


def latency(tables: Tables, name: str) -> int:
    """Cycles from an instruction's last repeat until one that needs its result may begin."""
    return tables.latency[name] + MORE_LATENCY


def vector_cycles(event: object, tables: Tables) -> tuple[float, int]:
    """How long an instruction keeps the vector unit, and when its result is there after that."""
    if event.api == "TransDataTo5HD":
        size = 4 if event.operands[0].dtype == "float" else 2
        cycles = event.elements * size / TRANSPOSE_BYTES + event.conflicts
        return cycles, latency(tables, "VCONV")
    if event.api == "Gather":
        return float(GATHER_CYCLES * event.repeats), latency(tables, "VCONV")
    if event.api in REDUCTIONS:
        return float(event.repeats + event.conflicts), latency(tables, "VCADD")
    name = INSTRUCTIONS[event.api]
    return tables.cycles[name] * event.repeats + event.conflicts, latency(tables, name)


def traffic_of(trace: simulator.Trace, warm: bool) -> Traffic:
    """warm: q, k and the tables were just written and lie in L2, where they fit."""
    rows = trace.counters.gm_bytes_written  # each element once
    reads = {"q, k": rows, "tables": max(0, trace.least_gm_bytes - 2 * rows)}
    in_place = trace.geometry.q_in_place and trace.geometry.k_in_place
    loads = [event for event in trace.cores[0].events if event.pipe == LOAD]
    past = ["q, k"] if not all(event.cached for event in loads) else []
    cache = Cache(trace.soc, reads if warm else None)
    writes = {"q, k" if in_place else "out": rows}
    return cache.run(reads, writes, trace.counters.gm_bytes_read, past)


def fits_l2(trace: simulator.Trace) -> bool:
    """Whether a launch whose inputs were just written can find them all in L2."""
    return traffic_of(trace, warm=True).hbm == 0


def predict(
    trace: simulator.Trace, tables: Tables, law: Law, scalar: Scalar, warm: bool = False
) -> Prediction:
    """A simulated launch, recorded with events. The slowest core is one that moves most."""
    traffic = traffic_of(trace, warm)

    def load(number: int) -> tuple[int, int]:
        core = trace.cores[number]
        return core.counters.gm_bytes_read + core.counters.gm_bytes_written, len(core.events)

    steps = steps_of(trace, max(range(trace.cores_used), key=load), tables, law, scalar)
    slowest = run_core(steps, tables, trace.soc, law, trace.cores_used, traffic)
    busy = pipes.busy(steps)
    cores = trace.cores_used
    return Prediction(law.launch(cores), slowest, traffic.floor(law, trace.soc), busy, cores)


@dataclasses.dataclass(frozen=True)
class Stream:
    """A kernel that reads tensors, works on them and writes tensors: what aclnn launches.

    passes: vector cycles for 256 bytes of fp32. serial: its stores and its vector work wait for
    each other (one output buffer) where True. launch: microseconds on one core before the first
    byte, in place of the law's where they were measured.
    """

    name: str
    reads: Mapping[str, float]  # bytes, by tensor
    writes: Mapping[str, float]
    elements: float
    passes: float
    cores: int = 0  # 0: all
    serial: bool = False
    launch: float = 0.0

    @property
    def read(self) -> float:
        return sum(self.reads.values())

    @property
    def written(self) -> float:
        return sum(self.writes.values())


def predict_stream(
    stream: Stream, tables: Tables, soc: str, law: Law, cache: Cache | None = None
) -> Prediction:
    """From the cache as it stands; from HBM where there is none. Kind to the kernel: its pipes
    overlap whole, and scalar work costs nothing."""
    chip = _C.find_chip(soc)
    cores = min(stream.cores or chip.cores, chip.cores)
    traffic = (cache or Cache(soc)).run(stream.reads, stream.writes)
    load, store = law.core_ports(tables, chip.mhz)
    if traffic.hbm > 0:
        load = min(load, tables.load[min(cores, max(tables.load))])
    reading = max(traffic.read / load / cores, traffic.memory(law, soc))
    writing = traffic.written / store / cores
    vector = stream.elements * stream.passes / 64 / cores / chip.mhz
    bound = traffic.floor(law, soc)
    work = max(reading, vector + writing if stream.serial else max(vector, writing), bound)
    fill = (LOAD_LATENCY + STORE_LATENCY) / chip.mhz
    busy = {LOAD: reading, VECTOR: vector, STORE: writing}
    launch = stream.launch + law.start * (cores - 1) if stream.launch else law.launch(cores)
    return Prediction(launch, fill + work, bound, busy, cores)


def total(predictions: Sequence[Prediction]) -> Prediction:
    """Launches one after another."""
    busy: dict[str, float] = {}
    for prediction in predictions:
        for pipe, us in prediction.busy.items():
            busy[pipe] = busy.get(pipe, 0.0) + us
    return Prediction(
        sum(p.launch for p in predictions),
        sum(p.work for p in predictions),
        sum(p.bytes_alone for p in predictions),
        busy,
        max(p.cores for p in predictions),
    )
