"""Hugging Face's functions on npu tensors: one launch a call, whatever the model's form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from npu_rope.huggingface import dispatch
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.glm4 import modeling_glm4
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

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


def run(function: Callable, rows: list, tables: list) -> tuple:
    result = function(*rows, *tables)
    return result if isinstance(result, tuple) else (result,)
