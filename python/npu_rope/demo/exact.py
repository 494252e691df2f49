"""The yardstick: the rotation in float64 as a product of complex numbers, which shares no formula
with the operator, and the distance of a result from it. A pair (x1, x2) is x1 + i*x2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 14  # pairs at a time: float64 temporaries that stay in cache


def as_pairs(x: Tensor, interleaved: bool) -> Tensor:
    """x[..., R] in any real dtype -> its pairs [..., R/2] in complex128."""
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    return torch.complex(first.double(), second.double())


def rotate(pairs: Tensor, angles: Tensor) -> Tensor:
    return pairs * torch.polar(torch.ones_like(angles), angles)


@dataclass(frozen=True)
class Errors:
    largest: float  # absolute
    rms: float  # as a fraction of the values' own root mean square
    mean_ulp: float  # in units of the last place


def errors(pairs: Tensor, exact: Tensor, dtype: torch.dtype) -> Errors:
    """How far a result that was rounded to dtype lies from the exact pairs, both [pairs].

    A value near 0 has a last place as small as chance makes it: one such value would outweigh
    millions in a mean. No ulp is therefore taken of less than eps times the pair's length.
    """
    eps = torch.finfo(dtype).eps
    sums = torch.zeros(3, dtype=torch.float64)
    largest = torch.zeros((), dtype=torch.float64)
    for part, goal in zip(pairs.split(CHUNK), exact.split(CHUNK), strict=True):
        error = torch.view_as_real(part - goal).abs()
        value = torch.view_as_real(goal).abs()
        value = torch.maximum(value, eps * goal.abs().unsqueeze(-1))
        ulp = eps * torch.exp2(torch.frexp(value).exponent.double() - 1)
        sums += torch.stack((error.square().sum(), goal.abs().square().sum(), (error / ulp).sum()))
        largest = torch.maximum(largest, error.max())
    rms = (sums[0] / sums[1]).sqrt()
    return Errors(largest.item(), rms.item(), sums[2].item() / (2 * exact.numel()))
