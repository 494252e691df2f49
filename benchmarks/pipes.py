"""The pipes of one core beside each other: when does each instruction begin and end?

An instruction begins when its pipe is free and all that it waits for is visible. Loads and stores
share the core's part of the memory: where both run, each gets half, or less if its own limit is
lower. Time is in microseconds, memory in bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

LOAD, VECTOR, STORE, SCALAR = "MTE2", "V", "MTE3", "S"


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per microsecond that one core gets."""

    read: float  # at most, by its load queue
    write: float  # at most, by its store queue
    both: float  # together

    def rates(self, loads: bool, stores: bool) -> dict[str, float]:
        read, write = min(self.read, self.both), min(self.write, self.both)
        if loads and stores and read + write > self.both:
            half = self.both / 2
            if write < half:
                read = self.both - write
            elif read < half:
                write = self.both - read
            else:
                read = write = half
        return {LOAD: read, STORE: write}


@dataclasses.dataclass
class Step:
    """An instruction. `work` keeps its pipe busy: bytes of a transfer, else microseconds.
    Its result is visible `latency` microseconds later."""

    pipe: str
    work: float
    latency: float = 0.0
    waits: Sequence[int] = ()  # for earlier steps, by index
    name: str = ""
    begin: float = -1.0
    end: float = -1.0  # the pipe is free
    visible: float = float("inf")


def run(steps: Sequence[Step], memory: Memory) -> float:
    """Fills in begin, end and visible of each step; when the last is visible."""
    queues: dict[str, list[int]] = {}
    for index in range(len(steps) - 1, -1, -1):
        queues.setdefault(steps[index].pipe, []).append(index)  # the next one at the end
    running: dict[str, float] = {}  # pipe: work left of its step
    now = 0.0
    while queues:
        soonest = float("inf")
        for pipe, queue in queues.items():
            if pipe in running:
                continue
            step = steps[queue[-1]]
            ready = max((steps[i].visible for i in step.waits), default=0.0)
            if ready <= now:
                step.begin = now
                running[pipe] = step.work
            else:
                soonest = min(soonest, ready)
        rates = memory.rates(LOAD in running, STORE in running)
        ends = {pipe: now + left / rates.get(pipe, 1.0) for pipe, left in running.items()}
        then = min([soonest, *ends.values()])
        if then == float("inf"):
            raise ValueError("the steps wait for each other in a circle")
        for pipe, end in ends.items():
            if end > then:
                running[pipe] -= (then - now) * rates.get(pipe, 1.0)
                continue
            del running[pipe]
            step = steps[queues[pipe].pop()]
            step.end, step.visible = then, then + step.latency
            if not queues[pipe]:
                del queues[pipe]
        now = then
    return max((step.visible for step in steps), default=0.0)


def busy(steps: Sequence[Step]) -> dict[str, float]:
    """Microseconds in which each pipe worked, in a timeline that was run."""
    out: dict[str, float] = {}
    for step in steps:
        out[step.pipe] = out.get(step.pipe, 0.0) + step.end - step.begin
    return out


def moving(steps: Sequence[Step], pipes: Sequence[str] = (LOAD, STORE)) -> float:
    """Microseconds in which at least one of these pipes ran."""
    out, until = 0.0, 0.0
    for step in sorted((s for s in steps if s.pipe in pipes), key=lambda s: s.begin):
        out += max(0.0, step.end - max(until, step.begin))
        until = max(until, step.end)
    return out
