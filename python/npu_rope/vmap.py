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

    def result(self, tensor: Tensor | None, batches: int) -> Tensor | None:
        """Back, with the mapped axis first."""
        if tensor is None or self.batch is None:
            return tensor
        return tensor.unflatten(0, (self.count, batches)).movedim(1, self.batch + 1)


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
    results = call.result(results[0], batches), call.result(results[1], batches)
    return results, (None if q is None else 0, None if k is None else 0)


def _functional(form: Any) -> Any:  # noqa: ANN401
    def rule(
        info: Any,  # noqa: ANN401
        in_dims: tuple[Axis, ...],
        *tensors: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        q, k, *weights, cos, sin = tensors
        q_axis, k_axis, *weight_axes, cos_axis, sin_axis = in_dims
        if any(axis is not None for axis in weight_axes):  # a call has one weight for all rows
            return _one_by_one(form, info, in_dims, tensors, options)

        def rotate(q: Any, k: Any, cos: Any, sin: Any, **options: Any) -> Any:  # noqa: ANN401
            return form(q, k, *weights, cos, sin, **options)

        axes = q_axis, k_axis, cos_axis, sin_axis
        return _mapped(rotate, info, axes, q, k, cos, sin, options)

    return rule


def _one_by_one(
    form: Any,  # noqa: ANN401
    info: Any,  # noqa: ANN401
    in_dims: tuple[Axis, ...],
    tensors: tuple[Tensor | None, ...],
    options: dict[str, Any],
) -> tuple[tuple[Tensor | None, Tensor | None], tuple[Axis, Axis]]:
    if info.batch_size == 0:
        raise ValueError("vmap maps a weight over no slices, expected at least one")
    calls = [
        form(
            *(
                t if t is None or axis is None else t.select(axis, i)
                for t, axis in zip(tensors, in_dims, strict=True)
            ),
            **options,
        )
        for i in range(info.batch_size)
    ]
    q, k = (None if rows[0] is None else torch.stack(rows) for rows in zip(*calls, strict=True))
    return (q, k), (None if q is None else 0, None if k is None else 0)


def _in_place(form: Any) -> Any:  # noqa: ANN401
    functional = _functional(form)

    def rule(
        info: Any,  # noqa: ANN401
        in_dims: tuple[Axis, ...],
        *tensors: Any,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> tuple[None, None]:
        written = list(zip("qk", tensors, in_dims, strict=False))
        for name, rows, axis in written:
            if rows is not None and axis is None:
                raise ValueError(f"{name} is written under vmap, expected vmap to map it")
        results, _ = functional(info, in_dims, *tensors, **options)
        for (_, rows, axis), result in zip(written, results, strict=True):
            if rows is not None:
                rows.movedim(axis, 0).copy_(result)
        return None, None

    return rule


# Once for each process, as every import is.
_ops = torch.ops.npu_rope
for _form in (_ops.apply, _ops.apply_backward, _ops.norm_apply):
    torch.library.register_vmap(_form.default, _functional(_form))
for _form, _written in ((_ops.apply, _ops.apply_), (_ops.norm_apply, _ops.norm_apply_)):
    torch.library.register_vmap(_written.default, _in_place(_form))
