"""Hugging Face's rotary embeddings, and what `npu_rope.apply` calls the same thing.

Every model is built from the numbers of its published configuration: no weights, no network.
Hugging Face disagrees with itself about the form of the tables, so each entry says which it is:

    cat(f, f)       full tables, half style: passed as they are; rotary_dim is their width
    cat(f, f)       for an interleaved rotation: only the first half is passed, as half tables
    repeat(f, 2)    full tables in interleaved order: passed as they are
    f               half tables: need rotary_dim
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.models.cohere import modeling_cohere
from transformers.models.cohere.configuration_cohere import CohereConfig
from transformers.models.deepseek_v3 import modeling_deepseek_v3
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.glm import modeling_glm
from transformers.models.glm.configuration_glm import GlmConfig
from transformers.models.glm4 import modeling_glm4
from transformers.models.glm4.configuration_glm4 import Glm4Config
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLVisionConfig,
)
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen2_vl.configuration_qwen2_vl import (
    Qwen2VLTextConfig,
    Qwen2VLVisionConfig,
)

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Model:
    """One model's rotary embedding."""

    name: str
    layout: str  # of q and k where the model rotates them
    q_heads: int
    k_heads: int
    head_dim: int
    rotary: Callable[[Tensor, Tensor], Pair]  # (only its dtype is read, positions) -> cos, sin
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], Pair]  # Hugging Face's eager function
    options: dict[str, Any] = field(default_factory=dict)  # of npu_rope.apply, beside the layout

    def tables(self, positions: Tensor, dtype: torch.dtype) -> Pair:
        """cos and sin as the model's own code hands them to `rotate` when it runs in dtype."""
        return self.rotary(torch.empty(0, dtype=dtype), positions)

    def operator_tables(self, cos: Tensor, sin: Tensor) -> Pair:
        """The same tables for `npu_rope.apply`; `rotary_dim` among the options asks for half."""
        width = self.options["rotary_dim"] // 2 if "rotary_dim" in self.options else cos.shape[-1]
        return cos[..., :width], sin[..., :width]

    def query_key(self, tokens: tuple[int, ...], values: Callable[..., Tensor]) -> Pair:
        """q and k, views of one packed QKV projection; values(*shape) makes its output."""
        heads = (self.q_heads, self.k_heads, self.k_heads)
        q, k, _ = values(*tokens, sum(heads), self.head_dim).split(heads, dim=-2)
        return self._in_layout(q), self._in_layout(k)

    def _in_layout(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) if self.layout == "BNSD" else x


@dataclass(frozen=True)
class LatentAttention(Model):
    """DeepSeek's MLA: only a slice of q is rotated, and one k slice that all heads share."""

    nope_dim: int = 128  # of each q head, before the rotated slice
    latent_dim: int = 512  # of the compressed key and value, before the rotated slice

    def query_key(self, tokens: tuple[int, ...], values: Callable[..., Tensor]) -> Pair:
        q = values(*tokens, self.q_heads, self.nope_dim + self.head_dim)[..., self.nope_dim :]
        k = values(*tokens, 1, self.latent_dim + self.head_dim)[..., self.latent_dim :]
        return self._in_layout(q), self._in_layout(k)


