"""npu_rope.huggingface on whole models of transformers: the same bits, by its own code."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kernels
import pytest
import torch
import transformers
from kernels import Mode
from npu_rope import huggingface
from npu_rope.huggingface import dispatch
from npu_rope.huggingface.forms import Call, Form, Spec
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from transformers.models.esm import modeling_esm
from transformers.models.llama import modeling_llama
from transformers.models.musicflamingo import modeling_musicflamingo
from transformers.models.nanochat import modeling_nanochat
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen3 import modeling_qwen3

from tests import huggingface_functions, huggingface_models, test_npu
from tests.huggingface_models import inputs, make, operator_calls, step

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
every_model = pytest.mark.parametrize(
    "build", huggingface_models.ROTATIONS, ids=lambda build: build.__name__
)
DECORATED = (modeling_llama, modeling_nanochat, modeling_qwen2_5_vl, modeling_qwen3)


@pytest.fixture(autouse=True)
def own_code_afterwards() -> Iterator[None]:
    """transformers has one function for all models of a kind: a kernel stays in it."""
    yield
    huggingface.unregister()
    for module in DECORATED:
        vars(module.apply_rotary_pos_emb).pop("forward", None)
    torch._dynamo.reset()


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype is other[name].dtype, name
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: str(dtype)[6:])
@every_model
def test_a_patched_model_keeps_its_bits(build: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    model, batch = make(build, dtype), inputs(build, dtype)
    before = step(model, batch)

    huggingface.patch(model)
    with operator_calls() as calls:
        after = step(model, batch)
    assert_same_bits(before, after)
    rotations = huggingface_models.ROTATIONS[build]
    assert calls == ["npu_rope::apply"] * rotations + ["npu_rope::apply_backward"] * rotations

    huggingface.unpatch(model)
    with operator_calls() as calls:
        assert_same_bits(before, step(model, batch))
    assert calls == []


@pytest.mark.parametrize("training", (False, True))
@every_dtype
def test_a_kernelized_model_keeps_its_bits(dtype: torch.dtype, training: bool) -> None:
    build = huggingface_models.qwen3
    model, batch = make(build, dtype).train(training), inputs(build, dtype)
    before = step(model, batch)

    with huggingface.registered():
        mode = Mode.TRAINING if training else Mode.INFERENCE
        kernels.kernelize(model, mode=mode, device="cpu")
    with operator_calls() as calls:
        assert_same_bits(before, step(model, batch))
    assert calls == ["npu_rope::apply"] * 2 + ["npu_rope::apply_backward"] * 2


def test_a_loaded_model_uses_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line of the documentation, with no hub in reach."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, batch = make(huggingface_models.qwen3, torch.float32), inputs(None, torch.float32)
    model.save_pretrained(tmp_path)
    load = transformers.AutoModelForCausalLM.from_pretrained
    before = load(tmp_path, dtype=torch.bfloat16)(**batch).logits

    huggingface.register()
    model = load(tmp_path, dtype=torch.bfloat16, use_kernels=True)
    with operator_calls() as calls:
        assert torch.equal(model(**batch).logits, before)
    assert len(calls) == 2

    huggingface.unregister()
    model.set_use_kernels(True)
    with operator_calls() as calls:
        assert torch.equal(model(**batch).logits, before)
    assert calls == []


@kernels.use_kernelized_func(modeling_llama.apply_rotary_pos_emb)
class Attention(nn.Module):
    """A module that transformers' mapping of other layers has no kernel for."""


def test_what_was_registered_before_comes_back() -> None:
    def is_ours() -> list[bool]:
        found = []
        for device in ("cpu", "npu"):
            vars(modeling_llama.apply_rotary_pos_emb).pop("forward", None)
            kernels.kernelize(Attention(), mode=Mode.INFERENCE, device=device)
            forward = modeling_llama.apply_rotary_pos_emb.forward
            found.append(forward.__module__.startswith("npu_rope."))
        return found

    assert is_ours() == [False, False]
    with huggingface.registered(devices=("npu",)):
        assert is_ours() == [False, True]
        with huggingface.registered():
            assert is_ours() == [True, True]
        assert is_ours() == [False, True]
    assert is_ours() == [False, False]
    huggingface.register(devices=["cpu"])
    assert is_ours() == [True, False]
    huggingface.unregister()
    assert is_ours() == [False, False]


