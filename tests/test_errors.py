"""Bad input: an error that says what was expected and what came, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import npu_rope
import numpy
import pytest
import torch
from npu_rope import _C
from torch import Tensor

rope = torch.ops.npu_rope


def call(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """A good call with some arguments replaced."""
    good: dict[str, Any] = {
        "q": torch.ones(5, 3, 16),
        "k": torch.ones(5, 2, 16),
        "cos": torch.ones(5, 16),
        "sin": torch.ones(5, 16),
    }
    return {**good, **changes}


def four(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    return call(
        **{
            "q": torch.ones(2, 5, 3, 16),
            "k": torch.ones(2, 5, 2, 16),
            **changes,
        }
    )


def ones(*shape: int, **options: Any) -> Tensor:  # noqa: ANN401
    return torch.ones(*shape, **options)


meta = torch.device("meta")
BAD = {
    "no q and k": (call(q=None, k=None), TypeError, "q and k are None, expected a tensor"),
    "no cos": (call(cos=None), TypeError, "cos is None, expected a tensor"),
    "no sin": (call(sin=None), TypeError, "sin is None, expected a tensor"),
    "k alone": (call(q=None, cos=ones(4, 16), sin=ones(4, 16)), ValueError, "expected 5 as k, or"),
    "q rank": (call(q=ones(5, 16)), ValueError, "q has 2 dims, expected 3 .TND. or 4"),
    "k rank": (call(k=ones(5, 16)), ValueError, "k has 2 dims, expected 3 as q"),
    "q dtype": (call(q=ones(5, 3, 16).int()), TypeError, "q is Int, expected Half, BFloat16 or"),
    "k dtype": (call(k=ones(5, 2, 16).half()), TypeError, "k is Half, expected Float as q"),
    "k tokens": (call(k=ones(4, 2, 16)), ValueError, r"k has shape \[4, 2, 16\], expected \[5, 3"),
    "k head_dim": (call(k=ones(5, 2, 8)), ValueError, "but for the number of heads"),
    "odd head_dim": (call(q=ones(5, 3, 15), k=ones(5, 2, 15)), ValueError, "head_dim 15, expected"),
    "wide head_dim": (call(q=ones(1, 1, 1026), k=ones(1, 1, 1026)), ValueError, "even number from"),
    "head_dim 0": (call(q=ones(5, 3, 0), k=ones(5, 2, 0)), ValueError, "head_dim 0"),
    "cos dtype": (call(cos=ones(5, 16).long()), TypeError, "cos is Long, expected Half, BFloat16"),
    "cos double": (call(cos=ones(5, 16).double()), TypeError, "cos is Double, expected Half"),
    "sin dtype": (call(sin=ones(5, 16).half()), TypeError, "sin is Half, expected Float as cos"),
    "sin shape": (call(sin=ones(5, 8)), ValueError, r"sin has shape \[5, 8\], expected \[5, 16\]"),
    "sin rank": (call(sin=ones(5, 1, 16)), ValueError, "sin has 3 dims, expected 2 as cos"),
    "table rank": (
        call(cos=ones(1, 5, 1, 16), sin=ones(1, 5, 1, 16)),
        ValueError,
        "cos has 4 dims, expected 2 or 3 beside 3-D q and k",
    ),
    "table rank 1": (
        four(cos=ones(16), sin=ones(16)),
        ValueError,
        "cos has 1 dims, expected 2, 3 or 4 beside 4-D",
    ),
    "table tokens": (
        call(cos=ones(4, 16), sin=ones(4, 16)),
        ValueError,
        "cos has 4 tokens, expected 5 as q, or 1",
    ),
    "table batch": (
        four(cos=ones(3, 5, 16), sin=ones(3, 5, 16)),
        ValueError,
        "cos has 3 batches, expected 2 as q, or 1",
    ),
    "table heads": (
        call(cos=ones(5, 3, 16), sin=ones(5, 3, 16)),
        ValueError,
        "cos has 3 heads, expected 1",
    ),
    "table wide": (
        call(cos=ones(5, 18), sin=ones(5, 18)),
        ValueError,
        "rotary_dim 18 .cos's last dim. is over head_dim 16",
    ),
    "table odd": (call(cos=ones(5, 15), sin=ones(5, 15)), ValueError, "cos has last dim 15"),
    "table width 1": (call(cos=ones(5, 1), sin=ones(5, 1)), ValueError, "cos has last dim 1, exp"),
    "neither full nor half": (
        call(cos=ones(5, 12), sin=ones(5, 12), rotary_dim=16),
        ValueError,
        r"cos has last dim 12, expected rotary_dim 16 \(full tables\) or 8 \(half tables\)",
    ),
    "odd rotary_dim": (call(rotary_dim=15), ValueError, "rotary_dim is 15, expected an even"),
    "negative rotary_dim": (call(rotary_dim=-16), ValueError, "rotary_dim is -16, expected"),
    "negative offset": (call(rotary_offset=-2), ValueError, "rotary_offset is -2, expected at"),
    "offset": (call(rotary_offset=2), ValueError, r"rotary_offset 2 \+ rotary_dim 16"),
    "huge offset": (call(rotary_offset=2**63 - 1), ValueError, "is over head_dim 16"),
    "layout": (call(layout="NTD"), ValueError, "layout is 'NTD', expected 'TND', 'BSND'"),
    "layout of 4-D": (call(layout="BSND"), ValueError, "takes 4-D tensors, but q has 3 dims"),
    "layout of 3-D": (four(layout="TND"), ValueError, "takes 3-D tensors, but q has 4 dims"),
    "deinterleave alone": (call(deinterleave=True), ValueError, "needs interleaved=True"),
    "device of k": (call(k=ones(5, 2, 16, device=meta)), (ValueError, RuntimeError), "meta"),
    "device of cos": (
        call(cos=ones(5, 16, device=meta), sin=ones(5, 16, device=meta)),
        (ValueError, RuntimeError),
        "meta",
    ),
}


def on_meta(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to(meta) if isinstance(v, Tensor) else v for k, v in arguments.items()}


def unchanged(function: Callable[[], Any], tensors: list[Tensor], error: Any, match: str) -> None:  # noqa: ANN401
    before = [t.clone() for t in tensors]
    with pytest.raises(error, match=match):
        function()
    for tensor, old in zip(tensors, before, strict=True):
        if tensor.device.type == "cpu":
            assert torch.equal(tensor, old)
    assert all(t._version == 0 for t in tensors), "a call that fails bumps no version"


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_every_form(name: str) -> None:
    arguments, error, match = BAD[name]
    tensors = [v for v in arguments.values() if isinstance(v, Tensor)]
    unchanged(lambda: rope.apply(**arguments), tensors, error, match)
    unchanged(lambda: rope.apply_(**arguments), tensors, error, match)
    outs = {
        f"{name}_out": None if arguments[name] is None else arguments[name].clone() for name in "qk"
    }
    written = [*tensors, *(out for out in outs.values() if out is not None)]
    unchanged(lambda: rope.apply.out(**arguments, **outs), written, error, match)
    grads = {"grad_q": arguments["q"], "grad_k": arguments["k"]}
    rest = {key: value for key, value in arguments.items() if key not in "qk"}
    named = match.replace("q has", "grad_q has").replace("as q", "as grad_q")
    named = named.replace("q and k are", "grad_q and grad_k are").replace("as k,", "as grad_k,")
    named = named.replace("q is", "grad_q is").replace("k is Half", "grad_k is Half")
    named = named.replace("k has shape", "grad_k has shape").replace("k has 2", "grad_k has 2")
    unchanged(lambda: rope.apply_backward(**grads, **rest), tensors, error, named)
    if "device" not in name:
        with pytest.raises(error, match=match):
            rope.apply(**on_meta(arguments))
        with pytest.raises(error, match=match):
            rope.apply_(**on_meta(arguments))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"q_out": ones(5, 2, 16)}, ValueError, r"q_out has shape \[5, 2, 16\], expected \[5, 3"),
        ({"k_out": ones(5, 2, 1, 16)}, ValueError, "k_out has 4 dims, expected 3 as k"),
        ({"q_out": ones(5, 3, 16).half()}, TypeError, "q_out is Half, expected Float as q"),
        ({"k_out": ones(1, 2, 16).expand(5, 2, 16)}, ValueError, "k_out is an expanded tensor"),
        ({"k_out": None}, TypeError, "k_out is None, expected a tensor as k"),
    ],
)
def test_outputs_are_never_resized_or_cast(changes: dict, error: type, match: str) -> None:
    outs = {"q_out": ones(5, 3, 16), "k_out": ones(5, 2, 16), **changes}
    given = [out for out in outs.values() if out is not None]
    unchanged(lambda: rope.apply.out(**call(), **outs), given, error, match)
    if "k_out is an" not in match:
        outs = on_meta(outs)
        with pytest.raises(error, match=match):
            rope.apply.out(**on_meta(call()), **outs)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_overlap_is_refused(device: str) -> None:
    memory = torch.zeros(4096, device=device)
    a, b = memory[:240].view(5, 3, 16), memory[120:280].view(5, 2, 16)
    rows = memory.unfold(0, 16, 8)[:15].view(5, 3, 16)  # each begins within the one before
    expanded = torch.zeros(1, 3, 16, device=device).expand(5, 3, 16)
    cos = memory[200:280].view(5, 16)
    packed = memory[:800].view(5, 10, 16)  # views of it: ATen says that they are too hard to tell
    other, half = torch.ones(5, 2, 16, device=device), torch.ones(5, 8, device=device)

    def at(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
        return {key: value.to(device) for key, value in call(**changes).items()}

    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: rope.apply_(**at(q=a, k=b)), "q overlaps k"),
        (lambda: rope.apply_(**at(q=a, k=a)), "q overlaps k"),
        (lambda: rope.apply_(**at(q=packed[:, :3], k=packed[:, :3])), "q overlaps k"),
        (lambda: rope.apply_(**at(q=packed[:, :3], k=packed[:, 2:4])), "q overlaps k"),
        (lambda: rope.apply_(**at(q=packed[:, :3], cos=packed[:, 2])), "q overlaps cos"),
        (
            lambda: rope.apply_(**at(q=packed[:, ::2][:, :3], k=packed[:, 4:6])),
            "q overlaps k",
        ),
        (
            lambda: rope.apply_(**at(q=rows)),
            "q is an expa",
        ),
        (
            lambda: rope.apply.out(**at(), q_out=packed[:, :3], k_out=packed[:, 2:4]),
            "q_out overl",
        ),
        (lambda: rope.apply_(**at(q=expanded)), "q is an expanded tensor"),
        (lambda: rope.apply_(**at(q=a, cos=cos)), "q overlaps cos"),
        (lambda: rope.apply_(**at(k=b, sin=cos)), "k overlaps sin"),
        (lambda: rope.apply.out(**at(q=a), q_out=a, k_out=b), "q_out overlaps k_out"),
        (lambda: rope.apply.out(**at(k=b), q_out=a, k_out=other), "q_out overlaps k"),
        (
            lambda: rope.apply.out(**at(q=a), q_out=torch.ones_like(a), k_out=b),
            "k_out overlaps q",
        ),
        (
            lambda: rope.apply.out(**at(q=a), q_out=memory[16:256].view(5, 3, 16), k_out=other),
            "q_out overlaps q ",
        ),
    ]
    for function, match in cases:
        unchanged(function, [memory], ValueError, match)
    # What lies between and beside is apart: heads of one packed tensor, columns of one row.
    rope.apply_(**at(q=packed[:, :3], k=packed[:, 3:5]))
    rope.apply_(**at(q=packed[:, ::2][:, :3], k=packed[:, 1::2][:, :2]))
    rope.apply_(**at(q=packed[..., :8][:, :3], k=packed[..., 8:][:, :2], cos=half, sin=half))


def test_overlap_of_storages_over_the_same_memory_is_refused() -> None:
    array = numpy.zeros((5, 3, 16), dtype=numpy.float32)
    q, k = torch.from_numpy(array), torch.from_numpy(array)
    with pytest.raises(ValueError, match="q overlaps k"):
        rope.apply_(**call(q=q, k=k[:, :2]))


@pytest.mark.parametrize("place", ["q", "k", "q_out", "k_out"])
@pytest.mark.parametrize("view", ["negated", "conjugated"])
def test_lazily_negated_views_are_read_but_not_written(place: str, view: str) -> None:
    """PyTorch's own fallback fails by an assertion first, then by a segmentation fault."""
    shape = (5, 3 if place[0] == "q" else 2, 16)
    lazy = torch.randn(*shape, dtype=torch.cfloat).conj()
    lazy, error = (lazy.imag, "can't be written") if view == "negated" else (lazy, "can't be")
    arguments, outs = call(), {"q_out": ones(5, 3, 16), "k_out": ones(5, 2, 16)}
    (outs if place in outs else arguments)[place] = lazy
    if place in outs:
        unchanged(lambda: rope.apply.out(**arguments, **outs), [outs["q_out"]], ValueError, error)
        return
    unchanged(lambda: rope.apply_(**arguments), [arguments["q"]], ValueError, error)
    if view == "negated":
        got, expected = rope.apply(**arguments), rope.apply(**{**arguments, place: lazy.clone()})
        assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("place", ["q", "k", "q_out", "k_out"])
