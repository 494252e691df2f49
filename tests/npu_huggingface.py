"""Hugging Face's functions on npu tensors: one launch a call, whatever the model's form."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from npu_rope.huggingface import dispatch
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.glm4 import modeling_glm4
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen3 import modeling_qwen3

from tests import npu_runtime

CASES = {
    "Llama": (modeling_llama.apply_rotary_pos_emb, (1, 4, 6, 128), (1, 6, 128)),
    "GLM-4": (modeling_glm4.apply_rotary_pos_emb, (2, 4, 6, 128), (2, 6, 64)),
    "GPT-J": (modeling_gptj.apply_rotary_pos_emb, (2, 6, 4, 64), (2, 6, 32)),
    "DeepSeek-V3": (
        modeling_deepseek_v3.apply_rotary_pos_emb_interleave,
        (2, 4, 6, 64),
        (2, 6, 64),
    ),
    "Qwen2.5-VL, vision": (
        modeling_qwen2_5_vl.apply_rotary_pos_emb_vision,
        (11, 4, 80),
        (11, 80),
    ),
}


@pytest.mark.parametrize("keep_bits", (True, False))
@pytest.mark.parametrize("name", CASES)
def test_one_launch_gives_the_bits_of_the_cpu(name: str, keep_bits: bool) -> None:
    function, shape, table = CASES[name]
    generator = torch.Generator().manual_seed(1)
    rows = [
        torch.randn(shape, generator=generator).bfloat16()
        for _ in range(2 if dispatch.roles(function).k else 1)
    ]
    tables = [torch.randn(table, generator=generator).bfloat16() for _ in range(2)]
    ours = dispatch.replacement(function, name, keep_bits=keep_bits)
    expected = run(ours, rows, tables)
    if keep_bits:
        own = run(dispatch.own_code(function), rows, tables)
        assert all(map(torch.equal, expected, own))

    device_rows, device_tables = ([x.npu() for x in group] for group in (rows, tables))
    torch.npu.synchronize()
    with npu_runtime.log() as calls:
        results = run(ours, device_rows, device_tables)
        torch.npu.synchronize()
    assert len(calls.launches) == 1
    for result, other in zip(results, expected, strict=True):
        assert result.is_npu
        assert torch.equal(result.cpu(), other)


def test_norms_and_rotation_are_one_launch() -> None:
    """Forward; what Qwen3 and Gemma-3 hand the call that patch(model, with_norms=True) makes."""
    generator = torch.Generator().manual_seed(1)
    shapes = (2, 4, 6, 128), (2, 2, 6, 128), (2, 6, 128), (2, 6, 128)
    arguments = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    norms = [modeling_qwen3.Qwen3RMSNorm(128).bfloat16().requires_grad_(False) for _ in "qk"]
    for norm in norms:
        norm.weight.copy_(torch.rand(128, generator=generator))
    normed = dispatch.replacement(
        modeling_qwen3.apply_rotary_pos_emb, "Qwen3", keep_bits=False, with_norms=True
    )
    for offset in (0.0, 1.0):
        expected = normed(*norms, 1e-6, offset, *arguments)
        on_npu = [x.npu() for x in (*arguments, *(norm.weight for norm in norms))]
        theirs = [SimpleNamespace(weight=weight) for weight in on_npu[4:]]
        torch.npu.synchronize()
        with npu_runtime.log() as calls:
            results = normed(*theirs, 1e-6, offset, *on_npu[:4])
            torch.npu.synchronize()
        assert len(calls.launches) == 1
        for result, other in zip(results, expected, strict=True):
            assert result.is_npu and torch.equal(result.cpu(), other)


def run(function: Callable, rows: list, tables: list) -> tuple:
    result = function(*rows, *tables)
    return result if isinstance(result, tuple) else (result,)
