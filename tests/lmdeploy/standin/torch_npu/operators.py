"""The NPU's operators that the tested models reach through dlinfer, attention apart.

Plain definitions, computed in float32 and rounded once; arguments as dlinfer passes them.
"""

import torch
from torch import Tensor

npu = torch.library.Library("npu", "DEF")


def defines(schema: str):  # noqa: ANN201
    def register(function):  # noqa: ANN001, ANN202
        npu.define(schema)
        npu.impl(schema.split("(")[0], function, "CompositeExplicitAutograd")
        return function

    return register


@defines(
    "npu_apply_rotary_pos_emb(Tensor query, Tensor key, Tensor cos, Tensor sin, str layout)"
    " -> (Tensor, Tensor)",
)
def npu_apply_rotary_pos_emb(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, layout: str
) -> tuple[Tensor, Tensor]:
    """Half style, over query and key, whatever the schema says; returns them, as CANN's does."""
    if {query.dtype, key.dtype, cos.dtype, sin.dtype} != {query.dtype}:
        raise RuntimeError(f"x1 not implemented for {cos.dtype}, query has {query.dtype}")
    if layout != "BSND" or query.shape[-1] != 128 or cos.shape[-1] != 128:
        raise RuntimeError(f"expected BSND and head_dim 128, got {layout}, {list(query.shape)}")
    for x in (query, key):
        x1, x2 = x.float().chunk(2, -1)
        x.copy_(x.float() * cos.float() + torch.cat((-x2, x1), -1) * sin.float())
    return query, key


@defines("npu_rms_norm(Tensor x, Tensor gamma, float epsilon) -> (Tensor, Tensor)")
def npu_rms_norm(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
    return ((x.float() * rstd) * gamma.float()).to(x.dtype), rstd


@defines(
    "npu_add_rms_norm(Tensor x1, Tensor x2, Tensor gamma, float epsilon)"
    " -> (Tensor, Tensor, Tensor)",
)
def npu_add_rms_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    total = x1 + x2
    return *npu_rms_norm(total, gamma, epsilon), total


@defines("npu_swiglu(Tensor x, int dim) -> Tensor")
def npu_swiglu(x: Tensor, dim: int) -> Tensor:
    gate, up = x.chunk(2, dim)
    return torch.nn.functional.silu(gate) * up
