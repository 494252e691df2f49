"""norm_apply on npu tensors: the bits of the CPU, one launch a call.

Run as npu_operator.py is, whose helpers it takes. No document says whether a chip rounds a root
and a quotient to the nearest (docs/norm.md): there the report says how far they are, and results
are held to what follows from one unit each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import npu_rope
import pytest
import torch
from norm_samples import Call
from npu_operator import SHORT, assert_same_bits, on_npu
from npu_runtime import SIMULATED, log, only_simulated
from samples import DTYPES, STYLES, Sample
from torch import Tensor

ops = torch.ops.npu_rope


def on_device(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    copies = iter(on_npu(t for t in tensors if t is not None))
    return [None if t is None else next(copies) for t in tensors]


def assert_as_defined(got: Tensor, expected: Tensor) -> None:
    """Equal bits, or on a chip one unit of q's dtype more than factors off by 2^-22 explain."""
    if SIMULATED:
        return assert_same_bits(got, expected)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    if expected.numel():
        wanted, unit = expected.double(), torch.finfo(expected.dtype).eps
        bound = unit * wanted.abs() + max(unit, 2**-21) * wanted.abs().amax(-1, keepdim=True)
        assert ((got.cpu().double() - wanted).abs() <= bound).all()


def calls() -> list[Call]:
    """Each feature once, and shapes at the edges of tiles and cores."""
    norms: list[dict[str, Any]] = [
        {},
        {"which": "q", "weight_offset": 1.0, "weight_dtype": torch.float32},
        {"which": "k", "weight_dtype": torch.float16, "eps": 0.0},
    ]
    samples = [
        Sample(style=style, dtype=dtype, tokens=tokens, q_heads=8, head_dim=dim)
        for style in STYLES
        for dtype in DTYPES
        for tokens, dim in ((1, 128), (130, 64), (7, 80))
    ]
    rows = ("packed", "sliced", "transposed", "strided", "expanded")
    samples += [Sample(rows=kind, tokens=9, head_dim=64) for kind in rows]
    samples += [
        Sample(layout=layout, batch=2, tokens=5, head_dim=32, table_rank=3)
        for layout in ("BSND", "BNSD", "SBND")
    ]
    samples += [
        Sample(tokens=9, head_dim=128, rotary_dim=64, rotary_offset=32, rows="packed"),
        Sample(tokens=9, head_dim=128, rotary_dim=64, dtype=torch.float16, round_each=True),
        Sample(tokens=9, head_dim=256, half_tables=True, cast_tables=False),
        Sample(tokens=1, q_heads=1, rows="strided", odd_strides=True),
        Sample(layout="BNSD", tokens=1, k_heads=1, table_rank=4, broadcast="B", odd_strides=True),
        Sample(tokens=0),
        Sample(q_heads=0),
        Sample(tokens=9, head_dim=72, rows="packed"),
        Sample(tokens=9, head_dim=72, rotary_dim=34, rotary_offset=9, dtype=torch.float32),
        Sample(tokens=9, head_dim=128, rotary_dim=64, style="interleaved", rows="packed"),
        Sample(tokens=9, head_dim=64, rotary_dim=32, style="deinterleave", dtype=torch.float16),
    ]
    made = [Call(sample, **norms[i % 3]) for i, sample in enumerate(samples)]
    return [*made, Call(Sample(tokens=9), which="")]


@pytest.mark.parametrize("call", calls(), ids=str)
def test_bits_are_the_cpus(call: Call) -> None:
    tensors = call.tensors()
    expected = ops.norm_apply(*tensors, **call.options)
    got = ops.norm_apply(*on_device(tensors), **call.options)
    for one, other in zip(got, expected, strict=True):
        assert one.is_contiguous() and one.device.type == "npu"
        assert_as_defined(one, other)


