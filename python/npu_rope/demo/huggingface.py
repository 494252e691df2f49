"""A whole model of Hugging Face transformers with one line more: the same bits, fewer operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.qwen3 import modeling_qwen3

import npu_rope
from npu_rope import huggingface

TOKENS = 128


@dataclass(frozen=True)
class Variant:
    label: str
    operators: int
    logits: Tensor


class Operators(TorchDispatchMode):
    """Counts those that compute: a device launches a kernel for each."""

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


def section() -> int:
    """Prints it; 1 where the model's logits changed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    tokens = torch.randint(3, 1024, (1, TOKENS))
    exact = _logits(model.double(), tokens)
    model.to(torch.bfloat16)

    print(
        f"\nA Llama of transformers, {config.num_hidden_layers} layers of random weights with the "
        f"heads of Llama-3.1-8B, {TOKENS} tokens, bf16"
    )
    variants = [_run("its own code", model, tokens)]
    huggingface.patch(model)
    variants.append(_run("npu_rope.huggingface.patch(model)", model, tokens))

    for variant in variants:
        error = ((variant.logits - exact).norm() / exact.norm()).item()
        print(f"   {variant.label:<34}{variant.operators:>4} operators, rms error {error:.3%}")
    same = torch.equal(variants[0].logits, variants[1].logits)
    print("   logits: " + ("the same bits" if same else "WRONG: OTHER BITS"))
    return 0 if same and norms_and_rotation() else 1


def norms_and_rotation() -> bool:
    """Prints Qwen3's norm of every head and its rotation, and both as one call."""
    norms = [modeling_qwen3.Qwen3RMSNorm(128) for _ in "qk"]
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
        norm.bfloat16().requires_grad_(False)
    q, k = torch.randn(1, 32, TOKENS, 128).bfloat16(), torch.randn(1, 8, TOKENS, 128).bfloat16()
    angles = torch.outer(torch.arange(float(TOKENS)), 1e6 ** -(torch.arange(64) / 64)).repeat(1, 2)
    cos, sin = angles.cos()[None].bfloat16(), angles.sin()[None].bfloat16()
    weights = [norm.weight for norm in norms]

    def its_own() -> tuple[Tensor, Tensor]:
        normed = [norm(x) for norm, x in zip(norms, (q, k), strict=True)]
        return modeling_qwen3.apply_rotary_pos_emb(*normed, cos, sin)

    def ours() -> tuple[Tensor, Tensor]:
        return npu_rope.norm_apply(q, k, *weights, cos, sin, eps=1e-6, layout="BNSD")

    exact = npu_rope.reference.norm_apply(
        *(x.double() for x in (q, k, *weights, cos, sin)), eps=1e-6, layout="BNSD"
    )
    print("\nQwen3's norms of every head of q and k and its rotation, 32 and 8 heads, bf16")
    errors = []
    for label, call in ("its own code", its_own), ("npu_rope.norm_apply", ours):
        with Operators() as operators:
            rotated = call()
        off = sum((x.double() - y).square().sum() for x, y in zip(rotated, exact, strict=True))
        errors.append((off / sum(y.square().sum() for y in exact)).sqrt().item())
        print(f"   {label:<34}{operators.count:>4} operators, rms error {errors[-1]:.3%}")
    if not errors[1] < errors[0]:
        print("   WRONG: npu_rope is less accurate than Hugging Face")
    return errors[1] < errors[0]


def _run(label: str, model: LlamaForCausalLM, tokens: Tensor) -> Variant:
    _logits(model, tokens)  # its functions are looked at
    with Operators() as operators:
        logits = _logits(model, tokens)
    return Variant(label, operators.count, logits)


def _logits(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens, use_cache=False).logits