def test_a_registration_without_effect_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.is_kernels_available", lambda: False)
    with pytest.raises(ImportError, match=r"does not take kernels 0\.17.*patch"):
        huggingface.register()


@pytest.mark.parametrize(("training", "by"), ((False, "kernelize"), (True, "patch")))
def test_torch_compile_takes_one_graph(training: bool, by: str) -> None:
    """The form is looked for while the model is traced: nothing has run before."""
    # nanochat's sin is negated first
    build = huggingface_models.nanochat if by == "patch" else huggingface_models.qwen3
    model, batch = make(build, torch.bfloat16), inputs(build, torch.bfloat16)
    batch["use_cache"] = False

    def run(compiled: nn.Module) -> dict[str, Tensor]:
        if training:
            return step(compiled, batch)
        with torch.no_grad():
            return {"logits": compiled(**batch).logits}

    # Compiled too: torch's own backward of an embedding has other bits there.
    before = run(torch.compile(model, fullgraph=True, backend="aot_eager"))
    torch._dynamo.reset()
    for entry in dispatch.entries():
        entry.found.clear()
    if by == "patch":
        huggingface.patch(model)
    else:
        with huggingface.registered():
            mode = Mode.INFERENCE | Mode.TORCH_COMPILE
            kernels.kernelize(model, mode=mode, device="cpu")

    graphs, backend = counting_backend()
    after = run(torch.compile(model, fullgraph=True, backend=backend))
    assert_same_bits(before, after)
    assert graphs == [2]


