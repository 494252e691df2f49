"""Whole attention steps: LMDeploy's own attention classes with random weights, up to attention.

What reaches attention is compared with what LMDeploy's statements hand it, and the launches of the
step are counted. Attention itself is a recorder: LMDeploy's needs operators of CANN's.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ascend import Pair, ascend, drop_in, is_ours, launches, tables
from lmdeploy.pytorch.model_inputs import BuildModelContext
from lmdeploy.pytorch.models.patch import build_model_context
from torch import Tensor

warnings.filterwarnings("ignore")

TOKENS, HEADS = 7, 4
PARTIAL = 0  # dlinfer 0.2.7 has no rotation of a part of the head
MODELS = "lmdeploy.pytorch.models"


class Recorder(torch.nn.Module):
    """In the place of nn.Attention: keeps q and k, and returns what has attention's shape."""

    def __init__(self, num_heads: int, head_size: int, **options: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.num_heads = num_heads
        self.width = options.get("v_head_size") or head_size

    def forward(self, query: Tensor, key: Tensor, *_: object, **__: object) -> Tensor:
        self.seen = query.clone(), key.clone()
        return query[..., : self.width].contiguous()


class Nothing(torch.nn.Module):
    """In the place of DeepSeek-V3.2's indexer."""

    def forward(self, *_: object, **__: object) -> None:
        return None


@dataclass(frozen=True)
class Step:
    """One attention class, and what its rotary step costs: as LMDeploy has it, by our layer, now.

    A model's text step has tables in half order, a vision tower's a complex tensor.
    """

    switch: str
    module: str
    name: str
    launches: tuple[int, int, int]
    config: dict[str, Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    rotary: int = 64  # width of the tables

    def __str__(self) -> str:
        return f"{self.module}.{self.name}{self.arguments.get('layer_idx') or ''}"

    def patch(self) -> Any:  # noqa: ANN401
        return next(
            p
            for p in drop_in.PATCHES
            if (p.module, p.owner) == (f"{MODELS}.{self.module}", self.name)
        )


MLA = {
    "q_lora_rank": 48, "kv_lora_rank": 32, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32,
    "v_head_dim": 32, "num_key_value_heads": 1, "rope_scaling": None, "index_topk": 4,
    "model_type": "",
}  # fmt: skip
GLM = {"num_key_value_heads": 2, "head_dim": 128}
CHATGLM = {"num_key_value_heads": 2, "kv_channels": 128, "add_bias_linear": False,
           "add_qkv_bias": True}  # fmt: skip
LLAMA4 = {
    "num_key_value_heads": 2, "head_dim": 128, "attn_scale": 0.1, "floor_scale": 8192,
    "attn_temperature_tuning": False, "use_qk_norm": True,
}  # fmt: skip
TEXT = [
    Step("mla", "deepseek_v2", "DeepseekV2Attention", (16, 3, 1), MLA),
    Step("mla", "deepseek_v32", "DeepseekV32Attention", (16, 3, 1), MLA, {"layer_idx": 0}),
    Step("mla", "glm_moe_dsa", "GlmMoeDsaAttention", (16, 3, 1), MLA, {"layer_idx": 0}),
    Step("mla", "kimi_k2_language", "KimiK2Attention", (16, 3, 1), MLA),
    Step("glm", "glm4", "Glm4Attention", (16, 7, 1), GLM),
    Step("glm", "chatglm2", "SelfAttention", (15, 6, 1), CHATGLM),
    Step("llama4", "llama4", "Llama4TextAttention", (5, 5, 1), LLAMA4, {"layer_idx": 0}, 128),
]
NORM = {
    "num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 0.5, "sliding_window": 8,
    "use_qk_norm": True, "model_type": "gemma3_text", "dllm_block_length": 4,
    "layer_types": ["full_attention"],
    "dflash_config": {},
}  # fmt: skip
WIDE = {**NORM, "head_dim": 256}
NORMS = [
    Step("qwen3_norm", "qwen3", "Qwen3Attention", (5, 5, 1), NORM, rotary=128),
    Step("qwen3_norm", "qwen3_moe", "Qwen3MoeAttention", (5, 5, 1), NORM, rotary=128),
    Step("qwen3_norm", "qwen3_dflash", "DFlashQwen3Attention", (5, 5, 1), NORM, {"layer_idx": 0},
         128),
    Step("qwen3_next_norm", "qwen3_next", "Qwen3NextAttention", (PARTIAL, 5, 1), WIDE),
    Step("qwen3_next_norm", "qwen3_5", "Qwen3_5Attention", (PARTIAL, 5, 1),
         {**WIDE, "attn_output_gate": True}, {"layer_idx": 0}),
    Step("glm4_moe_norm", "glm4_moe", "Glm4MoeAttention", (PARTIAL, 5, 1), NORM),
    Step("gemma3_norm", "gemma", "GemmaAttention", (14, 5, 1), WIDE, {"layer_idx": 0}, 256),
    Step("gemma3_norm", "gemma", "GemmaAttention", (14, 5, 1), WIDE, {"layer_idx": 5}, 256),
    Step("sdar_norm", "sdar", "SDARAttention", (5, 5, 1), NORM, rotary=128),
    Step("sdar_norm", "sdar_moe", "SDARMoeAttention", (5, 5, 1), NORM, rotary=128),
]  # fmt: skip
VISION = [
    Step("llama4_vision", "llama4", "Llama4VisionAttention", (6, 6, 1), {}, rotary=88),
    Step("kimi_vision", "kimi_k25_vision", "MoonViTEncoderLayer", (6, 6, 1), {}, rotary=72),
]


def text(
    step: Step, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tokens: int = TOKENS
) -> Callable[[], Pair]:
    """A call of the class's forward, which returns the q and k that attention got."""
    layer = text_layer(step, dtype, monkeypatch)
    hidden = torch.randn(1, tokens, 128).to(dtype)
    past = torch.empty(1), torch.empty(1)
    arguments: list[object] = [tables(tokens, step.rotary, dtype), past, None]
    if step.name == "GlmMoeDsaAttention":
        arguments += [SimpleNamespace(write=lambda x: x)]
    if step.name == "GemmaAttention":  # the tables of layers without a window, and with one
        arguments.insert(1, tables(tokens, step.rotary, dtype, base=1e3))

    def call() -> Pair:
        layer(hidden, *arguments)
        return layer.attn_fwd.seen

    return call


def text_layer(step: Step, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    cls = getattr(importlib.import_module(f"{MODELS}.{step.module}"), step.name)
    for base in cls.__mro__[:-2]:  # whichever it inherits its __init__ from
        module = sys.modules[base.__module__]
        monkeypatch.setattr(module, "Attention", Recorder, raising=False)
        for indexer in ("Indexer", "GlmMoeDsaIndexer"):
            monkeypatch.setattr(module, indexer, lambda *_, **__: Nothing(), raising=False)
    config = SimpleNamespace(
        hidden_size=128, num_attention_heads=HEADS, attention_bias=False, **step.config
    )
    return built(cls, config, dtype, **step.arguments)


def vision(step: Step, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Pair]:
    module = importlib.import_module(f"{MODELS}.{step.module}")
    cls, hidden_size = getattr(module, step.name), HEADS * step.rotary
    seen = []
    if step.module == "llama4":
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        def attention(
            _: object, q: Tensor, k: Tensor, v: Tensor, *__: object, **___: object
        ) -> Pair:
            seen.append((q.clone(), k.clone()))
            return v.transpose(1, 2), v

        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", attention)
        config = SimpleNamespace(
            hidden_size=hidden_size, num_attention_heads=HEADS, image_size=48, patch_size=16,
            rope_theta=1e4, rope_parameters={"rope_theta": 1e4},
        )  # fmt: skip
        layer = built(cls, config, dtype)
        freqs = module.Llama4VisionRotaryEmbedding(config)(None)
        hidden = torch.randn(2, len(freqs), hidden_size).to(dtype)  # two images
        forward = lambda: layer(hidden, freqs)  # noqa: E731
    else:

        def packed(q: Tensor, k: Tensor, v: Tensor, _: object) -> Tensor:
            seen.append((q.clone(), k.clone()))
            return v.flatten(1)

        monkeypatch.setattr(module, "packed_scaled_dot_product_attention", packed)
        layer = randomised(cls(HEADS, hidden_size, 2 * hidden_size, dtype=dtype))
        rope = module.Rope2DPosEmbRepeated(step.rotary, max_height=8, max_width=8)
        grid = torch.tensor([[1, 4, 6], [2, 2, 4]])
        freqs = rope.get_freqs_cis(grid, torch.device("cpu"))
        hidden = torch.randn(len(freqs), hidden_size).to(dtype)
        forward = lambda: layer(hidden, [0, len(freqs)], len(freqs), freqs)  # noqa: E731

    def call() -> Pair:
        forward()
        return seen.pop()

    return call


def built(
    cls: type,
    config: object,
    dtype: torch.dtype,
    **arguments: Any,  # noqa: ANN401
) -> torch.nn.Module:
    with ascend(), build_model_context(BuildModelContext()):
        return randomised(cls(config, dtype=dtype, device=torch.device("cpu"), **arguments))


def randomised(layer: torch.nn.Module) -> torch.nn.Module:
    for x in layer.parameters():
        x.copy_(torch.randn(x.shape) * 0.3)
    return layer.eval()


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    """Not inference mode, in which a count sees no copy of reshape's and flatten's."""
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@contextmanager
def without(*switches: str) -> Iterator[None]:
    drop_in.enable(without=switches)
    try:
        yield
    finally:
        drop_in.enable(without=[])


@contextmanager
def default() -> Iterator[None]:
    drop_in.disable()
    try:
        yield
    finally:
        drop_in.enable()


def built_step(
    step: Step, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Pair]:
    return (vision if step in VISION else text)(step, dtype, monkeypatch)


def is_there(step: Step) -> bool:
    try:
        module = importlib.import_module(f"{MODELS}.{step.module}")
    except ImportError:
        return False
    return hasattr(module, step.name)


HERE = [step for step in TEXT + NORMS + VISION if is_there(step)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("step", HERE, ids=str)
def test_one_launch(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by difference: everything else of the method is launched in any case."""
    call = built_step(step, torch.bfloat16, monkeypatch)
    call()  # a tower's tables are made once
    served = drop_in.patch.counts[step.switch].served
    now = launches(call)
    assert drop_in.patch.counts[step.switch].served == served + 1
    assert len([name for name in now if is_ours(name)]) == 1
    with without(step.switch):
        by_layer = launches(call)
    assert len(by_layer) - len(now) + 1 == step.launches[1]
    if step.launches[0] is not PARTIAL:
        with default():
            theirs = launches(call)
        assert len(theirs) - len(now) + 1 == step.launches[0]


def in_our_order(step: Step, rows: Pair) -> Pair:
    """dlinfer's _fill_rope of ChatGLM puts the rotated half of q and k behind the other one.

    LMDeploy's own, as ours, leaves it before; attention cares about no order that both have.
    """
    return tuple(x.roll(64, -1) for x in rows) if step.module == "chatglm2" else rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("step", [step for step in HERE if step in TEXT], ids=str)
def test_text_step_gives_the_bits_of_lmdeploy_s_statements_over_our_layer(
    step: Step, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which layer.py compares with LMDeploy's own layer; in float32 here too."""
    call = built_step(step, dtype, monkeypatch)
    got = call()
    with without(step.switch):
        assert all(map(torch.equal, got, in_our_order(step, call())))
    with default():
        theirs = in_our_order(step, call())
    assert not any(x.isnan().any() for x in got)
    # of q and k: two products and a sum, each rounded, against the same
    near = 4 * torch.finfo(dtype).eps
    for ours, other in zip(got, theirs, strict=True):
        assert (ours.double() - other.double()).abs().max() <= near * other.double().abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("step", [step for step in HERE if step in VISION], ids=str)
def test_vision_step_is_lmdeploy_s_complex_product(
    step: Step, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both round a float32 result once. That may differ by its own roundings, 2 eps of the largest
    product, and so fall to the other neighbour in 16 bits."""
    call = built_step(step, dtype, monkeypatch)
    got = call()
    with default():
        theirs = call()
    single = torch.finfo(torch.float32).eps
    for ours, other in zip(got, theirs, strict=True):
        ours, other = ours.double(), other.double()
        neighbour = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
        most = neighbour * other.abs() + 4 * single * other.abs().max()
        assert ((ours - other).abs() <= most).all()
        assert dtype == torch.float32 or (ours != other).double().mean() < 0.01


@pytest.mark.parametrize("step", HERE, ids=str)
def test_what_the_operator_refuses_takes_lmdeploy_s_statements(
    step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float64, of which LMDeploy's own result is the only one."""
    call = built_step(step, torch.float64, monkeypatch)
    if step.launches[0] is PARTIAL:
        with default(), pytest.raises(RuntimeError):
            call()
        return
    with default():
        theirs = call()
    served = drop_in.patch.counts[step.switch].served
    assert all(map(torch.equal, call(), theirs))
    assert drop_in.patch.counts[step.switch].served == served


def test_a_call_that_is_left_agrees_with_those_that_were_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the order of elements, which keys in the cache have too; disable() restores dlinfer's."""
    step = next(step for step in TEXT if step.module == "chatglm2")
    call, left = (built_step(step, dtype, monkeypatch) for dtype in (torch.float32, torch.float64))
    with default():
        dlinfers = left()
    call()
    assert all(map(torch.equal, left(), in_our_order(step, dlinfers)))
    with default():
        assert all(map(torch.equal, left(), dlinfers))


@pytest.mark.parametrize("step", HERE, ids=str)
def test_a_source_that_reads_differently_is_left_as_it_is(step: Step) -> None:
    patch = step.patch()
    drop_in.disable()
    try:
        original = patch.find(importlib.import_module(patch.module))
        other = replace(patch.replace, before=patch.replace.before.replace("(", "(None, ", 1))
        with pytest.raises(drop_in.patch.source.Unknown, match="0 times, expected once"):
            other(original, drop_in.patch.counts[step.switch])
        if patch.replace.relies_on:
            other = type(patch.replace)(
                **{
                    **vars(patch.replace),
                    "relies_on": dict.fromkeys(patch.replace.relies_on, ("x",)),
                }
            )
            with pytest.raises(drop_in.patch.source.Unknown, match="reads differently"):
                other(original, drop_in.patch.counts[step.switch])
    finally:
        drop_in.enable()
