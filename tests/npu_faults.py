"""The simulated runtime's refusals and injected faults, and how each reaches the Python caller.

Every test runs in a process of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
import torch_npu  # noqa: F401  npu tensors
from npu_runtime import fault, in_a_fork, live_bytes, log, only_simulated
from samples import Sample

pytestmark = only_simulated
ops = torch.ops.npu_rope
LAUNCH = "aclrtlaunch_rope_bf16_half"
OUT_OF_MEMORY = 207001
LOST_HEARTBEAT = 507010
VECTOR_CORE_EXCEPTION = 507035


def npu_args(sample: Sample = Sample(tokens=3)) -> list[torch.Tensor]:  # noqa: B008
    args = [tensor.npu() for tensor in sample.tensors()]
    torch.npu.synchronize()
    return args


def message(call: Callable[[], object]) -> str:
    """What the call raises."""
    with pytest.raises(Exception) as raised:
        call()
    return f"{raised.typename}: {raised.value}"


def assert_works() -> None:
    expected = ops.apply(*Sample(tokens=3).tensors())
    for got, other in zip(ops.apply(*npu_args()), expected, strict=True):
        assert torch.equal(got.cpu(), other)


# ---- at once ----


@in_a_fork()
def test_no_memory_is_torchs_error_and_the_process_goes_on() -> None:
    args = npu_args(Sample(tokens=500, q_heads=16, head_dim=256))
    before = torch.npu.memory_allocated()
    outs = []

    def fill() -> None:
        while True:
            outs.append(ops.apply(*args))

    with fault("aclrtMallocAlign32", OUT_OF_MEMORY), fault("aclrtMalloc", OUT_OF_MEMORY):
        assert message(fill).startswith("OutOfMemoryError: NPU out of memory")
    outs.clear()
    torch.npu.synchronize()
    assert torch.npu.memory_allocated() == before
    assert_works()


@in_a_fork(NPU_ROPE_SIM_MEMORY="256")
def test_the_device_has_so_much_memory() -> None:
    assert torch.npu.mem_get_info()[1] == 256 << 20
    text = message(lambda: torch.empty(257 << 20, dtype=torch.uint8, device="npu"))
    assert text.startswith("OutOfMemoryError")
    assert live_bytes() <= 256 << 20
    assert_works()


@in_a_fork(TASK_QUEUE_ENABLE="0")
def test_a_refused_launch_is_raised_at_once_without_the_task_queue() -> None:
    args = npu_args()
    with fault(LAUNCH, LOST_HEARTBEAT, times=1):
        text = message(lambda: ops.apply(*args))
    assert text.startswith("RuntimeError") and f"{LAUNCH}: injected fault" in text
    assert_works()


# ---- queued: raised by the next synchronisation at the latest ----


@in_a_fork()
def test_a_refused_launch_is_raised_by_synchronize() -> None:
    args = npu_args()
    with fault(LAUNCH, LOST_HEARTBEAT, times=1):
        # By the call where the queue's thread was quick: torch_npu looks at it once more.
        text = message(lambda: (ops.apply(*args), torch.npu.synchronize()))
    assert f"{LAUNCH}: injected fault" in text and "npu_rope::apply" in text


@pytest.mark.parametrize("queue", ["0", "1"])
def test_a_kernel_that_fails_on_the_device_is_raised_by_synchronize(queue: str) -> None:
    @in_a_fork(TASK_QUEUE_ENABLE=queue)
    def run() -> None:
        args = npu_args()
        with fault(f"{LAUNCH}@device", VECTOR_CORE_EXCEPTION, times=1):
            ops.apply(*args)
            text = message(torch.npu.synchronize)
        assert f"{LAUNCH}: injected fault" in text and str(VECTOR_CORE_EXCEPTION) in text

    run()


@in_a_fork(TASK_QUEUE_ENABLE="0")
def test_a_lost_device_is_raised_by_every_call_after_it() -> None:
    args = npu_args()
    with fault("*", LOST_HEARTBEAT):
        for _ in range(2):
            assert str(LOST_HEARTBEAT) in message(lambda: ops.apply(*args))
            assert str(LOST_HEARTBEAT) in message(lambda: args[0].cpu())


@in_a_fork(TASK_QUEUE_ENABLE="0", NPU_ROPE_SIM_FAULTS=f"{LAUNCH}:{LOST_HEARTBEAT}:1:1")
def test_faults_by_environment() -> None:
    args = npu_args()
    ops.apply(*args)
    assert LAUNCH in message(lambda: ops.apply(*args))
    assert_works()


# ---- what is not simulated, or would be refused by the chip ----


@in_a_fork(TASK_QUEUE_ENABLE="0")
def test_an_operator_that_is_not_simulated_names_itself() -> None:
    args = npu_args()
    text = message(lambda: (args[0] * args[0]).cpu())
    assert "operator Mul is not part of the simulated runtime" in text


@in_a_fork()
def test_a_function_that_is_not_simulated_names_itself() -> None:
    runtime = ctypes.CDLL("libascendcl.so")
    runtime.aclGetRecentErrMsg.restype = ctypes.c_char_p
    assert runtime.aclrtGetFunctionAddr(None, None, None) != 0
    assert b"aclrtGetFunctionAddr: not part of" in runtime.aclGetRecentErrMsg()


@in_a_fork(PYTORCH_NO_NPU_MEMORY_CACHING="1")
def test_a_kernel_that_touches_freed_memory_is_refused() -> None:
    args = npu_args()
    # The memory goes, the tensor stays: a use after free, which a chip may not notice.
    runtime = ctypes.CDLL("libascendcl.so")
    assert runtime.aclrtFree(ctypes.c_void_p(args[0].data_ptr())) == 0
    ops.apply(*args)
    text = message(torch.npu.synchronize)
    assert "GM" in text and str(VECTOR_CORE_EXCEPTION) in text


@in_a_fork(PYTORCH_NO_NPU_MEMORY_CACHING="1")
def test_a_copy_beyond_an_allocation_is_refused() -> None:
    on_npu = npu_args()[0]
    host = ctypes.create_string_buffer(1 << 20)
    runtime = ctypes.CDLL("libascendcl.so")
    runtime.aclGetRecentErrMsg.restype = ctypes.c_char_p

    def copy(size: int) -> int:
        data, length = ctypes.c_void_p(on_npu.data_ptr()), ctypes.c_size_t(size)
        return runtime.aclrtMemcpy(data, length, host, length, 1)  # host to device

    assert copy(on_npu.nbytes) == 0
    assert copy(len(host)) != 0
    assert b"aclrtMemcpy: dst [" in runtime.aclGetRecentErrMsg()


@in_a_fork(NPU_ROPE_SIM_SOC="Ascend950PR_958b")
def test_a_chip_without_a_kernel_is_refused_by_name() -> None:
    args = [torch.empty_like(tensor, device="npu") for tensor in Sample(tokens=3).tensors()]
    with log() as calls:
        assert "Ascend950PR_958b" in message(lambda: ops.apply(*args))
        torch.npu.synchronize()
    assert not calls.launches  # CANN's launch functions would do nothing and return 0


@pytest.mark.parametrize("soc", ["Ascend910B3", "Ascend910B4", "Ascend910_9391"])
def test_other_chips_give_the_same_bits(soc: str) -> None:
    @in_a_fork(NPU_ROPE_SIM_SOC=soc)
    def run() -> None:
        assert torch.npu.get_device_name() == soc
        assert_works()

    run()


# ---- the NPU library ----


@pytest.mark.parametrize(
    ("library", "message_"),
    [
        ("/nowhere/lib.so", "NPU library does not load: /nowhere/lib.so"),
        ("libascendcl.so", "has no function npu_rope_npu_library"),
    ],
)
def test_without_its_library_a_call_says_so(library: str, message_: str) -> None:
    @in_a_fork(NPU_ROPE_NPU_LIBRARY=library)
    def run() -> None:
        assert message_ in message(lambda: ops.apply(*npu_args()))

    run()
