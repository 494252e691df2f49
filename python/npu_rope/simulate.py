"""Runs a command where npu tensors work without an NPU.

    python -m npu_rope simulate -- python script.py

The command sees the real torch_npu over a simulated CANN runtime: ``q.npu()`` lies in host memory,
and a launch runs the Ascend C kernel on simulated cores, which refuse what the chip would not do.
The first run installs torch_npu into a folder of this environment that nothing else looks into, and
builds the simulated runtime in the source checkout; no CANN, no root. pip does not know the folder:
`python -m npu_rope simulate --remove` removes it, before npu_rope itself is uninstalled.

Settings, all optional, by environment variables:

    NPU_ROPE_SIM_SOC       the chip (Ascend910B1)
    NPU_ROPE_SIM_DEVICES   number of devices (1)
    NPU_ROPE_SIM_MEMORY    megabytes of memory of each (2048)
    NPU_ROPE_SIM_FAULTS    functions of CANN that fail: name:code[:after[:times]], ...
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2]


def _say(text: str) -> None:
    print(f"npu_rope simulate: {text}", file=sys.stderr, flush=True)


def install_folder() -> Path:
    """What this command installs, for any torch; nothing else writes there."""
    return Path(sys.prefix) / "share" / "npu_rope"


def torch_npu_folder() -> Path:
    """Where the torch_npu that pairs with this torch lies, installed or not."""
    version = importlib.metadata.version("torch").split("+")[0]
    return install_folder() / f"torch_npu-{version}"


def _remove() -> int:
    found = sorted(install_folder().glob("torch_npu-*"))
    for place in found:
        _say(f"removing {place}")
        shutil.rmtree(place)
    if not found:
        _say(f"nothing to remove in {install_folder()}")
    return 0


def install_torch_npu(folder: Path) -> None:
    """Beside torch, without CANN, torch_npu would break `import torch`: hence a folder of its own.

    Whole or not at all: pip writes to a temporary folder, which is renamed.
    """
    _, version = folder.name.split("-", 1)
    _say(f"installing torch_npu {version} into {folder} (once)")
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    try:
        subprocess.run([*pip, "--target", unfinished, f"torch_npu=={version}"], check=True)
        unfinished.rename(folder)
    except subprocess.CalledProcessError:
        shutil.rmtree(unfinished, ignore_errors=True)
        sys.exit(f"npu_rope simulate: no torch_npu {version} that pairs with torch {version}")


def _build_runtime(torch_npu: Path) -> Path:
    """The folder of the simulated runtime, built from the checkout's sources where they changed."""
    # Not setup.py's: where CANN is installed, the real library is built there.
    folder = SOURCES / "build" / f"simulated-{sysconfig.get_config_var('SOABI')}"
    runtime = folder / "npu_simulated"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if not all(shutil.which(tool, path=path) for tool in ("cmake", "ninja")):
        sys.exit("npu_rope simulate: needs cmake and ninja: pip install cmake ninja pybind11")

    def cmake(*arguments: str | Path) -> str:
        """Its output where it failed."""
        done = subprocess.run(
            ["cmake", *arguments],
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.stdout if done.returncode else ""

    if not (runtime / "libnpu_rope_npu.so").exists():
        _say("building the simulated CANN runtime (once)")
    configure = ["-S", SOURCES, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    configure.append(f"-DPython_EXECUTABLE={sys.executable}")
    configure.append("-DNPU_ROPE_NPU=OFF")
    configure.append(f"-DNPU_ROPE_SIMULATED_TORCH_NPU_DIR={torch_npu / 'torch_npu'}")
    # Afresh where the folder is an isolated build's, whose tools are gone.
    failure = cmake(*configure) and cmake(*configure, "--fresh")
    failure = failure or cmake("--build", folder, "--target", "npu_simulated")
    if failure:
        sys.exit(f"{failure}\nnpu_rope simulate: the simulated runtime does not build, see above")
    return runtime


def environment() -> dict[str, str]:
    """The environment variables of a simulated process; installs and builds what is missing."""
    if not (SOURCES / "csrc" / "simulator" / "acl").is_dir():
        sys.exit(
            "npu_rope simulate: the simulated runtime is built from sources, which are not beside "
            "this installation: clone the repository and run `make test` or "
            "`pip install --no-build-isolation --editable .` there"
        )
    torch_npu = torch_npu_folder()
    if not torch_npu.exists():
        install_torch_npu(torch_npu)
    SOURCES.joinpath("build").mkdir(exist_ok=True)
    with open(SOURCES / "build" / "simulate.lock", "w") as lock:  # one build at a time
        fcntl.flock(lock, fcntl.LOCK_EX)
        runtime = _build_runtime(torch_npu)

    def before(name: str, path: Path) -> str:
        return os.pathsep.join(filter(None, [str(path), os.environ.get(name)]))

    return {
        **os.environ,
        "PYTHONPATH": before("PYTHONPATH", torch_npu),
        "LD_LIBRARY_PATH": before("LD_LIBRARY_PATH", runtime),
        "NPU_ROPE_NPU_LIBRARY": str(runtime / "libnpu_rope_npu.so"),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m npu_rope simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--remove", action="store_true", help="remove what earlier runs installed")
    parser.add_argument("command", nargs="*", help="what to run, after --")
    arguments = parser.parse_args(argv)
    if arguments.remove:
        return _remove()
    command = arguments.command
    if not command:
        parser.error("a command is missing, after --")
    if command[0] in ("python", "python3"):
        command[0] = sys.executable  # this environment's, active or not
    os.execvpe(command[0], command, environment())


if __name__ == "__main__":
    sys.exit(main())
