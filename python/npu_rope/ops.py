"""The operator's public functions: thin names over ``torch.ops.npu_rope``.

Everything is defined and checked in C++ (csrc/ops.cpp, csrc/rope/), so that a call from here and a
call of ``torch.ops.npu_rope.apply`` are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ops = torch.ops.npu_rope


class Options(TypedDict, total=False):
    """The keyword arguments that every form of the operator takes."""

    layout: str | None
    """``"TND"`` (default for 3-D), ``"BSND"`` (default for 4-D), ``"BNSD"`` or ``"SBND"``;
    T tokens, B batch, S sequence, N heads, D head_dim."""
    rotary_dim: int | None
    """Width of the rotated slice. Half tables need it; without it, tables are taken as full ones,
    and rotary_dim is their width."""
    rotary_offset: int
    """Where the rotated slice begins in head_dim (default 0). What lies outside passes through."""
    interleaved: bool
    """Pairs are (2i, 2i + 1), as in GPT-J and GLM, not (i, i + rotary_dim / 2), as in NeoX, Llama
    and Qwen. Full tables are in the same order. Default False."""
    deinterleave: bool
    """Only beside interleaved: the rotated pairs are written in half order, first every y1, then
    every y2, as in DeepSeek; full tables are in that output order. Default False."""
    cast_tables: bool
    """Round the tables to q's dtype before they are used, as a caller who casts them does
    (default). False keeps float32 tables beside float16 or bfloat16 q as they are, which is more
    exact, most of all at large positions."""
    round_each: bool
    """Round each product, sum and difference to q's dtype (nearest even), as eager PyTorch in that
    dtype does: with cast_tables, the very bits of ``q * cos + rotate_half(q) * sin``. Less exact
    than one rounding at the end (default); nothing changes for float32 and float64."""


def apply(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **options: Unpack[Options]
) -> tuple[Tensor, Tensor]:
    r"""Rotary position embedding of q and k, in one launch.

    For every token, every head and every pair of the rotated slice

    .. math::
        y_1 = x_1 \cos_1 - x_2 \sin_1 \qquad y_2 = x_2 \cos_2 + x_1 \sin_2

    in float32, each product, sum and difference rounded by itself, with one rounding (to nearest,
    ties to even) to q's dtype at the end: the same bits on every backend, on every run.

    Args:
        q: rows of shape ``[tokens, q_heads, head_dim]`` or, 4-D, as ``layout`` says; float16,
            bfloat16 or float32 (on a CPU float64 too, computed in float64). ``head_dim`` is even,
            at most 1024. Any strides; rows whose last axis is dense cost no copy.
        k: q's dtype, device and sizes, but its own number of heads. Either number may be 0.
        cos: the table; float16, bfloat16 or float32 whatever q is. Beside 3-D q: ``[T, W]`` or
            ``[T, 1, W]``. Beside 4-D q: ``[S, W]``; or q's axes without the head axis
            (``[B, S, W]``, for SBND ``[S, B, W]``); or all of q's axes with a head axis of 1. Batch
            and token axes of 1 are broadcast. ``W`` is ``rotary_dim`` (full tables: an entry for
            each element) or ``rotary_dim / 2`` (half tables: entry i serves pair i).
            **Half tables need rotary_dim=**, since nothing else tells them from full ones.
        sin: like cos in shape and dtype.
        **options: see :class:`Options`.

    Returns:
        The rotated q and k: new contiguous tensors that share memory with nothing.

    Raises:
        ValueError: a wrong rank, size, device or option; the message says what was expected.
        TypeError: a wrong dtype.

    Differentiable in q, k, cos and sin, any number of times. The definition is the rotary embedding
    of Su et al., RoFormer (arXiv 2104.09864), with tables of their own for both partners of a pair;
    layouts have CANN's names.

    Example::

        >>> q, k = torch.randn(5, 64, 128).bfloat16(), torch.randn(5, 8, 128).bfloat16()
        >>> angles = torch.outer(torch.arange(5.0), 1e6 ** -(torch.arange(64) / 64))
        >>> q, k = npu_rope.apply(q, k, angles.cos(), angles.sin(), rotary_dim=128)
    """
    return _ops.apply(q, k, cos, sin, **options)


def apply_(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **options: Unpack[Options]) -> None:
    """:func:`apply`, written over q and k. Allocates nothing.

    Only the rotated slice is touched. q and k may share storage (slices of one packed QKV) but no
    element, and overlap no table. Raises where grad mode is on and an input requires grad.
    """
    _ops.apply_(q, k, cos, sin, **options)


def apply_out(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    q_out: Tensor,
    k_out: Tensor,
    **options: Unpack[Options],
) -> None:
    """:func:`apply`, written to tensors of q's and k's exact shape and dtype, of any strides.

    An output may be exactly its own input; otherwise it overlaps nothing. Raises where grad mode is
    on and a tensor requires grad. This is ``torch.ops.npu_rope.apply.out``.
    """
    _ops.apply.out(q, k, cos, sin, **options, q_out=q_out, k_out=k_out)


def apply_backward(
    grad_q: Tensor, grad_k: Tensor, cos: Tensor, sin: Tensor, **options: Unpack[Options]
) -> tuple[Tensor, Tensor]:
    r"""The transposed of :func:`apply`: gradients of its inputs from those of its outputs.

    .. math::
        dx_1 = g_1 \cos_1 + g_2 \sin_2 \qquad dx_2 = g_2 \cos_2 - g_1 \sin_1

    with the same roundings; with ``deinterleave`` it reads half order and writes pairs.
    """
    return _ops.apply_backward(grad_q, grad_k, cos, sin, **options)
