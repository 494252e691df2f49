"""Which call of the operator does what a model's own rotary function does.

It is found by running both on small random tensors of the call's dtypes, ranks and widths: the
function is what it does, not what it is called. Tables are random too, so that a function that
reads other entries of them, or with another sign, is told apart.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

# (q, k or None, cos, sin, unsqueeze_dim) -> the rotated q and k, or q alone
Function = Callable[[Tensor, Tensor | None, Tensor, Tensor, int], Any]

Inputs = tuple[Tensor, Tensor | None, Tensor, Tensor]

# Every axis of another size: a layout that is not the function's does not broadcast by chance.
_BATCH, _TOKENS, _Q_HEADS, _K_HEADS = 2, 5, 3, 4

NOT_RUN = "it does not run on such tensors"

# What a wrong guess of the layout or of the options raises, in the function or in the operator.
REFUSALS = (RuntimeError, IndexError, ValueError, TypeError, AssertionError)


class Spec(NamedTuple):
    """What is known of a tensor before its token and head counts are."""

    dtype: torch.dtype
    rank: int
    width: int


class Call(NamedTuple):
    """What the form of a call depends on."""

    q: Spec
    k: Spec | None
    cos: Spec
    sin: Spec
    unsqueeze_dim: int


@dataclass(frozen=True)
class Form:
    """A call of the operator: apply(q, k, cos[..., :columns], sin[..., :columns], ...)."""

    layout: str
    columns: int
    rotary_dim: int
    rotary_offset: int = 0
    interleaved: bool = False
    deinterleave: bool = False
    cast_tables: bool = False
    round_each: bool = False
    inverse: bool = False  # the function turns the other way: sin is negated first
    dtype: torch.dtype | None = (
        None  # the function's result has the tables' dtype: q and k go first
    )
    single: bool = False  # the function returns q alone
    in_training: bool = True  # the gradients are those of autograd through the function


# The weights of q's norm and of k's, eps and weight_offset. Plain, for the tracer.
Norm = tuple[Tensor, Tensor, float, float]


# Functions, not methods: torch.compile traces no method of what it was given as a constant.
def apply(
    form: Form, q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, norm: Norm | None = None
) -> Tensor | tuple[Tensor, Tensor | None]:
    if form.columns != cos.shape[-1]:
        cos, sin = cos[..., : form.columns], sin[..., : form.columns]
    if form.inverse:
        sin = -sin
    if form.dtype is not None:
        q, k = q.to(form.dtype), k if k is None else k.to(form.dtype)
    options = {
        "layout": form.layout,
        "rotary_dim": form.rotary_dim,
        "rotary_offset": form.rotary_offset,
        "interleaved": form.interleaved,
        "deinterleave": form.deinterleave,
        "cast_tables": form.cast_tables,
        "round_each": form.round_each,
    }
    if norm is None:
        turned, key = torch.ops.npu_rope.apply(q, k, cos, sin, **options)
    else:
        q_weight, k_weight, eps, offset = norm
        turned, key = torch.ops.npu_rope.norm_apply(
            q, k, q_weight, k_weight, cos, sin, eps=eps, weight_offset=offset, **options
        )
    return turned if form.single else (turned, key)


def fits(form: Form, q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor) -> bool:
    """Whether the tables have a row for each token: torch would broadcast in more cases."""
    layout = form.layout.replace("T", "S")
    heads, tokens = layout.index("N"), layout.index("S")
    axes = (tokens, layout.index("B")) if "B" in layout else (tokens,)
    if cos.shape != sin.shape:
        return False
    for axis in axes:
        if k is not None and k.shape[axis] != q.shape[axis]:
            return False
        if cos.dim() == 2:  # tokens alone
            axis_of_cos = 0 if axis == tokens else None
        elif cos.dim() == len(layout) - 1:  # no head axis
            axis_of_cos = axis - (axis > heads)
        else:
            axis_of_cos = axis
        if axis_of_cos is None or cos.shape[axis_of_cos] == q.shape[axis]:
            continue
        if axis == tokens or cos.shape[axis_of_cos] != 1:  # one table serves every batch
            return False
    return True


# Where frames are being compiled, those of this search are not.
@torch.compiler.disable
def find(function: Function, call: Call, *, keep_bits: bool) -> Form | str:
    """The form of the operator that replaces the function in such calls, or why none does.

    With keep_bits its results are bit for bit the function's; without, the operator computes in
    float32 from the tables as they are, and rounds once.
    """
    with undisturbed():
        return _find(function, call, keep_bits)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """By what the model may be under: inference mode, autocast, a default device or a tracer."""
    with (
        _disable_current_modes(),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        yield


def _find(function: Function, call: Call, keep_bits: bool) -> Form | str:
    reason = NOT_RUN
    for layout in ("TND",) if call.q.rank == 3 else ("BNSD", "BSND", "SBND"):
        inputs = _inputs(layout, call)
        if inputs is None:
            continue
        try:
            own = function(*inputs, call.unsqueeze_dim)
        except REFUSALS:
            continue
        if (outputs := _outputs(own, inputs)) is None:
            reason = "it returns something else than q and k rotated"
            continue
        dtype = None if outputs[0].dtype is call.q.dtype else outputs[0].dtype
        for form in _candidates(layout, call):
            form = replace(form, dtype=dtype, single=isinstance(own, Tensor))
            if not _near(form, function, call):
                continue
            if not keep_bits:  # nothing was promised that a gradient could break
                return form
            return _with_same_bits(form, function, call) or "the operator rounds otherwise"
        reason = "the operator has no such rotation"
    return reason


def _candidates(layout: str, call: Call) -> Iterator[Form]:
    head_dim, width = call.q.width, call.cos.width
    styles = ({}, {"interleaved": True}, {"interleaved": True, "deinterleave": True})
    tables = (  # columns, rotary_dim
        (width, width),  # full tables
        (width // 2, width),  # full tables of which the function reads the first half
        (width, 2 * width),  # half tables
    )
    for style, (columns, rotary_dim), inverse in itertools.product(styles, tables, (False, True)):
        for offset in sorted({0, head_dim - rotary_dim}):
            if offset >= 0 and rotary_dim % 2 == 0:
                yield Form(layout, columns, rotary_dim, offset, **style, inverse=inverse)


def _near(form: Form, function: Function, call: Call) -> bool:
    """Whether the form is that of the function, but for roundings."""
    # Any two ways of rounding are this near; another rotation is off by the size of the values.
    near = 32 * torch.finfo(call.q.dtype).eps
    for batch_of_tables in (_BATCH, 1):
        inputs = _inputs(form.layout, call, batch_of_tables=batch_of_tables)
        own = _outputs(function(*inputs, call.unsqueeze_dim), inputs)
        try:
            ours = _outputs(apply(form, *inputs), inputs)
        except REFUSALS:
            return False
        if not all(
            one.dtype is other.dtype and torch.allclose(one, other, rtol=0, atol=near)
            for one, other in zip(own, ours, strict=True)
        ):
            return False
    return True


def _with_same_bits(form: Form, function: Function, call: Call) -> Form | None:
    """The form with the arithmetic whose bits are the function's."""
    for exact in (form, replace(form, cast_tables=True, round_each=True)):
        same_gradients = True
        variants = [{}, {"batch_of_tables": 1}]
        if torch.float32 in (call.cos.dtype, call.sin.dtype) and call.q.dtype.itemsize == 2:
            variants.append({"near_ties": True})
        for variant in variants:
            inputs = _inputs(form.layout, call, **variant)
            own, own_gradients = _run(function, (*inputs, call.unsqueeze_dim))
            try:
                ours, gradients = _run(functools.partial(apply, exact), inputs)
            except REFUSALS:
                break
            if not all(map(torch.equal, own, ours)):
                break
            same_gradients &= all(map(torch.equal, own_gradients, gradients))
        else:
            return replace(exact, in_training=same_gradients)
    return None


