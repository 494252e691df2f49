"""RMSNorm of every head and the rotation as one launch, in LMDeploy's own attention classes.

steps.py counts launches and has what no norm changes; here are the numbers, the splits among ranks
and the norms that are not the operator's.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from ascend import Pair, ascend, default, drop_in, is_ours, launches, packed, tables
from lmdeploy.pytorch.backends.dlinfer.norm import DlinferRMSNormImpl
from lmdeploy.pytorch.backends.dlinfer.qmodules import DlinferRMSNormW8A8Impl
from lmdeploy.pytorch.config import DistConfig
from lmdeploy.pytorch.distributed import DistContext, DistGroup, get_dist_manager
from steps import (
    DTYPES,
    HERE,
    MODELS,
    NORMS,
    PARTIAL,
    TOKENS,
    Step,
    no_grad,  # noqa: F401
    text,
    text_layer,
    without,
)
from torch import Tensor

STEPS = [step for step in HERE if step in NORMS]
QWEN3 = next(step for step in STEPS if step.module == "qwen3")


def lengths_of_pairs(x: Tensor, rotary: int) -> Tensor:
    """Of each element's pair, which a rotation keeps; what is not rotated is by itself."""
    x = x.double()
    lengths = x.abs()
    lengths[..., :rotary] = torch.hypot(*x[..., :rotary].chunk(2, -1)).repeat(1, 1, 2)
    return lengths


