"""What the scalar unit does for a launch, from counts of the kernel's own instructions.

The counts are of some launches (results/scalar.json, by `python -m benchmarks scalar`); others take

    a + b * vector instructions + c * transfers,

fitted to the counted launches of their order of rows.
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


@functools.cache
def of_style(style: str) -> Scalar:
    rows = json.loads((RESULTS / "scalar.json").read_text())["rows"]
    return fit([row for row in rows if row["style"] == style])


STYLE = {_C.Style.half: "half", _C.Style.interleaved: "interleaved",
         _C.Style.deinterleave: "deinterleave"}  # fmt: skip


def of_trace(trace: Any) -> Scalar:  # noqa: ANN401  simulator.Trace
    return of_style(STYLE[trace.geometry.style])
