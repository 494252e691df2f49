"""The tests of npu tensors, each file in a child process where the simulated runtime is.

On a machine with an NPU, `make test-npu` runs the same files on the device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(name: str, *options: str, **environment: str) -> None:
    pytest_command = [sys.executable, "-m", "pytest", "-q", f"{HERE / name}.py", *options]
    done = subprocess.run(
        [sys.executable, "-m", "npu_rope", "simulate", "--", *pytest_command],
        cwd=HERE.parent,
        env={**os.environ, "NPU_ROPE_SIM_DEVICES": "2", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


FILES = ["npu_operator", "npu_norm", "npu_streams", "npu_faults"]


@pytest.mark.parametrize("name", FILES)
def test_simulated(name: str) -> None:
    run(name)


def test_make_runs_the_same_files_on_a_device() -> None:
    command = ["make", "--dry-run", "test-npu"]
    told = subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.PIPE, text=True)
    assert {word for word in told.stdout.split() if word.startswith("tests/npu_")} == {
        f"tests/{name}.py" for name in FILES
    }


def test_every_tensor_an_allocation_of_its_own() -> None:
    """Without torch_npu's cache, a kernel that leaves its tensor leaves its allocation."""
    run("npu_operator", "-k", "bits or out_writes", PYTORCH_NO_NPU_MEMORY_CACHING="1")


def test_simulation_stays_in_its_process() -> None:
    """Plain Python of this environment sees neither torch_npu nor the simulated runtime."""
    code = (
        "import importlib.util, torch, npu_rope\n"
        "assert importlib.util.find_spec('torch_npu') is None\n"
        "assert 'npu_simulated' not in open('/proc/self/maps').read()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
