"""round_each=True: the bits of eager PyTorch in q's dtype, shown on code that no one here wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import npu_rope
import pytest
import torch
from hypothesis import given, settings
from samples import DTYPES, STYLES, Sample, any_sample
from test_huggingface import FLOAT32_INSIDE, Build, every_model, query_key, real_positions
from test_operator import assert_same
from torch import Tensor

rope = torch.ops.npu_rope

HALF_DTYPES = (torch.bfloat16, torch.float16)


@given(any_sample())
@settings(max_examples=200, deadline=None)
def test_both_rotations_equal_the_reference(sample: Sample) -> None:
    sample = dataclasses.replace(sample, round_each=True)
    tensors = sample.tensors()
    for form, transpose in ((rope.apply, False), (rope.apply_backward, True)):
        got = form(*tensors, **sample.options)
        expected = npu_rope.reference.apply(*tensors, **sample.options, transpose=transpose)
        assert_same(got, expected)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_special_values_are_eager_torchs(style: str, dtype: torch.dtype) -> None:
    """Infinities, NaNs, subnormals, zeros of both signs: partners and tables in every combination,
    and where a product overflows or vanishes that float32 would have kept."""
    info = torch.finfo(dtype)
    tiny = info.smallest_normal
    special = [0.0, -0.0, 1.0, -1.0, info.max, info.min, torch.inf, -torch.inf, torch.nan]
    special += [tiny, -tiny / 4, tiny * info.eps, 1 / 3, 1 + info.eps]
    values = torch.tensor(special, dtype=torch.float64).to(dtype)
    x1, x2, cos, sin = torch.cartesian_prod(values, values, values, values).T
    q = torch.stack((x1, x2), -1)[:, None]  # a pair a token: half style and pairs are the same
    cos, sin = (torch.stack((t, t), -1)[:, None] for t in (cos, sin))
    expected = q * cos + torch.stack((-q[..., 1], q[..., 0]), -1) * sin
    got, _ = rope.apply(q, None, cos, sin, **STYLES[style], round_each=True)
    assert_same((got,), (expected,))
    once, _ = rope.apply(q, None, cos, sin, **STYLES[style])
    differs = (once != got) & ~once.isnan() & ~got.isnan()
    assert differs.any() and (dtype == torch.bfloat16 or (once.isinf() != got.isinf()).any())


@every_model
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_equals_hugging_faces_functions_bit_for_bit(build: Build, dtype: torch.dtype) -> None:
    """The functions of transformers called, on their own tables. Those that compute in float32
    inside are what the operator does without the option."""
    model = build()
    positions = real_positions(build)
    q, k = query_key(model, positions, dtype)
    tables = model.tables(positions, dtype)
    options = {"layout": model.layout, **model.options}
    round_each = build not in FLOAT32_INSIDE
    cast_tables = round_each
    entries = model.operator_tables(*tables)
    got = rope.apply(q, k, *entries, **options, cast_tables=cast_tables, round_each=round_each)
    assert_same(got, model.rotate(q, k, *tables))
    other = rope.apply(
        q, k, *entries, **options, cast_tables=cast_tables, round_each=not round_each
    )
    assert not torch.equal(got[0], other[0]), "the option changed nothing"


# ---- LMDeploy's tests of its own kernel: the same shapes, strides, tolerances ----


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def rotate_pairs(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def packed_requests(dtype: torch.dtype, k_heads: int, width: int) -> tuple[Tensor, ...]:
    """Four requests of 8 to 15 tokens side by side, rows of tables gathered by position."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(8, 16, (4,), generator=generator)
    tokens, longest = int(lengths.sum()), int(lengths.max())

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    positions = torch.randint(0, longest, (tokens,), generator=generator)
    cos, sin = (values(longest, width)[positions, None] for _ in range(2))
    return values(tokens, 8, 128), values(tokens, k_heads, 128), cos, sin


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k_heads", [8, 4])
@pytest.mark.parametrize("pairs", [False, True], ids=["half", "pairs"])
def test_lmdeploys_cases(dtype: torch.dtype, k_heads: int, pairs: bool) -> None:
    q, k, cos, sin = packed_requests(dtype, k_heads, 64 if pairs else 128)
    turned: Callable[[Tensor], Tensor] = rotate_pairs if pairs else rotate_half
    full = [t.repeat_interleave(2, -1) if pairs else t for t in (cos, sin)]
    expected = [x * full[0] + turned(x) * full[1] for x in (q, k)]
    got = rope.apply(q, k, cos, sin, rotary_dim=128, interleaved=pairs, round_each=True)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
    if dtype != torch.float32:  # there LMDeploy has to allow for fused multiply-adds, and so do we
        assert_same(got, tuple(expected))


