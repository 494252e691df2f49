"""Prints the chip of this machine as CANN names it, or ends with a message and 1."""

from __future__ import annotations

import ctypes
import sys


def main() -> str | None:
    """What is wrong, or nothing."""
    try:
        runtime = ctypes.CDLL("libascendcl.so")
    except OSError as error:
        return f"npu_rope: {error}"
    runtime.aclrtGetSocName.restype = ctypes.c_char_p
    name = runtime.aclrtGetSocName()
    if not name:
        return "npu_rope: aclrtGetSocName names no chip: is an NPU here?"
    print(name.decode())
    return None


if __name__ == "__main__":
    sys.exit(main())
