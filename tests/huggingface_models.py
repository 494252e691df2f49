"""Small models of Hugging Face transformers with random weights, and what they are run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

VOCABULARY = 97
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))


def qwen3() -> nn.Module:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL))


def nanochat() -> nn.Module:
    return transformers.NanoChatForCausalLM(transformers.NanoChatConfig(**SMALL))


def glm4() -> nn.Module:
    return transformers.Glm4ForCausalLM(transformers.Glm4Config(**SMALL))


def gptj() -> nn.Module:
    config = transformers.GPTJConfig(
        vocab_size=VOCABULARY,
        n_positions=128,
        n_embd=64,
        n_layer=2,
        n_head=2,
        rotary_dim=16,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPTJForCausalLM(config)


def deepseek_v3() -> nn.Module:
    config = transformers.DeepseekV3Config(
        **{**SMALL, "num_key_value_heads": 4, "head_dim": 16},
        moe_intermediate_size=32,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
        first_k_dense_replace=1,
    )
    return transformers.DeepseekV3ForCausalLM(config)


IMAGE, BEGIN_OF_IMAGE, END_OF_IMAGE, VIDEO = 90, 91, 92, 93


def qwen2_5_vl() -> nn.Module:
    mrope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    vision = {
        "hidden_size": 64,
        "num_heads": 4,
        "depth": 2,
        "intermediate_size": 96,
        "out_hidden_size": SMALL["hidden_size"],
        "fullatt_block_indexes": [1],
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config={**SMALL, "rope_parameters": mrope},
        vision_config=vision,
        image_token_id=IMAGE,
        vision_start_token_id=BEGIN_OF_IMAGE,
        vision_end_token_id=END_OF_IMAGE,
        video_token_id=VIDEO,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


# How often a layer rotates; GPT-J's function takes q and k one by one, Qwen2.5-VL has two towers.
ROTATIONS = {
    llama: 2,
    qwen3: 2,
    nanochat: 2,
    glm4: 2,
    gptj: 4,
    deepseek_v3: 2,
    qwen2_5_vl: 4,
}


def make(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return build().to(dtype).eval()


def inputs(build: Callable[[], nn.Module], dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, IMAGE, (2, 19), generator=generator)
    if build is not qwen2_5_vl:
        return {"input_ids": ids, "labels": ids}
    ids[:, 3], ids[:, 4:10], ids[:, 10] = BEGIN_OF_IMAGE, IMAGE, END_OF_IMAGE
    patches = torch.randn(2 * 24, 3 * 2 * 14 * 14, generator=generator).to(dtype)
    return {
        "input_ids": ids,
        "labels": ids,
        "pixel_values": patches,
        "image_grid_thw": torch.tensor([[1, 4, 6], [1, 4, 6]]),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


def step(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits, loss and every gradient."""
    model.zero_grad()
    result = model(**batch)
    result.loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"logits": result.logits.detach(), "loss": result.loss.detach(), **gradients}


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(  # noqa: ANN204
        self,
        function: torch._ops.OpOverload,
        types: Any,  # noqa: ANN401
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ):
        if function.namespace == "npu_rope":
            self.calls.append(function.name())
        return function(*args, **(kwargs or {}))


@contextmanager
def operator_calls() -> Iterator[list[str]]:
    """The names of npu_rope's operators that run inside."""
    with _Count() as count:
        yield count.calls
