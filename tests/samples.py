"""Sample calls of the operator: one source for every test that runs over its argument space."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LAYOUTS = ("TND", "BSND", "BNSD", "SBND")
STYLES = {
    "half": {},
    "interleaved": {"interleaved": True},
    "deinterleave": {"interleaved": True, "deinterleave": True},
}


@dataclasses.dataclass
class Sample:
    """One call. Views are made anew from plain numbers, so that every test owns its tensors."""

    layout: str = "TND"
    batch: int = 1
    tokens: int = 5
    q_heads: int = 3
    k_heads: int = 2
    head_dim: int = 16
    rotary_dim: int | None = None  # None: head_dim
    rotary_offset: int = 0
    style: str = "half"
    dtype: torch.dtype = torch.bfloat16
    table_dtype: torch.dtype = torch.float32
    half_tables: bool = False
    cast_tables: bool = True
    round_each: bool = False
    rows: str = "contiguous"  # or packed, sliced, expanded, transposed, strided
    table_rank: int = 2
    odd_strides: bool = False  # axes of size 1, the last too, have a stride that means nothing
    broadcast: str = ""  # which of the table's axes are 1: letters of "BS"
    seed: int = 0

    @property
    def width(self) -> int:
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def options(self) -> dict[str, Any]:
        named = {"layout": self.layout, "cast_tables": self.cast_tables, **STYLES[self.style]}
        if self.round_each:
            named["round_each"] = True
        if self.half_tables or self.rotary_dim is not None:
            named["rotary_dim"] = self.width
        if self.rotary_offset:
            named["rotary_offset"] = self.rotary_offset
        return named

    def _shape(self, heads: int) -> list[int]:
        size = {"B": self.batch, "S": self.tokens, "T": self.tokens, "N": heads, "D": self.head_dim}
        return [size[axis] for axis in self.layout]

    def _rows(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        def values(shape: list[int]) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)

        head_axis = self.layout.index("N")
        q_shape, k_shape = self._shape(self.q_heads), self._shape(self.k_heads)
        if self.rows == "packed":  # q, k and v of every token side by side
            heads = self.q_heads + 2 * self.k_heads
            packed = values(self._shape(heads))
            q, k, _ = packed.split([self.q_heads, self.k_heads, self.k_heads], dim=head_axis)
            return q, k
        if self.rows == "sliced":  # the last columns of wider rows, as in MLA
            q, k = (values([*shape[:-1], shape[-1] + 12]) for shape in (q_shape, k_shape))
            return q[..., 12:], k[..., 12:]
        if self.rows == "transposed":  # heads outermost in memory
            q, k = (
                values([shape[head_axis], *shape[:head_axis], *shape[head_axis + 1 :]])
                for shape in (q_shape, k_shape)
            )
            return q.movedim(0, head_axis), k.movedim(0, head_axis)
        if self.rows == "strided":  # rows that are not dense: every second element
            q, k = (values([*shape[:-1], shape[-1] * 2]) for shape in (q_shape, k_shape))
            return q[..., ::2], k[..., ::2]
        if self.rows == "expanded":  # one token for all: only as input
            token = self.layout.replace("S", "T").index("T")
            q, k = (
                values([*shape[:token], 1, *shape[token + 1 :]]).expand(shape)
                for shape in (q_shape, k_shape)
            )
            return q, k
        return values(q_shape), values(k_shape)

    def _tables(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        batch = 1 if "B" in self.broadcast else self.batch
        tokens = 1 if "S" in self.broadcast else self.tokens
        width = self.width // 2 if self.half_tables else self.width
        size = {"B": batch, "S": tokens, "T": tokens, "N": 1, "D": width}
        axes = self.layout
        if self.table_rank == 2:
            axes = "SD"
        elif self.table_rank == len(self.layout) - 1:
            axes = self.layout.replace("N", "")
        # Every entry its own angle: a kernel that mixes up entries or partners is seen.
        angles = torch.rand([size[axis] for axis in axes], generator=generator, dtype=torch.float64)
        angles = angles * 200 - 100
        return angles.cos().to(self.table_dtype), angles.sin().to(self.table_dtype)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        made = (*self._rows(generator), *self._tables(generator))
        return tuple(_odd(tensor) for tensor in made) if self.odd_strides else made


def _odd(tensor: Tensor) -> Tensor:
    strides = [
        7 if size == 1 else stride
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ]
    return tensor.as_strided(tensor.shape, strides, tensor.storage_offset())


def samples() -> Iterator[Sample]:
    """A short list that touches each feature of the contract once."""
    for style in STYLES:
        for dtype in DTYPES:
            yield Sample(style=style, dtype=dtype)
        yield Sample(style=style, half_tables=True, cast_tables=False)
        yield Sample(style=style, dtype=torch.float16, round_each=True)
        yield Sample(style=style, head_dim=72, rotary_dim=36, rotary_offset=12, rows="packed")
    for layout in LAYOUTS[1:]:
        yield Sample(layout=layout, batch=2, table_rank=3)
        yield Sample(layout=layout, batch=2, table_rank=4, broadcast="B", rows="transposed")
        yield Sample(layout=layout, batch=2, table_rank=2, rows="packed")
    for table_dtype in DTYPES:
        yield Sample(dtype=torch.float16, table_dtype=table_dtype, cast_tables=False)
    yield Sample(table_rank=3, broadcast="S")
    yield Sample(rows="sliced", head_dim=64, k_heads=1, style="deinterleave")
    yield Sample(rows="strided")
    yield Sample(head_dim=2, half_tables=True, odd_strides=True)  # tables of width 1
    yield Sample(tokens=1, q_heads=1, rows="strided", odd_strides=True)
    yield Sample(layout="BNSD", tokens=1, k_heads=1, table_rank=4, broadcast="B", odd_strides=True)
    yield Sample(rows="expanded")
    yield Sample(tokens=0)
    yield Sample(tokens=1, q_heads=64, k_heads=8, head_dim=128)
    yield Sample(q_heads=0)
    yield Sample(k_heads=0)
    yield Sample(q_heads=200, k_heads=100, head_dim=2, tokens=2)


ROTARY = [2, 4, 6, 16, 34, 36, 40, 64, 72, 80, 96, 126, 128, 192, 256]


@st.composite
def any_sample(draw: st.DrawFn, rows: tuple[str, ...] | None = None) -> Sample:
    """Any call that the contract allows, sizes kept small but off every vector's edge."""
    layout = draw(st.sampled_from(LAYOUTS))
    rank = len(layout)
    rotary = draw(st.sampled_from(ROTARY))
    before, after = draw(st.tuples(*[st.sampled_from([0, 0, 1, 2, 8, 63])] * 2))
    head_dim = before + rotary + after
    dtype = draw(st.sampled_from([*DTYPES, torch.float64]))
    tables = [*DTYPES, torch.float64] if dtype == torch.float64 else DTYPES
    kinds = rows or ("contiguous", "packed", "sliced", "transposed", "strided", "expanded")
    return Sample(
        layout=layout,
        batch=draw(st.sampled_from([0, 1, 2, 3])) if rank == 4 else 1,
        tokens=draw(st.sampled_from([0, 1, 2, 7, 33])),
        q_heads=draw(st.sampled_from([0, 1, 2, 5])),
        k_heads=draw(st.sampled_from([0, 1, 3])),
        head_dim=head_dim + head_dim % 2,
        rotary_dim=rotary,
        rotary_offset=before,
        style=draw(st.sampled_from(list(STYLES))),
        dtype=dtype,
        table_dtype=draw(st.sampled_from(tables)),
        half_tables=draw(st.booleans()),
        cast_tables=draw(st.booleans()),
        round_each=draw(st.booleans()),
        rows=draw(st.sampled_from(kinds)),
        table_rank=draw(st.sampled_from([2, 3, 4] if rank == 4 else [2, 3])),
        broadcast=draw(st.sampled_from(["", "B", "S", "BS"])),
        odd_strides=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
