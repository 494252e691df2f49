"""The performance model: hand-computed cases, and what must hold whatever the tables say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from npu_rope import _C, simulator

from benchmarks import (
    bench_cannbench,
    bench_cores,
    chain,
    chip_tables,
    measured_rows,
    model,
    pipes,
    report,
    scalar,
    scalar_cost,
    shapes,
    validation,
)
from benchmarks.chip_tables import Tables
from benchmarks.model import ENDS, FAST, SLOW, Cache, Law, Stream, Traffic
from benchmarks.pipes import LOAD, STORE, VECTOR, Memory, Step
from benchmarks.scalar_cost import Scalar
from benchmarks.shapes import Case

SOC = "Ascend910B1"
CORES = range(1, 49)
TABLES = Tables(  # round numbers of the real size
    load={n: 1.7e6 / n if n > 16 else 1e5 for n in CORES},
    store={n: 1.7e6 / n if n > 16 else 1.5e5 for n in CORES},
    load_l2=1.4e5,
    store_l2=0.9e5,
    cycles=dict.fromkeys(model.INSTRUCTIONS.values(), 1) | {"VMUL": 2},
    latency=dict.fromkeys(model.INSTRUCTIONS.values(), 18),
)


def test_one_after_another() -> None:
    """A load of 10 us, vector work of 2, a store of 5, and 1 us after each until it is visible."""
    steps = [Step(LOAD, 100, 1), Step(VECTOR, 2, 1, [0]), Step(STORE, 100, 1, [1])]
    assert pipes.run(steps, Memory(read=10, write=20, both=1000)) == pytest.approx(20)
    assert [step.begin for step in steps] == pytest.approx([0, 11, 14])


def test_loads_and_stores_share_the_memory() -> None:
    """Both want 10 bytes a us of 10: half each until the load ends at 20, then one has all."""
    steps = [Step(LOAD, 100), Step(STORE, 150)]
    assert pipes.run(steps, Memory(10, 10, 10)) == pytest.approx(25)
    # The store takes 2 of 10, the load what is left.
    assert Memory(20, 2, 10).rates(True, True) == {LOAD: 8, STORE: 2}
    assert Memory(3, 20, 10).rates(True, True) == {LOAD: 3, STORE: 7}
    assert Memory(3, 4, 10).rates(True, True) == {LOAD: 3, STORE: 4}


def test_a_pipe_keeps_its_order() -> None:
    """The second load could run at once, but the first waits for the vector unit."""
    steps = [Step(VECTOR, 5), Step(LOAD, 10, waits=[0]), Step(LOAD, 10)]
    assert pipes.run(steps, Memory(10, 10, 10)) == pytest.approx(7)
    assert steps[2].begin == pytest.approx(6)
    assert pipes.busy(steps) == pytest.approx({VECTOR: 5, LOAD: 2})


def test_moving_counts_overlap_once() -> None:
    steps = [Step(LOAD, 10), Step(STORE, 10), Step(VECTOR, 9), Step(STORE, 10, waits=[2])]
    pipes.run(steps, Memory(10, 10, 20))
    assert pipes.moving(steps) == pytest.approx(2)
    assert pipes.moving(steps, (LOAD,)) == pytest.approx(1)


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="circle"):
        pipes.run([Step(LOAD, 1, waits=[1]), Step(STORE, 1, waits=[0])], Memory(1, 1, 1))


def test_what_fits_in_l2_costs_nothing_to_write() -> None:
    """Out of place from a cold L2: what is pushed out is the written share of what does not fit."""
    size = _C.find_chip(SOC).l2_bytes
    assert Cache(SOC).run({"x": 1e6}, {"y": 1e6}) == Traffic(1e6, 1e6, 1e6, 0)
    assert Cache(SOC).run({"x": size / 2}, {"y": size / 2}).back == 0
    assert Cache(SOC).run({"x": size}, {"y": size}).back == pytest.approx(size / 2)
    assert Cache(SOC).run({"x": 2 * size}, {"y": size}).back == pytest.approx(2 / 3 * size)
    # What is read past it takes no place there.
    assert Cache(SOC).run({"x": 2 * size}, {"y": size}, past=["x"]).back == 0
    assert Cache(SOC).run({"x": 2 * size}, {"y": size}, past=["x"]).hbm == 2 * size
    # In place only q and k's own lines are touched.
    assert Cache(SOC).run({"x": size}, {"x": size}).back == 0
    assert Cache(SOC).run({"x": 3 * size}, {"x": 3 * size}).back == pytest.approx(2 * size)


def test_a_launch_finds_what_the_one_before_wrote() -> None:
    size = _C.find_chip(SOC).l2_bytes
    cache = Cache(SOC)
    assert cache.run({"x": 1e6}, {"y": 1e6}).hbm == 1e6
    assert cache.run({"y": 1e6}, {"z": 1e6}).hbm == 0
    # As many lines as L2 has push out all of them: three megabytes, two of them dirty.
    assert cache.run({"a": size}, {}).back == pytest.approx(2e6)
    assert cache.run({"y": 1e6}, {}).hbm == 1e6
    # A launch that touches more than L2 holds finds nothing, though its input lay there.
    warm = Cache(SOC, {"x": 0.7 * size})
    assert warm.run({"x": 0.7 * size}, {"y": 0.7 * size}).hbm == 0.7 * size
    warm = Cache(SOC, {"x": 0.7 * size})
    assert warm.run({"x": 0.7 * size}, {"y": 0.7 * size}, past=["x"]).hbm == 0.7 * size
    assert Cache(SOC, {"x": 0.4 * size}).run({"x": 0.4 * size}, {"y": 0.4 * size}).hbm == 0


@pytest.mark.parametrize("warm", [False, True], ids=["HBM", "L2"])
@pytest.mark.parametrize("law", ENDS, ids=lambda law: law.name)
@pytest.mark.parametrize("cores", [1, 7, 48])
def test_streams(cores: int, law: Law, warm: bool) -> None:
    """More bytes never take less time; the law's bytes are never beaten, nor a pipe."""
    before = 0.0
    for kilobytes in (1, 16, 100, 1000, 10_000):
        reads, writes = {"x": 2e3 * kilobytes}, {"y": 1e3 * kilobytes}
        stream = Stream("Add", reads, writes, 500.0 * kilobytes, 4, cores)
        got = model.predict_stream(stream, TABLES, SOC, law, Cache(SOC, reads if warm else None))
        assert got.work >= got.bytes_alone and got.work >= before
        assert got.work >= max(got.busy.values())
        rate = law.l2 * 2 / 3 if warm else law.read
        assert got.bytes_alone == pytest.approx(2e3 * kilobytes / rate)
        assert got.launch == pytest.approx(law.once + law.start * cores)
        before = got.work


