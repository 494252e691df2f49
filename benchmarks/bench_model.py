"""NPU, modelled: this kernel's launch and LMDeploy's default chain on a chip, case by case."""

from __future__ import annotations

import argparse
import copy
import functools

import torch
from npu_rope import _C, simulator

from benchmarks import chain, chip_tables, model, plots, report, shapes, validation, witness
from benchmarks.report import Row
from benchmarks.shapes import Case

NOTE = (
    "modelled, not measured: the simulated kernel's trace costed by public figures "
    "(benchmarks/model.py), its error in validation.json"
)
CHIPS = ("Ascend910B1", "Ascend910B2", "Ascend910B3", "Ascend910B4")


def simulate(case: Case, style: str | None, soc: str) -> simulator.Trace:
    """As LMDeploy's backend calls it. Chips with as many cores of one architecture run alike, so
    only one of them is simulated."""
    chip = _C.find_chip(soc)
    alike = [c for c in _C.chips() if (c.arch, c.cores) == (chip.arch, chip.cores)]
    trace = copy.copy(_simulate(case, style, alike[0].name))
    trace.soc = soc
    return trace


@functools.lru_cache(maxsize=2)
def _simulate(case: Case, style: str | None, soc: str) -> simulator.Trace:
    """Checked against the operator on the CPU."""
    made = shapes.make(case, style=style)
    expected = torch.ops.npu_rope.apply(*made.args(), **made.options)
    launch = simulator.apply_ if made.in_place else simulator.apply
    run = launch(*made.args(), soc=soc, events=True, **made.options)
    for got, wanted in zip((run.q, run.k), expected, strict=True):
        if not torch.equal(got, wanted):
            raise SystemExit(f"{case.name}: the simulated kernel differs from the CPU's result")
    return run.trace


def row(case: Case, style: str | None, soc: str, l2: bool) -> Row:
    tables = chip_tables.tables(soc)
    trace = simulate(case, style, soc)
    pointwise, fused = validation.fit(), validation.fit_rotary()
    own = model.predict(trace, tables, fused, l2)
    cores = _C.find_chip(soc).cores
    default = chain.predict(case, tables, soc, pointwise, fused, cores, l2)
    return {
        "case": case.name,
        "style": style or case.config.style,
        "soc": soc.removeprefix("Ascend"),
        "memory": "L2" if l2 else "HBM",
        "cores": own.cores,
        "MB": trace.gm_bytes / 1e6,
        "bound us": own.bound,
        "work us": own.work,
        "ratio": own.ratio,
        "busiest": own.busiest,
        "V us": own.busy.get("V", 0.0),
        "V/bound": own.busy.get("V", 0.0) / own.bound,
        "launch us": own.launch,
        "total us": own.total,
        "default launches": len(chain.launches(case)),
        "default us": default.total,
        "speedup": default.total / own.total,
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", type=shapes.find, metavar="CASE",
                        help="'MODEL[ tpN], TOKENS', e.g. 'Qwen2.5-72B tp8, 64'")  # fmt: skip
    parser.add_argument("--full", action="store_true", help="every model, tokens and tp")
    parser.add_argument("--quick", action="store_true", help="a few cases, 910B1 from HBM")
    parser.add_argument("--socs", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--styles", nargs="+", choices=shapes.STYLES, help="default: the model's")


def main(args: argparse.Namespace) -> list[Row]:
    cases = args.cases or shapes.cases(args.full)
    socs, memories = args.socs, (False, True)
    if args.quick:
        cases, socs, memories = cases[:4], socs[:1], (False,)
    print(
        f"How wrong the model is on ops that were measured:\n{report.table(validation.summary())}"
    )
    launch = validation.fit_rotary()
    print(f"launch {launch.once} us and {launch.core} us a core, fitted\n")
    rows = []
    for case in report.progress(cases, "model"):
        for style in args.styles or [None]:
            for soc in socs:
                for l2 in memories if soc == socs[0] else (False,):
                    rows.append(row(case, style, soc, l2))
    print(f"{NOTE}\n{report.table(rows)}")
    if not args.quick and not args.cases:
        keep(rows)
    return rows


def keep(rows: list[Row]) -> None:
    """The results, what speaks for them, and pictures."""
    checks = list(validation.rows())
    pictures = plots.model(rows), plots.validation(checks)
    files = (
        report.save("model", NOTE, rows),
        report.save("validation", "op times measured by msopmodeling's authors", checks),
        report.save("witness", "cycles of single instructions, beside pypto's", witness.rows()),
    )
    print("\nwritten:", *files, *pictures, sep="\n  ")
