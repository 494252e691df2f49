"""Loads the operators before any test, so that a file may use torch.ops.npu_rope alone."""

import npu_rope  # noqa: F401
