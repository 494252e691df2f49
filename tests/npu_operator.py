"""The operator on npu tensors: the bits of the CPU, one launch a call.

Run on an NPU by `make test-npu`, without one by test_npu.py. Results come back to the host before
they are compared, so that nothing but the operator and copies runs on the device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import npu_rope
import pytest
import torch
import torch_npu
from npu_runtime import SIMULATED, log, only_simulated
from samples import DTYPES, STYLES, Sample, samples
from torch import Tensor

ops = torch.ops.npu_rope
SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def on_npu(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copies with the same strides; what shared storage before shares it there."""
    storages: dict[int, Tensor] = {}
    copies = []
    for tensor in tensors:
        address = tensor.untyped_storage().data_ptr()
        if address not in storages:
            flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
            storages[address] = flat.npu()
        layout = tensor.size(), tensor.stride(), tensor.storage_offset()
        copies.append(storages[address].as_strided(*layout))
    return copies


def assert_same_bits(got: Tensor, expected: Tensor) -> None:
    got = got.cpu()
    assert got.dtype == expected.dtype and got.shape == expected.shape
    as_int = {2: torch.int16, 4: torch.int32}[expected.element_size()]
    assert torch.equal(got.contiguous().view(as_int), expected.contiguous().view(as_int))


def many_samples() -> list[Sample]:
    """The contract's list, and shapes at the edges of tiles and cores."""
    more = [
        Sample(style=style, dtype=dtype, tokens=tokens, q_heads=8, k_heads=2, head_dim=128)
        for style in STYLES
        for dtype in DTYPES
        for tokens in (1, 7, 130)
    ]
    more.append(Sample(tokens=600, q_heads=16, k_heads=16, head_dim=80))
    more.append(Sample(layout="BNSD", batch=3, tokens=67, q_heads=5, k_heads=1, head_dim=192))
    return [*samples(), *more]


@pytest.mark.parametrize("sample", many_samples(), ids=str)
def test_bits_are_the_cpus(sample: Sample) -> None:
    args = sample.tensors()
    expected = ops.apply(*args, **sample.options)
    got = ops.apply(*on_npu(args), **sample.options)
    for one, other in zip(got, expected, strict=True):
        assert one.is_contiguous() and one.device.type == "npu"
        assert_same_bits(one, other)


