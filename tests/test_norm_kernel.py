"""norm_apply's Ascend C kernel on simulated cores: the bits of the CPU, and what it costs."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

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
AS_THEY_LIE, ARRANGED = 2, 3  # RopeParams::kind


@st.composite
def any_kernel_call(draw: st.DrawFn, rows: tuple[str, ...] | None = None) -> Call:
    """What any_call draws, with dtypes that the kernel takes."""
    call = draw(any_call(rows=rows))
    sample = call.sample
    if sample.dtype == torch.float64:
        sample.dtype = draw(st.sampled_from(DTYPES))
        sample.table_dtype = draw(st.sampled_from(DTYPES))
    call.weight_dtype = draw(st.sampled_from(DTYPES))
    return call


def whole_blocks(call: Call) -> Call:
    """The same with rows that are worked on as they lie, which few are that are drawn."""
    sample = call.sample
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
    return call


@pytest.mark.parametrize("arranged", [False, True])
def test_bits_are_the_operators(arranged: bool) -> None:
    kinds = Counter()

    @given(any_kernel_call())
    @settings(max_examples=250, deadline=None)
    def check(call: Call) -> None:
        tensors = (call if arranged else whole_blocks(call)).tensors()
        run = simulator.norm_apply(*tensors, **call.options)
        assert_same((run.q, run.k), rope.norm_apply(*tensors, **call.options))
        kinds[run.trace.plan.params.kind] += 1

    check()
    assert kinds[ARRANGED if arranged else AS_THEY_LIE] > 50
    assert arranged or kinds[ARRANGED] == 0


@pytest.mark.parametrize("arranged", [False, True])
@given(any_kernel_call(rows=WRITABLE))
@settings(max_examples=150, deadline=None)
def test_bits_in_place(arranged: bool, call: Call) -> None:
    call = call if arranged else whole_blocks(call)
    tensors = q, k, *_ = call.tensors()
    expected = rope.norm_apply(*tensors, **call.options)
    simulator.norm_apply_(*tensors, **call.options)
    assert_same((q, k), expected)


@pytest.mark.parametrize("dim", [2, 6, 16, 18, 34, 64, 72, 80, 128, 144, 192, 256, 320, 576, 1024])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("part", [1, 2])
def test_head_dims(dim: int, style: str, part: int) -> None:
    """Sums of every length, whose bits depend on the order of additions."""
    rotary_dim = math.ceil(dim / part / 2) * 2
    for dtype in DTYPES:
        call = Call(Sample(head_dim=dim, rotary_dim=rotary_dim, rotary_offset=dim - rotary_dim,
                           style=style, dtype=dtype, tokens=3, q_heads=37))  # fmt: skip
        tensors = call.tensors()
        tensors[0].mul_(torch.logspace(-3, 3, dim).to(dtype))
        run = simulator.norm_apply(*tensors, **call.options)
        assert_same((run.q, run.k), rope.norm_apply(*tensors, **call.options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("rotary_dim", [32, 12])
def test_special_values(dtype: torch.dtype, style: str, eps: float, rotary_dim: int) -> None:
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
    angles = torch.rand(len(rows), rotary_dim) * 6
    arguments = rows, rows, *weights, angles.cos(), angles.sin()
    options = {"eps": eps, "rotary_offset": 3 * (rotary_dim < 32), **STYLES[style]}
    expected = rope.norm_apply(*arguments, **options)
    run = simulator.norm_apply(*arguments, **options)
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


# ---- Rows in another order ----


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (AS_THEY_LIE, {"head_dim": 80}),
        (AS_THEY_LIE, {"head_dim": 128, "rotary_dim": 64, "rotary_offset": 16}),
        (AS_THEY_LIE, {"head_dim": 18, "style": "interleaved"}),
        (ARRANGED, {"head_dim": 72}),
        (ARRANGED, {"head_dim": 128, "rotary_dim": 64, "rotary_offset": 8}),
        (AS_THEY_LIE, {"head_dim": 128, "rotary_dim": 64, "rotary_offset": 8,
                       "dtype": torch.float32}),
        (ARRANGED, {"head_dim": 128, "rotary_dim": 64, "style": "interleaved"}),
        (ARRANGED, {"head_dim": 128, "rotary_dim": 64, "style": "deinterleave"}),
    ],
)  # fmt: skip
def test_only_rows_that_do_not_lie_at_blocks_are_arranged(
    kind: int, options: dict[str, Any]
) -> None:
    call = Call(Sample(**options))
    run = simulator.norm_apply(*call.tensors(), **call.options)
    assert run.trace.plan.params.kind == kind
    assert_same((run.q, run.k), rope.norm_apply(*call.tensors(), **call.options))
    assert (run.trace.repeats("Gather") > 0) == (kind == ARRANGED)


@pytest.mark.parametrize(
    ("offset", "repeats"),
    [
        (0, 2),  # the 64 columns that are rotated, in and out
        (64, 4),
    ],
)
def test_columns_that_stay_are_not_gathered(offset: int, repeats: int) -> None:
    sample = Sample(tokens=100, q_heads=8, k_heads=2, head_dim=128, rotary_dim=64,
                    rotary_offset=offset, style="interleaved")  # fmt: skip
    run = simulator.norm_apply(*Call(sample).tensors(), **Call(sample).options)
    weights = 2 * 2 * run.trace.cores_used
    assert run.trace.repeats("Gather") == repeats * 100 * 10 + weights


def test_arranged_rows_move_once() -> None:
    sample = Sample(tokens=768, q_heads=16, k_heads=16, head_dim=72)
    tensors, options = Call(sample).tensors(), Call(sample).options
    run = simulator.norm_apply(*tensors, **options)
    assert_same((run.q, run.k), rope.norm_apply(*tensors, **options))
    assert run.trace.gm_bytes < 1.005 * run.trace.least_gm_bytes


@pytest.mark.parametrize("table_dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("rotary_dim", [2, 32, 72])
def test_a_single_row(rotary_dim: int, style: str, table_dtype: torch.dtype) -> None:
    """Buffers are as short as they get, and table rows take whole units of a transpose."""
    for dtype in DTYPES:
        sample = Sample(tokens=1, q_heads=1, k_heads=0, head_dim=72, rotary_dim=rotary_dim,
                        style=style, dtype=dtype, table_dtype=table_dtype)  # fmt: skip
        tensors, options = Call(sample).tensors(), Call(sample).options
        run = simulator.norm_apply(*tensors, **options)
        assert_same((run.q, run.k), rope.norm_apply(*tensors, **options))
