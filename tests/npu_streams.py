"""Order: with neighbours on one stream, across streams, in graphs, on two devices; and no leak.

On the simulated runtime the task in front is slowed down, so that a call that does not wait for it
reads or writes too early.
"""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import pytest
import torch
import torch_npu  # noqa: F401  npu tensors
from npu_operator import assert_same_bits
from npu_runtime import SIMULATED, delay, held, live_bytes, only_simulated
from samples import Sample
from torch import Tensor

ops = torch.ops.npu_rope
SLOW = 150  # milliseconds: far longer than a whole test takes without waiting
COPY = "aclrtMemcpyAsync"
LAUNCH = "aclrtlaunch_rope_bf16_half"


def slow(function: str) -> contextlib.AbstractContextManager[None]:
    return delay(function, SLOW) if SIMULATED else contextlib.nullcontext()


def on_npu(sample: Sample) -> list[Tensor]:
    tensors = [tensor.npu() for tensor in sample.tensors()]
    torch.npu.synchronize()
    return tensors


SAMPLE = Sample(tokens=9, q_heads=4, head_dim=64)


@pytest.mark.parametrize("slowed", [COPY, f"{COPY}@call"], ids=["on the device", "in the queue"])
def test_waits_for_what_was_queued_before_it(slowed: str) -> None:
    q, k, cos, sin = on_npu(SAMPLE)
    late = Sample(**{**SAMPLE.__dict__, "seed": 5}).tensors()
    late_q = late[0].npu()
    torch.npu.synchronize()
    with slow(slowed):
        q.copy_(late_q, non_blocking=True)
        got, _ = ops.apply(q, k, cos, sin)
        torch.npu.synchronize()
    assert_same_bits(got, ops.apply(late[0], *SAMPLE.tensors()[1:])[0])


def test_what_is_queued_after_it_waits() -> None:
    args = on_npu(SAMPLE)
    copied = torch.empty_like(args[0])
    with slow(LAUNCH):
        got, _ = ops.apply(*args)
        copied.copy_(got, non_blocking=True)
        torch.npu.synchronize()
    assert_same_bits(copied, ops.apply(*SAMPLE.tensors())[0])


@only_simulated
def test_a_call_returns_before_the_device_is_done() -> None:
    args = on_npu(SAMPLE)
    done = torch.npu.Event()
    with held(LAUNCH):
        ops.apply(*args)
        done.record()
        assert not done.query()
    torch.npu.synchronize()
    assert done.query()


def test_temporaries_outlive_their_launch() -> None:
    """The dense copy of rows that are not dense is freed by the host while it is still read."""
    sample = Sample(rows="strided", tokens=33, head_dim=64)
    args = [tensor.npu() for tensor in sample.tensors()]
    wide = torch.zeros(33, 3, 128, dtype=torch.bfloat16).npu()
    args[0] = wide[..., ::2]
    args[0].copy_(sample.tensors()[0].npu())
    torch.npu.synchronize()
    with slow(LAUNCH):
        got, _ = ops.apply(*args)
        others = [torch.empty_like(got).copy_(got) for _ in range(8)]  # take freed memory again
        torch.npu.synchronize()
    expected = ops.apply(*sample.tensors())[0]
    for tensor in (got, *others):
        assert_same_bits(tensor, expected)


@pytest.mark.parametrize("slowed", [COPY, LAUNCH])
def test_events_order_two_streams(slowed: str) -> None:
    q, k, cos, sin = on_npu(SAMPLE)
    late = Sample(**{**SAMPLE.__dict__, "seed": 5}).tensors()
    late_q = late[0].npu()
    copied = torch.empty_like(q)
    torch.npu.synchronize()
    one, two, three = (torch.npu.Stream() for _ in range(3))
    with slow(slowed):
        with torch.npu.stream(one):
            q.copy_(late_q, non_blocking=True)
        two.wait_stream(one)
        with torch.npu.stream(two):
            got, _ = ops.apply(q, k, cos, sin)
        three.wait_stream(two)
        with torch.npu.stream(three):
            copied.copy_(got, non_blocking=True)
        torch.npu.synchronize()
    assert_same_bits(copied, ops.apply(late[0], *SAMPLE.tensors()[1:])[0])


@only_simulated
def test_without_the_event_the_streams_are_not_ordered() -> None:
    """That the test above can fail: the runtime keeps no order that nobody asked for."""
    q, k, cos, sin = on_npu(SAMPLE)
    late_q = Sample(**{**SAMPLE.__dict__, "seed": 5}).tensors()[0].npu()
    torch.npu.synchronize()
    one, two = torch.npu.Stream(), torch.npu.Stream()
    with held(COPY):
        with torch.npu.stream(one):
            q.copy_(late_q, non_blocking=True)
        with torch.npu.stream(two):
            got, _ = ops.apply(q, k, cos, sin)
        two.synchronize()
    assert_same_bits(got, ops.apply(*SAMPLE.tensors())[0])


