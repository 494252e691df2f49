"""What can be known on a machine with CANN's toolkit, a chip or not: `make test-cann`.

The package's own build, by the real compiler: does it compile, with which flags, how large is the
code of each entry, does the library load. Where the toolkit has CPU debug mode, each entry runs in
it once. What is found is in the report, also where nothing can be asked for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from npu_rope import reference, simulate

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = re.findall(r"ENTRY\((\w+), ", (ROOT / "csrc/rope/rope_entries.h").read_text())
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
CACHE_KB = 16  # a vector core's instruction cache

Record = Callable[[str, object], None]


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "PATH": tools, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def torch_npu() -> Path:
    """The package beside torch, or the one that pairs with it from where `simulate` keeps it."""
    beside = Path(torch.__file__).parents[1] / "torch_npu"
    if beside.exists():
        return beside
    folder = simulate.torch_npu_folder()
    if not folder.exists():
        simulate.install_torch_npu(folder)
    return folder / "torch_npu"


class Build:
    """Of the NPU library, in a folder of its own."""

    def __init__(self) -> None:
        self.folder = ROOT / "build" / f"cann-{sysconfig.get_config_var('SOABI')}"
        if named := os.environ.get("NPU_ROPE_CANN_BUILD"):
            self.folder = Path(named)
        shutil.rmtree(self.folder, ignore_errors=True)
        options = [f"-DPython_EXECUTABLE={sys.executable}", "-DNPU_ROPE_NPU=ON"]
        options += [f"-DNPU_ROPE_TORCH_NPU_DIR={torch_npu()}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
        options += os.environ.get("NPU_ROPE_CMAKE_ARGS", "").split()
        configured = run("cmake", "-S", ROOT, "-B", self.folder, "-G", "Ninja", *options)
        assert configured.returncode == 0, configured.stdout
        self.said = " ".join(configured.stdout.split("npu_rope: NPU library,")[1].split()[:12])
        self.direct = "directly by" in self.said
        begun = time.monotonic()
        self.made = run("cmake", "--build", self.folder, "--verbose", "--target", "npu_rope_npu")
        self.seconds = time.monotonic() - begun
        self.cann = Path(self._cached("NPU_ROPE_CANN_USED"))

    def _cached(self, name: str) -> str:
        text = (self.folder / "CMakeCache.txt").read_text()
        return re.search(rf"^{name}:\w+=(.*)$", text, re.MULTILINE)[1]

    @property
    def kernels(self) -> Path:
        return self.folder / "libnpu_rope_kernels.so"

    def kernel_commands(self) -> list[str]:
        """The command lines by which CANN's compiler makes code for the chip."""
        marks = ("-x asc",) if self.direct else ("--cce-aicore-arch",)
        lines = self.made.stdout.splitlines()
        return [line for line in lines if "rope_" in line and all(mark in line for mark in marks)]


@pytest.fixture(scope="session")
def build() -> Build:
    return Build()


def test_it_compiles(build: Build, record_property: Record) -> None:
    record_property("CANN", build.cann)
    record_property("way", build.said)
    assert build.made.returncode == 0, build.made.stdout
    record_property("seconds", f"{build.seconds:.0f}")
    warnings = [line for line in build.made.stdout.splitlines() if "warning:" in line]
    record_property("warnings", len(warnings))
    for line in warnings[:20]:
        record_property("warning", line)


def test_flags(build: Build, record_property: Record) -> None:
    lines = build.kernel_commands()
    for line in lines[:1]:
        record_property("one entry", line)
    for entry in ENTRIES:
        own = [line for line in lines if entry in line]
        assert own, f"{entry} is not among {len(lines)} commands"
        for line in own:
            assert "-O3" in line.split() and "-std=c++17" in line.split(), line
            assert "dav-2201" in line or "dav-c220" in line, line


def functions(path: Path) -> dict[str, int]:
    """The sizes of the functions in an object of the device, by their names."""
    rows = [line.split() for line in run("readelf", "-sW", path).stdout.splitlines()]
    return {row[7]: int(row[2], 0) for row in rows if len(row) == 8 and row[3] == "FUNC"}


def test_code_size(build: Build, record_property: Record) -> None:
    """Beyond the instruction cache a launch waits for code; nothing is asked for here."""
    if build.direct:  # code of the device alone, an entry an object
        bisheng = re.search(r"directly by (\S+),", build.said)[1]
        flags = ["-x", "asc", "--npu-arch=dav-2201", "-std=c++17", "-O3", "--aicore-only"]
        flags += ["-DNPU_ROPE_ASC", "-DASCENDC_DUMP=0", f"-I{ROOT}/csrc"]

        def compile_entry(entry: str) -> tuple[str, dict[str, int]]:
            output = build.folder / "kernels" / f"{entry}.device.o"
            source = build.folder / "rope_entries" / f"{entry}.cpp"
            done = run(bisheng, *flags, "-c", source, "-o", output)
            return done.stdout if done.returncode else "", functions(output)

        with ThreadPoolExecutor(2) as pool:
            compiled = dict(zip(ENTRIES, pool.map(compile_entry, ENTRIES), strict=True))
        for failure, _ in compiled.values():
            if failure:
                pytest.skip(f"no code of the device alone: {failure.strip()[-300:]}")
        sizes = {entry: list(found.values()) for entry, (_, found) in compiled.items()}
    else:  # one object of all, where what is not inlined is shared
        (path,) = build.folder.glob("kernels/legacy/*merge_obj_dir/device_aiv.o")
        sizes = {entry: [] for entry in ENTRIES}
        for name, size in functions(path).items():
            sizes.setdefault(next((e for e in ENTRIES if e in name), name), []).append(size)
    for name, found in sizes.items():
        over = "" if sum(found) <= CACHE_KB * 1024 else f", more than the cache's {CACHE_KB} KB"
        record_property(name, f"{sum(found)} bytes in {len(found)} functions{over}")


