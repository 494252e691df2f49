"""What type checkers, editors and help() see of the package."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
import typing
from pathlib import Path

import npu_rope
import pytest
import torch
from test_docs import PAGES, ROOT

FORMS = ("apply", "apply_", "apply_out", "apply_backward")
CHECKERS = {
    "mypy": ("mypy", "--strict", "--no-error-summary", "--python-executable", sys.executable),
    "pyright": ("basedpyright", "--level", "error", "--pythonpath", sys.executable),
}
# What each has to be refused for is on the line; a checker that sees nothing refuses nothing.
WRONG = """
import torch, npu_rope
x = torch.ones(1, 1, 2)
npu_rope.apply(x, x, x[0], x[0], rotry_dim=2)  # wrong
npu_rope.apply(x, x, x[0], x[0], rotary_dim="2")  # wrong
npu_rope.apply(1, x, x[0], x[0])  # wrong
npu_rope.aply(x, x, x[0], x[0])  # wrong
only_q: None = npu_rope.apply(x, None, x[0], x[0])[1]
not_q: None = npu_rope.apply(x, None, x[0], x[0])[0]  # wrong
both: tuple[torch.Tensor, torch.Tensor] = npu_rope.apply(x, x, x[0], x[0], interleaved=True)
npu_rope.apply_(x, None, x[0], x[0])
run = npu_rope.simulator.apply(x, x, x[0], x[0], soc="Ascend910B1", round_each=True)
moved: int = run.trace.gm_bytes
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples of every page, each page one module, and the wrong calls."""
    folder = tmp_path_factory.mktemp("examples")
    for page in PAGES:
        examples = doctest.DocTestParser().get_examples((ROOT / page).read_text())
        if examples:
            name = "_".join(page.with_suffix("").parts).replace("-", "_").lower()
            (folder / f"{name}.py").write_text("".join(example.source for example in examples))
    assert (folder / "readme.py").exists()
    (folder / "wrong.py").write_text(WRONG)
    return folder


@pytest.mark.parametrize("checker", CHECKERS)
def test_checkers_take_the_examples_and_see_what_is_wrong(programs: Path, checker: str) -> None:
    program, *options = CHECKERS[checker]
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *options, *sorted(programs.glob("*.py"))],
        cwd=programs,
        capture_output=True,
        text=True,
    )
    found = [line.strip() for line in done.stdout.splitlines() if "error" in line.lower()]
    found = [line for line in found if ".py:" in line]
    wrong = {n for n, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# wrong")}
    seen = {int(line.split("wrong.py:")[1].split(":")[0]) for line in found if "wrong.py:" in line}
    assert seen == wrong, done.stdout + done.stderr
    assert not [line for line in found if "wrong.py:" not in line], done.stdout + done.stderr


@pytest.mark.parametrize("form", FORMS)
def test_signatures_show_every_option_and_its_default(form: str) -> None:
    function = getattr(npu_rope, form)
    ops = torch.ops.npu_rope
    schema = (ops.apply.out if form == "apply_out" else getattr(ops, form).default)._schema
    parameters = inspect.signature(function).parameters
    assert {*parameters} == {argument.name for argument in schema.arguments}
    for argument in schema.arguments:
        default = parameters[argument.name].default
        assert default == (
            argument.default_value if argument.has_default_value() else inspect._empty
        )
        assert parameters[argument.name].kind.name.startswith("KEYWORD") == argument.kwarg_only
    hints = typing.get_type_hints(function)
    assert set(hints) == {*parameters, "return"}
