"""What is rotated, and how: each call of LMDeploy's as one launch of the operator.

Every function here takes what LMDeploy has at hand and returns the rotated pair, or a string that
says why this call is not the operator's. The string is an answer of checks: nothing was launched or
written. An exception is none of that, and nobody here catches one: it may be the failure of another
kernel, which torch_npu's task queue raises in whatever is called next.
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor, nn

from npu_rope import _C, source

Pair = tuple[Tensor, Tensor]

ROUND_EACH = "NPU_ROPE_LMDEPLOY_ROUND_EACH"

rounding = (False, os.environ.get(ROUND_EACH, "0").strip().lower() in ("1", "on", "true", "yes"))
"""cast_tables: tables of another dtype than q's are used as they are, in float32 (what the caller
has rounded already comes in q's dtype). round_each: one rounding for each product and sum, not one
at the end; set by enable()."""


def layer(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    inplace: bool,
    complex_mode: bool,
    native_layout: bool,
) -> Pair | str:
    """DlinferApplyRotaryEmbImpl.forward, in all its versions.

    In place, a caller gives q and k away and goes on with what is returned, which attention
    overwrites in turn. So rows that lie dense are rotated where they are, and slices of a packed
    QKV come out as contiguous tensors of their own; both are what the default returns.

    complex_mode: adjacent pairs, by half tables; the result is in pairs again, as LMDeploy's other
    backends have it, and in half order only for a caller who asks for the native layout.
    """
    if not complex_mode:
        return _C.try_apply(query, key, cos, sin, inplace, None, None, 0, False, False, *rounding)
    if 2 * cos.shape[-1] != query.shape[-1]:
        return "complex_mode with full tables, whose order is not the same on every backend"
    outs = (query, key) if inplace else (None, None)
    width = query.shape[-1]
    return _C.try_apply(query, key, cos, sin, False, *outs, width, True, native_layout, *rounding)


def registered(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *unused: object) -> Pair | str:
    """dlinfer's registry entry: (q, k, cos, sin), before 0.1.8 with two more, both None.

    The default's fused kernel writes over dense rows of 128, whatever its schema says, and LMDeploy
    has a caller that relies on it; so do we. All else is left as it came.
    """
    if any(argument is not None for argument in unused):
        return "more arguments than q, k, cos and sin"
    over = all(isinstance(x, Tensor) and x.shape[-1:] == (128,) for x in (query, cos))
    return _C.try_apply(query, key, cos, sin, over, None, None, 0, False, False, *rounding)


def into(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, query_out: Tensor, key_out: Tensor
) -> Pair | str:
    """MLA: the rotary slices, straight into the rows that attention reads."""
    return _C.try_apply(query, key, cos, sin, False, query_out, key_out, 0, False, False, *rounding)


def pairs_in_place(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Pair | str:
    """GLM-4, ChatGLM: adjacent pairs of the first half of every row, where they lie.

    The tables are cat(f, f), as LMDeploy makes all of its own: their first halves serve pairs.
    """
    width = cos.shape[-1]
    if 2 * width != query.shape[-1]:
        return f"tables {width} wide, expected half of head_dim {query.shape[-1]}"
    cos, sin = cos[..., : width // 2], sin[..., : width // 2]
    return _C.try_apply(query, key, cos, sin, False, query, key, width, True, False, *rounding)


def fill_rope(states: Tensor, rope: Tensor) -> Tensor:
    """GLM-4's and ChatGLM's _fill_rope, as pairs_in_place leaves the rows."""
    pairs = rope.unflatten(-1, (2, -1)).transpose(-2, -1).flatten(-2, -1)
    states[..., : pairs.shape[-1]].copy_(pairs)
    return states


def pairs(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Pair | str:
    """Llama-4's text: adjacent pairs of whole rows, to new tensors. Tables as in pairs_in_place."""
    width = cos.shape[-1]
    if width != query.shape[-1]:
        return f"tables {width} wide, expected head_dim {query.shape[-1]}"
    cos, sin = cos[..., : width // 2], sin[..., : width // 2]
    return _C.try_apply(query, key, cos, sin, False, None, None, width, True, False, *rounding)


def normed(
    q_norm: nn.Module, k_norm: nn.Module, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor
) -> Pair | str:
    """Qwen3, GLM-4.5, Gemma-3, SDAR: every head's RMSNorm, by LMDeploy's two modules of it, and the
    rotation. Rows are written over or come out new as in `layer`.

    The 1 + weight of Gemma and Qwen3-Next stands in the weights, as LMDeploy loads them.
    """
    q_impl, k_impl = getattr(q_norm, "impl", None), getattr(k_norm, "impl", None)
    refusal = _refused_norm(q_norm.__class__, q_impl.__class__)
    refusal = refusal or _refused_norm(k_norm.__class__, k_impl.__class__)
    if refusal:
        return refusal
    if q_impl.eps != k_impl.eps:
        return "q's and k's norms have each an eps of its own"
    weights = q_norm.weight, k_norm.weight
    return _C.try_norm_apply(query, key, *weights, cos, sin, q_impl.eps, *rounding)


_RMS_NORM = {
    "lmdeploy.pytorch.nn.norm.RMSNorm": ("199009985065", "b156b04e72ca"),
    "lmdeploy.pytorch.backends.dlinfer.norm.DlinferRMSNormImpl": ("f4c36296ac37",),
}
"""LMDeploy's norm that quantises nothing, and source.body_hash of each forward."""


@functools.cache
def _refused_norm(*classes: type) -> str:
    """Why a norm's module and its implementation are not those of _RMS_NORM; empty if they are."""
    for cls, (expected, known) in zip(classes, _RMS_NORM.items(), strict=True):
        name = f"{cls.__module__}.{cls.__qualname__}"
        if name != expected:
            return f"a norm is {name}, expected {expected}"
        try:
            source.check(cls, {"forward": known})
        except source.Unknown as unknown:
            return f"{name}: {unknown}"
    return ""


def complex_pairs(query: Tensor, key: Tensor, freqs: Tensor) -> Pair | str:
    """The vision towers of Llama-4 and Kimi-K2.5: adjacent pairs times cos + i sin, in float32."""
    if not isinstance(freqs, Tensor) or freqs.dtype != torch.complex64:
        return "freqs is no complex64 tensor"
    width = 2 * freqs.shape[-1]
    if width != query.shape[-1]:
        return f"freqs is {freqs.shape[-1]} wide, expected half of head_dim {query.shape[-1]}"
    cos, sin = _real_and_imaginary(freqs)
    return _C.try_apply(query, key, cos, sin, False, None, None, width, True, False, False, False)


def _real_and_imaginary(freqs: Tensor) -> Pair:
    """Dense, [tokens, width]: made once for a tensor, which every layer of a tower is handed.

    Kept with the tensor, unless a graph is captured, whose memory is filled by its replays alone.
    """
    kept = getattr(freqs, "_npu_rope_tables", None)
    if kept is not None:
        return kept
    rows = torch.view_as_real(freqs).reshape(-1, freqs.shape[-1], 2)
    tables = rows[..., 0].contiguous(), rows[..., 1].contiguous()
    npu = getattr(torch, "npu", None)
    if freqs.device.type != "npu" or not npu.is_current_stream_capturing():
        freqs._npu_rope_tables = tables
    return tables
