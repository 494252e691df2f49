"""What is built where CANN is, against a stand-in for its toolkit (standin_cann/README.md)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cann_toolkit import ROOT, Toolkit
from npu_rope import simulate

TORCH = ".".join(torch.__version__.split(".")[:2])
ENTRIES = re.findall(r"ENTRY\((\w+), ", (ROOT / "csrc/rope/rope_entries.h").read_text())
DIRECT, LEGACY = {"takes_asc": True}, {"takes_asc": False}


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def cmake(
    build: Path, *arguments: str, **environment: str | Path
) -> subprocess.CompletedProcess[str]:
    """CMake, where the only Python that a PATH gives does not work."""
    python3 = write(build.parent / "bin" / "python3", "#!/bin/sh\nexit 1\n")
    python3.chmod(0o755)
    tools = Path(sys.executable).parent
    for tool in ("cmake", "ninja"):
        if not (python3.parent / tool).exists() and (tools / tool).exists():
            (python3.parent / tool).symlink_to(tools / tool)
    return subprocess.run(
        ["cmake", *arguments],
        env={
            "PATH": f"{python3.parent}:/usr/local/bin:/usr/bin:/bin",
            **{name: str(value) for name, value in environment.items()},
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def configure(
    build: Path,
    options: dict[str, str | Path],
    generator: str = "Ninja",
    **environment: str | Path,
) -> subprocess.CompletedProcess[str]:
    options = {
        "Python_EXECUTABLE": sys.executable,
        "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
        "NPU_ROPE_CANN_DEFAULTS": build.parent / "nowhere",
        **options,
    }
    defines = [f"-D{name}={value}" for name, value in options.items()]
    done = cmake(build, "-S", str(ROOT), "-B", str(build), "-G", generator, *defines, **environment)
    done.stdout = " ".join(done.stdout.split())  # CMake breaks the lines of its messages
    return done


# ---- which way, and what is missing: configuration alone ----


@pytest.fixture
def torch_npu(tmp_path: Path) -> Path:
    folder = tmp_path / "torch_npu"
    write(folder / "version.py", f"__version__ = '{TORCH}.0'\n")
    write(folder / "lib" / "libtorch_npu.so")
    return folder


@pytest.mark.parametrize(
    ("toolkit", "forced", "said"),
    [
        (DIRECT, "AUTO", "kernels compiled directly by {cann}"),
        (LEGACY, "AUTO", "kernels compiled by ascendc_library of {cann}"),
        (DIRECT, "LEGACY", "kernels compiled by ascendc_library of {cann}"),
        (LEGACY, "DIRECT", "NPU_ROPE_KERNELS is DIRECT, but {cann}"),
        (LEGACY, "DIRECT", "language not recognized: 'asc'"),
        ({"takes_asc": False, "ascendc": False}, "AUTO", "{cann} cannot compile kernels"),
        (DIRECT, "direct", "NPU_ROPE_KERNELS is 'direct', expected AUTO, DIRECT or LEGACY"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_the_toolkit_decides_the_way(
    tmp_path: Path, torch_npu: Path, toolkit: dict[str, bool], forced: str, said: str
) -> None:
    cann = Toolkit(tmp_path / "cann", **toolkit)
    options = {"NPU_ROPE_TORCH_NPU_DIR": torch_npu, "NPU_ROPE_KERNELS": forced}
    done = configure(tmp_path / "build", options, ASCEND_HOME_PATH=cann.folder)
    assert said.format(cann=cann.folder) in done.stdout
    assert (done.returncode == 0) == ("kernels compiled" in said)


def test_where_cann_is_looked_for(tmp_path: Path, torch_npu: Path) -> None:
    """What is named comes before what is set, and that before where installers put it."""
    places = [Toolkit(tmp_path / name, takes_asc=True).folder for name in "abcd"]
    a, b, c, d = places
    build = tmp_path / "build"
    options: dict[str, str | Path] = {
        "NPU_ROPE_TORCH_NPU_DIR": torch_npu,
        "NPU_ROPE_CANN_DEFAULTS": f"{tmp_path}/nowhere;{d}",
    }

    def chosen(**environment: Path) -> str:
        done = configure(build, options, **environment)
        return re.search(f"directly by {tmp_path}/(.*?)/", done.stdout)[1]

    assert chosen() == "d"
    assert chosen(ASCEND_TOOLKIT_HOME=c) == "c"
    assert chosen(ASCEND_TOOLKIT_HOME=c, ASCEND_HOME_PATH=b) == "b"
    options["NPU_ROPE_CANN_DIR"] = a
    assert chosen(ASCEND_TOOLKIT_HOME=c, ASCEND_HOME_PATH=b) == "a"


def test_without_cann_nothing_is_built_and_nothing_is_wrong(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", {})
    assert done.returncode == 0, done.stdout
    assert "no NPU library, which needs CANN: neither ASCEND_HOME_PATH nor" in done.stdout
    assert "npu_rope_npu" not in (tmp_path / "build" / "build.ninja").read_text()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("cann", "needs CANN: ASCEND_HOME_PATH is '/nowhere', where no folder is"),
        ("torch_npu", "needs torch_npu: /nowhere has no lib/libtorch_npu.so"),
        ("version", f"torch_npu is 1.11, expected {TORCH} as torch is"),
    ],
)
def test_what_is_missing_is_an_error(
    tmp_path: Path, torch_npu: Path, missing: str, message: str
) -> None:
    options = {
        "NPU_ROPE_NPU": "ON",
        "NPU_ROPE_TORCH_NPU_DIR": "/nowhere" if missing == "torch_npu" else torch_npu,
    }
    if missing == "version":
        write(torch_npu / "version.py", "__version__ = '1.11.0'\n")
    cann = "/nowhere" if missing == "cann" else Toolkit(tmp_path / "cann", takes_asc=True).folder
    done = configure(tmp_path / "build", options, ASCEND_HOME_PATH=cann)
    assert done.returncode != 0
    assert message in done.stdout


# ---- the whole build, and what it makes ----


class Built:
    """A build for the NPU by the stand-in's compiler, with all that may stand around it: CANN's
    headers by CPATH, as some containers have them."""

    def __init__(self, folder: Path, takes_asc: bool) -> None:
        runtime = Path(simulate.environment()["NPU_ROPE_NPU_LIBRARY"]).parent
        self.torch_npu = simulate.torch_npu_folder() / "torch_npu"
        self.acl = self.torch_npu / "include/third_party/acl/inc"
        self.cann = Toolkit(folder / "cann", takes_asc, runtime=runtime, acl=self.acl)
        # By this name the tests of npu tensors know that a simulated runtime is under them.
        self.build = folder / "npu_simulated"
        self.report = folder / "report.txt"
        self.environment = {
            "ASCEND_TOOLKIT_HOME": str(self.cann.folder),
            "CPATH": str(self.cann.folder / "include"),
        }

    @property
    def kernels(self) -> Path:
        return self.build / "libnpu_rope_kernels.so"

    def compiled(self) -> dict[str, list[str]]:
        """The command line of every source that the host's compiler compiled."""
        commands = json.loads((self.build / "compile_commands.json").read_text())
        return {command["file"]: command["command"].split() for command in commands}


