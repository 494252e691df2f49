"""A method of another package with a few of its statements replaced, where they are as expected.

The rest of the method stays the other's, whatever version it is of. Where the statements are not
there, or not once, or what they rely on reads differently, nothing is replaced: `Unknown` says so.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any


class Unknown(Exception):
    """It reads differently from what was tried."""


def replaced(
    function: Callable[..., Any], before: str, ours: str, names: Mapping[str, object]
) -> Callable[..., Any]:
    """The function with `ours` in place of `before`: statements, or one expression.

    They are compared by what they parse to, so neither layout nor comments count. In `ours`,
    `its_own` stands for what was there. It sees what `names` names, beside all that the function
    sees.
    """
    definition = definition_of(function)
    _replace(definition, before, ours)
    return compiled(definition, function, names)


def compiled(
    definition: ast.FunctionDef, function: Callable[..., Any], names: Mapping[str, object]
) -> Callable[..., Any]:
    """The function with this definition in place of its own, which sees what `names` names too."""
    # A function inside another one, whose arguments are the names that `ours` sees.
    outer = ast.parse(f"def bind({', '.join(names)}): pass\ndel bind")
    assert isinstance(outer.body[0], ast.FunctionDef)
    ast.increment_lineno(definition, function.__code__.co_firstlineno - definition.lineno)
    outer.body[0].body = [definition, *ast.parse(f"return {definition.name}").body]
    outer.body.pop()
    ast.fix_missing_locations(outer)
    namespace: dict[str, Any] = {}
    exec(compile(outer, function.__code__.co_filename, "exec"), function.__globals__, namespace)
    return functools.update_wrapper(namespace["bind"](**names), function)


def check(owner: object, hashes: Mapping[str, tuple[str, ...]]) -> None:
    """That functions which the replaced statements call have a body that was tried."""
    for name, known in hashes.items():
        came = body_hash(getattr(owner, name, None))
        if came not in known:
            raise Unknown(f"{name}, which it relies on, reads differently ({came})")


def body_hash(function: object) -> str:
    """Of the statements alone: no layout, comments, documentation or type hints."""
    body = definition_of(function).body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return hashlib.sha256("\n".join(map(ast.unparse, body)).encode()).hexdigest()[:12]


def definition_of(function: object) -> ast.FunctionDef:
    """What its source parses to, where it is a plain function and that is all there is to it."""
    if not isinstance(function, FunctionType):
        raise Unknown(f"it is a {type(function).__name__}, expected a function")
    if hasattr(function, "__wrapped__") or function.__closure__ is not None:
        raise Unknown("it is wrapped by another already")
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError) as error:
        raise Unknown(f"its source can't be read: {error}") from error
    (definition,) = tree.body
    decorators = [ast.unparse(x) for x in getattr(definition, "decorator_list", [])]
    if not isinstance(definition, ast.FunctionDef) or decorators not in ([], ["staticmethod"]):
        raise Unknown("it is no plain function")
    return definition


def _replace(definition: ast.FunctionDef, before: str, ours: str) -> None:
    wanted = ast.parse(textwrap.dedent(before)).body
    if len(wanted) == 1 and isinstance(wanted[0], ast.Expr):
        wanted = [wanted[0].value]
    expected = [ast.dump(node) for node in wanted]

    places: list[tuple[list[ast.AST], int, ast.AST | None, str]] = []
    for parent in ast.walk(definition):
        for field, value in ast.iter_fields(parent):
            nodes = value if isinstance(value, list) else [value]
            for first in range(len(nodes) - len(expected) + 1):
                found = nodes[first : first + len(expected)]
                dumps = [ast.dump(node) if isinstance(node, ast.AST) else "" for node in found]
                if dumps == expected:
                    places.append((nodes, first, None if nodes is value else parent, field))
    if len(places) != 1:
        raise Unknown(f"its source has `{before.strip()}` {len(places)} times, expected once")
    ((nodes, first, parent, field),) = places

    theirs = nodes[first : first + len(expected)]
    tree = ast.parse(textwrap.dedent(ours))
    for node in ast.walk(tree):  # in a traceback, ours stands where theirs does
        if "lineno" in node._attributes:
            ast.copy_location(node, theirs[0])
    filled = _Fill(theirs).visit(tree).body
    if isinstance(theirs[0], ast.expr):
        filled = [filled[0].value]
    nodes[first : first + len(expected)] = filled
    if parent is not None:
        setattr(parent, field, nodes[0])
    lost = _assigned(wanted) - _assigned(ast.parse(textwrap.dedent(ours)).body)
    inside = {id(node) for outer in theirs for node in ast.walk(outer)}
    names = (x for x in ast.walk(definition) if isinstance(x, ast.Name) and id(x) not in inside)
    if used := sorted(lost & {name.id for name in names}):
        raise Unknown(f"its source uses {', '.join(used)} elsewhere")


def _assigned(nodes: list[ast.AST]) -> set[str]:
    names = (name for node in nodes for name in ast.walk(node) if isinstance(name, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}


class _Fill(ast.NodeTransformer):
    """Puts what was there in the place of `its_own`."""

    def __init__(self, theirs: list[ast.AST]) -> None:
        self.theirs = theirs

    def visit_Expr(self, node: ast.Expr) -> ast.AST | list[ast.AST]:
        if isinstance(node.value, ast.Name) and node.value.id == "its_own":
            return self.theirs
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self.theirs[0] if node.id == "its_own" else node
