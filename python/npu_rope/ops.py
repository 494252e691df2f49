"""The operator's forms as Python functions: torch.ops.npu_rope's, with signatures and docstrings.

The options, the same for every form, are explained at :func:`apply`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

_ops = torch.ops.npu_rope

# What comes instead of q and k is what goes in: a tensor, or None.
Q = TypeVar("Q", Tensor, None, "Tensor | None")
K = TypeVar("K", Tensor, None, "Tensor | None")


def _given(
    layout: str | None,
    rotary_dim: int | None,
    rotary_offset: int,
    interleaved: bool,
    deinterleave: bool,
    cast_tables: bool,
    round_each: bool,
) -> dict[str, Any]:
    """The options that are not the schema's defaults: the dispatcher takes its time for each."""
    given: dict[str, Any] = {}
    if layout is not None:
        given["layout"] = layout
    if rotary_dim is not None:
        given["rotary_dim"] = rotary_dim
    if rotary_offset != 0:
        given["rotary_offset"] = rotary_offset
    if interleaved:
        given["interleaved"] = interleaved
    if deinterleave:
        given["deinterleave"] = deinterleave
    if not cast_tables:
        given["cast_tables"] = cast_tables
    if round_each:
        given["round_each"] = round_each
    return given


def _explained(error: RuntimeError, **named: Any) -> Exception:  # noqa: ANN401
    """The dispatcher's page about a value that is no tensor, as one line that names it."""
    for name, value in named.items():
        optional = name not in ("cos", "sin")
        if not isinstance(value, Tensor) and not (optional and value is None):
            expected = "a torch.Tensor or None" if optional else "a torch.Tensor"
            return TypeError(f"{name} is of type {type(value).__name__}, expected {expected}")
    return error


def apply(
    q: Q,
    k: K,
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
) -> tuple[Q, K]:
    r"""Rotary position embedding of q and k, in one launch.

    For every token, every head and every pair of the rotated slice

    .. math::
        y_1 = x_1 \cos_1 - x_2 \sin_1 \qquad y_2 = x_2 \cos_2 + x_1 \sin_2

    in float32, each product, sum and difference rounded by itself, with one rounding (to nearest,
    ties to even) to q's dtype at the end: the same bits on every backend, on every run. (Which NaN
    a NaN is, is not promised.)

    Args:
        q: rows of shape ``[tokens, q_heads, head_dim]`` or, 4-D, as ``layout`` says; float16,
            bfloat16 or float32 (on a CPU float64 too, computed in float64). ``head_dim`` is even,
            at most 1024. Any strides; rows whose last axis is dense cost no copy. None where only k
            is to be rotated.
        k: q's dtype, device and sizes, but its own number of heads; or None. Either number of heads
            may be 0.
        cos: the table; float16, bfloat16 or float32 whatever q is. Beside 3-D q: ``[T, W]`` or
            ``[T, 1, W]``. Beside 4-D q: ``[S, W]``; or q's axes without the head axis
            (``[B, S, W]``, for SBND ``[S, B, W]``); or all of q's axes with a head axis of 1. Batch
            and token axes of 1 are broadcast. ``W`` is ``rotary_dim`` (full tables: an entry for
            each element) or ``rotary_dim / 2`` (half tables: entry i serves pair i).
            **Half tables need rotary_dim=**, since nothing else tells them from full ones.
        sin: like cos in shape and dtype.
        layout: ``"TND"`` (default for 3-D), ``"BSND"`` (default for 4-D), ``"BNSD"`` or ``"SBND"``;
            T tokens, B batch, S sequence, N heads, D head_dim.
        rotary_dim: width of the rotated slice. Half tables need it; without it, tables are taken as
            full ones, and rotary_dim is their width.
        rotary_offset: where the rotated slice begins in head_dim. What lies outside passes through.
        interleaved: pairs are (2i, 2i + 1), as in GPT-J and GLM, not (i, i + rotary_dim / 2), as in
            NeoX, Llama and Qwen. Full tables are in the same order.
        deinterleave: only beside interleaved: the rotated pairs are written in half order, first
            every y1, then every y2, as in DeepSeek; full tables are in that output order.
        cast_tables: round the tables to q's dtype before they are used, as a caller who casts them
            does. False keeps float32 tables beside float16 or bfloat16 q as they are, which is more
            exact, most of all at large positions.
        round_each: round each product, sum and difference to q's dtype (nearest even), as eager
            PyTorch in that dtype does: beside cast_tables the very bits of
            ``q * cos + rotate_half(q) * sin``. Less exact than the one rounding at the end; nothing
            changes for float32 and float64.

    Returns:
        The rotated q and k: new contiguous tensors that share memory with nothing, or None for
        None.

    Raises:
        ValueError: a wrong rank, size, device or option; the message says what was expected.
        TypeError: a wrong dtype, or no tensor.

    Differentiable in q, k, cos and sin, any number of times and in both modes; torch.func's
    transforms take it. The definition is the rotary embedding of Su et al., RoFormer (arXiv
    2104.09864), with tables of their own for both partners of a pair; layouts have CANN's names.

    Example::

        >>> q, k = torch.randn(5, 64, 128).bfloat16(), torch.randn(5, 8, 128).bfloat16()
        >>> angles = torch.outer(torch.arange(5.0), 1e6 ** -(torch.arange(64) / 64))
        >>> q, k = npu_rope.apply(q, k, angles.cos(), angles.sin(), rotary_dim=128)
    """
    options = _given(
        layout, rotary_dim, rotary_offset, interleaved, deinterleave, cast_tables, round_each
    )
    try:
        out: tuple[Q, K] = _ops.apply(q, k, cos, sin, **options)
    except RuntimeError as error:
        raise _explained(error, q=q, k=k, cos=cos, sin=sin) from None
    return out


