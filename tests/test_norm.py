"""norm_apply: RMSNorm of every head of q and k, and the rotation, in one operator.

Against its definition, bit for bit; against the norms and rotations of Hugging Face's models, by
derived tolerances.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import npu_rope
import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from norm_samples import Call, any_call, calls
from samples import DTYPES, STYLES, Sample, any_sample, samples
from test_errors import unchanged
from test_operator import WRITABLE, _storage, assert_same
from torch import Tensor
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.olmo2.modeling_olmo2 import apply_rotary_pos_emb as olmo2_rotary
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb as qwen3_rotary

rope = torch.ops.npu_rope


def assert_equal(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Equal bits; in float64 the reference's square root, which is torch's, may miss the last."""
    if got[0].dtype == torch.float64:
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
    else:
        assert_same(got, expected)


# ---- The definition ----


@given(any_call())
@settings(max_examples=400, deadline=None)
def test_norm_apply_equals_the_reference(call: Call) -> None:
    tensors = call.tensors()
    before = [None if t is None else t.clone() for t in tensors]
    got = rope.norm_apply(*tensors, **call.options)
    assert_equal(got, npu_rope.reference.norm_apply(*tensors, **call.options))
    for tensor, kept in zip(tensors, before, strict=True):
        assert tensor is None or torch.equal(tensor, kept)
    storages = {t.untyped_storage().data_ptr() for t in tensors if t is not None and t.numel()}
    for out in got:
        assert out.is_contiguous()
        assert not out.numel() or out.untyped_storage().data_ptr() not in storages


@given(any_call(rows=WRITABLE))
@settings(max_examples=200, deadline=None)
def test_inplace_writes_the_rows_and_nothing_else(call: Call) -> None:
    tensors = q, k, *_ = call.tensors()
    expected = npu_rope.reference.norm_apply(*tensors, **call.options)
    after = [_storage(t).clone() for t in (q, k)]
    for storage, view, value in zip(after, (q, k), expected, strict=True):
        storage.as_strided(view.shape, view.stride(), view.storage_offset()).copy_(value)
    if _storage(q).data_ptr() == _storage(k).data_ptr():  # one packed QKV holds both
        after[0].as_strided(k.shape, k.stride(), k.storage_offset()).copy_(expected[1])
        after[1] = after[0]
    rope.norm_apply_(*tensors, **call.options)
    assert_equal((_storage(q), _storage(k)), tuple(after))


@given(any_call(rows=WRITABLE), any_sample(rows=WRITABLE))
@settings(max_examples=150, deadline=None)
def test_out_takes_any_strides_and_its_own_input(call: Call, other: Sample) -> None:
    tensors = q, *_ = call.tensors()
    expected = npu_rope.reference.norm_apply(*tensors, **call.options)
    strided = Sample(**{**vars(call.sample), "rows": other.rows, "seed": other.seed})
    q_out, k_out = strided.tensors()[:2]
    rope.norm_apply.out(*tensors, **call.options, q_out=q_out, k_out=k_out)
    assert_equal((q_out, k_out), expected)
    # One output is its own input, by another tensor object over the same memory.
    rope.norm_apply.out(*tensors, **call.options, q_out=q.view_as(q), k_out=k_out)
    assert_equal((q, k_out), expected)


def test_without_weights_it_is_apply() -> None:
    for sample in samples():
        q, k, cos, sin = sample.tensors()
        got = rope.norm_apply(q, k, None, None, cos, sin, eps=1e-6, **sample.options)
        assert_same(got, rope.apply(q, k, cos, sin, **sample.options))


@pytest.mark.parametrize("head_dim", [2, 6, 8, 62, 64, 66, 80, 128, 192, 254, 512, 770, 1024])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_length_of_sum(head_dim: int, dtype: torch.dtype) -> None:
    """More rows than any vector has lanes, whose sums depend on the order of additions."""
    call = Call(Sample(tokens=3, q_heads=37, head_dim=head_dim, dtype=dtype))
    tensors = call.tensors()
    tensors[0].mul_(torch.logspace(-3, 3, head_dim).to(dtype))
    expected = npu_rope.reference.norm_apply(*tensors, **call.options)
    assert_same(rope.norm_apply(*tensors, **call.options), expected)