@pytest.mark.parametrize("sample", [*samples()], ids=str)
def test_backward_bits_are_the_cpus(sample: Sample) -> None:
    args = sample.tensors()
    expected = ops.apply_backward(*args, **sample.options)
    got = ops.apply_backward(*on_npu(args), **sample.options)
    for one, other in zip(got, expected, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("place", ["q", "k", "cos", "sin", "q_out", "k_out"])
def test_private_formats_are_refused(place: str) -> None:
    """Their elements are not where their strides say."""
    shapes = {"q": (4, 16, 64), "k": (4, 2, 64), "cos": (4, 64), "sin": (4, 64)}
    shapes |= {"q_out": shapes["q"], "k_out": shapes["k"]}
    host = {name: torch.randn(shape).half() for name, shape in shapes.items()}
    tensors = {name: tensor.npu() for name, tensor in host.items()}
    tensors[place] = torch_npu.empty_with_format(
        shapes[place], dtype=torch.float16, device="npu", acl_format=29
    )
    assert "NZ" in str(torch_npu.get_npu_format(tensors[place]))
    *inputs, q_out, k_out = tensors.values()
    with pytest.raises(ValueError, match=f"^{place} is stored in format 29, expected a plain one"):
        ops.apply.out(*inputs, q_out=q_out, k_out=k_out)
    if not place.endswith("_out"):
        for form in (ops.apply, ops.apply_):
            with pytest.raises(ValueError, match=f"^{place} is stored in format 29"):
                form(*inputs)
    for name in {"q_out", "k_out"} - {place}:  # nothing was written
        assert torch.equal(tensors[name].cpu(), host[name])


WRITABLE = [sample for sample in samples() if sample.rows != "expanded"]


@pytest.mark.parametrize("sample", WRITABLE, ids=str)
def test_in_place_writes_the_same_bits_into_views(sample: Sample) -> None:
    q, k, cos, sin = sample.tensors()
    storage = q.untyped_storage()
    npu_q, npu_k, npu_cos, npu_sin = on_npu((q, k, cos, sin))
    ops.apply_(npu_q, npu_k, npu_cos, npu_sin, **sample.options)
    ops.apply_(q, k, cos, sin, **sample.options)
    assert_same_bits(npu_q, q)
    assert_same_bits(npu_k, k)
    whole = torch.empty(0, dtype=npu_q.dtype, device="npu").set_(npu_q.untyped_storage())
    # What lies between the rows is untouched: the storage is the CPU's, byte for byte.
    assert_same_bits(
        whole[: storage.nbytes() // q.element_size()], torch.empty(0, dtype=q.dtype).set_(storage)
    )


@pytest.mark.parametrize("rows", ["contiguous", "transposed", "strided"])
def test_out_writes_into_views_of_any_strides(rows: str) -> None:
    sample = Sample(tokens=33, q_heads=5, head_dim=64)
    q, k, cos, sin = on_npu(sample.tensors())
    outs = Sample(tokens=33, q_heads=5, head_dim=64, rows=rows, seed=1).tensors()[:2]
    q_out, k_out = on_npu(outs)
    ops.apply.out(q, k, cos, sin, **sample.options, q_out=q_out, k_out=k_out)
    for got, expected in zip((q_out, k_out), ops.apply(*sample.tensors()), strict=True):
        assert_same_bits(got, expected)


# ---- what a call asks the device for ----

LAUNCHES = {
    "one token": Sample(tokens=1, q_heads=32, k_heads=8, head_dim=128),
    "a prefill": Sample(tokens=300, q_heads=32, k_heads=8, head_dim=128),
    "head_dim 128, strided": Sample(tokens=9, q_heads=8, head_dim=128, rows="packed"),
    "head_dim 64": Sample(tokens=9, head_dim=64),
    "head_dim 72": Sample(tokens=9, head_dim=72),
    "head_dim 80": Sample(tokens=64, q_heads=16, k_heads=16, head_dim=80, half_tables=True),
    "head_dim 80, strided": Sample(tokens=64, q_heads=16, k_heads=16, head_dim=80, rows="packed"),
    "MLA": Sample(tokens=9, rows="sliced", head_dim=64, k_heads=1, style="deinterleave"),
    "partial": Sample(tokens=9, head_dim=128, rotary_dim=64),
    "partial, strided": Sample(tokens=9, head_dim=128, rotary_dim=64, rows="packed"),
    "fp32 tables": Sample(tokens=9, cast_tables=False),
    **{
        f"{style}, {SHORT[dtype]}": Sample(tokens=9, style=style, dtype=dtype)
        for style in STYLES
        for dtype in DTYPES
    },
    "transposed": Sample(tokens=9, rows="transposed"),
    "a batch": Sample(layout="BSND", batch=3, tokens=9, table_rank=3),
    "a batch of BNSD": Sample(layout="BNSD", batch=3, tokens=9, table_rank=2),
    "only q": Sample(tokens=9, k_heads=0),
}


@only_simulated
@pytest.mark.parametrize("form", ["apply", "apply_", "apply_backward"])
@pytest.mark.parametrize("name", LAUNCHES)
def test_a_call_is_one_launch_and_nothing_else(name: str, form: str) -> None:
    sample = LAUNCHES[name]
    args = on_npu(sample.tensors())
    getattr(ops, form)(*args, **sample.options)  # memory for the outputs is now in the cache
    torch.npu.synchronize()
    with log() as calls:
        getattr(ops, form)(*args, **sample.options)
        torch.npu.current_stream().npu_stream  # noqa: B018  waits for the task queue, not the stream
    assert len(calls.launches) == 1
    order = sample.style
    if order == "deinterleave" and form == "apply_backward":
        order = "reinterleave"
    launch = f"aclrtlaunch_rope_{SHORT[sample.dtype]}_{order}"
    assert calls.launches[0].split()[0] == launch
    asked = {line.split()[0] for line in calls} - {launch}
    assert asked <= {"aclrtGetDevice", "aclrtSetDevice"}, calls


@only_simulated
@pytest.mark.parametrize("kept", [0, 1], ids=["q", "k"])
def test_one_of_q_and_k_alone_is_one_launch(kept: int) -> None:
    q, k, cos, sin = Sample(tokens=9, head_dim=64).tensors()
    rows = [None, None]
    rows[kept] = (q, k)[kept]
    expected = ops.apply(q, k, cos, sin)[kept]
    on_device = [None if row is None else row.npu() for row in rows]
    with log() as calls:
        got = ops.apply(*on_device, cos.npu(), sin.npu())
        ops.apply_(*on_device, cos.npu(), sin.npu())
        torch.npu.synchronize()
    assert len(calls.launches) == 2 and got[1 - kept] is None
    assert_same_bits(got[kept], expected)
    assert_same_bits(on_device[kept], expected)


@only_simulated
@pytest.mark.parametrize("shape", [(0, 4, 2), (5, 0, 0)], ids=["no tokens", "no heads"])
def test_nothing_to_rotate_is_no_launch(shape: tuple[int, int, int]) -> None:
    tokens, q_heads, k_heads = shape
    args = [
        tensor.npu() for tensor in Sample(tokens=tokens, q_heads=q_heads, k_heads=k_heads).tensors()
    ]
    with log() as calls:
        outs = ops.apply(*args)
        torch.npu.synchronize()
    assert not calls.launches
    assert [out.shape for out in outs] == [arg.shape for arg in args[:2]]


@only_simulated
def test_rows_that_are_not_dense_cost_copies_but_no_synchronisation() -> None:
    sample = Sample(rows="strided", tokens=9)
    args = on_npu(sample.tensors())
    torch.npu.synchronize()
    with log() as calls:
        ops.apply(*args)
        torch.npu.current_stream().npu_stream  # noqa: B018
    assert len(calls.launches) == 1
    assert not calls.named("aclrtSynchronizeStreamWithTimeout", "aclrtSynchronizeStream")
    assert calls.named("aclopCompileAndExecute")


# ---- errors ----


def test_errors_are_the_cpus() -> None:
    q, k, cos, sin = (tensor.npu() for tensor in Sample().tensors())
    with pytest.raises(ValueError, match=r"cos has last dim 12, expected"):
        ops.apply(q, k, cos[:, :12], sin[:, :12], rotary_dim=16)
    with pytest.raises(ValueError, match=r"cos is on cpu, expected npu:0 as q"):
        ops.apply(q, k, cos.cpu(), sin.cpu())
    with pytest.raises(ValueError, match="q overlaps k in memory"):
        ops.apply_(q, q, cos, sin)


def test_float64_is_refused() -> None:
    args = [tensor.npu() for tensor in Sample(dtype=torch.float64).tensors()]
    with pytest.raises(TypeError, match="q is Double, expected Half, BFloat16 or Float"):
        ops.apply(*args)


# ---- autograd and compilation ----


@pytest.mark.parametrize("style", STYLES)
def test_gradients_are_the_cpus(style: str) -> None:
    sample = Sample(style=style, dtype=torch.float32)
    q, k, cos, sin = sample.tensors()
    gradients = [torch.randn_like(q), torch.randn_like(k)]

    def gradient(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, grads: list[Tensor]) -> tuple:
        q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
        return torch.autograd.grad(ops.apply(q, k, cos, sin, **sample.options), (q, k), grads)

    expected = gradient(q, k, cos, sin, gradients)
    got = gradient(q.npu(), k.npu(), cos.npu(), sin.npu(), [g.npu() for g in gradients])
    for one, other in zip(got, expected, strict=True):
        assert_same_bits(one, other)


def test_in_place_raises_under_grad_mode_and_bumps_the_version() -> None:
    q, k, cos, sin = (tensor.npu() for tensor in Sample().tensors())
    with pytest.raises(RuntimeError, match="requires"):
        ops.apply_(q.requires_grad_(), k, cos, sin)
    before = k._version
    ops.apply_(q.detach(), k, cos, sin)
    assert k._version == before + 1


def test_compiled_in_one_graph() -> None:
    sample = Sample(half_tables=True)
    compiled = torch.compile(
        lambda *args: npu_rope.apply(*args, **sample.options), fullgraph=True, backend="aot_eager"
    )
    for tokens in (5, 9):
        args = Sample(half_tables=True, tokens=tokens).tensors()
        got = compiled(*(tensor.npu() for tensor in args))
        for one, other in zip(got, ops.apply(*args, **sample.options), strict=True):
            assert_same_bits(one, other)


# ---- loading ----

NPU_ROPE_FIRST = """
import torch, npu_rope, torch_npu
q, k = torch.ones(2, 3, 16).npu(), torch.ones(2, 1, 16).npu()
cos, sin = torch.zeros(2, 16).npu(), torch.ones(2, 16).npu()
q, k = torch.ops.npu_rope.apply(q, k, cos, sin)
assert q.cpu()[0, 0].tolist() == [-1.0] * 8 + [1.0] * 8
"""


def test_loaded_before_torch_npu() -> None:
    """The other order is this process's: with autoload, torch_npu comes with torch."""
    done = subprocess.run(
        [sys.executable, "-c", NPU_ROPE_FIRST],
        env={**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "overrid" not in done.stderr.lower()  # the dispatcher's warning of a second kernel


def test_device_is_what_the_run_says() -> None:
    """Nobody takes a simulated run for a real one, or the other way round."""
    maps = Path("/proc/self/maps").read_text()
    assert ("npu_simulated/libascendcl.so" in maps) == SIMULATED