def apply_(
    q: Tensor | None,
    k: Tensor | None,
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
) -> None:
    """:func:`apply`, written over q and k. Allocates nothing.

    Only the rotated slice is touched. q and k may share storage (slices of one packed QKV) but no
    element, and overlap no table. Raises where grad mode is on and an input requires grad.
    """
    options = _given(
        layout, rotary_dim, rotary_offset, interleaved, deinterleave, cast_tables, round_each
    )
    try:
        _ops.apply_(q, k, cos, sin, **options)
    except RuntimeError as error:
        raise _explained(error, q=q, k=k, cos=cos, sin=sin) from None


def apply_out(
    q: Tensor | None,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    q_out: Tensor | None,
    k_out: Tensor | None,
    layout: str | None = None,
    rotary_dim: int | None = None,
    rotary_offset: int = 0,
    interleaved: bool = False,
    deinterleave: bool = False,
    cast_tables: bool = True,
    round_each: bool = False,
) -> None:
    """:func:`apply`, written to tensors of q's and k's exact shape and dtype, of any strides.

    An output is None exactly where its input is. It may be exactly its own input; otherwise it
    overlaps nothing. Raises where grad mode is on and a tensor requires grad. This is
    ``torch.ops.npu_rope.apply.out``.
    """
    options = _given(
        layout, rotary_dim, rotary_offset, interleaved, deinterleave, cast_tables, round_each
    )
    try:
        _ops.apply.out(q, k, cos, sin, **options, q_out=q_out, k_out=k_out)
    except RuntimeError as error:
        raise _explained(error, q=q, k=k, cos=cos, sin=sin, q_out=q_out, k_out=k_out) from None


def apply_backward(
    grad_q: Q,
    grad_k: K,
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
) -> tuple[Q, K]:
    r"""The transposed of :func:`apply`: gradients of its inputs from those of its outputs.

    .. math::
        dx_1 = g_1 \cos_1 + g_2 \sin_2 \qquad dx_2 = g_2 \cos_2 - g_1 \sin_1

    with the same roundings; with ``deinterleave`` it reads half order and writes pairs.
    """
    options = _given(
        layout, rotary_dim, rotary_offset, interleaved, deinterleave, cast_tables, round_each
    )
    try:
        out: tuple[Q, K] = _ops.apply_backward(grad_q, grad_k, cos, sin, **options)
    except RuntimeError as error:
        raise _explained(error, grad_q=grad_q, grad_k=grad_k, cos=cos, sin=sin) from None
    return out


