"""Tiny models of LMDeploy's with random weights, beside Hugging Face's own code.

Everything is LMDeploy's and dlinfer's own, but for attention: LMDeploy 0.18.0 calls attention
operators that dlinfer-ascend 0.2.7 does not have. `Attention` stands in, and writes its output over
the query as LMDeploy's does. On CPU tensors, since neither norms nor linear layers have a simulated
NPU to run on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import skimage
import torch
import transformers
from ascend import Launches, ascend, default, drop_in, is_ours
from lmdeploy.pytorch.backends.dlinfer.attention import DlinferAttentionImpl
from lmdeploy.pytorch.backends.dlinfer.flash_attention import DlinferFlashAttentionImpl
from lmdeploy.pytorch.model_inputs import (
    BuildModelContext,
    StepContextManager,
    step_ctx_manager,
)
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

VOCABULARY, LAYERS, TOKENS = 100, 2, 9


# ---- attention ----


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> Tensor:
    """One sequence: [T, N, D] over [S, Nk, D]; the last row of query is that of key."""
    rows, columns, repeat = query.shape[0], key.shape[0], query.shape[1] // key.shape[1]
    key, value = (x.float().repeat_interleave(repeat, 1) for x in (key, value))
    scores = torch.einsum("tnd,snd->nts", query.float(), key) * scale
    if causal:
        late = torch.arange(columns) > torch.arange(columns - rows, columns).unsqueeze(1)
        scores = scores.masked_fill(late, float("-inf"))
    return torch.einsum("nts,snd->tnd", scores.softmax(-1), value).to(query.dtype)


class Attention:
    """Of one sequence; it keeps the keys and values of every layer."""

    quant_policy = 0

    def __init__(self) -> None:
        self.seen: dict[object, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def over(
        self, layer: DlinferAttentionImpl, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        self.seen[layer].append((key.clone(), value.clone()))
        keys, values = (torch.cat(x) for x in zip(*self.seen[layer], strict=True))
        out = attend(query, keys, values, layer.scale, causal=True)
        query[..., : layer.v_head_size] = out
        return query[..., : layer.v_head_size]


def paged(
    self: DlinferAttentionImpl,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    k_cache: None,
    v_cache: None,
    attn_metadata: Attention,
    **_: object,
) -> Tensor:
    return attn_metadata.over(self, query, key, value)


def flash(
    self: DlinferFlashAttentionImpl,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    q_start_loc: Tensor,
    q_seqlens: Tensor,
    *_: object,
    **__: object,
) -> Tensor:
    sizes = q_seqlens.tolist()
    parts = zip(query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
    return torch.cat([attend(q, k, v, self.scale, causal=False) for q, k, v in parts])


@pytest.fixture(autouse=True)
def attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(DlinferAttentionImpl, "forward", paged)
    monkeypatch.setattr(DlinferFlashAttentionImpl, "forward", flash)
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


# ---- models ----


def in_lmdeploy(
    hugging_face: torch.nn.Module, name: str, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    """LMDeploy's model of the same configuration, with the same weights."""
    from lmdeploy.pytorch.models.module_map import MODULE_MAP
    from lmdeploy.pytorch.models.patch import build_model_context

    module, _, cls = MODULE_MAP[name].rpartition(".")
    model_class = getattr(__import__(module, fromlist=[cls]), cls)
    build = BuildModelContext()
    with ascend(), build_model_context(build):
        model = model_class(
            hugging_face.config, StepContextManager(build), dtype=dtype, device=torch.device("cpu")
        )
    # the names that a checkpoint has; in memory, Hugging Face has others
    published = {"model.visual.": "visual.", "model.language_model.": "model."}
    weights = []
    for name_in_memory, x in hugging_face.state_dict().items():
        key = name_in_memory
        for prefix, short in published.items():
            key = short + key.removeprefix(prefix) if key.startswith(prefix) else key
        weights.append((key, x.clone()))
    model.load_weights(iter(weights))
    for part in model.modules():
        for finish in ("update_weights", "process_weights_after_loading"):
            getattr(part, finish, lambda: None)()
    return model.eval()


def text(model: torch.nn.Module, ids: Tensor, positions: Tensor, cache: Attention) -> Tensor:
    with in_step(model):
        hidden = model(
            input_ids=ids,
            position_ids=positions,
            past_key_values=[[torch.empty(1)] * 2] * LAYERS,
            attn_metadata=cache,
        )
    return model.get_logits(hidden)