def test_one_output_buffer_costs_time() -> None:
    reads, writes = {"x": 2e7}, {"y": 2e7}
    times = [
        model.predict_stream(Stream("op", reads, writes, 1e7, 9, 48, serial), TABLES, SOC, FAST,
                             Cache(SOC, reads)).work
        for serial in (False, True)
    ]  # fmt: skip
    written = 2e7 / 48 / FAST.core_ports(TABLES, 1850)[1]
    assert times[1] == pytest.approx(times[0] + written)


def trace_of(case: Case, soc: str = SOC) -> simulator.Trace:
    made = shapes.make(case)
    run = simulator.apply_ if made.in_place else simulator.apply
    return run(*made.args(), soc=soc, events=True, **made.options).trace


SCALAR = Scalar(launch=1000, vector=20, move=100)


@pytest.mark.parametrize(
    "name", ["Qwen3-32B, 3", "Qwen2.5-VL vision, 64", "DeepSeek-V2/V3, 5", "GLM-4-9B tp2, 33"]
)
@pytest.mark.parametrize("warm", [False, True], ids=["HBM", "L2"])
def test_kernel(name: str, warm: bool) -> None:
    """The ends are in order, and at each a pipe's time, the bytes' and the latencies are kept."""
    trace = trace_of(shapes.find(name))
    fast, slow = (model.predict(trace, TABLES, law, SCALAR, warm) for law in ENDS)
    assert fast.total < slow.total and fast.launch < slow.launch
    assert fast.bytes_alone < slow.bytes_alone and fast.busy["S"] < slow.busy["S"]
    for got in (fast, slow):
        assert got.work >= got.bytes_alone
        assert got.work >= got.busy["V"] + (model.LOAD_LATENCY + model.STORE_LATENCY) / 1850
        assert got.work >= got.busy["S"]
    assert model.predict(trace, TABLES, FAST, SCALAR, True).work <= fast.work


