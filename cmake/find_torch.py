"""Prints the folder of the environment's torch, without importing it.

A build that pip isolates does not see the environment's packages on its path, but runs its Python:
the environment's folders are asked for by name.
"""

import importlib.util
import os
import site
import sys
import sysconfig
from pathlib import Path

MISSING = """\
npu_rope: no torch found to build against. Looked in:
{places}
Install torch first (2.6 or newer), then build in the same environment:
    pip install torch
    pip install --no-build-isolation .
or name its folder: NPU_ROPE_TORCH_DIR=.../site-packages/torch pip install ."""


def candidates() -> list[Path]:
    if named := os.environ.get("NPU_ROPE_TORCH_DIR"):
        return [Path(named)]
    spec = importlib.util.find_spec("torch")
    found = [Path(place) for place in spec.submodule_search_locations or []] if spec else []
    folders = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    config = Path(sys.prefix, "pyvenv.cfg")
    sees_base = not config.exists() or "include-system-site-packages = true" in config.read_text()
    if sees_base:
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        folders += [site.getusersitepackages(), sysconfig.get_path("platlib", vars=base)]
        folders += site.getsitepackages([sys.base_prefix])
    return [*found, *(Path(folder, "torch") for folder in dict.fromkeys(folders))]


def main() -> None:
    places = candidates()
    for place in places:
        if (place / "include" / "ATen").is_dir() and (place / "lib").is_dir():
            print(place)
            return
    sys.exit(MISSING.format(places="\n".join(f"    {place}" for place in places)))


if __name__ == "__main__":
    main()