def test_in_place_across_streams() -> None:
    q, k, cos, sin = on_npu(SAMPLE)
    side = torch.npu.Stream()
    side.wait_stream(torch.npu.current_stream())
    with slow(LAUNCH), torch.npu.stream(side):
        ops.apply_(q, k, cos, sin)
        q.record_stream(side)
    torch.npu.current_stream().wait_stream(side)
    expected = ops.apply(*SAMPLE.tensors())
    assert_same_bits(q, expected[0])
    assert_same_bits(k, expected[1])


# ---- graphs ----


@pytest.mark.parametrize("form", ["apply", "apply_"])
def test_captured_and_replayed_with_new_data(form: str) -> None:
    q, k, cos, sin = on_npu(SAMPLE)
    getattr(ops, form)(q.clone(), k.clone(), cos, sin)  # loads the library before the capture
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        outs = getattr(ops, form)(q, k, cos, sin) or (q, k)
    for seed in (7, 8):
        sample = Sample(**{**SAMPLE.__dict__, "seed": seed})
        for target, source in zip((q, k, cos, sin), sample.tensors(), strict=True):
            target.copy_(source)
        graph.replay()
        torch.npu.synchronize()
        for got, expected in zip(outs, ops.apply(*sample.tensors()), strict=True):
            assert_same_bits(got, expected)


def test_captured_with_a_fork() -> None:
    q, k, cos, sin = on_npu(SAMPLE)
    ops.apply(q, k, cos, sin)
    side = torch.npu.Stream()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        main = torch.npu.current_stream()
        once = ops.apply(q, k, cos, sin)
        side.wait_stream(main)
        with torch.npu.stream(side):
            twice = ops.apply(*once, cos, sin)
        main.wait_stream(side)
    graph.replay()
    torch.npu.synchronize()
    args = SAMPLE.tensors()
    for got, expected in zip(twice, ops.apply(*ops.apply(*args), *args[2:]), strict=True):
        assert_same_bits(got, expected)


# ---- devices ----


@pytest.mark.skipif("torch.npu.device_count() < 2", reason="needs two devices")
@pytest.mark.parametrize("form", ["apply", "apply_", "apply_backward", "strided"])
def test_runs_where_its_tensors_are(form: str) -> None:
    assert torch.npu.current_device() == 0
    sample = Sample(rows="strided", tokens=9) if form == "strided" else SAMPLE
    form = "apply" if form == "strided" else form
    args = sample.tensors()
    on_second = [tensor.to("npu:1") for tensor in args]
    if sample.rows == "strided":
        wide = torch.zeros(*args[0].shape[:-1], args[0].size(-1) * 2, dtype=args[0].dtype)
        on_second[0] = wide.to("npu:1")[..., ::2]
        on_second[0].copy_(args[0].to("npu:1"))
    outs = getattr(ops, form)(*on_second) or on_second[:2]
    assert torch.npu.current_device() == 0
    expected = getattr(ops, form)(*args) or args[:2]
    for got, other in zip(outs, expected, strict=True):
        assert got.device == torch.device("npu:1")
        assert_same_bits(got, other)


@pytest.mark.skipif("torch.npu.device_count() < 2", reason="needs two devices")
def test_tensors_of_two_devices_are_refused() -> None:
    q, k, cos, sin = SAMPLE.tensors()
    with pytest.raises(ValueError, match="k is on npu:1, expected npu:0 as q"):
        ops.apply(q.npu(), k.to("npu:1"), cos.npu(), sin.npu())


# ---- memory ----


@only_simulated
def test_thousands_of_calls_leak_nothing() -> None:
    args = on_npu(Sample(tokens=1, q_heads=1, k_heads=1, head_dim=16))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def calls() -> int:
        """What the process holds more after them."""
        before = resident()
        for _ in range(5_000):
            ops.apply(*args)
        torch.npu.synchronize()
        gc.collect()
        return resident() - before

    calls()  # fills every cache
    device, tensors = live_bytes(), torch.npu.memory_allocated()
    growth = [calls() for _ in range(5)]
    assert live_bytes() == device
    assert torch.npu.memory_allocated() == tensors
    # A leak grows every time; a queue that was never this long before grows once.
    assert min(growth) < 1 << 20  # what a leak of 200 bytes a call would take