@pytest.mark.parametrize("tokens", [1, 33, 257])
def test_lmdeploys_case_of_strided_rows_is_equal(tokens: int) -> None:
    """The first 64 of 128 columns, one head of k for all, positions up to a million."""
    generator = torch.Generator().manual_seed(tokens)
    q = torch.randn(1, tokens, 32, 128, generator=generator).bfloat16()[..., :64]
    k = torch.randn(1, tokens, 128, generator=generator).bfloat16()[..., None, :64]
    frequencies = 1 / (8_000_000 ** (torch.arange(0, 64, 2).float() / 64))
    angles = torch.linspace(0, 1_048_575, tokens)[:, None] * frequencies
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    full = [t.repeat_interleave(2, -1)[:, None] for t in (cos, sin)]
    got = rope.apply(q, k, cos, sin, rotary_dim=64, interleaved=True, round_each=True)
    for x, one in zip((q, k), got, strict=True):
        assert torch.equal(one, x * full[0] + rotate_pairs(x) * full[1])


# ---- as every other option ----


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_gradients_of_rows_are_those_of_the_eager_form(style: str, dtype: torch.dtype) -> None:
    """But for the sign of zeros: autograd adds to the zeros of a slice's gradient."""
    q, k, cos, sin = Sample(style=style, dtype=dtype, table_dtype=dtype, tokens=9).tensors()
    leaves = [t.clone().requires_grad_() for t in (q, k)]
    definition = [t.clone().requires_grad_() for t in (q, k)]
    rows = []
    for x in definition:
        if style == "deinterleave":
            x = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        turned = rotate_pairs(x) if style == "interleaved" else rotate_half(x)
        rows.append(x * cos[:, None] + turned * sin[:, None])
    out = rope.apply(*leaves, cos, sin, **STYLES[style], round_each=True)
    grads = [torch.randn_like(t) for t in out]
    torch.autograd.backward(out, grads)
    torch.autograd.backward(rows, grads)
    for got, expected in zip(leaves, definition, strict=True):
        assert torch.equal(got.grad, expected.grad)


def test_compiled_and_exported() -> None:
    torch._dynamo.reset()
    q, k, cos, sin = Sample(dtype=torch.bfloat16).tensors()

    class Layer(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
            return npu_rope.apply(q, k, cos, sin, round_each=True)

    expected = npu_rope.reference.apply(q, k, cos, sin, round_each=True)
    assert_same(
        torch.compile(Layer(), fullgraph=True, backend="aot_eager")(q, k, cos, sin), expected
    )
    program = torch.export.export(Layer(), (q, k, cos, sin))
    assert "round_each = True" in program.graph_module.code
    assert_same(program.module()(q, k, cos, sin), expected)
    torch.library.opcheck(rope.apply_.default, (q, k, cos, sin), {"round_each": True})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nothing_changes_for_wider_dtypes(dtype: torch.dtype) -> None:
    tensors = Sample(dtype=dtype).tensors()
    assert_same(rope.apply(*tensors, round_each=True), rope.apply(*tensors))
