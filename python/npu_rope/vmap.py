"""torch.func.vmap: a call over a mapped axis is one call with that axis in the batch.

The mapped axis becomes the batch of 3-D rows, which costs no copy, or the outer part of the batch
of 4-D rows, which costs one only where the two axes can't be viewed as one. Tables that are not
mapped serve every batch. Registered for this one dispatch key, so no other call passes here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from npu_rope.reference import AXES

Axis = int | None  # of the mapped axis; None where a tensor has none


class _MappedCall:
    """Takes operands to their batched form and results back."""

    def __init__(self, count: int, rank: int, layout: str | None) -> None:
        self.count = count
        self.batch, token, head = AXES[layout or ("TND" if rank == 3 else "BSND")]
        self.layout = "BSND" if token < head else "BNSD"

    def _first(self, tensor: Tensor, axis: Axis) -> Tensor:
        """The mapped axis comes first; of size 1 where there is none."""
        return tensor.unsqueeze(0) if axis is None else tensor.movedim(axis, 0)

    def rows(self, tensor: Tensor | None, axis: Axis) -> Tensor | None:
        if tensor is None:
            return None
        tensor = self._first(tensor, axis)
        tensor = tensor.expand(self.count, *tensor.shape[1:])
        return tensor if self.batch is None else tensor.movedim(self.batch + 1, 1).flatten(0, 1)

    def tables(
        self, tables: tuple[Tensor, Tensor], axes: tuple[Axis, Axis], batches: int
    ) -> Iterator[Tensor]:
        """Both in the same form, whichever of them is mapped."""
        is_mapped = axes != (None, None)
        for tensor, axis in zip(tables, axes, strict=True):
            rank = tensor.dim() - (axis is not None)
            if not is_mapped and rank == 2:
                yield tensor
                continue
            tensor = self._first(tensor, axis)
            if is_mapped:
                tensor = tensor.expand(self.count, *tensor.shape[1:])
            if self.batch is not None:
                along = tensor.unsqueeze(1) if rank == 2 else tensor.movedim(self.batch + 1, 1)
                tensor = along.expand(self.count, batches, *along.shape[2:]).flatten(0, 1)
            yield tensor

    def result(self, tensor: Tensor | None) -> Tensor | None:
        """Back, with the mapped axis first."""
        if tensor is None or self.batch is None:
            return tensor
        return tensor.unflatten(0, (self.count, -1)).movedim(1, self.batch + 1)


def _mapped(
    form: Any,  # noqa: ANN401  an operator
    info: Any,  # noqa: ANN401  what vmap says of itself
    in_dims: tuple[Axis, ...],
    q: Tensor | None,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    options: dict[str, Any],
) -> tuple[tuple[Tensor | None, Tensor | None], tuple[Axis, Axis]]:
    q_axis, k_axis, cos_axis, sin_axis = in_dims
    rows, axis = (k, k_axis) if q is None else (q, q_axis)
    if rows is None or rows.dim() - (axis is not None) not in (3, 4):
        form(q, k, cos, sin, **options)  # raises, and says why
    assert rows is not None
    call = _MappedCall(info.batch_size, rows.dim() - (axis is not None), options.get("layout"))
    batches = 1 if call.batch is None else call._first(rows, axis).shape[call.batch + 1]
    results = form(
        call.rows(q, q_axis),
        call.rows(k, k_axis),
        *call.tables((cos, sin), (cos_axis, sin_axis), batches),
        **{**options, "layout": call.layout},
    )
    results = call.result(results[0]), call.result(results[1])
    return results, (None if q is None else 0, None if k is None else 0)


def _functional(form: Any) -> Any:  # noqa: ANN401
    def rule(
        info: Any,  # noqa: ANN401
        in_dims: tuple[Axis, ...],
        *tensors: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        return _mapped(form, info, in_dims, *tensors, options)

    return rule


def _in_place(
    info: Any,  # noqa: ANN401
    in_dims: tuple[Axis, ...],
    *tensors: Any,  # noqa: ANN401
    **options: Any,  # noqa: ANN401
) -> tuple[None, None]:
    for name, rows, axis in zip("qk", tensors, in_dims, strict=False):
        if rows is not None and axis is None:
            raise ValueError(f"{name} is written under vmap, expected vmap to map it")
    results, _ = _mapped(torch.ops.npu_rope.apply, info, in_dims, *tensors, options)
    for rows, axis, result in zip(tensors, in_dims, results, strict=False):
        if rows is not None:
            rows.movedim(axis, 0).copy_(result)
    return None, None


# Once for each process, as every import is.
for _form in (torch.ops.npu_rope.apply, torch.ops.npu_rope.apply_backward):
    torch.library.register_vmap(_form.default, _functional(_form))
torch.library.register_vmap(torch.ops.npu_rope.apply_.default, _in_place)
