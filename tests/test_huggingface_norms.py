"""patch(model, with_norms=True): RMSNorm of every head and the rotation in one call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from npu_rope import huggingface
from npu_rope.huggingface import norms
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

from tests.huggingface_models import SMALL, inputs, operator_calls, step

EPS = 0.1  # that counts


def qwen3() -> nn.Module:
    config = transformers.Qwen3Config(**SMALL, rms_norm_eps=EPS)
    return transformers.Qwen3ForCausalLM(config)


def qwen3_moe() -> nn.Module:
    config = transformers.Qwen3MoeConfig(
        **SMALL,
        rms_norm_eps=EPS,
        moe_intermediate_size=32,
        num_experts=4,
        num_experts_per_tok=2,
    )
    return transformers.Qwen3MoeForCausalLM(config)


def gemma3() -> nn.Module:
    """Its norms multiply by 1 + weight; a layer with a window and one without."""
    config = transformers.Gemma3TextConfig(
        **SMALL,
        rms_norm_eps=EPS,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    return transformers.Gemma3ForCausalLM(config)


def olmo2() -> nn.Module:
    """One norm over all heads."""
    return transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**SMALL))


def nanochat() -> nn.Module:
    """Normed after they are rotated, without weights."""
    return transformers.NanoChatForCausalLM(transformers.NanoChatConfig(**SMALL))


def hunyuan() -> nn.Module:
    """Normed after they are rotated."""
    return transformers.HunYuanDenseV1ForCausalLM(transformers.HunYuanDenseV1Config(**SMALL))


Build = Callable[[], nn.Module]
SERVED, LEFT = (qwen3, qwen3_moe, gemma3), (olmo2, nanochat, hunyuan)
served = pytest.mark.parametrize("build", SERVED, ids=lambda build: build.__name__)


def make(build: Build, dtype: torch.dtype = torch.float32) -> nn.Module:
    """With a weight of its own for each column of each norm."""
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            if "norm" in name:
                x.add_(torch.randn(x.shape) * 0.3)
    return model.to(dtype)


def patched(build: Build, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = make(build, dtype)
    huggingface.patch(model, keep_bits=False, with_norms=True)
    return model


@served
def test_step_is_the_model_s_own(build: Build) -> None:
    """Logits, loss and every gradient in float32: 1e-4 of the largest, a thousand eps, for some
    hundred roundings in another order. A wrong weight or offset changes the first digits."""
    model, batch = make(build), inputs(build, torch.float32)
    own = step(model, batch)
    counts = huggingface.patch(model, keep_bits=False, with_norms=True)
    assert [*counts.values()] == [2] and next(iter(counts)).endswith(
        "apply_rotary_pos_emb after norms"
    )
    with operator_calls() as calls:
        ours = step(model, batch)
    forward = [name for name in calls if name != "npu_rope::apply_backward"]
    assert forward == ["npu_rope::norm_apply"] * 2
    assert ours.keys() == own.keys()
    assert any("q_norm" in name for name in own)
    for name, expected in own.items():
        assert (ours[name] - expected).abs().max() <= 1e-4 * expected.abs().max(), name
    huggingface.unpatch(model)
    back = step(model, batch)
    assert all(torch.equal(back[name], own[name]) for name in own)


@served
def test_it_is_more_exact_than_the_model(build: Build) -> None:
    """Of 16-bit rows, against float64: one rounding in place of three and more."""
    own, ours = make(build, torch.bfloat16), patched(build, torch.bfloat16)
    q, k = torch.randn(2, 2, 4, 64, 32).bfloat16()
    angles = torch.rand(2, 64, 16).repeat(1, 1, 2) * 6
    tables = angles.cos().bfloat16(), angles.sin().bfloat16()
    norm = own.model.layers[0].self_attn.q_norm
    function = own.model.layers[0].self_attn.forward.__func__.__globals__["apply_rotary_pos_emb"]
    theirs, _ = function(norm(q), norm(k), *tables)
    method = ours.model.layers[0].self_attn.forward.__func__
    offset = float(build is gemma3)
    mine, _ = method.__closure__[0].cell_contents(norm, norm, EPS, offset, q, k, *tables)
    rows = q.double() * (q.double().square().mean(-1, keepdim=True) + EPS).rsqrt()
    exact, _ = function(rows * (offset + norm.weight.double()), rows, *(x.double() for x in tables))
    errors = [(x.double() - exact).square().mean().sqrt() for x in (mine, theirs)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("build", LEFT, ids=lambda build: build.__name__)
def test_other_norms_are_the_model_s(build: Build) -> None:
    """And the rotation is ours as without the argument, bit for bit."""
    model, other = make(build), make(build)
    batch = inputs(build, torch.float32)
    counts = huggingface.patch(model, keep_bits=False, with_norms=True)
    assert counts == huggingface.patch(other, keep_bits=False)
    with operator_calls() as calls:
        ours = step(model, batch)
    assert "npu_rope::apply" in calls and "npu_rope::norm_apply" not in calls
    theirs = step(other, batch)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_weights_of_another_dtype_are_the_model_s_norm() -> None:
    """Their product has the weights' dtype."""
    model = patched(qwen3, torch.bfloat16)
    q, k = torch.randn(2, 2, 4, 5, 32).bfloat16()
    attention = model.model.layers[0].self_attn
    attention.q_norm.float()
    tables = torch.randn(2, 1, 5, 32).bfloat16()
    normed = attention.forward.__func__.__closure__[0].cell_contents
    rotated, _ = normed(attention.q_norm, attention.k_norm, EPS, 0.0, q, k, *tables)
    assert rotated.dtype == torch.float32