def test_inference_tensors_are_refused_before_anything_is_written(place: str) -> None:
    """torch itself refuses them when the version is bumped, which is after the rotation."""
    with torch.inference_mode():
        tensor = ones(5, 3 if place[0] == "q" else 2, 16)
    arguments, outs = call(), {"q_out": ones(5, 3, 16), "k_out": ones(5, 2, 16)}
    (outs if place in outs else arguments)[place] = tensor
    form = rope.apply.out if place in outs else rope.apply_
    more = outs if place in outs else {}
    written = [*outs.values()] if place in outs else [arguments["q"], arguments["k"]]
    before = [t.clone() for t in written]
    with pytest.raises(RuntimeError, match=f"^{place} is an inference tensor, expected"):
        form(**arguments, **more)
    assert all(map(torch.equal, written, before))
    with torch.inference_mode():
        form(**arguments, **more)


@pytest.mark.parametrize("name", ["q", "k", "cos", "sin", "q_out"])
def test_public_functions_name_what_is_no_tensor(name: str) -> None:
    arguments = {**call(), "q_out": ones(5, 3, 16), "k_out": ones(5, 2, 16), name: [1.0]}
    with pytest.raises(TypeError, match=f"^{name} is of type list, expected a torch.Tensor"):
        npu_rope.apply_out(**arguments)
    if name != "q_out":
        del arguments["q_out"], arguments["k_out"]
        for form in (npu_rope.apply, npu_rope.apply_):
            with pytest.raises(TypeError, match=f"^{name} is of type list, expected a torch.Tenso"):
                form(**arguments)


