"""The Ascend C kernel on simulated cores: the operator's bits, and what it costs, counted."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import npu_rope
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from npu_rope import _C, simulator
from samples import DTYPES, LAYOUTS, STYLES, Sample, any_sample, samples
from test_operator import assert_same
from torch import Tensor

rope = torch.ops.npu_rope


def runs(sample: Sample) -> bool:
    """The kernel has no float64, and its rows are dense: the operator copies others before it."""
    tensors = sample.tensors()
    dense = all(t.stride(-1) == 1 or t.size(-1) == 1 or not t.numel() for t in tensors)
    return dense and torch.float64 not in (sample.dtype, sample.table_dtype)


@pytest.mark.parametrize("sample", list(filter(runs, samples())), ids=str)
def test_equals_the_operator(sample: Sample) -> None:
    tensors = sample.tensors()
    run = simulator.apply(*tensors, **sample.options)
    assert_same((run.q, run.k), rope.apply(*tensors, **sample.options))
    run = simulator.apply(*tensors, **sample.options, transpose=True)
    assert_same((run.q, run.k), rope.apply_backward(*tensors, **sample.options))


@given(any_sample())
@settings(max_examples=300, deadline=None)
def test_equals_the_operator_anywhere(sample: Sample) -> None:
    assume(runs(sample))
    tensors = sample.tensors()
    run = simulator.apply(*tensors, **sample.options)
    assert_same((run.q, run.k), rope.apply(*tensors, **sample.options))


@given(any_sample())
@settings(max_examples=150, deadline=None)
def test_transposed_equals_the_operator_anywhere(sample: Sample) -> None:
    assume(runs(sample))
    tensors = sample.tensors()
    run = simulator.apply(*tensors, **sample.options, transpose=True)
    assert_same((run.q, run.k), rope.apply_backward(*tensors, **sample.options))


@given(any_sample(rows=("contiguous", "packed", "sliced", "transposed")))
@settings(max_examples=150, deadline=None)
def test_in_place_equals_the_operator_anywhere(sample: Sample) -> None:
    assume(runs(sample))
    q, k, cos, sin = sample.tensors()
    expected = rope.apply(q, k, cos, sin, **sample.options)
    run = simulator.apply_(q, k, cos, sin, **sample.options)
    assert run.q is q and run.k is k
    assert_same((q, k), expected)


@pytest.mark.parametrize("dim", [2, 18, 34, 50, 64, 72, 80, 96, 112, 128, 144, 192, 256, 576, 1024])
@pytest.mark.parametrize("style", STYLES)
def test_head_dims(dim: int, style: str) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        sample = Sample(head_dim=dim, style=style, dtype=dtype, tokens=3, q_heads=7, k_heads=2)
        tensors = sample.tensors()
        run = simulator.apply(*tensors, **sample.options)
        assert_same((run.q, run.k), rope.apply(*tensors, **sample.options))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("cast_tables", [True, False])
def test_round_each(style: str, cast_tables: bool) -> None:
    """Products rounded to the dtype, in every order of rows; for fp32 nothing changes."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for dim in (36, 72, 80, 128, 192):
            sample = Sample(dtype=dtype, style=style, head_dim=dim, tokens=5, q_heads=7,
                            cast_tables=cast_tables, round_each=True)  # fmt: skip
            tensors = sample.tensors()
            run = simulator.apply(*tensors, **sample.options)
            expected = rope.apply(*tensors, **sample.options)
            assert_same((run.q, run.k), expected)
            run = simulator.apply(*tensors, **sample.options, transpose=True)
            assert_same((run.q, run.k), rope.apply_backward(*tensors, **sample.options))


def test_round_each_costs_four_passes() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        costs = []
        for round_each in (False, True):
            sample = Sample(dtype=dtype, head_dim=128, tokens=9, q_heads=8, round_each=round_each)
            costs.append(passes(simulator.apply(*sample.tensors(), **sample.options)))
        assert costs[1] - costs[0] == pytest.approx(4)


