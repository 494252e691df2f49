"""What LMDeploy's default Ascend backend launches for one rotary call, as streams of bytes.

By the launches that LMDeploy 0.18 with dlinfer 0.2.7 (partial rotation: 0.2.8) makes:

    norms of every head           2 slices, 2 RmsNorms before
    D = 128, all rotated          npu_apply_rotary_pos_emb
    a part of D rotated           2 slices, npu_apply_rotary_pos_emb on them, 2 concatenations
    other D                       for q and k each: mul, neg, cat, mul, add
    strided q and k               2 copies before
    MLA's                         2 copies after, too: the caller's tensors are slices

What one of them writes the next reads from L2, as far as it fits. Streams are kind to the default:
broadcast rows and strided access cost no extra time beside the cores that are started for them,
and scalar work is free but for the one figure that was measured (FUSED_LAUNCH).
"""

from __future__ import annotations

from benchmarks import model
from benchmarks.chip_tables import Tables
from benchmarks.model import Cache, Law, Prediction, Stream
from benchmarks.shapes import Case

FUSED = "ApplyRotaryPosEmb"
# Of CANN's fused kernel, counted by running it on a simulated core: vector cycles for 64 elements,
# bank conflicts included. Its one output buffer makes V and MTE3 wait for each other.
FUSED_PASSES = 9.0
# One token of 16 + 2 heads takes 2.58 us on a 910B2, in a graph (a public profile of PaddleOCR-VL);
# less its transfers and its vector work.
FUSED_LAUNCH = 2.06
# Of a RmsNorm in 16 bit, at least: two casts, the squares, their sums, two products.
RMS_NORM_PASSES = 6.0
# How the measured kernels share their work: many more cores where an input is broadcast.
ELEMENTS_A_CORE, ELEMENTS_A_CORE_BROADCAST = 1024, 128

# Microseconds between two launches, by public profiles: eager, and within a static graph.
EAGER_GAP, GRAPH_GAP = (30.0, 50.0), (0.0, 1.19)


def launches(case: Case, size: int = 2) -> list[Stream]:
    """In order, for 16-bit q and k and tables of their dtype."""
    config, width = case.config, case.rotary
    table = case.tokens * width * size
    tables = {"cos": table, "sin": table}
    out: list[Stream] = []
    now = {}  # the tensor that holds q and k, its elements
    for name, heads in zip("qk", case.heads, strict=True):
        whole = case.tokens * heads * config.dim
        now[name] = (name, whole)
        if config.norm:
            out.append(copy(name, f"{name} dense", whole, size, "Slice"))
            normed = {f"{name} normed": whole * size}
            out.append(Stream("RmsNorm", {f"{name} dense": whole * size}, normed, whole,
                              RMS_NORM_PASSES, cores_of(whole)))  # fmt: skip
            now[name] = (f"{name} normed", whole)
        elif config.rows != "dense":
            out.append(copy(name, f"{name} dense", whole, size))
            now[name] = (f"{name} dense", whole)
    if width == 128 or width < config.dim:
        parts = dict(now)
        if width < config.dim:
            for name, (source, whole) in now.items():
                part = whole * width // config.dim
                out.append(copy(source, f"{name} part", part, size, "Slice"))
                parts[name] = (f"{name} part", part)
        rows = {source: elements * size for source, elements in parts.values()}
        n = sum(elements for _, elements in parts.values())
        out.append(Stream(FUSED, rows | tables, rows, n, FUSED_PASSES, case.tokens, True,
                          FUSED_LAUNCH))  # fmt: skip
        if width < config.dim:
            for name, (source, whole) in now.items():
                part, rotated = parts[name]
                reads = {part: rotated * size, source: (whole - rotated) * size}
                joined = {f"{name} out": whole * size}
                out.append(Stream("Concat", reads, joined, whole, 0, cores_of(whole)))
                now[name] = (f"{name} out", whole)
    else:
        for (name, (source, n)), heads in zip(now.items(), case.heads, strict=True):
            x = {source: n * size}
            half = {f"{name} minus": n * size // 2}
            swapped = {f"{name} swapped": n * size}
            products = {f"{name} by cos": n * size}, {f"{name} by sin": n * size}
            by = "Mul, broadcast" if heads > 1 else "Mul"  # by the tables, over heads
            cores = cores_of(n, broadcast=heads > 1)
            out += [
                Stream(by, x | {"cos": table}, products[0], n, 4, cores),
                Stream("Neg", {source: n * size // 2}, half, n / 2, 3, cores_of(n // 2)),
                Stream("Concat", {source: n * size // 2} | half, swapped, n, 0, cores_of(n)),
                Stream(by, swapped | {"sin": table}, products[1], n, 4, cores),
                Stream("Add", products[0] | products[1], {f"{name} out": n * size}, n, 4,
                       cores_of(n)),
            ]  # fmt: skip
            now[name] = (f"{name} out", n)
    if config.rows == "mla":
        out += [copy(source, f"{name} back", n, size) for name, (source, n) in now.items()]
    return out


def cores_of(elements: int, broadcast: bool = False) -> int:
    return max(1, round(elements / (ELEMENTS_A_CORE_BROADCAST if broadcast else ELEMENTS_A_CORE)))


def copy(source: str, to: str, elements: int, size: int, name: str = "Copy") -> Stream:
    moved = elements * size
    return Stream(name, {source: moved}, {to: moved}, elements, 0, cores_of(elements))


def predict(case: Case, tables: Tables, soc: str, law: Law, warm: bool) -> Prediction:
    """Of all launches, one after another. warm: q, k and the tables were just written."""
    streams = launches(case)
    inputs: dict[str, float] = {}
    for stream in streams:
        for name in ("q", "k", "cos", "sin"):
            if name in stream.reads:
                inputs[name] = max(inputs.get(name, 0), stream.reads[name])
    cache = Cache(soc, inputs if warm else None)
    return model.total([model.predict_stream(s, tables, soc, law, cache) for s in streams])
