"""NPU kernel: the scalar instructions of core 0, counted.

The kernel is compiled against a header that does the scalar work of Ascend C's own (masks,
configuration words, addresses) and marks each instruction for another unit (scalar_count/), and
what it executes is counted: for aarch64, whose scalar instructions are the nearest that public
tools have, under qemu with a plugin (needs Debian's g++-aarch64-linux-gnu, gcc and qemu-user); with
--step for this machine, by stepping through it, which needs g++ alone. The latter is what
tests/test_scalar.py holds.

`code KB` is what a launch executes of its code, at 4 bytes an instruction, to be set against an
instruction cache of 16 KB.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
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
    "counted for core 0 by compiling the kernel for {machine} against a header for counting "
    "(benchmarks/scalar.py); another compiler gives other figures by some percent"
)
HERE = Path(__file__).parent / "scalar_count"
CSRC = Path(__file__).parents[1] / "csrc"
BUILD = chip_tables.CACHE / "scalar"
PLUGIN = "plugin.so"
CANNOT_STEP = 3  # what the driver exits with
SOCS = ("Ascend910B1", "Ascend910B3")  # 48 cores and 40
TESTS = Path(__file__).parents[1] / "tests"
# What tests/test_scalar.py holds, on the first of SOCS.
HELD = (
    *(f"Qwen2.5-72B, {n}" for n in (1, 8, 64, 256, 4096)),
    *(f"{name}, {n}" for name in ("Qwen3-32B", "DeepSeek-V2/V3", "Command-R+", "GLM-4-9B")
      for n in (1, 64, 4096)),
    "Qwen3-32B with norm, 64", "Qwen3-32B with norm, 4096",
    "Qwen2.5-VL vision, 64", "Qwen2.5-VL vision, 4096", "Qwen3-VL vision, 4096",
)  # fmt: skip


class CannotCount(SystemExit):
    """This machine lacks a tool, or lets no process trace its child."""


def tools(step: bool) -> tuple[str, ...]:
    """The compiler and what else is needed."""
    if step:
        return (os.environ.get("CXX") or "g++",)
    return ("aarch64-linux-gnu-g++", "gcc", "qemu-aarch64")


def missing(step: bool = False) -> list[str]:
    return [tool for tool in tools(step) if not shutil.which(tool)]


def run(*command: str | Path, **options: Any) -> str:  # noqa: ANN401  of subprocess.run
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    if done.returncode:
        failed = CannotCount if done.returncode == CANNOT_STEP else SystemExit
        raise failed(f"scalar: {command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def machine(step: bool = False) -> str:
    """What is counted on: a compiler's target, and its version, by which counts differ."""
    if missing(step):
        raise CannotCount(f"scalar: expected {tools(step)}, not here: {missing(step)}")
    compiler = tools(step)[0]
    target, major = run(compiler, "-dumpmachine"), run(compiler, "-dumpversion")
    return f"{target.split('-')[0]} by g++ {major.split('.')[0].strip()}"


def build(step: bool = False) -> Path:
    """The driver with all entries, and the plugin beside it, anew where a source is newer."""
    folder = BUILD / machine(step).replace(" ", "-")
    driver = folder / "driver"
    sources = [*HERE.iterdir(), *(CSRC / "rope").iterdir(), *(CSRC / "npu").iterdir()]
    newest = max(source.stat().st_mtime for source in sources)
    if driver.exists() and driver.stat().st_mtime > newest:
        return driver
    folder.mkdir(parents=True, exist_ok=True)
    compiler = (tools(step)[0], "-O3", "-std=c++17", "-w", f"-I{HERE}", f"-I{CSRC / 'rope'}",
                f"-I{CSRC}")  # fmt: skip
    if not step:
        run("gcc", "-O2", "-shared", "-fPIC", "-w", "-o", folder / PLUGIN, HERE / "plugin.c")
    template = (CSRC / "rope" / "rope_entry.cpp.in").read_text()
    entries = re.findall(r"ENTRY\((rope_.*?)\)", (CSRC / "rope" / "rope_entries.h").read_text())
    objects = []
    for entry in entries:
        name, _, dtype, split_in, join_out, kind = map(str.strip, entry.split(","))
        text = template
        for key, value in (("entry", name), ("type", dtype), ("split_in", split_in),
                           ("join_out", join_out), ("kind", kind)):  # fmt: skip
            text = text.replace(f"@{key}@", value)
        source = folder / f"{name}.cpp"
        source.write_text(text)
        objects.append(source.with_suffix(".o"))

    def compile_one(to: Path) -> None:
        run(*compiler, "-c", "-o", to, to.with_suffix(".cpp"))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, objects))
    host = (*(CSRC / "rope").glob("rope_plan*.cpp"), CSRC / "npu" / "chip.cpp")
    static = () if step else ("-static",)
    run(*compiler, *static, "-o", driver, HERE / "driver.cpp", *objects, *host)
    return driver


