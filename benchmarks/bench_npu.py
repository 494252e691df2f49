"""NPU, measured: the operator, CANN's own kernels, LMDeploy's default and eager, by device events.

The operator's bits are checked before it is timed. "cold": a copy larger than L2 runs before each
call; "warm": nothing does. Best of the rounds. What a peer or this runtime refuses says so in its
row. On the simulated runtime the same code runs, and its times mean nothing:

    python -m npu_rope simulate -- python -m benchmarks npu --quick
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from typing import Any

import npu_rope.reference
import torch
from npu_rope import _C
from torch import Tensor

from benchmarks import bench_model, report, shapes
from benchmarks.report import Row
from benchmarks.shapes import Case, Tensors

QUICK = [
    Case("Qwen2.5-72B", 1),
    Case("Qwen2.5-72B", 64),
    Case("Qwen3-32B with norm", 64),
    Case("Qwen2.5-VL vision", 64),
]
Call = Callable[[], object]


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def form_of(t: Tensors) -> str:
    return ("norm_apply" if t.norm else "apply") + ("_" if t.in_place else "")


def arguments_of(t: Tensors) -> dict[str, Any]:
    return {"q": t.q, "k": t.k, "cos": t.cos, "sin": t.sin, **t.norm, **t.options}


def competitors(t: Tensors) -> dict[str, Call]:
    """On npu tensors; peers take tables of q's dtype, cast beforehand as their users must."""
    ops = torch.ops.npu_rope
    same = [table.to("cpu").to(t.q.dtype).to(t.q.device)[None, :, None] for table in (t.cos, t.sin)]

    def rms_norms(norm: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """q and k, each after a norm of its own launch where the case has one."""
        if not t.norm:
            return t.q, t.k
        return norm(t.q, t.norm["q_weight"]), norm(t.k, t.norm["k_weight"])

    def torch_norm(x: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, t.norm["eps"])

    def cann_norm(x: Tensor, weight: Tensor) -> Tensor:
        return torch.ops.npu.npu_rms_norm(x.contiguous(), weight, t.norm["eps"])[0]

    def eager() -> tuple[Tensor, Tensor]:
        q, k = rms_norms(torch_norm)
        cos, sin = same[0][0], same[1][0]
        return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin

    def rotary_mul() -> list[Tensor]:
        return [torch.ops.npu.npu_rotary_mul(x[None], *same) for x in rms_norms(cann_norm)]

    def fused() -> object:
        q, k = rms_norms(cann_norm)
        return torch.ops.npu.npu_apply_rotary_pos_emb(
            q.contiguous()[None], k.contiguous()[None], *same, "BSND"
        )

    def lmdeploy() -> object:
        from dlinfer.vendor.ascend import torch_npu_ops

        q, k = rms_norms(cann_norm)
        return torch_npu_ops.apply_rotary_pos_emb(q, k, same[0][0, :, 0], same[1][0, :, 0])

    own = {f"npu_rope.{form_of(t)}": lambda: getattr(ops, form_of(t))(**arguments_of(t))}
    if t.options:  # the peers rotate halves only
        return own
    return {
        **own,
        "npu_apply_rotary_pos_emb": fused,
        "npu_rotary_mul": rotary_mul,
        "LMDeploy's default": lmdeploy,
        "eager": eager,
    }


def on_npu(t: Tensors) -> Tensors:
    """Slices of one storage stay slices of one."""
    storages: dict[int, Tensor] = {}

    def move(x: Tensor) -> Tensor:
        flat = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
        base = storages.setdefault(x.untyped_storage().data_ptr(), flat.npu())
        return base.as_strided(x.size(), x.stride(), x.storage_offset())

    norm = {name: move(x) if isinstance(x, Tensor) else x for name, x in t.norm.items()}
    return Tensors(*map(move, t.args()), t.options, t.in_place, norm)


def check(case: Case) -> None:
    """The device's bits are the reference's, in place or not. After a norm they may be those of a
    factor off by 2^-22: no document gives the last bit of a chip's root and quotient."""
    host = shapes.make(case)
    device = on_npu(host)
    got = getattr(torch.ops.npu_rope, form_of(host))(**arguments_of(device))
    reference = npu_rope.reference.norm_apply if host.norm else npu_rope.reference.apply
    want = reference(**arguments_of(host))
    for result, expected in zip(got or (device.q, device.k), want, strict=True):
        if torch.equal(result.cpu(), expected):
            continue
        unit, wanted = torch.finfo(expected.dtype).eps, expected.double()
        bound = unit * wanted.abs() + max(unit, 2**-21) * wanted.abs().amax(-1, keepdim=True)
        if not host.norm or ((result.cpu().double() - wanted).abs() > bound).any():
            raise SystemExit(f"{case.name}: wrong result on the NPU")


class Clock:
    """Device events around a call."""

    def __init__(self, l2_bytes: int, rounds: int) -> None:
        self.rounds = rounds
        self.flush = [torch.empty(l2_bytes, dtype=torch.int8, device="npu") for _ in range(2)]

    def best(self, call: Call, cold: bool) -> float:
        best = float("inf")
        call()
        for _ in range(self.rounds):
            if cold:
                self.flush[0].copy_(self.flush[1])
            begin, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.npu.synchronize()
            best = min(best, begin.elapsed_time(end) * 1e3)
        return best


def rows_of(case: Case, soc: str, clock: Clock) -> Iterator[Row]:
    check(case)
    tensors = on_npu(shapes.make(case))
    for name, call in competitors(tensors).items():
        row: Row = {"case": case.name, "what": name, "soc": soc.removeprefix("Ascend")}
        try:
            cold, warm = clock.best(call, cold=True), clock.best(call, cold=False)
        except (RuntimeError, ImportError, AttributeError, TypeError) as error:
            yield {**row, "note": str(error).strip().splitlines()[0][:60]}
            continue
        row |= {"cold us": cold, "warm us": warm, "GB/s cold": tensors.bytes / cold / 1e3}
        if name.startswith("npu_rope"):
            model = bench_model.row(case, None, soc, warm=False)
            row |= {"model us": model["us"], "inside": model["us"][0] <= cold <= model["us"][1]}
        yield row


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", type=shapes.find, metavar="CASE")
    parser.add_argument("--full", action="store_true", help="every model, tokens and tp")
    parser.add_argument("--quick", action="store_true", help="three small cases, few rounds")
    parser.add_argument("--rounds", type=int, default=30)


def main(args: argparse.Namespace) -> list[Row]:
    try:
        import torch_npu  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"npu: expected torch_npu and an NPU, got: {error}") from error
    simulated = "npu_simulated" in os.environ.get("NPU_ROPE_NPU_LIBRARY", "")
    soc = torch.npu.get_device_name()
    rounds = 2 if args.quick else args.rounds
    clock = Clock(_C.find_chip(soc).l2_bytes * 5 // 4, rounds)
    cases = args.cases or (QUICK if args.quick else shapes.cases(args.full))
    rows: list[Row] = []
    with torch.inference_mode():
        for case in report.progress(cases, "npu"):
            rows += rows_of(case, soc, clock)
    note = "simulated runtime: these times mean nothing" if simulated else f"measured on {soc}"
    print(f"{note}\n{report.table(rows)}")
    if not simulated and not args.quick:
        print(f"written: {report.save(f'npu-{soc}', note, rows)}")
    return rows