def test_inputs_larger_than_l2_pass_it_by() -> None:
    """Where q and k go elsewhere; in place their lines are wanted again by the stores."""
    chip = _C.find_chip("Ascend910B1")
    for tokens, in_place, cached in ((9, False, True), (9000, False, False), (9000, True, True)):
        q, k = (torch.empty(tokens, heads, 128, dtype=torch.bfloat16) for heads in (64, 8))
        tables = torch.empty(2, tokens, 128)
        out = (q, k) if in_place else (torch.empty_like(q), torch.empty_like(k))
        geometry = _C.geometry_of(q, k, *tables, *out)
        plan = _C.plan_rope(geometry, chip)
        assert list(plan.params.stream_in) == [not cached] * 2
    sample = Sample(tokens=3, q_heads=4)
    tensors = *sample.tensors(), *map(torch.empty_like, sample.tensors()[:2])
    geometry = _C.geometry_of(*tensors, **sample.options)
    chip.l2_bytes = 1
    raw = _C.simulate_rope(_C.plan_rope(geometry, chip), *tensors, soc=chip.name, events=True)
    loads = [e for core in raw.cores for e in core.events if e.pipe == "MTE2"]
    assert {e.cached for e in loads if e.gm_region in (2, 3)} == {False}  # q and k
    assert {e.cached for e in loads if e.gm_region in (4, 5)} == {True}  # tables serve many rows


# head_dim, rotary_dim, rotary_offset: where rows move whole and are rotated where they lie.
WHOLE = [(128, 64, 0), (128, 64, 16), (128, 64, 64), (192, 64, 128), (96, 32, 32), (1024, 512, 0)]
# And where they do not: columns or halves that begin inside a block, transposes of parts of rows.
APART = [(128, 64, 1), (130, 64, 0), (128, 20, 0), (128, 96, 16), (1024, 768, 64)]


