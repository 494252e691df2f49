"""The drop-in in LMDeploy's and dlinfer's own code, as published.

dlinfer changes torch for the whole process, so each file of tests/lmdeploy is run by a pytest of
its own, in which `import lmdeploy` finds the packages that tests/lmdeploy/packages.py has brought.
The newest pair goes through every file, the newest that can serve through what depends on versions.
For the other pairs of the compatibility table:

    NPU_ROPE_LMDEPLOY_PAIRS=all python -m pytest tests/test_lmdeploy.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "lmdeploy"
STEP = "test_step_is_lmdeploy_s_norms_and_rotation"
sys.path.append(str(HERE))

import packages  # noqa: E402


def run(pair: tuple[str, str], *files: str, npu: bool = False) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [HERE / file for file in files]
    if npu:
        command = [sys.executable, "-m", "npu_rope", "simulate", "--", *command]
    result = subprocess.run(
        [str(part) for part in command],
        env=packages.environment(pair, npu),
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"\b[1-9]\d* passed", result.stdout)


@pytest.mark.parametrize(
    "files", [("layer.py", "steps.py", "norms.py", "models.py"), ("processes.py",)]
)
def test_newest_pair(files: tuple[str, ...]) -> None:
    run(packages.NEWEST, *files)


def test_newest_pair_on_npu_tensors() -> None:
    run(packages.NEWEST, "npu.py", npu=True)


def test_whose_errors_come_on_npu_tensors() -> None:
    run(packages.NEWEST, "npu_errors.py", npu=True)


def test_newest_pair_that_can_serve() -> None:
    run(packages.SERVING, "pair.py", "steps.py", f"norms.py::{STEP}")


def test_doctor_s_table_is_what_is_tested() -> None:
    from npu_rope.lmdeploy import TESTED

    table = {(lmdeploy, dlinfer) for lmdeploy, many in TESTED.items() for dlinfer in many}
    assert table == {packages.NEWEST, packages.SERVING, *packages.OLDER}


older = pytest.mark.skipif(
    os.environ.get("NPU_ROPE_LMDEPLOY_PAIRS") != "all", reason="NPU_ROPE_LMDEPLOY_PAIRS is not all"
)


@older
@pytest.mark.parametrize("pair", packages.OLDER, ids=" x ".join)
def test_older_pair(pair: tuple[str, str]) -> None:
    run(pair, "pair.py")