@pytest.mark.parametrize("which", ["qk", "q", "k"])
@pytest.mark.parametrize("style", STYLES)
def test_it_is_torchs_norm_and_then_the_rotation(style: str, which: str) -> None:
    """Independent of the reference, with an eps and weights that are not lost beside the rest."""
    sample = Sample(head_dim=24, rotary_dim=16, rotary_offset=4, dtype=torch.float64, style=style)
    for eps, weight_offset in ((0.7, 0.0), (0.0, 1.0), (5.0, -3.0)):
        call = Call(sample, which, eps=eps, weight_offset=weight_offset)
        q, k, *weights, cos, sin = call.tensors()
        rows = [
            x
            if weight is None
            else torch.nn.functional.rms_norm(x, (24,), weight + weight_offset, eps)
            for x, weight in zip((q, k), weights, strict=True)
        ]
        got = rope.norm_apply(q, k, *weights, cos, sin, **call.options)
        torch.testing.assert_close(got, rope.apply(*rows, cos, sin, **sample.options))


def test_squares_are_added_pairwise() -> None:
    """Independent of the reference: 1 is lost beside 2^24, and is not where it meets another."""
    x = torch.tensor([2.0**12, 0, 1, 1, 0, 0, 0, 0]).view(1, 1, 8)
    ones, zeros = torch.ones(8), torch.zeros(1, 8)
    for row, total in ((x, 2.0**24 + 2), (x.roll(1, -1)[..., [1, 2, 0, 3, 4, 5, 6, 7]], 2.0**24)):
        got, _ = rope.norm_apply(row, row[:, :0], ones, None, 1 + zeros, zeros, eps=0.0)
        factor = 1 / torch.tensor(total / 8).double().sqrt().float()
        assert torch.equal(got, row * factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_special_values(dtype: torch.dtype, eps: float) -> None:
    """A row of zeros, infinities, NaNs, the largest numbers, the smallest, in every place."""
    info = torch.finfo(dtype)
    special = [torch.inf, -torch.inf, torch.nan, info.max, info.smallest_normal * info.eps, 0.0]
    rows = torch.randn(len(special) * 24, 1, 24, generator=torch.Generator().manual_seed(0))
    for i, value in enumerate(special):
        for place in range(24):
            rows[24 * i + place, 0, place] = value
    rows = torch.cat((rows, torch.zeros(1, 1, 24), torch.full((1, 1, 24), info.max))).to(dtype)
    weights = torch.randn(2, 24)
    weights[0, :4] = torch.tensor([0.0, -0.0, torch.inf, torch.nan])
    angles = torch.rand(len(rows), 24) * 6
    arguments = rows, rows, *weights, angles.cos(), angles.sin()
    expected = npu_rope.reference.norm_apply(*arguments, eps=eps)
    assert_same(rope.norm_apply(*arguments, eps=eps), expected)
    zeros = expected[1][-2]
    assert zeros.isnan().all() if eps == 0 else (zeros == 0).all()
    if dtype != torch.float16:  # the square of the largest is infinite
        assert (expected[1][-1] == 0).all()


@pytest.mark.parametrize("round_each", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_rows_of_one_magnitude(style: str, round_each: bool) -> None:
    """Every magnitude of rows beside those of weights and tables: bf16 has instructions that take
    subnormal numbers for zeros, and where none can come up is decided by these four."""
    torch.manual_seed(0)
    rows = torch.cat([torch.arange(e - 4.0, e + 5) for e in (-128, -63, -31, -15, 0, 11, 33, 70)])
    tables = torch.tensor([-130.0, -90, -41, -40, -39, -20, 0, 20, 39, 41, 62, 120])

    def values(exponents: Tensor, *shape: int) -> Tensor:
        mantissas = 1 + torch.randint(8, shape) / 8  # so few that sums cancel
        return (torch.randint(2, shape) * 2 - 1) * torch.ldexp(mantissas, exponents.int())

    tokens, heads, dim = len(tables), len(rows), 64
    q = values(rows[None, :, None], tokens, heads, dim).bfloat16()
    cos, sin = (values(tables[:, None], tokens, dim).float() for _ in range(2))
    for exponent, eps in itertools.product((-90, -60, -22, -19, 0, 19, 21, 60), (0.0, 1e-6, 1e12)):
        weight = values(torch.tensor(exponent), dim).bfloat16()
        # The second: rows of 2^-31 to 2^-27 alone, for what is asked is asked of all of some heads.
        arguments = q, q[:, 22:27], weight, weight.flip(0), cos, sin
        options = {**STYLES[style], "round_each": round_each, "eps": eps}
        expected = npu_rope.reference.norm_apply(*arguments, **options)
        assert_same(rope.norm_apply(*arguments, **options), expected)


@pytest.mark.parametrize("style", STYLES)
def test_long_rows_of_small_numbers(style: str) -> None:
    """Rows so long that they are not asked what test_rows_of_one_magnitude is about."""
    torch.manual_seed(0)
    q = torch.ldexp(1 + torch.rand(2, 5, 1024), torch.tensor(-60)).bfloat16()
    weight = torch.full((1024,), 2.0**-19).bfloat16()
    tables = torch.ldexp(1 + torch.rand(2, 2, 1024), torch.tensor(-38))
    arguments, options = (q, q, weight, weight, *tables), {**STYLES[style], "eps": 1e6}
    expected = npu_rope.reference.norm_apply(*arguments, **options)
    subnormal = expected[0].abs() < torch.finfo(torch.bfloat16).smallest_normal
    assert (subnormal & (expected[0] != 0)).any()
    assert_same(rope.norm_apply(*arguments, **options), expected)


PROGRAM = """
import sys, numpy, torch, npu_rope
torch.set_num_threads(int(sys.argv[1]))
random = numpy.random.default_rng(0)  # torch's own depends on the instruction set
def values(*shape):
    return torch.from_numpy(random.standard_normal(shape, dtype=numpy.float32))
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    for head_dim, rotary_dim in ((128, 128), (80, 40)):
        q, k = values(257, 24, head_dim).to(dtype), values(257, 3, head_dim).to(dtype)
        cos, sin, weights = values(257, 64), values(257, 64), values(2, head_dim)
        cos, sin = cos[:, : rotary_dim // 2], sin[:, : rotary_dim // 2]
        for style in ({}, {"interleaved": True}):
            options = {"rotary_dim": rotary_dim, "eps": 1e-6, **style}
            for out in torch.ops.npu_rope.norm_apply(q, k, *weights, cos, sin, **options):
                print(hash(out.view(torch.int16).numpy().tobytes()))
"""


def test_bits_do_not_depend_on_threads_or_instruction_set() -> None:
    def run(threads: int, capability: str) -> str:
        env = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-c", PROGRAM, str(threads)]
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

    expected = run(1, "default")
    assert len(set(expected.split())) == 24
    best = torch.backends.cpu.get_cpu_capability().lower()
    for threads, capability in ((2, "default"), (1, "avx2"), (2, best)):
        assert run(threads, capability) == expected, (threads, capability)


@pytest.mark.parametrize("call", calls(), ids=str)
def test_public_functions_are_the_operator(call: Call) -> None:
    tensors = q, k, *_ = call.tensors()
    expected = rope.norm_apply(*tensors, **call.options)
    assert_same(npu_rope.norm_apply(*tensors, **call.options), expected)
    q_out, k_out = torch.empty_like(q).contiguous(), torch.empty_like(k).contiguous()
    npu_rope.norm_apply_out(*tensors, **call.options, q_out=q_out, k_out=k_out)
    assert_same((q_out, k_out), expected)
    if call.sample.rows != "expanded":
        npu_rope.norm_apply_(*tensors, **call.options)
        assert_same((q, k), expected)


# ---- Bad input ----


def good(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    arguments = {
        "q": torch.ones(5, 3, 16),
        "k": torch.ones(5, 2, 16),
        "q_weight": torch.ones(16),
        "k_weight": torch.ones(16),
        "cos": torch.ones(5, 16),
        "sin": torch.ones(5, 16),
        "eps": 1e-6,
    }
    return {**arguments, **changes}


BAD = {
    "rotation": (good(cos=torch.ones(4, 16), sin=torch.ones(4, 16)), ValueError, "cos has 4 tok"),
    "width": (good(q_weight=torch.ones(8)), ValueError, r"q_weight has shape \[8\], expected \[16"),
    "rank": (good(k_weight=torch.ones(2, 16)), ValueError, r"k_weight has shape \[2, 16\], expect"),
    "rank 0": (good(k_weight=torch.ones(())), ValueError, r"k_weight has shape \[\], expected"),
    "dtype": (good(q_weight=torch.ones(16).int()), TypeError, "q_weight is Int, expected Half, BF"),
    "double": (good(k_weight=torch.ones(16).double()), TypeError, "k_weight is Double, expected"),
    "unlike": (good(k_weight=torch.ones(16).half()), TypeError, "k_weight is Half, expected Float"),
    "eps": (good(eps=-1e-6), ValueError, "eps is -1e-06, expected a finite number of at least 0"),
    "eps nan": (good(eps=float("nan")), ValueError, "eps is nan, expected a finite"),
    "offset": (good(weight_offset=float("inf")), ValueError, "weight_offset is inf, expected a"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_every_form(name: str) -> None:
    arguments, error, match = BAD[name]
    tensors = [v for v in arguments.values() if isinstance(v, Tensor)]
    outs = {"q_out": arguments["q"].clone(), "k_out": arguments["k"].clone()}
    unchanged(lambda: rope.norm_apply(**arguments), tensors, error, match)
    unchanged(lambda: rope.norm_apply_(**arguments), tensors, error, match)
    written = [*tensors, *outs.values()]
    unchanged(lambda: rope.norm_apply.out(**arguments, **outs), written, error, match)
    on_meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in arguments.items()}
    for form in (rope.norm_apply, rope.norm_apply_):
        with pytest.raises(error, match=match):
            form(**on_meta)


def test_a_weight_on_another_device_is_refused() -> None:
    with pytest.raises((ValueError, RuntimeError), match="meta"):
        rope.norm_apply(**good(q_weight=torch.ones(16, device="meta")))


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
def test_weights_of_any_stride(weight_dtype: torch.dtype) -> None:
    call = Call(Sample(tokens=3, head_dim=48), weight_dtype=weight_dtype)
    q, k, q_weight, k_weight, cos, sin = call.tensors()
    expected = rope.norm_apply(q, k, q_weight, k_weight, cos, sin, **call.options)
    strided = torch.stack((q_weight, k_weight), -1)
    for one, other in ((strided[:, 0], strided[:, 1]), (q_weight, strided[:, 1])):
        assert_same(rope.norm_apply(q, k, one, other, cos, sin, **call.options), expected)


@pytest.mark.parametrize("written", "qk")
def test_weights_apart_from_what_is_written(written: str) -> None:
    memory = torch.zeros(400)
    rows, weight = memory[:240].view(5, 3, 16), memory[100:116]
    outs = {"q_out": torch.ones(5, 3, 16), "k_out": torch.ones(5, 3, 16)}
    other = good(k=torch.ones(5, 3, 16))
    cases: list[Callable[[], Any]] = [
        lambda: rope.norm_apply_(**{**other, written: rows, "q_weight": weight}),
        lambda: rope.norm_apply_(**{**other, written: rows, "k_weight": weight}),
        lambda: rope.norm_apply.out(
            **{**other, "k_weight": weight}, **{**outs, f"{written}_out": rows}
        ),
    ]
    for function in cases:
        match = f"_weight overlaps what is written for {written}"
        unchanged(function, [memory], ValueError, match)


def test_npu_tensors_are_refused_clearly_without_the_npu_library() -> None:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
    arguments = good()
    tensors = [arguments.pop(n) for n in ("q", "k", "q_weight", "k_weight", "cos", "sin")]
    for form in (rope.norm_apply, rope.norm_apply_):
        with pytest.raises(RuntimeError, match=r"built without its NPU library.*doctor"):
            form.default.redispatch(keys, *tensors, **arguments)


# ---- Derivatives, fake kernels, torch.compile ----

DOUBLE = [
    Call(Sample(tokens=2, q_heads=2, k_heads=1, dtype=torch.float64, style=style, **more), **norm)
    for style in STYLES
    for more, norm in (
        ({"head_dim": 10, "rotary_dim": 6, "rotary_offset": 2}, {"weight_offset": 1.0}),
        ({"head_dim": 4, "layout": "BNSD", "batch": 2, "half_tables": True}, {"which": "k"}),
        ({"head_dim": 4, "layout": "BSND", "broadcast": "S"}, {"which": "q", "eps": 0.3}),
    )
]


@pytest.mark.parametrize("call", DOUBLE, ids=str)
def test_first_and_second_derivatives(call: Call) -> None:
    call.sample.table_dtype = torch.float64
    inputs = [t if t is None else t.clone().requires_grad_() for t in call.tensors()]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return rope.norm_apply(*tensors, **call.options)

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)


def test_transforms_of_torch_func_equal_those_of_the_definition() -> None:
    call = DOUBLE[0]
    call.sample.table_dtype = torch.float64
    inputs = call.tensors()

    def scalar(form: Callable) -> Callable:
        return lambda *t: sum(out.sin().sum() for out in form(*t, **call.options))

    operator, definition = scalar(npu_rope.norm_apply), scalar(npu_rope.reference.norm_apply)
    for transform in (torch.func.grad, torch.func.jacfwd):
        got, expected = (transform(f, tuple(range(6)))(*inputs) for f in (operator, definition))
        torch.testing.assert_close(got, expected)
    got, expected = (torch.func.hessian(f, (0, 2))(*inputs) for f in (operator, definition))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("mapped", ["qk", "qkcs", "c", "w", "qkwv"])
def test_vmap_is_each_call_of_the_same_bits(mapped: str) -> None:
    """It maps some of q, k, the weights (w, v), cos and sin."""
    calls = [Call(Sample(layout="BSND", batch=2, seed=seed)) for seed in range(3)]
    lists = list(zip(*(call.tensors() for call in calls), strict=True))
    in_dims = tuple(
        i % t[0].dim() if n in mapped else None
        for i, (n, t) in enumerate(zip("qkwvcs", lists, strict=True))
    )
    stacked = [
        t[0] if d is None else torch.stack(t, d) for t, d in zip(lists, in_dims, strict=True)
    ]
    got = torch.func.vmap(lambda *t: rope.norm_apply(*t, **calls[0].options), in_dims)(*stacked)
    for i in range(3):
        one = [t[0 if d is None else i] for t, d in zip(lists, in_dims, strict=True)]
        assert_same(tuple(out[i] for out in got), rope.norm_apply(*one, **calls[0].options))
    if "w" in mapped:
        empty = [
            t if d is None else t.narrow(d, 0, 0) for t, d in zip(stacked, in_dims, strict=True)
        ]
        with pytest.raises(ValueError, match="vmap maps a weight over no slices"):
            torch.func.vmap(lambda *t: rope.norm_apply(*t, **calls[0].options), in_dims)(*empty)
    if "q" in mapped:
        torch.func.vmap(lambda *t: (rope.norm_apply_(*t, **calls[0].options), t[0])[1], in_dims)(
            *stacked
        )
        assert_same(tuple(stacked[i].movedim(in_dims[i], 0) for i in range(2)), got)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_those_of_norm_and_rotation(dtype: torch.dtype) -> None:
    call = Call(Sample(dtype=dtype, head_dim=24, rotary_dim=16, rotary_offset=4, tokens=9))
    assert call.weight_dtype == torch.bfloat16
    leaves = [t.clone().requires_grad_() for t in call.tensors()]
    q, k = rope.norm_apply(*leaves, **call.options)
    into = torch.randn_like(q), torch.randn_like(k)
    torch.autograd.backward((q, k), into)

    exact = [t.detach().double().requires_grad_() for t in leaves]
    rows = [
        torch.nn.functional.rms_norm(x, (24,), weight, call.eps)
        for x, weight in zip(exact[:2], exact[2:4], strict=True)
    ]
    tables = [t.to(dtype).double() if t.dtype != dtype else t.double() for t in leaves[4:]]
    tables = [t.detach().requires_grad_() for t in tables]
    torch.autograd.backward(
        rope.apply(*rows, *tables, **call.sample.options), [g.double() for g in into]
    )
    expected = [t.grad for t in (*exact[:4], *tables)]
    # Roundings: apply_backward's, the gradient's own; the rest in fp32. The largest term decides.
    unit = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    for leaf, grad in zip(leaves, expected, strict=True):
        assert leaf.grad.dtype == leaf.dtype
        error = (leaf.grad.double() - grad).abs().max() / grad.abs().max()
        assert error < 4 * max(unit, torch.finfo(leaf.dtype).eps)


def test_forms_without_derivative_raise_where_one_is_asked_for() -> None:
    outs = {"q_out": torch.ones(5, 3, 16), "k_out": torch.ones(5, 2, 16)}
    for name in ("q", "k", "q_weight", "k_weight", "cos", "sin"):
        arguments = good()
        arguments[name] = arguments[name].clone().requires_grad_()
        with pytest.raises(RuntimeError, match=r"norm_apply_ has no deriv.*npu_rope::norm_apply"):
            rope.norm_apply_(**arguments)
        with pytest.raises(RuntimeError, match=r"norm_apply\.out has no derivative"):
            rope.norm_apply.out(**arguments, **outs)
        with torch.no_grad():
            rope.norm_apply.out(**arguments, **outs)


def test_what_is_written_has_its_version_bumped() -> None:
    arguments = good()
    rope.norm_apply_(**arguments)
    names = ("q", "k", "q_weight", "k_weight", "cos", "sin")
    assert [arguments[name]._version for name in names] == [1, 1, 0, 0, 0, 0]
    outs = {"q_out": torch.ones(5, 3, 16), "k_out": torch.ones(5, 2, 16)}
    rope.norm_apply.out(**arguments, **outs)
    assert [t._version for t in outs.values()] == [1, 1]


@pytest.mark.parametrize("call", [c for c in calls() if c.sample.rows != "expanded"][::4], ids=str)
def test_opcheck(call: Call) -> None:
    tensors = q, k, *_ = call.tensors()
    leaves = tuple(None if t is None else t.clone().requires_grad_() for t in tensors)
    torch.library.opcheck(rope.norm_apply.default, leaves, call.options)
    if call.sample.rows != "packed" or call.sample.layout == "TND":
        torch.library.opcheck(rope.norm_apply_.default, tensors, call.options)
        outs = {"q_out": torch.empty_like(q), "k_out": torch.empty_like(k)}
        torch.library.opcheck(rope.norm_apply.out, tensors, {**call.options, **outs})


def doubled(q: Tensor, k: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    q, k = q * 2, k * 2
    rope.norm_apply_(q, k, *rest, eps=1e-6)
    return rope.norm_apply(q, k, *rest, eps=1e-6)


def test_varying_token_counts_do_not_recompile() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(doubled, backend=counter, fullgraph=True, dynamic=True)
    for tokens in (11, 17, 4, 64):
        tensors = Call(Sample(tokens=tokens)).tensors()
        assert all(map(torch.equal, compiled(*tensors), doubled(*tensors)))
    assert counter.frame_count == 1


def test_export_keeps_the_operator() -> None:
    class Layer(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            return doubled(*tensors)

    tokens = torch.export.Dim("tokens")
    dims = tuple({0: tokens} if i not in (2, 3) else None for i in range(6))
    tensors = Call(Sample()).tensors()
    program = torch.export.export(Layer(), tensors, dynamic_shapes={"tensors": dims})
    assert "npu_rope.norm_apply" in program.graph_module.code
    other = Call(Sample(tokens=31)).tensors()
    assert all(map(torch.equal, program.module()(*other), doubled(*other)))


# ---- Hugging Face's own norms and rotations ----

MODELS = {
    "Qwen3": (Qwen3RMSNorm, qwen3_rotary, 0.0),
    "Gemma-3": (Gemma3RMSNorm, qwen3_rotary, 1.0),  # (1 + weight); its rotary is Llama's too
    "OLMo-2": (Olmo2RMSNorm, olmo2_rotary, 0.0),  # norms all heads as one; here one head
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hugging_face_norm_and_rotation(model: str, dtype: torch.dtype) -> None:
    norm_class, rotary, weight_offset = MODELS[model]
    generator = torch.Generator().manual_seed(1)
    q, k = ((3 * torch.randn(2, heads, 33, 128, generator=generator)).to(dtype) for heads in (8, 2))
    angles = torch.outer(torch.arange(33.0), 1e6 ** -(torch.arange(64) / 64)).repeat(1, 2)
    cos, sin = angles.cos().to(dtype)[None], angles.sin().to(dtype)[None]
    norms = [norm_class(128, eps=1e-6).to(dtype) for _ in range(2)]
    for norm in norms:
        norm.weight.data.copy_(torch.randn(128, generator=generator) * 0.3 + 1 - weight_offset)

    def theirs(of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        modules = [norm_class(128, eps=1e-6).to(of(q).dtype) for _ in range(2)]
        for module, norm in zip(modules, norms, strict=True):
            module.weight.data.copy_(of(norm.weight.data))
        with torch.no_grad():
            return rotary(modules[0](of(q)), modules[1](of(k)), of(cos), of(sin))

    weights = [norm.weight.detach() for norm in norms]
    options = {"eps": 1e-6, "weight_offset": weight_offset, "layout": "BNSD"}
    ours = rope.norm_apply(q, k, *weights, cos, sin, **options)
    # Both against the same in float64. A product |n*c| or |n*s| is at most `size`; Qwen3's and
    # Gemma's text models round up to six times to dtype on the way to y, each time half a unit of
    # at most that size, where we round y once and fp32 adds some 20 roundings of its own. (What
    # their norms do is in float32 even for float64 rows: hence a unit of fp32 for each.)
    exact = theirs(Tensor.double)
    unit, unit32 = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    for y, eager, truth in zip(ours, theirs(lambda t: t), exact, strict=True):
        size = 2 * truth.abs().max()
        assert (y.double() - truth).abs().max() <= (unit / 2 + 20 * unit32) * size
        assert (eager.double() - truth).abs().max() <= (6 * unit / 2 + 20 * unit32) * size
        assert y.dtype == eager.dtype and y.shape == eager.shape
        if dtype != torch.float32:  # one rounding is closer to the truth than many
            rms = [(t.double() - truth).square().mean().sqrt() for t in (y, eager)]
            assert rms[0] < rms[1]
