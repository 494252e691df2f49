"""What LMDeploy's default Ascend backend launches for one rotary call, as streams of bytes.

By the launches that LMDeploy 0.18 with dlinfer 0.2.7 (partial rotation: 0.2.8) makes:

    D = 128, all rotated          npu_apply_rotary_pos_emb
    a part of D rotated           2 slices, npu_apply_rotary_pos_emb on them, 2 concatenations
    other D                       for q and k each: mul, neg, cat, mul, add
    strided q and k               2 copies before
    MLA's                         2 copies after, too: the caller's tensors are slices

Streams are kind to the default: broadcast rows and strided access cost no extra time beside the
cores that are started for them.
"""

from __future__ import annotations

from benchmarks import model
from benchmarks.chip_tables import Tables
from benchmarks.model import Launch, Prediction, Stream
from benchmarks.shapes import Case

FUSED = "ApplyRotaryPosEmb"
# Of CANN's fused kernel, counted by running it on a simulated core: vector cycles for 64 elements,
# bank conflicts included. Its one output buffer makes V and MTE3 wait for each other.
FUSED_PASSES = 9.0
# How the measured kernels share their work: many more cores where an input is broadcast.
ELEMENTS_A_CORE, ELEMENTS_A_CORE_BROADCAST = 1024, 128
BROADCAST = "Mul, broadcast"


def launches(case: Case, size: int = 2) -> list[Stream]:
    """In order, for 16-bit q and k and tables of their dtype."""
    config, width = case.config, case.rotary
    tables = 2 * case.tokens * width * size
    rows = [case.tokens * heads for heads in case.heads]
    whole = [count * config.dim for count in rows]
    rotated = [count * width for count in rows]
    out = [] if config.rows == "dense" else [copy(n, size) for n in whole]
    if width == 128 or width < config.dim:
        if width < config.dim:
            out += [copy(n, size, "Slice") for n in rotated]
        n = sum(rotated)
        out.append(Stream(FUSED, n * size + tables, n * size, n, FUSED_PASSES, serial=True))
        if width < config.dim:
            out += [copy(n, size, "Concat") for n in whole]
    else:
        for n, heads in zip(rotated, case.heads, strict=True):
            mul = BROADCAST if heads > 1 else "Mul"  # by the tables, over heads
            out += [
                Stream(mul, n * size + tables / 2, n * size, n, 4),
                Stream("Neg", n * size / 2, n * size / 2, n / 2, 3),
                copy(n, size, "Concat"),
                Stream(mul, n * size + tables / 2, n * size, n, 4),
                Stream("Add", 2 * n * size, n * size, n, 4),
            ]
    if config.rows == "mla":
        out += [copy(n, size) for n in whole]
    return out


def copy(elements: int, size: int, name: str = "Copy") -> Stream:
    return Stream(name, elements * size, elements * size, elements, 0)


def predict(
    case: Case, tables: Tables, soc: str, pointwise: Launch, fused: Launch, cores: int, l2: bool
) -> Prediction:
    """Of all launches, one after another; `cores` is what the chip has."""
    out = []
    for stream in launches(case):
        if stream.name == FUSED:
            used, launch = min(cores, case.tokens), fused
        else:
            broadcast = stream.name == BROADCAST
            grain = ELEMENTS_A_CORE_BROADCAST if broadcast else ELEMENTS_A_CORE
            used, launch = round(stream.elements / grain), pointwise
        used = max(1, min(cores, used))
        out.append(model.predict_stream(stream, tables, soc, launch, used, l2))
    return model.total(out)
