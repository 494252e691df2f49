"""What is installed: the build, the source distribution, imports, the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import npu_rope
import pytest
from npu_rope import doctor, simulate

ROOT = Path(__file__).parent.parent


def run(*command: object, **env: str) -> subprocess.CompletedProcess[str]:
    bin_first = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "PATH": bin_first, **env},
        cwd=env.get("PWD", ROOT),
        capture_output=True,
        text=True,
    )


def test_building_twice_does_nothing_the_second_time() -> None:
    for _ in range(2):
        result = run(sys.executable, "setup.py", "build_ext", "--inplace")
        assert result.returncode == 0, result.stdout + result.stderr
    assert "ninja: no work to do" in result.stdout


def test_a_build_that_fails_is_no_success_of_the_one_before(tmp_path: Path) -> None:
    """`make` in an environment that has the package, with a pip that fails."""
    for name in ("bin", "lib", "pyvenv.cfg"):
        (tmp_path / name).symlink_to(Path(sys.prefix) / name)
    (tmp_path / "packages").touch()
    made = ["make", f"{tmp_path}/built", f"VENV={tmp_path}", "PIP=false"]
    assert subprocess.run(made, cwd=ROOT, capture_output=True).returncode == 2
    assert not (tmp_path / "built").exists()


def test_sdist_holds_the_sources_and_installs(tmp_path: Path) -> None:
    make = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    result = run(sys.executable, "-c", make, tmp_path)
    assert result.returncode == 0, result.stderr
    (sdist,) = tmp_path.glob("npu_rope-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    tracked = run("git", "ls-files", ":!:.*")
    assert {*tracked.stdout.split()} <= names, "the sdist is a checkout: its README's commands work"
    assert not [name for name in names if name.endswith((".so", ".pyc"))]

    target = tmp_path / "installed"
    pip = (sys.executable, "-m", "pip", "install", "--no-index", "--no-deps")
    result = run(*pip, "--no-build-isolation", "--target", target, sdist)
    assert result.returncode == 0, result.stdout + result.stderr
    program = "import npu_rope, torch; print(npu_rope.__file__, torch.ops.npu_rope.apply.default)"
    result = run(sys.executable, "-c", program, PYTHONPATH=str(target), PWD=str(tmp_path))
    assert result.stdout.split() == [str(target / "npu_rope/__init__.py"), "npu_rope.apply.default"]
    assert not list(target.glob("npu_rope/*npu*.so")), "no NPU kernel was built, none is claimed"


def test_a_build_without_torch_says_what_to_do(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    result = run(tmp_path / "bare/bin/python", "cmake/find_torch.py")
    assert result.returncode == 1 and not result.stdout
    assert "no torch found" in result.stderr and "pip install torch" in result.stderr
    assert str(tmp_path / "bare") in result.stderr and "NPU_ROPE_TORCH_DIR" in result.stderr


def test_a_build_finds_torch_from_an_isolated_path() -> None:
    """As pip isolates: the environment's Python, without its packages on the path."""
    program = """
import runpy, sys
sys.path = [place for place in sys.path if "site-packages" not in place]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
runpy.run_path("cmake/find_torch.py", run_name="__main__")
"""
    result = run(sys.executable, "-c", program)
    assert Path(result.stdout.strip(), "include/ATen").is_dir(), result.stderr


def test_import_needs_torch_alone() -> None:
    program = """
import sys
for name in ("numpy", "transformers", "torch_npu", "pybind11", "hypothesis", "skimage"):
    sys.modules[name] = None
import npu_rope, torch
q = torch.ones(1, 1, 2)
print(npu_rope.apply(q, q, q[0], q[0])[0].tolist())
"""
    result = run(sys.executable, "-W", "ignore", "-c", program)
    assert result.stdout.strip() == "[[[0.0, 2.0]]]", result.stderr


def test_import_works_in_a_module_that_python_m_runs(tmp_path: Path) -> None:
    """Only `python -m npu_rope` itself loads lazily, not a package that it starts another from."""
    package = tmp_path / "server"
    package.mkdir()
    (package / "__init__.py").write_text("import npu_rope; npu_rope.apply")
    (package / "__main__.py").write_text("print('served')")
    result = run(sys.executable, "-m", "server", PYTHONPATH=str(tmp_path))
    assert result.stdout == "served\n", result.stderr


def test_what_simulate_installs_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    package = simulate.torch_npu_folder() / "torch_npu"
    package.mkdir(parents=True)
    (finding,) = (line[2] for line in doctor.report() if line[1] == "simulate")
    assert str(simulate.install_folder()) in finding and "simulate --remove" in finding
    (other := tmp_path / "share" / "other").mkdir()
    assert simulate.main(["--remove"]) == 0
    assert not package.exists() and other.exists()
    assert simulate.main(["--remove"]) == 0
    assert "nothing to remove" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        simulate.main([])


def test_a_checkout_that_has_moved_does_not_break_import_torch(tmp_path: Path) -> None:
    """`import torch` loads the entry point in every process, wherever npu_rope has gone."""
    installed = Path(sysconfig.get_path("purelib"), "npu_rope_autoload.py").read_text()
    assert "Written by npu_rope's setup.py" in installed and str(ROOT) in installed
    moved = installed.replace(str(ROOT), "/moved")
    (tmp_path / "npu_rope_autoload.py").write_text(moved)
    result = run(sys.executable, "-c", "import torch", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "a checkout that is no longer in /moved/python" in result.stderr


def test_the_hook_is_the_checkouts_own_while_it_is_there() -> None:
    import npu_rope_autoload

    assert Path(npu_rope_autoload.__file__) == ROOT / "python" / "npu_rope_autoload.py"


def test_doctor_says_what_is_live() -> None:
    result = run(sys.executable, "-m", "npu_rope", "doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"npu_rope       {npu_rope.__version__}" in result.stdout
    assert "a trial call equals the reference" in result.stdout
    assert "backend npu    not live" in result.stdout


@pytest.mark.parametrize("fault", ["raise RuntimeError('no libhccl.so')", "import not_there"])
def test_doctor_works_where_torch_does_not(tmp_path: Path, fault: str) -> None:
    (tmp_path / "torch.py").write_text(fault)
    result = run(sys.executable, "-m", "npu_rope", "doctor", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1 and not result.stderr
    assert "`import torch` fails" in result.stdout
    assert "no libhccl.so" in result.stdout or "not_there" in result.stdout


def test_a_library_of_another_torch_says_so(tmp_path: Path) -> None:
    package = tmp_path / "npu_rope"
    package.mkdir()
    for source in (ROOT / "python/npu_rope").glob("*.py"):
        (package / source.name).write_text(source.read_text())
    (package / "_C.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    result = run(sys.executable, "-c", "import npu_rope", PYTHONPATH=str(tmp_path))
    assert "does not load beside torch 2." in result.stderr
    assert "undefined symbol" in result.stderr and "--no-build-isolation" in result.stderr
