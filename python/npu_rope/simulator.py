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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from npu_rope import _C
from npu_rope._C import SimulationError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from npu_rope.ops import Options

__all__ = ["Run", "SimulationError", "Trace", "apply", "apply_"]


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
        """q and k in once and out once (in place: what is rotated), every table entry in once."""
        g = self.geometry
        size = {_C.DType.float32: 4}
        rows = g.batch * g.tokens
        columns = sum(
            heads * (g.rotary_dim if in_place else g.head_dim)
            for heads, in_place in ((g.q_heads, g.q_in_place), (g.k_heads, g.k_in_place))
        )
        width = g.rotary_dim // 2 if g.half_tables else g.rotary_dim
        entries = sum(
            (g.batch if table.batch else 1) * (g.tokens if table.token else 1) * width
            for table in (g.cos, g.sin)
        )
        return 2 * rows * columns * size.get(g.dtype, 2) + entries * size.get(g.table_dtype, 2)

    def repeats(self, *instructions: str) -> int:
        """Repeats of these vector instructions (all of them by default), over all cores."""
        counts = self.counters.vector
        return sum(c.repeats for c in counts if not instructions or c.api in instructions)


@dataclasses.dataclass(frozen=True)
class Run:
    """Results and trace of a simulated launch."""

    q: Tensor
    k: Tensor
    trace: Trace


def _simulate(
    tensors: tuple[Tensor, ...], soc: str, events: bool, threads: int, options: dict[str, Any]
) -> Run:
    geometry, plan, raw = _C.simulate(*tensors, soc=soc, events=events, threads=threads, **options)
    return Run(tensors[4], tensors[5], Trace(geometry, plan, raw))


def apply(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    soc: str = "Ascend910B1",
    transpose: bool = False,
    events: bool = False,
    threads: int = 0,
    **options: Unpack[Options],
) -> Run:
    """:func:`npu_rope.apply` by the Ascend C kernel on simulated cores of the chip ``soc``.

    Args:
        q, k, cos, sin, **options: as for :func:`npu_rope.apply`, on the CPU. The last axis of each
            is dense, as the kernel has it.
        soc: the chip, by the name that CANN gives it.
        transpose: rotate as :func:`npu_rope.apply_backward` does.
        events: record every instruction (``trace.cores[i].events``), for a model of time.
        threads: host threads to run the cores on; 0 for as many as there are. Results and trace
            do not depend on it.

    Raises:
        SimulationError: the kernel did what the chip would refuse, or do by luck alone.
        ValueError, TypeError: as for the operator; also an unknown chip or one without a kernel.
    """
    out = [None if t is None else torch.empty(t.shape, dtype=t.dtype) for t in (q, k)]
    tensors = (q, k, cos, sin, *out)
    return _simulate(tensors, soc, events, threads, {**options, "transpose": transpose})


def apply_(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    soc: str = "Ascend910B1",
    events: bool = False,
    threads: int = 0,
    **options: Unpack[Options],
) -> Run:
    """The same in place, over q and k, as :func:`npu_rope.apply_`."""
    return _simulate((q, k, cos, sin, q, k), soc, events, threads, {**options})
