"""npu_rope behind the interface that CANN-Bench's task `apply_rotary_pos_emb` asks for."""

from __future__ import annotations

import npu_rope  # noqa: F401  registers the operator
import torch
from torch import Tensor

LAYOUTS = ("BSND", "BNSD")


def apply_rotary_pos_emb(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: int = 0,
    rotaryMode: str = "half",
) -> tuple[Tensor, Tensor]:
    """query and key rotated by half tables [S, D/2] or [B, S, D/2], one launch, out of place.

    Args:
        layout: 0 for [B, S, N, D], 1 for [B, N, S, D].
        rotaryMode: "half" pairs i with i + D/2, "interleaved" 2i with 2i + 1.
    """
    if layout not in (0, 1):
        raise ValueError(f"layout is {layout}, expected 0 (BSND) or 1 (BNSD)")
    if rotaryMode not in ("half", "interleaved"):
        raise ValueError(f"rotaryMode is '{rotaryMode}', expected 'half' or 'interleaved'")
    return torch.ops.npu_rope.apply(
        query,
        key,
        cos,
        sin,
        layout=LAYOUTS[layout],
        rotary_dim=query.shape[-1],
        interleaved=rotaryMode == "interleaved",
    )
