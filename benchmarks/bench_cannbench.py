"""CANN-Bench's task ApplyRotaryPosEmb: its twenty cases, checked, and scored by its own rule.

Without an NPU the kernel runs on simulated cores and its time is modelled, from a cold L2 as the
suite measures; with one, the same cases are measured. Case 13 is the suite's of today, 1 x 500001 x
1 x 64; as it was when the baselines were measured, 7 x 500001 x 7 x 128 twice, it is 25 GB, and
runs here with 501 tokens in place of 500001 ("13 scaled"), for its bits alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from npu_rope import _C, simulator
from torch import Tensor

from benchmarks import bench_model, measured_rows, report
from benchmarks.measured_rows import SOC
from benchmarks.report import Row

NOTE = (
    "modelled, not measured, for a 910B2 from a cold L2; measured and published times and the "
    "hardware bound are CANN-Bench's; score = (published - bound) / ((us - bound) + "
    "(published - bound)); of the law: what bytes and launch take, of the time, at each end"
)
SUITE_13 = (1, 500001, 1, 64)
# By case: the range that q and k are drawn from.
RANGES = (
    (-1, 1), (-2, 2), (-3, 3), (-10, 10), (-100, 100), (-1000, 1000), (-0.1, 0.1), (-1, 2),
    (-5, 10), (-50, 100), (-65504, 65504), (-88, 88), (-math.inf, math.inf), (math.nan, math.nan),
    (0, 0), (-0.5, 0.5), (-1, 3), (-1000, 1000), (-0.2, 0.2), (-3, 6),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    number: int
    shape: tuple[int, int, int, int]  # of q and of k
    dtype: str
    layout: int  # 0: BSND, 1: BNSD
    mode: str
    scaled: bool = False

    @property
    def name(self) -> str:
        return f"{self.number}{' scaled' if self.scaled else ''}"

    @property
    def attributes(self) -> dict[str, Any]:
        return {"layout": self.layout, "rotaryMode": self.mode}


def cases() -> list[Case]:
    out = []
    for op in measured_rows.rows("ApplyRotaryPosEmb"):
        case = Case(op.case, op.shapes[0], op.dtype, op.attributes["layout"],
                    op.attributes["rotaryMode"])  # fmt: skip
        if op.case == 13:
            batch, _, heads, dim = case.shape
            out.append(dataclasses.replace(case, shape=SUITE_13))
            out.append(dataclasses.replace(case, shape=(batch, 501, heads, dim), scaled=True))
        else:
            out.append(case)
    return out


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k and half tables [S, D/2] of random angles, all of one dtype."""
    generator = torch.Generator().manual_seed(case.number)
    dtype = getattr(torch, case.dtype)
    low, high = RANGES[case.number - 1]
    rows = []
    for _ in range(2):
        x = torch.empty(case.shape)
        if math.isinf(low):  # large numbers of both signs, some of them infinite
            x.uniform_(-6e4, 6e4, generator=generator)
            x.view(-1)[::997] = math.inf
            x.view(-1)[500::997] = -math.inf
        elif math.isnan(low):
            x.fill_(math.nan)
        else:
            x.uniform_(low, high, generator=generator)
        rows.append(x.to(dtype))
    tokens = case.shape[2 if case.layout else 1]
    angles = torch.rand(tokens, case.shape[-1] // 2, generator=generator, dtype=torch.float64)
    angles = (2 * angles - 1) * math.pi
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return rows[0], rows[1], cos, sin


def golden(x: Tensor, cos: Tensor, sin: Tensor, layout: int, mode: str) -> Tensor:
    """The task's definition: y = x * cos + rotate(x) * sin, 16-bit types computed in fp32 and
    rounded once, fp32 (and fp64) in their own."""
    compute = x.dtype if x.dtype == torch.float64 else torch.float32
    head_axis = 1 if layout else 2
    # [S, D/2] or [B, S, D/2] to q's rank
    c, s = (t.to(compute) if t.dim() == 3 else t.to(compute)[None] for t in (cos, sin))
    c, s = c.unsqueeze(head_axis), s.unsqueeze(head_axis)
    wide = x.to(compute)
    out = torch.empty_like(x)
    if mode == "half":
        first, second = (slice(0, x.shape[-1] // 2), slice(x.shape[-1] // 2, None))
    else:
        first, second = slice(0, None, 2), slice(1, None, 2)
    a, b = wide[..., first], wide[..., second]
    out[..., first] = (a * c + -b * s).to(x.dtype)
    out[..., second] = (b * c + a * s).to(x.dtype)
    return out


def same(got: Tensor, wanted: Tensor) -> bool:
    """Equal, NaN where NaN is."""
    return torch.equal(got.nan_to_num(), wanted.nan_to_num()) and torch.equal(
        got.isnan(), wanted.isnan()
    )


def interface() -> Any:  # noqa: ANN401  the function of cann_bench/
    path = Path(__file__).parent / "cann_bench" / "cann_bench" / "__init__.py"
    spec = importlib.util.spec_from_file_location("npu_rope_cann_bench", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.apply_rotary_pos_emb


def score(case: Case, us: float) -> float:
    base, bound = measured_rows.rope_scores()[case.number]
    return (base - bound) / ((us - bound) + (base - bound))


def row_of(case: Case) -> Row:
    """What is known without a time."""
    op = next(r for r in measured_rows.rows("ApplyRotaryPosEmb") if r.case == case.number)
    published, bound = measured_rows.rope_scores()[case.number]
    return {
        "case": case.name,
        "shape": "x".join(map(str, case.shape)),
        "dtype": case.dtype,
        "order": f"{('BSND', 'BNSD')[case.layout]} {case.mode}",
        "measured us": op.us if case.number != 13 else None,
        "published us": None if case.scaled else published,
        "bound us": None if case.scaled else bound,
    }


def simulated(case: Case) -> Row:
    q, k, cos, sin = inputs(case)
    run = simulator.apply(q, k, cos, sin, soc=SOC, events=not case.scaled, rotary_dim=q.shape[-1],
                          layout=("BSND", "BNSD")[case.layout],
                          interleaved=case.mode == "interleaved")  # fmt: skip
    right = all(
        same(got, golden(x, cos, sin, case.layout, case.mode))
        for x, got in ((q, run.q), (k, run.k))
    )
    row = row_of(case) | {"right": right}
    if case.scaled:
        return row
    ends = bench_model.predict(run.trace, warm=False)
    allowed = [end.launch + end.bytes_alone for end in ends]
    times = ends[0].total, ends[1].total
    shares = [a / us for a, us in zip(allowed, times, strict=True)]
    binds = dict.fromkeys(end.binds for end in ends)
    return row | {
        "cores": ends[0].cores,
        "us": times,
        "of the law": (min(shares), max(shares)),
        "V us": ends[1].busy["V"],
        "S us": (ends[0].busy["S"], ends[1].busy["S"]),
        "binds": ", ".join(binds),
        "score": (score(case, times[1]), score(case, times[0])),
        "times faster": tuple(row["published us"] / us for us in reversed(times)),
    }


def measured(case: Case, clock: Any) -> Row:  # noqa: ANN401  bench_npu.Clock
    call = interface()
    tensors = inputs(case)
    device = [tensor.npu() for tensor in tensors]
    got = call(*device, **case.attributes)
    q, k, cos, sin = tensors
    right = all(
        same(y.cpu(), golden(x, cos, sin, case.layout, case.mode))
        for x, y in zip((q, k), got, strict=True)
    )
    row = row_of(case) | {"right": right}
    if case.scaled:
        return row
    us = clock.best(lambda: call(*device, **case.attributes), cold=True)
    faster = row["published us"] / us
    return row | {"us": us, "score": score(case, us), "times faster": faster}


def mean(rows: list[Row]) -> Row:
    """Of speed-ups and scores, at both ends."""
    timed = [row for row in rows if "us" in row]

    def means(key: str) -> Any:  # noqa: ANN401  a number or a range
        values = [row[key] for row in timed]
        if not isinstance(values[0], tuple):
            return statistics.mean(values)
        return tuple(statistics.mean(end) for end in zip(*values, strict=True))

    right = sum(row["right"] for row in rows)
    return {"case": "mean", "shape": f"{right} of {len(rows)} right",
            "score": means("score"), "times faster": means("times faster")}  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", type=int, metavar="N", help="1 to 20")
    parser.add_argument("--rounds", type=int, default=30, help="on an NPU")


def on_npu() -> bool:
    """Whether an NPU is here, a real one."""
    if importlib.util.find_spec("torch_npu") is None:
        return False
    import torch_npu  # noqa: F401

    return torch.npu.is_available()


def main(args: argparse.Namespace) -> list[Row]:
    chosen = [case for case in cases() if not args.cases or case.number in args.cases]
    if on_npu():
        from benchmarks.bench_npu import Clock

        soc = torch.npu.get_device_name()
        clock = Clock(_C.find_chip(soc).l2_bytes * 5 // 4, args.rounds)
        note, stem = f"measured on {soc}", f"cannbench-{soc}"
        rows = [measured(case, clock) for case in report.progress(chosen, "cannbench")]
    else:
        note, stem = NOTE, "cannbench"
        rows = [simulated(case) for case in report.progress(chosen, "cannbench")]
    rows.append(mean(rows))
    print(f"{note}\n{report.table(rows)}")
    if not args.cases:
        print(f"written: {report.save(stem, note, rows)}")
    if not all(row.get("right", True) for row in rows):
        sys.exit("cannbench: a wrong result")
    return rows
