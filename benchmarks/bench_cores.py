"""NPU kernel: the plan's number of cores beside fewer and more of them, modelled at both ends."""

from __future__ import annotations

import argparse

import torch
from npu_rope import _C, simulator

from benchmarks import chip_tables, model, report, scalar, scalar_cost, shapes
from benchmarks.model import ENDS
from benchmarks.report import Row

NOTE = (
    "modelled, not measured: microseconds of launches that differ in the cores they may take, from "
    "L2. Regret: how much longer the plan's own takes than the best at that end"
)
SOC = "Ascend910B1"
LIMITS = (*range(1, 25), 26, 28, 32, 36, 40, 44, 48)
MOST_TOKENS = 512  # beyond, all cores have work enough


def trace_with(made: shapes.Tensors, cores: int) -> simulator.Trace:
    """The launch on a chip that has so many cores."""
    chip = _C.find_chip(SOC)
    chip.cores = cores
    geometry = scalar.geometry(made)
    plan = _C.plan_rope(geometry, chip)
    q, k = (torch.empty(t.shape, dtype=t.dtype) for t in (made.q, made.k))
    if made.in_place:
        q, k = made.q, made.k
    raw = _C.simulate_rope(
        plan,
        *made.args(),
        q,
        k,
        soc=SOC,
        events=True,
        **{name: made.norm[name] for name in made.norm if name != "eps"},
    )
    return simulator.Trace(geometry, plan, raw)


def row(case: shapes.Case) -> Row:
    """Scalar work is as fitted: a count would be of the plan's own cut alone."""
    made, tables = shapes.make(case), chip_tables.tables(SOC)
    own = trace_with(made, _C.find_chip(SOC).cores)
    scalar_work = scalar_cost.fitted(own.geometry.dtype.name, own.geometry.style.name)
    times: dict[int, tuple[float, ...]] = {}
    for limit in LIMITS:
        trace = trace_with(made, limit)
        if trace.cores_used not in times:
            times[trace.cores_used] = tuple(
                model.predict(trace, tables, law, scalar_work, warm=True).total for law in ENDS
            )
    taken = times[own.cores_used]
    best = [min(us[end] for us in times.values()) for end in range(len(ENDS))]
    regret = [us / least - 1 for us, least in zip(taken, best, strict=True)]
    fairest = min(times, key=lambda n: max(times[n][e] / best[e] for e in range(len(ENDS))))
    return {
        "case": case.name,
        "cores": own.cores_used,
        "us": taken,
        "regret %": tuple(100 * share for share in regret),
        "best cores": tuple(
            min(times, key=lambda n, e=end: times[n][e]) for end in range(len(ENDS))
        ),
        "fairest cores": fairest,
        "its us": times[fairest],
        "its regret %": tuple(100 * (times[fairest][e] / best[e] - 1) for e in range(len(ENDS))),
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", type=shapes.find, metavar="CASE",
                        help="'MODEL[ tpN], TOKENS'; default: those of few tokens")  # fmt: skip


def main(args: argparse.Namespace) -> list[Row]:
    cases = args.cases or [case for case in shapes.cases() if case.tokens <= MOST_TOKENS]
    rows = [row(case) for case in report.progress(cases, "cores")]
    print(f"{NOTE}\n{report.table(rows)}")
    return rows
