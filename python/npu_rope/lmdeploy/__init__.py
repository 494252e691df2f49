"""The drop-in for LMDeploy's Ascend backend: one launch in place of its default rotary chain.

Nothing has to be called: `import torch` installs an import hook, and LMDeploy's layers, as they are
imported, run npu_rope's operator.

    rotate.py   what is rotated, and how: each call of LMDeploy's as one launch
    patch.py    how that gets into LMDeploy: every patched name in one table, PATCHES
                (npu_rope/source.py replaces statements of a method, where they are as expected)
    report.py   calls served and left, versions, what doctor shows

What the operator's checks refuse goes to LMDeploy's own code, call by call, as does everything in
dlinfer's graph mode. Whatever a launch raises reaches the caller, as it would without us.
"""

from npu_rope.lmdeploy.patch import (
    PATCHES,
    SWITCHES,
    disable,
    enable,
    is_active,
    patch_what_is_loaded,
)
from npu_rope.lmdeploy.report import TESTED, status

__all__ = [
    "PATCHES",
    "SWITCHES",
    "TESTED",
    "disable",
    "enable",
    "is_active",
    "patch_what_is_loaded",
    "status",
]
