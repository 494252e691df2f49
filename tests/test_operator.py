"""The operator against its definition: equal bits over the whole argument space."""

from __future__ import annotations

import os
import subprocess
import sys

import npu_rope
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import DTYPES, STYLES, Sample, any_sample, samples
from torch import Tensor

rope = torch.ops.npu_rope


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Equal bits, signs of zeros too; a NaN equals any NaN."""
    assert len(got) == len(expected)
    for name, a, b in zip(("q", "k"), got, expected, strict=False):
        assert a.shape == b.shape and a.dtype == b.dtype
        ints = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        differs = (a.contiguous().view(ints) != b.contiguous().view(ints)) & ~(
            a.isnan() & b.isnan()
        )
        count = int(differs.sum())
        assert not count, f"{name}: {count} of {a.numel()} elements differ, first at " + str(
            differs.nonzero()[0].tolist()
        )


@given(any_sample())
@settings(max_examples=600, deadline=None)
def test_apply_equals_the_reference(sample: Sample) -> None:
    tensors = sample.tensors()
    before = [t.clone() for t in tensors]
    got = rope.apply(*tensors, **sample.options)
    assert_same(got, npu_rope.reference.apply(*tensors, **sample.options))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    storages = {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
    for out in got:
        assert out.is_contiguous()
        assert not out.numel() or out.untyped_storage().data_ptr() not in storages


@given(any_sample())
@settings(max_examples=300, deadline=None)
def test_backward_equals_the_reference(sample: Sample) -> None:
    tensors = sample.tensors()
    got = rope.apply_backward(*tensors, **sample.options)
    assert_same(got, npu_rope.reference.apply(*tensors, **sample.options, transpose=True))


WRITABLE = ("contiguous", "packed", "sliced", "transposed", "strided")


@given(any_sample(rows=WRITABLE))
@settings(max_examples=300, deadline=None)
def test_inplace_writes_the_slice_and_nothing_else(sample: Sample) -> None:
    q, k, cos, sin = sample.tensors()
    expected = npu_rope.reference.apply(q, k, cos, sin, **sample.options)
    # The whole storage, as it must be afterwards: only what the views show has changed.
    after = [_storage(t).clone() for t in (q, k)]
    for storage, view, value in zip(after, (q, k), expected, strict=True):
        storage.as_strided(view.shape, view.stride(), view.storage_offset()).copy_(value)
    if _storage(q).data_ptr() == _storage(k).data_ptr():  # one packed QKV holds both
        after[0].as_strided(k.shape, k.stride(), k.storage_offset()).copy_(expected[1])
        after[1] = after[0]
    rope.apply_(q, k, cos, sin, **sample.options)
    assert_same((_storage(q), _storage(k)), tuple(after))


def _storage(tensor: Tensor) -> Tensor:
    """All elements of the tensor's storage, those that the view does not show too."""
    return torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())


@given(any_sample(rows=WRITABLE), any_sample(rows=WRITABLE))
@settings(max_examples=200, deadline=None)
def test_out_takes_any_strides_and_its_own_input(sample: Sample, other: Sample) -> None:
    q, k, cos, sin = sample.tensors()
    expected = npu_rope.reference.apply(q, k, cos, sin, **sample.options)
    # Outputs strided in another way than the inputs, in storage of their own.
    q_out, k_out = Sample(**{**vars(sample), "rows": other.rows, "seed": other.seed}).tensors()[:2]
    rope.apply.out(q, k, cos, sin, **sample.options, q_out=q_out, k_out=k_out)
    assert_same((q_out, k_out), expected)
    # One output is its own input, by another tensor object over the same memory.
    rope.apply.out(q, k, cos, sin, **sample.options, q_out=q.view_as(q), k_out=k_out)
    assert_same((q, k_out), expected)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cast_tables", [True, False])
