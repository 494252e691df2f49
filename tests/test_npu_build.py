"""What CMake does where CANN is, against a stand-in: folders and functions by CANN's names.

Only CMake's configuration runs. The stand-in's functions write down what they are given.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
TORCH = ".".join(torch.__version__.split(".")[:2])

ASCENDC_LIBRARY = """
function(ascendc_library name kind)
  file(APPEND ${CMAKE_BINARY_DIR}/handed "ascendc_library ${name} ${kind} ${ARGN}\\n")
  file(APPEND ${CMAKE_BINARY_DIR}/handed
       "SOC_VERSION=${SOC_VERSION} RUN_MODE=${RUN_MODE} CANN=${ASCEND_CANN_PACKAGE_PATH} "
       "CMAKE_ASC_ARCHITECTURES=${CMAKE_ASC_ARCHITECTURES}\\n")
  add_library(${name} STATIC ${ARGN})
endfunction()
function(ascendc_include_directories name scope)
  file(APPEND ${CMAKE_BINARY_DIR}/handed "ascendc_include_directories ${name} ${scope} ${ARGN}\\n")
endfunction()
"""

# The least that CMake asks of a language: it is compiled by the C++ compiler.
ASC_LANGUAGE = {
    "CMakeDetermineASCCompiler.cmake": """
set(CMAKE_ASC_COMPILER ${CMAKE_CXX_COMPILER})
set(CMAKE_ASC_COMPILER_ENV_VAR ASC)
configure_file(${CMAKE_CURRENT_LIST_DIR}/CMakeASCCompiler.cmake.in
               ${CMAKE_PLATFORM_INFO_DIR}/CMakeASCCompiler.cmake @ONLY)
""",
    "CMakeASCCompiler.cmake.in": """
set(CMAKE_ASC_COMPILER "@CMAKE_ASC_COMPILER@")
set(CMAKE_ASC_COMPILER_LOADED 1)
set(CMAKE_ASC_SOURCE_FILE_EXTENSIONS asc)
""",
    "CMakeASCInformation.cmake": """
set(CMAKE_ASC_COMPILE_OBJECT "<CMAKE_ASC_COMPILER> -x c++ -c <SOURCE> -o <OBJECT>")
""",
    "CMakeTestASCCompiler.cmake": "set(CMAKE_ASC_COMPILER_WORKS 1)\n",
}


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def torch_npu(tmp_path: Path) -> Path:
    folder = tmp_path / "torch_npu"
    write(folder / "version.py", f"__version__ = '{TORCH}.0'\n")
    write(folder / "lib" / "libtorch_npu.so")
    return folder


@pytest.fixture
def cann8(tmp_path: Path) -> Path:
    folder = tmp_path / "cann"
    write(folder / "lib64" / "libascendcl.so")
    kernel_cmake = folder / "compiler" / "tikcpp" / "ascendc_kernel_cmake"
    write(kernel_cmake / "ascendc.cmake", ASCENDC_LIBRARY)
    return folder


@pytest.fixture
def cann9(cann8: Path) -> Path:
    kernel_cmake = cann8 / "compiler" / "tikcpp" / "ascendc_kernel_cmake"
    modules = kernel_cmake / "asc_modules"
    path = f'list(APPEND CMAKE_MODULE_PATH "{modules}")\n'
    write(kernel_cmake / "asc-config.cmake", path + ASCENDC_LIBRARY)
    for name, text in ASC_LANGUAGE.items():
        write(modules / name, text)
    return cann8


def configure(
    folder: Path, cann: Path | None, **options: str | Path
) -> tuple[subprocess.CompletedProcess[str], str]:
    """CMake's run, and what the stand-in was handed."""
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"}
    if cann:
        environment["ASCEND_HOME_PATH"] = str(cann)
    build = folder / "build"
    done = subprocess.run(
        ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
        + [f"-D{name}={value}" for name, value in options.items()],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    handed = build / "handed"
    # CMake breaks the lines of its messages.
    done.stdout = " ".join(done.stdout.split())
    return done, handed.read_text() if handed.exists() else ""


def links(folder: Path) -> str:
    """How the host library is linked."""
    ninja = (folder / "build" / "build.ninja").read_text()
    start = ninja.index("build libnpu_rope_npu.so:")
    return ninja[start : ninja.index("\n\n", start)]


def test_cann_8(tmp_path: Path, cann8: Path, torch_npu: Path) -> None:
    done, handed = configure(
        tmp_path, cann8, NPU_ROPE_TORCH_NPU_DIR=torch_npu, NPU_ROPE_SOC="Ascend910B3"
    )
    assert done.returncode == 0, done.stdout
    assert "ascendc_library rope_kernels STATIC " in handed and "/rope_bf16_half.cpp" in handed
    assert f"SOC_VERSION=Ascend910B3 RUN_MODE=npu CANN={cann8} " in handed
    assert f"ascendc_include_directories rope_kernels PRIVATE {ROOT}/csrc\n" in handed
    for library in (cann8 / "lib64" / "libascendcl.so", torch_npu / "lib" / "libtorch_npu.so"):
        assert str(library) in links(tmp_path)
    assert "-Wl,--no-undefined" in links(tmp_path)


def test_cann_9(tmp_path: Path, cann9: Path, torch_npu: Path) -> None:
    done, handed = configure(
        tmp_path, cann9, NPU_ROPE_TORCH_NPU_DIR=torch_npu, NPU_ROPE_SOC="Ascend910_9391"
    )
    assert done.returncode == 0, done.stdout
    assert "ascendc_library rope_kernels STATIC " in handed and "/rope_bf16_half.cpp" in handed
    assert "CMAKE_ASC_ARCHITECTURES=dav-2201\n" in handed
    assert str(torch_npu / "lib" / "libtorch_npu.so") in links(tmp_path)


def test_without_cann_nothing_is_built_and_nothing_is_wrong(tmp_path: Path) -> None:
    done, handed = configure(tmp_path, None)
    assert done.returncode == 0, done.stdout
    assert "no NPU library, which needs CANN: ASCEND_HOME_PATH is ''" in done.stdout
    assert "npu_rope_npu" not in (tmp_path / "build" / "build.ninja").read_text()
    assert not handed


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("cann", r"needs CANN: ASCEND_HOME_PATH is '', source CANN's set_env.sh"),
        ("torch_npu", "needs torch_npu: /nowhere has no lib/libtorch_npu.so"),
        ("version", f"torch_npu is 1.11, expected {TORCH} as torch is"),
        ("soc", "the chip is 'Ascend310P3', expected one of Ascend910B1, "),
        ("machine", "this machine's chip cannot be asked (see above); name the one to build for"),
        ("toolkit", "has neither an ASC package nor ascendc.cmake: install CANN's toolkit"),
    ],
)
def test_what_is_missing_is_an_error(
    tmp_path: Path, cann8: Path, torch_npu: Path, missing: str, message: str
) -> None:
    options = {
        "NPU_ROPE_NPU": "ON",
        "NPU_ROPE_TORCH_NPU_DIR": "/nowhere" if missing == "torch_npu" else torch_npu,
        "NPU_ROPE_SOC": {"soc": "Ascend310P3", "machine": ""}.get(missing, "Ascend910B1"),
    }
    if missing == "version":
        write(torch_npu / "version.py", "__version__ = '1.11.0'\n")
    if missing == "toolkit":
        (cann8 / "compiler" / "tikcpp" / "ascendc_kernel_cmake" / "ascendc.cmake").unlink()
    done, _ = configure(tmp_path, None if missing == "cann" else cann8, **options)
    assert done.returncode != 0
    assert message in done.stdout
