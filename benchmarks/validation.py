"""How wrong the law is, row by row, on times that others measured.

Three numbers are fitted to eight rows, fp32 Sigmoid on a 910B2 from a cold L2: a launch on all
cores, HBM's reads, and what is written back. Everything else tests it:

    memory            fp32 Gelu and Maximum of equal shapes: nothing of theirs was fitted
    arithmetic        operators whose vector work binds: its cycles fitted to the largest row
    L2                fp32 Exp where three or four kernels follow on each other
    past L2           asc-devkit's tuned Add, whose inputs go through L2 or past it
    rope              CANN's own rotation by its five kernels: two of ten rows fitted
    in models         msopmodeling's rows, whose inputs lie one does not know where: how many lie
                      between the ends of the law
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterable

import numpy as np
from npu_rope import _C

from benchmarks import chip_tables, measured_rows, model
from benchmarks.chip_tables import Tables
from benchmarks.measured_rows import SOC, Measured
from benchmarks.model import ENDS, FAST, SLOW, Cache, Law, Stream
from benchmarks.report import Row

SIZES = {"< 16 MB": (0, 16e6), "16 to 160 MB": (16e6, 160e6), "> 160 MB": (160e6, math.inf)}
FILL = model.LOAD_LATENCY + model.STORE_LATENCY
# No more than this: CANN's pointwise kernels on all cores, whose ports are not what binds.
IDLE = Tables(dict.fromkeys(range(1, 49), 1e9), {}, 1e9, 1e9, {}, {})


def streams_of(op: Measured, passes: float = 0.0) -> Stream:
    """A single kernel: its inputs in, one output of the first's shape out."""
    reads = {f"input {i}": float(size) for i, size in enumerate(op.bytes)}
    return Stream(op.operator, reads, {"output": float(op.bytes[0])}, op.elements, passes)


@functools.cache
def fitted(operator: str = "Sigmoid") -> Law:
    """Least relative squares of launch + bytes / read + bytes written back / back over the fp32
    rows of an operator, from a cold L2. What a core's start and the launch itself are of that
    cannot be told, as all rows used all cores."""
    rows = [op for op in memory_bound() if op.operator == operator]
    terms, wanted = [], []
    for op in rows:
        traffic = Cache(SOC).run(streams_of(op).reads, streams_of(op).writes)
        terms.append((1.0, traffic.hbm, traffic.back))
        wanted.append(op.us)
    weights = 1 / np.array(wanted)
    (once, read, back), *_ = np.linalg.lstsq(np.array(terms) * weights[:, None], np.ones(len(rows)))
    fill = FILL / _C.find_chip(SOC).mhz
    middle = math.sqrt(FAST.l2 * SLOW.l2)
    return Law("fitted", float(once) - fill, 0.0, 1 / float(read), 1 / float(back), middle,
               FAST.ports, 1.0)  # fmt: skip


def memory_bound() -> list[Measured]:
    """Operators with less vector work a byte than would bind, by their cycles for an element
    (arithmetic()): in fp32, and Maximum in every type that it does not emulate."""
    pointwise = [*measured_rows.rows("Sigmoid"), *measured_rows.rows("Gelu")]
    maximum = [op for op in measured_rows.rows("Maximum") if op.shapes[0] == op.shapes[1]]
    return [op for op in pointwise if op.dtype == "float32"] + [
        op for op in maximum if op.dtype != "int64"
    ]


def us_of(stream: Stream, law: Law, cache: Cache | None = None) -> float:
    return model.predict_stream(stream, IDLE, SOC, law, cache).total


def row_of(group: str, op: Measured, fitted_row: bool, us: float, by: str = "") -> Row:
    return {
        "group": group,
        "operator": op.operator,
        "case": op.case,
        "dtype": op.dtype,
        "MB": sum(op.bytes) / 1e6 + op.bytes[0] / 1e6,
        "fitted": "yes" if fitted_row else "",
        "measured us": op.us,
        "law us": us,
        "error": us / op.us - 1,
        "kernels": by,
    }


def memory_rows() -> list[Row]:
    law = fitted()
    return [
        row_of("memory", op, op.operator == "Sigmoid", us_of(streams_of(op), law))
        for op in memory_bound()
    ]


