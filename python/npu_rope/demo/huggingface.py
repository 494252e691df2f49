"""A whole model of Hugging Face transformers with one line more: the same bits, fewer operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

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
    return 0 if same else 1


def _run(label: str, model: LlamaForCausalLM, tokens: Tensor) -> Variant:
    _logits(model, tokens)  # its functions are looked at
    with Operators() as operators:
        logits = _logits(model, tokens)
    return Variant(label, operators.count, logits)


def _logits(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens, use_cache=False).logits
