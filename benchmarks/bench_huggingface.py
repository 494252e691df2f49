"""Whole models of Hugging Face transformers on the CPU, with and without npu_rope.

    python -m benchmarks.bench_huggingface

Random weights, the published models' heads, a few of their layers. Every variant runs once in each
round; the times are medians over the rounds, all of one run. Errors are against the same weights in
float64. It prints the tables of numbers in docs/huggingface.md.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from npu_rope import huggingface
from npu_rope.demo import models, processor
from npu_rope.huggingface import dispatch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen3 import modeling_qwen3
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

ROUNDS = 7
TOKENS = 512
VARIANTS: dict[str, Callable[[nn.Module], object]] = {
    "its own code": lambda model: None,
    "npu_rope": lambda model: huggingface.patch(model),
    "npu_rope, keep_bits=False": lambda model: huggingface.patch(model, keep_bits=False),
    "npu_rope, with_norms=True": lambda model: huggingface.patch(
        model, keep_bits=False, with_norms=True
    ),
}
TEXT = {"vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1024, "head_dim": 128}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        **TEXT, num_hidden_layers=2, num_attention_heads=32, num_key_value_heads=8
    )
    return transformers.LlamaForCausalLM(config)


def qwen3() -> nn.Module:
    config = transformers.Qwen3Config(
        **TEXT, num_hidden_layers=2, num_attention_heads=16, num_key_value_heads=8
    )
    return transformers.Qwen3ForCausalLM(config)


IMAGE, BEGIN_OF_IMAGE, END_OF_IMAGE = 2000, 2001, 2002
PATCHES = 28  # on a side; four become one token


def qwen2_5_vl() -> nn.Module:
    text = {k: v for k, v in TEXT.items() if k != "head_dim"}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    mrope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision = {"hidden_size": 1280, "num_heads": 16, "depth": 2, "intermediate_size": 1024}
    vision |= {"out_hidden_size": text["hidden_size"], "fullatt_block_indexes": [1]}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": mrope},
        vision_config=vision,
        image_token_id=IMAGE,
        vision_start_token_id=BEGIN_OF_IMAGE,
        vision_end_token_id=END_OF_IMAGE,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


MODELS = {
    "Llama, 32 and 8 heads of 128, 2 layers": llama,
    "Qwen3, 16 and 8 heads of 128, 2 layers": qwen3,
    "Qwen2.5-VL, 16 heads of 80 and 4 and 2 of 128, 2 layers each": qwen2_5_vl,
}


def batch_of(build: Callable) -> dict[str, Tensor]:
    ids = torch.randint(0, 2000, (1, TOKENS))
    batch = {"input_ids": ids, "labels": ids}
    if build is qwen2_5_vl:
        image = (PATCHES // 2) ** 2
        ids[:, 3], ids[:, 4 : 4 + image], ids[:, 4 + image] = BEGIN_OF_IMAGE, IMAGE, END_OF_IMAGE
        batch["pixel_values"] = torch.randn(PATCHES**2, 3 * 2 * 14 * 14)
        batch["image_grid_thw"] = torch.tensor([[1, PATCHES, PATCHES]])
        batch["mm_token_type_ids"] = (ids == IMAGE).long()
    return batch


def cast(batch: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}


def forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch, use_cache=False).logits


def train(model: nn.Module, batch: dict[str, Tensor]) -> None:
    model.zero_grad()
    model(**batch, use_cache=False).loss.backward()


class Launches(TorchDispatchMode):
    """Counts the operators that compute: a device runs a kernel or more for each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(  # noqa: ANN204
        self,
        function: torch._ops.OpOverload,
        types: Any,  # noqa: ANN401
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def launches(run: Callable, model: nn.Module, batch: dict[str, Tensor]) -> int:
    with Launches() as counted:
        run(model, batch)
    return counted.count


def rotations() -> None:
    """The functions alone, on tables of their own models' code and the published heads."""
    print("| function of | operators | with npu_rope | rms error | keep_bits=False |")
    print("|---|---|---|---|---|")
    for build in models.MODELS:
        model = build()
        generator = torch.Generator().manual_seed(2)
        tokens = (64,) if model.layout == "TND" else (2, 64)
        q, k = model.query_key(
            tokens, lambda *s, g=generator: torch.randn(s, generator=g).bfloat16()
        )
        if model.layout == "TND":
            positions = torch.cartesian_prod(torch.arange(8), torch.arange(8))
        else:
            positions = torch.arange(1000, 1064).expand(2, 64)
            if "text" in model.name:  # time, height and width
                positions = positions.expand(3, 2, 64)
        tables = model.tables(positions, torch.bfloat16)
        exact = model.rotate(*(x.double() for x in (q, k, *tables)))
        cells = []
        for keep_bits in (None, True, False):
            rotate = model.rotate
            if keep_bits is not None:
                rotate = dispatch.replacement(rotate, model.name, keep_bits=keep_bits)
            rotate(q, k, *tables)  # looked at
            with Launches() as counted:
                results = rotate(q, k, *tables)
            error = torch.cat([(a - b).flatten() for a, b in zip(results, exact, strict=True)])
            scale = torch.cat([b.flatten() for b in exact])
            cells.append((counted.count, float(error.norm() / scale.norm())))
        (own, rms), (ours, same), (_, float32) = cells
        assert rms == same, model.name
        print(f"| {model.name} | {own} | {ours} | {rms:.4%} | {float32:.4%} |")


class Step(nn.Module):
    """Qwen3's norms of q and k and its rotation, of packed rows as a QKV projection gives them."""

    def __init__(self, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.widths = [128 * heads, 128 * kv_heads, 128 * kv_heads]
        self.q_norm, self.k_norm = (modeling_qwen3.Qwen3RMSNorm(128) for _ in "qk")

    def forward(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        q, k, _ = qkv.split(self.widths, -1)
        query_states = self.q_norm(q.unflatten(-1, (-1, 128))).transpose(1, 2)
        key_states = self.k_norm(k.unflatten(-1, (-1, 128))).transpose(1, 2)
        query_states, key_states = apply_rotary_pos_emb(query_states, key_states, cos, sin)
        return query_states, key_states


def calls_of_step(tokens: int) -> dict[str, Callable[[], object]]:
    step = Step(64, 8).bfloat16()
    qkv = torch.randn(1, tokens, sum(step.widths)).bfloat16()
    angles = torch.outer(torch.arange(float(tokens)), 1e6 ** -(torch.arange(64) / 64))
    cos, sin = (x.repeat(1, 2).bfloat16() for x in (angles.cos(), angles.sin()))
    q, k, _ = (x.unflatten(-1, (-1, 128)) for x in qkv.split(step.widths, -1))
    over = q.contiguous(), k.contiguous()
    weights = step.q_norm.weight, step.k_norm.weight
    arguments = *weights, cos, sin
    compiled = torch.compile(step, dynamic=False)

    def torch_s() -> None:
        rows = [F.rms_norm(x, (128,), w, 1e-6) for x, w in zip((q, k), weights, strict=True)]
        torch.ops.npu_rope.apply_(*rows, cos, sin)

    return {
        "Hugging Face's": lambda: step(qkv, cos[None], sin[None]),
        "the same compiled": lambda: compiled(qkv, cos[None], sin[None]),
        "torch's rms_norm, apply_": torch_s,
        "norm_apply": lambda: torch.ops.npu_rope.norm_apply(q, k, *arguments, eps=1e-6),
        "norm_apply_": lambda: torch.ops.npu_rope.norm_apply_(*over, *arguments, eps=1e-6),
    }


def steps() -> None:
    """Norms and rotation by themselves: whatever computes them, in one run, taking turns."""
    for tokens in (1, 64, 4096):
        calls = calls_of_step(tokens)
        if tokens == 1:
            print("| tokens |", " | ".join(calls), "|\n|" + "---|" * (len(calls) + 1))
        times: dict[str, list[float]] = {name: [] for name in calls}
        repeat = max(1, 256 // tokens)
        for warm in (False, *[True] * ROUNDS):
            for name, call in calls.items():
                begin = time.perf_counter()
                for _ in range(repeat):
                    call()
                if warm:
                    times[name].append((time.perf_counter() - begin) / repeat)
        cells = (f"{statistics.median(spent) * 1e6:.0f} us" for spent in times.values())
        print(f"| {tokens} |", " | ".join(cells), "|")


def main() -> None:
    rotations()
    print()
    with torch.no_grad():
        steps()
    print(
        f"\n{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end=""
    )
    print(f"transformers {transformers.__version__}, bfloat16, {TOKENS} tokens\n")
    print("| model | | forward | training step | operators | rms error of the logits |")
    print("|---|---|---|---|---|---|")
    for name, build in MODELS.items():
        torch.manual_seed(0)
        model = build().eval()
        model.to(torch.bfloat16)
        batch = cast(batch_of(build), torch.bfloat16)
        exact = forward(copy.deepcopy(model).double(), cast(batch, torch.float64))
        scale = exact.square().mean().sqrt()
        served = [v for v in VARIANTS if build is qwen3 or "with_norms" not in v]
        variants = {variant: copy.deepcopy(model) for variant in served}
        for variant, m in variants.items():
            VARIANTS[variant](m)
        results = {variant: forward(m, batch) for variant, m in variants.items()}
        assert torch.equal(results["its own code"], results["npu_rope"])
        times: dict[tuple[str, Callable], list[float]] = {}
        for warm in (False, *[True] * ROUNDS):
            for run in (forward, train):
                for variant, m in variants.items():
                    begin = time.perf_counter()
                    run(m, batch)
                    if warm:
                        times.setdefault((variant, run), []).append(time.perf_counter() - begin)
        median = {key: statistics.median(values) for key, values in times.items()}
        for variant, m in variants.items():
            cells = []
            for run in (forward, train):
                spent, own = median[variant, run], median["its own code", run]
                ratio = "" if variant == "its own code" else f" ({own / spent:.3f} x)"
                cells.append(f"{spent * 1e3:.1f} ms{ratio}")
            counts = " / ".join(str(launches(run, m, batch)) for run in (forward, train))
            error = (results[variant] - exact).square().mean().sqrt() / scale
            print(f"| {name} | {variant} | {' | '.join(cells)} | {counts} | {error:.4%} |")
            name = ""


if __name__ == "__main__":
    main()
