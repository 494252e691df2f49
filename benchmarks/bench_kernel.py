"""What the Ascend C kernel does on simulated cores: counts, and a model of the time they take.

    python benchmarks/bench_kernel.py              # every shape, half style
    python benchmarks/bench_kernel.py --style interleaved --dtype float16
    python benchmarks/bench_kernel.py --decode     # the number of cores for few tokens

Results are checked against the CPU kernel before anything is counted. Counts are exact. Times are
modelled from public figures (none was measured on a chip): a core's instructions by
npu_rope.simulator, which lets no instruction wait longer than the kernel's flags make it; cores
that start one after another; and memory that all share.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from npu_rope import _C, simulator

LAUNCH_US = 1.9  # an Ascend C kernel before its first core starts
START_US = 0.07  # one core after the one before it
HBM_BYTES_PER_US = 1.6e6
STYLES = {
    "half": {},
    "interleaved": {"interleaved": True},
    "deinterleave": {"interleaved": True, "deinterleave": True},
}


@dataclasses.dataclass
class Shape:
    name: str
    tokens: int
    q_heads: int
    k_heads: int
    dim: int
    rotary: int = 0  # 0: dim; else the last columns of a head
    k_row: int = 0  # 0: dim; else the columns of a row of k


SHAPES = [
    Shape("prefill, D 128", 4096, 64, 8, 128),
    Shape("prefill, D 128, 28+4 heads", 4096, 28, 4, 128),
    Shape("vision, D 80", 4096, 16, 16, 80),
    Shape("vision, D 72", 4096, 16, 16, 72),
    Shape("MLA, 64 of 192 and of 576", 4096, 128, 1, 192, rotary=64, k_row=576),
    Shape("D 64", 4096, 32, 8, 64),
    Shape("D 256", 4096, 16, 8, 256),
    Shape("64 tokens", 64, 64, 8, 128),
    Shape("8 tokens", 8, 64, 8, 128),
    Shape("1 token", 1, 64, 8, 128),
]


def run(
    shape: Shape, style: str, dtype: torch.dtype, table_dtype: torch.dtype, soc: str
) -> simulator.Run:
    """In place, checked against the operator's CPU kernel."""
    torch.manual_seed(0)
    rotary = shape.rotary or shape.dim
    q = torch.randn(shape.tokens, shape.q_heads, shape.dim).to(dtype)[..., -rotary:]
    k = torch.randn(shape.tokens, shape.k_heads, shape.k_row or shape.dim).to(dtype)[..., -rotary:]
    angles = torch.rand(shape.tokens, rotary, dtype=torch.float64) * 100
    cos, sin = angles.cos().to(table_dtype), angles.sin().to(table_dtype)
    expected = torch.ops.npu_rope.apply(q, k, cos, sin, **STYLES[style])
    result = simulator.apply_(q, k, cos, sin, soc=soc, events=True, **STYLES[style])
    for got, wanted in zip((result.q, result.k), expected, strict=True):
        assert torch.equal(got, wanted), f"{shape.name}: the simulated kernel differs from the CPU"
    return result


def microseconds(trace: simulator.Trace) -> float:
    """The launch, the cores' start, and then the slowest core or the memory."""
    mhz = _C.find_chip(trace.soc).mhz
    core = max(
        max((end for _, end, _ in trace.timeline(number)), default=0.0)
        for number in range(trace.cores_used)
    )
    busy = max(core / mhz, trace.gm_bytes / HBM_BYTES_PER_US)
    return LAUNCH_US + START_US * trace.cores_used + busy


def report(shape: Shape, result: simulator.Run) -> str:
    trace = result.trace
    elements = result.q.numel() + result.k.numel()
    rows = elements // result.q.shape[-1]
    double = ("TransDataTo5HD", "uint16_t")  # 128 elements a cycle
    worked = sum(
        c.elements / (2 if (c.api, c.dst_dtype) == double else 1) for c in trace.counters.vector
    )
    conflicts = sum(c.conflicts for c in trace.counters.vector)
    events = [e for core in trace.cores for e in core.events if e.pipe in ("MTE2", "MTE3")]
    sizes = [e.blocks * e.block_bytes for e in events]
    long = sum(size for size in sizes if size >= 16384) / sum(sizes)
    most = max(c.counters.loads + c.counters.stores for c in trace.cores)
    return (
        f"{shape.name:28}{trace.cores_used:6}{trace.gm_bytes / trace.least_gm_bytes:8.3f}"
        f"{worked / elements:8.2f}{trace.repeats() / rows:9.2f}{conflicts / rows:10.3f}"
        f"{long:8.0%}{most:8}{microseconds(trace):9.1f}"
        f"{trace.gm_bytes / HBM_BYTES_PER_US:8.1f}"
    )


HEADER = (
    f"{'':28}{'cores':>6}{'bytes':>8}{'passes':>8}{'repeats':>9}{'conflicts':>10}"
    f"{'>=16K':>8}{'moves':>8}{'us':>9}{'HBM us':>8}\n"
    f"{'':28}{'':6}{'/ least':>8}{'':8}{'a row':>9}{'a row':>10}"
    f"{'bytes':>8}{'a core':>8}{'model':>9}{'bound':>8}"
)


def decode_curve(args: argparse.Namespace) -> None:
    """What the plan takes when it may use 1, 2, 3, ... cores."""
    for tokens in (1, 8, 64):
        shape = Shape(f"{tokens} tokens", tokens, 64, 8, 128)
        q = torch.randn(tokens, 64, 128).to(args.dtype)
        k = torch.randn(tokens, 8, 128).to(args.dtype)
        cos, sin = torch.randn(2, tokens, 128).to(args.table_dtype)
        geometry = _C.geometry_of(q, k, cos, sin, q, k, **STYLES[args.style])
        chosen = _C.plan_rope(geometry, _C.find_chip(args.soc)).cores
        print(
            f"\n{shape.name}, 64+8 heads: {chosen} cores\n{'cores':>7}{'grid':>9}{'us, model':>11}"
        )
        seen = set()
        for cores in range(1, 49):
            chip = _C.find_chip(args.soc)
            chip.cores = cores
            plan = _C.plan_rope(geometry, chip)
            if plan.cores in seen:
                continue
            seen.add(plan.cores)
            tensors = (q, k, cos, sin, q.clone(), k.clone())
            raw = _C.simulate_rope(plan, *tensors, soc=args.soc, events=True)
            trace = simulator.Trace(geometry, plan, raw)
            grid = f"{plan.params.token_parts}x{plan.params.head_parts}"
            print(f"{plan.cores:7}{grid:>9}{microseconds(trace):11.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--style", choices=STYLES, default="half")
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.bfloat16)
    parser.add_argument(
        "--table-dtype", type=lambda name: getattr(torch, name), default=torch.float32
    )
    parser.add_argument("--soc", default="Ascend910B1")
    parser.add_argument("--decode", action="store_true", help="the curve over the number of cores")
    args = parser.parse_args()
    if args.decode:
        decode_curve(args)
        return
    print(f"{args.style}, {args.dtype} with {args.table_dtype} tables, {args.soc}\n{HEADER}")
    for shape in SHAPES:
        result = run(shape, args.style, args.dtype, args.table_dtype, args.soc)
        print(report(shape, result), flush=True)


if __name__ == "__main__":
    main()
