"""The operator against Hugging Face's own rotary functions, on tables that its own code builds.

Sizes are the published models' but for the number of tokens; q and k are the strided views that
the models' projections leave.
"""

import functools
from collections.abc import Callable

import npu_rope  # noqa: F401  registers torch.ops.npu_rope
import pytest
import torch
from npu_rope.demo import models
from npu_rope.demo.exact import as_pairs
from torch import Tensor
from transformers.vision_utils import get_vision_position_ids

Build = Callable[[], models.Model]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# These work in float32 whatever q's dtype is, product by product as the operator does.
FLOAT32_INSIDE = (models.qwen2_vl_vision, models.qwen2_5_vl_vision, models.cohere)
VISION = (models.qwen2_vl_vision, models.qwen2_5_vl_vision)
MULTIMODAL = (models.qwen2_vl_text, models.qwen2_5_vl_text)

every_model = pytest.mark.parametrize("build", models.MODELS, ids=lambda build: build.__name__)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


def real_positions(build: Build) -> Tensor:
    if build in VISION:  # an image, and a video of two frames
        return get_vision_position_ids(torch.tensor([[1, 6, 8], [2, 4, 4]]), spatial_merge_size=2)
    if build in MULTIMODAL:  # in each row a text with an image of 3 x 4 tokens somewhere
        token_types = torch.zeros(2, 37, dtype=torch.long)
        token_types[0, 5:17] = 1
        token_types[1, 20:32] = 1
        return models.qwen2_5_vl_positions(token_types, torch.tensor([[1, 6, 8], [1, 6, 8]]))
    return torch.stack(
        (torch.arange(37), torch.arange(1900, 1937))
    )  # two requests: one fresh, one far on


def query_key(model: models.Model, positions: Tensor, dtype: torch.dtype) -> models.Pair:
    generator = torch.Generator().manual_seed(3)
    tokens = positions.shape[:1] if model.layout == "TND" else positions.shape[-2:]
    q, k = model.query_key(
        tuple(tokens), lambda *shape: torch.randn(shape, generator=generator).to(dtype)
    )
    assert not q.is_contiguous() and not k.is_contiguous()
    return q, k


def apply(
    model: models.Model,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    cast_tables: bool,
    round_each: bool = False,
) -> models.Pair:
    cos, sin = model.operator_tables(cos, sin)
    return torch.ops.npu_rope.apply(
        q,
        k,
        cos,
        sin,
        cast_tables=cast_tables,
        round_each=round_each,
        layout=model.layout,
        **model.options,
    )


def tolerance(x: Tensor, interleaved: bool) -> Tensor:
    """The most that two correct results can differ by, for each pair of x[..., R].

    With u half of eps: Hugging Face rounds x1*c, x2*s and their sum to x's dtype, the operator
    rounds the three to float32 and the result to x's dtype. A rotation keeps the pair's length L,
    so |x1*c| + |x2*s| <= L and |y| <= L, and the roundings add up to u + u (Hugging Face) and
    u + 2 * u32 (the operator) of L. The tables were rounded too: c*c + s*s <= (1 + u)**2; 4u
    covers that and the products of roundings. Results below dtype's normal range are rounded to
    its smallest step instead, by half a step each time.
    """
    info = torch.finfo(x.dtype)
    u, u32 = info.eps / 2, torch.finfo(torch.float32).eps / 2
    step = info.smallest_normal * info.eps
    return (3 * u + 2 * u32) * (1 + 4 * u) * as_pairs(x, interleaved).abs() + 1.5 * step


@every_dtype
@every_model
def test_equals_hugging_face(build: Build, dtype: torch.dtype) -> None:
    model = build()
    positions = real_positions(build)
    q, k = query_key(model, positions, dtype)
    tables = model.tables(positions, dtype)
    assert positions.count_nonzero() > positions.numel() / 2

    expected = model.rotate(q, k, *tables)
    actual = apply(model, q, k, *tables, cast_tables=False)

    width = model.options.get("rotary_dim", tables[0].shape[-1])
    interleaved_in = model.options.get("interleaved", False)
    interleaved_out = interleaved_in and not model.options.get("deinterleave", False)
    for x, result, peer in zip((q, k), actual, expected, strict=True):
        assert (result.shape, result.dtype) == (x.shape, x.dtype)
        assert not torch.equal(peer, x), "the comparison is empty: nothing was rotated"
        torch.testing.assert_close(result[..., width:], x[..., width:], rtol=0, atol=0)
        if dtype is torch.float32 or build in FLOAT32_INSIDE:
            torch.testing.assert_close(result, peer, rtol=0, atol=0)
            continue
        turned, reference = (as_pairs(y[..., :width], interleaved_out) for y in (result, peer))
        excess = torch.view_as_real(turned - reference).abs().amax(dim=-1)
        excess -= tolerance(x[..., :width], interleaved_in)
        assert excess.max() <= 0, f"{model.name}, {dtype}: {excess.max():.3g} beyond the tolerance"


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=lambda d: str(d)[6:])
@every_model
def test_cast_tables_rounds_as_hugging_face_does(build: Build, dtype: torch.dtype) -> None:
    """float32 tables with cast_tables give the bits of tables that the model cast itself."""
    model = build()
    positions = real_positions(build)
    q, k = query_key(model, positions, dtype)
    tables = model.tables(positions, torch.float32)
    # The vision towers keep float32 tables: their callers cast, if anyone does.
    cast_before = tuple(table.to(dtype) for table in model.tables(positions, dtype))

    before = apply(model, q, k, *cast_before, cast_tables=False)
    inside = apply(model, q, k, *tables, cast_tables=True)
    never = apply(model, q, k, *tables, cast_tables=False)

    for one, other, third in zip(before, inside, never, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert not torch.equal(one, third), "the comparison is empty: rounding changed nothing"


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=lambda d: str(d)[6:])
@every_model
def test_gradients_have_the_bits_of_autograd(build: Build, dtype: torch.dtype) -> None:
    """Of autograd through Hugging Face's function, most of which round each step to q's dtype."""
    model = build()
    positions = real_positions(build)
    tables = model.tables(positions, dtype)
    each = build not in FLOAT32_INSIDE
    ours = functools.partial(apply, model, cast_tables=each, round_each=each)
    gradients = []
    for rotate in (model.rotate, ours):
        rows = [x.detach().requires_grad_() for x in query_key(model, positions, dtype)]
        rotated = rotate(*rows, *tables)
        generator = torch.Generator().manual_seed(4)
        incoming = [torch.randn(x.shape, generator=generator).to(dtype) for x in rotated]
        gradients.append(torch.autograd.grad(rotated, rows, incoming))
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, own, rtol=0, atol=0)