def assert_near(ours: Pair, theirs: Pair, step: Step, roundings: int) -> None:
    """Of both together: to their dtype, each of at most half an eps of the pair's length.

    Sums of squares in float32 are off by at most a rounding for each element, their root by half of
    that; eight more are the factor's and the rotation's.
    """
    for got, expected in zip(ours, theirs, strict=True):
        half_eps = 0.0 if got.dtype == torch.float32 else torch.finfo(got.dtype).eps / 2
        single = (got.shape[-1] / 2 + 8) * torch.finfo(torch.float32).eps / 2
        most = (roundings * half_eps * 1.02 + single) * lengths_of_pairs(expected, step.rotary)
        assert got.shape == expected.shape and got.dtype == expected.dtype
        assert ((got.double() - expected.double()).abs() <= most).all()


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_step_is_lmdeploy_s_norms_and_rotation(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a prefill and of one token decoded."""
    calls = [text(step, dtype, monkeypatch, n) for n in (TOKENS, 1) for dtype in DTYPES]
    served = drop_in.patch.counts[step.switch].served
    ours = [call() for call in calls]
    assert drop_in.patch.counts[step.switch].served == served + len(calls)
    assert all(x.is_contiguous() for pair in ours for x in pair)
    with without(step.switch):  # a norm and a rotation, each rounded once
        theirs = [call() for call in calls]
    for got, expected in zip(ours, theirs, strict=True):
        assert_near(got, expected, step, 3)
    if step.launches[0] is not PARTIAL:
        with default():  # a norm, two products and a sum
            theirs = [call() for call in calls]
        for got, expected in zip(ours, theirs, strict=True):
            assert_near(got, expected, step, 4)


def test_rows_that_lie_dense_are_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the slices of one token do, of which nothing else reads."""
    for tokens, form in (1, "norm_apply_"), (TOKENS, "norm_apply"):
        names = launches(text(QWEN3, torch.bfloat16, monkeypatch, tokens))
        assert [name for name in names if is_ours(name)] == [f"npu_rope.{form}.default"]


# ---- tensor parallel ----


@contextmanager
def on_rank(rank: int, ranks: int) -> Iterator[None]:
    """What is built in here is one rank's share; its groups are never asked for anything."""
    group = DistGroup(rank=rank)
    context = DistContext(
        rank=rank,
        dist_config=DistConfig(tp=ranks),
        **{f"{name}tp_group": group for name in ("", "attn_", "mlp_", "moe_")},
    )
    with get_dist_manager().context(context):
        yield


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_each_rank_has_its_heads(step: Step, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four heads of q and two of k over two ranks; over four, of which two have the same k."""
    whole = text_layer(step, torch.bfloat16, monkeypatch)
    hidden = torch.randn(1, TOKENS, 128).bfloat16()
    expected = seen(step, whole, hidden)
    copies = max(1, ranks // 2)
    split = Step(**{**vars(step), "config": {
        **step.config, "num_key_value_heads": 2 * copies, "num_replicate_key_value_heads": copies,
    }})  # fmt: skip
    parts = []
    for rank in range(ranks):
        with on_rank(rank, ranks):
            part = text_layer(split, torch.bfloat16, monkeypatch)
            rows = whole.qkv_proj.weight.split(whole.qkv_proj.all_out_features)
            for name, x in zip("qkv", rows, strict=True):
                part.qkv_proj.weight_loader(part.qkv_proj.weight, x, name)
        for name in ("q_norm", "k_norm"):
            getattr(part, name).weight.copy_(getattr(whole, name).weight)
        part.o_proj = torch.nn.Identity()  # sums over ranks
        served = drop_in.patch.counts[step.switch].served
        parts.append(seen(step, part, hidden))
        assert drop_in.patch.counts[step.switch].served == served + 1
    q, k = (torch.cat(x, 1) for x in zip(*parts, strict=True))
    assert torch.equal(q, expected[0])
    assert torch.equal(k, expected[1].repeat_interleave(copies, 1))


def seen(step: Step, layer: torch.nn.Module, hidden: Tensor) -> Pair:
    table = tables(TOKENS, step.rotary)
    more = (None,) if step.name == "GemmaAttention" else ()
    layer(hidden, table, *more, (torch.empty(1), torch.empty(1)), None)
    return layer.attn_fwd.seen


# ---- left to LMDeploy ----


class Doubled(DlinferRMSNormImpl):
    def forward(self, x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
        return 2 * super().forward(x, weight, residual)


def test_another_norm_is_lmdeploy_s(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Found in each call: one line in the log, and its own result."""
    layer = text_layer(QWEN3, torch.bfloat16, monkeypatch)
    hidden = torch.randn(1, TOKENS, 128).bfloat16()
    plain = seen(QWEN3, layer, hidden)
    layer.k_norm.impl = Doubled(128, 0.5)
    counts = drop_in.patch.counts["qwen3_norm"]
    monkeypatch.setattr(counts, "left", {})
    served = counts.served
    logging.getLogger("lmdeploy").addHandler(caplog.handler)
    caplog.clear()
    twice = [seen(QWEN3, layer, hidden) for _ in range(2)]
    logging.getLogger("lmdeploy").removeHandler(caplog.handler)
    with default():
        theirs = seen(QWEN3, layer, hidden)
    for got in twice:
        assert all(map(torch.equal, got, theirs))
    assert_near((plain[1] * 2,), (theirs[1],), QWEN3, 4)
    assert counts.served == served
    why = "a norm is norms.Doubled, expected lmdeploy.pytorch.backends.dlinfer.norm."
    ((reason, times),) = counts.left.items()
    assert reason.startswith(why) and times == 2
    assert len([text for text in caplog.messages if why in text]) == 1


def test_a_norm_that_quantises_is_lmdeploy_s(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = text_layer(QWEN3, torch.bfloat16, monkeypatch)
    q, k, _ = (x.unflatten(1, (-1, 128)) for x in packed(TOKENS, 512, 256, 256))
    layer.q_norm.impl = DlinferRMSNormW8A8Impl(128, 0.5, torch.int8)
    before = q.clone(), k.clone()
    why = drop_in.rotate.normed(layer.q_norm, layer.k_norm, q, k, *tables(TOKENS, 128))
    assert why.startswith("a norm is") and "W8A8" in why
    assert all(map(torch.equal, (q, k), before))


def test_what_a_norm_is_refused_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = text_layer(QWEN3, torch.bfloat16, monkeypatch)
    q, k, _ = (x.unflatten(1, (-1, 128)) for x in packed(TOKENS, 512, 256, 256))
    table = tables(TOKENS, 128)

    def why(**given: object) -> str:
        norms = {"q_norm": layer.q_norm, "k_norm": layer.k_norm, **given}
        answer = drop_in.rotate.normed(norms["q_norm"], norms["k_norm"], q, k, *table)
        assert isinstance(answer, str)
        return answer

    assert "torch.nn.modules.normalization.RMSNorm" in why(q_norm=torch.nn.RMSNorm(128))
    with ascend():
        other = type(layer.q_norm)(128, 1e-6, dtype=torch.bfloat16, device="cpu")
        narrow = type(layer.q_norm)(64, 0.5, dtype=torch.bfloat16, device="cpu")
        single = type(layer.q_norm)(128, 0.5, dtype=torch.float32, device="cpu")
    assert why(k_norm=other) == "q's and k's norms have each an eps of its own"
    assert why(q_norm=narrow).startswith("q_weight has shape [64], expected [128]")
    assert why(k_norm=single).startswith("k_weight is Float, expected BFloat16 as q_weight")
    without_weight = SimpleNamespace(**vars(other))
    assert "SimpleNamespace" in why(q_norm=without_weight)


@pytest.mark.parametrize(
    ("module", "config"),
    [("glm4_moe", {"use_qk_norm": False}), ("gemma", {"model_type": "gemma2"})],
)
def test_a_model_without_norms_is_no_call_that_is_left(
    module: str, config: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rotation is the layer's."""
    step = next(step for step in STEPS if step.module == module)
    plain = Step(**{**vars(step), "config": {**step.config, **config}})
    call = text(plain, torch.bfloat16, monkeypatch)
    counts, layer = drop_in.patch.counts[step.switch], drop_in.patch.counts["layer"]
    before = counts.served, dict(counts.left), layer.served
    got = call()
    assert (counts.served, counts.left, layer.served - 1) == before
    with without(step.switch):
        assert all(map(torch.equal, got, call()))


def test_round_each_leaves_norms_to_lmdeploy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which promises the bits of its chain: here of its norm and its operators of a head of 64."""
    step = Step(**{**vars(QWEN3), "config": {**QWEN3.config, "head_dim": 64}, "rotary": 64})
    call = text(step, torch.bfloat16, monkeypatch)
    once = call()
    counts = drop_in.patch.counts["qwen3_norm"]
    before = counts.served, dict(counts.left)
    drop_in.enable(round_each=True)
    try:
        each = call()
        names = [name for name in launches(call) if is_ours(name)]
    finally:
        drop_in.enable(round_each=False)
    assert (counts.served, counts.left) == before
    assert [name.split(".")[1] for name in names] == ["apply_"]
    with default():
        theirs = call()
    assert all(map(torch.equal, each, theirs))
    assert not any(map(torch.equal, once, theirs))


def test_a_method_that_another_package_wraps_is_left_and_said_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = text(QWEN3, torch.bfloat16, monkeypatch)
    cls = sys.modules[f"{MODELS}.qwen3"].Qwen3Attention
    drop_in.disable()
    original = cls.forward
    try:
        cls.forward = functools.wraps(original)(lambda *x: original(*x))
        drop_in.enable()
        got = call()
        lines = drop_in.report._this_process()
    finally:
        drop_in.disable()
        cls.forward = original
        drop_in.enable()
    with without("qwen3_norm"):
        assert all(map(torch.equal, got, call()))
    place = f"{QWEN3.patch()}: it is wrapped by another already"
    assert [line for line in lines if "left as it is" in line[1]] == [
        ("no", "  left as it is", place)
    ]
