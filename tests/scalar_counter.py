"""The kernel's scalar instructions, counted with g++ alone, as any machine for tests has it.

A core's scalar unit runs the kernel's C++ in order at about one instruction a cycle and issues
every vector instruction and transfer. What it executes is counted here by compiling the kernel for
this machine over a header whose functions do the scalar work of CANN's own and issue marked nops
(scalar/), and stepping through it. This needs g++ and nothing else. Another compiler or
machine counts a few per cent differently: the figures kept are of g++ 12.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Row = dict[str, Any]

HERE = Path(__file__).parent / "scalar"
SOURCES = Path(__file__).parents[1] / "csrc"
CACHE = 16 * 1024  # bytes, of instructions
FP16, BF16 = 0, 1
HALF, INTERLEAVED, DEINTERLEAVE = STYLES = range(3)
STYLE_NAMES = ("half", "interleaved", "deinterleave")
PACKED, DENSE, MLA = range(3)  # how rows lie

# name: q and k heads, head_dim, rotary_dim, style, rows, dtype, tokens
CASES = {
    "Qwen2.5-72B": (64, 8, 128, 128, HALF, PACKED, BF16, (1, 8, 64, 256, 4096)),
    "Qwen3-32B": (64, 8, 128, 128, HALF, DENSE, BF16, (1, 64, 4096)),
    "Qwen2.5-VL vision": (16, 16, 80, 80, HALF, PACKED, BF16, (64, 4096)),
    "Qwen3-VL vision": (16, 16, 72, 72, HALF, PACKED, BF16, (4096,)),
    "DeepSeek-V2/V3": (128, 1, 64, 64, DEINTERLEAVE, MLA, BF16, (1, 64, 4096)),
    "Command-R+": (96, 8, 128, 128, INTERLEAVED, PACKED, BF16, (1, 64, 4096)),
    "Command-R+ fp16": (96, 8, 128, 128, INTERLEAVED, PACKED, FP16, (1, 64, 4096)),
    "GLM-4": (32, 2, 128, 64, INTERLEAVED, PACKED, BF16, (64, 4096)),
}


class CannotCount(RuntimeError):
    """This machine has no compiler, or lets no process trace its child."""


def compiler() -> str:
    found = os.environ.get("CXX") or shutil.which("g++")
    if not found:
        raise CannotCount("no g++ found: install it (Debian: apt install g++)")
    return found


def build(folder: Path) -> Path:
    """The counter, with every entry of the kernel, compiled into `folder`."""
    flags = ["-std=c++17", "-O3", "-w", f"-I{HERE}", f"-I{SOURCES / 'rope'}", f"-I{SOURCES}"]
    template = (SOURCES / "rope/rope_entry.cpp.in").read_text()
    lines = (SOURCES / "rope/rope_entries.h").read_text()
    sources = [HERE / "counter.cpp", SOURCES / "rope/rope_plan.cpp", SOURCES / "npu/chip.cpp"]
    for entry in re.findall(r"ENTRY\((rope_\w+), (\w+), (\w+), (\w+), (\w+)\)", lines):
        text = template
        for key, value in zip(("entry", "", "type", "split_in", "join_out"), entry, strict=True):
            text = text.replace(f"@{key}@", value) if key else text
        sources.append(folder / f"{entry[0]}.cpp")
        sources[-1].write_text(text)
    objects = [folder / f"{source.stem}.o" for source in sources]

    def compile_one(source: Path, made: Path) -> None:
        subprocess.run([compiler(), *flags, "-c", str(source), "-o", str(made)], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, sources, objects))
    counter = folder / "counter"
    subprocess.run([compiler(), *map(str, objects), "-o", str(counter)], check=True)
    return counter


def count(counter: Path, core: int = 0) -> list[Row]:
    names, lines = [], []
    for name, (q, k, dim, rotary, style, rows, dtype, all_tokens) in CASES.items():
        for tokens in all_tokens:
            names.append((f"{name}, {tokens}", STYLE_NAMES[style]))
            lines.append(f"{dtype} {style} {tokens} {q} {k} {dim} {rotary} {rows} {core}")
    run = subprocess.run([counter], input="\n".join(lines), capture_output=True, text=True)
    if run.returncode != 0:
        raise CannotCount(run.stderr.strip())
    counted = []
    for (case, style), line in zip(names, run.stdout.splitlines(), strict=True):
        instructions, vector, loads, stores, distinct, cores = map(int, line.split())
        counted.append(
            {
                "case": case,
                "style": style,
                "cores": cores,
                "instructions": instructions,
                "vector": vector,
                "moves": loads + stores,
                "distinct": distinct,
            }
        )
    return counted


def version() -> str:
    run = subprocess.run(
        [compiler(), "-dumpmachine", "-dumpversion"], capture_output=True, text=True
    )
    words = run.stdout.split()
    major = subprocess.run([compiler(), "-dumpversion"], capture_output=True, text=True).stdout
    return f"{words[0].split('-')[0]} by g++ {major.split('.')[0].strip()}"
