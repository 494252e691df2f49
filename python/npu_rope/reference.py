"""The operator's definition in plain torch: what every kernel must equal bit for bit.

Slow, and reads like the equations. Each torch operation on float32 tensors rounds once, so the
roundings are those of the definition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Where an axis of q and k is, by layout: (batch, token, head).
AXES = {"TND": (None, 0, 1), "BSND": (0, 1, 2), "BNSD": (0, 2, 1), "SBND": (1, 0, 2)}


def _beside_rows(table: Tensor, layout: str) -> Tensor:
    """The table with q's axes, that of the heads being 1."""
    _, token, head = AXES[layout]
    rank = len(layout)
    if table.dim() == 2 and rank == 4:
        shape = [1, 1, 1, table.shape[-1]]
        shape[token] = table.shape[0]
        return table.reshape(shape)
    return table if table.dim() == rank else table.unsqueeze(head)


def _split(rows: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """First and second partners of all pairs."""
    return (rows[..., ::2], rows[..., 1::2]) if interleaved else rows.chunk(2, dim=-1)


def _join(first: Tensor, second: Tensor, interleaved: bool) -> Tensor:
    return (
        torch.stack((first, second), -1).flatten(-2)
        if interleaved
        else torch.cat((first, second), -1)
    )


def _rotate(
    rows: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    layout: str | None,
    rotary_dim: int | None,
    rotary_offset: int,
    interleaved: bool,
    deinterleave: bool,
    cast_tables: bool,
    round_each: bool,
    transpose: bool,
) -> Tensor:
    layout = layout or ("TND" if rows.dim() == 3 else "BSND")
    rotary_dim = cos.shape[-1] if rotary_dim is None else rotary_dim
    compute = torch.float64 if rows.dtype == torch.float64 else torch.float32
    order_in, order_out = interleaved, interleaved and not deinterleave

    def entries(table: Tensor) -> tuple[Tensor, Tensor]:
        table = table.to(rows.dtype) if cast_tables else table
        table = _beside_rows(table.to(compute), layout)
        half = table.shape[-1] != rotary_dim
        return (table, table) if half else _split(table, order_out)

    def product(x: Tensor, entry: Tensor) -> Tensor:
        return (x * entry).to(rows.dtype).to(compute) if round_each else x * entry

    (cos1, cos2), (sin1, sin2) = entries(cos), entries(sin)
    before, slice_, after = rows.split(
        [rotary_offset, rotary_dim, rows.shape[-1] - rotary_offset - rotary_dim], dim=-1
    )
    if not transpose:
        x1, x2 = _split(slice_.to(compute), order_in)
        y1 = product(x1, cos1) - product(x2, sin1)
        y2 = product(x2, cos2) + product(x1, sin2)
        y = _join(y1, y2, order_out)
    else:
        g1, g2 = _split(slice_.to(compute), order_out)
        dx1 = product(g1, cos1) + product(g2, sin2)
        dx2 = product(g2, cos2) - product(g1, sin1)
        y = _join(dx1, dx2, order_in)
    return torch.cat((before, y.to(rows.dtype), after), -1)


def apply(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    layout: str | None = None,
    rotary_dim: int | None = None,
    rotary_offset: int = 0,
    interleaved: bool = False,
    deinterleave: bool = False,
    cast_tables: bool = True,
    round_each: bool = False,
    transpose: bool = False,
) -> tuple[Tensor, Tensor]:
    """What :func:`npu_rope.apply` computes; with ``transpose``, :func:`npu_rope.apply_backward`."""

    def rotate(rows: Tensor) -> Tensor:
        return _rotate(
            rows,
            cos,
            sin,
            layout=layout,
            rotary_dim=rotary_dim,
            rotary_offset=rotary_offset,
            interleaved=interleaved,
            deinterleave=deinterleave,
            cast_tables=cast_tables,
            round_each=round_each,
            transpose=transpose,
        )

    return rotate(q), rotate(k)


def _sum_pairwise(values: Tensor) -> Tensor:
    """The sum over the last axis, kept: neighbours first, then neighbouring sums, and so on."""
    while values.shape[-1] > 1:
        if values.shape[-1] % 2:
            values = torch.nn.functional.pad(values, (0, 1))
        values = values[..., ::2] + values[..., 1::2]
    return values


def rms_norm(rows: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0) -> Tensor:
    """The rows as norm_apply rotates them: in float32 (float64 for float64), not rounded back."""
    compute = torch.float64 if rows.dtype == torch.float64 else torch.float32
    x = rows.to(compute)
    mean = _sum_pairwise(x * x) * (1 / x.shape[-1])
    # torch's square root may be off by the last bit; of float64 rounded to float32 it is not.
    root = (mean + eps).double().sqrt().to(compute)
    return x * (1 / root) * (weight_offset + weight.to(compute))


def norm_apply(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    weight_offset: float = 0.0,
    **options: Any,  # noqa: ANN401  as of apply
) -> tuple[Tensor, Tensor]:
    """What :func:`npu_rope.norm_apply` computes."""
    if options.get("cast_tables", True):
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)

    def norm_and_rotate(rows: Tensor, weight: Tensor | None) -> Tensor:
        normed = rows if weight is None else rms_norm(rows, weight, eps, weight_offset)
        if options.get("round_each"):
            normed = normed.to(rows.dtype)
        return apply(normed, normed, cos, sin, **options)[0].to(rows.dtype)

    return norm_and_rotate(q, q_weight), norm_and_rotate(k, k_weight)
