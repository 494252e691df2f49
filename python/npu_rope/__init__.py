"""Rotary position embedding for Ascend NPUs as one fused PyTorch operator.

Importing this registers ``torch.ops.npu_rope.apply``, ``apply_``, ``apply.out`` and
``apply_backward``, and ``norm_apply``, ``norm_apply_`` and ``norm_apply.out``.
"""

from __future__ import annotations

import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING

from npu_rope._version import __version__

if _TYPE_CHECKING:  # what _load() does, for type checkers and editors
    from npu_rope import reference, simulator
    from npu_rope.ops import apply, apply_, apply_backward, apply_out

__all__ = [
    "__version__",
    "apply",
    "apply_",
    "apply_backward",
    "apply_out",
    "norm_apply",
    "norm_apply_",
    "norm_apply_out",
    "reference",
    "simulator",
]


def _load() -> None:
    import torch

    try:
        from npu_rope import _C  # noqa: F401  registers the operators
    except ImportError as error:
        raise ImportError(
            f"npu_rope's compiled part does not load beside torch {torch.__version__}: {error}. "
            "It is built for one version of torch: reinstall npu_rope with "
            "`pip install --no-build-isolation --force-reinstall --no-deps`, in this environment."
        ) from error
    from npu_rope import ops, reference, simulator, vmap  # noqa: F401  registers its rules

    globals().update(
        apply=ops.apply,
        apply_=ops.apply_,
        apply_out=ops.apply_out,
        apply_backward=ops.apply_backward,
        norm_apply=ops.norm_apply,
        norm_apply_=ops.norm_apply_,
        norm_apply_out=ops.norm_apply_out,
        reference=reference,
        simulator=simulator,
    )


# `python -m npu_rope doctor` has to run where torch does not load: its command line calls _load
# itself. argv[0] is "-m" while Python looks for the module that it was told to run.
_is_command_line = _sys.argv[:1] == ["-m"] and {"npu_rope", "-mnpu_rope"} & {*_sys.orig_argv}
if not _is_command_line:
    _load()
