"""norm_apply's Ascend C kernel on simulated cores: the bits of the CPU, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_samples import Call, any_call, calls
from npu_rope import _C, simulator
from samples import DTYPES, STYLES, Sample
from test_kernel import passes
from test_operator import WRITABLE, assert_same
from torch import Tensor

rope = torch.ops.npu_rope


def refusal(call: Call) -> str | None:
    """What the kernel says of rows that it does not normalise."""
    sample = call.sample
    if sample.dtype == torch.float64:
        return "float64"
    if not call.which:
        return None
    block = 8 if sample.dtype == torch.float32 else 16
    if sample.style == "half" and sample.width % 16:
        return "halves of whole 8 columns"
    if sample.width == sample.head_dim:
        return None
    if sample.style != "half":
        return "interleaved rows on the NPU where all of them is rotated"
    if sample.head_dim % block or sample.rotary_offset % block:
        return "begin at 32 bytes"
    return None


@st.composite
def any_kernel_call(draw: st.DrawFn, rows: tuple[str, ...] | None = None) -> Call:
    """What any_call draws, with sizes that the kernel takes."""
    call = draw(any_call(rows=rows))
    sample = call.sample
    if sample.dtype == torch.float64:
        sample.dtype = draw(st.sampled_from(DTYPES))
        sample.table_dtype = draw(st.sampled_from(DTYPES))
    call.weight_dtype = draw(st.sampled_from(DTYPES))
    if sample.style == "half":
        after = sample.head_dim - sample.width - sample.rotary_offset
        offset, width, after = (
            math.ceil(n / 16) * 16 for n in (sample.rotary_offset, sample.width, after)
        )
        sample.head_dim, sample.rotary_dim, sample.rotary_offset = (
            offset + width + after,
            width,
            offset,
        )
    else:
        sample.head_dim, sample.rotary_offset = sample.width, 0
    assert refusal(call) is None
    return call


@given(any_kernel_call())
@settings(max_examples=250, deadline=None)
def test_bits_are_the_operators(call: Call) -> None:
    tensors = call.tensors()
    run = simulator.norm_apply(*tensors, **call.options)
    assert_same((run.q, run.k), rope.norm_apply(*tensors, **call.options))


@given(any_kernel_call(rows=WRITABLE))
@settings(max_examples=150, deadline=None)
def test_bits_in_place(call: Call) -> None:
    tensors = q, k, *_ = call.tensors()
    expected = rope.norm_apply(*tensors, **call.options)
    simulator.norm_apply_(*tensors, **call.options)
    assert_same((q, k), expected)


@given(any_call())
@settings(max_examples=100, deadline=None)
def test_what_is_not_taken_is_refused_before_a_launch(call: Call) -> None:
    why = refusal(call)
    if why is None:
        simulator.norm_apply(*call.tensors(), **call.options)
        return
    with pytest.raises(ValueError, match=why):
        simulator.norm_apply(*call.tensors(), **call.options)


@pytest.mark.parametrize("dim", [2, 6, 16, 18, 34, 64, 72, 80, 128, 144, 192, 256, 320, 576, 1024])
@pytest.mark.parametrize("style", STYLES)
def test_head_dims(dim: int, style: str) -> None:
    """Sums of every length, whose bits depend on the order of additions."""
    for dtype in DTYPES:
        call = Call(Sample(head_dim=dim, style=style, dtype=dtype, tokens=3, q_heads=37))
        if refusal(call):
            continue
        tensors = call.tensors()
        tensors[0].mul_(torch.logspace(-3, 3, dim).to(dtype))
        run = simulator.norm_apply(*tensors, **call.options)
        assert_same((run.q, run.k), rope.norm_apply(*tensors, **call.options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_special_values(dtype: torch.dtype, style: str, eps: float) -> None:
    """A row of zeros, infinities, NaNs, the largest numbers, the smallest."""
    info = torch.finfo(dtype)
    special = [torch.inf, -torch.inf, torch.nan, info.max, info.smallest_normal * info.eps, 0.0]
    rows = torch.randn(len(special) * 32, 1, 32, generator=torch.Generator().manual_seed(0))
    for i, value in enumerate(special):
        for place in range(32):
            rows[32 * i + place, 0, place] = value
    rows = torch.cat((rows, torch.zeros(1, 1, 32), torch.full((1, 1, 32), info.max))).to(dtype)
    weights = torch.randn(2, 32)
    weights[0, :4] = torch.tensor([0.0, -0.0, torch.inf, torch.nan])
    angles = torch.rand(len(rows), 32) * 6
    arguments = rows, rows, *weights, angles.cos(), angles.sin()
    expected = rope.norm_apply(*arguments, eps=eps, **STYLES[style])
    run = simulator.norm_apply(*arguments, eps=eps, **STYLES[style])
    assert_same((run.q, run.k), expected)
    zeros = run.k[-2]
    assert zeros.isnan().all() if eps == 0 else (zeros == 0).all()


@pytest.mark.parametrize("soc", [c.name for c in _C.chips() if c.arch == 2201])
def test_chips(soc: str) -> None:
    call = Call(Sample(tokens=45, q_heads=8, head_dim=128))
    run = simulator.norm_apply(*call.tensors(), soc=soc, **call.options)
    assert_same((run.q, run.k), rope.norm_apply(*call.tensors(), **call.options))


def test_without_weights_it_is_apply() -> None:
    """The same entry, plan and instructions."""
    for call in calls():
        if call.sample.dtype == torch.float64:
            continue
        q, k, _, _, cos, sin = call.tensors()
        runs = (
            simulator.norm_apply(q, k, None, None, cos, sin, eps=1e-6, **call.sample.options),
            simulator.apply(q, k, cos, sin, **call.sample.options),
        )
        assert_same((runs[0].q, runs[0].k), (runs[1].q, runs[1].k))
        assert runs[0].trace.repeats() == runs[1].trace.repeats()


# ---- What it costs ----


def run_prefill(
    tokens: int,
    dtype: torch.dtype = torch.bfloat16,
    style: str = "half",
    which: str = "qk",
    rotary_dim: int | None = None,
    events: bool = False,
) -> simulator.Run[Tensor, Tensor]:
    sample = Sample(tokens=tokens, q_heads=64, k_heads=8, head_dim=128, dtype=dtype, style=style,
                    rotary_dim=rotary_dim)  # fmt: skip
    call = Call(sample, which)
    tensors = call.tensors()
    expected = rope.norm_apply(*tensors, **call.options)
    run = simulator.norm_apply_(*tensors, events=events, **call.options)
    assert_same((run.q, run.k), expected)
    return run


@pytest.mark.parametrize("rotary_dim", [None, 64])
def test_every_byte_moves_once(rotary_dim: int | None) -> None:
    """But for the weights, which each core loads."""
    trace = run_prefill(768, rotary_dim=rotary_dim).trace
    weights = 2 * 128 * 2
    assert trace.gm_bytes == trace.least_gm_bytes + (trace.cores_used - 1) * weights
    assert trace.gm_bytes < 1.005 * trace.least_gm_bytes


@pytest.mark.parametrize(
    ("style", "dtype", "more"),
    [
        ("half", torch.bfloat16, 8),
        ("half", torch.float16, 8),
        ("half", torch.float32, 12),  # copied to where it is normalised, and back
        ("interleaved", torch.bfloat16, 10),  # the row in its loaded order, widened for the sum
        ("deinterleave", torch.float16, 10),
        ("deinterleave", torch.float32, 10),  # copied back
    ],
)
def test_vector_passes(style: str, dtype: torch.dtype, more: float) -> None:
    """Squares, their sums, and two products of two passes each, beside the rotation's own."""
    sample = Sample(tokens=384, q_heads=64, k_heads=8, head_dim=128, dtype=dtype, style=style)
    alone = simulator.apply(*sample.tensors(), **sample.options)
    both = simulator.norm_apply(*Call(sample).tensors(), **Call(sample).options)
    sums = 16 + 2 + 5 / 2  # of a row's 16 blocks, their sums, and five passes over its factor
    small = (sums + 1) / 128
    assert passes(both) - passes(alone) == pytest.approx(more / 2 + small, rel=0.05)


@pytest.mark.parametrize("rotary_dim", [None, 64])
def test_no_product_meets_another_row_in_a_bank(rotary_dim: int | None) -> None:
    """Neither a factor's block the row that it multiplies, nor what is made of rows the rows."""
    counters = run_prefill(64, rotary_dim=rotary_dim).trace.counters
    assert {count.conflicts for count in counters.vector if count.api == "Mul"} == {0}


def test_rows_of_none_are_only_rotated() -> None:
    both, only_q = (run_prefill(64, which=which).trace for which in ("qk", "q"))
    assert only_q.repeats("BlockReduceSum") < both.repeats("BlockReduceSum")
    rows = 64 * 64
    assert 2 * rows < only_q.repeats("BlockReduceSum") < 2.5 * rows


def test_one_launch_takes_the_weights_once() -> None:
    run = run_prefill(300, events=True)
    for core in run.trace.cores:
        regions = [e.gm_region for e in core.events if e.pipe == "MTE2"]
        assert sorted(r for r in regions if r >= 6) == [6, 7]
