"""The Dockerfiles for LMDeploy's images, as far as they can be looked at without those images."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "docker").glob("Dockerfile_*"))


def instructions(recipe: Path, name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", recipe.read_text(), re.MULTILINE)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_types_what_the_page_says(recipe: Path) -> None:
    page = (ROOT / "docs/building.md").read_text()
    typed = re.search(r"In a container of that image.*?```sh\n(.*?)```", page, re.DOTALL)[1]
    lines = [line for line in typed.splitlines() if not line.startswith("cd ")]
    assert [line.removesuffix(" || true") for line in instructions(recipe, "RUN")] == lines


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_names_what_exists(recipe: Path) -> None:
    assert f"-f docker/{recipe.name} ." in recipe.read_text()
    for copied in instructions(recipe, "COPY"):
        *sources, _ = shlex.split(copied)
        assert all((ROOT / source).exists() for source in sources)
    ignored = (ROOT / ".dockerignore").read_text().split()
    needed = ("setup.py", "pyproject.toml", "CMakeLists.txt", "csrc", "cmake", "python", "LICENSE")
    assert not {*needed} & {*ignored} and all((ROOT / name).exists() for name in needed)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_a_recipe_installs_what_the_build_requires(recipe: Path) -> None:
    """Without build isolation nothing else does; the images' own setuptools is older."""
    requires = re.search(r"requires = \[(.*?)\]", (ROOT / "pyproject.toml").read_text())[1]
    installed = shlex.split(instructions(recipe, "RUN")[0])
    for requirement in re.findall(r'"(.*?)"', requires):
        if re.match(r"(cmake|ninja)", requirement):  # any that pip gives
            requirement = re.match(r"\w+", requirement)[0]
        assert requirement in installed
