"""The simulated vector core: kernels that are right run, and each broken rule is refused.

The kernels are in tests/simulator. They are compiled once and kept in pytest's cache.
"""

import ctypes
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
HEADERS = ROOT / "csrc" / "simulator" / "ascendc"
KERNELS = ROOT / "tests" / "simulator"
COMPILER = shutil.which("g++") or shutil.which("clang++") or "g++"
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", f"-I{HEADERS}"]
ARCH = 2201
USABLE_UB = 188160


class AddParams(ctypes.Structure):
    _fields_ = [("total", ctypes.c_uint32), ("tile", ctypes.c_uint32)]


class StridedParams(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint32) for name in ("rows", "columns", "first", "width", "rows_per_tile")
    ]


class CastParams(ctypes.Structure):
    _fields_ = [("total", ctypes.c_uint32), ("scale", ctypes.c_float)]


class InstructionParams(ctypes.Structure):
    _fields_ = [
        ("api", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("form", ctypes.c_int32),
        ("mode", ctypes.c_int32),
        ("repeats", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("mask", ctypes.c_uint64 * 2),
        ("block_strides", ctypes.c_int32 * 3),
        ("repeat_strides", ctypes.c_int32 * 3),
        ("scalar", ctypes.c_float),
        ("bytes", ctypes.c_uint32 * 3),
    ]


class LaunchOptions(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in ("block_dim", "threads", "record_events", "auto_sync", "arch")
    ]


class Refused(Exception):
    pass


class Simulator:
    """The compiled kernels, launched by name on numpy arrays."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("launch", "faults", "call_outside_of_a_launch"):
            getattr(self._library, name).restype = ctypes.c_char_p

    def launch(
        self,
        kernel: str,
        arrays: list[np.ndarray],
        outputs: set[int],
        params: ctypes.Structure | None = None,
        block_dim: int = 1,
        threads: int = 0,
        record_events: bool = False,
        auto_sync: bool = True,
        arch: int = ARCH,
    ) -> dict[str, Any]:
        n = len(arrays)
        data = (ctypes.c_void_p * n)(*(a.ctypes.data for a in arrays))
        sizes = (ctypes.c_int64 * n)(*(a.nbytes for a in arrays))
        read_only = (ctypes.c_int32 * n)(*(i not in outputs for i in range(n)))
        options = LaunchOptions(block_dim, threads, record_events, auto_sync, arch)
        answer = self._library.launch(
            kernel.encode(),
            n,
            data,
            sizes,
            read_only,
            ctypes.byref(params) if params else None,
            ctypes.byref(options),
        )
        result = json.loads(answer)
        if "error" in result:
            raise Refused(result["error"])
        return result

    def faults(self) -> list[str]:
        return self._library.faults().decode().splitlines()

    def call_outside_of_a_launch(self) -> str:
        return self._library.call_outside_of_a_launch().decode()


@pytest.fixture(scope="session")
def simulator(request: pytest.FixtureRequest) -> Simulator:
    sources = sorted(HEADERS.glob("*.cpp")) + sorted(KERNELS.glob("*.cpp"))
    digest = hashlib.sha256(" ".join([COMPILER, *FLAGS]).encode())
    for path in sources + sorted(HEADERS.glob("*.h")) + sorted(KERNELS.glob("*.h")):
        digest.update(path.read_bytes())
    digest.update((ROOT / "csrc" / "npu" / "chip.h").read_bytes())
    folder = Path(request.config.cache.mkdir("simulator"))
    library = folder / f"kernels-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        for old in folder.iterdir():
            old.unlink()

        def compile_one(source: Path) -> Path:
            target = folder / f"{source.stem}.o"
            subprocess.run([COMPILER, *FLAGS, "-c", str(source), "-o", str(target)], check=True)
            return target

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_one, sources))
        partial = library.with_suffix(".partial")
        command = [COMPILER, "-shared", "-pthread", "-o", str(partial), *map(str, objects)]
        subprocess.run(command, check=True)
        partial.rename(library)
    return Simulator(library)


# ------------------------------------------------------------------------------------- refusals

# What each kernel of faults.cpp is refused for. The message names the instruction, the place in the
# source, what was expected and what came.
REFUSALS = {
    "more UB than usable": rf"InitBuffer: .* 188192 bytes, expected at most {USABLE_UB}",
    "more UB than usable in parts": rf"InitBuffer: .* 200032 bytes, expected at most {USABLE_UB}",
    "static tensor beyond usable UB": rf"Duplicate: dst touches .*, expected below {USABLE_UB}",
    "too many buffers": r"InitBuffer: makes 65 buffers, expected at most 64",
    "misaligned address": r"Mul: dst starts at UB address 0x204 .* expected a multiple of 32",
    "misaligned after ReinterpretCast": r"Mul: src0 starts at UB address 0x10 .* multiple of 32",
    "misaligned transfer": r"DataCopy: dst starts at UB address 0x10 .* multiple of 32",
    "out of the buffer by one element": r"Duplicate: dst touches UB bytes \[512, 1028\), expected "
    r"to stay inside its buffer \[512, 1024\)",
    "tensor without memory": r"Mul: dst is a tensor without memory",
    "TBuf without InitBuffer": r"TBuf::Get: the buffer has no memory, expected InitBuffer",
    "GetWithOffset beyond the buffer": r"GetWithOffset: asks for bytes \[288, 544\).* 512",
    "read of unwritten UB": r"Mul: src0 reads UB byte 256 .* never written",
    "read of padding": r"Mul: src0 reads UB byte 28 .* never written",
    "store of unwritten UB": r"DataCopy: src reads UB byte 764 .* never written",
    "GetValue of unwritten UB": r"GetValue: src reads UB byte 12 .* never written",
    "GM read one byte beyond": r"DataCopyPad: touches bytes \[0, 257\) of GM region 0, .* 256",
    "GM write one byte beyond": r"DataCopyPad: touches bytes \[1, 257\) of GM region 1, .* 256",
    "GM read before the region": r"DataCopy: touches bytes \[-4, 252\) of GM region 0",
    "GM address of nothing": r"DataCopy: touches 256 bytes of GM at 0x0, expected an address",
    "write to an input": r"DataCopy: writes GM region 0 .* read-only",
    "GM address misaligned for DataCopy": r"DataCopy: the GM address is not a multiple of 4 bytes",
    "two cores write one byte": r"DataCopyPad of core 0 .* writes a byte of GM that DataCopyPad of "
    r"core 1 .* writes too",
    "a core reads what another writes": r"DataCopy of core 0 .* writes a byte of GM that DataCopy "
    r"of core 1 .* reads too",
    "GM read after write without order": r"reads a byte of GM that .* writes, .*MTE3_MTE2>",
    "GM write after read without order": r"writes a byte of GM that .* reads, .*MTE2_MTE3>",
    "GM written twice without order": r"writes a byte of GM that .* writes, .*<PIPE_MTE3>",
    "repeat 256": r"Mul: repeatTime is 256, expected 1 to 255",
    "repeat 256 in a uint8_t": r"Mul: repeatTime is 0, expected 1 to 255",
    "mask 0": r"Mul: mask is 0, expected 1 to 64",
    "mask 65 of 4-byte elements": r"Mul: mask is 65, expected 1 to 64",
    "mask bits beyond 4-byte elements": r"Mul: mask\[1\] is 0x1, expected 0",
    "mask bits all 0": r"Mul: mask is 0, expected at least one bit",
    "count 0": r"Mul: count is 0, expected 1 to",
    "repeat stride 256": r"Mul: dstRepStride is 256, expected 0 to 255",
    "block stride 256": r"Mul: src1BlkStride is 256, expected 0 to 255",
    "destination block stride 0": r"Mul: dst block stride is 0, expected at least 1",
    "Copy repeat stride 4096": r"Copy: dstRepeatSize is 4096, expected 0 to 4095",
    "block count 4096": r"DataCopyPad: blockCount is 4096, expected 0 to 4095",
    "block length 2097152": r"DataCopyPad: blockLen is 2097152, expected 0 to 2097151",
    "block length of half an element": r"DataCopyPad: blockLen is 6 bytes, .* multiple of 4",
    "padding of more than 32 bytes": r"DataCopyPad: rightPadding is 9, expected 0 to 8",
    "padding value of 8-byte elements": r"DataCopyPad: paddingValue is not 0, expected 0",
    "GM stride beyond 32 bits": r"DataCopyPad: srcStride is 4294967296, expected 0 to 4294967295",
    "DataCopy block count 4096": r"DataCopy: blockCount is 4096, expected 0 to 4095",
    "DataCopy gap 65536": r"DataCopy: srcGap is 65536, expected 0 to 65535",
    "DataCopy of a part of a block": r"DataCopy: count is 63 .* multiple of 32 bytes",
    "copy into VECCALC": r"DataCopyPad: dst is a tensor at VECCALC, expected VECIN or VECOUT",
    "Cast half to float with RINT": r"Cast: CAST_RINT from half to float .* expected CAST_NONE",
    "Cast float to bfloat16 with ODD": r"Cast: CAST_ODD from float to bfloat16_t .* CAST_RINT",
    "Cast float to bfloat16 with NONE": r"Cast: CAST_NONE from float to bfloat16_t .* CAST_RINT",
    "shift by 33": r"ShiftLeft: scalarValue is 33, expected 0 to 32",
    "destination overlaps a source in part": r"Mul: dst at UB 0x20 overlaps src0 at UB 0x0 in part",
    "widening Cast in place": r"Cast: dst at UB 0x0 overlaps src at UB 0x0 in part",
    "a repeat reads what an earlier one wrote": r"Adds: src of repeat 1 overlaps dst of an earlier",
    "BlockReduceSum repeat 256": r"BlockReduceSum: repeatTime is 256, expected 1 to 255",
    "BlockReduceSum mask 65": r"BlockReduceSum: mask is 65, expected 1 to 64",
    "BlockReduceSum mask -1": r"BlockReduceSum: mask is -1, expected 1 to 64",
    "BlockReduceSum destination stride 65536": r"dstRepStride is 65536, expected 0 to 65535",
    "BlockReduceSum source stride 65536": r"srcRepStride is 65536, expected 0 to 65535",
    "BlockReduceSum in place": r"BlockReduceSum: dst overlaps src at UB 0x0: expected no block",
    "BlockReduceSum to a misaligned address": r"BlockReduceSum: dst starts at UB address 0x204 ",
    "PairReduceSum of unwritten UB": r"PairReduceSum: src reads UB byte 256 .* never written",
    "PairReduceSum block stride -1": r"PairReduceSum: srcBlkStride is -1, expected 0 to 65535",
    "PairReduceSum into its source": r"PairReduceSum: dst overlaps src at UB 0x80: expected no",
    "Brcb repeat 256": r"Brcb: repeatTime is 256, expected 1 to 255",
    "Brcb into its source": r"Brcb: dst overlaps src at UB 0x0: expected no block in common",
    "Brcb block stride 0": r"Brcb: dst block stride is 0, expected at least 1",
    "Brcb from a misaligned address": r"Brcb: src starts at UB address 0x10 .* multiple of 32",
    "Brcb of unwritten UB": r"Brcb: src reads UB byte 256 .* never written",
    "Brcb in counter mode": r"Brcb: is simulated without counter mode, expected SetMaskNorm\(\)",
    "Gather repeat 256": r"Gather: repeatTime is 256, expected 1 to 255",
    "Gather mask 65": r"Gather: mask is 65, expected 1 to 64",
    "Gather of no elements": r"Gather: count is 0, expected 1 to 16320",
    "Gather by an offset that is no whole element": r"Gather: srcOffset of lane 0 of repeat 0 is "
    r"6, expected a multiple of 4 bytes",
    "Gather from a base that is no whole element": r"Gather: srcBaseAddr is 2, expected a multiple",
    "Gather from a base beyond the tensor": r"Gather: srcBaseAddr is 1024, expected 0 to 511",
    "Gather beyond the buffer": r"Gather: srcOffset of lane 0 of repeat 0 is 4096, which leads to "
    r"UB byte 4096: expected to stay inside the buffer \[0, 512\) of src",
    "Gather of unwritten UB": r"Gather: src reads UB byte 256 .* never written",
    "Gather into its source": r"Gather: dst overlaps src at UB 0x4: expected no block in common",
    "Gather into its offsets": r"Gather: dst overlaps srcOffset at UB 0x300: expected no block",
    "Gather by offsets that S just wrote, no auto sync": r"Gather: srcOffset reads UB 0x300, which "
    r".*SetValue.* expected .*S_V",
    "Gather in counter mode": r"Gather: mask 8 was given as a number in counter mode",
    "Sqrt repeat stride 256": r"Sqrt: srcRepStride is 256, expected 0 to 255",
    "Div that accumulates": r"Div: src1 of repeat 1 overlaps dst of an earlier repeat",
    "TransDataTo5HD misaligned": r"TransDataTo5HD: src starts at UB address 0x10 .* multiple of 32",
    "mask as a number in counter mode": r"Mul: mask 64 was given as a number in counter mode",
    "counter mode left on": r"core 0: the kernel ended in counter mode: expected SetMaskNorm",
    "AllocTensor beyond the buffers": r"AllocTensor: all 1 buffers of the queue are held",
    "EnQue of a foreign tensor": r"EnQue: the tensor is not from this queue",
    "EnQue twice": r"EnQue: the tensor is still enqueued, expected one from AllocTensor or DeQue",
    "EnQue beyond the depth": r"EnQue: the queue already holds 1 tensors, expected at most .* 1",
    "DeQue of an empty queue": r"DeQue: the queue is empty",
    "FreeTensor before DeQue": r"FreeTensor: the tensor is still enqueued, expected one from DeQue",
    "FreeTensor twice": r"FreeTensor: the tensor is free, expected one from DeQue",
    "use after FreeTensor": r"Mul: src0 at UB 0x0 was given back by FreeTensor",
    "tensor never freed": r"DeQue: this tensor .* still held .* expected FreeTensor$",
    "tensor never dequeued": r"EnQue: this tensor .* still held .* expected DeQue and FreeTensor",
    "queue without InitBuffer": r"AllocTensor: the queue has no buffers, expected InitBuffer",
    "compute before DeQue": r"Mul: src0 reads UB 0x0, which DataCopy .* MTE2 .* writes, .*MTE2_V>",
    "more events than ids": r"EnQue: all 8 ids of event MTE2_V are taken",
    "flag never waited for": r"SetFlag: event MTE3_V 0 was set and never waited for",
    "flag never set": r"WaitFlag: waits for event MTE2_V 0, which nothing before has set",
    "flag waited for by another id": r"WaitFlag: waits for event MTE2_V 1, which nothing",
    "flag set twice": r"SetFlag: event MTE2_V 0 is set again before anyone waited",
    "operator[] past the end": r"operator\[\]: the offset is 128, expected less than the 128 el",
    "SetSize beyond the memory": r"SetSize: the size is 65 elements, expected at most the 64 that",
    "a tensor used beyond its SetSize": r"Mul: dst touches UB bytes \[512, 768\), .* \[512, 764",
    "L2 cache mode that is not there yet": r"SetL2CacheHint: the mode is 4, expected CACHE_MODE_D",
    "reserved event id": r"SetFlag: event id is 6, expected 0 to 5",
    "two cores at fault, the lower one later": r"^core 0, .* SetFlag: event id is 8",
    "two cores at fault, the higher one later": r"^core 0, .* SetFlag: event id is 8",
    "event id 8": r"SetFlag: event id is 8, expected 0 to 5",
    "release of an event id never allocated": r"ReleaseEventID: id 0 .* is not allocated",
    "no order MTE2 to V": r"Mul: src0 reads UB 0x0, which DataCopy .* MTE2 .* writes, .*MTE2_V>",
    "flag of the wrong direction": r"Mul: src0 reads UB 0x0, which DataCopy .* writes, .*MTE2_V>",
    "flag set before the load": r"Mul: src0 reads UB 0x0, which DataCopy .* writes, .*MTE2_V>",
    "no order V to MTE3": r"DataCopy: src reads UB 0x200, which Mul .* V .* writes, .*V_MTE3>",
    "barrier of one pipe only": r"DataCopy: src reads UB 0x200, which Mul .* writes, .*V_MTE3>",
    "no order V to MTE2": r"DataCopy: dst writes UB 0x0, which Mul .* reads, .*V_MTE2>",
    "no order MTE3 to V": r"Mul: dst writes UB 0x200, which DataCopy .* reads, .*MTE3_V>",
    "no order MTE3 to MTE2": r"DataCopy: dst writes UB 0x200, which DataCopy .*, .*MTE3_MTE2>",
    "no order MTE2 to MTE3": r"DataCopy: src reads UB 0x0, which DataCopy .* writes, .*MTE2_MTE3>",
    "two loads of one place": r"DataCopy: dst writes UB 0x0, .* writes, .* PipeBarrier<PIPE_MTE2>",
    "SetValue before a load, no auto sync": r"DataCopy: dst writes UB 0x0, .* SetValue .*S_MTE2>",
    "V after V, no auto sync": r"Muls: src reads UB 0x200, which Mul .* PipeBarrier<PIPE_V>",
    "ASSERT": r"ASSERT: failed: GetBlockNum\(\) == 0",
}
FIRST_LINE = re.compile(r"^(core \d+(:|, faults\.cpp:\d+, )|.* of core \d+ \(faults\.cpp:\d+)")


def launch_fault(
    simulator: Simulator, name: str, **options: bool | int
) -> tuple[np.ndarray, np.ndarray]:
    cores = 2 if "core" in name else 1
    x = np.arange(64 * cores, dtype=np.float32)
    y = np.zeros_like(x)
    simulator.launch(name, [x, y], {1}, block_dim=cores, **options)
    return x, y


@pytest.mark.parametrize("name", REFUSALS)
def test_refused(simulator: Simulator, name: str) -> None:
    auto_sync = "no auto sync" not in name
    with pytest.raises(Refused) as refusal:
        launch_fault(simulator, name, auto_sync=auto_sync)
    message = str(refusal.value)
    assert re.search(REFUSALS[name], message), message
    assert FIRST_LINE.match(message), message
    # What was refused leaves nothing behind.
    x, y = launch_fault(simulator, "right")
    assert np.array_equal(y, x * x)


def test_every_kernel_has_its_expectation(simulator: Simulator) -> None:
    broken = {name for name in simulator.faults() if not name.startswith("right")}
    assert broken == set(REFUSALS)


@pytest.mark.parametrize("auto_sync", [True, False])
@pytest.mark.parametrize("record_events", [True, False])
def test_right_kernels_run(simulator: Simulator, auto_sync: bool, record_events: bool) -> None:
    names = [name for name in simulator.faults() if name.startswith("right")]
    assert len(names) > 8
    for name in names:
        if not auto_sync and "by auto sync" in name:
            continue
        x, y = launch_fault(simulator, name, auto_sync=auto_sync, record_events=record_events)
        assert np.array_equal(y, x * x), name


def test_memory_that_is_input_and_output(simulator: Simulator) -> None:
    x = np.arange(64, dtype=np.float32)
    expected = x * x
    simulator.launch("right: in place", [x, x], {1})
    assert np.array_equal(x, expected)


def test_only_the_simulated_architecture(simulator: Simulator) -> None:
    with pytest.raises(Refused, match="NPU architecture 2002, expected 2201"):
        launch_fault(simulator, "right", arch=2002)


@pytest.mark.parametrize("block_dim", [0, 65536])
def test_block_dim_range(simulator: Simulator, block_dim: int) -> None:
    x, y = np.zeros(64, np.float32), np.zeros(64, np.float32)
    with pytest.raises(Refused, match=f"block_dim is {block_dim}, expected 1 to 65535"):
        simulator.launch("right", [x, y], {1}, block_dim=block_dim)


def test_call_outside_of_a_launch(simulator: Simulator) -> None:
    assert "outside of a simulated launch" in simulator.call_outside_of_a_launch()


def test_lowest_core_is_reported(simulator: Simulator) -> None:
    """Whatever the number of threads."""
    x = np.zeros(64 * 16, np.float32)  # y holds the results of the first three cores only
    for threads in (1, 2, 5):
        y = np.zeros(64 * 3, np.float32)
        with pytest.raises(Refused, match=r"^core 3, "):
            simulator.launch("right", [x, y], {1}, block_dim=16, threads=threads)


# ------------------------------------------- what does not compile, as with CANN's own headers

COMPILE_REFUSALS = {
    "Mul of bfloat16_t": "LocalTensor<bfloat16_t> a; Mul(a, a, a, 16);",
    "Add of bfloat16_t with a mask": "LocalTensor<bfloat16_t> a; Add(a, a, a, 16, 1, {});",
    "Muls of bfloat16_t": "LocalTensor<bfloat16_t> a; Muls(a, a, bfloat16_t(2), 16);",
    "Div of bfloat16_t": "LocalTensor<bfloat16_t> a; Div(a, a, a, 16);",
    "Sqrt of int32_t": "LocalTensor<int32_t> a; Sqrt(a, a, 8);",
    "BlockReduceSum of bfloat16_t": "LocalTensor<bfloat16_t> a;"
    "BlockReduceSum(a, a, 1, 128, 1, 1, 8);",
    "PairReduceSum of int32_t": "LocalTensor<int32_t> a; PairReduceSum(a, a, 1, 64, 1, 1, 8);",
    "Brcb of int64_t": "LocalTensor<int64_t> a; Brcb(a, a, 1, {1, 8});",
    "Gather of int64_t": "LocalTensor<int64_t> a; LocalTensor<uint32_t> o; Gather(a, a, o, 0, 8);",
    "And of int32_t": "LocalTensor<int32_t> a; And(a, a, a, 8);",
    "Not of half": "LocalTensor<half> a; Not(a, a, 16);",
    "ShiftLeft of float": "LocalTensor<float> a; ShiftLeft(a, a, 1.0f, 8);",
    "Cast of half to bfloat16_t": "LocalTensor<half> a; LocalTensor<bfloat16_t> b;"
    "Cast(b, a, RoundMode::CAST_RINT, 16);",
    "Cast of bfloat16_t to half": "LocalTensor<half> a; LocalTensor<bfloat16_t> b;"
    "Cast(a, b, RoundMode::CAST_RINT, 16);",
    "Copy of uint8_t": "LocalTensor<uint8_t> a; Copy(a, a, 128, 1, {1, 1, 8, 8});",
    "TransDataTo5HD of bfloat16_t": "uint64_t l[16]; TransDataTo5HD<bfloat16_t>(l, l, {});",
    "PipeBarrier of PIPE_S": "PipeBarrier<PIPE_S>();",
    "flag of the cube core": "SetFlag<HardEvent::MTE1_M>(0);",
    "queue at A1": "TQue<TPosition::A1, 1> queue; queue.AllocTensor<half>();",
}


def test_compile_refusals() -> None:
    """One compilation: an error points at the line of each case, and at no line that is right."""
    right = "LocalTensor<half> a; LocalTensor<float> b; Mul(a, a, a, 16); Mul(b, b, b, 8);"
    bodies = [right, *COMPILE_REFUSALS.values(), right]
    lines = ['#include "kernel_operator.h"', "using namespace AscendC;"]
    lines += [f"void f{i}() {{ {body} }}" for i, body in enumerate(bodies)]
    command = [COMPILER, *FLAGS, "-fsyntax-only", "-xc++", "-"]
    result = subprocess.run(command, input="\n".join(lines), text=True, capture_output=True)
    blamed = {int(line) for line in re.findall(r"^<stdin>:(\d+):", result.stderr, re.M)}
    assert blamed == set(range(4, 4 + len(COMPILE_REFUSALS))), result.stderr
    reasons = "static assertion failed|static_assert|is not a member|no matching function"
    assert len(re.findall(reasons, result.stderr)) >= len(COMPILE_REFUSALS)


# ------------------------------------------------------------------------------------- samples


def half(tensor: torch.Tensor) -> np.ndarray:
    """The bits of a 16-bit tensor, which numpy has no name for."""
    return tensor.contiguous().view(torch.int16).numpy().copy()


@pytest.mark.parametrize("cores", [1, 3, 8])
def test_vector_add(simulator: Simulator, cores: int) -> None:
    total, tile = cores * 4 * 256, 256
    generator = torch.Generator().manual_seed(cores)
    x = torch.randn(total, generator=generator, dtype=torch.float32).half()
    y = (torch.randn(total, generator=generator) * 1e3).half()
    z = np.zeros(total, np.int16)
    params = AddParams(total, tile)
    trace = simulator.launch("vector_add", [half(x), half(y), z], {2}, params, block_dim=cores)
    assert np.array_equal(z, half(x + y))
    assert trace["gm_bytes_read"] == 2 * total * 2
    assert trace["gm_bytes_written"] == total * 2
    assert (trace["loads"], trace["stores"]) == (2 * total // tile, total // tile)
    assert trace["ub_bytes"] == 6 * tile * 2
    (add,) = trace["vector"]
    assert (add["api"], add["dst"], add["src"]) == ("Add", "half", "half")
    assert (add["calls"], add["elements"]) == (total // tile, total)
    assert add["repeats"] == total // 128


@pytest.mark.parametrize(
    "rows, columns, first, width",
    [(1, 8, 0, 8), (37, 192, 64, 64), (50, 75, 3, 71), (64, 17, 16, 1)],
)
@pytest.mark.parametrize("cores", [1, 4])
def test_strided_copy(
    simulator: Simulator, rows: int, columns: int, first: int, width: int, cores: int
) -> None:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    y = np.zeros((rows, width), np.int16)
    params = StridedParams(rows, columns, first, width, 7)
    trace = simulator.launch("strided_copy", [half(x), y], {1}, params, block_dim=cores)
    assert np.array_equal(y, half(x[:, first : first + width]))
    assert trace["gm_bytes_read"] == trace["gm_bytes_written"] == rows * width * 2


@pytest.mark.parametrize("total", [1, 63, 64, 4096, 4097, 10007])
def test_cast_pipeline(simulator: Simulator, total: int) -> None:
    x = torch.randn(total, generator=torch.Generator().manual_seed(total)).half()
    y = np.zeros(total, np.int16)
    simulator.launch("cast_pipeline", [half(x), y], {1}, CastParams(total, 1.7), block_dim=3)
    scale = torch.tensor(1.7, dtype=torch.float32)
    assert np.array_equal(y, half((x.float() * scale).bfloat16()))


def test_deterministic(simulator: Simulator) -> None:
    """Results and traces, whatever the number of threads."""
    total, cores = 16 * 5 * 64, 16
    x = half(torch.randn(total, generator=torch.Generator().manual_seed(0)).half())
    seen = []
    for threads in (1, 2, 3, 16, 16):
        z = np.zeros(total, np.int16)
        trace = simulator.launch(
            "vector_add",
            [x, x, z],
            {2},
            AddParams(total, 64),
            block_dim=cores,
            threads=threads,
            record_events=True,
        )
        seen.append((z.tobytes(), json.dumps(trace)))
    assert len(set(seen)) == 1


# --------------------------------------------------------------------------------------- trace


def test_events(simulator: Simulator) -> None:
    """What each instruction waits for, beside those before it on its own pipe."""
    total, tile, cores = 2 * 3 * 256, 256, 2
    x = np.zeros(total, np.int16)
    trace = simulator.launch(
        "vector_add",
        [x, x.copy(), x.copy()],
        {2},
        AddParams(total, tile),
        block_dim=cores,
        record_events=True,
    )
    assert len(trace["cores"]) == cores
    for core, events in enumerate(trace["cores"]):
        assert [e["api"] for e in events] == ["DataCopy", "DataCopy", "Add", "DataCopy"] * 3
        assert [e["pipe"] for e in events] == ["MTE2", "MTE2", "V", "MTE3"] * 3
        offset = core * total // cores * 2
        for i in range(3):
            load_x, load_y, add, store = events[4 * i : 4 * i + 4]
            assert load_x["region"] == 0 and load_y["region"] == 1 and store["region"] == 2
            assert load_x["offset"] == store["offset"] == offset + i * tile * 2
            assert (load_x["blocks"], load_x["block_bytes"]) == (1, tile * 2)
            assert add["repeats"] == 2 and add["elements"] == tile
            assert add["addresses"] == [
                store["addresses"][0],
                load_x["addresses"][0],
                load_y["addresses"][0],
            ]
            # Queues of two buffers: tile i waits for the first use of its buffers, in tile i - 2.
            before = [4 * (i - 2) + 2] if i >= 2 else []
            assert load_x["after"] == before and load_y["after"] == []
            stored = [4 * (i - 2) + 3] if i >= 2 else []
            assert add["after"] == [*stored, 4 * i + 1]  # both EnQue come after both loads
            assert store["after"] == [4 * i + 2]


# ---------------------------------------------------------------------------- vector instructions

APIS = ["Add", "Sub", "Mul", "Div", "And", "Or", "Adds", "Muls", "Sqrt", "ShiftLeft", "ShiftRight",
        "Not", "Copy", "Duplicate", "BlockReduceSum", "PairReduceSum", "Brcb", "Gather",
        "TransDataTo5HD", "Cast"]  # fmt: skip
DTYPES = [np.float16, None, np.float32, np.int16, np.uint16, np.int32, np.uint32]
FORMS = ["count", "mask", "bits", "counter"]
BINARY = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "And": np.bitwise_and,
    "Or": np.bitwise_or,
}


def active_lanes(params: InstructionParams, size: int) -> list[tuple[int, int]]:
    """(repeat, lane) of everything the instruction computes."""
    per_repeat = 256 // size
    form = FORMS[params.form]
    if form in ("count", "counter"):
        return [divmod(i, per_repeat) for i in range(params.count)]
    if form == "mask":
        lanes = list(range(params.mask[0]))
    else:
        bits = params.mask[0] | params.mask[1] << 64
        lanes = [i for i in range(per_repeat) if bits >> i & 1]
    return [(r, i) for r in range(params.repeats) for i in lanes]


def positions(
    params: InstructionParams, operand: int, lanes: list[tuple[int, int]], size: int, widest: int
) -> np.ndarray:
    """Where the lanes of an operand lie, in elements."""
    per_block = 32 // size
    if FORMS[params.form] == "count":
        block_stride, repeat_stride = 1, 8 * size // widest
    else:
        block_stride = params.block_strides[operand]
        repeat_stride = params.repeat_strides[operand]
    return np.array(
        [
            (r * repeat_stride + i // per_block * block_stride) * per_block + i % per_block
            for r, i in lanes
        ]
    )


def run_instruction(
    simulator: Simulator, params: InstructionParams, images: list[np.ndarray]
) -> tuple[np.ndarray, dict[str, Any]]:
    y = images[0].copy()
    params.bytes[:] = [image.nbytes for image in images]
    trace = simulator.launch("instruction", [y, images[1], images[2]], {0}, params)
    return y, trace["vector"][0]


FORM_CASES = [
    ("count", dict(count=1)),
    ("count", dict(count=64)),
    ("count", dict(count=777)),
    ("mask", dict(repeats=3, mask=(64, 0), blocks=(1, 1, 1), strides=(8, 8, 8))),
    ("mask", dict(repeats=5, mask=(40, 0), blocks=(1, 1, 1), strides=(8, 9, 0))),
    ("mask", dict(repeats=4, mask=(37, 0), blocks=(2, 1, 0), strides=(16, 8, 1))),
    ("mask", dict(repeats=1, mask=(3, 0), blocks=(1, 1, 1), strides=(0, 0, 0))),
    (
        "bits",
        dict(repeats=3, mask=(0x8000_00F0_0123_5671, 0), blocks=(1, 2, 1), strides=(8, 16, 0)),
    ),
    ("bits", dict(repeats=2, mask=(2**64 - 1, 0), blocks=(1, 1, 1), strides=(8, 8, 8))),
    ("counter", dict(count=130, repeats=1, blocks=(2, 1, 1), strides=(16, 8, 8))),
    ("counter", dict(count=500, repeats=1, blocks=(1, 1, 1), strides=(8, 8, 0))),
]


def form_params(form: str, case: dict[str, Any]) -> InstructionParams:
    params = InstructionParams()
    params.form = FORMS.index(form)
    params.count = case.get("count", 0)
    params.repeats = case.get("repeats", 0)
    params.mask[:] = case.get("mask", (0, 0))
    params.block_strides[:] = case.get("blocks", (1, 1, 1))
    params.repeat_strides[:] = case.get("strides", (8, 8, 8))
    return params


INSTRUCTIONS = {
    "Add": (0, 2),
    "Sub": (0, 2),
    "Mul": (0, 2),
    "Div": (0, 2),
    "And": (3, 4),
    "Or": (3, 4),
    "Adds": (0, 2),
    "Muls": (0, 2),
    "Sqrt": (0, 2),
    "ShiftLeft": (3, 4, 6),
    "ShiftRight": (3, 5, 6),
    "Not": (3, 4),
    "Copy": (0, 2, 5),
    "Duplicate": (2, 3),
}
INSTRUCTION_CASES = [
    (api, dtype, form, case)
    for api, dtypes in INSTRUCTIONS.items()
    for dtype in dtypes
    for form, case in FORM_CASES
    if api != "Copy" or form in ("mask", "bits")  # Copy has no other forms
]


@pytest.mark.parametrize("api, dtype, form, case", INSTRUCTION_CASES)
def test_instruction(
    simulator: Simulator, api: str, dtype: int, form: str, case: dict[str, Any]
) -> None:
    params = form_params(form, case)
    params.api, params.dtype, params.scalar = APIS.index(api), dtype, 3.0
    kind = np.dtype(DTYPES[dtype])
    rng = np.random.default_rng(5)
    images = [
        rng.normal(size=8192 // kind.itemsize).astype(kind)
        if kind.kind == "f"
        else rng.integers(0, 256, 8192, np.uint8).view(kind)
        for _ in range(3)
    ]
    lanes = active_lanes(params, kind.itemsize)
    at = [positions(params, operand, lanes, kind.itemsize, kind.itemsize) for operand in range(3)]
    x0, x1 = images[1][at[1]], images[2][at[2]]
    if api in BINARY:
        result = BINARY[api](x0, x1)
    elif api in ("Adds", "Muls"):
        result = BINARY[api[:-1]](x0, kind.type(3))
    elif api == "Sqrt":
        images[1] = np.abs(images[1])
        result = np.sqrt(np.abs(x0))
    elif api == "ShiftLeft":
        result = x0 << kind.type(3)
    elif api == "ShiftRight":
        result = x0 >> kind.type(3)
    elif api == "Not":
        result = ~x0
    elif api == "Copy":
        result = x0
    else:
        result = np.full(len(lanes), 3, kind)
    expected = images[0].copy()
    expected[at[0]] = result
    y, counted = run_instruction(simulator, params, images)
    assert np.array_equal(y.view(np.uint8), expected.view(np.uint8))
    assert counted["api"] == api and counted["elements"] == len(lanes)


def pairwise(values: np.ndarray) -> np.ndarray:
    """Sums over the last axis, neighbours first."""
    while values.shape[-1] > 1:
        values = values[..., 0::2] + values[..., 1::2]
    return values[..., 0]


@pytest.mark.parametrize("form, case", [c for c in FORM_CASES if c[0] != "count"])
@pytest.mark.parametrize("api, group", [("BlockReduceSum", 8), ("PairReduceSum", 2)])
def test_reductions(
    simulator: Simulator, api: str, group: int, form: str, case: dict[str, Any]
) -> None:
    """The order of additions, and which results a mask leaves as they were."""
    params = form_params(form, case)
    params.api, params.dtype = APIS.index(api), 2
    params.repeat_strides[0] = step = 3  # of the destination, in results of a full repeat
    rng = np.random.default_rng(7)
    images = [(rng.normal(size=2048) * 10.0 ** rng.integers(-4, 4, 2048)).astype(np.float32)
              for _ in range(3)]  # fmt: skip
    lanes = active_lanes(params, 4)
    taken = np.zeros((1 + max(r for r, _ in lanes), 64), np.float32)
    active = np.zeros(taken.shape, bool)
    for (r, lane), at in zip(lanes, positions(params, 1, lanes, 4, 4), strict=True):
        taken[r, lane], active[r, lane] = images[1][at], True
    sums = pairwise(taken.reshape(len(taken), -1, group))
    written = active.reshape(len(taken), -1, group).any(-1)
    expected = images[0].copy()
    for r, (row, kept) in enumerate(zip(sums, written, strict=True)):
        at = r * step * (64 // group) + np.arange(64 // group)
        expected[at[kept]] = row[kept]
    y, counted = run_instruction(simulator, params, images)
    assert np.array_equal(y, expected)
    assert counted["api"] == api and counted["repeats"] == len(taken)


@pytest.mark.parametrize("dtype", [2, 5, 6])
@pytest.mark.parametrize("repeats, block, step", [(1, 1, 0), (3, 1, 8), (2, 2, 16), (2, 3, 1)])
def test_broadcast_to_blocks(
    simulator: Simulator, dtype: int, repeats: int, block: int, step: int
) -> None:
    params = InstructionParams()
    params.api, params.dtype, params.repeats = APIS.index("Brcb"), dtype, repeats
    params.block_strides[0], params.repeat_strides[0] = block, step
    kind = np.dtype(DTYPES[dtype])
    rng = np.random.default_rng(4)
    images = [rng.integers(0, 256, 8192, np.uint8).view(kind) for _ in range(3)]
    expected = images[0].copy()
    for i in range(8 * repeats):
        expected[8 * (i // 8 * step + i % 8 * block) :][:8] = images[1][i]
    y, counted = run_instruction(simulator, params, images)
    assert np.array_equal(y.view(np.uint8), expected.view(np.uint8))
    assert counted["api"] == "Brcb" and counted["repeats"] == repeats


@pytest.mark.parametrize("dtype", [2, 5, 6])
@pytest.mark.parametrize(
    "form, case",
    [
        ("count", dict(count=40)),
        ("count", dict(count=333)),
        ("mask", dict(repeats=3, mask=(64, 0), strides=(8, 0, 0))),
        ("mask", dict(repeats=4, mask=(37, 0), strides=(11, 0, 0))),
    ],
)
def test_gather(simulator: Simulator, dtype: int, form: str, case: dict[str, Any]) -> None:
    """Offsets follow each other without gaps, 64 for each repeat, whatever the mask."""
    params = form_params(form, case)
    params.api, params.dtype, params.scalar = APIS.index("Gather"), dtype, 128.0
    kind = np.dtype(DTYPES[dtype])
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, 8192, np.uint8).view(kind) for _ in range(2)]
    offsets = rng.integers(0, 2048 - 32, 2048, np.uint32)
    lanes = active_lanes(params, 4)
    expected = images[0].copy()
    for (r, lane), at in zip(lanes, positions(params, 0, lanes, 4, 4), strict=True):
        expected[at] = images[1][32 + offsets[64 * r + lane]]
    y, counted = run_instruction(simulator, params, [*images, 4 * offsets])
    assert np.array_equal(y.view(np.uint8), expected.view(np.uint8))
    assert counted["api"] == "Gather" and counted["elements"] == len(lanes)


def test_special_roots_and_quotients(simulator: Simulator) -> None:
    """What CANN's tables of special values say, which is IEEE 754."""
    values = [0.0, -0.0, np.inf, -np.inf, np.nan, -1.0, 3.4028235e38, 1e-45]
    x = np.resize(np.array(values, np.float32), 64)
    with np.errstate(all="ignore"):
        for api, expected in (("Sqrt", np.sqrt(x)), ("Div", np.float32(1) / x)):
            params = form_params("count", dict(count=64))
            params.api, params.dtype = APIS.index(api), 2
            sources = (np.ones_like(x), x) if api == "Div" else (x, x)
            y, _ = run_instruction(simulator, params, [np.zeros_like(x), *sources])
            assert_same_bits(y.view(np.uint32), expected.view(np.uint32), np.isnan(expected))


def test_accumulation_over_repeats(simulator: Simulator) -> None:
    """dst and src1 may be one place with repeat stride 0: the documented exception."""
    # dst repeat stride 0 keeps the last repeat.
    params = form_params("mask", dict(repeats=4, mask=(64, 0), strides=(0, 8, 0)))
    params.api, params.dtype = APIS.index("Add"), 2
    rng = np.random.default_rng(0)
    images = [rng.normal(size=512).astype(np.float32) for _ in range(3)]
    y, _ = run_instruction(simulator, params, images)
    assert np.array_equal(y[:64], images[1][192:256] + images[2][:64])
    assert np.array_equal(y[64:], images[0][64:])


@pytest.mark.parametrize("dtype", [0, 2, 3, 6])
@pytest.mark.parametrize(
    "repeats, blocks, strides",
    [(1, (1, 1), (0, 0)), (1, (1, 1), (2, 3)), (4, (1, 1), (16, 16)), (3, (3, 5), (1, 1))],
)
def test_transpose(
    simulator: Simulator,
    dtype: int,
    repeats: int,
    blocks: tuple[int, int],
    strides: tuple[int, int],
) -> None:
    params = InstructionParams()
    params.api, params.dtype, params.repeats = APIS.index("TransDataTo5HD"), dtype, repeats
    params.block_strides[:] = (*blocks, 0)
    params.repeat_strides[:] = (*strides, 0)
    kind = np.dtype(DTYPES[dtype])
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, 8192, np.uint8) for _ in range(3)]
    expected = images[0].copy()
    for repeat in range(repeats):
        step = repeat if repeats > 1 else 1  # the chip's rule for a single repeat
        source = [images[1][32 * (i * blocks[1] + step * strides[1]) :][:32] for i in range(16)]
        matrix = np.stack([row.view(kind) for row in source])
        result = np.ascontiguousarray(matrix.T).reshape(16, -1)
        for i in range(16):
            expected[32 * (i * blocks[0] + step * strides[0]) :][:32] = result[i].view(np.uint8)
    y, counted = run_instruction(simulator, params, images)
    assert np.array_equal(y, expected)
    assert counted["repeats"] == repeats


