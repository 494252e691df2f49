"""Shapes of real models, by their published configurations, and the tensors of a shape.

Heads are divided by the tensor-parallel size; a key head that cannot be divided is kept by every
rank, as LMDeploy does. A row rotates `tokens` tokens in one launch. Up to 256 of them are decode,
one token for each sequence of a batch, at positions spread over a context of 128 K; more are
prefill, from position 0, of prompts up to 128 K. Tables arrive gathered by position, so what a
launch does follows from the number of tokens alone: a server that cuts prompts (LMDeploy by
default after 8192 tokens) makes launches of 8192, whatever the context.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

STYLES = {
    "half": {},
    "interleaved": {"interleaved": True},
    "deinterleave": {"interleaved": True, "deinterleave": True},
}


@dataclasses.dataclass(frozen=True)
class Model:
    """One attention's rotary embedding.

    rows: how q and k arrive. "packed": slices of one QKV, rotated into new tensors; "dense": of
    their own, rotated in place; "mla": the last columns of wider rows, rotated into new tensors.
    """

    q_heads: int
    k_heads: int
    dim: int  # of a head, as the operator sees it
    rotary: int = 0  # 0: all of dim
    rows: str = "packed"
    style: str = "half"
    q_row: int = 0  # mla: columns of a row of q and of k, where the rotated are the last
    k_row: int = 0
    vision: bool = False
    norm: bool = False  # of every head before the rotation, in the same call


MODELS = {
    "Qwen2.5-72B": Model(64, 8, 128),
    "Qwen2.5-7B": Model(28, 4, 128),
    "Qwen3-32B": Model(64, 8, 128, rows="dense"),
    "Qwen3-32B with norm": Model(64, 8, 128, norm=True),
    "Llama-3.1-8B": Model(32, 8, 128),
    "Llama-3.1-70B": Model(64, 8, 128),
    "InternLM2.5-7B": Model(32, 8, 128),
    "InternLM3-8B": Model(32, 2, 128),
    "DeepSeek-V2/V3": Model(128, 1, 64, rows="mla", style="deinterleave", q_row=192, k_row=576),
    "Command-R+": Model(96, 8, 128, style="interleaved"),
    "GLM-4-9B": Model(32, 2, 128, rotary=64, style="interleaved"),
    "Qwen2.5-VL vision": Model(16, 16, 80, vision=True),  # of every size from 3B to 72B
    "Qwen3-VL vision": Model(16, 16, 72, vision=True),
}

DECODE = (1, 8, 64, 256)
PREFILL = (512, 4096, 8192)
LONG = (32768, 131072)
CONTEXT = 131072
LARGEST = 2**31  # bytes of q and k that a row of LONG may have, so that it can be simulated
PATCHES = {224: 256, 448: 1024, 896: 4096, 1792: 16384}  # of an image of that size, 14 pixels each


@dataclasses.dataclass(frozen=True)
class Case:
    """A model's rotation of so many tokens on one of `tp` devices."""

    model: str
    tokens: int
    tp: int = 1

    @property
    def name(self) -> str:
        tp = f" tp{self.tp}" if self.tp > 1 else ""
        return f"{self.model}{tp}, {self.tokens}"

    @property
    def config(self) -> Model:
        return MODELS[self.model]

    @property
    def heads(self) -> tuple[int, int]:
        model = self.config
        return model.q_heads // self.tp, max(1, model.k_heads // self.tp)

    @property
    def bytes(self) -> int:
        """Of 16-bit q and k."""
        return 2 * self.tokens * sum(self.heads) * self.config.dim

    @property
    def positions(self) -> Tensor:
        if self.config.vision or self.tokens > DECODE[-1]:
            return torch.arange(self.tokens)
        return CONTEXT - 1 - torch.arange(self.tokens) * (CONTEXT // self.tokens)

    @property
    def rotary(self) -> int:
        return self.config.rotary or self.config.dim


def cases(full: bool = False) -> list[Case]:
    """The table's rows; all models with every number of tokens and devices where `full`."""
    out = []
    for name, model in MODELS.items():
        if model.vision:
            out += [Case(name, patches) for patches in (64, *PATCHES.values())]
            continue
        first = full or name == "Qwen2.5-72B"
        tokens = (*DECODE, *PREFILL, *LONG) if first else (1, 8, 64, 4096)
        for tp in (1, 2, 4, 8) if first else (1,):
            row = [Case(name, n, tp) for n in tokens if model.q_heads % tp == 0]
            out += [case for case in row if case.tokens not in LONG or case.bytes <= LARGEST]
        if not first:  # as long as its context, by one of eight devices
            out.append(Case(name, CONTEXT, 8 if model.q_heads % 8 == 0 else 4))
    return out


def find(name: str) -> Case:
    """A case by its name, `MODEL[ tpN], TOKENS`."""
    model, _, tokens = name.rpartition(",")
    model, _, tp = model.partition(" tp")
    if model not in MODELS or not tokens.strip().isdigit():
        raise ValueError(f"case is '{name}', expected 'MODEL[ tpN], TOKENS', MODEL of {[*MODELS]}")
    return Case(model, int(tokens), int(tp or 1))


@dataclasses.dataclass
class Tensors:
    q: Tensor
    k: Tensor
    cos: Tensor
    sin: Tensor
    options: dict[str, bool]
    in_place: bool
    norm: dict[str, Any] = dataclasses.field(default_factory=dict)  # q_weight, k_weight, eps

    def args(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.q, self.k, self.cos, self.sin

    @property
    def bytes(self) -> int:
        """Read and written at least."""
        return 2 * (self.q.nbytes + self.k.nbytes) + self.cos.nbytes + self.sin.nbytes


def make(
    case: Case,
    dtype: torch.dtype = torch.bfloat16,
    table_dtype: torch.dtype = torch.float32,
    style: str | None = None,
    rows: str | None = None,
) -> Tensors:
    """Random q and k as the model hands them over (or as `style` and `rows` say), and the tables of
    the case's positions."""
    model = case.config
    rows = rows or model.rows
    q_heads, k_heads = case.heads
    torch.manual_seed(0)

    def random(heads: int, row: int) -> Tensor:
        return torch.randn(case.tokens, heads, row, dtype=dtype)

    if rows == "mla":
        q = random(q_heads, model.q_row)[..., -model.dim :]
        k = random(k_heads, model.k_row)[..., -model.dim :]
    elif rows == "packed":
        qkv = random(q_heads + 2 * k_heads, model.dim)
        q, k = qkv[:, :q_heads], qkv[:, q_heads : q_heads + k_heads]
    else:
        q, k = random(q_heads, model.dim), random(k_heads, model.dim)
    style = style or model.style
    width = case.rotary
    inverse = 1e6 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = case.positions.double()[:, None] * inverse
    full = angles.repeat_interleave(2, -1) if style == "interleaved" else angles.repeat(1, 2)
    tables = full.cos().to(table_dtype), full.sin().to(table_dtype)
    norm: dict[str, Any] = {}
    if model.norm:
        weights = torch.randn(2, model.dim, dtype=dtype)
        norm = {"q_weight": weights[0], "k_weight": weights[1], "eps": 1e-6}
    return Tensors(q, k, *tables, dict(STYLES[style]), rows == "dense", norm)
