"""Microseconds on a chip that nobody measured: a model, from public figures.

A launch takes

    launch + start * cores + max(the slowest core, bytes of all cores / memory bandwidth).

A core's time comes from its pipes (pipes.py): vector instructions take cycles a repeat, one more
for each bank conflict, and a latency before a dependent one may begin; transfers take their
latency, then bytes at what one of so many busy cores gets. The cores share the memory evenly, and
one leaves its part to the others while it moves nothing.

Not modelled: the scalar unit (addresses, issue), instruction fetch, short rows of strided
transfers, what of its peak a memory gives, and other traffic on the chip.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from npu_rope import _C, simulator

from benchmarks import pipes
from benchmarks.chip_tables import Tables
from benchmarks.pipes import LOAD, STORE, VECTOR, Memory, Step

# Bytes per microsecond that all cores share, reads and writes together.
HBM = {"Ascend910B4": 0.8e6}
HBM_OF_OTHERS = 1.6e6
L2 = 5.0e6

# Cycles before the first byte of a transfer is there (pypto's figures).
LOAD_LATENCY, STORE_LATENCY = 351, 207

# The table's names of what the kernels use, for one repeat without conflicts. Of Copy, Duplicate,
# And and ShiftLeft it knows nothing: they take what an instruction of as many operands takes, which
# is the documented rate of the latter two.
INSTRUCTIONS = {"Add": "VADD", "Sub": "VSUB", "Mul": "VMUL", "Cast": "VCONV", "Muls": "VMULS",
                "Adds": "VADDS", "Copy": "VMULS", "Duplicate": "VADDS", "And": "VADD",
                "ShiftLeft": "VADDS"}  # fmt: skip
# To msopmodeling's interval between dependent instructions; pypto's latencies are that much longer.
MORE_LATENCY = 3
TRANSPOSE_BYTES = 256  # a cycle, by the documented rate; its latency as that of a conversion


ROUNDS = 8  # of the fixed point in run_core, at most


@dataclasses.dataclass(frozen=True)
class Launch:
    """What a launch costs beside its work: microseconds, fitted in validation.py."""

    once: float = 1.2
    core: float = 0.07  # one more core

    def us(self, cores: int) -> float:
        return self.once + self.core * cores


@dataclasses.dataclass(frozen=True)
class Prediction:
    """All in microseconds."""

    launch: float
    work: float  # without the launch
    bound: float  # bytes read and written / bandwidth of the memory
    busy: dict[str, float]  # of the slowest core, by pipe
    cores: int

    @property
    def total(self) -> float:
        return self.launch + self.work

    @property
    def ratio(self) -> float:
        return self.work / self.bound

    @property
    def busiest(self) -> str:
        return max(self.busy, key=self.busy.__getitem__)


def bandwidth(soc: str, l2: bool = False) -> float:
    return L2 if l2 else HBM.get(soc, HBM_OF_OTHERS)


def memory(tables: Tables, soc: str, moving: float, l2: bool = False) -> Memory:
    """What each of so many cores gets that load or store at one time, from global memory or from
    an L2 that holds everything."""
    both = bandwidth(soc, l2) / moving
    if l2:
        return Memory(tables.load_l2, tables.store_l2, both)
    cores = math.ceil(moving)
    load, store = (speeds[min(cores, max(speeds))] for speeds in (tables.load, tables.store))
    return Memory(load, store, both)


def run_core(
    steps: Sequence[Step], tables: Tables, soc: str, cores: int, l2: bool, bytes_: float
) -> float:
    """A core's time where `cores` of them do the same out of step: while some work, the others
    have the memory. How many move data at one time is the fixed point; never fewer than reach the
    memory's own time for all bytes."""
    floor = bytes_ / bandwidth(soc, l2)
    moving = float(cores)
    us = 0.0
    for _ in range(ROUNDS):
        us = pipes.run(steps, memory(tables, soc, max(moving, 1.0), l2))
        part = pipes.moving(steps) / us
        if us <= floor or abs(cores * part - moving) < 0.5:
            break
        moving = (moving + cores * part) / 2
    return max(us, floor)