def test_scalar_work_is_what_was_counted() -> None:
    """Of a core: so many instructions at so many cycles, and each step waits for its own."""
    trace = trace_of(Case("Qwen3-32B", 5))
    core = trace.cores[0]
    vector = sum(count.calls for count in core.counters.vector)
    moves = core.counters.loads + core.counters.stores
    counted = 1000 + 20 * vector + 100 * moves
    assert SCALAR.instructions(core) == counted
    steps = model.steps_of(trace, 0, TABLES, SLOW, SCALAR)
    issued = sum(step.work for step in steps if step.pipe == "S")
    assert issued * 1850 == pytest.approx(counted * SLOW.cpi)
    pipes.run(steps, Memory(1e5, 1e5, 1e5))
    for issue, step in zip(steps[::2], steps[1::2], strict=True):
        assert issue.pipe == "S" and step.begin >= issue.visible


def test_scalar_counts_are_fitted() -> None:
    rows = [
        {"vector": v, "moves": m, "instructions": 700 + 12 * v + 90 * m}
        for v, m in ((28, 6), (70, 12), (1304, 204), (60, 40))
    ]
    got = scalar_cost.fit(rows)
    assert (got.launch, got.vector, got.move) == pytest.approx((700, 12, 90))
    assert got.scaled(2).vector == pytest.approx(24)
    # None below zero, where the best fit has one.
    rows = [row | {"instructions": 3 * row["vector"] - 2} for row in rows]
    assert min(dataclasses.astuple(scalar_cost.fit(rows))) >= 0


def test_a_counted_launch_has_its_count() -> None:
    trace = trace_of(Case("Qwen3-32B", 64))
    row = next(row for row in scalar_cost.counted() if row["case"] == "Qwen3-32B, 64")
    assert row["key"] == scalar_cost.key(trace.geometry, SOC)
    scalar = scalar_cost.of_trace(trace)
    assert scalar.instructions(trace.cores[0]) == pytest.approx(row["instructions"])
    other = trace_of(Case("Qwen3-32B", 65))
    assert scalar_cost.of_trace(other) == scalar_cost.fitted("bfloat16", "half")


@pytest.mark.skipif(bool(scalar.missing()), reason=f"not here: {', '.join(scalar.missing())}")
def test_scalar_counts_hold() -> None:
    """What the model goes by is what the kernel of today executes, within a tenth."""
    names = ["Qwen2.5-72B, 1", "Qwen2.5-72B, 64", "Qwen2.5-72B, 4096", "Command-R+, 4096",
             "GLM-4-9B, 4096", "DeepSeek-V2/V3, 4096", "Qwen3-VL vision, 4096"]  # fmt: skip
    geometries = [scalar.geometry(shapes.make(shapes.find(name))) for name in names]
    for name, geometry, got in zip(names, geometries, scalar.count(geometries, SOC), strict=True):
        own = scalar_cost.key(geometry, SOC)
        row = next(row for row in scalar_cost.counted() if row["key"] == own)
        assert got["instructions"] == pytest.approx(row["instructions"], rel=0.1), name


