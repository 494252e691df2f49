"""LMDeploy's `nn.ApplyRotaryEmb` on its Ascend backend: launches, values, who owns what."""

from __future__ import annotations

from dataclasses import dataclass

import npu_rope
import pytest
import torch
from ascend import (
    Pair,
    build_layer,
    default,
    drop_in,
    heads,
    launches,
    packed,
    tables,
)
from torch import Tensor

OURS = ["npu_rope.apply.default", "npu_rope.apply_.default", "npu_rope.apply.out"]
TOKENS = 7


@pytest.fixture(scope="module")
def layer() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_layer()


@dataclass(frozen=True)
class Case:
    """q and k as one of LMDeploy's models hands them to its rotary layer."""

    name: str
    head_dim: int
    default_launches: int | None  # None where the default raises
    strided: bool = False
    inplace: bool = True
    rotary_dim: int | None = None
    mla: bool = False

    def inputs(self, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.mla:  # q_pe and k_pe: the last 64 of 192 and of 576 columns
            q = heads(torch.randn(TOKENS, 4 * 192).to(dtype), 192)[..., 128:]
            k = torch.randn(TOKENS, 1, 576).to(dtype)[..., 512:]
        else:
            wide = 4 * self.head_dim, 2 * self.head_dim, 2 * self.head_dim
            q, k, _ = (heads(x, self.head_dim) for x in packed(TOKENS, *wide, dtype=dtype))
            if not self.strided:
                q, k = q.contiguous(), k.contiguous()
        return q, k, *tables(TOKENS, self.rotary_dim or self.head_dim, dtype)


CASES = [
    Case("qwen3: contiguous", 128, 1),
    Case("qwen2, llama: packed QKV", 128, 3, strided=True),
    Case("128, not in place", 128, 3, inplace=False),
    Case("chatglm2: contiguous", 64, 10),
    Case("72, contiguous", 72, 10),
    Case("80, contiguous", 80, 10),
    Case("qwen2_vl, 2b text: packed QKV", 64, 12, strided=True),
    Case("siglip: packed QKV", 72, 12, strided=True),
    Case("qwen2_5_vl vision: packed QKV", 80, 12, strided=True),
    Case("deepseek_v2 MLA", 64, 14, inplace=False, mla=True),
    Case("glm4_moe: half of each row", 128, None, strided=True, rotary_dim=64),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_launch(layer: torch.nn.Module, case: Case) -> None:
    q, k, cos, sin = case.inputs()
    names = launches(lambda: layer(q, k, cos, sin, inplace=case.inplace))
    assert len(names) == 1 and names[0] in OURS
    if case.default_launches is not None:
        with default():
            names = launches(lambda: layer(q, k, cos, sin, inplace=case.inplace))
        assert len(names) == case.default_launches, names


def bound(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """How far two results may lie apart, of which one rounds once and one three times.

    u is half a unit in the last place. The default rounds both products, u (|a| + |b|), and like us
    the sum, u |a + b| each; (1 + 4u) covers roundings of rounded values, the last term subnormals.
    """
    u = torch.finfo(x.dtype).eps / 2
    x, cos, sin = x.double(), cos.double().unsqueeze(-2), sin.double().unsqueeze(-2)
    x1, x2 = x.chunk(2, -1)
    a, b = x * cos, torch.cat((-x2, x1), -1) * sin
    return (u * (a.abs() + b.abs()) + 2 * u * (a + b).abs()) * (1 + 4 * u) + 1e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.default_launches], ids=lambda case: case.name
)
def test_values_are_the_default_s(layer: torch.nn.Module, case: Case, dtype: torch.dtype) -> None:
    q, k, cos, sin = case.inputs(dtype)
    with default():
        expected = layer(q.clone(), k.clone(), cos, sin, inplace=case.inplace)
    largest = bound(q, cos, sin), bound(k, cos, sin)
    got = layer(q, k, cos, sin, inplace=case.inplace)
    for ours, theirs, most in zip(got, expected, largest, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert ((ours.double() - theirs.double()).abs() <= most).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_are_the_reference_s(layer: torch.nn.Module, case: Case) -> None:
    q, k, cos, sin = case.inputs()
    expected = npu_rope.reference.apply(q, k, cos, sin)
    assert equal(layer(q, k, cos, sin, inplace=case.inplace), expected)


def equal(got: Pair, expected: Pair) -> bool:
    return all(map(torch.equal, got, expected))


def owns(x: Tensor, *others: Tensor) -> bool:
    """x is dense, and shares memory with none of the others."""
    pointers = {other.untyped_storage().data_ptr() for other in others}
    return x.is_contiguous() and x.untyped_storage().data_ptr() not in pointers


def test_in_place_dense_rows_are_rotated_where_they_lie(layer: torch.nn.Module) -> None:
    q, k, cos, sin = Case("", 80, 10).inputs()
    q_out, k_out = layer(q, k, cos, sin)
    assert q_out is q and k_out is k


def test_in_place_slices_come_out_contiguous_and_leave_the_packed_rows(
    layer: torch.nn.Module,
) -> None:
    qkv = torch.randn(TOKENS, 8 * 80).bfloat16()
    before = qkv.clone()
    q, k, _ = (heads(x, 80) for x in qkv.split((320, 160, 160), 1))
    q_out, k_out = layer(q, k, *tables(TOKENS, 80))
    assert owns(q_out, k_out, qkv) and owns(k_out, q_out, qkv)
    q_out.zero_()  # as attention does, which writes its output over q
    assert torch.equal(qkv, before) and k_out.any()


def test_dense_q_beside_sliced_k(layer: torch.nn.Module) -> None:
    q, k, cos, sin = Case("", 80, 12, strided=True).inputs()
    q = q.contiguous()
    expected = npu_rope.reference.apply(q, k, cos, sin)
    assert launches(lambda: layer(q.clone(), k, cos, sin))[1:] == ["npu_rope.apply.out"]
    q_out, k_out = layer(q, k, cos, sin)
    assert q_out is q and owns(k_out, k) and equal((q_out, k_out), expected)


@pytest.mark.parametrize("head_dim", [128, 80])
def test_not_in_place_leaves_the_inputs(layer: torch.nn.Module, head_dim: int) -> None:
    """The default with head_dim 128 does not."""
    q, k, cos, sin = Case("", head_dim, 3).inputs()
    before = q.clone(), k.clone()
    got = layer(q, k, cos, sin, inplace=False)
    assert equal((q, k), before) and not equal(got, before)
    assert owns(got[0], q, k, got[1]) and owns(got[1], q, k)


def test_float32_tables_beside_bfloat16(layer: torch.nn.Module) -> None:
    """What LMDeploy's default refuses, or answers in float32: used as they are."""
    q, k, _, _ = Case("", 128, 3, strided=True).inputs()
    cos, sin = tables(TOKENS, 128, torch.float32)
    expected = npu_rope.reference.apply(q, k, cos, sin, cast_tables=False)
    assert equal(layer(q, k, cos, sin), expected) and expected[0].dtype == torch.bfloat16
    with default(), pytest.raises(RuntimeError, match="not implemented"):
        layer(q, k, cos, sin)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_no_tokens(layer: torch.nn.Module, head_dim: int) -> None:
    q, k = torch.empty(0, 4, head_dim), torch.empty(0, 2, head_dim)
    got = layer(q, k, *tables(0, head_dim, torch.float32))
    assert got[0].shape == q.shape and got[1].shape == k.shape


def test_one_tensor_alone(layer: torch.nn.Module) -> None:
    """forward_single gives it a key with no heads."""
    x, _, cos, sin = Case("", 64, 12, strided=True).inputs()
    expected = npu_rope.reference.apply(x, x[:, :0], cos, sin)[0]
    assert torch.equal(layer.forward_single(x, cos, sin, inplace=False), expected)
    assert layer.forward_single(x, cos, sin, inplace=True) is x and torch.equal(x, expected)


def test_four_dimensions(layer: torch.nn.Module) -> None:
    """deepseek_v32's indexer keeps a batch axis of 1."""
    q, k, cos, sin = Case("", 64, None, mla=True).inputs()
    expected = npu_rope.reference.apply(q, k, cos, sin)
    got = layer(q.unsqueeze(0), k.unsqueeze(0), cos, sin, inplace=False)
    assert got[0].shape == (1, *q.shape) and equal((got[0][0], got[1][0]), expected)


def test_a_table_row_for_each_token_and_head(layer: torch.nn.Module) -> None:
    """FoPE's tables are [T, heads, R], which the layer flattens."""
    q, k = torch.randn(TOKENS, 2, 64), torch.randn(TOKENS, 2, 64)
    cos, sin = (x.view(TOKENS, 2, 64) for x in tables(2 * TOKENS, 64, torch.float32))
    flat = [x.reshape(2 * TOKENS, 1, 64) for x in (q, k)]
    expected = npu_rope.reference.apply(*flat, cos.flatten(0, 1), sin.flatten(0, 1))
    got = layer(q, k, cos, sin, inplace=False)
    assert equal((got[0].reshape(-1, 1, 64), got[1].reshape(-1, 1, 64)), expected)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("native", [True, False])
def test_adjacent_pairs_with_half_tables(
    layer: torch.nn.Module, native: bool, inplace: bool
) -> None:
    """glm_moe_dsa's indexer; dlinfer 0.2.7 has no operator for it."""
    q, k, cos, sin = Case("", 64, None, mla=True).inputs()
    cos, sin = cos[:, :32], sin[:, :32]
    options = {"rotary_dim": 64, "interleaved": True, "deinterleave": native}
    expected = npu_rope.reference.apply(q, k, cos, sin, **options)
    call = {"inplace": inplace, "complex_mode": True, "return_native_layout": native}
    got = layer.impl.forward(q, k, cos, sin, **call)
    assert equal(got, expected) and (got[0] is q) == inplace
    names = launches(lambda: layer.impl.forward(q, k, cos, sin, **call))
    assert len(names) == 1 and names[0] in OURS


def test_adjacent_pairs_with_full_tables_go_to_the_original(layer: torch.nn.Module) -> None:
    q, k, cos, sin = (x.unsqueeze(0) for x in Case("", 64, None).inputs())
    with pytest.raises(AttributeError, match="apply_rotary_pos_emb_interleaved"):
        layer(q, k, cos[0], sin[0], complex_mode=True)


def test_what_is_not_known_goes_to_the_original(layer: torch.nn.Module) -> None:
    q, k, cos, sin = (x.double() for x in Case("", 80, 10).inputs())
    names = launches(lambda: layer(q, k, cos, sin))
    assert len(names) == 10 and not {*names} & {*OURS}
    with pytest.raises(TypeError, match="unexpected keyword"):
        layer.impl.forward(q, k, cos, sin, another=1)


def registered() -> dict:
    from dlinfer.vendor import vendor_ops_registry

    return vendor_ops_registry["apply_rotary_pos_emb"]


@pytest.mark.parametrize("more", [(), (None, None)], ids=["4 arguments", "6, before 0.1.8"])
@pytest.mark.parametrize("batched", [False, True])
def test_registry(more: tuple, batched: bool) -> None:
    q, k, cos, sin = Case("", 80, 12, strided=True).inputs()
    expected = npu_rope.reference.apply(q, k, cos, sin)
    before = q.clone()
    if batched:
        expected = tuple(x.unsqueeze(0) for x in expected)
        q, k = q.unsqueeze(0), k.unsqueeze(0)
        cos, sin = (x.view(1, TOKENS, 1, 80) for x in (cos, sin))
    assert equal(registered()(q, k, cos, sin, *more), expected)
    assert torch.equal(q.view(before.shape), before)


def test_registry_overwrites_dense_rows_of_128_as_the_default_does() -> None:
    for strided in (False, True):
        inputs = Case("", 128, 1, strided=strided).inputs()
        theirs = [x.clone() if x.is_contiguous() else x for x in inputs]
        with default():
            registered()(*theirs)
        registered()(*inputs)
        assert all(map(torch.equal, inputs, theirs))


def test_registry_with_what_is_not_known_goes_to_the_original() -> None:
    with pytest.raises(TypeError, match="takes 4 positional arguments but 6 were given"):
        registered()(*Case("", 80, 10).inputs(), torch.arange(TOKENS), None)


@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16])
def test_tensor_parallel_ranks_get_their_heads(layer: torch.nn.Module, tp: int) -> None:
    """16 heads of q and 4 of k over tp ranks; above 4, k's heads are shared or none at all."""
    q, k = torch.randn(TOKENS, 16, 128).bfloat16(), torch.randn(TOKENS, 4, 128).bfloat16()
    cos, sin = tables(TOKENS, 128)
    expected = npu_rope.reference.apply(q, k, cos, sin)
    for rank in range(tp):
        of_q = slice(rank * 16 // tp, (rank + 1) * 16 // tp)
        for of_k in {(rank * 4 // tp, max((rank + 1) * 4 // tp, rank * 4 // tp + 1)), (0, 0)}:
            qkv = torch.cat((q[:, of_q], k[:, slice(*of_k)]), 1)  # this rank's packed rows
            mine = qkv.split((16 // tp, of_k[1] - of_k[0]), 1)
            got = layer(*mine, cos, sin)
            assert equal(got, (expected[0][:, of_q], expected[1][:, slice(*of_k)]))


def test_graph_mode_is_left_alone(layer: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    import dlinfer.graph

    q, k, cos, sin = Case("", 80, 12, strided=True).inputs()
    monkeypatch.setitem(dlinfer.graph.config._config, "enable_graph_mode", True)

    def graph() -> str:
        seen = []

        def backend(module: torch.fx.GraphModule, _: list) -> torch.fx.GraphModule:
            seen.append(module.print_readable(print_output=False))
            return module

        torch._dynamo.reset()
        # the operator in the graph has no CPU kernel: LMDeploy compiles it with its own backend
        with torch.inference_mode(), pytest.raises(Exception, match=r"dlinfer|CPU"):
            torch.compile(layer, backend=backend, fullgraph=True)(q, k, cos, sin)
        (text,) = seen
        return text[text.index("def forward") :].split("#")[0] + text.rsplit("return", 1)[1]

    ours = graph()
    with default():
        assert graph() == ours
    assert "npu_rope" not in ours


def test_adjacent_pairs_are_lmdeploy_s_and_turn_back(layer: torch.nn.Module) -> None:
    """As DeepSeek-V4 uses them: its output is rotated back, by -sin, so they have to be pairs."""
    from lmdeploy.pytorch.backends.default.apply_rotary_emb import DefaultApplyRotaryEmbImpl

    q, k = torch.randn(TOKENS, 4, 64), torch.randn(TOKENS, 1, 64)
    cos, sin = (x[:, :32] for x in tables(TOKENS, 64, torch.float32))
    there = layer(q, k, cos, sin, inplace=False, complex_mode=True)
    names = launches(lambda: layer(q, k, cos, sin, inplace=False, complex_mode=True))
    assert len(names) == 1 and names[0] in OURS
    expected = DefaultApplyRotaryEmbImpl().forward(q, k, cos, sin, False, complex_mode=True)
    back = layer(*there, cos, -sin, inplace=False, complex_mode=True)
    for got, wanted in zip((*there, *back), (*expected, q, k), strict=True):
        # two products and a sum, each rounded, there and back; values up to about 5
        assert (got - wanted).abs().max() < 4 * 5 * torch.finfo(torch.float32).eps
    x = torch.randn(1, TOKENS, 4, 128)
    rope, before = x[..., -64:], x.clone()
    layer.forward_single(rope, cos, sin, inplace=True, complex_mode=True)
    layer.forward_single(rope, cos, -sin, inplace=True, complex_mode=True)
    assert torch.equal(x[..., :64], before[..., :64]) and (x - before).abs().max() < 4e-6


def test_what_the_operator_refuses_is_the_default_s(layer: torch.nn.Module) -> None:
    """That call alone; float32 tables too, which are cast for LMDeploy's own operator."""
    q, k = torch.randn(TOKENS, 2, 2048).bfloat16(), torch.randn(TOKENS, 1, 2048).bfloat16()
    cos, sin = tables(TOKENS, 2048)
    with default():
        expected = layer(q, k, cos, sin)
    for dtype in (torch.bfloat16, torch.float32, torch.bfloat16):
        names = launches(lambda: layer(q, k, cos, sin))
        assert not {*names} & {*OURS} and len(names) == 10
        assert equal(layer(q, k, *tables(TOKENS, 2048, dtype)), expected)
        call = Case("", 80, 12, strided=True).inputs()
        assert launches(lambda: layer(*call)) == OURS[:1] and drop_in.is_active()  # noqa: B023


def test_status_tells_of_the_pair_the_process_and_the_calls(layer: torch.nn.Module) -> None:
    drop_in.patch.counts["layer"].left.clear()
    q = torch.randn(TOKENS, 2, 2048)
    layer(q, q.clone(), *tables(TOKENS, 2048, torch.float32))
    served = drop_in.patch.counts["layer"].served
    status = {subject: (mark, finding) for mark, subject, finding in drop_in.status()}
    mark, pair = status["LMDeploy"]
    assert mark == "no" and pair.startswith("0.18.0 with dlinfer-ascend 0.2.7 CANNOT SERVE: ")
    assert "0.12.3 with 0.2.7 is the newest" in pair and pair.endswith("; its rope is tested")
    assert status["  this process"] == ("ok", "active")
    left = "1 left to LMDeploy: q has head_dim #, expected an even number from # to #"
    assert status["  layer"] == ("--", f"{served} calls served; {left}")
    mark, trial = status["  trial"]
    assert mark == "--" and trial.endswith(
        "runs npu_rope's operator; on CPU tensors: torch has no npu"
    )