@pytest.mark.parametrize("call", [c for c in calls() if c.sample.rows != "expanded"], ids=str)
def test_in_place_writes_the_same_bits_into_views(call: Call) -> None:
    q, k, *rest = call.tensors()
    storage = q.untyped_storage()
    npu_q, npu_k, *npu_rest = on_device((q, k, *rest))
    ops.norm_apply_(npu_q, npu_k, *npu_rest, **call.options)
    ops.norm_apply_(q, k, *rest, **call.options)
    assert_as_defined(npu_q, q)
    assert_as_defined(npu_k, k)
    whole = torch.empty(0, dtype=npu_q.dtype, device="npu").set_(npu_q.untyped_storage())
    # What lies between the rows is untouched: the storage is the CPU's, byte for byte.
    assert_as_defined(
        whole[: storage.nbytes() // q.element_size()], torch.empty(0, dtype=q.dtype).set_(storage)
    )


@pytest.mark.parametrize("rows", ["contiguous", "transposed", "strided"])
def test_out_writes_into_views_of_any_strides(rows: str) -> None:
    call = Call(Sample(tokens=33, q_heads=5, head_dim=64))
    outs = on_npu(Sample(tokens=33, q_heads=5, head_dim=64, rows=rows, seed=1).tensors()[:2])
    arguments = on_device(call.tensors())
    ops.norm_apply.out(*arguments, **call.options, q_out=outs[0], k_out=outs[1])
    for got, expected in zip(outs, ops.norm_apply(*call.tensors(), **call.options), strict=True):
        assert_as_defined(got, expected)


def test_weights_of_any_stride() -> None:
    call = Call(Sample(tokens=3, head_dim=64))
    q, k, q_weight, k_weight, cos, sin = call.tensors()
    expected = ops.norm_apply(q, k, q_weight, k_weight, cos, sin, **call.options)
    strided = torch.stack((q_weight, k_weight), -1).npu()
    q, k, cos, sin = on_device((q, k, cos, sin))
    got = ops.norm_apply(q, k, strided[:, 0], strided[:, 1], cos, sin, **call.options)
    for one, other in zip(got, expected, strict=True):
        assert_as_defined(one, other)


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_special_values(eps: float) -> None:
    """A row of zeros, of the largest numbers, infinities, NaN."""
    rows = torch.randn(6, 1, 32).bfloat16()
    rows[0], rows[1], rows[2, 0, 3], rows[3, 0, 30] = 0, torch.finfo(rows.dtype).max, torch.inf, 0
    weights, angles = torch.randn(2, 32), torch.rand(6, 32)
    arguments = rows, rows.clone(), *weights, angles.cos(), angles.sin()
    expected = ops.norm_apply(*arguments, eps=eps)
    for got, wanted in zip(ops.norm_apply(*on_device(arguments), eps=eps), expected, strict=True):
        got = got.cpu()
        assert torch.equal(got.isnan(), wanted.isnan())
        assert_as_defined(got.nan_to_num(7.0), wanted.nan_to_num(7.0))


def test_how_far_a_root_and_a_quotient_are(record_property: Callable[[str, str], None]) -> None:
    """Rows that are normed and not turned, in float32: what remains is the factor's own error."""
    rows = torch.randn(4096, 1, 64) * torch.logspace(-6, 6, 4096).view(-1, 1, 1)
    cos, sin = torch.ones(4096, 64), torch.zeros(4096, 64)
    arguments = rows, rows.clone(), torch.ones(64), None, cos, sin
    expected, _ = ops.norm_apply(*arguments, eps=1e-6)
    got = ops.norm_apply(*on_device(arguments), eps=1e-6)[0].cpu()
    error = ((got.double() - expected.double()) / expected.double()).abs().max().item()
    share = (got != expected).double().mean().item()
    record_property("largest relative difference from the CPU", f"{error:.3g}")
    record_property("values that differ", f"{share:.2%}")
    assert error <= (0 if SIMULATED else 2**-21)


# ---- what a call asks the device for ----

LAUNCHES = {
    "one token": Call(Sample(tokens=1, q_heads=32, k_heads=8, head_dim=128)),
    "a prefill": Call(Sample(tokens=300, q_heads=32, k_heads=8, head_dim=128)),
    "strided": Call(Sample(tokens=9, q_heads=8, head_dim=128, rows="packed")),
    "only q": Call(Sample(tokens=9, head_dim=128), which="q"),
    "partial": Call(Sample(tokens=9, head_dim=128, rotary_dim=64)),
    "arranged": Call(Sample(tokens=9, head_dim=72)),
    **{
        f"{style}, {SHORT[dtype]}": Call(Sample(tokens=9, style=style, dtype=dtype))
        for style in STYLES
        for dtype in DTYPES
    },
}


@only_simulated
@pytest.mark.parametrize("form", ["norm_apply", "norm_apply_"])
@pytest.mark.parametrize("name", LAUNCHES)
def test_a_call_is_one_launch_and_nothing_else(name: str, form: str) -> None:
    call = LAUNCHES[name]
    arguments = on_device(call.tensors())
    getattr(ops, form)(*arguments, **call.options)  # memory for the outputs is in the cache now
    torch.npu.synchronize()
    with log() as calls:
        getattr(ops, form)(*arguments, **call.options)
        torch.npu.current_stream().npu_stream  # noqa: B018  waits for the task queue, not the stream
    assert len(calls.launches) == 1
    order = "arranged" if name == "arranged" else call.sample.style
    launch = f"aclrtlaunch_rope_norm_{SHORT[call.sample.dtype]}_{order}"
    assert calls.launches[0].split()[0] == launch
    asked = {line.split()[0] for line in calls} - {launch}
    assert asked <= {"aclrtGetDevice", "aclrtSetDevice"}, calls


@only_simulated
def test_without_weights_it_is_the_rotations_launch() -> None:
    q, k, _, _, cos, sin = on_device(Call(Sample(tokens=9, head_dim=64)).tensors())
    with log() as calls:
        ops.norm_apply_(q, k, None, None, cos, sin, eps=1e-6)
        torch.npu.synchronize()
    assert [line.split()[0] for line in calls.launches] == ["aclrtlaunch_rope_bf16_half"]


@only_simulated
@pytest.mark.parametrize("kept", [0, 1], ids=["q", "k"])
def test_one_of_q_and_k_alone_is_one_launch(kept: int) -> None:
    call = Call(Sample(tokens=9, head_dim=64))
    q, k, *rest = call.tensors()
    expected = ops.norm_apply(q, k, *rest, **call.options)[kept]
    rows: list[Tensor | None] = [None, None]
    rows[kept] = (q, k)[kept].npu()
    with log() as calls:
        got = ops.norm_apply(*rows, *on_device(tuple(rest)), **call.options)
        torch.npu.synchronize()
    assert len(calls.launches) == 1 and got[1 - kept] is None
    assert_same_bits(got[kept], expected)


# ---- errors ----


def test_float64_is_refused_before_anything_is_written() -> None:
    call = Call(Sample(dtype=torch.float64, table_dtype=torch.float64))
    arguments = on_device(call.tensors())
    before = arguments[0].cpu(), arguments[1].cpu()
    for form in (ops.norm_apply, ops.norm_apply_):
        with pytest.raises(TypeError, match="q is Double, expected Half, BFloat16 or Float"):
            form(*arguments, **call.options)
    for tensor, kept in zip(arguments, before, strict=False):
        assert torch.equal(tensor.cpu(), kept)


def test_errors_are_the_cpus() -> None:
    call = Call(Sample(tokens=5, head_dim=64))
    q, k, q_weight, k_weight, cos, sin = arguments = on_device(call.tensors())
    with pytest.raises(ValueError, match=r"q_weight has shape \[32\], expected \[64\]"):
        ops.norm_apply(q, k, q_weight[:32], k_weight, cos, sin, eps=1e-6)
    with pytest.raises(ValueError, match="k_weight is on cpu, expected npu:0 as q"):
        ops.norm_apply(q, k, q_weight, k_weight.cpu(), cos, sin, eps=1e-6)
    with pytest.raises(ValueError, match="eps is -1"):
        ops.norm_apply(*arguments, eps=-1.0)
    inside = q.view(-1)[64:128]
    with pytest.raises(ValueError, match="q_weight overlaps what is written for q"):
        ops.norm_apply_(q, k, inside, inside.clone(), cos, sin, eps=1e-6)


# ---- autograd and compilation ----


def test_in_place_raises_under_grad_mode_and_bumps_the_version() -> None:
    call = Call(Sample(tokens=3))
    q, k, *rest = on_device(call.tensors())
    with pytest.raises(RuntimeError, match="requires"):
        ops.norm_apply_(q.requires_grad_(), k, *rest, **call.options)
    before = k._version
    ops.norm_apply_(q.detach(), k, *rest, **call.options)
    assert k._version == before + 1


def test_compiled_in_one_graph() -> None:
    call = Call(Sample(half_tables=True))
    compiled = torch.compile(
        lambda *args: npu_rope.norm_apply(*args, **call.options),
        fullgraph=True,
        backend="aot_eager",
    )
    for tokens in (5, 9):
        arguments = Call(Sample(half_tables=True, tokens=tokens)).tensors()
        got = compiled(*on_device(arguments))
        for one, other in zip(got, ops.norm_apply(*arguments, **call.options), strict=True):
            assert_as_defined(one, other)