@contextmanager
def in_step(model: torch.nn.Module) -> Iterator[None]:
    """LMDeploy's context of one step, of which DeepSeek-V2 reads two fields."""
    config = SimpleNamespace(num_attention_heads=model.config.num_attention_heads)
    step = SimpleNamespace(enable_microbatch=False, model_config=config)
    with step_ctx_manager(model.ctx_mgr), model.ctx_mgr.context(step):
        yield


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that attention is not flat, and positions matter."""
    for name, x in model.named_parameters():
        x.copy_(
            torch.randn(x.shape) * (0.1 if x.dim() > 1 else 0.3) + (x.dim() == 1) * ("norm" in name)
        )
    return model.eval()


COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "attn_implementation": "eager",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def qwen2() -> torch.nn.Module:
    config = transformers.Qwen2Config(**COMMON, num_key_value_heads=2)
    return transformers.Qwen2ForCausalLM(config)


def glm4() -> torch.nn.Module:
    config = transformers.Glm4Config(
        **COMMON, num_key_value_heads=2, head_dim=128, partial_rotary_factor=0.5
    )
    return transformers.Glm4ForCausalLM(config)


def deepseek_v2() -> torch.nn.Module:
    config = transformers.DeepseekV2Config(
        **COMMON,
        num_key_value_heads=4,
        q_lora_rank=48,
        kv_lora_rank=32,
        qk_rope_head_dim=64,
        qk_nope_head_dim=32,
        v_head_dim=32,
        first_k_dense_replace=LAYERS,
    )
    return transformers.DeepseekV2ForCausalLM(config)


def qwen3() -> torch.nn.Module:
    config = transformers.Qwen3Config(**COMMON, num_key_value_heads=2, head_dim=128)
    return transformers.Qwen3ForCausalLM(config)


def gemma3() -> torch.nn.Module:
    """A layer with a window, which the text fits into, and one without: tables of their own."""
    config = transformers.Gemma3TextConfig(
        **COMMON,
        num_key_value_heads=2,
        head_dim=256,
        sliding_window=64,
        sliding_window_pattern=2,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    )
    return transformers.Gemma3ForCausalLM(config)


def glm4_moe() -> torch.nn.Module:
    """GLM-4.5, half of every head rotated; no layer is a mixture, whose operator is CANN's."""
    config = transformers.Glm4MoeConfig(
        **COMMON,
        num_key_value_heads=2,
        head_dim=128,
        partial_rotary_factor=0.5,
        use_qk_norm=True,
        first_k_dense_replace=LAYERS,
    )
    return transformers.Glm4MoeForCausalLM(config)


NORMED: dict[str, Callable[[], torch.nn.Module]] = {
    "Qwen3ForCausalLM": qwen3,
    "Gemma3ForCausalLM": gemma3,
    "Glm4MoeForCausalLM": glm4_moe,
}
TEXT: dict[str, Callable[[], torch.nn.Module]] = {
    **NORMED,
    "Qwen2ForCausalLM": qwen2,
    "Glm4ForCausalLM": glm4,
    "DeepseekV2ForCausalLM": deepseek_v2,
}


def close(got: Tensor, expected: Tensor) -> bool:
    """Some hundred float32 roundings in another order: 2e-5 of the largest value, 170 eps."""
    return bool((got - expected).abs().max() < 2e-5 * expected.abs().max())


@pytest.mark.parametrize("name", TEXT)
def test_text_model_is_hugging_face_s(name: str) -> None:
    hugging_face = randomised(TEXT[name]())
    model = in_lmdeploy(hugging_face, name)
    ids = torch.randint(3, VOCABULARY, (1, TOKENS + 2))
    expected = hugging_face(ids).logits
    cache, got = Attention(), []
    for step in (slice(0, TOKENS), slice(TOKENS, TOKENS + 1), slice(TOKENS + 1, TOKENS + 2)):
        with Launches() as counted:  # a prefill, and two tokens decoded
            positions = torch.arange(TOKENS + 2)[None, step]
            got.append(text(model, ids[:, step], positions, cache))
        ours = [n for n in counted.names if is_ours(n)]
        assert len(ours) == LAYERS
        assert all("norm_apply" in n for n in ours) == (name in NORMED)
    assert close(torch.cat(got, 1), expected)
    wrong = text(model, ids, torch.zeros_like(ids), Attention())
    assert not close(wrong, expected), "positions must matter, or nothing is tested"


# ---- Qwen2.5-VL ----


def qwen2_5_vl(depth: int = 3, heads: int = 2) -> torch.nn.Module:
    """The vision tower has the published head_dim of 80, window and patch sizes."""
    vision = {
        "depth": depth,
        "hidden_size": 80 * heads,
        "num_heads": heads,
        "intermediate_size": 128,
        "out_hidden_size": 128,
        "fullatt_block_indexes": [depth - 1],
        "window_size": 112,
        "patch_size": 14,
        "attn_implementation": "eager",
    }
    text = {**COMMON, "num_key_value_heads": 2}
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [4, 6, 6],
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=90,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
        attn_implementation="eager",
        tie_word_embeddings=False,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def photograph(patches: int) -> tuple[Tensor, Tensor]:
    """A photograph as patches x patches patches, and its grid."""
    image = skimage.data.astronaut()
    size = {"shortest_edge": (14 * patches) ** 2, "longest_edge": (14 * patches) ** 2}
    processed = Qwen2VLImageProcessorPil(size=size)([image], return_tensors="pt")
    return processed["pixel_values"], processed["image_grid_thw"]