@pytest.mark.parametrize("name", ["Qwen3-32B, 1", "GLM-4-9B, 33", "DeepSeek-V2/V3, 2"])
def test_vector_time_is_repeats_and_conflicts(name: str) -> None:
    """Of one core: every Mul twice in these tables, transposes at 256 bytes a cycle, conflicts."""
    trace = trace_of(shapes.find(name))
    core, cycles, conflicts = trace.cores[0], 0.0, 0
    for count in core.counters.vector:
        conflicts += count.conflicts
        if count.api == "TransDataTo5HD":
            cycles += count.elements * (4 if count.dst_dtype == "float" else 2) / 256
        else:
            cycles += count.repeats * (2 if count.api == "Mul" else 1)
    steps = model.steps_of(trace, 0, TABLES, FAST, SCALAR)
    vector = sum(step.work for step in steps if step.pipe == VECTOR)
    assert vector * 1850 == pytest.approx(cycles + conflicts)
    moved = core.counters.gm_bytes_read + core.counters.gm_bytes_written
    assert sum(step.work for step in steps if step.pipe in (LOAD, STORE)) == moved


@pytest.mark.parametrize("warm", [False, True], ids=["HBM", "L2"])
def test_loads_vector_work_and_stores_overlap(warm: bool) -> None:
    """Where scalar work is free, what binds works nearly all the time: memory or the vector
    unit."""
    trace = trace_of(Case("Qwen3-32B", 4096))
    got = model.predict(trace, TABLES, FAST, Scalar(), warm)
    assert got.work >= got.bytes_alone
    assert got.work <= 1.15 * max(got.bytes_alone, got.busy[VECTOR])
    assert got.bytes_alone + got.busy[VECTOR] > 1.3 * got.work


def test_fewer_cores_of_a_slower_chip_take_longer() -> None:
    case = Case("Qwen2.5-72B", 96, tp=8)
    times = [model.predict(trace_of(case, soc), TABLES, SLOW, SCALAR).work
             for soc in ("Ascend910B1", "Ascend910B4")]  # fmt: skip
    assert times[0] < times[1]


@pytest.fixture(scope="module")
def checks() -> list[report.Row]:
    """All but the rows that are not part of the repository."""
    return [
        *validation.memory_rows(),
        *validation.arithmetic_rows(),
        *validation.l2_rows(),
        *validation.rope_rows(),
        *validation.past_rows(),
    ]


def test_measured_rows() -> None:
    with (measured_rows.FOLDER / "cann_bench_910b2.csv").open() as file:
        operators = {line.partition(",")[0] for line in file} - {"operator"}
    assert {len(measured_rows.rows(operator)) for operator in operators} == {20}
    first = measured_rows.rows("ApplyRotaryPosEmb")[0]
    assert first.us == 85.98 and not first.single
    assert dict(first.kernels) == {"ConcatD": 2, "BroadcastTo": 2, "ApplyRotaryPosEmb": 1}
    assert first.bytes[0] == 16 * 512 * 16 * 128 * 2
    scores = measured_rows.rope_scores()
    assert list(scores) == list(range(1, 21))
    assert all(bound < base <= 10.01 * bound for base, bound in scores.values())


def test_the_law_on_rows_that_were_not_fitted(checks: list[report.Row]) -> None:
    """Memory-bound single kernels: median within 10 %, none beyond 25 %, no size class biased."""
    memory = [row for row in checks if row["group"] == "memory"]
    assert {row["operator"] for row in memory if row["fitted"]} == {"Sigmoid"}
    got = validation.errors(memory)
    assert got.rows == 21 and got.median <= 0.06 and got.worst <= 0.14
    for low, high in validation.SIZES.values():
        part = validation.errors(
            memory, lambda row, low=low, high=high: low <= 1e6 * row["MB"] < high
        )
        assert part.rows >= 4 and abs(part.bias) <= 0.04