def _run(
    rotate: Callable[..., Any], arguments: tuple
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The rotated rows, and the gradients of q and k for some gradients of these."""
    q, k, *rest = arguments
    rows = [x.requires_grad_() for x in (q, k) if x is not None]
    outputs = _outputs(rotate(q, k, *rest), arguments)
    generator = torch.Generator("cpu").manual_seed(7)
    incoming = [
        torch.randn(y.shape, generator=generator, device="cpu", dtype=torch.float32).to(y.dtype)
        for y in outputs
    ]
    return outputs, torch.autograd.grad(outputs, rows, incoming)


def _inputs(
    layout: str, call: Call, *, batch_of_tables: int = _BATCH, near_ties: bool = False
) -> Inputs | None:
    """Random q, k, cos, sin in this layout; None where tables of that rank cannot belong to it.

    near_ties: for 16-bit q beside float32 tables, many results lie between two numbers of q's dtype
    by less than float32 resolves: whoever computes in float64 or fuses products rounds otherwise.
    (Products of two 16-bit numbers are exact in float32.)
    """
    sizes = {"B": _BATCH, "S": _TOKENS, "T": _TOKENS}
    generator = torch.Generator("cpu").manual_seed(5)

    def values(shape: list[int], dtype: torch.dtype) -> Tensor:
        x = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
        if near_ties:
            tie = 1 + torch.finfo(call.q.dtype).eps / 2
            large = torch.tensor(1.5 if dtype is call.q.dtype else tie / 1.5, device="cpu")
            jitter = torch.finfo(torch.float32).eps * x.sign() * (x.abs() > 1)
            x = torch.where(x.abs() > 0.7, large * x.sign() + jitter, x * 2**-12)
        return x.to(dtype)

    def rows(spec: Spec, heads: int) -> Tensor:
        return values([{"N": heads, "D": spec.width, **sizes}[axis] for axis in layout], spec.dtype)

    def table(spec: Spec) -> Tensor | None:
        axes = {
            len(layout): layout.replace("N", "1"),
            len(layout) - 1: layout.replace("N", ""),
            2: layout.replace("N", "").replace("B", ""),
        }.get(spec.rank)
        if axes is None:
            return None
        here = {**sizes, "B": batch_of_tables, "1": 1, "D": spec.width}
        return values([here[axis] for axis in axes], spec.dtype)

    cos, sin = table(call.cos), table(call.sin)
    if cos is None or sin is None:
        return None
    k = None if call.k is None else rows(call.k, _K_HEADS)
    return rows(call.q, _Q_HEADS), k, cos, sin


def _outputs(result: Any, inputs: Inputs) -> tuple[Tensor, ...] | None:  # noqa: ANN401
    """The rotated q and k, or q alone, where the result can be these."""
    rows = [x for x in inputs[:2] if x is not None]
    tensors = (result,) if isinstance(result, Tensor) else result
    if not isinstance(tensors, tuple):
        return None
    if len(rows) == 1 and len(tensors) == 2 and tensors[1] is None:
        tensors = tensors[:1]
    if len(tensors) != len(rows) or not all(isinstance(y, Tensor) for y in tensors):
        return None
    return tensors if all(y.shape == x.shape for x, y in zip(rows, tensors, strict=True)) else None
