"""Derivatives, fake kernels, versions, torch.compile."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable

import npu_rope
import pytest
import torch
import torch._dynamo.testing
from samples import STYLES, Sample, samples
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

rope = torch.ops.npu_rope

DOUBLE = [
    Sample(tokens=2, q_heads=2, k_heads=1, style=style, half_tables=half, **more)
    for style in STYLES
    for half in (False, True)
    for more in (
        {"head_dim": 10, "rotary_dim": 6, "rotary_offset": 2},
        {"head_dim": 4, "layout": "BNSD", "batch": 2, "broadcast": "B", "table_rank": 3},
        {"head_dim": 4, "layout": "SBND", "batch": 2, "broadcast": "S", "table_rank": 4},
        {"head_dim": 4, "layout": "BSND", "batch": 2, "table_rank": 2},
    )
] + [Sample(tokens=2, q_heads=0, head_dim=4), Sample(tokens=2, broadcast="S", table_rank=3)]


def double(sample: Sample) -> tuple[Tensor, ...]:
    sample = dataclasses.replace(sample, dtype=torch.float64, table_dtype=torch.float64)
    return tuple(t.clone().requires_grad_() for t in sample.tensors())


@pytest.mark.parametrize("sample", DOUBLE, ids=str)
def test_first_and_second_derivatives(sample: Sample) -> None:
    for op in (rope.apply, rope.apply_backward):
        inputs = double(sample)
        assert torch.autograd.gradcheck(lambda *t, op=op: op(*t, **sample.options), inputs)
        assert torch.autograd.gradgradcheck(lambda *t, op=op: op(*t, **sample.options), inputs)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_gradients_of_rows_are_apply_backward(style: str, dtype: torch.dtype) -> None:
    sample = Sample(style=style, dtype=dtype, head_dim=24, rotary_dim=16, rotary_offset=4)
    q, k, cos, sin = sample.tensors()
    q.requires_grad_()
    q_out, k_out = rope.apply(q, k, cos, sin, **sample.options)
    assert q_out.requires_grad and k_out.requires_grad
    grads = torch.randn_like(q_out), torch.zeros_like(k_out)
    q_out.backward(grads[0])
    assert torch.equal(q.grad, rope.apply_backward(*grads, cos, sin, **sample.options)[0])


def test_table_gradients_are_computed_in_float32() -> None:
    """Products of two bf16 numbers, and their sum over the heads, are exact here in fp32 alone."""
    x = 1 + 2**-7  # bf16's next number after 1
    q, k = torch.full((1, 96, 2), x).bfloat16(), torch.full((1, 4, 2), x).bfloat16()
    cos, sin = torch.ones(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    torch.autograd.backward(torch.ops.npu_rope.apply(q, k, cos, sin), [q, k])
    assert cos.grad.tolist() == [[100 * x * x, 100 * x * x]]
    assert sin.grad.tolist() == [[-100 * x * x, 100 * x * x]]


def test_rounding_of_the_tables_is_passed_straight_through() -> None:
    q, k, cos, sin = Sample(dtype=torch.bfloat16).tensors()
    cos.requires_grad_()
    rope.apply(q, k, cos, sin)[0].float().sum().backward()
    assert cos.grad.dtype == torch.float32
    expected = (q.float().sum(1),)  # g = 1: dcos = sum of x over the heads
    torch.testing.assert_close(cos.grad, *expected)


def test_rows_are_saved_only_for_gradients_of_the_tables() -> None:
    q, k, cos, sin = Sample().tensors()
    saved: list[int] = []

    def count(asking: Tensor) -> int:
        saved.clear()
        asking.requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.append(t.data_ptr()) or t, lambda t: t
        ):
            rope.apply(q, k, cos, sin)
        asking.requires_grad_(False)
        return sum(t.data_ptr() in saved for t in (q, k))

    assert count(q) == 0
    assert count(cos) == 2


@pytest.mark.parametrize("sample", DOUBLE, ids=str)
def test_forward_mode_and_its_own_derivatives(sample: Sample) -> None:
    """Tangents of rows, of tables and of both, and gradients through them."""
    for op in (rope.apply, rope.apply_backward):
        inputs = double(sample)
        call = functools.partial(op, **sample.options)
        assert torch.autograd.gradcheck(
            call, inputs, check_forward_ad=True, check_backward_ad=False, fast_mode=True
        )
        assert torch.autograd.gradgradcheck(
            call,
            inputs,
            check_fwd_over_rev=True,
            check_rev_over_rev=False,
            check_undefined_grad=False,
            fast_mode=True,
        )
    q, k, cos, sin = double(sample)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(q.detach(), torch.ones_like(q))
        with pytest.raises(RuntimeError, match="no derivative"):
            rope.apply_(dual, k.detach(), cos.detach(), sin.detach(), **sample.options)


ALL = (0, 1, 2, 3)


@pytest.mark.parametrize("sample", DOUBLE[::3], ids=str)
def test_transforms_of_torch_func_equal_those_of_the_definition(sample: Sample) -> None:
    inputs = tuple(t.detach() for t in double(sample))

    def scalar(form: Callable) -> Callable:
        return lambda *t: sum(out.sin().sum() for out in form(*t, **sample.options))

    operator, definition = scalar(npu_rope.apply), scalar(npu_rope.reference.apply)
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        got, expected = transform(operator, ALL)(*inputs), transform(definition, ALL)(*inputs)
        torch.testing.assert_close(got, expected)
    got = torch.func.hessian(operator, (0, 2))(*inputs)
    torch.testing.assert_close(got, torch.func.hessian(definition, (0, 2))(*inputs))
    tangents = tuple(torch.randn_like(t) for t in inputs)
    got = torch.func.jvp(operator, inputs, tangents)
    torch.testing.assert_close(got, torch.func.jvp(definition, inputs, tangents))
    _, pull = torch.func.vjp(functools.partial(npu_rope.apply, **sample.options), *inputs)
    rows = rope.apply_backward(*inputs, **sample.options)
    torch.testing.assert_close(pull(inputs[:2])[:2], rows)


MAPPED = ["qkcs", "qk", "cs", "q", "k", "s", "qc"]  # which of q, k, cos and sin vmap maps


@pytest.mark.parametrize("mapped", MAPPED)
@pytest.mark.parametrize("layout", ["TND", "BSND", "BNSD", "SBND"])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_vmap_is_one_call_of_the_same_bits(mapped: str, layout: str, rank: int) -> None:
    if rank > len(layout):
        return
    broadcast = "B" if rank == 4 else ""
    kind = {"layout": layout, "batch": 2, "table_rank": rank, "broadcast": broadcast}
    calls = [Sample(**kind, seed=seed) for seed in range(3)]
    lists = list(zip(*(call.tensors() for call in calls), strict=True))
    in_dims, stacked = [], []
    for axis, (name, tensors) in enumerate(zip("qkcs", lists, strict=True)):
        in_dims.append(axis % tensors[0].dim() if name in mapped else None)
        one = in_dims[-1] is None
        stacked.append(tensors[0] if one else torch.stack(tensors, in_dims[-1]))
    form = functools.partial(rope.apply, **calls[0].options)
    seen: list[str] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Count(), warnings.catch_warnings():
        warnings.simplefilter("error")
        got = torch.func.vmap(form, tuple(in_dims))(*stacked)
    assert seen.count("npu_rope.apply.default") == 1
    for i in range(3):
        expected = form(
            *(
                tensors[0 if axis is None else i]
                for axis, tensors in zip(in_dims, lists, strict=True)
            )
        )
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one[i], other)
    if {"q", "k"} <= set(mapped):
        rows = [stacked[0].clone(), stacked[1].clone()]

        def in_place(*tensors: Tensor) -> Tensor:
            rope.apply_(*tensors, **calls[0].options)
            return tensors[0]

        torch.func.vmap(in_place, tuple(in_dims))(*rows, *stacked[2:])
        for i, (row, axis) in enumerate(zip(rows, in_dims, strict=False)):
            assert torch.equal(row.movedim(axis, 0), got[i])


@pytest.mark.parametrize("alone", "qk")
def test_vmap_over_one_of_the_two(alone: str) -> None:
    q, _, cos, sin = Sample(layout="BSND", batch=2).tensors()
    rows = torch.stack([q, -q])

    def form(one: Tensor) -> Tensor | None:
        pair = (one, None) if alone == "q" else (None, one)
        return rope.apply(*pair, cos, sin)[alone == "k"]

    assert torch.equal(torch.func.vmap(form)(rows), torch.stack([form(q), form(-q)]))


def test_vmap_writes_nothing_that_it_does_not_map() -> None:
    q, k, cos, sin = Sample().tensors()
    before = q.clone()
    with pytest.raises(ValueError, match="q is written under vmap, expected vmap to map it"):
        torch.func.vmap(rope.apply_, (None, 0, None, None))(q, k[None], cos, sin)
    assert torch.equal(q, before)


@pytest.mark.parametrize("layout", ["TND", "BSND", "SBND"])
def test_vmap_over_nothing(layout: str) -> None:
    sample = Sample(layout=layout, batch=2)
    q, k, cos, sin = sample.tensors()
    rows = q[None][:0], k[None][:0]
    form = functools.partial(rope.apply, **sample.options)
    got = torch.func.vmap(form, (0, 0, None, None))(*rows, cos, sin)
    assert [t.shape for t in got] == [t.shape for t in rows]


def test_vmap_leaves_tables_that_it_does_not_map_as_they_are() -> None:
    q, k, cos, sin = Sample(layout="BSND", batch=2).tensors()
    tables: list[tuple[int, torch.Size]] = []

    class Tables(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            if func is rope.apply.default:
                tables.extend((table.data_ptr(), table.shape) for table in args[2:])
            return func(*args, **(kwargs or {}))

    with Tables():
        torch.func.vmap(rope.apply, (0, 0, None, None))(
            torch.stack([q, q]), torch.stack([k, k]), cos, sin
        )
    assert tables == [(table.data_ptr(), table.shape) for table in (cos, sin)]


def test_a_tables_gradient_is_summed_before_it_is_rounded() -> None:
    """bfloat16 holds neither 257, which would round to 256, nor 6 * 257, which rounds to 1544."""
    q = torch.full((6, 1, 1, 16), 257.0)
    cos = torch.zeros(1, 1, 16, dtype=torch.bfloat16, requires_grad=True)
    npu_rope.apply(q, None, cos, torch.zeros_like(cos))[0].sum().backward()
    assert torch.equal(cos.grad, torch.full_like(cos, 1544.0))


def test_what_is_written_has_its_version_bumped() -> None:
    q, k, cos, sin = Sample().tensors()
    rope.apply_(q, k, cos, sin)
    assert [t._version for t in (q, k, cos, sin)] == [1, 1, 0, 0]
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    rope.apply.out(q, k, cos, sin, q_out=q_out, k_out=k_out)
    assert [t._version for t in (q_out, k_out, q, k)] == [1, 1, 1, 1]
    weight = torch.ones(16, dtype=q.dtype, requires_grad=True)
    loss = (weight * q).sum()  # saves q
    rope.apply_(q, k, cos, sin)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


OPCHECKED = [s for s in samples() if s.rows not in ("expanded",)]


@pytest.mark.parametrize("sample", OPCHECKED, ids=str)
def test_opcheck(sample: Sample) -> None:
    def check(op: torch._ops.OpOverload, tensors: tuple[Tensor, ...], **more: Tensor) -> None:
        torch.library.opcheck(op, tensors, {**sample.options, **more})

    q, k, cos, sin = sample.tensors()
    leaves = tuple(t.clone().requires_grad_() for t in (q, k, cos, sin))
    check(rope.apply.default, leaves)
    check(rope.apply_backward.default, (q, k, cos, sin))
    if sample.rows != "packed" or sample.layout == "TND":  # opcheck clones what shares storage
        check(rope.apply_.default, (q, k, cos, sin))
        q_out, k_out = torch.empty_like(q), torch.empty_like(k)
        check(rope.apply.out, (q, k, cos, sin), q_out=q_out, k_out=k_out)


@pytest.mark.parametrize("kept", [0, 1], ids=["q", "k"])
def test_opcheck_of_one_of_q_and_k(kept: int) -> None:
    tensors = Sample(half_tables=True, style="interleaved", round_each=True).tensors()
    options = Sample(half_tables=True, style="interleaved", round_each=True).options
    rows = [tensors[0], tensors[1]]
    rows[1 - kept] = None
    leaves = [t if t is None else t.clone().requires_grad_() for t in (*rows, *tensors[2:])]
    torch.library.opcheck(rope.apply.default, leaves, options)
    torch.library.opcheck(rope.apply_backward.default, (*rows, *tensors[2:]), options)
    torch.library.opcheck(rope.apply_.default, (*rows, *tensors[2:]), options)
    outs = {
        f"{name}_out": t if t is None else t.clone() for name, t in zip("qk", rows, strict=True)
    }
    torch.library.opcheck(rope.apply.out, (*rows, *tensors[2:]), {**options, **outs})


def test_a_row_whose_gradient_nobody_asks_for_is_not_rotated() -> None:
    q, k, cos, sin = Sample(dtype=torch.float32).tensors()
    q.requires_grad_()
    seen: list[list[bool]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            if func is rope.apply_backward.default:
                seen.append([row is None for row in args[:2]])
            return func(*args, **(kwargs or {}))

    out, _ = rope.apply(q, k, cos, sin)
    with Watch():
        out.sum().backward()
    assert seen == [[False, True]]


def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return rope.apply(q * 2, k * 2, cos, sin)


def rotated_in_place(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    q, k = q * 2, k * 2
    rope.apply_(q, k, cos, sin)
    return q, k


@pytest.mark.parametrize("function", [rotated, rotated_in_place])
def test_varying_token_counts_do_not_recompile(function) -> None:  # noqa: ANN001
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for tokens in (11, 17, 4, 64, 129, 2):  # 11: like no other size of the sample
        tensors = Sample(tokens=tokens).tensors()
        for got, expected in zip(compiled(*tensors), function(*tensors), strict=True):
            assert torch.equal(got, expected)
    assert counter.frame_count == 1


def test_automatic_dynamic_compiles_twice_at_most() -> None:
    """As a server sees it: a first count, then others."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rotated, backend=counter, fullgraph=True)
    for tokens in (11, 17, 4, 64, 129):
        compiled(*Sample(tokens=tokens).tensors())
    assert counter.frame_count == 2


