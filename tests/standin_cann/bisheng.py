#!@PYTHON@
"""The stand-in for CANN's compiler (README.md): g++ over the simulator's headers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

CANN = Path("@CANN@")
CSRC = Path("@CSRC@")
TAKES_ASC = "@TAKES_ASC@" == "yes"

KNOWN = re.compile(
    r"-(c|E|shared|fPIC|O[0-3s]|std=.*|[IDLl].*|W.*|MD|-npu-arch=.*|-cce-.*|-aicore-only|x|o|MT|MF"
    r"|include|mllvm)"
)
WITH_VALUE = ("-x", "-o", "-MT", "-MF", "-include", "-mllvm")
NEEDED = ["-ffp-contract=off", "-fno-strict-aliasing", "-O1", "-w"]


def fail(text: str) -> None:
    sys.exit(f"bisheng: error: {text}")


def parse(arguments: list[str]) -> tuple[dict[str, str], list[str], list[str]]:
    values, flags, inputs = {}, [], []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            inputs.append(argument)
        elif not KNOWN.fullmatch(argument):
            fail(f"unknown argument: '{argument}'")
        elif argument in WITH_VALUE:
            values[argument] = next(rest)
        else:
            flags.append(argument)
    return values, flags, inputs


def run(*command: str | Path) -> None:
    code = subprocess.run([str(part) for part in command], check=False).returncode
    if code:
        sys.exit(code)


def with_launches(text: str) -> str:
    """kernel<<<cores, nullptr, stream>>>(...) as a call."""
    return re.sub(
        r"(\w+)<<<\s*(\w+), nullptr, (\w+)\s*>>>\(", r'standin_launch(\1, "\1", \2, \3, ', text
    )


def compile_source(values: dict[str, str], flags: list[str], source: str) -> None:
    asc = values.get("-x") == "asc"
    if "-x" in values and not (asc and TAKES_ASC):
        fail(f"language not recognized: '{values['-x']}'")
    if asc and "--npu-arch=dav-2201" not in flags:
        fail("no --npu-arch")
    standard = next((flag for flag in flags if flag.startswith("-std=")), "-std=c++98")
    own = [flag for flag in flags if flag[:2] in ("-I", "-D") or flag == "-fPIC"]
    if "-include" in values:
        own += ["-include", values["-include"]]
    output = values["-o"]
    if "-MF" in values:
        Path(values["-MF"]).write_text(f"{output}: {source} {CANN}/no/such/header.h\n")
    if "-E" in flags:  # what is read of it are the kernels, not CANN's headers
        marks = f"-I{CANN}/standin/marks"
        run("g++", "-x", "c++", standard, marks, *own, "-E", source, "-o", output)
        return
    code = Path(source).read_text()
    if asc:
        code = f'#include "standin_launch.h"\n#line 1 "{source}"\n{with_launches(code)}'
        dump = "-DASCENDC_DUMP=0" not in flags
        own += [f"-DSTANDIN_DUMP={int(dump)}"]
    translated = Path(f"{output}.cpp")
    translated.write_text(code)
    folders = (CANN / "standin", CANN / "standin/kernel", CSRC / "simulator/ascendc")
    includes = [f"-I{folder}" for folder in (*folders, Path(source).parent)]
    run("g++", "-x", "c++", standard, *includes, *own, *NEEDED, "-c", translated, "-o", output)


def runtime() -> Path:
    """What is under a launch: CANN's runtime library and the simulator of cores, compiled once."""
    archive = CANN / "standin" / "libruntime.a"
    if not archive.exists():
        sources = [CSRC / "simulator/acl/launch.cpp", CSRC / "npu/chip.cpp"]
        sources += sorted((CSRC / "simulator/ascendc").glob("*.cpp"))
        sources.append(CANN / "standin/enqueue.cpp")
        objects = []
        for source in sources:
            objects.append(CANN / "standin" / f"{source.stem}.{source.parent.name}.o")
            options = ["-std=c++17", "-fPIC", "-fvisibility=hidden", f"-I{CSRC}"]
            run("g++", *options, *NEEDED, "-isystem@ACL@", "-c", source, "-o", objects[-1])
        run("ar", "rcs", archive, *objects)
    return archive


def link(values: dict[str, str], flags: list[str], objects: list[str]) -> None:
    if not any(flag.startswith("--npu-arch=") for flag in flags):
        fail("no --npu-arch")
    own = [flag for flag in flags if flag.startswith(("-Wl,", "-L", "-l"))]
    run("g++", "-shared", *objects, runtime(), *own, f"-L{CANN}/lib64", "-lascendcl", "-lpthread",
        "-o", values["-o"])  # fmt: skip


def main(arguments: list[str]) -> None:
    with open(CANN / "commands", "a") as log:
        log.write(json.dumps({"arguments": arguments, "folder": os.getcwd()}) + "\n")
    if arguments == ["--runtime"]:
        print(runtime())
        return
    values, flags, inputs = parse(arguments)
    if "-shared" in flags:
        link(values, flags, inputs)
    else:
        compile_source(values, flags, *inputs)


main(sys.argv[1:])
