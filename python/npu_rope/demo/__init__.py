"""`python -m npu_rope demo`: the operator on real input, beside Hugging Face's own code.

Two photographs that scikit-image ships go through Hugging Face's image processor and rotary code,
built from the published configurations. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npu_rope import simulator

from . import lmdeploy

if TYPE_CHECKING:
    from .cases import Case
    from .measure import Row

LEGEND = """\
time   the fastest of alternating calls, outputs allocated, tables already made; other load on
       the machine slows Hugging Face's many small steps most, so compare on an idle one
error  distance from float64 over q and k: the largest; root mean square as a share of the
       values'; mean in units of bf16's last place (ulp)
Hugging Face's vision tower computes in float32; its text models round tables, products and sums
to bf16. Rounding the angles before cos and sin is what LMDeploy ships for this vision tower."""
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m npu_rope demo", description=__doc__)
    parser.parse_args(argv)
    begin = time.perf_counter()
    os.environ["HF_HUB_OFFLINE"] = "1"

    progress("loading Hugging Face transformers (several seconds) ...")
    try:
        import skimage
        import transformers

        from . import huggingface
        from .cases import cases
        from .measure import measure
    except ModuleNotFoundError as error:
        progress("")
        print(f"The demo needs {error.name}: pip install 'npu_rope[demo]'", file=sys.stderr)
        return 2

    progress("")
    print("The rotary operator on real input, beside Hugging Face's own code")
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"scikit-image {skimage.__version__}\n"
        f"{processor()}, threads: {torch.get_num_threads()}, load average: {os.getloadavg()[0]:.1f}"
    )
    accurate = True
    progress("preparing the photographs ...")
    for number, case in enumerate(cases(), start=1):
        progress(f"measuring {case.name} ...")
        rows = measure(case)
        progress("")
        print(f"\n{number}. {case.name}\n   {case.about}")
        for name, tensor in (("q", case.q), ("k", case.k), ("cos, sin", case.cos)):
            print(f"   {name:<9}{describe(tensor)}")
        print_table(rows)
        progress("running the Ascend C kernel on simulated cores ...")
        same, launch = simulate(case)
        progress("")
        print(f"   {launch}")
        if not same:
            accurate = False
        if not is_accurate(rows):
            accurate = False
            print("   WRONG: npu_rope with float32 tables is less accurate than Hugging Face")
    progress("running a whole model ...")
    progress("")
    accurate &= huggingface.section() == 0
    progress("running LMDeploy's own layer ...")
    progress("")
    accurate &= lmdeploy.section() == 0
    print(f"\n{LEGEND}\nDone in {time.perf_counter() - begin:.0f} s.")
    return 0 if accurate else 1


def print_table(rows: list[Row]) -> None:
    heads = f"{'time':>10}{'speed':>9}{'max error':>13}{'rms error':>13}{'mean error':>14}"
    print(f"   {'':<34}{heads}")
    for row in rows:
        timing = " " * 19
        if row.seconds is not None:
            timing = f"{row.seconds * 1e3:7.2f} ms{rows[0].seconds / row.seconds:8.1f}x"
        error = row.errors
        distance = f"{error.largest:>13.4f}{error.rms:>12.3%} {error.mean_ulp:>9.3f} ulp"
        print(f"   {row.label:<34}{timing}{distance}")


def simulate(case: Case) -> tuple[bool, str]:
    """The Ascend C kernel on simulated cores: whether its bits are the CPU's, and what it moved."""
    arguments = case.q, case.k, case.cos, case.sin
    expected = torch.ops.npu_rope.apply(*arguments, **case.options)
    run = simulator.apply(*arguments, **case.options)
    same = torch.equal(run.q, expected[0]) and torch.equal(run.k, expected[1])
    trace = run.trace
    return same, (
        f"simulated {trace.soc}: {'the same bits' if same else 'WRONG: OTHER BITS'}, one launch, "
        f"{trace.cores_used} cores, {trace.gm_bytes / 1e6:.1f} MB moved "
        f"({trace.gm_bytes / trace.least_gm_bytes:.3f} of the least)"
    )


def is_accurate(rows: list[Row]) -> bool:
    """float32 tables and arithmetic leave one rounding to bf16, at most; NaN is not accurate."""
    hugging_face, float32_tables = rows[0].errors.rms, rows[1].errors.rms
    return (
        float32_tables <= 1.001 * hugging_face and float32_tables < torch.finfo(torch.bfloat16).eps
    )


def progress(text: str) -> None:
    """One line on a terminal, overwritten by the next; a log gets a line for each step."""
    sys.stdout.flush()
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def describe(x: Tensor) -> str:
    dense = "contiguous" if x.is_contiguous() else f"strided {x.stride()}"
    return f"{tuple(x.shape)} {SHORT[x.dtype]}, {dense}"


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.split(":")[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.machine()
