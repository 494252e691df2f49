"""The norms of q and k, taken into the call of the rotation that follows them.

A method is rewritten where its own statements say that nothing lies between:

    q = self.q_norm(rows)                   q = rows
    k = self.k_norm(rows)                   k = rows
    q, k = rotary(q, k, cos, sin)           q, k = normed(self.q_norm, self.k_norm, ..., q, k, ...)

each norm's result as it is or with .transpose(1, 2), which a norm of the last axis commutes with.
What the two modules are is found by running them.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable
from types import FunctionType
from typing import NamedTuple

import torch
from torch import nn

from npu_rope import source

from . import dispatch, forms


class Step(NamedTuple):
    """Where a method norms q and k and rotates them."""

    q_norm: str  # attributes of its module
    k_norm: str
    rotary: str  # the global name of the function


@functools.cache
def find(function: FunctionType, rotary: tuple[str, ...]) -> Step | None:
    """The method's one step that ends in a call of one of these functions."""
    try:
        found = _find(source.definition_of(function), rotary)
    except source.Unknown:
        return None
    if found is None:
        return None
    call, *norms = found
    return Step(*(norm.value.func.attr for norm in norms), call.func.id)


@functools.cache
def rewritten(
    function: FunctionType, step: Step, name: str, eps: float, offset: float
) -> FunctionType:
    """The method whose step is one call; `name` is the rotary function's full one."""
    definition = source.definition_of(function)
    call, *norms = _find(definition, (step.rotary,))
    modules = [norm.value.func for norm in norms]
    for norm in norms:
        norm.value = norm.value.args[0]
    call.func = ast.Name(_NORMED, ast.Load())
    call.args = [*modules, ast.Constant(eps), ast.Constant(offset), *call.args]
    ours = dispatch.replacement(
        function.__globals__[step.rotary], name, keep_bits=False, with_norms=True
    )
    return source.compiled(definition, function, {_NORMED: ours})


_NORMED = "npu_rope_normed"


def _find(
    definition: ast.FunctionDef, rotary: Iterable[str]
) -> tuple[ast.Call, ast.Assign | ast.Attribute, ast.Assign | ast.Attribute] | None:
    """The call of the rotary function, and what has q's norm, and k's, for its value."""
    steps = [
        (index, [name.id for name in target.elts], call)
        for index, statement in enumerate(definition.body)
        for target, call in [_assignment(statement)]
        if isinstance(target, ast.Tuple)
        and all(isinstance(name, ast.Name) for name in target.elts)
        and isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in rotary
    ]
    if len(steps) != 1:
        return None
    ((index, names, call),) = steps
    if [getattr(argument, "id", None) for argument in call.args[:2]] != names:
        return None
    norms = [_norm(name, definition.body[:index]) for name in names]
    return None if None in norms else (call, *norms)


def _norm(name: str, before: list[ast.stmt]) -> ast.Assign | ast.Attribute | None:
    """What has the norm of these rows for its value, where it is the last that is done to them."""
    uses = [
        statement
        for statement in before
        if any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(statement))
    ]
    holder = uses[-1] if uses else None
    target, value = _assignment(holder)
    if getattr(target, "id", None) != name:
        return None
    if isinstance(value, ast.Call) and ast.unparse(value).endswith(".transpose(1, 2)"):
        holder, value = value.func, value.func.value
    plain = (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and isinstance(value.func.value, ast.Name)
        and value.func.value.id == "self"
        and len(value.args) == 1
        and not isinstance(value.args[0], ast.Starred)
        and not value.keywords
    )
    return holder if plain else None


def _assignment(statement: ast.stmt | None) -> tuple[ast.expr, ast.expr] | tuple[None, None]:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        return statement.targets[0], statement.value
    return None, None


def constants(q_norm: object, k_norm: object) -> tuple[float, float] | None:
    """(eps, weight_offset), the same of both, where each is an RMSNorm with a weight a column."""
    found = _constants(q_norm)
    return found if found == _constants(k_norm) else None


def _constants(norm: object) -> tuple[float, float] | None:
    if not isinstance(norm, nn.Module) or norm._forward_hooks or norm._forward_pre_hooks:
        return None
    held = {name: tuple(x.shape) for name, x in norm.named_parameters()}
    if [*held] != ["weight"] or len(held["weight"]) != 1 or any(norm.buffers()):
        return None
    (width,) = held["weight"]
    for eps in {getattr(norm, name, None) for name in ("variance_epsilon", "eps")}:
        if not isinstance(eps, float) or not eps > 0:
            continue
        with forms.undisturbed():
            generator = torch.Generator("cpu").manual_seed(5)
            weight, *rows = (
                torch.randn(shape, generator=generator, device="cpu")
                for shape in ((width,), (2, 3, 5, width), (2, 3, 5, width))
            )
            # Of rows as small as that, eps is half of the mean.
            rows = torch.stack((rows[0], rows[1] * eps**0.5))
            try:
                own = torch.func.functional_call(norm, {"weight": weight}, (rows,))
            except forms.REFUSALS:
                return None
        for offset in (0.0, 1.0):
            exact = rows.double() * (rows.double().square().mean(-1, keepdim=True) + eps).rsqrt()
            exact = exact * (offset + weight.double())
            near = isinstance(own, torch.Tensor) and own.shape == exact.shape
            if near and torch.allclose(own.double(), exact, rtol=1e-5, atol=1e-6):
                return eps, offset
    return None
