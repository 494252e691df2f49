"""The Ascend C kernel on simulated cores: the very source that CANN compiles, run on this CPU with
the chip's rules enforced.

    >>> run = npu_rope.simulator.apply(q, k, cos, sin, soc="Ascend910B1")
    >>> run.q, run.k                      # the bits that the operator gives on every backend
    >>> run.trace.gm_bytes, run.trace.cores_used

It counts and knows no time; `python -m benchmarks timeline` costs what it records by a model of the
chip. What the simulator refuses and what it cannot know is in csrc/simulator/ascendc/README.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Generic

import torch
from torch import Tensor

from npu_rope import _C
from npu_rope._C import SimulationError
from npu_rope.ops import K, Q

__all__ = ["Run", "SimulationError", "Trace", "apply", "apply_", "norm_apply", "norm_apply_"]


class Trace:
    """What one launch did, counted; instruction by instruction where events were recorded.

    Attributes:
        geometry: the launch as checked numbers.
        plan: how the cores shared the work (``cores``, ``ub_bytes``, ``params``, ``boxes(core)``).
        counters: sums over all cores (``gm_bytes_read``, ``gm_bytes_written``, ``loads``,
            ``stores``, and ``vector``: calls, repeats, elements and bank conflicts of each
            instruction and dtype).
        cores: the same for each core, with ``events`` in program order and ``dependencies(event)``.
    """

    def __init__(self, geometry: Any, plan: Any, raw: Any) -> None:  # noqa: ANN401  types of _C
        self.geometry = geometry
        self.plan = plan
        self.soc: str = raw.chip
        self.cores = raw.cores
        self.counters = raw.totals()

    @property
    def cores_used(self) -> int:
        return len(self.cores)

    @property
    def gm_bytes(self) -> int:
        """Bytes moved between global memory and the cores, both ways."""
        return self.counters.gm_bytes_read + self.counters.gm_bytes_written

    @property
    def least_gm_bytes(self) -> int:
        """q and k in once and out once (in place: what is rotated or normalised), every entry of
        the tables and weights in once."""
        g = self.geometry
        size = {_C.DType.float32: 4}
        rows = g.batch * g.tokens
        columns = sum(
            heads * (g.rotary_dim if in_place and not norm else g.head_dim)
            for heads, in_place, norm in (
                (g.q_heads, g.q_in_place, g.norm.q),
                (g.k_heads, g.k_in_place, g.norm.k),
            )
        )
        width = g.rotary_dim // 2 if g.half_tables else g.rotary_dim
        entries = sum(
            (g.batch if table.batch else 1) * (g.tokens if table.token else 1) * width
            for table in (g.cos, g.sin)
        )
        weights = (g.norm.q + g.norm.k) * g.head_dim * size.get(g.norm.weight_dtype, 2)
        tables = entries * size.get(g.table_dtype, 2)
        return 2 * rows * columns * size.get(g.dtype, 2) + tables + weights

    def repeats(self, *instructions: str) -> int:
        """Repeats of these vector instructions (all of them by default), over all cores."""
        counts = self.counters.vector
        return sum(c.repeats for c in counts if not instructions or c.api in instructions)


@dataclasses.dataclass(frozen=True)
class Run(Generic[Q, K]):
    """Results and trace of a simulated launch."""

    q: Q
    k: K
    trace: Trace


def _simulate(
    q: Q,
    k: K,
    cos: Tensor,
    sin: Tensor,
    q_out: Q,
    k_out: K,
    **how: Any,  # noqa: ANN401
) -> Run[Q, K]:
    geometry, plan, raw = _C.simulate(q, k, cos, sin, q_out, k_out, **how)
    return Run(q_out, k_out, Trace(geometry, plan, raw))


def apply(
    q: Q,
    k: K,
    cos: Tensor,
    sin: Tensor,
    *,
    soc: str = "Ascend910B1",
    transpose: bool = False,
    events: bool = False,
    threads: int = 0,
    layout: str | None = None,
    rotary_dim: int | None = None,
    rotary_offset: int = 0,
    interleaved: bool = False,
    deinterleave: bool = False,
    cast_tables: bool = True,
    round_each: bool = False,
) -> Run[Q, K]:
    """:func:`npu_rope.apply` by the Ascend C kernel on simulated cores of the chip ``soc``.

    Args:
        q, k, cos, sin, and options: as for :func:`npu_rope.apply`, on the CPU. Rows that are not
            dense are copied, as the operator does; the trace is of the kernel alone.
        soc: the chip, by the name that CANN gives it.
        transpose: rotate as :func:`npu_rope.apply_backward` does.
        events: record every instruction (``trace.cores[i].events``), for a model of time.
        threads: host threads to run the cores on; 0 for as many as there are. Results and trace
            do not depend on it.

    Raises:
        SimulationError: the kernel did what the chip would refuse, or do by luck alone.
        ValueError, TypeError: as for the operator; also an unknown chip or one without a kernel.
    """
    q_out, k_out = (None if t is None else torch.empty(t.shape, dtype=t.dtype) for t in (q, k))
    return _simulate(
        q,
        k,
        cos,
        sin,
        q_out,
        k_out,
        transpose=transpose,
        soc=soc,
        events=events,
        threads=threads,
        layout=layout,
        rotary_dim=rotary_dim,
        rotary_offset=rotary_offset,
        interleaved=interleaved,
        deinterleave=deinterleave,
        cast_tables=cast_tables,
        round_each=round_each,
    )


def apply_(
    q: Q,
    k: K,
    cos: Tensor,
    sin: Tensor,
    *,
    soc: str = "Ascend910B1",
    events: bool = False,
    threads: int = 0,
    layout: str | None = None,
    rotary_dim: int | None = None,
    rotary_offset: int = 0,
    interleaved: bool = False,
    deinterleave: bool = False,
    cast_tables: bool = True,
    round_each: bool = False,
) -> Run[Q, K]:
    """The same in place, over q and k, as :func:`npu_rope.apply_`."""
    return _simulate(
        q,
        k,
        cos,
        sin,
        q,
        k,
        soc=soc,
        events=events,
        threads=threads,
        layout=layout,
        rotary_dim=rotary_dim,
        rotary_offset=rotary_offset,
        interleaved=interleaved,
        deinterleave=deinterleave,
        cast_tables=cast_tables,
        round_each=round_each,
    )


def norm_apply(
    q: Q,
    k: K,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    weight_offset: float = 0.0,
    soc: str = "Ascend910B1",
    events: bool = False,
    threads: int = 0,
    layout: str | None = None,
    rotary_dim: int | None = None,
    rotary_offset: int = 0,
    interleaved: bool = False,
    deinterleave: bool = False,
    cast_tables: bool = True,
    round_each: bool = False,
) -> Run[Q, K]:
    """:func:`npu_rope.norm_apply` by the Ascend C kernel, as :func:`apply` here."""
    q_out, k_out = (None if t is None else torch.empty(t.shape, dtype=t.dtype) for t in (q, k))
    return _simulate(
        q,
        k,
        cos,
        sin,
        q_out,
        k_out,
        q_weight=q_weight,
        k_weight=k_weight,
        eps=eps,
        weight_offset=weight_offset,
        soc=soc,
        events=events,
        threads=threads,
        layout=layout,
        rotary_dim=rotary_dim,
        rotary_offset=rotary_offset,
        interleaved=interleaved,
        deinterleave=deinterleave,
        cast_tables=cast_tables,
        round_each=round_each,
    )


def norm_apply_(
    q: Q,
    k: K,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    eps: float,
    weight_offset: float = 0.0,
    soc: str = "Ascend910B1",
    events: bool = False,
    threads: int = 0,
    layout: str | None = None,
    rotary_dim: int | None = None,
    rotary_offset: int = 0,
    interleaved: bool = False,
    deinterleave: bool = False,
    cast_tables: bool = True,
    round_each: bool = False,
) -> Run[Q, K]:
    """The same in place, over q and k, as :func:`npu_rope.norm_apply_`."""
    return _simulate(
        q,
        k,
        cos,
        sin,
        q,
        k,
        q_weight=q_weight,
        k_weight=k_weight,
        eps=eps,
        weight_offset=weight_offset,
        soc=soc,
        events=events,
        threads=threads,
        layout=layout,
        rotary_dim=rotary_dim,
        rotary_offset=rotary_offset,
        interleaved=interleaved,
        deinterleave=deinterleave,
        cast_tables=cast_tables,
        round_each=round_each,
    )
