"""One launch's pipes: a Chrome trace (Perfetto opens it) and a picture. Modelled, not measured."""

from __future__ import annotations

import argparse
import json

from npu_rope import _C

from benchmarks import chip_tables, model, pipes, plots, report, scalar_cost, shapes
from benchmarks.bench_model import simulate


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", type=shapes.find, help="'MODEL[ tpN], TOKENS'")
    parser.add_argument("--style", choices=shapes.STYLES, help="default: the model's")
    parser.add_argument("--soc", default="Ascend910B1")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--l2", action="store_true", help="everything lies in L2")
    parser.add_argument("--end", choices=[law.name for law in model.ENDS], default="slow",
                        help="of what is known of the chip")  # fmt: skip
    parser.add_argument("--us", type=float, default=12.0, help="shown in the picture")


def main(args: argparse.Namespace) -> None:
    trace = simulate(args.case, args.style, args.soc)
    tables = chip_tables.tables(args.soc)
    law = next(law for law in model.ENDS if law.name == args.end)
    steps = model.steps_of(trace, args.core, tables, law, scalar_cost.of_trace(trace))
    traffic = model.traffic_of(trace, args.l2)
    us = model.run_core(steps, tables, args.soc, law, trace.cores_used, traffic)
    events = [
        {"name": step.name, "ph": "X", "pid": args.core, "tid": step.pipe, "ts": step.begin,
         "dur": step.end - step.begin, "args": {"visible": step.visible, "waits": list(step.waits),
         "line": f"rope_kernel.h:{event.line}", "repeats": event.repeats,
         "bytes": event.blocks * event.block_bytes, "conflicts": event.conflicts}}
        for step, event in zip(steps[1::2], trace.cores[args.core].events, strict=True)
    ]  # fmt: skip
    where = "L2" if args.l2 else "HBM"
    stem = f"timeline {args.case.name} {where}".replace(",", "").replace(" ", "_").replace("/", "_")
    chip_tables.CACHE.mkdir(parents=True, exist_ok=True)
    chrome = chip_tables.CACHE / f"{stem}.trace.json"
    chrome.write_text(json.dumps({"traceEvents": events}))
    core = trace.cores[args.core].core
    title = f"{args.case.name} tokens, core {core} of {trace.cores_used} on {args.soc}, {where}"
    title += f", {law.name} end"
    mhz = _C.find_chip(args.soc).mhz
    rows = [
        {"pipe": pipe, "busy us": time, "cycles": time * mhz, "of the core's time": time / us}
        for pipe, time in pipes.busy(steps).items()
    ]
    print(f"{title}: {us:.2f} us, modelled, not measured\n{report.table(rows)}")
    print(f"written: {plots.timeline(steps, title, stem, args.us)} and {chrome}")