def counting_backend() -> tuple[list[int], Callable]:
    """How often each graph calls the operator, as the backend of torch.compile fills it in."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, example_inputs: list) -> Callable:
        graphs.append(sum("npu_rope.apply" in str(node.target) for node in graph.graph.nodes))
        return aot_eager(graph, example_inputs)

    return graphs, backend


def test_torch_compile_takes_any_number_of_tokens() -> None:
    own = dispatch.own_code(modeling_llama.apply_rotary_pos_emb)
    ours = dispatch.replacement(modeling_llama.apply_rotary_pos_emb, "llama", keep_bits=True)
    graphs, backend = counting_backend()
    compiled = torch.compile(ours, fullgraph=True, backend=backend, dynamic=True)
    for tokens in (5, 7, 11):
        q, k = torch.randn(2, 4, tokens, 16).half(), torch.randn(2, 2, tokens, 16).half()
        cos, sin = torch.randn(2, 1, tokens, 16).half()
        assert all(map(torch.equal, compiled(q, k, cos, sin), own(q, k, cos, sin)))
    assert graphs == [1]

    # Under such a mode torch compiles no frame, but would those of the search inside it.
    for entry in dispatch.entries():
        entry.found.clear()
    with operator_calls() as calls:
        torch.compile(ours, backend=backend)(q, k, cos, sin)
    assert len(calls) == 1


def test_generating_keeps_the_tokens() -> None:
    """One token a step beside a cache, the first step with all of the prompt."""
    build = huggingface_models.glm4
    model, ids = make(build, torch.bfloat16), inputs(build, torch.bfloat16)["input_ids"]
    generate: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    generate |= {"attention_mask": torch.ones_like(ids), "return_dict_in_generate": True}
    before = model.generate(ids, **generate)
    huggingface.patch(model)
    with operator_calls() as calls:
        after = model.generate(ids, **generate)
    assert len(calls) == 4 * 2
    assert torch.equal(before.sequences, after.sequences)
    assert all(map(torch.equal, before.logits, after.logits))


# ---- which form a function is ----


def form_of(
    function: Callable,
    dtype: torch.dtype = torch.bfloat16,
    *,
    tables: torch.dtype | None = None,
    head_dim: int = 32,
    width: int = 32,
    ranks: tuple[int, int] = (4, 3),
    keep_bits: bool = True,
) -> Form | str:
    roles = dispatch.roles(function)
    q, table = Spec(dtype, ranks[0], head_dim), Spec(tables or dtype, ranks[1], width)
    entry = dispatch.Entry("", dispatch.own_code(function), roles, keep_bits)
    return entry.find(Call(q, q if roles.k else None, table, table, roles.unsqueeze_dim({})))


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def both(rotate: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    def function(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return rotate(q, cos, sin), rotate(k, cos, sin)

    return function


OTHERS = {
    "sin of the other half": lambda x, c, s: x * c + rotate_half(x) * s.roll(16, -1),
    "cos of the first half alone": lambda x, c, s: (
        x * torch.cat((c[..., :16], c[..., :16]), -1) + rotate_half(x) * s
    ),
    "scaled": lambda x, c, s: (x * c + rotate_half(x) * s) * 1.25,
    "not rotated": lambda x, c, s: x * c,
    "reversed heads": lambda x, c, s: (x * c + rotate_half(x) * s).flip(1),
    "a shift of tokens": lambda x, c, s: x * c.roll(1, -2) + rotate_half(x) * s.roll(1, -2),
    "one row for all tokens": lambda x, c, s: x * c[:, :, :1] + rotate_half(x) * s[:, :, :1],
    "other tables for one batch": lambda x, c, s: (
        x * c + rotate_half(x) * (s if s.shape[0] > 1 else s.flip(-1))
    ),
    "another shape": lambda x, c, s: (x * c + rotate_half(x) * s).transpose(1, 2),
    "another result": lambda x, c, s: [x],
    "first batch for all": lambda x, c, s: x * c[:1] + rotate_half(x) * s[:1],
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("keep_bits", (True, False))
def test_another_function_is_left_to_the_model(name: str, keep_bits: bool) -> None:
    for dtype in DTYPES:
        found = form_of(both(OTHERS[name]), dtype, keep_bits=keep_bits)
        assert isinstance(found, str), found


ROUNDINGS = {
    "products rounded, the sum to float16 first": lambda x, c, s: (
        (x * c).half() + (rotate_half(x) * s).half()
    ).to(x.dtype),
    "one product rounded": lambda x, c, s: (
        (x * c).float() + rotate_half(x).float() * s.float()
    ).to(x.dtype),
    "rounded downwards": lambda x, c, s: (
        (x.double() * c.double() + rotate_half(x).double() * s.double()) * (1 - 2**-12)
    ).to(x.dtype),
}


@pytest.mark.parametrize("name", ROUNDINGS)
def test_other_roundings_are_left_to_the_model(name: str) -> None:
    function = both(ROUNDINGS[name])
    assert form_of(function, torch.bfloat16) == "the operator rounds otherwise"
    assert isinstance(form_of(function, torch.bfloat16, keep_bits=False), Form)


def test_float64_inside_is_told_from_float32() -> None:
    """Their results in 16 bits differ in few places, where the tables are float32."""
    function = modeling_musicflamingo.apply_rotary_time_emb
    for dtype in (torch.bfloat16, torch.float16):
        found = form_of(function, dtype, tables=torch.float32, ranks=(4, 2))
        assert found == "the operator rounds otherwise"
        found = form_of(function, dtype, tables=torch.float32, ranks=(4, 2), keep_bits=False)
        assert isinstance(found, Form)


def test_nanochat_turns_the_other_way() -> None:
    assert form_of(modeling_nanochat.apply_rotary_pos_emb).inverse
    assert not form_of(modeling_llama.apply_rotary_pos_emb).inverse


def test_gradients_that_are_rounded_otherwise_stay_with_the_model() -> None:
    """ESM's function casts q twice, and autograd rounds the gradient of each cast."""
    own = dispatch.own_code(modeling_esm.apply_rotary_pos_emb)
    function = dispatch.replacement(modeling_esm.apply_rotary_pos_emb, "esm", keep_bits=True)
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 2, 3, 7, 32, generator=generator).bfloat16()
    cos, sin = torch.randn(2, 2, 7, 32, generator=generator).bfloat16()
    for gradients in (False, True):
        q.requires_grad_(gradients)
        with operator_calls() as calls:
            results = function(q, k, cos, sin)
        assert all(map(torch.equal, results, own(q, k, cos, sin)))
        assert len(calls) == (0 if gradients else 1)
    with torch.no_grad(), operator_calls() as calls:
        function(q, k, cos, sin)
    assert len(calls) == 1


