"""What tests ask the simulated CANN runtime, beside calling it: its log, faults, delays, memory.

On a real NPU there is nothing to ask, and what needs this is skipped.
"""

from __future__ import annotations

import ctypes
import functools
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

import pytest
import torch

Args = ParamSpec("Args")

SIMULATED = "npu_simulated" in os.environ.get("NPU_ROPE_NPU_LIBRARY", "")
only_simulated = pytest.mark.skipif(not SIMULATED, reason="asks the simulated runtime")

if SIMULATED:
    _runtime = ctypes.CDLL("libascendcl.so")
    _runtime.npu_rope_sim_log_stop.restype = ctypes.c_char_p
    _runtime.npu_rope_sim_live_bytes.restype = ctypes.c_size_t


class Log(list[str]):
    """Lines "function detail", in the order of the calls."""

    def named(self, *functions: str) -> list[str]:
        return [line for line in self if line.split()[0] in functions]

    @property
    def launches(self) -> list[str]:
        return [line for line in self if line.startswith("aclrtlaunch_")]


@contextmanager
def log() -> Iterator[Log]:
    """Collects the calls made inside; what is queued must be drained there to be in it."""
    lines = Log()
    _runtime.npu_rope_sim_log_start()
    try:
        yield lines
    finally:
        lines += _runtime.npu_rope_sim_log_stop().decode().splitlines()


@contextmanager
def fault(function: str, code: int, after: int = 0, times: int = -1) -> Iterator[None]:
    """`function` fails: after `after` calls, `times` times (< 0: always)."""
    _runtime.npu_rope_sim_fail(function.encode(), code, after, times)
    try:
        yield
    finally:
        _runtime.npu_rope_sim_fail(function.encode(), 0, 0, 0)


@contextmanager
def delay(function: str, milliseconds: int) -> Iterator[None]:
    """What `function` asks the device for takes longer, as long as this lasts."""
    _runtime.npu_rope_sim_delay(function.encode(), milliseconds)
    try:
        yield
    finally:
        _runtime.npu_rope_sim_delay(function.encode(), 0)


@contextmanager
def held(function: str) -> Iterator[None]:
    """What `function` asks the device for does not begin as long as this lasts."""
    _runtime.npu_rope_sim_hold(function.encode(), 1)
    try:
        yield
    finally:
        _runtime.npu_rope_sim_hold(function.encode(), 0)


def live_bytes(device: int = 0) -> int:
    return _runtime.npu_rope_sim_live_bytes(device)


def in_a_fork(**environment: str) -> Callable[[Callable[Args, None]], Callable[Args, None]]:
    """The test runs in a process of its own, for what a process does not survive or reads once.

    A fork, because importing torch anew takes seconds. The file's own process must not have used
    the device: every test of it runs in a fork.
    """

    def decorate(test: Callable[Args, None]) -> Callable[Args, None]:
        @functools.wraps(test)
        def run(*args: Args.args, **kwargs: Args.kwargs) -> None:
            assert not torch.npu.is_initialized(), "run this file by itself: its tests fork"
            with tempfile.TemporaryFile("w+") as output:
                child = os.fork()
                if child == 0:
                    for stream in (1, 2):
                        os.dup2(output.fileno(), stream)
                    os.environ.update(environment)
                    try:
                        test(*args, **kwargs)
                        os._exit(0)  # without torch_npu's own end, which a broken device spoils
                    except BaseException:
                        traceback.print_exc(file=output)
                        output.flush()
                    os._exit(1)
                _, status = os.waitpid(child, 0)
                output.seek(0)
                assert status == 0, f"the test's process ended with {status}:\n{output.read()}"

        return run

    return decorate
