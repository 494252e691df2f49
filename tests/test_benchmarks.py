"""The performance model: hand-computed cases, and what must hold whatever the tables say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from npu_rope import _C, simulator

from benchmarks import chain, model, pipes, report, shapes
from benchmarks.chip_tables import Tables
from benchmarks.model import Launch, Stream
from benchmarks.pipes import LOAD, STORE, VECTOR, Memory, Step
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
NO_LAUNCH = Launch(0, 0)


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


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="circle"):
        pipes.run([Step(LOAD, 1, waits=[1]), Step(STORE, 1, waits=[0])], Memory(1, 1, 1))


@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("cores", [1, 7, 48])
def test_streams(cores: int, l2: bool) -> None:
    """More bytes never take less time; the memory's time is never beaten, nor a pipe's."""
    before = 0.0
    for kilobytes in (1, 16, 100, 1000, 10_000):
        stream = Stream("Add", 2e3 * kilobytes, 1e3 * kilobytes, 500.0 * kilobytes, 4)
        got = model.predict_stream(stream, TABLES, SOC, NO_LAUNCH, cores, l2)
        assert got.work >= got.bound * (1 - 1e-9) and got.work >= before
        assert got.work >= max(got.busy.values()) * (1 - 1e-9)
        assert got.bound == pytest.approx(3e3 * kilobytes / model.bandwidth(SOC, l2))
        before = got.work


def test_one_output_buffer_costs_time() -> None:
    free = Stream("op", 2e7, 2e7, 1e7, 9)
    serial = Stream("op", 2e7, 2e7, 1e7, 9, serial=True)
    times = [
        model.predict_stream(s, TABLES, SOC, NO_LAUNCH, 48, l2=True).work for s in (free, serial)
    ]
    assert times[1] > 1.2 * times[0]


def trace_of(case: Case, soc: str = SOC) -> simulator.Trace:
    made = shapes.make(case)
    run = simulator.apply_ if made.in_place else simulator.apply
    return run(*made.args(), soc=soc, events=True, **made.options).trace


@pytest.mark.parametrize(
    "name", ["Qwen3-32B, 3", "Qwen2.5-VL vision, 64", "DeepSeek-V2/V3, 5", "GLM-4-9B tp2, 33"]
)
def test_kernel(name: str) -> None:
    trace = trace_of(shapes.find(name))
    got = model.predict(trace, TABLES, Launch(2, 0.1))
    assert got.launch == pytest.approx(2 + 0.1 * trace.cores_used)
    assert got.total == pytest.approx(got.launch + got.work)
    assert got.work >= trace.gm_bytes / 1.6e6 and got.ratio >= 1
    first_load_and_last_store = (model.LOAD_LATENCY + model.STORE_LATENCY) / 1850
    assert got.work >= got.busy["V"] + first_load_and_last_store
    assert model.predict(trace, TABLES, NO_LAUNCH, l2=True).bound < got.bound


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
    assert (conflicts > 0) == (name != "Qwen3-32B, 1")
    steps = model.steps_of(trace, 0, TABLES)
    vector = sum(step.work for step in steps if step.pipe == VECTOR)
    assert vector * 1850 == pytest.approx(cycles + conflicts)
    moved = core.counters.gm_bytes_read + core.counters.gm_bytes_written
    assert sum(step.work for step in steps if step.pipe in (LOAD, STORE)) == moved


@pytest.mark.parametrize("l2", [False, True], ids=["HBM", "L2"])
def test_loads_vector_work_and_stores_overlap(l2: bool) -> None:
    """What binds a core works nearly all the time: its part of the memory, or the vector unit."""
    trace = trace_of(Case("Qwen3-32B", 4096))
    steps = model.steps_of(trace, 0, TABLES)
    memory = model.memory(TABLES, SOC, trace.cores_used, l2)
    length = pipes.run(steps, memory)
    core = trace.cores[0].counters
    moved = (core.gm_bytes_read + core.gm_bytes_written) / memory.both
    busy = pipes.busy(steps)
    assert length <= 1.15 * max(moved, busy[VECTOR])
    assert moved + busy[VECTOR] > 1.3 * length


def test_fewer_cores_of_a_slower_chip_take_longer() -> None:
    case = Case("Qwen2.5-72B", 96, tp=8)
    times = [model.predict(trace_of(case, soc), TABLES, NO_LAUNCH).work
             for soc in ("Ascend910B1", "Ascend910B4")]  # fmt: skip
    assert times[0] < times[1]


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
    tables = sum(s.read - s.written for s in streams if s.name == "ApplyRotaryPosEmb")
    tables += sum(s.read - s.written for s in streams if s.name.startswith("Mul"))
    moved = sum(s.read + s.written for s in streams) - tables
    if case.rotary < case.config.dim:  # copy 2, slice 1, fused 1, concatenate 2
        passes = 6
    assert moved / rows == pytest.approx(passes)


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
