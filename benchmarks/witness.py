"""The model's cycles of single instructions beside those of an independent one: pypto 0.2.0's
(CANN Open Software License 2.0, from PyPI). It is called, in a process of its own; nothing of it
is kept here or installed.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

from benchmarks import chip_tables, model
from benchmarks.report import Row

PYPTO = "pypto==0.2.0"
LIBRARY = "libtile_fwk_simulation_ca.so"
BEFORE = ("interface", "compiler", "codegen", "simulation")  # whose symbols it needs
VECTOR = {"vadd": "Add", "vsub": "Sub", "vmul": "Mul", "vmuls": "Muls", "vadds": "Adds"}
REPEATS = (1, 16, 64, 255)
BLOCKS = (4, 64, 512)  # of 32 bytes: transfers of 128 bytes, 2 KB, 16 KB
CORE_RATE = 74.5  # bytes a cycle: pypto's, which knows no other cores


def ask(folder: str, programs: list[str]) -> list[int]:
    for name in BEFORE:
        try:
            ctypes.CDLL(f"{folder}/libtile_fwk_{name}.so", ctypes.RTLD_GLOBAL | os.RTLD_LAZY)
        except OSError:
            continue  # symbols of a part that is not needed
    cycles = ctypes.CDLL(f"{folder}/{LIBRARY}").GetTileOpCycle
    cycles.argtypes, cycles.restype = [ctypes.c_char_p], ctypes.c_int
    return [cycles(program.encode()) for program in programs]


def unpack() -> Path:
    folder = chip_tables.CACHE / "pypto"
    if not (folder / "pypto" / "lib" / LIBRARY).exists():
        with zipfile.ZipFile(chip_tables.wheel(PYPTO)) as archive:
            archive.extractall(folder)
    return folder / "pypto" / "lib"


def rows() -> list[Row]:
    """Empty, with a reason on stderr, where pypto has no wheel or does not load."""
    if platform.machine() != "x86_64":
        return []
    tables = chip_tables.tables("Ascend910B1")
    programs: list[tuple[str, str, float]] = []
    for instruction, api in VECTOR.items():
        name = model.INSTRUCTIONS[api]
        for n in REPEATS:
            program = f"{instruction}<float>(0, 0, 0, {n}, 1, 1, 1, 8, 8, 8)"
            own = tables.cycles[name] * n + model.latency(tables, name)
            programs.append((f"{instruction}<float>, {n} repeats", program, own))
    for instruction, latency in (
        ("copy_gm_to_ubuf", model.LOAD_LATENCY),
        ("copy_ubuf_to_gm", model.STORE_LATENCY),
    ):
        for blocks in BLOCKS:
            program = f"{instruction}<float>(0, 0, 0, 1, {blocks}, 0, 0)"
            own = latency + blocks * 32 / CORE_RATE
            programs.append((f"{instruction}, {blocks * 32} bytes", program, own))
    try:
        folder = unpack()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.witness", str(folder)],
            input=json.dumps([program for _, program, _ in programs]),
            env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
            cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
    except (SystemExit, OSError, subprocess.SubprocessError) as error:
        print(f"no second opinion on instructions: {error}", file=sys.stderr)
        return []
    theirs = json.loads(done.stdout)
    return [
        {"instruction": what, "model cycles": own, "pypto cycles": their,
         "difference": f"{own / their - 1:+.0%}"}
        for (what, _, own), their in zip(programs, theirs, strict=True)
    ]  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(ask(sys.argv[1], json.load(sys.stdin))))
