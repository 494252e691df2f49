"""LMDeploy's Ascend layer on npu tensors: the real torch_npu over the simulated NPU.

The rotary layer runs there whole. LMDeploy's models do not: norms, linear layers and attention are
CANN's operators, which the simulated runtime does not have (models.py has them on CPU tensors).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import npu_rope
import pytest
import torch
import torch_npu
import without_atb  # noqa: F401
from ascend import build_layer, default, drop_in, heads, launches, tables
from steps import NORMS, text_layer
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))

from npu_runtime import log

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


class Packed(torch.nn.Module):
    """In the place of a QKV projection, whose operator is CANN's."""

    def __init__(self, qkv: Tensor, head_dim: int) -> None:
        super().__init__()
        self.qkv, self.head_dim = qkv, head_dim

    def forward(self, _: Tensor) -> Tensor:
        return self.qkv

    def split_qkv(self, qkv: Tensor) -> list[Tensor]:
        d = self.head_dim
        return [heads(x, d) for x in qkv.split([4 * d, 2 * d, 2 * d], 1)]


@pytest.mark.parametrize("tokens", [TOKENS, 1], ids=["prefill", "decode"])
@pytest.mark.parametrize("module", ["qwen3", "glm4_moe", "gemma"])
def test_norms_and_rotation_in_one_launch(
    module: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole forward: between projection and attention, nothing else is asked of the device."""
    step = next(step for step in NORMS if step.module == module)
    head_dim = step.config["head_dim"]
    qkv = torch.randn(tokens, 8 * head_dim).bfloat16()
    table = tables(tokens, step.rotary)
    with torch.no_grad():
        layer = text_layer(step, torch.bfloat16, monkeypatch)
        q, k, _ = Packed(qkv, head_dim).split_qkv(qkv)
        weights = layer.q_norm.weight, layer.k_norm.weight
        expected = npu_rope.reference.norm_apply(q, k, *weights, *table, eps=0.5)
        layer.q_norm.npu()
        layer.k_norm.npu()
        layer.qkv_proj, layer.o_proj = Packed(qkv.npu(), head_dim), torch.nn.Identity()
        seen: list[Tensor] = []
        monkeypatch.setattr(layer.attn_fwd, "forward", lambda *x, **_: seen.extend(x[:2]) or x[0])
        arguments = [layer.qkv_proj.qkv, tuple(x.npu() for x in table), (None, None), None]
        if module == "gemma":
            arguments.insert(1, arguments[1])
        torch.npu.synchronize()
        with log() as lines:
            layer(*arguments)
            torch.npu.synchronize()
    assert len(lines.launches) == 1
    assert not lines.named("aclrtMemcpy", "aclrtMemcpyAsync")
    for got, rows in zip(seen, expected, strict=True):
        assert got.is_contiguous() and torch.equal(got.cpu(), rows)


def test_norms_that_the_operator_refuses_launch_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = next(step for step in NORMS if step.module == "qwen3")
    wide = replace(step, config={**step.config, "head_dim": 1026})
    with torch.no_grad():
        layer = text_layer(wide, torch.bfloat16, monkeypatch)
        q, k = torch.randn(TOKENS, 3, 1026).bfloat16().npu().split((2, 1), 1)
        table = (x.npu() for x in tables(TOKENS, 1026))
        with log() as lines:
            why = drop_in.rotate.normed(layer.q_norm.npu(), layer.k_norm.npu(), q, k, *table)
            torch.npu.synchronize()
    assert "q has head_dim 1026, expected an even number" in why and not lines.launches
    assert drop_in.is_active()