@pytest.fixture(scope="session")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """As `make test-cann` builds it."""
    built = Built(tmp_path_factory.mktemp("direct"), True)
    test_cann = ["make", "-s", "test-cann", f"PYTHON={sys.executable}", f"REPORT={built.report}"]
    done = subprocess.run(
        test_cann,
        cwd=ROOT,
        env={**os.environ, **built.environment, "NPU_ROPE_CANN_BUILD": str(built.build)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == f"The report to send back: {built.report}"
    return built


@pytest.fixture(scope="session")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Built:
    built = Built(tmp_path_factory.mktemp("legacy"), False)
    options = {"NPU_ROPE_TORCH_NPU_DIR": built.torch_npu, "NPU_ROPE_NPU": "ON"}
    make = ["--build", str(built.build), "--target", "npu_rope_kernels"]
    for _ in range(2):  # the second configuration finds what CANN's scripts have put in the cache
        done = configure(built.build, options, **built.environment)
        assert done.returncode == 0, done.stdout
        done = cmake(built.build, *make, **built.environment)
        assert done.returncode == 0, done.stdout
    return built


def test_the_report_says_what_was_found(direct: Built) -> None:
    text = direct.report.read_text()
    assert "skipped" not in text and "failed" not in text
    assert f"CANN: {direct.cann.folder}\n" in text
    assert "way: kernels compiled directly by " in text
    for entry in ENTRIES:
        assert re.search(rf"    {entry}: \d+ bytes", text)
        assert f"test_cpu_debug_gives_the_references_bits[{entry}]" in text
    assert "needed: libascendcl.so" in text


def symbols(library: Path, *options: str) -> set[str]:
    nm = ["nm", "--dynamic", *options, str(library)]
    lines = subprocess.run(nm, check=True, capture_output=True, text=True).stdout.splitlines()
    return {line.split()[-1] for line in lines}


LAUNCHES = {f"aclrtlaunch_{entry}" for entry in ENTRIES}


def test_each_entry_is_compiled_by_itself_for_the_chip(direct: Built) -> None:
    compiled = {}
    for arguments in direct.cann.commands():
        if "-c" in arguments and "--aicore-only" not in arguments:
            compiled[Path(arguments[arguments.index("-c") + 1]).stem] = arguments
    assert sorted({*compiled} - {"probe"}) == sorted(ENTRIES)
    for entry in ENTRIES:
        given = " ".join(compiled[entry])
        assert "-x asc --npu-arch=dav-2201 -std=c++17 -O3 -fPIC " in given
        assert "-DASCENDC_DUMP=0" in given  # else every launch allocates


@pytest.mark.parametrize("way", ["direct", "legacy"])
def test_the_kernels_library_has_every_launch(way: str, request: pytest.FixtureRequest) -> None:
    library = request.getfixturevalue(way).kernels
    assert symbols(library, "--defined-only") >= LAUNCHES
    dynamic = subprocess.run(["objdump", "-p", library], check=True, capture_output=True, text=True)
    assert re.search(r"SONAME +libnpu_rope_kernels.so\n", dynamic.stdout)


def test_every_kernel_is_for_vector_cores_alone(direct: Built, legacy: Built) -> None:
    for entry in ENTRIES:
        objdump = ["objdump", "-t", direct.build / "kernels" / f"{entry}.o"]
        table = subprocess.run(objdump, check=True, capture_output=True, text=True).stdout
        assert re.search(rf"F \.text\.vector\s.* {entry}\n", table), entry
    stub = (legacy.build / "kernels/legacy/auto_gen/rope_kernels/host_stub.cpp").read_text()
    assert stub.count(", 1 * blocks,") == len(ENTRIES)


def test_the_host_library_finds_the_kernels_beside_it(direct: Built) -> None:
    library = direct.build / "libnpu_rope_npu.so"
    assert symbols(library, "--undefined-only") >= LAUNCHES
    dynamic = subprocess.run(["objdump", "-p", library], check=True, capture_output=True, text=True)
    assert "NEEDED               libnpu_rope_kernels.so\n" in dynamic.stdout
    assert re.search(r"R(UN)?PATH +\$ORIGIN\n", dynamic.stdout)


@pytest.mark.parametrize("way", ["direct", "legacy"])
def test_the_host_code_is_optimized_whatever_cann_sets(
    way: str, request: pytest.FixtureRequest
) -> None:
    commands = request.getfixturevalue(way).compiled()
    assert sum("/csrc/" in source for source in commands) > 10
    for source, command in commands.items():
        assert "-O3" in command and "-DNDEBUG" in command, source


def test_torch_npus_acl_headers_come_before_cpath(direct: Built) -> None:
    command = direct.compiled()[str(ROOT / "csrc/rope/rope_npu.cpp")]
    assert f"-I{direct.acl}" in command  # -isystem would come after what CPATH names


def test_a_changed_header_is_compiled_into_every_entry(direct: Built) -> None:
    for entry in ENTRIES:
        query = ["--build", str(direct.build), "--", "-t", "query", f"kernels/{entry}.o"]
        inputs = cmake(direct.build, *query).stdout
        for name in ("rope_kernel.h", "rope_pairs.h", "rope_params.h"):
            assert f"{ROOT}/csrc/rope/{name}\n" in inputs
        assert f"rope_entries/{entry}.cpp\n" in inputs


def npu_tests(library: Path, chosen: str) -> subprocess.CompletedProcess[str]:
    simulated = [sys.executable, "-m", "npu_rope", "simulate", "--"]
    python = [sys.executable, "-m", "pytest", "-q", "tests/npu_operator.py", "-k", chosen]
    return subprocess.run(
        [*simulated, "env", f"NPU_ROPE_NPU_LIBRARY={library}", *python],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_what_the_compiler_made_runs(direct: Built) -> None:
    """The host library and its kernels, on the simulated runtime: one launch for each call and
    nothing else, from every entry, and the CPU's bits."""
    chosen = "one_launch and not strided or in_place_writes"
    done = npu_tests(direct.build / "libnpu_rope_npu.so", chosen)
    assert done.returncode == 0, done.stdout


def test_what_ascendc_library_made_runs(direct: Built, legacy: Built, tmp_path: Path) -> None:
    """The same host library beside kernels made the other way. A launch of those allocates: that is
    not in our hands."""
    folder = tmp_path / "npu_simulated"
    folder.mkdir()
    for library in (direct.build / "libnpu_rope_npu.so", legacy.kernels):
        shutil.copy(library, folder)
    copied = folder / "libnpu_rope_npu.so"
    done = npu_tests(copied, "in_place_writes")
    assert done.returncode == 0, done.stdout


def test_the_simulated_runtime_is_built_without_cann(direct: Built) -> None:
    """Beside a toolkit and a torch_npu: neither CANN's compiler nor its libraries are touched."""
    before = len(direct.cann.commands())
    done = subprocess.run(
        [sys.executable, "-m", "npu_rope", "simulate", "--", "true"],
        env={
            **os.environ,
            "ASCEND_HOME_PATH": str(direct.cann.folder),
            "NPU_ROPE_CMAKE_ARGS": f"-DNPU_ROPE_TORCH_NPU_DIR={direct.torch_npu}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert len(direct.cann.commands()) == before
    folder = Path(simulate.environment()["NPU_ROPE_NPU_LIBRARY"]).parents[1]
    assert not (folder / "libnpu_rope_kernels.so").exists()
    cache = (folder / "CMakeCache.txt").read_text()
    assert "NPU_ROPE_NPU:STRING=OFF\n" in cache
