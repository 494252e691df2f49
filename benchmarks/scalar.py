"""NPU kernel: the scalar instructions of core 0, counted.

The kernel is compiled for aarch64, whose scalar instructions are the nearest that public tools
have, against a stub of Ascend C that does the scalar work of the official headers (masks,
configuration words, addresses) and marks each instruction for another unit (scalar_count/), and
runs under qemu with a plugin that counts. Needs Debian's g++-aarch64-linux-gnu, gcc and qemu-user.

`code KB` is what a launch executes of its code, to be set against an instruction cache of 16 KB.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from npu_rope import _C

from benchmarks import bench_cannbench, chip_tables, report, scalar_cost, shapes
from benchmarks.report import Row

NOTE = (
    "counted for core 0 by compiling the kernel for aarch64 against a stub of Ascend C and running "
    "it under qemu (benchmarks/scalar.py); another compiler gives other figures by some percent"
)
HERE = Path(__file__).parent / "scalar_count"
CSRC = Path(__file__).parents[1] / "csrc"
BUILD = chip_tables.CACHE / "scalar"
TOOLS = ("aarch64-linux-gnu-g++", "gcc", "qemu-aarch64")
SOCS = ("Ascend910B1", "Ascend910B3")  # 48 cores and 40


def missing() -> list[str]:
    return [tool for tool in TOOLS if not shutil.which(tool)]


def run(*command: str | Path, **options: Any) -> str:  # noqa: ANN401  of subprocess.run
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    if done.returncode:
        raise SystemExit(f"scalar: {command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def build() -> tuple[Path, Path]:
    """The driver with all entries, and the plugin, anew where a source is newer."""
    if missing():
        raise SystemExit(f"scalar: expected {', '.join(TOOLS)}, {', '.join(missing())} missing")
    driver, plugin = BUILD / "driver", BUILD / "plugin.so"
    sources = [*HERE.iterdir(), *(CSRC / "rope").iterdir(), *(CSRC / "npu").iterdir()]
    newest = max(source.stat().st_mtime for source in sources)
    if driver.exists() and driver.stat().st_mtime > newest:
        return driver, plugin
    BUILD.mkdir(parents=True, exist_ok=True)
    compiler = (TOOLS[0], "-O3", "-std=c++17", "-w", f"-I{HERE}", f"-I{CSRC / 'rope'}", f"-I{CSRC}")
    run("gcc", "-O2", "-shared", "-fPIC", "-w", "-o", plugin, HERE / "plugin.c")
    template = (CSRC / "rope" / "rope_entry.cpp.in").read_text()
    entries = re.findall(r"ENTRY\((rope_.*?)\)", (CSRC / "rope" / "rope_entries.h").read_text())
    objects = []
    for entry in entries:
        name, _, kind, split_in, join_out = (word.strip() for word in entry.split(","))
        text = template
        for key, value in (("entry", name), ("type", kind), ("split_in", split_in),
                           ("join_out", join_out)):  # fmt: skip
            text = text.replace(f"@{key}@", value)
        source = BUILD / f"{name}.cpp"
        source.write_text(text)
        objects.append(source.with_suffix(".o"))

    def compile_one(to: Path) -> None:
        run(*compiler, "-c", "-o", to, to.with_suffix(".cpp"))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, objects))
    host = (CSRC / "rope" / "rope_plan.cpp", CSRC / "npu" / "chip.cpp")
    run(*compiler, "-static", "-o", driver, HERE / "driver.cpp", *objects, *host)
    return driver, plugin


def count(geometries: Sequence[Any], soc: str) -> list[dict[str, int]]:
    """Of core 0 for each geometry (_C.RopeGeometry): instructions, vector, moves, divisions,
    code (bytes executed)."""
    driver, plugin = build()
    lines = "".join(scalar_cost.key(g, soc).partition(" ")[2] + "\n" for g in geometries)
    out = run("qemu-aarch64", "-plugin", plugin, driver, soc, input=lines)
    found = []
    for line in out.splitlines():
        got = {name: int(value) for name, value in re.findall(r"([A-Za-z0-9]+) (\d+)", line)}
        found.append(
            {
                "instructions": got["INSN"],
                "vector": got["vec"],
                "moves": got["load"] + got["store"],
                "divisions": got["div"],
                "code": got["foot"],
            }
        )
    return found


def geometry(made: shapes.Tensors) -> Any:  # noqa: ANN401  a type of _C
    q, k, cos, sin = made.args()
    outs = (q, k) if made.in_place else (q.new_empty(q.shape), k.new_empty(k.shape))
    return _C.geometry_of(q, k, cos, sin, *outs, **made.options)


def suite_geometry(case: bench_cannbench.Case) -> Any:  # noqa: ANN401  a type of _C
    q, k, q_out, k_out = (torch.empty(case.shape, dtype=getattr(torch, case.dtype))
                          for _ in range(4))  # fmt: skip
    tokens = case.shape[2 if case.layout else 1]
    cos, sin = (q.new_empty(tokens, case.shape[-1] // 2) for _ in range(2))
    return _C.geometry_of(q, k, cos, sin, q_out, k_out, rotary_dim=case.shape[-1],
                          layout=("BSND", "BNSD")[case.layout],
                          interleaved=case.mode == "interleaved")  # fmt: skip


def rows_of(names: Sequence[str], geometries: Sequence[Any], soc: str) -> list[Row]:
    plans = [_C.plan_rope(g, _C.find_chip(soc)) for g in geometries]
    return [
        {
            "case": name,
            "dtype": g.dtype.name,
            "style": g.style.name,
            "cores": plan.cores,
            "instructions": got["instructions"],
            "a vector": got["instructions"] / max(1, got["vector"]),
            "vector": got["vector"],
            "moves": got["moves"],
            "divisions": got["divisions"],
            "code KB": got["code"] / 1024,
            "key": scalar_cost.key(g, soc),
        }
        for name, g, plan, got in zip(names, geometries, plans, count(geometries, soc), strict=True)
    ]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", type=shapes.find, metavar="CASE",
                        help="'MODEL[ tpN], TOKENS'; default: all, and CANN-Bench's")  # fmt: skip


def main(args: argparse.Namespace) -> list[Row]:
    cases = args.cases or shapes.cases()
    geometries = [geometry(shapes.make(case)) for case in report.progress(cases, "scalar")]
    names = [case.name for case in cases]
    rows = [row for soc in SOCS for row in rows_of(names, geometries, soc)]
    if not args.cases:
        suite = bench_cannbench.cases()
        names = [f"CANN-Bench {case.name}" for case in suite]
        rows += rows_of(names, [suite_geometry(case) for case in suite], bench_cannbench.SOC)
    shown = [{key: value for key, value in row.items() if key != "key"} for row in rows]
    print(f"{NOTE}\n{report.table(shown)}")
    if not args.cases:
        print(f"written: {report.save('scalar', NOTE, rows)}")
    return rows
