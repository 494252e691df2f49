"""How wrong the model is, where the public can check it: against op times that msopmodeling's
authors measured on 910B1 and 910B4-1, and against pypto's cycles for single instructions.

The launch terms are fitted to Add and Cast; Mul and RmsNorm had no part in that.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator

from npu_rope import _C

from benchmarks import chip_tables, model
from benchmarks.chip_tables import Measured
from benchmarks.model import Launch, Stream
from benchmarks.report import Row

SIZE = {"float32": 4, "float16": 2, "bfloat16": 2}
FITTED = ("Add", "Cast")


def stream_of(op: Measured) -> Stream:
    """Bytes, and vector passes by what the operation needs: 16-bit inputs are cast to fp32 and
    results back; RmsNorm has eight passes and a sum across lanes of seven cycles."""
    elements = max(math.prod(shape) for shape in op.shapes)
    read = sum(math.prod(s) * SIZE[t] for s, t in zip(op.shapes, op.in_dtypes, strict=True))
    if op.op in ("Add", "Mul") and len(op.shapes) == 1:  # with a scalar
        passes = 3.0
    else:
        passes = {"Add": 4.0, "Mul": 4.0, "Mul, broadcast": 4.0, "Cast": 1.0, "RmsNorm": 15.0}[
            op.op
        ]
    return Stream(op.op, read, elements * SIZE[op.out_dtype], elements, passes)


def fits_l2(op: Measured) -> bool:
    """The rows ran inside models, their inputs just written by others: what is small against L2
    (an eighth of it) is taken to lie there."""
    stream = stream_of(op)
    return stream.read + stream.written <= _C.find_chip(op.soc).l2_bytes / 8


def predict(op: Measured, launch: Launch, l2: bool | None = None) -> model.Prediction:
    l2 = fits_l2(op) if l2 is None else l2
    tables = chip_tables.tables(op.soc)
    return model.predict_stream(stream_of(op), tables, op.soc, launch, op.cores, l2)


@functools.cache
def fit() -> Launch:
    """Least relative squares of measured - work = once + core * cores."""
    rows = [op for op in chip_tables.measured() if op.op in FITTED]
    s = sx = sy = sxx = sxy = 0.0
    for op in rows:
        weight = 1 / op.us**2
        rest = op.us - predict(op, Launch(0, 0)).work
        s += weight
        sx += weight * op.cores
        sy += weight * rest
        sxx += weight * op.cores**2
        sxy += weight * op.cores * rest
    core = (s * sxy - sx * sy) / (s * sxx - sx * sx)
    return Launch(round((sy - core * sx) / s, 3), round(core, 4))


@functools.cache
def fit_rotary() -> Launch:
    """CANN's RotaryPositionEmbedding on one core with one row of 64: what is left of its time is
    what the launch of a kernel with more parameters takes. A core more costs the same."""
    profile = chip_tables.read(
        chip_tables.PROFILES + "theo_ops/rotary_position_embedding/rotary_position_embedding.csv"
    )
    least = '"1,1,1,64;1,1,1,64;1,1,1,64"'
    us = statistics.median(float(r["Duration(us)"]) for r in profile if r["Input Shapes"] == least)
    stream = Stream("RotaryPositionEmbedding", 3 * 128, 128, 64, 9)
    tables = chip_tables.tables("Ascend910B1")
    rest = us - model.predict_stream(stream, tables, "Ascend910B1", Launch(0, 0), 1, l2=True).work
    return Launch(round(rest - fit().core, 3), fit().core)


def rows() -> Iterator[Row]:
    launch = fit()
    for op in sorted(chip_tables.measured(), key=lambda op: (op.op, op.soc, op.us)):
        got = predict(op, launch)
        yield {
            "op": op.op,
            "soc": op.soc.removeprefix("Ascend"),
            "shapes": " ".join("x".join(map(str, shape)) for shape in op.shapes),
            "dtypes": f"{op.in_dtypes[0]}>{op.out_dtype}",
            "cores": op.cores,
            "runs": op.runs,
            "measured us": op.us,
            "model us": got.total,
            "error": f"{got.total / op.us - 1:+.0%}",
            "memory": "L2" if fits_l2(op) else "HBM",
        }


def summary() -> list[Row]:
    launch = fit()
    out = []
    for op in ("Add", "Cast", "Mul", "Mul, broadcast", "RmsNorm"):
        errors = [predict(o, launch).total / o.us - 1 for o in chip_tables.measured() if o.op == op]
        out.append(
            {
                "op": op,
                "fitted": "launch terms" if op in FITTED else "nothing",
                "rows": len(errors),
                "median |error|": statistics.median(map(abs, errors)),
                "mean error": statistics.mean(errors),
                "least": min(errors),
                "most": max(errors),
            }
        )
    return out
