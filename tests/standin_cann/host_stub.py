"""Writes the launch functions of the kernels in preprocessed sources (ascendc_library)."""

import json
import os
import re
import sys
from pathlib import Path

KERNEL = re.compile(r"__attribute__\(\(cce_kernel\)\)\s*\[aicore\]\s*void\s+(\w+)\(([^)]*)\)\s*\{")
TYPE = re.compile(r"standin_kernel_type = (\w+);")
STRUCT = re.compile(r"^\s*struct\s+(\w+)\s*\{(.*?)\};", re.MULTILINE | re.DOTALL)

HEAD = """\
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
extern "C" const char* aclrtGetSocName();
void standin_enqueue(const char* kernel, uint32_t blocks, void* stream, bool allocates,
                     const std::function<void()>& run);
namespace {
bool registered = false;
struct Register {
  Register() {
    const char* const soc = aclrtGetSocName();
    if (!soc) std::abort();
    registered = std::string(soc).rfind("Ascend910", 0) == 0;
  }
} now;
}  // namespace
"""

LAUNCH = """\
extern "C" void {name}({types});
extern "C" uint32_t aclrtlaunch_{name}(uint32_t blocks, void* stream, {pointers}) {{
  if (!registered) {{
    std::printf("[ERROR] the socversion does not match\\n");
    return 0;
  }}
  standin_enqueue("{name}", {times} * blocks, stream, true, [={copies}] {{ {name}({arguments}); }});
  return 0;
}}
"""


def definitions(text: str, name: str, known: set[str]) -> str:
    """The struct of this name and those that it holds, as they stand in the source."""
    structs = dict(STRUCT.findall(text))
    if name not in structs or name in known:
        return ""
    known.add(name)
    held = [line.split()[0] for line in structs[name].split(";") if line.split()]
    inner = "".join(definitions(text, type_, known) for type_ in held)
    return f"{inner}struct {name} {{{structs[name]}}};\n"


def main(build: str, output: str, *objects: str) -> None:
    commands = json.loads(Path(build, "compile_commands.json").read_text())
    sources = {}
    for command in commands:
        words = command["command"].split()
        sources[os.path.join(command["directory"], words[words.index("-o") + 1])] = command["file"]
    stub, known = HEAD, set[str]()
    for path in objects:
        source = sources[os.path.abspath(path)]
        text = Path(path).read_text().replace("__attribute__((cce_global))", "")
        kind = TYPE.search(text)
        vector = kind is not None and kind[1] == "KERNEL_TYPE_AIV_ONLY"
        kernels = KERNEL.findall(text)
        if not kernels:
            sys.exit(f"no kernel in {source}")
        for name, parameters in kernels:
            types, pointers, copies, arguments = [], [], "", []
            for parameter in parameters.split(","):
                type_, word = parameter.replace("*", "* ").strip().rsplit(maxsplit=1)
                types.append(type_)
                if "*" in type_:
                    pointers.append(f"void* {word}")
                    arguments.append(f"(uint8_t*){word}")
                else:
                    pointers.append(f"{type_}* {word}")
                    copies += f", {word}_copy = *{word}"
                    arguments.append(f"{word}_copy")
                    stub += definitions(text, type_, known)
            stub += LAUNCH.format(
                name=name,
                types=", ".join(types),
                pointers=", ".join(pointers),
                times=1 if vector else 2,
                copies=copies,
                arguments=", ".join(arguments),
            )
    Path(output).write_text(stub)


main(*sys.argv[1:])
