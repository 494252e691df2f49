"""The plan: every row once, nothing over the chip's limits, work balanced, as few cores as pay."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from npu_rope import _C

CHIP = _C.find_chip("Ascend910B1")
TILE_EDGES = [1, 2, 7, 8, 9, 15, 16, 17, 47, 48, 49, 97, 767, 769]
START_NS, BYTES_PER_NS = 60, 100  # the rule's constants, as rope_plan.h states them
SIZES = {_C.DType.float16: 2, _C.DType.bfloat16: 2, _C.DType.float32: 4}


def strides(order: str, batch: int, tokens: int, heads: int, dim: int) -> _C.RowStrides:
    sizes = {"B": batch, "S": tokens, "N": heads}
    steps, step = {}, dim
    for axis in reversed(order):
        steps[axis] = step
        step *= max(sizes[axis], 1)
    result = _C.RowStrides()
    result.batch, result.token, result.head = steps["B"], steps["S"], steps["N"]
    return result


def geometry(
    tokens: int,
    q_heads: int,
    k_heads: int,
    dim: int = 128,
    *,
    batch: int = 1,
    rotary: int | None = None,
    offset: int = 0,
    dtype: _C.DType = _C.DType.bfloat16,
    table: _C.DType = _C.DType.float32,
    style: _C.Style = _C.Style.half,
    order: str = "BSN",
    in_place: bool = True,
) -> _C.RopeGeometry:
    g = _C.RopeGeometry()
    g.dtype, g.table_dtype, g.style, g.cast_tables = dtype, table, style, True
    g.batch, g.tokens, g.q_heads, g.k_heads = batch, tokens, q_heads, k_heads
    g.head_dim, g.rotary_dim, g.rotary_offset = dim, dim if rotary is None else rotary, offset
    g.q = g.q_out = strides(order, batch, tokens, q_heads, dim)
    g.k = g.k_out = strides(order, batch, tokens, k_heads, dim)
    g.q_in_place = g.k_in_place = in_place
    table_strides = _C.TableStrides()
    table_strides.batch, table_strides.token = 0, g.rotary_dim
    g.cos = g.sin = table_strides
    return g


def check(g: _C.RopeGeometry, chip: _C.Chip = CHIP) -> _C.RopePlan:
    """What holds for every plan."""
    plan = _C.plan_rope(g, chip)
    p = plan.params
    assert 1 <= plan.cores <= chip.cores
    assert plan.cores == p.token_parts * p.head_parts
    assert 0 < plan.ub_bytes <= chip.ub_usable
    assert 1 <= p.step_rows <= 255  # repeats of one instruction
    assert 2 * p.box_rows <= 4095  # blocks of one transfer

    rows_of_core, cells = [], Counter()
    for core in range(plan.cores):
        rows = 0
        tile = None
        for box in plan.boxes(core):
            heads = g.k_heads if box.tensor else g.q_heads
            assert box.head >= 0 and box.heads >= 1
            assert box.token >= 0 and box.tokens >= 1 and box.token + box.tokens <= g.tokens
            assert box.tokens * box.heads <= p.box_rows
            assert box.tile_tokens <= p.tile_tokens
            assert box.tile_token <= box.token
            assert box.token + box.tokens <= box.tile_token + box.tile_tokens
            assert box.starts_tile == (tile != (box.batch, box.tile_token))  # tables come once
            tile = box.batch, box.tile_token
            rows += box.tokens * box.heads
            for t, h in itertools.product(range(box.tokens), range(box.heads)):
                batch, head = divmod(box.head + h, heads)  # batches may count as heads
                cells[box.tensor, box.batch + batch, box.token + t, head] += 1
        rows_of_core.append(rows)
    assert len(cells) == g.batch * g.tokens * (g.q_heads + g.k_heads)
    assert set(cells.values()) == {1}
    assert max(batch for _, batch, _, _ in cells) == g.batch - 1

    heads_of_core = math.ceil(g.batch * (g.q_heads + g.k_heads) / p.head_parts)
    mean = sum(rows_of_core) / plan.cores
    assert max(rows_of_core) <= mean + p.tile_tokens * heads_of_core
    assert plan.boxes(plan.cores) == []
    return plan


@pytest.mark.parametrize("heads", [(1, 0), (0, 3), (1, 1), (5, 2), (64, 8), (70, 1), (300, 20)])
def test_every_row_once_over_tokens(heads: tuple[int, int]) -> None:
    for tokens in TILE_EDGES:
        if tokens * sum(heads) <= 40000:
            check(geometry(tokens, *heads))


@pytest.mark.parametrize("order", ["BSN", "BNS", "SBN"])
def test_every_row_once_over_batches(order: str) -> None:
    for batch, tokens, (q, k) in itertools.product(
        [1, 2, 7, 50], [1, 5, 16, 33], [(3, 1), (0, 9), (40, 8)]
    ):
        check(geometry(tokens, q, k, 64, batch=batch, order=order))


@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("style", [_C.Style.half, _C.Style.interleaved, _C.Style.deinterleave])
def test_every_even_head_dim_fits(dtype: _C.DType, style: _C.Style) -> None:
    for dim in range(2, 1025, 2):
        for table in (dtype, _C.DType.float32):
            g = geometry(3, 4, 2, dim, dtype=dtype, table=table, style=style)
            check(g)
            if dim >= 6:
                g.q_in_place = g.k_in_place = False
                g.rotary_dim, g.rotary_offset = dim // 3 // 2 * 2, 1
                check(g)


@pytest.mark.parametrize("chip", [c for c in _C.chips() if c.arch == 2201], ids=lambda c: c.name)
def test_every_chip_of_the_architecture(chip: _C.Chip) -> None:
    for tokens in (1, 39, 40, 41, 1000):
        check(geometry(tokens, 8, 2), chip)


def test_refused_chips_say_so() -> None:
    refused = [chip for chip in _C.chips() if chip.arch != 2201]
    assert {chip.name for chip in refused} == {"Ascend310P3", "Ascend950PR_958b"}
    for chip in refused:
        with pytest.raises(ValueError, match=f"not for {chip.name}"):
            _C.plan_rope(geometry(1, 1, 1), chip)
    with pytest.raises(ValueError, match="expected one of Ascend910B1, "):
        _C.find_chip("Ascend910B9")


def test_what_the_kernel_cannot_rotate_is_refused() -> None:
    for change, message in (
        ({"dtype": _C.DType.float64}, "float64"),
        ({"table_dtype": _C.DType.float64}, "float64"),
        ({"head_dim": 1026}, "head_dim"),
        ({"head_dim": 7}, "head_dim"),
        ({"rotary_dim": 130}, "rotary_dim"),
        ({"rotary_dim": 64, "rotary_offset": 65}, "rotary_offset 65"),
        ({"rotary_dim": 3}, "rotary_dim 3"),
        ({"tokens": -1}, "tokens -1"),
    ):
        g = geometry(4, 2, 2)
        for name, value in change.items():
            setattr(g, name, value)
        with pytest.raises(ValueError, match=message):
            _C.plan_rope(g, CHIP)


@pytest.mark.parametrize("empty", ["batch", "tokens", "heads"])
def test_nothing_to_do_takes_no_cores(empty: str) -> None:
    g = geometry(4, 2, 2)
    if empty == "heads":
        g.q_heads = g.k_heads = 0
    else:
        setattr(g, empty, 0)
    assert _C.plan_rope(g, CHIP).cores == 0


def launch_ns(g: _C.RopeGeometry, token_parts: int, head_parts: int) -> float:
    """The rule of rope_plan.h: cores start one by one, the busiest moves its bytes."""
    tokens = math.ceil(g.batch * g.tokens / token_parts)
    heads = math.ceil((g.q_heads + g.k_heads) / head_parts)
    columns = g.rotary_dim if g.q_in_place else g.head_dim
    moved = 2 * heads * columns * SIZES[g.dtype] + 2 * g.rotary_dim * SIZES[g.table_dtype]
    return START_NS * token_parts * head_parts + tokens * moved / BYTES_PER_NS


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("heads", [(64, 8), (16, 16), (1, 1), (128, 1)])
def test_no_grid_of_cores_is_quicker(heads: tuple[int, int], in_place: bool) -> None:
    for tokens in (1, 2, 3, 5, 8, 20, 48, 49, 64, 200, 512, 4096):
        g = geometry(tokens, *heads, rotary=32, in_place=in_place)
        p = _C.plan_rope(g, CHIP).params
        grids = [
            (t, h)
            for h in range(1, min(sum(heads), CHIP.cores) + 1)
            for t in range(1, min(tokens, CHIP.cores // h) + 1)
        ]
        best = min(launch_ns(g, t, h) for t, h in grids)
        assert launch_ns(g, p.token_parts, p.head_parts) == pytest.approx(best)


@pytest.mark.parametrize(
    ("tokens", "grid"),
    [(1, (1, 3)), (8, (8, 1)), (64, (22, 1)), (512, (47, 1)), (4096, (48, 1))],
)
def test_cores_from_one_token_to_prefill(tokens: int, grid: tuple[int, int]) -> None:
    p = _C.plan_rope(geometry(tokens, 64, 8), CHIP).params
    assert (p.token_parts, p.head_parts) == grid


@pytest.mark.parametrize("dim", [64, 72, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("heads", [(64, 8), (16, 16), (32, 8), (128, 1)])
def test_transfers_are_long_where_the_tile_has_the_rows(dim: int, heads: tuple[int, int]) -> None:
    plan = _C.plan_rope(geometry(4096, *heads, dim), CHIP)
    boxes = plan.boxes(0)
    for box in boxes:
        whole = heads[box.tensor] * box.tile_tokens * dim * 2
        last = box.token + box.tokens == box.tile_token + box.tile_tokens
        if whole >= 16384 and not last:
            assert box.tokens * box.heads * dim * 2 >= 16384
    assert sum(b.tokens * b.heads * dim * 2 for b in boxes) / len(boxes) >= 12 * 1024
