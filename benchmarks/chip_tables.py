"""The tables of msopmodeling (MulanPSL-2.0, from PyPI): bandwidth by number of busy cores, cycles
of vector instructions, and op times that were measured on chips.

Nothing of it is kept in this repository or installed: the wheel is downloaded into build/ at the
first run and read as data.
"""

from __future__ import annotations

import ast
import collections
import csv
import dataclasses
import functools
import io
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

CACHE = Path(__file__).parents[1] / "build" / "benchmarks"
CONFIG = "tilesim/core/config/arc_config/"
PROFILES = "tilesim/tests/st/ops_accuracy/"

# Which table speaks for which chip. Those without one of their own take that of 910B1, whose
# memory they share.
TABLE_OF = {"Ascend910B4": "910B4", "Ascend910B4-1": "910B4-1"}


def wheel(requirement: str) -> Path:
    """The wheel of `name==version`, from the cache or by pip, never installed."""
    name, _, version = requirement.partition("==")
    found = sorted(CACHE.glob(f"{name}-{version}-*.whl"))
    if not found:
        CACHE.mkdir(parents=True, exist_ok=True)
        print(f"downloading {requirement} into {CACHE} ...", file=sys.stderr, flush=True)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(CACHE),
        ]
        try:
            subprocess.run([*pip, requirement], check=True)
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"the model needs {requirement} from a package index: {error}"
            ) from error
        found = sorted(CACHE.glob(f"{name}-{version}-*.whl"))
    return found[0]


def read(name: str) -> list[dict[str, str]]:
    with zipfile.ZipFile(wheel("msopmodeling==1.0.9")) as archive:
        return list(csv.DictReader(io.StringIO(archive.read(name).decode())))


@dataclasses.dataclass(frozen=True)
class Tables:
    """Bytes per microsecond and cycles."""

    load: dict[int, float]  # of one core from global memory, by the number of cores that load
    store: dict[int, float]
    load_l2: float
    store_l2: float
    cycles: dict[str, int]  # a repeat of an instruction without bank conflicts
    latency: dict[str, int]  # from its last repeat to the next instruction that needs the result


@functools.cache
def tables(soc: str) -> Tables:
    chip = TABLE_OF.get(soc, "910B1")
    speeds: dict[tuple[str, str, int], float] = {}
    for row in read(f"{CONFIG}{chip}/bandwidth_{chip}.csv"):
        path = row["src_mem"], row["dst_mem"], int(row["core_num"])
        speeds[path] = float(row["bandwidth(GB/s)"]) * 1e3

    def by_cores(source: str, to: str) -> dict[int, float]:
        return {cores: v for (s, t, cores), v in speeds.items() if (s, t) == (source, to)}

    vector = read(f"{CONFIG}910B1/vec_cycle_no_bank_conflict_910B1.csv")
    fp32 = [row for row in vector if row["d_type"] == "FP32"]
    return Tables(
        by_cores("GM", "UB"),
        by_cores("UB", "GM"),
        speeds["L2", "UB", -1],
        speeds["UB", "L2", -1],
        {row["intrinsic"]: int(row["computing_cycles"]) for row in fp32},
        {row["intrinsic"]: int(row["interval_cycles"]) for row in fp32},
    )


@dataclasses.dataclass(frozen=True)
class Measured:
    """An op that msopmodeling's authors measured: the median of its runs."""

    op: str
    soc: str
    shapes: tuple[tuple[int, ...], ...]
    in_dtypes: tuple[str, ...]
    out_dtype: str
    cores: int
    us: float
    runs: int


def measured() -> Iterator[Measured]:
    """Float Add, Mul, Cast and RmsNorm; a Mul that broadcasts an input is an op of its own."""
    files = {
        ("Add", "Ascend910B4-1"): "theo_ops/add/add_zhanlu_profiling_910B4_1.csv",
        ("Mul", "Ascend910B4-1"): "eng_ops_classic/mul/mul_zhanlu_profiling_910B4_1.csv",
        ("Cast", "Ascend910B1"): "theo_ops/cast/dtypecast_dpsk-v4-a3_zhanlu_profiling_910B1.csv",
        ("RmsNorm", "Ascend910B4-1"): (
            "eng_ops_classic/rms_norm/rmsnorm_zhanlu_profiling_910B4_1.csv"
        ),
        ("RmsNorm", "Ascend910B1"): (
            "eng_ops_classic/rms_norm/rmsnorm_dpsk-v4-a3_zhanlu_profiling_910B1.csv"
        ),
    }
    for (op, soc), name in files.items():
        runs: dict[tuple, list[float]] = collections.defaultdict(list)
        for row in read(PROFILES + name):
            key = (row["inputs_shape"], row["inputs_dtype"], row["outputs_dtype"], row["block_dim"])
            runs[key].append(float(row["profiling_time"]))
        for (shapes, dtypes, out, cores), times in runs.items():
            shape = tuple(tuple(one) for one in ast.literal_eval(shapes))
            kinds = tuple(kind.removeprefix("torch.") for kind in ast.literal_eval(dtypes))
            to = ast.literal_eval(out)[0].removeprefix("torch.")
            broadcast = op in ("Add", "Mul") and len(set(shape)) != 1
            if not all("float" in kind for kind in (*kinds, to)) or (op == "Add" and broadcast):
                continue
            yield Measured(
                f"{op}, broadcast" if broadcast else op,
                soc,
                shape,
                kinds,
                to,
                int(cores),
                statistics.median(times),
                len(times),
            )