# ------------------------------------------------------------------------------- bank conflicts


def conflicts(
    simulator: Simulator, dst: int, src0: int, src1: int, blocks: tuple[int, int, int] = (1, 1, 1)
) -> dict[str, int]:
    """Of 4 repeats of Add on floats, the operands at these UB addresses."""
    # The images follow each other in UB, so an address is what came before, plus a part of its own.
    names = sorted(zip((dst, src0, src1), range(3), strict=True))
    assert [i for _, i in names] == [0, 1, 2] and dst == 0
    params = form_params("mask", dict(repeats=4, mask=(64, 0), blocks=blocks, strides=(8, 8, 8)))
    params.api, params.dtype = APIS.index("Add"), 2
    sizes = (src0, src1 - src0, 16384)
    images = [np.ones(size // 4, np.float32) for size in sizes]
    _, counted = run_instruction(simulator, params, images)
    return counted["conflicts"]


K = 1024
BANK_CASES = [
    # dst, src0 and src1 in three 64 KB thirds; the sources 256 bytes apart modulo 512
    ((0, 64 * K, 128 * K + 256), (1, 1, 1), (0, 0, 0)),
    ((0, 64 * K, 64 * K + 16 * K + 256), (1, 1, 1), (0, 0, 0)),
    ((0, 64 * K, 128 * K), (1, 1, 1), (4, 0, 0)),  # both sources in the same groups
    ((0, 64 * K, 128 * K + 32), (1, 1, 1), (4, 0, 0)),  # seven groups shared
    ((0, 16 * K, 64 * K + 256), (1, 1, 1), (0, 0, 4)),  # src0 in the banks of dst
    ((0, 16 * K + 256, 64 * K), (1, 1, 1), (0, 0, 0)),  # in its third, but in other banks
    ((0, 16 * K, 32 * K), (1, 1, 1), (4, 0, 4)),
    ((0, 64 * K, 128 * K + 256), (16, 1, 1), (0, 4, 0)),  # all of dst in one group
    ((0, 64 * K, 128 * K + 256), (1, 8, 1), (4, 0, 0)),  # src0 in two groups
    ((0, 64 * K, 128 * K + 256), (1, 0, 1), (0, 0, 0)),  # one block read eight times is one row
]


@pytest.mark.parametrize("addresses, blocks, expected", BANK_CASES)
def test_bank_conflicts(
    simulator: Simulator,
    addresses: tuple[int, int, int],
    blocks: tuple[int, int, int],
    expected: tuple[int, int, int],
) -> None:
    found = conflicts(simulator, *addresses, blocks)
    assert (found["read_read"], found["write_write"], found["read_write"]) == expected


# ------------------------------------------------------------------------------------- rounding

CASTS = [("half", "float"), ("bfloat16", "float"), ("float", "half"), ("float", "bfloat16"),
         ("float", "float"), ("float", "int32")]  # fmt: skip
MODES = ["NONE", "RINT", "FLOOR", "CEIL", "ROUND", "TRUNC", "ODD"]
DIRECTED = ["RINT", "FLOOR", "CEIL", "ROUND", "TRUNC"]


def cast(
    simulator: Simulator, pair: tuple[str, str], mode: str, x: np.ndarray, out: np.dtype
) -> np.ndarray:
    """Any number of elements, in tiles that fit."""
    result = np.zeros(x.size, out)
    tile = 8192
    padded = np.resize(x, -(-x.size // tile) * tile)
    unused = np.zeros(32, np.uint8)
    for at in range(0, x.size, tile):
        params = InstructionParams()
        params.api, params.dtype, params.mode = APIS.index("Cast"), CASTS.index(pair), 0
        params.mode, params.count = MODES.index(mode), tile
        images = [np.zeros(tile, out), padded[at : at + tile].copy(), unused]
        y, _ = run_instruction(simulator, params, images)
        n = min(tile, x.size - at)
        result[at : at + n] = y[:n]
    return result


def float32_samples() -> np.ndarray:
    """Random bits, and what is near the edges of the 16-bit formats: ties, subnormals, overflow."""
    rng = np.random.default_rng(11)
    bits = [rng.integers(0, 2**32, 60_000, np.uint32)]
    for exponent in (*range(0, 4), *range(95, 105), *range(110, 118), 125, 126, 127, 140, 141, 142,
                     143, 144, 253, 254):  # fmt: skip
        mantissa = rng.integers(0, 2**23, 96, np.uint32)
        for low in (12, 13, 14, 15, 16, 20):  # exact values, exact ties, and one bit off the ties
            tie = mantissa >> np.uint32(low) << np.uint32(low) | np.uint32(1 << (low - 1))
            for m in (mantissa, tie, tie + np.uint32(1), tie - np.uint32(1), tie & ~np.uint32(
                    (1 << low) - 1)):  # fmt: skip
                bits.append(np.uint32(exponent << 23) | m & np.uint32(2**23 - 1))
    specials = [0, 1, 0x7F800000, 0x7FC00000, 0x7F7FFFFF, 0x477FF000, 0x477FEFFF, 0x477FE000,
                0x7F7F8000, 0x7F7F7FFF, 0x33000000, 0x33000001, 0x32FFFFFF]  # fmt: skip
    bits.append(np.array(specials, np.uint32))
    positive = np.concatenate(bits)
    return np.concatenate([positive, positive ^ np.uint32(2**31)]).view(np.float32)


def assert_same_bits(found: np.ndarray, expected: np.ndarray, is_nan: np.ndarray) -> None:
    different = (found != expected) & ~is_nan
    assert not different.any(), (found[different][:5], expected[different][:5])


@pytest.mark.parametrize("name", ["half", "bfloat16"])
def test_widening_all_values(simulator: Simulator, name: str) -> None:
    x = np.arange(65536, dtype=np.uint16)
    dtype = torch.float16 if name == "half" else torch.bfloat16
    expected = torch.from_numpy(x.view(np.int16)).view(dtype).float().numpy()
    found = cast(simulator, (name, "float"), "NONE", x, np.dtype(np.float32))
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert_same_bits(found.view(np.uint32), expected.view(np.uint32), np.isnan(expected))


@pytest.mark.parametrize("name, mode", [("half", "RINT"), ("half", "NONE"), ("bfloat16", "RINT")])
def test_narrowing_to_nearest(simulator: Simulator, name: str, mode: str) -> None:
    x = float32_samples()
    dtype = torch.float16 if name == "half" else torch.bfloat16
    expected = torch.from_numpy(x).to(dtype).view(torch.int16).numpy()
    found = cast(simulator, ("float", name), mode, x, np.dtype(np.int16))
    nan = np.isnan(x)
    assert_same_bits(found, expected, nan)
    back = torch.from_numpy(found).view(dtype)
    assert back[torch.from_numpy(nan)].isnan().all()


def round_scaled(scaled: np.ndarray, mode: str) -> np.ndarray:
    """float64 to integers by mode; exact for what the tests give it."""
    low = np.floor(scaled)
    inexact = scaled != low
    if mode in ("RINT", "NONE"):
        return np.rint(scaled)
    if mode == "ODD":
        odd_low = np.fmod(low, 2) != 0
        return np.where(inexact & ~odd_low, low + 1, low)
    return {
        "FLOOR": low,
        "CEIL": np.ceil(scaled),
        "ROUND": np.copysign(np.floor(np.abs(scaled) + 0.5), scaled),
        "TRUNC": np.trunc(scaled),
    }[mode]


@pytest.mark.parametrize(
    "name, mode",
    [("half", mode) for mode in (*DIRECTED, "ODD")] + [("bfloat16", mode) for mode in DIRECTED],
)
def test_narrowing_modes(simulator: Simulator, name: str, mode: str) -> None:
    mantissa, least = (10, -14) if name == "half" else (7, -126)
    x = float32_samples()
    x = x[np.isfinite(x)]
    wide = x.astype(np.float64)
    _, exponent = np.frexp(wide)
    quantum = np.exp2(np.maximum(exponent - 1, least) - mantissa)
    rounded = round_scaled(wide / quantum, mode) * quantum
    largest = (2 - 2.0**-mantissa) * 2.0 ** (15 if name == "half" else 127)
    over = np.abs(rounded) > largest
    inward = {"TRUNC": over, "ODD": over, "FLOOR": over & (x > 0), "CEIL": over & (x < 0)}
    rounded[over] = np.copysign(np.inf, rounded[over])
    to_largest = inward.get(mode, np.zeros_like(over))
    rounded[to_largest] = np.copysign(largest, rounded[to_largest])
    rounded = np.copysign(rounded, wide)  # a negative number that becomes zero keeps its sign
    dtype = torch.float16 if name == "half" else torch.bfloat16
    expected = torch.from_numpy(rounded).to(dtype).view(torch.int16).numpy()
    found = cast(simulator, ("float", name), mode, x, np.dtype(np.int16))
    assert_same_bits(found, expected, np.zeros(x.size, bool))


@pytest.mark.parametrize("mode", DIRECTED)
def test_float_to_integers(simulator: Simulator, mode: str) -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=4000) * 10.0 ** rng.integers(-3, 12, 4000),
                        np.arange(-50, 50) / 2, [2.0**31, -(2.0**31), 2.0**31 - 128, 1e30]]
                       ).astype(np.float32)  # fmt: skip
    expected = round_scaled(x.astype(np.float64), mode)
    found = cast(simulator, ("float", "float"), mode, x, np.dtype(np.float32))
    assert np.array_equal(found, expected.astype(np.float32))
    found = cast(simulator, ("float", "int32"), mode, x, np.dtype(np.int32))
    assert np.array_equal(found, np.clip(expected, -(2**31), 2**31 - 1).astype(np.int32))


def test_half_arithmetic_is_rounded_once(simulator: Simulator) -> None:
    """Every pair of 512 halves, subnormals, infinities and overflow among them, against torch."""
    rng = np.random.default_rng(3)
    values = rng.integers(0, 65536, 512, np.uint16)
    values = values[(values & 0x7C00 != 0x7C00) | (values & 0x3FF == 0)]
    pairs = np.stack(np.meshgrid(values, values)).reshape(2, -1)
    pairs = pairs[:, : pairs.shape[1] // 4096 * 4096]
    a, b = (torch.from_numpy(p.view(np.int16).copy()).view(torch.float16) for p in pairs)
    for api, expected in (("Add", a + b), ("Sub", a - b), ("Mul", a * b)):
        for at in range(0, pairs.shape[1], 4096 * 16):
            part = slice(at, at + 4096)
            params = form_params("count", dict(count=4096))
            params.api, params.dtype = APIS.index(api), 0
            images = [np.zeros(4096, np.uint16), pairs[0, part].copy(), pairs[1, part].copy()]
            y, _ = run_instruction(simulator, params, images)
            right = expected[part]
            nan = right.isnan().numpy()
            assert_same_bits(y.view(np.int16), right.view(torch.int16).numpy(), nan)


# -------------------------------------------------------- signatures, as the official ones

# Of these pyasc documents no prototype, or only that of another class's member.
WITHOUT_PROTOTYPE = {"Duplicate", "GetValue", "SetFlag", "SetValue", "WaitFlag"}
OUR_PROTOTYPE = re.compile(
    r"(?:template\s*<(?P<template>[^;{}()]*)>\s*)?(?P<head>[\w:<>&*\s]+?[\s&*])"
    r"(?P<name>[A-Z]\w*)\s*\((?P<params>[^;{}]*)\)\s*(?:const)?\s*$"
)
OFFICIAL_PROTOTYPE = re.compile(
    r"(?:template\s*<(?P<template>[^;{}()]*?)>\s*)?__aicore__[^;{}()]*?"
    r"\b(?P<name>[A-Z]\w*)\s*\((?P<params>(?:[^;{}()]|\([^()]*\))*)\)"
)
Signature = tuple[tuple[str, ...], tuple[str, ...]]  # kinds of template parameters, parameter types


def split_list(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "<([{") - (char in ">)]}")
        if char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def parameter_type(declaration: str) -> str:
    """`const Wide<uint8_t> repeatTime` -> `uint8_t`: no name, nothing that callers cannot see."""
    text = re.sub(r"\bWide<(\w+)>", r"\1", declaration).replace("__gm__ ", "")
    text = re.sub(r"\bOffset\b", "uint32_t", text)
    array = re.search(r"\(&\w+\)\s*(\[\w*\])$|\[\w*\]$", text)
    if array:
        text = text[: array.start()] + ("" if text[array.start()] == "[" else "x")
    text = re.sub(r"\s*([&*<>,])\s*", r"\1", " ".join(text.split()))
    text = re.sub(r"\w+$", "", text).strip()
    if array:
        return text + "[]"
    return text if text.endswith(("&", "*")) else text.removeprefix("const ")


def signatures(template: str | None, parameters: str) -> list[Signature]:
    """One for each number of trailing defaults that a caller leaves out."""
    kinds, names = [], []
    for part in split_list(template or ""):
        declaration, _, default = part.partition("=")
        kind, _, name = declaration.replace("class", "typename").strip().rpartition(" ")
        kinds.append(kind.strip() + ("=" + default.strip() if default else ""))
        names.append(name)
    types, required = [], 0
    for i, part in enumerate(split_list(parameters)):
        declaration, default, _ = part.partition("=")
        required += not default
        kind = parameter_type(declaration)
        for position, name in enumerate(names):
            kind = re.sub(rf"\b{name}\b", f"${position}", kind)
        types.append(kind.replace("PrimType", "T"))
        assert default or required == i + 1, parameters
    return [(tuple(kinds), tuple(types[:n])) for n in range(required, len(types) + 1)]


def without_bodies(text: str) -> str:
    """C++ with each function's body replaced by a semicolon."""
    out, depth, start = [], 0, 0
    for i, char in enumerate(text):
        if char == "{":
            if depth:
                depth += 1
            elif "(" in re.split(r"[;{}]", "".join(out) + text[start:i])[-1]:
                out.append(text[start:i] + ";")
                depth = 1
        elif char == "}" and depth:
            depth -= 1
            start = i + 1
    return "".join(out) + text[start:]


def our_signatures() -> dict[str, list[list[Signature]]]:
    command = [COMPILER, *FLAGS, "-E", "-P", str(HEADERS / "kernel_operator.h")]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    regions = re.findall(r"^namespace AscendC \{$(.*?)^\}$", without_bodies(text), re.M | re.S)
    found: dict[str, list[list[Signature]]] = {}
    for declaration in re.split(r"[;{}]|\b(?:public|private):", "\n".join(regions)):
        match = OUR_PROTOTYPE.match(declaration.strip())
        if match and match["name"] not in ("Wide", "Offset"):  # the simulator's own classes
            found.setdefault(match["name"], []).append(
                signatures(match["template"], match["params"])
            )
    return found


def official_signatures(request: pytest.FixtureRequest) -> dict[str, set[Signature]]:
    """From the docstrings of pyasc. They are read from the wheel, which is never installed."""
    folder = Path(request.config.cache.mkdir("pyasc"))
    if not list(folder.glob("pyasc-1.1.1-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp"]
        command += ["--platform=manylinux_2_31_x86_64", f"--dest={folder}", "pyasc==1.1.1"]
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("pyasc 1.1.1 cannot be downloaded")
    with zipfile.ZipFile(next(folder.glob("pyasc-1.1.1-*.whl"))) as wheel:
        sources = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".py")]
    # Some docstrings are written once for several functions.
    families = {
        "set_binary_docstring": ["Add", "Sub", "Mul", "Div", "And", "Or"],
        "set_binary_scalar_docstring": ["Adds", "Muls", "ShiftLeft", "ShiftRight"],
        "set_unary_docstring": ["Not", "Sqrt"],
    }
    text = "\n".join(sources)
    for function, names in families.items():
        body = re.search(rf"def {function}\(.*?(?=\ndef )", text, re.S)
        assert body, function
        text += "".join(body[0].replace("{cpp_name}", name) for name in names)
    found: dict[str, set[Signature]] = {}
    for match in OFFICIAL_PROTOTYPE.finditer(text):
        found.setdefault(match["name"], set()).update(
            signatures(match["template"], match["params"])
        )
    return found


def test_signatures_are_official(request: pytest.FixtureRequest) -> None:
    official = official_signatures(request)
    different, same = {}, 0
    for name, overloads in our_signatures().items():
        for callable_as in overloads:
            if official.get(name, set()) & set(callable_as):
                same += 1
            else:
                different[name] = (callable_as, official.get(name))
    assert set(different) == WITHOUT_PROTOTYPE, different
    assert same >= 80