def arithmetic_rows() -> list[Row]:
    """16-bit Sigmoid and Gelu, Mish, and Exp and RmsNorm where one kernel ran: cycles for an
    element from the row with most of them. Exp's fused kernel starts later: by its smallest row.
    RmsNorm's work for each line of its input is not modelled, and short lines show it."""
    law, out = fitted(), []
    known = memory_bound()
    for operator in ("Sigmoid", "Gelu", "Mish", "Exp", "RmsNorm"):
        for dtypes in (("float32",), ("float16", "bfloat16")):
            rows = [op for op in measured_rows.rows(operator) if op.dtype in dtypes and op.single]
            rows = [op for op in rows if op not in known]
            if rows:
                out += fit_arithmetic(rows, law)
    return out


def fit_arithmetic(rows: list[Measured], law: Law) -> list[Row]:
    least, most = (pick(rows, key=lambda op: op.elements) for pick in (min, max))
    chip = _C.find_chip(SOC)
    taken, more = [most], 0.0
    if most.operator == "Exp":
        more = least.us - us_of(streams_of(least), law)
        taken.append(least)
    launch = law.launch(chip.cores) + more + FILL / chip.mhz
    passes = (most.us - launch) * chip.mhz * chip.cores * 64 / most.elements
    return [
        row_of("arithmetic", op, op in taken, us_of(streams_of(op, passes), law) + more)
        for op in rows
    ]


def l2_rows() -> list[Row]:
    """Exp as Mul, Add and Exp: the first reads from HBM, the others what the one before wrote."""
    law = fitted()
    out = []
    for op in measured_rows.rows("Exp"):
        if op.dtype != "float32" or op.single:
            continue
        cache, us, size = Cache(SOC), 0.0, float(op.bytes[0])
        count = sum(number for _, number in op.kernels)
        for i in range(count):
            stream = Stream("Exp", {f"x{i}": size}, {f"x{i + 1}": size}, op.elements, 0)
            us += us_of(stream, law, cache)
        out.append(row_of("L2", op, False, us, " + ".join(f"{n}x{k}" for k, n in op.kernels)))
    return out


ROPE_FITTED = (14, 16)


@functools.cache
def small_kernel() -> float:
    """Microseconds that ConcatD and BroadcastTo take beyond a pointwise kernel: by two rows."""
    rows = [op for op in rope_half() if op.case in ROPE_FITTED]
    return statistics.mean((op.us - rope_chain(op, fitted(), 0.0)) / 4 for op in rows)


def rope_half() -> list[Measured]:
    return [
        op
        for op in measured_rows.rows("ApplyRotaryPosEmb")
        if (op.attributes["layout"], op.attributes["rotaryMode"]) == (0, "half")
    ]


# Vector cycles for 64 elements in CANN's kernel: bf16 counted on simulated cores with all its bank
# conflicts, fp32 without the two casts, fp16 in fp16.
ROPE_PASSES = {"bfloat16": 9.0, "float32": 7.0, "float16": 3.5}


def rope_chain(op: Measured, law: Law, small: float) -> float:
    """CANN's way: half tables concatenated, spread over the batch, then q and k in place."""
    q, k, cos, sin = (float(size) for size in op.bytes)
    batch, late = op.shapes[0][0], law.launch(1) + small
    cache, us = Cache(SOC), 0.0
    for name, size in (("cos", cos), ("sin", sin)):
        stream = Stream("ConcatD", {name: size}, {f"{name} full": 2 * size}, 0, 0, launch=late)
        us += us_of(stream, law, cache)
    for name, size in (("cos", cos), ("sin", sin)):
        stream = Stream("BroadcastTo", {f"{name} full": 2 * size},
                        {f"{name} all": 2 * size * batch}, 0, 0, launch=late)  # fmt: skip
        us += us_of(stream, law, cache)
    rows = {"q": q, "k": k}
    tables = {"cos all": 2 * cos * batch, "sin all": 2 * sin * batch}
    passes = ROPE_PASSES[op.dtype]
    rope = Stream("ApplyRotaryPosEmb", rows | tables, rows, 2 * op.elements, passes, serial=True)
    return us + us_of(rope, law, cache)


def rope_rows() -> list[Row]:
    law = fitted()
    return [
        row_of("rope", op, op.case in ROPE_FITTED, rope_chain(op, law, small_kernel()),
               "2xConcatD + 2xBroadcastTo + rope")
        for op in rope_half()
    ]  # fmt: skip


