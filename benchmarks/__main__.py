"""What the operator costs: on this CPU measured, on an NPU measured, on a chip modelled."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

# Before torch is imported: a thread that moves between cores loses its caches.
os.environ.setdefault("OMP_PROC_BIND", "true")
os.environ.setdefault("OMP_PLACES", "cores")
if "npu_simulated" in os.environ.get("NPU_ROPE_NPU_LIBRARY", ""):
    # An operator that the simulated runtime lacks fails at its call and not later, for all others.
    os.environ.setdefault("TASK_QUEUE_ENABLE", "0")

COMMANDS = {
    "cpu": ("bench_cpu", "CPU kernel against its limit, eager and torch.compile: measured here"),
    "kernel": ("bench_kernel", "NPU kernel on simulated cores: what it does, counted"),
    "scalar": ("scalar", "NPU kernel: the scalar instructions of a core, counted"),
    "model": ("bench_model", "NPU kernel and LMDeploy's default on 910B1 to B4: modelled"),
    "cores": ("bench_cores", "the plan's number of cores beside others: modelled at both ends"),
    "cannbench": ("bench_cannbench", "CANN-Bench's rotary task: its cases, score and times"),
    "npu": ("bench_npu", "NPU kernel and its peers on an NPU: measured by device events"),
    "timeline": ("timeline", "the pipes of one core: Chrome trace and picture, modelled"),
}
ALL = ("kernel", "model", "cpu")  # what needs no NPU


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    modules = {}
    for command, (module, what) in COMMANDS.items():
        modules[command] = importlib.import_module(f"benchmarks.{module}")
        modules[command].arguments(commands.add_parser(command, help=what, description=what))
    commands.add_parser(
        "all", help=f"{', '.join(ALL)} with their defaults (without a command, too)"
    )
    args = parser.parse_args(argv or ["all"])
    for command in ALL if args.command == "all" else (args.command,):
        print(f"\n== {command}: {COMMANDS[command][1]}", flush=True)
        chosen = parser.parse_args([command]) if args.command == "all" else args
        modules[command].main(chosen)


if __name__ == "__main__":
    main(sys.argv[1:])
