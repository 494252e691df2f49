"""Four rotations of published models on real positions: what the demo runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import skimage.data
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_position_ids

from . import exact, models
from .exact import as_pairs
from .models import Model, Pair

DTYPE = torch.bfloat16  # what all four models are published in
SEED = 1


@dataclass(frozen=True)
class Case:
    """One call of `npu_rope.apply(q, k, cos, sin, **options)`, its peer and its yardstick."""

    name: str
    about: str
    q: Tensor
    k: Tensor
    cos: Tensor
    sin: Tensor
    options: dict[str, Any]
    hugging_face: Callable[[], Pair]  # the same call, eager, with the tables its model gives it
    angles: Tensor  # float64, one for each pair, with a head axis of 1
    rounded_angles: Pair | None = None  # tables whose angles were rounded before cos and sin

    def exact(self) -> Tensor:
        """Every pair of q and then of k, rotated in float64."""
        interleaved = self.options.get("interleaved", False)
        inputs = (as_pairs(self._rotated_slice(x), interleaved) for x in (self.q, self.k))
        return torch.cat([exact.rotate(pairs, self.angles).flatten() for pairs in inputs])

    def pairs(self, outputs: Pair) -> Tensor:
        """The same of a result (q_out, k_out)."""
        interleaved = self.options.get("interleaved", False)
        interleaved &= not self.options.get("deinterleave", False)
        slices = (self._rotated_slice(x) for x in outputs)
        return torch.cat([as_pairs(x, interleaved).flatten() for x in slices])

    def _rotated_slice(self, x: Tensor) -> Tensor:
        return x[..., : 2 * self.angles.shape[-1]]


def cases() -> Iterator[Case]:
    photographs = [skimage.data.astronaut(), skimage.data.coffee()]
    processed = Qwen2VLImageProcessorPil()(photographs, return_tensors="pt")
    pixels, grid = processed["pixel_values"], processed["image_grid_thw"]

    yield vision_tower(pixels, grid)
    yield multimodal_prompt(grid)
    yield latent_attention()
    yield partial_interleaved()


def vision_tower(pixels: Tensor, grid: Tensor) -> Case:
    def projected(*shape: int) -> Tensor:
        weight = seeded_normal(pixels.shape[1], math.prod(shape[1:]))
        return (pixels @ weight / pixels.shape[1] ** 0.5).to(DTYPE).view(shape)

    model = models.qwen2_5_vl_vision()
    positions = get_vision_position_ids(grid, spatial_merge_size=2)
    sizes = " and ".join(f"{height} x {width}" for _, height, width in grid.tolist())
    about = f"photographs of {sizes} patches; q and k are their pixels, randomly projected"
    rounded = float64_angles(model, positions).float().to(DTYPE).repeat(1, 2)
    return make_case(model, about, positions, projected, (rounded.cos(), rounded.sin()))


def multimodal_prompt(grid: Tensor) -> Case:
    model = models.qwen2_5_vl_text()
    first, second = (grid.prod(dim=1) // 4).tolist()  # the tower merges 2 x 2 patches to a token
    text, image = torch.zeros, torch.ones
    pieces = [text(256), image(first), text(2), image(second), text(148)]
    token_types = torch.cat(pieces).long()[None]
    positions = models.qwen2_5_vl_positions(token_types, grid)
    about = f"a prompt of text and the same photographs, 3-axis positions 0 to {positions.max()}"
    return make_case(model, about, positions, normal_values)


def latent_attention() -> Case:
    positions = torch.arange(32768 - 1024, 32768)[None]
    about = (
        "the last 1024 tokens of a 32 k prompt; q_pe is a slice of each head, k_pe serves all heads"
    )
    return make_case(models.deepseek_v3(), about, positions, normal_values)


def partial_interleaved() -> Case:
    positions = torch.arange(32768 - 1024, 32768)[None]
    about = "the last 1024 tokens of a 32 k prompt; 64 of 128 channels turn, in interleaved pairs"
    return make_case(models.glm4(), about, positions, normal_values)


def make_case(
    model: Model,
    about: str,
    positions: Tensor,
    values: Callable[..., Tensor],
    rounded_angles: Pair | None = None,
) -> Case:
    tokens = positions.shape[:1] if model.layout == "TND" else positions.shape[-2:]
    q, k = model.query_key(tokens, values)
    cos, sin = model.operator_tables(*model.tables(positions, torch.float32))
    own_tables = model.tables(positions, DTYPE)
    return Case(
        name=model.name,
        about=about,
        q=q,
        k=k,
        cos=cos,
        sin=sin,
        options={"layout": model.layout, **model.options},
        hugging_face=lambda: model.rotate(q, k, *own_tables),
        angles=float64_angles(model, positions).unsqueeze(1),
        rounded_angles=rounded_angles,
    )


def float64_angles(model: Model, positions: Tensor) -> Tensor:
    """position * frequency without rounding: both are at most 24 bits long."""
    rotary = model.rotary
    angles = positions.double()[..., None] * rotary.inv_freq.double()
    if hasattr(rotary, "recomposition_frequencies"):  # spread over the image's axes, then doubled
        angles = rotary.recomposition_frequencies(angles).chunk(2, dim=-1)[0]
    return angles


def seeded_normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


def normal_values(*shape: int) -> Tensor:
    return seeded_normal(*shape).to(DTYPE)
