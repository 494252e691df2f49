"""What the scalar unit does for a launch, from counts of the kernel's own instructions.

The counts of some two hundred launches are kept (results/scalar.json, by `python -m benchmarks
scalar`); others take

    a + b * vector instructions + c * transfers,

fitted to the counted launches of their dtype and order of rows.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import numpy as np
from npu_rope import _C

from benchmarks.pipes import VECTOR
from benchmarks.report import RESULTS, Row


@dataclasses.dataclass(frozen=True)
class Scalar:
    """Scalar instructions of a core: of the launch, for each vector instruction, and for each
    transfer."""

    launch: float = 0.0
    vector: float = 0.0
    move: float = 0.0

    def instructions(self, core: Any) -> float:  # noqa: ANN401  a type of _C
        vector = sum(event.pipe == VECTOR for event in core.events)
        moves = core.counters.loads + core.counters.stores
        return self.launch + self.vector * vector + self.move * moves

    def scaled(self, by: float) -> Scalar:
        return Scalar(*(by * part for part in dataclasses.astuple(self)))


def fit(rows: list[Row]) -> Scalar:
    """Least relative squares, none of the three below zero."""
    counts = np.array([[1, row["vector"], row["moves"]] for row in rows], float)
    wanted = np.array([row["instructions"] for row in rows], float)
    used = [0, 1, 2]
    while True:
        solved, *_ = np.linalg.lstsq(counts[:, used] / wanted[:, None], np.ones(len(rows)))
        if (solved >= 0).all() or len(used) == 1:
            found = dict(zip(used, solved, strict=True))
            return Scalar(*(float(found.get(i, 0.0)) for i in range(3)))
        del used[int(np.argmin(solved))]


def key(geometry: Any, soc: str) -> str:  # noqa: ANN401  a type of _C
    """A launch as numbers: the chip's cores, then what scalar_count/driver.cpp reads."""
    g = geometry
    numbers = [
        _C.find_chip(soc).cores, int(g.dtype), int(g.table_dtype), int(g.style), g.transpose,
        g.half_tables, g.cast_tables, g.batch, g.tokens, g.q_heads, g.k_heads, g.head_dim,
        g.rotary_dim, g.rotary_offset, g.q_in_place, g.k_in_place,
    ]  # fmt: skip
    for rows in (g.q, g.k, g.q_out, g.k_out):
        numbers += [rows.batch, rows.token, rows.head]
    for table in (g.cos, g.sin):
        numbers += [table.batch, table.token]
    if g.norm.q or g.norm.k:
        numbers += [g.norm.q, g.norm.k, int(g.norm.weight_dtype)]
    return " ".join(str(int(number)) for number in numbers)


@functools.cache
def counted() -> list[Row]:
    return json.loads((RESULTS / "scalar.json").read_text())["rows"]


@functools.cache
def fitted(dtype: str, style: str) -> Scalar:
    alike = [row for row in counted() if row["style"] == style]
    return fit([row for row in alike if row["dtype"] == dtype] or alike)


def of_trace(trace: Any) -> Scalar:  # noqa: ANN401  simulator.Trace
    """As fitted; scaled to core 0's count where the launch was counted."""
    geometry = trace.geometry
    scalar = fitted(geometry.dtype.name, geometry.style.name)
    own = key(geometry, trace.soc)
    for row in counted():
        if row["key"] == own:
            return scalar.scaled(row["instructions"] / scalar.instructions(trace.cores[0]))
    return scalar
