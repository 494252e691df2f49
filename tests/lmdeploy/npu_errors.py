"""What fails on npu tensors: whose error the caller gets, with the drop-in on and off.

The real torch_npu over the simulated NPU, each test in a process of its own. LMDeploy's default
operator is CANN's, which is not simulated; in its place in dlinfer's registry stands one that can
run here, so that "off" is LMDeploy's own way to a kernel.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
import without_atb  # noqa: F401

sys.path.append(str(Path(__file__).parents[1]))
os.environ["NPU_ROPE_LMDEPLOY"] = "0"  # nothing is asked of the NPU library before enable()

from npu_runtime import fault, held, in_a_fork, log
from torch import Tensor

with mock.patch("torch.npu.get_device_name", return_value="Ascend910B1"):
    # which dlinfer asks when it is imported, and so touches the device: the tests could not fork
    from ascend import Pair, build_layer, drop_in, heads, packed, tables
    from dlinfer.vendor import vendor_ops_registry

    LAYER = build_layer()

LAUNCH = "aclrtlaunch_rope_bf16_half"
LOST_HEARTBEAT, OUT_OF_MEMORY = 507010, 207001
TOKENS = 7
logger = logging.getLogger("lmdeploy.npu_rope")


def a_kernel(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    return torch.ops.npu_rope.apply(query, key, cos, sin)


def cpu_inputs() -> list[Tensor]:
    q, k, _ = (heads(x, 80).contiguous() for x in packed(TOKENS, 320, 160, 160))
    return [q, k, *tables(TOKENS, 80)]


def inputs() -> list[Tensor]:
    return [x.npu() for x in cpu_inputs()]


def no_kernel(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Pair:
    return query.view(query.shape), key.view(key.shape)


def default_is(stand_in: Callable[..., Pair]) -> None:
    drop_in.disable()
    vendor_ops_registry["apply_rotary_pos_emb"] = stand_in


def said(records: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in records]


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        logger.addHandler(self)
        logger.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def error_of(call: Callable[[], object]) -> str:
    """What a call raises, now or once the queue's thread has come to what fails."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            call()
        except Exception as error:
            (line,) = (line for line in str(error).splitlines() if "injected fault" in line)
            return f"{type(error).__name__}: {line[line.index(LAUNCH) :]}"
        time.sleep(0.01)
    raise AssertionError("nothing was raised")


def failure(on: bool, queue: str, file: Path) -> str:
    """What LMDeploy's layer raises where a kernel before it has failed in the task queue."""

    @in_a_fork(TASK_QUEUE_ENABLE=queue)
    def run() -> None:
        call = inputs()
        default_is(a_kernel)
        if on:
            drop_in.enable()
        torch.ops.npu_rope.apply(*call)  # the first call in a process returns after its launch
        torch.npu.synchronize()
        with fault(LAUNCH, LOST_HEARTBEAT, times=1):
            with held(f"{LAUNCH}@call"):  # where the queue's thread stands until it has returned
                torch.ops.npu_rope.apply(*call)
            file.write_text(error_of(lambda: LAYER(*call)))
        assert drop_in.is_active() == on and not drop_in.patch.state.problem
        assert not drop_in.patch.counts["layer"].left

    run()
    return file.read_text()


@pytest.mark.parametrize("queue", ["1", "2"])
def test_another_kernel_s_failure_is_the_caller_s_with_the_drop_in_as_without(
    queue: str, tmp_path: Path
) -> None:
    raised = failure(True, queue, tmp_path / "on")
    assert raised == failure(False, queue, tmp_path / "off")
    assert raised.startswith("RuntimeError") and str(LOST_HEARTBEAT) in raised


def test_no_memory_is_the_caller_s_error_and_the_next_call_is_ours() -> None:
    @in_a_fork()
    def run() -> None:
        call = inputs()
        default_is(no_kernel)
        drop_in.enable()
        kept = []
        names = "aclrtMallocAlign32", "aclrtMalloc"
        with (
            fault(names[0], OUT_OF_MEMORY),
            fault(names[1], OUT_OF_MEMORY),
            pytest.raises(torch.OutOfMemoryError),
        ):
            while True:  # as much as torch_npu has in store, of the size that the layer asks for
                try:
                    kept.append(torch.empty_like(call[1], memory_format=torch.contiguous_format))
                except torch.OutOfMemoryError:
                    break
            vendor_ops_registry["apply_rotary_pos_emb"](*call)  # the layer's own allocates too
        kept.clear()
        with log() as lines:
            LAYER(*call)
            torch.npu.synchronize()
        assert len(lines.launches) == 1 and drop_in.is_active()

    run()


@pytest.mark.parametrize(
    ("environment", "message", "at_once"),
    [
        ({"NPU_ROPE_NPU_LIBRARY": "/nowhere/lib.so"}, "does not load: /nowhere/lib.so", True),
        ({"NPU_ROPE_SIM_SOC": "Ascend950PR_958b"}, "not for Ascend950PR_958b", False),
    ],
    ids=["no library", "no kernel for the chip"],
)
def test_what_can_never_work_here_is_said_once_and_left_to_lmdeploy(
    environment: dict[str, str], message: str, at_once: bool
) -> None:
    @in_a_fork(**environment)
    def run() -> None:
        default_is(no_kernel)
        records = Records()
        drop_in.enable()
        assert drop_in.is_active() != at_once
        call = [torch.empty_like(x, device="npu") for x in cpu_inputs()]
        for _ in range(3):
            assert LAYER(*call)[0]._is_view(), "the stand-in's"
        lines = said(records.records)
        warnings = [line for line in lines if "leaves LMDeploy as it is" in line]
        assert len(warnings) == 1 and message in warnings[0], lines
        assert not at_once or not any("rotates q and k" in line for line in lines)
        assert not drop_in.is_active() and not drop_in.patch.counts["layer"].left
        lines = drop_in.report._this_process()
        ((mark, finding),) = [(m, f) for m, subject, f in lines if subject == "  this process"]
        assert mark == "no" and finding.startswith("not active: ") and message in finding

    run()
