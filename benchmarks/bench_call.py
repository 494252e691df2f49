"""What a call on npu tensors costs the host, beside an empty operator that enqueues as much.

    python -m npu_rope simulate -- python benchmarks/bench_call.py      without an NPU
    python benchmarks/bench_call.py                                     on one

The empty operator takes the same arguments, allocates the same outputs and enqueues a function that
does nothing; what a call costs beyond it is the operator's own work: checks, geometry, the plan's
cache, the launch parameters. Both take turns in bursts that fit torch_npu's task queue, with the
device idle before each; kernels of the simulated runtime don't run. Times are µs of the calling
thread's CPU time a call, the best burst's, in inference mode. The last column has a limit.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import npu_rope  # noqa: F401  the operators
import torch
import torch_npu
from torch.utils import cpp_extension

LIMIT = 3.0  # µs
BURST = 200

# (tokens, q heads, k heads, head_dim, keyword arguments)
CALLS = {
    "decode, full tables": (8, 64, 8, 128, {}),
    "decode, half tables": (8, 64, 8, 128, {"rotary_dim": 128}),
    "vision tower": (4096, 16, 16, 80, {}),
}


def empty_operators() -> None:
    """Builds and registers bench_call::apply and apply_."""
    folder = Path(torch_npu.__file__).parent
    cpp_extension.load(
        name="npu_rope_bench_call",
        sources=[str(Path(__file__).with_suffix(".cpp"))],
        extra_include_paths=[
            str(folder / "include"),
            str(folder / "include/third_party/acl/inc"),
        ],
        extra_cflags=["-O2", "-std=c++20"],
        extra_ldflags=[f"-L{folder / 'lib'}", "-ltorch_npu"],
        is_python_module=False,
    )


def burst(call: Callable[[], object]) -> float:
    torch.npu.synchronize()
    start = time.thread_time_ns()  # of this thread: the others run the queue and the device
    for _ in range(BURST):
        call()
    return (time.thread_time_ns() - start) / BURST / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    if "npu_simulated" in os.environ.get("NPU_ROPE_NPU_LIBRARY", ""):
        ctypes.CDLL("libascendcl.so").npu_rope_sim_run_kernels(0)
    empty_operators()
    ours, empty = torch.ops.npu_rope, torch.ops.npu_rope_bench_call
    slowest = 0.0
    print(f"{'':<22}{'form':<8}{'call':>8}{'empty':>8}{'own':>8}   µs")
    for name, (tokens, q_heads, k_heads, head_dim, options) in CALLS.items():
        width = head_dim // 2 if options else head_dim
        q = torch.empty(tokens, q_heads, head_dim, dtype=torch.bfloat16, device="npu")
        k = torch.empty(tokens, k_heads, head_dim, dtype=torch.bfloat16, device="npu")
        cos = torch.empty(tokens, width, dtype=torch.bfloat16, device="npu")
        args = (q, k, cos, torch.empty_like(cos))
        for form in ("apply", "apply_"):
            one = partial(getattr(ours, form).default, *args, **options)
            other = partial(getattr(empty, form).default, *args, **options)
            with torch.inference_mode():
                times = [(burst(one), burst(other)) for _ in range(rounds)]
            call, nothing = (min(column) for column in zip(*times, strict=True))
            slowest = max(slowest, call - nothing)
            print(f"{name:<22}{form:<8}{call:>8.2f}{nothing:>8.2f}{call - nothing:>8.2f}")
    verdict = "within" if slowest <= LIMIT else "ABOVE"
    print(f"own work of a call: at most {slowest:.2f} µs, {verdict} the limit of {LIMIT} µs")
    return int(slowest > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