@pytest.mark.parametrize("style", STYLES)
def test_compiled_gradients_equal_eager_ones(style: str) -> None:
    torch._dynamo.reset()
    sample = Sample(style=style, dtype=torch.float32)

    def loss(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k = rope.apply(q, k, cos, sin, **sample.options)
        return (q.square().sum() + k.sum()).sin()

    def grads(function) -> list[Tensor]:  # noqa: ANN001
        leaves = [t.clone().requires_grad_() for t in sample.tensors()]
        function(*leaves).backward()
        return [t.grad for t in leaves]

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for got, expected in zip(grads(compiled), grads(loss), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("asks", ["q", "cos"])
def test_unbacked_token_counts(asks: str) -> None:
    """How many rows a mask keeps is known only when the graph runs."""
    torch._dynamo.reset()

    def loss(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        kept = mask.nonzero().squeeze(-1)
        q, k = rope.apply(q[kept], k[kept], cos[kept], sin[kept])
        return q.square().sum() + k.sum()

    def gradient(function: Callable) -> Tensor:
        tensors = dict(
            zip(("q", "k", "cos", "sin"), Sample(dtype=torch.float32).tensors(), strict=True)
        )
        tensors[asks].requires_grad_()
        function(*tensors.values(), torch.tensor([True, False, True, True, False])).backward()
        return tensors[asks].grad

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        got = gradient(torch.compile(loss, backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(got, gradient(loss))


def test_compiled_autograd_traces_through_it() -> None:
    inputs = [t.clone().requires_grad_() for t in Sample(dtype=torch.float32).tensors()]
    tensors = [t.detach().clone().requires_grad_() for t in inputs]
    rope.apply(*inputs)[0].square().sum().backward()
    with torch._dynamo.compiled_autograd._enable(
        torch.compile(backend="aot_eager", fullgraph=True)
    ):
        rope.apply(*tensors)[0].square().sum().backward()
    for got, expected in zip(tensors, inputs, strict=True):
        if expected.grad is None:
            assert got.grad is None
        else:
            torch.testing.assert_close(got.grad, expected.grad)


def test_inductor_compiles_it_without_a_graph_break() -> None:
    torch._dynamo.reset()
    tensors = Sample(tokens=9).tensors()
    compiled = torch.compile(rotated_in_place, fullgraph=True)
    for got, expected in zip(compiled(*tensors), rotated_in_place(*tensors), strict=True):
        assert torch.equal(got, expected)


def test_export_keeps_the_operator() -> None:
    class Layer(torch.nn.Module):
        # By name: torch 2.9's own guards on shapes do not run for a module with *tensors.
        def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
            return rotated(q, k, cos, sin)

    tokens = torch.export.Dim("tokens")
    dims = {name: {0: tokens} for name in ("q", "k", "cos", "sin")}
    program = torch.export.export(Layer(), Sample().tensors(), dynamic_shapes=dims)
    assert "npu_rope.apply" in program.graph_module.code
    other = Sample(tokens=31).tensors()
    assert all(map(torch.equal, program.module()(*other), rotated(*other)))