def test_the_law_on_chains_and_arithmetic(checks: list[report.Row]) -> None:
    def of(group: str, operator: str) -> validation.Errors:
        return validation.errors(
            checks, lambda row: (row["group"], row["operator"]) == (group, operator)
        )

    rope = of("rope", "ApplyRotaryPosEmb")
    assert rope.rows == 8 and rope.median <= 0.08 and rope.worst <= 0.26
    for operator, median in (("Sigmoid", 0.06), ("Gelu", 0.08), ("Mish", 0.03)):
        assert of("arithmetic", operator).median <= median
    through, past = (row for row in checks if row["group"] == "past L2")
    assert abs(through["error"]) <= 0.06 and through["ends us"][0] < through["measured us"]
    assert 0.1 < past["error"] <= 0.2 and past["ends us"][0] <= 1.05 * past["measured us"]
    # What the law does not know, kept in sight: small kernels of a chain take longer.
    assert of("L2", "Exp").bias < -0.2


def test_the_ends_hold_what_was_fitted() -> None:
    fits = [validation.fitted(operator) for operator in ("Sigmoid", "Gelu", "Maximum")]
    assert FAST.read > max(law.read for law in fits)
    assert SLOW.read == pytest.approx(fits[0].read, rel=0.005)
    assert FAST.back == pytest.approx(fits[0].back, rel=0.005)
    assert SLOW.back == pytest.approx(fits[2].back, rel=0.005)
    for law in fits:  # a launch on all cores
        assert FAST.launch(48) < law.launch(48) < SLOW.launch(48)


@pytest.mark.parametrize(
    ("case", "launches", "passes"),
    [
        (Case("Qwen3-32B", 64), 1, 2),
        (Case("Qwen2.5-72B", 64), 3, 4),
        (Case("Qwen2.5-VL vision", 64), 12, 12),
        (Case("DeepSeek-V2/V3", 64), 14, 14),
        (Case("GLM-4-9B", 64), 7, 7),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_default_chain(case: Case, launches: int, passes: float) -> None:
    """As many launches as were seen, and as many times all of q and k through memory (beside the
    tables, and with half as much for a slice)."""
    streams = chain.launches(case)
    assert len(streams) == launches
    heads = sum(case.heads)
    rows = case.tokens * heads * case.config.dim * 2
    tables = sum(s.reads.get(name, 0) for s in streams for name in ("cos", "sin"))
    moved = sum(s.read + s.written for s in streams) - tables
    if case.rotary < case.config.dim:  # copy 2, slice 1, fused 1, concatenate 2
        passes = 6
    assert moved / rows == pytest.approx(passes)
    # Each reads what is there: an input, or what one before it has written.
    there = {"q", "k", "cos", "sin"}
    for stream in streams:
        assert set(stream.reads) <= there
        there |= set(stream.writes)


def test_the_default_chain_reads_from_l2_what_it_wrote() -> None:
    """q and k of a strided prefill come from HBM once, for the copies; the fused kernel finds
    them."""
    case = Case("Qwen2.5-72B", 2048)
    cache = Cache(SOC)
    traffic = [cache.run(s.reads, s.writes) for s in chain.launches(case)]
    tables = 2 * 2048 * 128 * 2
    assert [t.hbm for t in traffic] == [2048 * 64 * 256, 2048 * 8 * 256, tables]
    fast, slow = (chain.predict(case, TABLES, SOC, law, False).total for law in ENDS)
    assert fast < slow
    assert chain.predict(case, TABLES, SOC, SLOW, True).total < slow


def test_one_token_by_cann_takes_what_was_measured() -> None:
    """16 + 2 heads, D 128, of a 910B2 in a graph: 2.58 us."""
    rows = {"q": 16 * 256.0, "k": 2 * 256.0}
    stream = Stream(chain.FUSED, rows | {"cos": 256.0, "sin": 256.0}, rows, 18 * 128,
                    chain.FUSED_PASSES, 1, True, chain.FUSED_LAUNCH)  # fmt: skip
    for law in ENDS:
        got = model.predict_stream(stream, TABLES, "Ascend910B2", law, Cache(SOC, stream.reads))
        assert got.total == pytest.approx(2.58, rel=0.01)


@pytest.mark.parametrize("mode", ["half", "interleaved"])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("batched", [False, True], ids=["[S, W]", "[B, S, W]"])
def test_cannbench_golden(dtype: torch.dtype, layout: int, mode: str, batched: bool) -> None:
    """The definition in float64 by complex numbers, and the submission's function on the CPU."""
    torch.manual_seed(0)
    x, y = (torch.randn(2, 3, 5, 8).to(dtype) for _ in range(2))
    tokens = 5 if layout else 3
    angles = torch.rand(2, tokens, 4, dtype=torch.float64) * 6
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    if not batched:
        cos, sin = cos[0], sin[0]
    turn = torch.complex(cos.double(), sin.double())
    turn = (turn if batched else turn[None]).unsqueeze(1 if layout else 2)
    wide = x.double()
    pairs = wide.unflatten(-1, (2, 4)).mT if mode == "half" else wide.unflatten(-1, (4, 2))
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    want = turned.mT.flatten(-2) if mode == "half" else turned.flatten(-2)
    got = bench_cannbench.golden(x, cos, sin, layout, mode)
    assert got.dtype == dtype
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), want, rtol=step, atol=step)
    result = bench_cannbench.interface()(x, y, cos, sin, layout, mode)
    assert torch.equal(result[0], got)
    assert torch.equal(result[1], bench_cannbench.golden(y, cos, sin, layout, mode))