def count(geometries: Sequence[Any], soc: str, step: bool = False) -> list[dict[str, int]]:
    """Of core 0 for each geometry (_C.RopeGeometry): instructions, vector, loads, stores, code
    (bytes executed), and divisions, which stepping does not tell."""
    driver = build(step)
    lines = "".join(scalar_cost.key(g, soc).partition(" ")[2] + "\n" for g in geometries)
    command = (driver, soc, "step") if step else (
        "qemu-aarch64", "-plugin", driver.with_name(PLUGIN), driver, soc)  # fmt: skip
    out = run(*command, input=lines)
    return [
        {name: int(value) for name, value in re.findall(r"(\w+) (\d+)", line)}
        for line in out.splitlines()
    ]


def geometry(made: shapes.Tensors) -> Any:  # noqa: ANN401  a type of _C
    q, k, cos, sin = made.args()
    outs = (q, k) if made.in_place else (q.new_empty(q.shape), k.new_empty(k.shape))
    return _C.geometry_of(q, k, cos, sin, *outs, **made.options, **made.norm)


def suite_geometry(case: bench_cannbench.Case) -> Any:  # noqa: ANN401  a type of _C
    q, k, q_out, k_out = (torch.empty(case.shape, dtype=getattr(torch, case.dtype))
                          for _ in range(4))  # fmt: skip
    tokens = case.shape[2 if case.layout else 1]
    cos, sin = (q.new_empty(tokens, case.shape[-1] // 2) for _ in range(2))
    return _C.geometry_of(q, k, cos, sin, q_out, k_out, rotary_dim=case.shape[-1],
                          layout=("BSND", "BNSD")[case.layout],
                          interleaved=case.mode == "interleaved")  # fmt: skip


def rows_of(
    names: Sequence[str], geometries: Sequence[Any], soc: str, step: bool = False
) -> list[Row]:
    plans = [_C.plan_rope(g, _C.find_chip(soc)) for g in geometries]
    counted = count(geometries, soc, step)
    return [
        {
            "case": name,
            "dtype": g.dtype.name,
            "style": g.style.name,
            "cores": plan.cores,
            "instructions": got["instructions"],
            "a vector": got["instructions"] / max(1, got["vector"]),
            "vector": got["vector"],
            "moves": got["loads"] + got["stores"],
            "divisions": got.get("divisions"),
            "code KB": got["code"] / 1024,
            "key": scalar_cost.key(g, soc),
        }
        for name, g, plan, got in zip(names, geometries, plans, counted, strict=True)
    ]


def held() -> list[Row]:
    """What tests/test_scalar.py holds: HELD, and rows that are transposed because they are fp16."""
    made = {name: shapes.make(shapes.find(name)) for name in HELD}
    made |= {
        f"{name}, fp16": shapes.make(shapes.find(name), torch.float16)
        for name in HELD
        if name.startswith("Command-R+")
    }
    return rows_of([*made], [geometry(tensors) for tensors in made.values()], SOCS[0], step=True)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", type=shapes.find, metavar="CASE",
                        help="'MODEL[ tpN], TOKENS'; default: all, and CANN-Bench's")  # fmt: skip
    parser.add_argument("--step", action="store_true",
                        help="by g++ alone, for tests/scalar_counts.json")  # fmt: skip


def main(args: argparse.Namespace) -> list[Row]:
    note = NOTE.format(machine=machine(args.step))
    if args.step:
        rows, name, folder = held(), "scalar_counts", TESTS
    else:
        cases = args.cases or shapes.cases()
        geometries = [geometry(shapes.make(case)) for case in report.progress(cases, "scalar")]
        names = [case.name for case in cases]
        rows = [row for soc in SOCS for row in rows_of(names, geometries, soc)]
        if not args.cases:
            suite = bench_cannbench.cases()
            names = [f"CANN-Bench {case.name}" for case in suite]
            rows += rows_of(names, [suite_geometry(case) for case in suite], bench_cannbench.SOC)
        name, folder = "scalar", None
    shown = [{key: value for key, value in row.items() if key != "key"} for row in rows]
    print(f"{note}\n{report.table(shown)}")
    if not args.cases:
        print(f"written: {report.save(name, note, rows, folder)}")
    return rows
