"""NPU kernel on simulated cores: what it does, counted; and how many cores few tokens deserve.

Results are checked against the CPU kernel before anything is counted. Counts are exact.
"""

from __future__ import annotations

import argparse

from benchmarks import report, shapes
from benchmarks.bench_model import simulate
from benchmarks.report import Row
from benchmarks.shapes import Case

NOTE = "counted in the trace of the simulated kernel"
CASES = [Case(name, n) for name in ("Qwen2.5-72B", "Qwen3-32B with norm") for n in (1, 8, 64, 4096)]
CASES += [
    Case(name, 4096)
    for name in shapes.MODELS
    if name not in ("Qwen2.5-72B", "Qwen3-32B with norm", "Llama-3.1-70B")
]


def counts(case: Case, style: str | None, soc: str) -> Row:
    trace = simulate(case, style, soc)
    elements = case.tokens * sum(case.heads) * case.rotary
    rows = case.tokens * sum(case.heads)
    # TransDataTo5HD and And work on 128 elements of 16 bits a cycle.
    vector = trace.counters.vector
    rates = {"Sqrt": 0.5, "Div": 0.5, "Brcb": 1 / 8}  # Brcb's are counted as it reads them
    worked = sum(
        c.elements / (2 if c.dst_dtype == "uint16_t" else rates.get(c.api, 1.0)) for c in vector
    )
    conflicts = sum(c.conflicts for c in vector)
    events = [e for core in trace.cores for e in core.events if e.pipe in ("MTE2", "MTE3")]
    sizes = [e.blocks * e.block_bytes for e in events]
    return {
        "case": case.name,
        "style": style or case.config.style,
        "cores": trace.cores_used,
        "bytes / least": trace.gm_bytes / trace.least_gm_bytes,
        "passes": worked / elements,
        "repeats a row": trace.repeats() / rows,
        "conflicts a row": conflicts / rows,
        "bytes in >= 16 KB": sum(size for size in sizes if size >= 16384) / sum(sizes),
        "moves a core": max(c.counters.loads + c.counters.stores for c in trace.cores),
        "UB KB": trace.counters.ub_bytes / 1024,
    }


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--style", choices=shapes.STYLES, help="default: the model's")
    parser.add_argument("--soc", default="Ascend910B1")
    parser.add_argument("--cases", nargs="+", type=shapes.find, metavar="CASE", default=CASES)


def main(args: argparse.Namespace) -> list[Row]:
    cases = report.progress(args.cases, "kernel")
    rows = [counts(case, args.style, args.soc) for case in cases]
    print(f"bfloat16 with float32 tables on {args.soc}, {NOTE}\n{report.table(rows)}")
    if args.cases is CASES:
        print(f"\nwritten: {report.save('kernel', NOTE, rows)}")
    return rows
