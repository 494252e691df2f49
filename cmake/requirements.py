"""Prints the requirements that pyproject.toml names in the given groups, a line each."""

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:  # pip brings a copy for itself
    from pip._vendor import tomli as tomllib

project = tomllib.loads(Path(__file__).parent.with_name("pyproject.toml").read_text())
for group in sys.argv[1:]:
    named = project["project"]["optional-dependencies"]
    for requirement in (
        project["build-system"]["requires"] if group == "build-system" else named[group]
    ):
        print(requirement)
