"""Times and errors of one case."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .exact import Errors, errors

if TYPE_CHECKING:
    from .cases import Case
    from .models import Pair

SECONDS = 0.9  # of measuring, for each case


@dataclass(frozen=True)
class Row:
    label: str
    seconds: float | None  # of the fastest call; None where the time would say nothing new
    errors: Errors


def measure(case: Case) -> list[Row]:
    """Hugging Face first, then the operator with each way of treating the tables."""

    def operator(tables: Pair, cast_tables: bool) -> Callable[[], Pair]:
        def call() -> Pair:
            return torch.ops.npu_rope.apply(
                case.q, case.k, *tables, cast_tables=cast_tables, **case.options
            )

        return call

    tables = case.cos, case.sin
    timed = {
        "Hugging Face, eager": case.hugging_face,
        "npu_rope, float32 tables": operator(tables, cast_tables=False),
        "npu_rope, tables rounded to bf16": operator(tables, cast_tables=True),
    }
    untimed = {}
    if case.rounded_angles is not None:
        call = operator(case.rounded_angles, cast_tables=True)
        untimed["npu_rope, angles rounded to bf16"] = call

    seconds = dict(zip(timed, fastest(list(timed.values())), strict=True))
    exact = case.exact()
    return [
        Row(label, seconds.get(label), errors(case.pairs(call()), exact, case.q.dtype))
        for label, call in {**timed, **untimed}.items()
    ]


def fastest(calls: list[Callable[[], object]]) -> list[float]:
    """The shortest time of each call; they take turns, so that all meet the same noise."""
    best = [float("inf")] * len(calls)
    for call in calls:  # first calls pay for memory and threads
        call()
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best