def llama() -> Model:
    config = LlamaConfig(
        hidden_size=4096,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    rotary = modeling_llama.LlamaRotaryEmbedding(config)
    rotate = modeling_llama.apply_rotary_pos_emb
    return Model("meta-llama/Llama-3.1-8B", "BNSD", 32, 8, 128, rotary, rotate)


def qwen2_vl_vision() -> Model:
    config = Qwen2VLVisionConfig(embed_dim=1280, num_heads=16)
    rotary = modeling_qwen2_vl.Qwen2VLVisionRotaryEmbedding(config)
    rotate = modeling_qwen2_vl.apply_rotary_pos_emb_vision
    return Model("Qwen/Qwen2-VL-72B-Instruct, vision", "TND", 16, 16, 80, rotary, rotate)


def qwen2_5_vl_vision() -> Model:
    config = Qwen2_5_VLVisionConfig(hidden_size=1280, num_heads=16)
    rotary = modeling_qwen2_5_vl.Qwen2_5_VLVisionRotaryEmbedding(config)
    rotate = modeling_qwen2_5_vl.apply_rotary_pos_emb_vision
    return Model("Qwen/Qwen2.5-VL-72B-Instruct, vision", "TND", 16, 16, 80, rotary, rotate)


# Both Qwen-VL generations: which of the 64 frequencies turn with time, height and width.
MROPE = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]}
QWEN_72B = {"hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8}


def qwen2_vl_text() -> Model:
    config = Qwen2VLTextConfig(**QWEN_72B, rope_parameters=dict(MROPE))
    rotary = modeling_qwen2_vl.Qwen2VLRotaryEmbedding(config)
    rotate = modeling_qwen2_vl.apply_rotary_pos_emb
    return Model("Qwen/Qwen2-VL-72B-Instruct, text", "BNSD", 64, 8, 128, rotary, rotate)


def qwen2_5_vl_text() -> Model:
    config = Qwen2_5_VLTextConfig(**QWEN_72B, rope_parameters=dict(MROPE))
    rotary = modeling_qwen2_5_vl.Qwen2_5_VLRotaryEmbedding(config)
    rotate = modeling_qwen2_5_vl.apply_rotary_pos_emb
    return Model("Qwen/Qwen2.5-VL-72B-Instruct, text", "BNSD", 64, 8, 128, rotary, rotate)


def qwen2_5_vl_positions(token_types: Tensor, grid_thw: Tensor) -> Tensor:
    """Hugging Face's (3, batch, tokens) positions of a prompt: time, height and width.

    token_types (batch, tokens) is 0 for text and 1 for an image's merged patches.
    """
    config = Qwen2_5_VLConfig(
        text_config={**QWEN_72B, "num_hidden_layers": 1, "rope_parameters": dict(MROPE)},
        vision_config={"hidden_size": 1280, "num_heads": 16, "depth": 1},
    )
    with torch.device("meta"):  # the method reads the configuration alone: no weights are made
        model = modeling_qwen2_5_vl.Qwen2_5_VLModel(config)
    ids = torch.zeros_like(token_types)
    positions, _ = model.get_rope_index(ids, token_types, image_grid_thw=grid_thw)
    return positions


def gpt_neox() -> Model:
    config = GPTNeoXConfig(
        hidden_size=6144,
        num_attention_heads=64,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,  # 24 of 96: the width of the tables says so
        },
    )
    rotary = modeling_gpt_neox.GPTNeoXRotaryEmbedding(config)
    rotate = modeling_gpt_neox.apply_rotary_pos_emb
    return Model("EleutherAI/gpt-neox-20b", "BNSD", 64, 64, 96, rotary, rotate)


def gptj() -> Model:
    rotary_dim = 64  # of 256

    # GPTJAttention.forward gathers the tables and slices the heads itself, around one function.
    def rotary(like: Tensor, positions: Tensor) -> Pair:
        rows = modeling_gptj.create_sinusoidal_positions(2048, rotary_dim)[positions]
        sin, cos = rows.to(like.dtype).chunk(2, dim=-1)
        return cos, sin

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Pair:
        def one(x: Tensor) -> Tensor:
            turned = modeling_gptj.apply_rotary_pos_emb(x[..., :rotary_dim], sin, cos)
            return torch.cat((turned, x[..., rotary_dim:]), dim=-1)

        return one(q), one(k)

    options = {"interleaved": True, "rotary_dim": rotary_dim}
    return Model("EleutherAI/gpt-j-6b", "BSND", 16, 16, 256, rotary, rotate, options)


GLM = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
}


def glm() -> Model:
    config = GlmConfig(
        **GLM,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    )
    rotary = modeling_glm.GlmRotaryEmbedding(config)
    rotate = modeling_glm.apply_rotary_pos_emb
    options = {"interleaved": True, "rotary_dim": 64}
    return Model("zai-org/glm-4-9b-hf", "BNSD", 32, 2, 128, rotary, rotate, options)


def glm4() -> Model:
    config = Glm4Config(
        **GLM,
        max_position_embeddings=32768,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
    )
    rotary = modeling_glm4.Glm4RotaryEmbedding(config)
    rotate = modeling_glm4.apply_rotary_pos_emb
    options = {"interleaved": True, "rotary_dim": 64}
    return Model("zai-org/GLM-4-9B-0414", "BNSD", 32, 2, 128, rotary, rotate, options)


def cohere() -> Model:
    config = CohereConfig(
        hidden_size=8192,
        num_attention_heads=64,
        num_key_value_heads=64,
        rope_parameters={"rope_type": "default", "rope_theta": 8000000.0},
    )
    rotary = modeling_cohere.CohereRotaryEmbedding(config)
    rotate = modeling_cohere.apply_rotary_pos_emb
    options = {"interleaved": True}
    name = "CohereForAI/c4ai-command-r-v01"
    return Model(name, "BNSD", 64, 64, 128, rotary, rotate, options)


def deepseek_v3() -> Model:
    config = DeepseekV3Config(
        num_attention_heads=128,
        max_position_embeddings=163840,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 40.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
        },
    )
    rotary = modeling_deepseek_v3.DeepseekV3RotaryEmbedding(config)
    rotate = modeling_deepseek_v3.apply_rotary_pos_emb_interleave
    options = {"interleaved": True, "deinterleave": True}
    name = "deepseek-ai/DeepSeek-V3"
    return LatentAttention(name, "BNSD", 128, 1, 64, rotary, rotate, options)


MODELS = (
    llama,
    qwen2_vl_vision,
    qwen2_5_vl_vision,
    qwen2_vl_text,
    qwen2_5_vl_text,
    gpt_neox,
    gptj,
    glm,
    glm4,
    cohere,
    deepseek_v3,
)
