"""Hands the one CMake + Ninja build to setuptools. Flags and sources are CMakeLists.txt's."""

import filecmp
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


HOOK = '''\
"""Written by npu_rope's setup.py for an editable installation: the checkout's own module."""

import importlib.util
import logging
import os
import sys

if os.path.exists({path!r}):
    _spec = importlib.util.spec_from_file_location({name!r}, {path!r})
    sys.modules[__name__] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])
else:

    def install() -> None:
        logging.getLogger({name!r}).warning(
            "npu_rope is installed from a checkout that is no longer in %s: install it again from "
            "where it is, or `pip uninstall npu_rope`", os.path.dirname({path!r})
        )
'''


class CMakeBuild(build_ext):
    """Builds every extension by one CMake run, in a folder that the next build finds again."""

    def run(self) -> None:
        folder = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}"
        options = [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release"]
        options += os.environ.get("NPU_ROPE_CMAKE_ARGS", "").split()
        configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *options]
        if not self._tools_remain(folder):
            configure.append("--fresh")
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", folder], check=True)
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            self._place(folder / Path(self.get_ext_filename(extension.name)).name, target)
            # Built only where CANN and torch_npu are; those of an earlier build are not kept.
            for library in ("libnpu_rope_npu.so", "libnpu_rope_kernels.so"):
                self._place(folder / library, target.with_name(library))
        if self.editable_mode:
            self._place_hook()

    def _place_hook(self) -> None:
        """Of an editable installation, the module that `import torch` loads in every process, with
        the environment's packages: it is still there when the checkout is not."""
        hook = ROOT / "python" / "npu_rope_autoload.py"
        site_packages = Path(self.get_finalized_command("install").install_lib)
        (site_packages / hook.name).write_text(HOOK.format(name=hook.stem, path=str(hook)))

    @staticmethod
    def _place(built: Path, target: Path) -> None:
        """Makes target what was built, or nothing where nothing was built."""
        if built.exists() and target.exists() and filecmp.cmp(built, target, shallow=False):
            return
        target.unlink(missing_ok=True)  # a process that has the old file mapped keeps it
        if built.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(built, target)

    @staticmethod
    def _tools_remain(folder: Path) -> bool:
        """Whether the last build's ninja is still there: an isolated build's own is not."""
        cache = folder / "CMakeCache.txt"
        lines = cache.read_text().splitlines() if cache.exists() else []
        tools = [line for line in lines if line.startswith("CMAKE_MAKE_PROGRAM:")]
        return all(Path(line.split("=", 1)[1]).exists() for line in tools)


setup(ext_modules=[Extension("npu_rope._C", [])], cmdclass={"build_ext": CMakeBuild})