def test_cannbench_interface_refuses() -> None:
    call = bench_cannbench.interface()
    x, t = torch.zeros(1, 2, 3, 8), torch.zeros(2, 4)
    assert torch.equal(call(x, x, t, t)[0], x)  # layout and mode have the suite's defaults
    with pytest.raises(ValueError, match="layout is 2"):
        call(x, x, t, t, 2)
    with pytest.raises(ValueError, match="'neox'"):
        call(x, x, t, t, 0, rotaryMode="neox")


def test_cannbench_cases() -> None:
    cases = bench_cannbench.cases()
    assert [case.number for case in cases if not case.scaled] == list(range(1, 21))
    scaled = [case for case in cases if case.scaled]
    assert [case.shape for case in scaled] == [(7, 501, 7, 128)]
    by = {case.number: case for case in cases}
    # The hardware bound scores 1, the baseline 1/2.
    base, bound = measured_rows.rope_scores()[4]
    assert bench_cannbench.score(by[4], bound) == 1 and bench_cannbench.score(by[4], base) == 0.5
    q, _, cos, sin = bench_cannbench.inputs(by[19])
    assert q.shape == (127, 4, 4, 128) and cos.shape == (4, 64) and q.dtype == torch.float16
    assert (cos.double() ** 2 + sin.double() ** 2 - 1).abs().max() < 2e-3
    assert bench_cannbench.inputs(by[14])[0].isnan().all()
    nan = torch.tensor([float("nan"), 1.0])
    assert bench_cannbench.same(nan, nan) and not bench_cannbench.same(nan, torch.zeros(2))