def test_symbols(build: Build, record_property: Record) -> None:
    defined = run("nm", "-D", "--defined-only", build.kernels).stdout
    missing = [entry for entry in ENTRIES if f" aclrtlaunch_{entry}\n" not in defined]
    assert not missing
    undefined = run("nm", "-D", "--undefined-only", build.kernels).stdout.split()
    record_property("asked of CANN", " ".join(sorted(s for s in undefined if s not in "Uw")))
    needed = run("objdump", "-p", build.kernels).stdout
    record_property("needed", " ".join(re.findall(r"NEEDED +(\S+)", needed)))


def load(library: Path, cann: Path) -> subprocess.CompletedProcess[str]:
    paths = [f"{cann}/lib64", os.environ.get("LD_LIBRARY_PATH", ""), f"{cann}/devlib"]
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1], mode=2)"  # RTLD_NOW
    return run(sys.executable, "-c", code, library, LD_LIBRARY_PATH=":".join(filter(None, paths)))


def test_the_library_loads(build: Build, record_property: Record) -> None:
    done = load(build.kernels, build.cann)
    if done.returncode and not Path("/dev/davinci_manager").exists():
        record_property("said", done.stdout.strip()[-300:] or f"signal {-done.returncode}")
        if not build.direct:
            pytest.skip("no chip: ascendc_library's constructor asks for its name and aborts")
        if "libascend_hal" in done.stdout or "libdrv" in done.stdout:
            pytest.skip("no driver, which CANN's runtime needs")
    assert done.returncode == 0, done.stdout


# ---- CPU debug mode: CANN's own model of the cores ----


@pytest.fixture(scope="session")
def debug(build: Build) -> Path:
    """The program that runs an entry in CPU debug mode."""
    config = build.cann / "tools/tikicpulib/lib/cmake"
    if not config.is_dir():
        pytest.skip(f"this toolkit has no CPU debug mode: there is no {config}")
    folder = build.folder / "debug"
    options = [f"-DCMAKE_PREFIX_PATH={config}", f"-DENTRIES={build.folder / 'rope_entries'}"]
    options += [f"-DCSRC={ROOT / 'csrc'}"]
    configured = run("cmake", "-S", ROOT / "tests/cann_debug", "-B", folder, *options)
    assert configured.returncode == 0, configured.stdout
    made = run("cmake", "--build", folder, "--parallel", "2")
    assert made.returncode == 0, made.stdout
    return folder / "debug"


TOKENS, Q_HEADS, K_HEADS, HEAD_DIM = 5, 3, 2, 64
UPRIGHT = 400, 6, 2, 64  # so many tokens that a core has 16
ARRANGED = 5, 3, 2, 72  # halves of 36 columns


@pytest.mark.parametrize("entry", ENTRIES)
def test_cpu_debug_gives_the_references_bits(
    entry: str, build: Build, debug: Path, tmp_path: Path
) -> None:
    *norm, short, order = entry.split("_")[1:]
    dtype = DTYPES[short]
    usual = TOKENS, Q_HEADS, K_HEADS, HEAD_DIM
    sizes = {"upright": UPRIGHT, "arranged": ARRANGED}.get(order, usual)
    tokens, q_heads, k_heads, head_dim = sizes
    torch.manual_seed(0)
    q = torch.randn(tokens, q_heads, head_dim).to(dtype)
    k = torch.randn(tokens, k_heads, head_dim).to(dtype)
    angles = torch.outer(torch.arange(float(tokens)), torch.rand(head_dim // 2)).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    weights = torch.randn(2, head_dim)
    options = {
        "interleaved": order not in ("half", "arranged"),
        "deinterleave": order.endswith("interleave"),
    }
    if norm:
        expected = reference.norm_apply(q, k, *weights, cos, sin, eps=1e-6, **options)
    elif order == "reinterleave":
        expected = torch.ops.npu_rope.apply_backward(q, k, cos, sin, **options)
    else:
        expected = reference.apply(q, k, cos, sin, **options)
    files = [tmp_path / name for name in ("q", "k", "cos", "sin", "q_weight", "k_weight")]
    for file, tensor in zip(files, (q, k, cos, sin, *weights), strict=True):
        file.write_bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    folders = ("lib64", "tools/tikicpulib/lib", "tools/tikicpulib/lib/Ascend910B1")
    paths = [f"{build.cann}/{folder}" for folder in (*folders, "tools/simulator/Ascend910B1/lib")]
    paths.append(os.environ.get("LD_LIBRARY_PATH", ""))
    done = run(
        debug, tmp_path, entry, *map(str, sizes), LD_LIBRARY_PATH=":".join(filter(None, paths))
    )
    assert done.returncode == 0, done.stdout
    for name, tensor in zip(("q_out", "k_out"), expected, strict=True):
        bits = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        assert (tmp_path / name).read_bytes() == bits, f"{name}: {done.stdout[-500:]}"