def norm_apply(
    q: Q,
    k: K,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    weight_offset: float = 0.0,
    layout: str | None = None,
    rotary_dim: int | None = None,
    rotary_offset: int = 0,
    interleaved: bool = False,
    deinterleave: bool = False,
    cast_tables: bool = True,
    round_each: bool = False,
) -> tuple[Q, K]:
    r"""RMSNorm of every head of q and k, and the rotary embedding of the result, in one launch.

    Every row x, which is one head of one token, is first multiplied by its factor and by the
    weights,

    .. math::
        x \cdot \frac{1}{\sqrt{\operatorname{mean}(x^2) + \epsilon}}
        \cdot (\text{weight\_offset} + \text{weight}),

    over all of head_dim, what is not rotated too, and then rotated as :func:`apply` does: all of it
    in float32, each operation rounded by itself, with one rounding to q's dtype at the end.
    Squares are added pairwise: neighbours first, then neighbouring sums, and so on.

    Args:
        q, k, cos, sin: as for :func:`apply`, and so are the options below weight_offset; with
            round_each, what is normalized is rounded to q's dtype before it is rotated.
        q_weight: the weights of q's norm, ``[head_dim]``, the same for all heads; float16, bfloat16
            or float32 whatever q is. None where q has no norm: it is only rotated.
        k_weight: the same for k, in q_weight's dtype.
        eps: at least 0. With 0 a row of zeros becomes NaN.
        weight_offset: added to the weights: 1.0 where a model multiplies by (1 + weight), as Gemma
            does.

    Returns:
        As :func:`apply`.

    Raises:
        ValueError, TypeError: as :func:`apply`.

    Differentiable in q, k, the weights, cos and sin, any number of times, in both modes, and under
    torch.func's transforms. The definition is that of Zhang and Sennrich, Root Mean Square Layer
    Normalization (arXiv 1910.07467), a head at a time as in Qwen3 and Gemma-3. docs/norm.md says
    how it compares with what models compute.

    Example::

        >>> q, k = torch.randn(5, 64, 128).bfloat16(), torch.randn(5, 8, 128).bfloat16()
        >>> q_weight, k_weight = torch.rand(128).bfloat16(), torch.rand(128).bfloat16()
        >>> angles = torch.outer(torch.arange(5.0), 1e6 ** -(torch.arange(64) / 64))
        >>> q, k = npu_rope.norm_apply(
        ...     q, k, q_weight, k_weight, angles.cos(), angles.sin(), eps=1e-6, rotary_dim=128
        ... )
    """
    options = _given(
        layout, rotary_dim, rotary_offset, interleaved, deinterleave, cast_tables, round_each
    )
    options["eps"] = eps
    if weight_offset != 0:
        options["weight_offset"] = weight_offset
    tensors = q, k, q_weight, k_weight, cos, sin
    try:
        out: tuple[Q, K] = _ops.norm_apply(*tensors, **options)
    except RuntimeError as error:
        named = zip(("q", "k", "q_weight", "k_weight", "cos", "sin"), tensors, strict=True)
        raise _explained(error, **dict(named)) from None
    return out


def norm_apply_(
    q: Tensor | None,
    k: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    weight_offset: float = 0.0,
    layout: str | None = None,
    rotary_dim: int | None = None,
    rotary_offset: int = 0,
    interleaved: bool = False,
    deinterleave: bool = False,
    cast_tables: bool = True,
    round_each: bool = False,
) -> None:
    """:func:`norm_apply`, written over q and k. Allocates nothing.

    What has a norm is written whole. Overlaps as for :func:`apply_`. Raises where grad mode is on
    and an input requires grad.
    """
    options = _given(
        layout, rotary_dim, rotary_offset, interleaved, deinterleave, cast_tables, round_each
    )
    options["eps"] = eps
    if weight_offset != 0:
        options["weight_offset"] = weight_offset
    tensors = q, k, q_weight, k_weight, cos, sin
    try:
        _ops.norm_apply_(*tensors, **options)
    except RuntimeError as error:
        named = zip(("q", "k", "q_weight", "k_weight", "cos", "sin"), tensors, strict=True)
        raise _explained(error, **dict(named)) from None


def norm_apply_out(
    q: Tensor | None,
    k: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    weight_offset: float = 0.0,
    layout: str | None = None,
    rotary_dim: int | None = None,
    rotary_offset: int = 0,
    interleaved: bool = False,
    deinterleave: bool = False,
    cast_tables: bool = True,
    round_each: bool = False,
    q_out: Tensor | None,
    k_out: Tensor | None,
) -> None:
    """:func:`norm_apply`, written to q_out and k_out, which are as for :func:`apply_out`.

    This is ``torch.ops.npu_rope.norm_apply.out``.
    """
    options = _given(
        layout, rotary_dim, rotary_offset, interleaved, deinterleave, cast_tables, round_each
    )
    options["eps"] = eps
    if weight_offset != 0:
        options["weight_offset"] = weight_offset
    tensors = q, k, q_weight, k_weight, cos, sin
    try:
        _ops.norm_apply.out(*tensors, **options, q_out=q_out, k_out=k_out)
    except RuntimeError as error:
        named = zip(("q", "k", "q_weight", "k_weight", "cos", "sin"), tensors, strict=True)
        raise _explained(error, **dict(named)) from None
