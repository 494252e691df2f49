"""What others measured on a 910B2, as committed in measured/ (its README.md says how)."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "measured"
SOC = "Ascend910B2"
SIZE = {"int8": 1, "float16": 2, "bfloat16": 2, "int16": 2, "float32": 4, "int32": 4, "int64": 8}


@dataclasses.dataclass(frozen=True)
class Measured:
    """A row of cann_bench_910b2.csv."""

    operator: str
    case: int
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    attributes: dict[str, Any]
    us: float
    kernels: tuple[tuple[str, int], ...]  # how many of which ran

    @property
    def bytes(self) -> list[int]:
        """Of each input, were all of one dtype."""
        return [math.prod(shape) * SIZE[self.dtype] for shape in self.shapes]

    @property
    def elements(self) -> int:
        return math.prod(self.shapes[0])

    @property
    def single(self) -> bool:
        return sum(count for _, count in self.kernels) == 1


@functools.cache
def rows(operator: str) -> list[Measured]:
    with (FOLDER / "cann_bench_910b2.csv").open() as file:
        return [
            Measured(
                row["operator"],
                int(row["case"]),
                tuple(tuple(shape) for shape in json.loads(row["input_shapes"])),
                row["dtype"],
                json.loads(row["attributes"]),
                float(row["measured_us"]),
                tuple(
                    (name, int(count))
                    for name, _, count in (
                        kernel.rpartition("x") for kernel in row["kernels"].split(" + ")
                    )
                ),
            )
            for row in csv.DictReader(file)
            if row["operator"] == operator
        ]


@functools.cache
def rope_scores() -> dict[int, tuple[float, float]]:
    """Of each case of ApplyRotaryPosEmb: the published baseline and the hardware bound, in us."""
    with (FOLDER / "cann_bench_rope_910b2.csv").open() as file:
        return {
            int(row["case"]): (float(row["published_baseline_us"]), float(row["hardware_bound_us"]))
            for row in csv.DictReader(file)
        }


def tuned_add() -> list[tuple[str, float, float, bool, float]]:
    """asc-devkit's: what, bytes read and written, whether the inputs go through L2, us."""
    with (FOLDER / "asc_devkit_add.csv").open() as file:
        return [
            (row["what"], float(row["read_mb"]) * 1e6, float(row["written_mb"]) * 1e6,
             row["inputs_in_l2"] == "yes", float(row["measured_us"]))
            for row in csv.DictReader(file)
        ]  # fmt: skip
