"""Hands the one CMake + Ninja build to setuptools. Flags and sources are CMakeLists.txt's."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Builds every extension by one CMake run, in a folder that the next build finds again."""

    def run(self) -> None:
        folder = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}"
        options = [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release"]
        options += os.environ.get("NPU_ROPE_CMAKE_ARGS", "").split()
        configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *options]
        # A CMake in an isolated build's own folder is gone the next time: start its cache afresh.
        if (folder / "CMakeCache.txt").exists():
            configure.append("--fresh") if not self._cache_is_usable(folder) else None
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", folder], check=True)
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / Path(self.get_ext_filename(extension.name)).name, target)

    @staticmethod
    def _cache_is_usable(folder: Path) -> bool:
        prefix = "CMAKE_MAKE_PROGRAM:"
        for line in (folder / "CMakeCache.txt").read_text().splitlines():
            if line.startswith(prefix):
                return Path(line.split("=", 1)[1]).exists()
        return False


setup(ext_modules=[Extension("npu_rope._C", [])], cmdclass={"build_ext": CMakeBuild})