@pytest.mark.parametrize("name", ["Qwen3-32B, 64", "Qwen2.5-72B tp4, 64", "GLM-4-9B, 64"])
def test_no_other_number_of_cores_is_much_better(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At either end of what a core more costs."""
    monkeypatch.setattr(chip_tables, "tables", lambda soc: TABLES)
    row = bench_cores.row(shapes.find(name))
    assert max(row["regret %"]) < 10
    assert row["best cores"][1] <= row["cores"] <= row["best cores"][0]


@pytest.mark.parametrize("number", [14, 19])
def test_cannbench_on_simulated_cores(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small case through the command's own steps; a wrong result is said to be one."""
    monkeypatch.setattr(chip_tables, "tables", lambda soc: TABLES)
    case = next(case for case in bench_cannbench.cases() if case.number == number)
    row = bench_cannbench.simulated(case)
    assert row["right"]
    for key in ("us", "of the law", "score", "times faster"):
        low, high = row[key]
        assert 0 < low < high
    assert row["times faster"][0] == pytest.approx(row["published us"] / row["us"][1])
    mean = bench_cannbench.mean([row, row])
    assert mean["score"] == pytest.approx(row["score"]) and mean["shape"] == "2 of 2 right"
    monkeypatch.setattr(bench_cannbench, "golden", lambda x, *args: x.nan_to_num() + 1)
    assert not bench_cannbench.simulated(case)["right"]


def test_cases() -> None:
    names = [case.name for case in shapes.cases(full=True)]
    assert len(set(names)) == len(names)
    for case in shapes.cases(full=True):
        assert shapes.find(case.name) == case
        assert case.heads[0] * case.tp == case.config.q_heads and case.heads[1] >= 1
    for table in (shapes.cases(), shapes.cases(full=True)):
        assert {1, 8, 64, 256, 4096, 32768, 131072} <= {case.tokens for case in table}
        assert {case.tp for case in table} == {1, 2, 4, 8}
        longest = {case.model for case in table if case.tokens == 131072}
        assert longest == {name for name, model in shapes.MODELS.items() if not model.vision}
    with pytest.raises(ValueError, match="expected 'MODEL"):
        shapes.find("GPT-2, 4")
    with pytest.raises(ValueError, match="expected 'MODEL"):
        shapes.find("Qwen3-32B")


def test_positions() -> None:
    """A batch's sequences lie all over the context, a prompt's tokens follow on each other."""
    for batch in shapes.DECODE:
        positions = Case("Qwen3-32B", batch).positions
        assert positions.max() == 131071 and positions.min() < 131072 // batch
        assert positions.unique().numel() == batch
    assert Case("Qwen3-32B", 32768).positions.tolist() == list(range(32768))
    assert Case("Qwen2.5-VL vision", 64).positions.max() == 63
    made = shapes.make(Case("Qwen3-32B", 1))
    assert made.cos[0, 0] == torch.tensor(131071.0).cos()


@pytest.mark.parametrize("model_name", shapes.MODELS)
def test_tensors(model_name: str) -> None:
    """As the model hands them over: slices of one QKV, or of wider rows, or of their own."""
    case = Case(model_name, 6)
    made, config = shapes.make(case), case.config
    assert made.q.shape == (6, case.heads[0], config.dim) and made.q.dtype == torch.bfloat16
    assert made.cos.shape == (6, case.rotary) and made.cos.dtype == torch.float32
    shared = made.q.untyped_storage().data_ptr() == made.k.untyped_storage().data_ptr()
    assert shared == (config.rows == "packed")
    assert made.q.is_contiguous() == (config.rows == "dense") == made.in_place
    if config.rows == "mla":
        assert made.q.stride(1) == config.q_row and made.k.stride(1) == config.k_row
    size = made.q.numel() + made.k.numel()
    assert made.bytes == 2 * 2 * size + 2 * 4 * 6 * case.rotary


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"case": "a", "us": 1.2345}, {"case": "longer", "us": 12345.6, "met": False}]
    assert report.table(rows).splitlines() == [
        "case       us     met",
        "------  -----  ------",
        "a        1.23",
        "longer  12346  MISSED",
    ]
    assert [report.cell(pair) for pair in ((1.0, 2.5), (3.0, 3.0))] == ["1-2.5", "3"]
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    kept = json.loads(report.save("kept", 'a "note"', rows).read_text())
    assert kept == {"note": 'a "note"', "rows": rows}


def test_chips_alike_share_a_trace() -> None:
    """What bench_model relies on: equal numbers of cores give equal plans."""
    made = shapes.make(Case("Qwen2.5-VL vision", 4096))
    q, k, cos, sin = made.args()
    outs = torch.empty_like(q).contiguous(), torch.empty_like(k).contiguous()
    geometry = _C.geometry_of(q, k, cos, sin, *outs)
    plans = {soc: _C.plan_rope(geometry, _C.find_chip(soc))
             for soc in ("Ascend910B1", "Ascend910B2", "Ascend910B3", "Ascend910B4")}  # fmt: skip
    boxes = {
        soc: [len(plan.boxes(core)) for core in range(plan.cores)] for soc, plan in plans.items()
    }
    assert boxes["Ascend910B1"] == boxes["Ascend910B2"]
    assert boxes["Ascend910B3"] == boxes["Ascend910B4"] != boxes["Ascend910B1"]
