"""Sample calls of norm_apply: a rotation's sample, and norms before it."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from samples import DTYPES, Sample, any_sample, samples
from torch import Tensor


class Call:
    """A sample's rotation with norms before it."""

    def __init__(
        self,
        sample: Sample,
        which: str = "qk",
        weight_dtype: torch.dtype = torch.bfloat16,
        eps: float = 1e-6,
        weight_offset: float = 0.0,
    ) -> None:
        self.sample, self.which, self.eps, self.weight_offset = sample, which, eps, weight_offset
        self.weight_dtype = torch.float64 if sample.dtype == torch.float64 else weight_dtype

    def __repr__(self) -> str:
        return f"Call({', '.join(f'{name}={value}' for name, value in vars(self).items())})"

    @property
    def options(self) -> dict[str, Any]:
        return {"eps": self.eps, "weight_offset": self.weight_offset, **self.sample.options}

    def tensors(self) -> tuple[Tensor | None, ...]:
        q, k, cos, sin = self.sample.tensors()
        generator = torch.Generator().manual_seed(self.sample.seed + 1)
        values = torch.randn(2, self.sample.head_dim, generator=generator, dtype=torch.float64)
        weights = (
            values[i].to(self.weight_dtype) if name in self.which else None
            for i, name in enumerate("qk")
        )
        return (q, k, *weights, cos, sin)


def calls() -> list[Call]:
    """Each feature of the rotation once, with different norms."""
    norms = [{}, {"which": "q", "weight_offset": 1.0}, {"which": "k", "weight_dtype": torch.float}]
    return [Call(sample, **norms[i % 3]) for i, sample in enumerate(samples())]


@st.composite
def any_call(draw: st.DrawFn, rows: tuple[str, ...] | None = None) -> Call:
    sample = draw(any_sample(rows=rows))
    sample.round_each = draw(st.booleans())
    return Call(
        sample,
        draw(st.sampled_from(["qk", "qk", "q", "k", ""])),
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from([1e-6, 1e-5, 0.5])),
        draw(st.sampled_from([0.0, 1.0, -0.25])),
    )
