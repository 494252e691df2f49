"""Lays out a stand-in for CANN's toolkit (standin_cann/README.md)."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = Path(__file__).with_name("standin_cann")


class Toolkit:
    """A toolkit in `folder`. `runtime`: the folder of the simulated CANN runtime, where what is
    built shall link and run; `acl`: the folder of its headers."""

    def __init__(
        self,
        folder: Path,
        takes_asc: bool,
        ascendc: bool = True,
        runtime: Path | None = None,
        acl: Path | None = None,
    ) -> None:
        self.folder = folder
        standin = folder / "standin"
        kernel_cmake = folder / "compiler" / "tikcpp" / "ascendc_kernel_cmake"
        for place in (folder / "lib64", folder / "include" / "acl", kernel_cmake, standin):
            place.mkdir(parents=True)
        for name in ("kernel", "marks", "debug"):
            shutil.copytree(PARTS / name, standin / name)
        for name in ("standin_launch.h", "enqueue.cpp"):
            shutil.copy(PARTS / name, standin)
        if takes_asc:
            shutil.copy(PARTS / "asc-config.cmake", kernel_cmake)
        if ascendc:
            for name in ("ascendc.cmake", "host_stub.py"):
                shutil.copy(PARTS / name, kernel_cmake)
            shutil.copytree(PARTS / "kernels_project", kernel_cmake / "kernels_project")
            debug = folder / "tools" / "tikicpulib" / "lib" / "cmake"
            debug.mkdir(parents=True)
            config = (PARTS / "debug" / "tikicpulib-config.cmake").read_text()
            config = config.replace("@CANN@", str(folder)).replace("@CSRC@", str(ROOT / "csrc"))
            (debug / "tikicpulib-config.cmake").write_text(config)
        # Newer toolkits have their compiler elsewhere.
        place = f"{platform.machine()}-linux" if takes_asc else "compiler"
        self.bisheng = folder / place / "ccec_compiler" / "bin" / "bisheng"
        self.bisheng.parent.mkdir(parents=True)
        text = (PARTS / "bisheng.py").read_text()
        for key, value in {
            "PYTHON": sys.executable,
            "CANN": folder,
            "CSRC": ROOT / "csrc",
            "TAKES_ASC": "yes" if takes_asc else "no",
            "ACL": acl,
        }.items():
            text = text.replace(f"@{key}@", str(value))
        self.bisheng.write_text(text)
        self.bisheng.chmod(0o755)
        # CANN's own acl headers are those of another version than torch_npu's.
        for name in ("acl.h", "acl_base.h", "acl_rt.h"):
            (folder / "include" / "acl" / name).write_text(f'#error "CANN\'s {name}"\n')
        if runtime:
            for library in runtime.glob("*.so"):
                (folder / "lib64" / library.name).symlink_to(library)
            for name in ("runtime", "register"):
                subprocess.run(
                    ["g++", "-shared", "-x", "c++", "/dev/null", "-o",
                     folder / "lib64" / f"lib{name}.so"], check=True
                )  # fmt: skip
            subprocess.run([self.bisheng, "--runtime"], check=True, stdout=subprocess.DEVNULL)
            (folder / "commands").unlink()
        else:
            (folder / "lib64" / "libascendcl.so").touch()

    def commands(self) -> list[list[str]]:
        """The compiler's command lines so far."""
        log = self.folder / "commands"
        lines = log.read_text().splitlines() if log.exists() else []
        return [json.loads(line)["arguments"] for line in lines]
