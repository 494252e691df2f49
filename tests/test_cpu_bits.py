"""The CPU kernel's bits on aarch64, which most of Ascend's hosts are: under an emulator.

On Debian: `apt install g++-aarch64-linux-gnu qemu-user`.
"""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CALLS = 3000
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
# As CMakeLists.txt compiles these loops.
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-Wno-psabi", "-DROPE_ISA=baseline", "-static"]


def results(compiler: str, program: Path, *run_by: str) -> list[str]:
    """A line a call."""
    sources = [ROOT / "tests/cpu_bits/main.cpp", ROOT / "csrc/rope/rope_cpu_rows.cpp"]
    subprocess.run([compiler, *FLAGS, f"-I{ROOT / 'csrc'}", *sources, "-o", program], check=True)
    done = subprocess.run([*run_by, program, str(CALLS)], check=True, stdout=subprocess.PIPE)
    return done.stdout.decode().splitlines()


@pytest.mark.skipif(
    not all(map(shutil.which, ("g++", CROSS, EMULATOR))), reason=f"needs g++, {CROSS}, {EMULATOR}"
)
def test_aarch64_gives_the_same_bits(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        here = pool.submit(results, "g++", tmp_path / "here")
        there = pool.submit(results, CROSS, tmp_path / "there", EMULATOR)
    assert len({line.split()[1] for line in here.result()}) > CALLS * 0.95  # they tell calls apart
    assert here.result() == there.result()