def past_rows() -> list[Row]:
    """asc-devkit's Add, through L2 and past it, by the fitted law and by both ends."""
    law, chip, out = fitted(), _C.find_chip(SOC), []
    for what, read, written, cached, us in measured_rows.tuned_add():
        traffic = Cache(SOC).run({"x": read}, {"y": written}, past=() if cached else ("x",))
        fast, one, slow = (
            one.launch(chip.cores) + FILL / chip.mhz + traffic.floor(one, SOC)
            for one in (FAST, law, SLOW)
        )
        out.append({"group": "past L2", "operator": "Add", "case": what,
                    "MB": (read + written) / 1e6, "fitted": "", "measured us": us, "law us": one,
                    "error": one / us - 1, "ends us": (fast, slow)})  # fmt: skip
    return out


def model_rows() -> list[Row]:
    """msopmodeling's Add, Mul and Cast: between the fast end from L2 and the slow one from HBM?"""
    out = []
    for op in chip_tables.measured():
        if op.op not in ("Add", "Mul", "Cast"):
            continue
        size = {"float32": 4, "float16": 2, "bfloat16": 2}
        read = {f"input {i}": float(math.prod(s) * size[t])
                for i, (s, t) in enumerate(zip(op.shapes, op.in_dtypes, strict=True))}  # fmt: skip
        elements = max(math.prod(shape) for shape in op.shapes)
        written = {"output": float(elements * size[op.out_dtype])}
        passes = 1.0 if op.op == "Cast" else 4.0
        stream = Stream(op.op, read, written, elements, passes, op.cores)
        tables = chip_tables.tables(op.soc)
        low, high = (
            model.predict_stream(stream, tables, op.soc, law, Cache(op.soc, warm)).total
            for law, warm in zip(ENDS, (read, None), strict=True)
        )
        out.append(
            {
                "group": "in models",
                "operator": op.op,
                "soc": op.soc.removeprefix("Ascend"),
                "case": " ".join("x".join(map(str, shape)) for shape in op.shapes),
                "dtype": f"{op.in_dtypes[0]}>{op.out_dtype}",
                "cores": op.cores,
                "measured us": op.us,
                "law us": (low, high),
                "error": min(max(op.us, low), high) / op.us - 1,  # of the nearer end, if outside
                "inside": low <= op.us <= high,
            }
        )
    return out


def rows() -> list[Row]:
    return [
        *memory_rows(),
        *arithmetic_rows(),
        *l2_rows(),
        *rope_rows(),
        *past_rows(),
        *model_rows(),
    ]


@dataclasses.dataclass(frozen=True)
class Errors:
    """Of rows that were not fitted."""

    rows: int
    median: float  # of |error|
    worst: float
    bias: float  # mean error


def errors(rows: Iterable[Row], keep: Callable[[Row], bool] = lambda row: True) -> Errors:
    found = [row["error"] for row in rows if not row["fitted"] and keep(row)]
    size = [abs(error) for error in found]
    return Errors(len(found), statistics.median(size), max(size), statistics.mean(found))


def summary(rows: list[Row]) -> list[Row]:
    """By group and operator, fitted rows left out; the memory-bound ones by size, too."""
    out: list[Row] = []
    for group in ("memory", "arithmetic", "L2", "rope", "past L2"):
        held = [row for row in rows if row["group"] == group and not row["fitted"]]
        parts = {operator: [row for row in held if row["operator"] == operator]
                 for operator in dict.fromkeys(row["operator"] for row in held)}  # fmt: skip
        if group == "memory":
            parts["both"] = held
            parts |= {
                f"both, {name}": [row for row in held if low <= row["MB"] * 1e6 < high]
                for name, (low, high) in SIZES.items()
            }
        for name, part in parts.items():
            got = errors(part)
            out.append({"group": group, "held out": name, "rows": got.rows,
                        "median |error|": got.median, "worst |error|": got.worst,
                        "mean error": got.bias})  # fmt: skip
    inside = [row for row in rows if row["group"] == "in models"]
    out.append({"group": "in models", "held out": "Add, Mul, Cast", "rows": len(inside),
                "inside the range": sum(row["inside"] for row in inside)})  # fmt: skip
    return out
