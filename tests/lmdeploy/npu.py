"""LMDeploy's Ascend layer on npu tensors: the real torch_npu over the simulated NPU.

The rotary layer runs there whole. LMDeploy's models do not: norms, linear layers and attention are
CANN's operators, which the simulated runtime does not have (models.py has them on CPU tensors).
"""

from __future__ import annotations

import npu_rope
import pytest
import torch
import torch_npu
import without_atb  # noqa: F401
from ascend import build_layer, default, drop_in, heads, launches, tables

TOKENS = 7


@pytest.fixture(scope="module")
def layer() -> torch.nn.Module:
    return build_layer()


def test_torch_npu_is_the_real_one() -> None:
    assert torch_npu.__file__.endswith("torch_npu/__init__.py") and torch.npu.is_available()
    assert not hasattr(torch_npu, "operators")


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("wide_tables", [False, True], ids=["bf16 tables", "fp32 tables"])
def test_packed_rows_in_one_launch(
    layer: torch.nn.Module, head_dim: int, inplace: bool, wide_tables: bool
) -> None:
    widths = [head_dim * heads for heads in (4, 2, 2)]
    qkv = torch.randn(TOKENS, sum(widths)).bfloat16()
    on_npu = qkv.npu()
    cos, sin = tables(TOKENS, head_dim, torch.float32 if wide_tables else torch.bfloat16)
    q, k, _ = (heads(x, head_dim) for x in qkv.split(widths, 1))
    expected = npu_rope.reference.apply(q, k, cos, sin, cast_tables=False)
    q, k, _ = (heads(x, head_dim) for x in on_npu.split(widths, 1))
    call = (q, k, cos.npu(), sin.npu(), inplace)
    assert launches(lambda: layer(*call)) == ["npu_rope.apply.default"]
    got = layer(*call)
    assert got[0].device.type == "npu" and all(x.is_contiguous() for x in got)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, expected, strict=True))
    assert torch.equal(on_npu.cpu(), qkv) and drop_in.is_active()


def test_dense_rows_in_place(layer: torch.nn.Module) -> None:
    q, k = torch.randn(TOKENS, 4, 128).half(), torch.randn(TOKENS, 1, 128).half()
    cos, sin = tables(TOKENS, 128, torch.float16)
    expected = npu_rope.reference.apply(q, k, cos, sin)
    q, k = q.npu(), k.npu()
    got = layer(q, k, cos.npu(), sin.npu())
    assert got[0] is q and got[1] is k
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, expected, strict=True))


def test_the_default_needs_what_is_not_simulated(layer: torch.nn.Module) -> None:
    """Which is why these tests have nothing to compare with but the reference."""
    q = torch.randn(TOKENS, 4, 128).half().npu()
    cos, sin = (x.npu() for x in tables(TOKENS, 128, torch.float16))
    with default(), pytest.raises(RuntimeError):
        layer(q, q.clone(), cos, sin)
        torch.npu.synchronize()