@pytest.mark.parametrize("layout", ["TND", "BNSD"])
@pytest.mark.parametrize("shape", [*WHOLE, *APART], ids=str)
@pytest.mark.parametrize("style", STYLES)
def test_columns_that_pass_through(shape: tuple[int, int, int], style: str, layout: str) -> None:
    dim, rotary, offset = shape
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        sample = Sample(layout, tokens=21, q_heads=7, head_dim=dim, rotary_dim=rotary,
                        rotary_offset=offset, style=style, dtype=dtype, rows="packed")  # fmt: skip
        tensors = sample.tensors()
        run = simulator.apply(*tensors, **sample.options)
        assert_same((run.q, run.k), rope.apply(*tensors, **sample.options))
        run = simulator.apply(*tensors, **sample.options, transpose=True)
        assert_same((run.q, run.k), rope.apply_backward(*tensors, **sample.options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("half_tables", [False, True])
@pytest.mark.parametrize(
    ("layout", "shape"),
    [("BSND", (1, 1487, 7, 64)), ("BSND", (5, 200, 5, 32)), ("BNSD", (3, 29, 119, 64)),
     ("BNSD", (1, 77, 83, 32))],
)  # fmt: skip
def test_upright_rows(
    layout: str, shape: tuple[int, ...], half_tables: bool, dtype: torch.dtype
) -> None:
    """Lines are tokens or heads, of which the last tile or box has less than 16."""
    torch.manual_seed(0)
    dim, tokens = shape[3], shape[1 if layout == "BSND" else 2]
    q, k = torch.randn(2, *shape).to(dtype)
    angles = torch.rand(tokens, dim // 2 if half_tables else dim, dtype=torch.float64) * 6
    cos, sin = angles.cos().float(), angles.sin().float()
    options = {"layout": layout, "rotary_dim": dim, "interleaved": True}
    for more in ({}, {"round_each": True}, {"cast_tables": False}):
        run = simulator.apply(q, k, cos, sin, **options, **more)
        assert_same((run.q, run.k), rope.apply(q, k, cos, sin, **options, **more))
        plan = _C.plan_rope(run.trace.geometry, _C.find_chip(run.trace.soc))
        assert plan.params.upright == (1 if layout == "BSND" else 2)
    back = simulator.apply(q, k, cos, sin, transpose=True, **options)
    assert_same((back.q, back.k), rope.apply_backward(q, k, cos, sin, **options))


def many_pairs(seed: int) -> Sample:
    """Calls with so many interleaved rows that many stand upright; drawn evenly, not as hypothesis
    draws, or nearly all would be of those that do not."""
    pick = random.Random(seed).choice
    layout = pick(LAYOUTS)
    dtype = pick(DTYPES)
    head_dim = pick([32, 64, 96, 256])
    return Sample(
        layout=layout,
        batch=pick([1, 2, 3]) if len(layout) == 4 else 1,
        tokens=pick([33, 200, 611, 611]),
        q_heads=pick([0, 1, 5, 17, 17]),
        k_heads=pick([0, 1, 3]),
        head_dim=head_dim,
        rotary_dim=head_dim,
        style="interleaved",
        dtype=dtype,
        table_dtype=pick(DTYPES),
        half_tables=pick([False, True]),
        cast_tables=pick([False, True]),
        round_each=pick([False, True]),
        rows=pick(["contiguous", "packed", "transposed"]),
        table_rank=pick([2, 3, 4] if len(layout) == 4 else [2, 3]),
        broadcast=pick(["", "B", "S", "BS"]),
        odd_strides=pick([False, True]),
        seed=seed,
    )


@pytest.mark.parametrize("form", ["apply", "apply_", "backward"])
def test_many_pairs_equal_the_operator_anywhere(form: str) -> None:
    upright = Counter()

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=100, deadline=None)
    def check(seed: int) -> None:
        sample = many_pairs(seed)
        tensors = sample.tensors()
        if form == "backward":
            expected = rope.apply_backward(*tensors, **sample.options)
            run = simulator.apply(*tensors, **sample.options, transpose=True)
        else:
            expected = rope.apply(*tensors, **sample.options)
            run = getattr(simulator, form)(*tensors, **sample.options)
        assert_same((run.q, run.k), expected)
        upright[run.trace.plan.params.upright] += 1

    check()
    assert upright[1] + upright[2] > 5, upright


@pytest.mark.parametrize("style", STYLES)
def test_one_output_in_place(style: str) -> None:
    """Of k only what is rotated moves, of q whole rows."""
    sample = Sample(tokens=9, head_dim=128, rotary_dim=64, rotary_offset=32, style=style)
    q, k, cos, sin = sample.tensors()
    expected = rope.apply(q, k, cos, sin, **sample.options)
    q_out = torch.empty_like(q)
    tensors = q, k, cos, sin, q_out, k
    geometry = _C.geometry_of(*tensors, **sample.options)
    plan = _C.plan_rope(geometry, _C.find_chip("Ascend910B1"))
    raw = _C.simulate_rope(plan, *tensors, soc="Ascend910B1")
    assert_same((q_out, k), expected)
    trace = simulator.Trace(geometry, plan, raw)
    assert trace.gm_bytes == trace.least_gm_bytes


def test_heads_beyond_the_reach_of_a_transfer() -> None:
    """A gap of 4 GB and more is more than one DataCopyPad can express."""
    far = 2**31 + 40  # elements; the memory between is never touched
    q = torch.empty(far + 64, dtype=torch.bfloat16).as_strided((3, 2, 64), (0, far, 1))[:1]
    k = torch.randn(1, 1, 64).bfloat16()
    q.copy_(torch.randn(1, 2, 64))
    cos, sin = torch.randn(2, 1, 64)
    expected = rope.apply(q, k, cos, sin)
    run = simulator.apply_(q, k, cos, sin)
    assert_same((run.q, run.k), expected)


@pytest.mark.parametrize("soc", [c.name for c in _C.chips() if c.arch == 2201])
def test_chips(soc: str) -> None:
    sample = Sample(tokens=45, q_heads=8, head_dim=128)
    run = simulator.apply(*sample.tensors(), soc=soc, **sample.options)
    assert run.trace.cores_used <= _C.find_chip(soc).cores
    assert_same((run.q, run.k), rope.apply(*sample.tensors(), **sample.options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("style", STYLES)
def test_special_values(dtype: torch.dtype, style: str) -> None:
    sample = Sample(dtype=dtype, style=style, head_dim=64, tokens=3)
    q, k, cos, sin = sample.tensors()
    info = torch.finfo(dtype)
    special = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, info.max, info.min, info.tiny]
    values = torch.tensor([*special, info.tiny / 4, -info.tiny / 2], dtype=dtype)
    picks = torch.randint(len(values), q.shape, generator=torch.Generator().manual_seed(0))
    q = values[picks]
    cos[0, :8] = torch.tensor([0.0, -0.0, torch.inf, torch.nan, 1e38, -1e38, 1e-40, 1e-45])
    run = simulator.apply(q, k, cos, sin, **sample.options)
    assert_same((run.q, run.k), rope.apply(q, k, cos, sin, **sample.options))


def test_results_and_trace_do_not_depend_on_threads() -> None:
    sample = Sample(tokens=100, q_heads=8, head_dim=80, style="interleaved")
    one, two = (simulator.apply(*sample.tensors(), threads=n, **sample.options) for n in (1, 2))
    assert_same((one.q, one.k), (two.q, two.k))
    assert [c.counters.loads for c in one.trace.cores] == [
        c.counters.loads for c in two.trace.cores
    ]
    assert one.trace.gm_bytes == two.trace.gm_bytes


# What it costs. The shapes are in place: q and k are read and written once at least.


@dataclasses.dataclass
class Shape:
    tokens: int
    q_heads: int
    k_heads: int
    dim: int
    rotary: int = 0  # 0: dim; else the last columns of a head
    k_row: int = 0  # 0: dim; else the columns of a row of k

    def views(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        rotary = self.rotary or self.dim
        q = torch.randn(self.tokens, self.q_heads, self.dim).to(dtype)
        k = torch.randn(self.tokens, self.k_heads, self.k_row or self.dim).to(dtype)
        return q[..., -rotary:], k[..., -rotary:]


PREFILL = Shape(1536, 64, 8, 128)
VISION = Shape(2048, 16, 16, 80)
ODD = Shape(2048, 16, 16, 72)
MLA = Shape(1024, 128, 1, 192, rotary=64, k_row=576)


def run_shape(
    shape: Shape,
    dtype: torch.dtype = torch.bfloat16,
    table_dtype: torch.dtype = torch.float32,
    style: str = "half",
    events: bool = False,
) -> simulator.Run:
    torch.manual_seed(0)
    q, k = shape.views(dtype)
    angles = torch.rand(shape.tokens, shape.rotary or shape.dim, dtype=torch.float64) * 100
    cos, sin = angles.cos().to(table_dtype), angles.sin().to(table_dtype)
    expected = rope.apply(q, k, cos, sin, **STYLES[style])
    run = simulator.apply_(q, k, cos, sin, events=events, **STYLES[style])
    assert_same((run.q, run.k), expected)
    return run


@pytest.mark.parametrize("shape", [PREFILL, VISION, ODD, MLA], ids=str)
def test_every_byte_moves_once(shape: Shape) -> None:
    trace = run_shape(shape).trace
    assert trace.gm_bytes == trace.least_gm_bytes


def passes(run: simulator.Run) -> float:
    """Elements worked on for each element of q and k, at 64 a cycle by the documented rates."""
    fast = ("TransDataTo5HD", "And", "Or")  # of 16-bit elements 128 a cycle
    rate = {(api, "uint16_t"): 2.0 for api in fast}
    worked = sum(
        count.elements / rate.get((count.api, count.dst_dtype), 1.0)
        for count in run.trace.counters.vector
        if count.api != "Duplicate"  # once a launch
    )
    return worked / (run.q.numel() + run.k.numel())


# Passes of q and k, and passes of the tables (which 72 heads share).
@pytest.mark.parametrize(
    ("style", "dtype", "table_dtype", "rows", "tables"),
    [
        ("half", torch.bfloat16, torch.float32, 5, 4),  # tables: rounded, and back
        ("half", torch.bfloat16, torch.bfloat16, 5, 2),
        ("half", torch.bfloat16, torch.float16, 5, 6),
        ("half", torch.float16, torch.float32, 5, 4),
        ("half", torch.float32, torch.float32, 3, 2),
        ("interleaved", torch.bfloat16, torch.float32, 7, 8),
        ("interleaved", torch.float16, torch.float16, 7, 4),
        ("interleaved", torch.float32, torch.float32, 8, 6),
        ("deinterleave", torch.bfloat16, torch.float32, 5, 4),
        ("deinterleave", torch.float16, torch.float32, 6, 4),
        ("deinterleave", torch.float32, torch.float32, 6, 2),
    ],
)
def test_vector_passes(
    style: str, dtype: torch.dtype, table_dtype: torch.dtype, rows: float, tables: float
) -> None:
    run = run_shape(Shape(192, 64, 8, 128), dtype, table_dtype, style)
    # A core's tables of pairs may end in part of a unit.
    assert passes(run) == pytest.approx(rows + tables / 72, rel=3e-3)


@pytest.mark.parametrize(
    ("dtype", "dim", "rows"),
    [(torch.float16, 128, 6), (torch.bfloat16, 64, 6), (torch.float32, 128, 5)],
)
def test_vector_passes_of_upright_rows(dtype: torch.dtype, dim: int, rows: float) -> None:
    """Of 16 tokens a core. Tables are split, widened or copied, and stood up."""
    run = run_shape(Shape(768, 64, 8, dim), dtype, dtype, "interleaved")
    tables = 6 if dtype != torch.float32 else 8
    assert passes(run) == pytest.approx(rows + tables / 72)


@pytest.mark.parametrize(("shape", "rows"), [(VISION, 5), (ODD, 5), (MLA, 5)], ids=str)
def test_vector_passes_of_other_head_dims(shape: Shape, rows: float) -> None:
    heads = shape.q_heads + shape.k_heads
    assert passes(run_shape(shape)) == pytest.approx(rows + 4 / heads)


def test_no_instruction_gathers() -> None:
    for style in STYLES:
        run = run_shape(Shape(16, 8, 2, 128), style=style)
        assert {c.api for c in run.trace.counters.vector} <= {
            *("Add", "Sub", "Mul", "Cast", "Copy", "Duplicate"),
            *("TransDataTo5HD", "ShiftLeft", "And", "ShiftRight", "Or"),
        }


def test_ten_repeats_a_row_and_no_bank_conflict() -> None:
    run = run_shape(PREFILL, table_dtype=torch.bfloat16)
    rows = PREFILL.tokens * (PREFILL.q_heads + PREFILL.k_heads)
    # Four repeats more for the tables of a token.
    assert run.trace.repeats() == 10 * rows + 4 * PREFILL.tokens
    conflicts = Counter()
    for count in run.trace.counters.vector:
        conflicts[count.api, count.dst_dtype] += count.conflicts
    of_tables = conflicts.pop(("Cast", "float"))
    assert of_tables <= 2 * PREFILL.tokens
    assert set(conflicts.values()) == {0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("style", ["interleaved", "deinterleave"])
def test_rows_are_transposed_without_bank_conflict(style: str, dtype: torch.dtype) -> None:
    """Tables of pairs are: a repeat for 1 KB of them, and for 512 bytes of those that stand up."""
    run = run_shape(PREFILL, dtype, style=style)
    rows = PREFILL.tokens * (PREFILL.q_heads + PREFILL.k_heads)
    conflicts = Counter()
    for count in run.trace.counters.vector:
        conflicts[count.api] += count.conflicts
    assert conflicts["TransDataTo5HD"] <= 5 * PREFILL.tokens
    # Every second row meets the one block of mask in the banks.
    assert conflicts.pop("And", 0) <= rows / 2
    assert sum(conflicts.values()) <= 0.1 * rows


@pytest.mark.parametrize(("shape", "share"), [(PREFILL, 0.94), (VISION, 0.9), (MLA, 0.95)], ids=str)
def test_long_transfers(shape: Shape, share: float) -> None:
    events = [e for core in run_shape(shape, events=True).trace.cores for e in core.events]
    sizes = [e.blocks * e.block_bytes for e in events if e.pipe in ("MTE2", "MTE3")]
    assert sum(size for size in sizes if size >= 16384) >= share * sum(sizes)


@pytest.mark.parametrize("shape", [shape for shape in WHOLE if shape[0] < 1024], ids=str)
def test_long_transfers_of_whole_rows(shape: tuple[int, int, int]) -> None:
    """Out of place, columns that pass through move with those that are rotated."""
    dim, rotary, offset = shape
    for style in STYLES:
        sample = Sample(tokens=1024, q_heads=32, head_dim=dim, rotary_dim=rotary,
                        rotary_offset=offset, style=style, rows="packed")  # fmt: skip
        run = simulator.apply(*sample.tensors(), events=True, **sample.options)
        assert run.trace.gm_bytes == run.trace.least_gm_bytes
        events = [e for core in run.trace.cores for e in core.events]
        moved = [e for e in events if e.pipe in ("MTE2", "MTE3")]
        sizes = [e.blocks * e.block_bytes for e in moved]
        assert sum(size for size in sizes if size >= 12288) >= 0.8 * sum(sizes)
        cos_and_sin = (4, 5)
        assert min(e.block_bytes for e in moved if e.gm_region not in cos_and_sin) >= 2 * dim


@pytest.mark.parametrize("style", STYLES)
def test_one_token_takes_a_handful_of_transfers(style: str) -> None:
    trace = run_shape(Shape(1, 64, 8, 128), style=style).trace
    assert trace.cores_used == 3
    assert max(c.counters.loads + c.counters.stores for c in trace.cores) <= 6


def test_nothing_to_do_is_no_launch() -> None:
    for sample in (Sample(tokens=0), Sample(q_heads=0, k_heads=0)):
        run = npu_rope.simulator.apply(*sample.tensors(), **sample.options)
        assert run.trace.cores_used == 0
