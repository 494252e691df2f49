"""Every rotary function of Hugging Face transformers, and what npu_rope.huggingface does with it.

    python -m tests.huggingface_functions [--transformers FOLDER] [--write]

prints the tables of docs/huggingface.md, or writes them there. The functions are taken out of the
sources one by one, with what they call in their file, so that no model has to be imported.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import npu_rope  # noqa: F401  registers the operator
import torch
from npu_rope.huggingface import dispatch, forms
from npu_rope.huggingface.forms import Call, Form, Spec

PAGE = Path(__file__).parent.parent / "docs" / "huggingface.md"
BEGIN, END = "<!-- generated: functions -->", "<!-- end -->"
HEAD_DIM = 64


@dataclass(frozen=True)
class Function:
    """One function of one model's file."""

    model: str
    name: str
    dispatched: bool  # transformers lets the package kernels replace it
    source: str  # of it and of all that it calls in its file

    def compiled(self) -> Callable:
        names = {"torch": torch, "__name__": f"transformers.models.{self.model}"}
        exec(self.source, names)
        return names[self.name]


def functions(transformers: Path) -> Iterator[Function]:
    """Every function of a model's file that takes rows, cos and sin, or rows and complex tables."""
    for path in sorted(transformers.glob("models/*/modeling_*.py")):
        text = path.read_text()
        if not re.search(r"\bdef \w+\([^)]*\b(cos|freqs_ci|freqs_cis)\b", text):
            continue
        blocks = re.split(r"\n(?=[^\s)\]}#])", text)  # what begins in the first column
        classes = "\n".join(block for block in blocks if re.match(r"(@[^\n]*\n)*class ", block))
        definitions = {}
        decorator = ""
        for block in blocks:
            if block.startswith("@"):
                decorator += block + "\n"
                continue
            if block.startswith("def "):
                (node,) = ast.parse(decorator + block).body
                definitions[node.name] = node
            decorator = ""
        for name, node in definitions.items():
            arguments = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
            tables = {"cos", "sin"} <= arguments or {"freqs_cis", "freqs_ci"} & arguments
            if tables and len(arguments) > 2 and re.search(rf"\b{name}\b", classes):
                # A decorated function is found by kernelize where a class has it attached.
                decorated = any("rotary_pos_emb" in ast.unparse(d) for d in node.decorator_list)
                attached = re.search(rf"^@use_kernelized_func\([^)]*\b{name}\b", text, re.M)
                called = _with_called(name, definitions)
                source = "\n".join(_bare(definitions[name]) for name in sorted(called))
                model = path.stem.removeprefix("modeling_")
                yield Function(model, name, bool(decorated and attached), source)


def _with_called(name: str, definitions: dict[str, ast.FunctionDef]) -> set[str]:
    found, new = set(), {name}
    while new:
        found |= new
        read = {
            node.id
            for function in new
            for node in ast.walk(definitions[function])
            if isinstance(node, ast.Name)
        }
        new = (read & set(definitions)) - found
    return found


def _bare(function: ast.FunctionDef) -> str:
    """Its source without decorators, annotations and docstring."""
    (node,) = ast.parse(ast.unparse(function)).body
    node.decorator_list, node.returns = [], None
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    if ast.get_docstring(node) is not None:
        node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(node)


@dataclass(frozen=True)
class Row:
    """What is done with a function, in the words of the table."""

    rotation: str
    tables: str
    arithmetic: str
    training: str