def test_the_simulator_refuses_what_the_dispatcher_would_have_seen_to() -> None:
    q, k, cos, sin = call().values()
    for place, error in (("q", "on meta"), ("cos", "on meta")):
        with pytest.raises(ValueError, match=f"{place} is {error}"):
            npu_rope.simulator.apply(
                **on_meta({**call()}) if place == "q" else call(cos=cos.to(meta))
            )
    lazy = torch.randn(5, 2, 16, dtype=torch.cfloat).conj().imag
    with pytest.raises(ValueError, match="elements are not what its memory holds"):
        npu_rope.simulator.apply_(q, lazy, cos, sin)
    with pytest.raises(ValueError, match=r"q overlaps k|q_out overlaps k_out"):
        npu_rope.simulator.apply_(q, q, cos, sin)
    with pytest.raises(ValueError, match="expanded"):
        npu_rope.simulator.apply_(q[:1].expand(5, 3, 16), k, cos, sin)
    with pytest.raises(ValueError, match="last axis has stride 2, expected 1"):
        _C.geometry_of(ones(5, 3, 32)[..., ::2], k, cos, sin, q, k)


def test_npu_tensors_without_the_npu_library_say_what_is_missing() -> None:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.PrivateUse1)
    good = call()
    tensors = [good.pop(name) for name in ("q", "k", "cos", "sin")]
    for form in (rope.apply, rope.apply_, rope.apply_backward):
        with pytest.raises(RuntimeError, match=r"built without its NPU library.*doctor"):
            form.default.redispatch(keys, *tensors)


def test_forms_without_derivative_raise_where_one_is_asked_for() -> None:
    for name in ("q", "k", "cos", "sin"):
        arguments = call()
        arguments[name] = arguments[name].clone().requires_grad_()
        outs = {"q_out": ones(5, 3, 16), "k_out": ones(5, 2, 16)}
        with pytest.raises(RuntimeError, match=r"apply_ has no derivative.*npu_rope::apply"):
            rope.apply_(**arguments)
        with pytest.raises(RuntimeError, match=r"apply\.out has no derivative"):
            rope.apply.out(**arguments, **outs)
        with torch.no_grad():
            rope.apply_(**{k: v.detach() for k, v in arguments.items()})
            rope.apply.out(**arguments, **outs)
    with pytest.raises(RuntimeError, match=r"apply\.out has no derivative"):
        rope.apply.out(**call(), q_out=ones(5, 3, 16, requires_grad=True), k_out=ones(5, 2, 16))