def test_mixed_dtypes_have_the_dtype_of_the_models_result() -> None:
    """As under autocast: q in 16 bits, tables in float32."""
    found = form_of(modeling_llama.apply_rotary_pos_emb, tables=torch.float32)
    assert found.dtype is torch.float32
    assert not found.in_training  # autograd rounds the gradient of each product to bfloat16
    model = make(huggingface_models.qwen3, torch.float32)
    batch = inputs(huggingface_models.qwen3, torch.float32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(**batch).logits
        huggingface.patch(model)
        with operator_calls() as calls:
            assert torch.equal(model(**batch).logits, before)
    assert len(calls) == 2


def test_the_form_does_not_depend_on_what_is_around() -> None:
    """Nor does looking for it change the random numbers that come after."""
    expected = form_of(modeling_llama.apply_rotary_pos_emb)
    torch.manual_seed(4)
    numbers = torch.rand(3)
    torch.manual_seed(4)
    with (
        torch.device("meta"),
        torch.inference_mode(),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        assert form_of(modeling_llama.apply_rotary_pos_emb) == expected
    assert torch.equal(torch.rand(3), numbers)


# ---- calls that are not as the function was looked at ----


def test_calls_that_broadcast_go_to_the_models_code() -> None:
    own = dispatch.own_code(modeling_llama.apply_rotary_pos_emb)
    function = dispatch.replacement(modeling_llama.apply_rotary_pos_emb, "llama", keep_bits=True)

    def served(q: Tensor, k: Tensor, cos: Tensor, **options: int) -> bool:
        sin = cos.roll(1, -1)
        with operator_calls() as calls:
            results = function(q, k, cos, sin, **options)
        assert all(map(torch.equal, results, own(q, k, cos, sin, **options)))
        return len(calls) == 1

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(6))

    q, k = random(2, 4, 6, 8), random(2, 1, 6, 8)
    assert served(q, k, random(2, 6, 8))
    assert served(q, k, random(1, 6, 8))
    assert not served(q, k, random(2, 1, 8))
    assert not served(q, k, random(1, 1, 8))
    assert not served(q[:1], k[:1], random(2, 6, 8))
    assert not served(q[:, :, :1], k[:, :, :1], random(2, 6, 8))
    assert not served(q, k[:, :, :1], random(1, 1, 8))
    assert served(q.transpose(1, 2), k.transpose(1, 2), random(2, 6, 8), unsqueeze_dim=2)
    assert served(q[:, :, :0], k[:, :, :0], random(2, 0, 8))
    assert served(q[:, :0], k, random(2, 6, 8))
    assert served(q.double(), k.double(), random(2, 6, 8).double())
    assert not served(q[..., :7], k[..., :7], random(2, 6, 1))


def test_arguments_beside_the_rotations_go_to_the_models_code() -> None:
    def function(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if position_ids is not None:
            cos, sin = cos[:, position_ids], sin[:, position_ids]
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin

    ours = dispatch.replacement(function, "test", keep_bits=True)
    q, cos = torch.randn(2, 3, 5, 8), torch.randn(2, 5, 8)
    with operator_calls() as calls:
        ours(q, q, sin=cos, cos=cos)
    assert len(calls) == 1
    backwards = torch.arange(5).flip(0)
    with operator_calls() as calls:
        result = ours(q, q, cos, cos, backwards)
    assert len(calls) == 0
    assert torch.equal(result[0], function(q, q, cos, cos, backwards)[0])


def test_tables_that_learn_stay_with_the_model() -> None:
    function = dispatch.replacement(modeling_llama.apply_rotary_pos_emb, "llama", keep_bits=True)
    q, cos = torch.randn(2, 3, 5, 8), torch.randn(2, 5, 8, requires_grad=True)
    with operator_calls() as calls:
        function(q, q, cos, cos)
    assert calls == []


# ---- patch ----


def test_patch_touches_one_model_alone() -> None:
    build = huggingface_models.qwen2_5_vl
    model, other = make(build, torch.float32), make(build, torch.float32)
    batch = inputs(build, torch.float32)
    name = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl.apply_rotary_pos_emb"
    assert huggingface.patch(model) == {name: 2, f"{name}_vision": 2}
    with operator_calls() as calls:
        other(**batch)
    assert calls == []

    changed = [vars(module) for module in model.modules()]
    copied = copy.deepcopy(model)
    with operator_calls() as calls:
        copied(**batch)
    assert len(calls) == 4
    huggingface.unpatch(model)
    assert not any("forward" in held for held in changed)


def test_patch_goes_under_what_wraps_a_module() -> None:
    """As accelerate's hooks do: the bound method is kept under another name."""
    build = huggingface_models.gptj
    model, batch = make(build, torch.float32), inputs(build, torch.float32)
    before = model(**batch).logits
    seen = []
    attention = model.transformer.h[0].attn
    attention._old_forward = attention.forward
    hook = attention.forward = lambda *args, **kwargs: (
        seen.append(1),
        attention._old_forward(*args, **kwargs),
    )[1]
    old = attention._old_forward

    for _ in range(2):  # a second time changes nothing
        huggingface.patch(model)
        with operator_calls() as calls:
            assert torch.equal(model(**batch).logits, before)
        assert (len(calls), len(seen)) == (4, 1)
        seen.clear()
    huggingface.unpatch(model)
    assert attention.forward is hook
    assert attention._old_forward == old
    with operator_calls() as calls:
        model(**batch)
    assert calls == []


def announced(function: Callable) -> Callable:
    """A decorator, as transformers has them on its models' methods."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        announcements.append(function.__name__)
        return function(*args, **kwargs)

    return wrapper


announcements: list[str] = []
half_style = both(lambda x, c, s: x * c + rotate_half(x) * s)


class Decorated(nn.Module):
    @announced
    def forward(self, q: Tensor, tables: tuple[Tensor, Tensor], *, scale: float = 0.5) -> Tensor:
        return scale * sum(self.both(q, q, *tables))

    @announced
    @announced
    def both(self, *rows_and_tables: Tensor) -> tuple[Tensor, Tensor]:
        return next(half_style(*rows_and_tables) for _ in "a")


class Derived(Decorated):
    def forward(self, *args: Any) -> Tensor:  # noqa: ANN401
        return super().forward(*args)


def test_patch_reaches_into_decorated_methods() -> None:
    model = nn.Sequential(Derived())[0]
    q, cos, sin = torch.randn(2, 3, 5, 8), *torch.randn(2, 2, 5, 8)
    expected = model(q, (cos, sin))
    announcements.clear()
    assert huggingface.patch(model) == {f"{__name__}.half_style": 1}
    with operator_calls() as calls:
        assert torch.equal(model(q, (cos, sin)), expected)
    assert calls == ["npu_rope::apply"]
    assert announcements == ["forward", "both", "both"]
    huggingface.unpatch(model)
    assert vars(model).keys() == vars(Derived()).keys()


def test_patch_of_a_model_without_rotations_says_so() -> None:
    with pytest.raises(ValueError, match="no module of Sequential calls a function over q, k"):
        huggingface.patch(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda dtype: str(dtype)[6:])
def test_float32_arithmetic_is_more_exact(dtype: torch.dtype) -> None:
    own = dispatch.own_code(modeling_llama.apply_rotary_pos_emb)
    generator = torch.Generator().manual_seed(8)
    q = torch.randn(2, 4, 64, 32, generator=generator).to(dtype)
    angles = torch.rand(1, 64, 16, generator=generator).repeat(1, 1, 2) * 6
    tables = angles.cos().to(dtype), angles.sin().to(dtype)
    exact, _ = own(*(x.double() for x in (q, q, *tables)))
    errors = []
    for keep_bits in (True, False):
        ours = dispatch.replacement(
            modeling_llama.apply_rotary_pos_emb, "llama", keep_bits=keep_bits
        )
        errors.append((ours(q, q, *tables)[0] - exact).square().mean().sqrt())
    assert errors[0] == (own(q, q, *tables)[0] - exact).square().mean().sqrt()
    assert errors[1] < 0.8 * errors[0]


# ---- npu tensors ----


def test_one_launch_on_a_simulated_npu() -> None:
    test_npu.run("npu_huggingface")


# ---- the documentation ----


def test_the_table_of_functions_is_up_to_date() -> None:
    page = huggingface_functions.PAGE.read_text()
    generated = huggingface_functions.table(huggingface_functions.installed())
    assert huggingface_functions.page_with(generated, page) == page, (
        "run python -m tests.huggingface_functions --write"
    )
    assert f"transformers {transformers.__version__}" in page


def test_the_table_has_every_function_that_kernelize_reaches() -> None:
    root = huggingface_functions.installed()
    attached = {
        path.stem.removeprefix("modeling_"): path.read_text()
        for path in root.glob("models/*/modeling_*.py")
        if "@use_kernelized_func(apply_rotary_pos_emb)" in path.read_text()
    }
    never_called = {
        model for model, text in attached.items() if "= apply_rotary_pos_emb(" not in text
    }
    functions = huggingface_functions.functions(root)
    listed = {function.model for function in functions if function.dispatched}
    assert len(listed) > 80
    assert listed == set(attached) - never_called