def steps_of(trace: simulator.Trace, number: int, tables: Tables) -> list[Step]:
    """A core's instructions as steps."""
    core, mhz = trace.cores[number], _C.find_chip(trace.soc).mhz
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
        waits = core.dependencies(event)
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
    name = INSTRUCTIONS[event.api]
    return tables.cycles[name] * event.repeats + event.conflicts, latency(tables, name)


def predict(trace: simulator.Trace, tables: Tables, launch: Launch, l2: bool = False) -> Prediction:
    """A simulated launch, recorded with events. The slowest core is one of those that move the
    most bytes; of a grid of equals, only different ones are run."""
    seen: set[tuple] = set()
    busy: dict[str, float] = {}
    slowest = 0.0
    for number, core in enumerate(trace.cores):
        counters = core.counters
        key = (counters.gm_bytes_read, counters.gm_bytes_written, counters.loads, len(core.events))
        if key in seen:
            continue
        steps = steps_of(trace, number, tables)
        us = run_core(steps, tables, trace.soc, trace.cores_used, l2, trace.gm_bytes)
        seen.add(key)
        if us > slowest:
            slowest, busy = us, pipes.busy(steps)
    return Prediction(
        launch.us(trace.cores_used),
        slowest,
        trace.least_gm_bytes / bandwidth(trace.soc, l2),
        busy,
        trace.cores_used,
    )


@dataclasses.dataclass(frozen=True)
class Stream:
    """A kernel that reads rows, works on them and writes rows: what aclnn launches.

    passes: vector repeats for 256 bytes of fp32. serial: its stores and its vector work wait for
    each other (one output buffer) where True.
    """

    name: str
    read: float  # bytes, of all cores
    written: float
    elements: float
    passes: float
    serial: bool = False


TILE = 16 * 1024  # bytes of a transfer


def predict_stream(
    stream: Stream, tables: Tables, soc: str, launch: Launch, cores: int = 0, l2: bool = False
) -> Prediction:
    chip = _C.find_chip(soc)
    cores = cores or max(1, min(chip.cores, round((stream.read + stream.written) / 4096)))
    tiles = max(1, round(max(stream.read, stream.written) / cores / TILE))
    repeats = stream.elements * stream.passes / 64 / cores / tiles
    steps: list[Step] = []
    for tile in range(tiles):
        loaded, stored = 3 * tile, 3 * tile - 1  # indices of this load and of the store before
        waits = [loaded - 5] if tile >= 2 else []  # two input buffers: the vector work before last
        steps.append(Step(LOAD, stream.read / cores / tiles, LOAD_LATENCY / chip.mhz, waits))
        buffers = 1 if stream.serial else 2
        waits = [loaded, *([stored - 3 * (buffers - 1)] if tile >= buffers else [])]
        chain = max(stream.passes, 1) * latency(tables, "VMUL") / chip.mhz
        steps.append(Step(VECTOR, repeats / chip.mhz, chain, waits))
        out = STORE_LATENCY / chip.mhz
        steps.append(Step(STORE, stream.written / cores / tiles, out, [loaded + 1]))
    both = stream.read + stream.written
    us = run_core(steps, tables, soc, cores, l2, both)
    bound = both / bandwidth(soc, l2)
    return Prediction(launch.us(cores), us, bound, pipes.busy(steps), cores)


def total(predictions: Sequence[Prediction]) -> Prediction:
    """Launches one after another."""
    busy: dict[str, float] = {}
    for prediction in predictions:
        for pipe, us in prediction.busy.items():
            busy[pipe] = busy.get(pipe, 0.0) + us
    return Prediction(
        sum(p.launch for p in predictions),
        sum(p.work for p in predictions),
        sum(p.bound for p in predictions),
        busy,
        max(p.cores for p in predictions),
    )
