"""The drop-in in the processes that LMDeploy starts for its workers, and where it must not be."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys

import pytest

CHECK = """
import sys, torch
ours = [name for name in sys.modules if name.split(".")[0] in ("lmdeploy", "dlinfer", "npu_rope")]
assert not ours, ours
sys.path.append({tests!r})
from ascend import build_layer, launches, tables
layer = build_layer()
q = torch.randn(5, 3 * 80).bfloat16().unflatten(1, (3, 80))
inputs = q[:, :2], q[:, 2:], *tables(5, 80)
{before}
print(launches(lambda: layer(*inputs)))
"""
TESTS = os.path.dirname(__file__)
OURS = ["npu_rope.apply.default"]


def python(before: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter that says what LMDeploy's layer launches there."""
    program = CHECK.format(tests=TESTS, before=before)
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


def launched() -> list[str]:
    """In a worker: its parent has imported nothing that is LMDeploy's."""
    import torch
    from ascend import build_layer, launches, tables

    layer = build_layer()
    q = torch.randn(5, 3 * 80).bfloat16().unflatten(1, (3, 80))
    inputs = q[:, :2], q[:, 2:], *tables(5, 80)
    return launches(lambda: layer(*inputs))


def test_nothing_but_installing_is_needed() -> None:
    result = python()
    assert eval(result.stdout.splitlines()[-1]) == OURS, result.stdout + result.stderr
    (line,) = (line for line in result.stdout.splitlines() if "rotates q and k" in line)
    assert "INFO" in line and "LMDeploy 0.18.0 over dlinfer 0.2.7" in line


def test_switched_off_is_the_default_and_enable_turns_it_on() -> None:
    before = """
from npu_rope import lmdeploy
assert not lmdeploy.is_active()
print(len(launches(lambda: layer(*inputs))))
lmdeploy.enable()"""
    result = python(before, NPU_ROPE_LMDEPLOY="0")
    assert result.stdout.splitlines()[-1] == str(OURS), result.stdout + result.stderr
    assert "12" in result.stdout.splitlines()


def test_uninstalled_is_the_default(tmp_path: os.PathLike) -> None:
    """The package's files remain here; its metadata, and so the entry point, is not seen."""
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text(
        "import importlib.metadata as m\n"
        "find = m.entry_points\n"
        "def without(**k):\n"
        "    return [e for e in find(**k) if not e.value.startswith('npu_rope')]\n"
        "m.entry_points = without\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    before = "assert 'npu_rope_autoload' not in [type(f).__module__ for f in sys.meta_path]\n"
    before += "assert not __import__('npu_rope.lmdeploy').lmdeploy.is_active()"
    result = python(before, PYTHONPATH=path)
    assert len(eval(result.stdout.splitlines()[-1])) == 12, result.stdout + result.stderr


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_worker_process(method: str) -> None:
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(launched) == OURS


def test_ray_actor() -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
    try:

        @ray.remote
        class Worker:
            def launched(self, tests: str) -> list[str]:
                sys.path.append(tests)
                from processes import launched

                return launched()

        assert ray.get(Worker.remote().launched.remote(TESTS), timeout=120) == OURS
    finally:
        ray.shutdown()