def test_special_values(style: str, dtype: torch.dtype, cast_tables: bool) -> None:
    """Infinities, NaNs, subnormals, zeros of both signs and the largest numbers, all pairs."""
    info = torch.finfo(dtype)
    tiny = info.smallest_normal
    special = [0.0, -0.0, 1.0, -1.0, info.max, info.min, torch.inf, -torch.inf, torch.nan]
    special += [tiny, tiny / 2, -tiny / 4, info.smallest_normal * info.eps]
    values = torch.tensor(special, dtype=torch.float64)
    x = torch.cartesian_prod(values, values).repeat_interleave(len(special), 0)
    tables = torch.tensor([*special[:-1], 1 / 3, 1 + 2**-9], dtype=torch.float64).float()
    # 8 pairs a row, so that vectors are full of them; one table entry for a row.
    q = x.repeat(1, 8).to(dtype)[:, None, :]
    cos = tables.repeat(len(x) // len(tables) + 1)[: len(x), None].repeat(1, 16)
    sin = cos.roll(5, 0)
    if style == "half":
        q = q.unflatten(-1, (8, 2)).transpose(-1, -2).flatten(-2)
    options = {**STYLES[style], "cast_tables": cast_tables}
    expected = npu_rope.reference.apply(q, q, cos, sin, **options)
    assert expected[0].isnan().any() and expected[0].isinf().any()
    assert_same(rope.apply(q, q, cos, sin, **options), expected)
    assert_same(
        rope.apply_backward(q, q, cos, sin, **options),
        npu_rope.reference.apply(q, q, cos, sin, **options, transpose=True),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_value_survives_a_turn_by_zero(dtype: torch.dtype) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    q = x.view(1, 64, 1024)
    cos, sin = torch.ones(1, 1024), torch.zeros(1, 1024)
    for style in ({}, {"interleaved": True}):
        got, _ = rope.apply(q, q[:, :0], cos, sin, **style)
        expected = npu_rope.reference.apply(q, q[:, :0], cos, sin, **style)
        assert_same((got,), expected[:1])


def test_a_quarter_turn_moves_partners_exactly() -> None:
    """Independent of the reference: cos 0, sin 1 makes (x1, x2) into (-x2, x1)."""
    q = torch.arange(1.0, 9.0).view(1, 1, 8)
    cos, sin = torch.zeros(1, 8), torch.ones(1, 8)
    expected = {
        "half": [-5, -6, -7, -8, 1, 2, 3, 4],
        "interleaved": [-2, 1, -4, 3, -6, 5, -8, 7],
        "deinterleave": [-2, -4, -6, -8, 1, 3, 5, 7],
    }
    for style, values in expected.items():
        got, _ = rope.apply(q, q, cos, sin, **STYLES[style])
        assert got.flatten().tolist() == values, style


@pytest.mark.parametrize("round_each", [False, True], ids=["default", "round_each"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("style", STYLES)
def test_whole_vectors_of_one_magnitude(style: str, dtype: torch.dtype, round_each: bool) -> None:
    """Every magnitude of elements beside those of tables: instructions that are only right where
    nothing is subnormal or overflows are chosen by a vector's elements and a token's tables."""
    torch.manual_seed(0)
    elements = torch.cat([torch.arange(e - 5.0, e + 5) for e in (-128, -63, -31, 0, 33, 122)])
    tables = torch.tensor([-130.0, -70, -41, -40, -39, -20, -1, 0, 1, 20, 39, 40, 41, 62, 120])

    def values(exponents: Tensor, *shape: int) -> Tensor:
        mantissas = 1 + torch.randint(8, shape) / 8  # so few that sums cancel
        return (torch.randint(2, shape) * 2 - 1) * torch.ldexp(mantissas, exponents.int())

    tables = tables.repeat(3)  # both; the cosines alone; the sines alone
    tokens, heads, dim = len(tables), len(elements), 92  # a whole step, half ones, single pairs
    q = values(elements[None, :, None], tokens, heads, dim).to(dtype)
    cos, sin = (values(tables[:, None], tokens, dim).float() for _ in range(2))
    sin[tokens // 3 : tokens // 3 * 2] = 0
    cos[tokens // 3 * 2 :] = 0
    options = {**STYLES[style], "round_each": round_each}
    got = rope.apply(q, q[:, :3], cos, sin, **options)
    assert_same(got, npu_rope.reference.apply(q, q[:, :3], cos, sin, **options))


def test_large_strides_and_batches_that_do_not_fold() -> None:
    storage = torch.randn(3, 1000, 4, 6, 32).bfloat16()
    q, k = storage[:, ::7, 1, :4], storage[:, ::7, 2, 4:]
    cos, sin = torch.randn(3, 143, 32), torch.randn(3, 143, 32)
    got = rope.apply(q, k, cos[:, :, :], sin)
    assert_same(got, npu_rope.reference.apply(q, k, cos, sin))


PROGRAM = """
import sys, numpy, torch, npu_rope
torch.set_num_threads(int(sys.argv[1]))
random = numpy.random.default_rng(0)  # torch's own depends on the instruction set
def values(*shape):
    return torch.from_numpy(random.standard_normal(shape, dtype=numpy.float32))
q, k = values(513, 24, 80).bfloat16(), values(513, 3, 80).bfloat16()
cos, sin = values(513, 40), values(513, 40)
for style in ({}, {"interleaved": True}):
    options = {"rotary_dim": 80, "cast_tables": False, **style}
    for out in torch.ops.npu_rope.apply(q, k, cos, sin, **options):
        print(hash(out.view(torch.int16).numpy().tobytes()))
"""


def test_bits_do_not_depend_on_threads_or_instruction_set() -> None:
    def run(threads: int, capability: str) -> str:
        env = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-c", PROGRAM, str(threads)]
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

    expected = run(1, "default")
    assert len(set(expected.split())) == 4
    capabilities = {"default", torch.backends.cpu.get_cpu_capability().lower()} - {"no avx"}
    for threads in (1, 2, 3):
        for capability in capabilities:
            assert run(threads, capability) == expected, (threads, capability)


@pytest.mark.parametrize("sample", list(samples()), ids=str)
def test_public_functions_are_the_operator(sample: Sample) -> None:
    q, k, cos, sin = sample.tensors()
    expected = rope.apply(q, k, cos, sin, **sample.options)
    assert_same(npu_rope.apply(q, k, cos, sin, **sample.options), expected)
    q_out, k_out = torch.empty_like(q).contiguous(), torch.empty_like(k).contiguous()
    npu_rope.apply_out(q, k, cos, sin, **sample.options, q_out=q_out, k_out=k_out)
    assert_same((q_out, k_out), expected)
    grads = npu_rope.apply_backward(q, k, cos, sin, **sample.options)
    assert_same(grads, rope.apply_backward(q, k, cos, sin, **sample.options))
    run = npu_rope.simulator.apply(q, k, cos, sin, **sample.options)
    assert_same((run.q, run.k), expected)
    if sample.rows != "expanded":
        before = q.clone(), k.clone()
        npu_rope.simulator.apply_(q, k, cos, sin, **sample.options)
        assert_same((q, k), expected)
        q.copy_(before[0])
        k.copy_(before[1])
        npu_rope.apply_(q, k, cos, sin, **sample.options)
        assert_same((q, k), expected)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_round_each_is_defined_as_eager_torch_in_that_dtype(style: str, dtype: torch.dtype) -> None:
    """Independent of the reference: the code that the operator takes the place of."""
    q, k, cos, sin = Sample(tokens=33, head_dim=40, style=style, dtype=dtype).tensors()
    cos, sin = cos.to(dtype)[:, None], sin.to(dtype)[:, None]

    def rotate_half(x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, -1)
        return torch.cat((-x2, x1), -1)

    def rotate_every_two(x: Tensor) -> Tensor:
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)

    def eager(x: Tensor) -> Tensor:
        if style == "deinterleave":
            x = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        turned = rotate_every_two(x) if style == "interleaved" else rotate_half(x)
        return x * cos + turned * sin

    got = npu_rope.reference.apply(q, k, cos, sin, **STYLES[style], round_each=True)
    assert_same(got, (eager(q), eager(k)))
    once = npu_rope.reference.apply(q, k, cos, sin, **STYLES[style])
    assert not torch.equal(got[0], once[0])


@given(any_sample(rows=WRITABLE), st.sampled_from("qk"))
@settings(max_examples=150, deadline=None)
def test_one_of_q_and_k_may_be_none(sample: Sample, kept: str) -> None:
    q, k, cos, sin = sample.tensors()
    for form, transpose in ((rope.apply, False), (rope.apply_backward, True)):
        both = npu_rope.reference.apply(q, k, cos, sin, **sample.options, transpose=transpose)
        rows = (q, None) if kept == "q" else (None, k)
        got = form(*rows, cos, sin, **sample.options)
        assert [out is None for out in got] == [row is None for row in rows]
        assert_same((got[kept == "k"],), (both[kept == "k"],))
    expected = npu_rope.reference.apply(q, k, cos, sin, **sample.options)[kept == "k"]
    out = torch.empty(expected.shape, dtype=expected.dtype)
    outs = {"q_out": out, "k_out": None} if kept == "q" else {"q_out": None, "k_out": out}
    rope.apply.out(*rows, cos, sin, **sample.options, **outs)
    rope.apply_(*rows, cos, sin, **sample.options)
    assert_same((out, rows[kept == "k"]), (expected, expected))
