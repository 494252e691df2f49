"""Brings LMDeploy and dlinfer-ascend as published, for the tests and the demo, into a cache folder.

The Python of LMDeploy's x86-64 wheels and of dlinfer-ascend's aarch64 wheels is unpacked, and no
more: LMDeploy pins another torch, and its compiled parts are CUDA's. What both import besides goes
to a folder of its own, without dependencies. Nothing is installed into the environment.

    python tests/lmdeploy/packages.py [--all-pairs]
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

NEWEST = ("0.18.0", "0.2.7")  # whose rope works
SERVING = ("0.12.3", "0.2.7")  # which can serve: report.cannot_serve says why the newer ones can't
OLDER = (
    ("0.6.5", "0.1.4"),
    ("0.7.1", "0.1.6"),
    ("0.7.2", "0.1.7"),
    ("0.7.2", "0.1.8"),
    ("0.7.3", "0.1.7"),
    ("0.7.3", "0.1.8"),
    ("0.8.0", "0.2.0"),
    ("0.9.2.post1", "0.2.1.post2"),
    ("0.9.2.post1", "0.2.2"),
    ("0.10.2", "0.2.3.post2"),
    ("0.11.1", "0.2.4"),
    ("0.11.1", "0.2.5"),
)
BESIDES = (
    *("mmengine-lite", "addict", "yapf", "platformdirs", "termcolor", "psutil", "requests"),
    *("urllib3", "certifi", "charset-normalizer", "pybase64", "pyzmq", "shortuuid"),
    *("xgrammar!=0.2.5.post1,>=0.2.0", "apache-tvm-ffi"),
    *("ray", "msgpack", "jsonschema", "jsonschema-specifications", "referencing", "rpds-py"),
    *("attrs", "protobuf"),
)
# Loads, and registers nothing: in place of the NPU's and aarch64's libraries that dlinfer loads.
EMPTY_LIBRARY = Path(torch.__file__).parent / "lib/libtorch_global_deps.so"
STANDIN = Path(__file__).parent / "standin"
CACHE = Path(sys.prefix) / "share/npu_rope/lmdeploy"


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{result.stderr}")


@contextmanager
def building(folder: Path, what: str) -> Iterator[Path | None]:
    """A new folder, which gets its name when it is complete; None where it is there already."""
    if folder.exists():
        yield None
        return
    print(f"fetching {what} ...", file=sys.stderr, flush=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield part
        part.chmod(0o755)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def unpacked(package: str, version: str, *where: str) -> Path:
    """The Python of a wheel that may be another machine's."""
    folder = CACHE / f"{package}-{version}"
    with building(folder, f"{package} {version}") as part:
        if part is not None:
            with tempfile.TemporaryDirectory() as wheels:
                pip("download", "--no-deps", "--only-binary=:all:", "--dest", wheels, *where,
                    f"{package}=={version}")  # fmt: skip
                (wheel,) = Path(wheels).iterdir()
                with zipfile.ZipFile(wheel) as archive:
                    wanted = (".py", ".yaml", ".json", "/METADATA", "/RECORD")
                    names = [name for name in archive.namelist() if name.endswith(wanted)]
                    archive.extractall(part, names)
                    for name in archive.namelist():
                        if name.startswith("dlinfer/vendor") and name.endswith(".so"):
                            (part / name).symlink_to(EMPTY_LIBRARY)
    return folder


def lmdeploy(version: str) -> Path:
    platforms = [f"--platform={tag}_x86_64" for tag in ("manylinux2014", "manylinux_2_28")]
    return unpacked("lmdeploy", version, "--python-version=3.11", *platforms)


def dlinfer(version: str) -> Path:
    python = "3.10" if version < "0.2.3" else "3.11"
    where = (f"--python-version={python}", "--platform=manylinux2014_aarch64")
    return unpacked("dlinfer-ascend", version, *where)


def besides() -> Path:
    folder = CACHE / "besides"
    with building(folder, "what LMDeploy imports, and ray (280 MB)") as part:
        if part is not None:
            pip("install", "--no-deps", "--target", part, *BESIDES)
    return folder


def standin() -> Path:
    """tests/lmdeploy/standin, with a file where dlinfer loads torch_npu's ATB operators from."""
    folder = CACHE / "standin"
    shutil.copytree(STANDIN, folder, dirs_exist_ok=True)
    library = folder / "torch_npu/lib/libop_plugin_atb.so"
    library.parent.mkdir(exist_ok=True)
    if not library.is_symlink():
        library.symlink_to(EMPTY_LIBRARY)
    return folder


def environment(pair: tuple[str, str] = NEWEST, npu: bool = False) -> dict[str, str]:
    """The variables of a process in which `import lmdeploy` finds this pair.

    npu: torch_npu is the real one, which the caller brings, and not the stand-in.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folders = [lmdeploy(pair[0]), dlinfer(pair[1]), besides()]
        if not npu:
            folders.insert(0, standin())
    inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, folders), *inherited])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all-pairs", action="store_true", help="not the two newest alone")
    for pair in (NEWEST, SERVING, *(OLDER if parser.parse_args().all_pairs else ())):
        environment(pair)
    print(CACHE)


if __name__ == "__main__":
    main()
