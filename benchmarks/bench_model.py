"""NPU, modelled: this kernel's launch and LMDeploy's default chain on a chip, case by case."""

from __future__ import annotations

import argparse
import copy
import functools

import torch
from npu_rope import _C, simulator

from benchmarks import chain, chip_tables, model, plots, report, scalar_cost, shapes, validation
from benchmarks import witness as second_opinion
from benchmarks.model import ENDS, FAST, SLOW, Prediction
from benchmarks.report import Row
from benchmarks.shapes import Case

NOTE = (
    "modelled, not measured: the simulated kernel's trace costed by a law fitted to public "
    "measurements (benchmarks/model.py, its errors in validation.json). Every time is a range, "
    "from the fast to the slow end of what is known of the chip; of `times faster` the first "
    "figure sets our slow end against the default's fast one, `on one chip` both at one end"
)
CHIPS = ("Ascend910B1", "Ascend910B2", "Ascend910B3", "Ascend910B4")
Range = tuple[float, float]


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
    operator = "norm_apply" if made.norm else "apply"
    named = {"q": made.q, "k": made.k, "cos": made.cos, "sin": made.sin, **made.norm}
    expected = getattr(torch.ops.npu_rope, operator)(**named, **made.options)
    launch = getattr(simulator, operator + ("_" if made.in_place else ""))
    run = launch(**named, soc=soc, events=True, **made.options)
    for got, wanted in zip((run.q, run.k), expected, strict=True):
        if not torch.equal(got, wanted):
            raise SystemExit(f"{case.name}: the simulated kernel differs from the CPU's result")
    return run.trace


def predict(trace: simulator.Trace, warm: bool) -> tuple[Prediction, Prediction]:
    """At both ends."""
    tables, scalar = chip_tables.tables(trace.soc), scalar_cost.of_trace(trace)
    fast, slow = (model.predict(trace, tables, law, scalar, warm) for law in ENDS)
    return fast, slow


def row(case: Case, style: str | None, soc: str, warm: bool) -> Row | None:
    """None where the inputs were just written and do not fit L2."""
    trace = simulate(case, style, soc)
    if warm and not model.fits_l2(trace):
        return None
    fast, slow = predict(trace, warm)
    tables = chip_tables.tables(soc)
    theirs = [chain.predict(case, tables, soc, law, warm).total for law in ENDS]
    launches = len(chain.launches(case))
    one_chip = [their / own.total for their, own in zip(theirs, (fast, slow), strict=True)]

    def saved(gap: Range) -> Range:
        return (launches - 1) * gap[0], (launches - 1) * gap[1]

    return {
        "case": case.name,
        "style": style or case.config.style,
        "soc": soc.removeprefix("Ascend"),
        "from": "L2" if warm else "HBM",
        "cores": slow.cores,
        "MB": trace.gm_bytes / 1e6,
        "us": (fast.total, slow.total),
        "launch us": (fast.launch, slow.launch),
        "bytes us": (fast.bytes_alone, slow.bytes_alone),
        "V us": slow.busy["V"],
        "S us": (fast.busy["S"], slow.busy["S"]),
        "binds": fast.binds if fast.binds == slow.binds else f"{fast.binds}, {slow.binds}",
        "default launches": launches,
        "default us": (theirs[0], theirs[1]),
        "times faster": (theirs[0] / slow.total, theirs[1] / fast.total),
        "on one chip": (min(one_chip), max(one_chip)),
        "graph gaps saved us": saved(chain.GRAPH_GAP),
        "eager gaps saved us": saved(chain.EAGER_GAP),
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", type=shapes.find, metavar="CASE",
                        help="'MODEL[ tpN], TOKENS', e.g. 'Qwen2.5-72B tp8, 64'")  # fmt: skip
    parser.add_argument("--full", action="store_true", help="every model, tokens and tp")
    parser.add_argument("--quick", action="store_true", help="a few cases on a 910B1")
    parser.add_argument("--socs", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--styles", nargs="+", choices=shapes.STYLES, help="default: the model's")


def main(args: argparse.Namespace) -> list[Row]:
    cases = args.cases or shapes.cases(args.full)
    socs = args.socs
    if args.quick:
        cases, socs = cases[:4], socs[:1]
    checks = validation.rows()
    print(f"How wrong the law is on times that others measured:\n"
          f"{report.table(validation.summary(checks))}")  # fmt: skip
    print(f"its ends:\n  {FAST}\n  {SLOW}\n")
    rows: list[Row] = []
    for case in report.progress(cases, "model"):
        for style in args.styles or [None]:
            for soc in socs[:1] if case.tokens in shapes.LONG else socs:
                found = [row(case, style, soc, warm) for warm in (True, False)]
                rows += [one for one in found if one]
    print(f"{NOTE}\n{report.table(rows)}")
    if not args.quick and not args.cases:
        keep(rows, checks)
    return rows


def keep(rows: list[Row], checks: list[Row]) -> None:
    """The results, what speaks for them, and pictures."""
    pictures = plots.model(rows), plots.validation(checks)
    files = (
        report.save("model", NOTE, rows),
        report.save("validation", "the law beside times that others measured", checks),
        report.save("witness", "cycles of single instructions, beside pypto's",
                    second_opinion.rows()),
    )  # fmt: skip
    print("\nwritten:", *files, *pictures, sep="\n  ")