def test_a_hooked_norm_is_called() -> None:
    model = make(qwen3)
    seen = []
    norm = model.model.layers[1].self_attn.k_norm
    norm.register_forward_hook(lambda *_: seen.append(1))
    counts = huggingface.patch(model, keep_bits=False, with_norms=True)
    assert sorted(counts.values()) == [1, 1]
    model(**inputs(qwen3, torch.float32))
    assert seen == [1]


def test_bits_can_t_be_kept_beside_norms() -> None:
    model = make(qwen3)
    with pytest.raises(ValueError, match="expected keep_bits=False"):
        huggingface.patch(model, with_norms=True)
    assert "forward" not in vars(model.model.layers[0].self_attn)


def test_torch_compile_takes_one_graph() -> None:
    model, batch = patched(qwen3), inputs(qwen3, torch.float32) | {"use_cache": False}
    eager = step(model, batch)
    graphs = []

    def backend(graph: torch.fx.GraphModule, example_inputs: list) -> Callable:
        graphs.append(sum("npu_rope.norm_apply" in str(x.target) for x in graph.graph.nodes))
        return aot_eager(graph, example_inputs)

    compiled = step(torch.compile(model, fullgraph=True, backend=backend), batch)
    torch._dynamo.reset()
    assert graphs == [2]
    for name, expected in eager.items():
        near = 1e-5 * expected.abs().max()
        assert (
            compiled[f"_orig_mod.{name}" if "." in name else name] - expected
        ).abs().max() <= near


# ---- which statements, which modules ----


def rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return q * cos, k * sin


class Attention(nn.Module):
    """Each method but `plain` and `both` does something between, or nothing that is known."""

    def plain(self, x: Tensor, cos: Tensor, sin: Tensor) -> object:
        q = self.q_norm(self.q_proj(x)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x)).transpose(1, 2)
        q, k = rotary(q, k, cos, sin)
        return q, k

    def both(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> object:
        k = self.k_norm(k)
        q = self.q_norm(q)
        q, k = rotary(q, k, cos, sin)
        return q, k

    def between(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> object:
        q = self.q_norm(q)
        k = self.k_norm(k)
        q = q * 2
        q, k = rotary(q, k, cos, sin)
        return q, k

    def kept(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> object:
        q = self.q_norm(q)
        k = self.k_norm(k)
        self.seen = k
        q, k = rotary(q, k, cos, sin)
        return q, k

    def other_axes(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> object:
        q = self.q_norm(q).transpose(2, 3)
        k = self.k_norm(k).transpose(2, 3)
        q, k = rotary(q, k, cos, sin)
        return q, k

    def sometimes(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> object:
        if self.use_norms:
            q = self.q_norm(q)
            k = self.k_norm(k)
        q, k = rotary(q, k, cos, sin)
        return q, k

    def other_way(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> object:
        q = self.q_norm(q)
        k = self.k_norm(k)
        q, k = rotary(k, q, cos, sin)
        return q, k

    def afterwards(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> object:
        q, k = rotary(q, k, cos, sin)
        q = self.q_norm(q)
        k = self.k_norm(k)
        return q, k

    def with_residual(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> object:
        q = self.q_norm(q, k)
        k = self.k_norm(k)
        q, k = rotary(q, k, cos, sin)
        return q, k


@pytest.mark.parametrize("name", [name for name in vars(Attention) if name[0] != "_"])
def test_which_statements_are_a_step(name: str) -> None:
    found = norms.find(getattr(Attention, name), ("rotary",))
    assert found == (("q_norm", "k_norm", "rotary") if name in ("plain", "both") else None)


class Scaled(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 1.01 * super().forward(x)


def test_which_modules_are_a_norm() -> None:
    def constants(norm: nn.Module, other: nn.Module | None = None) -> object:
        return norms.constants(norm, other or norm)

    qwen, gemma = (make(build).model.layers[0].self_attn.q_norm for build in (qwen3, gemma3))
    assert constants(qwen) == (EPS, 0.0) and constants(gemma) == (EPS, 1.0)
    assert constants(nn.RMSNorm(32, eps=0.25)) == (0.25, 0.0)
    assert constants(qwen, gemma) is None
    assert constants(nn.RMSNorm(32, eps=0.25), nn.RMSNorm(32, eps=0.5)) is None
    for other in (
        nn.LayerNorm(32),
        nn.LayerNorm(32, bias=False),
        nn.RMSNorm(32),  # whose eps is its input's dtype's
        nn.RMSNorm(32, eps=1e-6, elementwise_affine=False),
        nn.RMSNorm((4, 32), eps=1e-6),
        Scaled(32, eps=1e-6),
        nn.Linear(32, 32, bias=False),
        nn.Identity(),
    ):
        assert constants(other) is None, other