def forward_vision(
    model: torch.nn.Module, ids: Tensor, positions: Tensor, pixels: Tensor, grid: Tensor
) -> dict[str, object]:
    """What LMDeploy's own prepare_inputs_for_generation makes of an image."""
    data = SimpleNamespace(data=pixels, meta={"grid_thw": grid, "image_token_id": 90})
    context = SimpleNamespace(
        input_ids=ids,
        position_ids=positions[:1],
        attn_metadata=Attention(),
        input_multimodals=[{"image": [data]}],
        mrope_position_ids=positions,
        input_embeddings=None,
        input_embedding_indexing=None,
    )
    return model.prepare_inputs_for_generation([[None, None]] * LAYERS, None, context)


def with_image(grid: Tensor) -> Tensor:
    image_tokens = int(grid.prod()) // 4
    words = torch.randint(3, 90, (8,))
    return torch.cat((words[:3], torch.tensor([92]), torch.full((image_tokens,), 90), words[3:]))[
        None
    ]


def test_qwen2_5_vl_is_hugging_face_s() -> None:
    hugging_face = randomised(qwen2_5_vl())
    model = in_lmdeploy(hugging_face, "Qwen2_5_VLForConditionalGeneration")
    pixels, grid = photograph(patches=20)
    ids = with_image(grid)
    given = {}
    language = hugging_face.model.language_model
    language.register_forward_pre_hook(lambda _, a, k: given.update(k), with_kwargs=True)
    types = (ids == 90).int()
    expected = hugging_face(
        ids, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=types
    ).logits
    positions = given["position_ids"][-3:, 0]  # of time, height and width
    with Launches() as counted:
        inputs = forward_vision(model, ids, positions, pixels, grid)
        got = model.get_logits(model(**inputs))
    assert len([n for n in counted.names if is_ours(n)]) == 3 + LAYERS
    assert close(got, expected)
    upright = {**inputs, "vis_pos_emb": torch.zeros_like(inputs["vis_pos_emb"])}
    upright["attn_metadata"] = Attention()
    assert not close(model.get_logits(model(**upright)), expected)


def vision_in_bfloat16(
    model: torch.nn.Module, ids: Tensor, pixels: Tensor, grid: Tensor
) -> tuple[Tensor, Tensor]:
    """The tower's output, and the angles that it is handed."""
    seen = []
    hooks = [
        model.visual.register_forward_hook(lambda _, a, k, out: seen.append(out), with_kwargs=True),
        model.visual.register_forward_pre_hook(
            lambda _, a, k: seen.append(k["rotary_pos_emb"]), with_kwargs=True
        ),
    ]
    positions = torch.arange(ids.shape[1]).expand(3, -1)
    model(**forward_vision(model, ids, positions, pixels, grid))
    for hook in hooks:
        hook.remove()
    angles, out = seen
    assert type(angles) is Tensor
    return out.float(), angles


SHARP = 1.5


@pytest.mark.parametrize("patches", [28, 40])
def test_vision_angles_stay_in_float32(patches: int, record_property: Callable[..., None]) -> None:
    """The tower in bfloat16 beside Hugging Face's in float32, with bfloat16's weights in both."""
    hugging_face = randomised(qwen2_5_vl(depth=4))
    for block in hugging_face.model.visual.blocks:  # as trained towers do, look at few patches
        block.attn.qkv.weight.mul_(SHARP)
        block.attn.proj.weight.mul_(SHARP)
    hugging_face.bfloat16().float()
    model = in_lmdeploy(hugging_face, "Qwen2_5_VLForConditionalGeneration", torch.bfloat16)
    pixels, grid = photograph(patches)
    ids = with_image(grid)
    exact = hugging_face.model.visual(pixels, grid_thw=grid).pooler_output

    def error(out: Tensor) -> float:
        return ((out - exact).square().mean() / exact.square().mean()).sqrt().item()

    ours, angles = vision_in_bfloat16(model, ids, pixels, grid)
    assert angles.dtype == torch.float32
    drop_in.enable(without=["angles"])
    rounded, angles = vision_in_bfloat16(model, ids, pixels, grid)
    assert angles.dtype == torch.bfloat16
    drop_in.enable(without=[])
    with default():
        theirs, angles = vision_in_bfloat16(model, ids, pixels, grid)
    assert angles.dtype == torch.bfloat16
    errors = {"float32": error(ours), "rounded": error(rounded), "default": error(theirs)}
    print(f"{patches} x {patches} patches:", errors)
    record_property("errors", errors)
    assert errors["float32"] < 0.85 * min(errors["rounded"], errors["default"])