def row(function: Callable) -> Row | str:
    """How bf16 and fp16 calls of the function are served, or why they are left to its own code."""
    if (roles := dispatch.roles(function)) is None:
        return f"takes {', '.join(inspect.signature(function).parameters)}"
    # The ranks of q and of the tables that models call with, the most usual first.
    reason = ""
    for ranks in ((4, 3), (3, 2), (4, 2), (4, 4)):
        for width in (HEAD_DIM, HEAD_DIM // 2):
            found = {dtype: _find(function, roles, dtype, ranks, width) for dtype in _HALF}
            bf16, fp16 = found.values()
            assert bf16 == fp16, (function, found)
            if isinstance(bf16, Form):
                part = _find(function, roles, torch.bfloat16, ranks, width // 2)
                return _row(bf16, width, part if isinstance(part, Form) else None)
            if bf16 != forms.NOT_RUN:
                reason = reason or bf16
    return reason or forms.NOT_RUN


_HALF = (torch.bfloat16, torch.float16)


def _find(
    function: Callable,
    roles: dispatch.Roles,
    dtype: torch.dtype,
    ranks: tuple[int, int],
    width: int,
    *,
    tables: torch.dtype | None = None,
    keep_bits: bool = True,
) -> Form | str:
    q = Spec(dtype, ranks[0], HEAD_DIM)
    table = Spec(tables or (torch.float32 if roles.sin is None else dtype), ranks[1], width)
    unsqueeze_dim = roles.unsqueeze_dim({})
    entry = dispatch.Entry("", function, roles, keep_bits)
    return entry.find(Call(q, None if roles.k is None else q, table, table, unsqueeze_dim))


def _row(form: Form, width: int, part: Form | None) -> Row:
    rotation = "interleaved" if form.interleaved else "half"
    if form.deinterleave:
        rotation += ", to half order"
    if form.inverse:
        rotation += ", other way"
    if part is not None:
        rotation += ", last part of the head" if part.rotary_offset else ", part of the head"
    if form.rotary_dim == 2 * width:
        tables = "half"
    else:
        tables = "full" if form.columns == width else "full, first half read"
    arithmetic = "each step rounded" if form.round_each else "float32, one rounding"
    return Row(rotation, tables, arithmetic, "yes" if form.in_training else "own code")


def table(transformers: Path) -> str:
    """The generated part of the page."""
    sources: dict[tuple[str, str], Row | str] = {}
    rows: dict[tuple[str, str, Row], list[str]] = {}
    left: dict[tuple[str, str], list[str]] = {}
    counts = {"register": 0, "patch": 0, "left": 0}
    for function in functions(transformers):
        key = function.name, function.source
        if key not in sources:
            sources[key] = row(function.compiled())
        found = sources[key]
        if isinstance(found, str):
            counts["left"] += 1
            left.setdefault((function.name, found), []).append(function.model)
            continue
        by = "register" if function.dispatched else "patch"
        counts[by] += 1
        rows.setdefault((function.name, by, found), []).append(function.model)
    total = sum(counts.values())
    lines = [
        f"Of {total} functions, {counts['register']} are served by `register` and by `patch`, "
        f"{counts['patch']} by `patch` alone; {counts['left']} are left to their models.",
        "",
        "| function | by | pairs | tables | in bf16 and fp16 | training | models |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, by, found), models in sorted(rows.items(), key=lambda item: -len(item[1])):
        lines.append(
            f"| `{name}` | {by} | {found.rotation} | {found.tables} | {found.arithmetic} "
            f"| {found.training} | {', '.join(models)} ({len(models)}) |"
        )
    lines += ["", "| left to the model | because | models |", "|---|---|---|"]
    for (name, reason), models in sorted(left.items()):
        lines.append(f"| `{name}` | {reason} | {', '.join(models)} |")
    return "\n".join(lines)


def page_with(generated: str, page: str) -> str:
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{generated}\n{END}{after}"


def installed() -> Path:
    return Path(importlib.util.find_spec("transformers").origin).parent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--transformers", type=Path, default=installed(), help="the package's folder"
    )
    parser.add_argument("--write", action="store_true", help=f"write the tables to {PAGE.name}")
    options = parser.parse_args()
    generated = table(options.transformers)
    if options.write:
        PAGE.write_text(page_with(generated, PAGE.read_text()))
    else:
        print(generated)
