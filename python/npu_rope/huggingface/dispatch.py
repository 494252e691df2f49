"""A model's own rotary function, and the operator in its place where that is the same."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import forms
from .forms import Call, Form, Spec

DEVICES = ("npu", "cpu", "meta")

# The names that Hugging Face gives to the same arguments.
_Q, _K = ("q", "xq", "query", "x", "tensor", "hidden_states"), ("k", "xk", "key")
_TABLES, _COMPLEX_TABLE = ("cos", "sin"), ("freqs_cis", "freqs_ci")


class Roles(NamedTuple):
    """Which parameters of a function are the rotation's."""

    names: tuple[str, ...]
    defaults: dict[str, Any]
    q: str
    k: str | None
    cos: str  # the complex table where there is no sin
    sin: str | None

    def unsqueeze_dim(self, given: dict[str, Any]) -> int:
        return given.get("unsqueeze_dim", self.defaults.get("unsqueeze_dim", 0))


def roles(function: Callable) -> Roles | None:
    """The rotation's arguments by their names; None for a function of something else.

    An argument that is neither the rotation's nor has a default may change the result.
    """
    parameters = inspect.signature(own_code(function)).parameters
    named = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    if any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in named.values()):
        return None
    q = next((name for name in _Q if name in named), None)
    k = next((name for name in _K if name in named), None)
    complex_table = next((name for name in _COMPLEX_TABLE if name in named), None)
    cos, sin = (complex_table, None) if complex_table else _TABLES
    if q is None or cos not in named or (sin is not None and sin not in named):
        return None
    required = {name for name, p in named.items() if p.default is p.empty}
    if required - {q, k, cos, sin, "unsqueeze_dim"}:
        return None
    defaults = {name: p.default for name, p in named.items() if p.default is not p.empty}
    return Roles(tuple(named), defaults, q, k, cos, sin)


def own_code(function: Callable) -> Callable:
    """The model's own function, whatever kernel took its place."""
    if isinstance(function, nn.Module):
        return type(function).forward.__get__(function)
    return function


@dataclass
class Entry:
    """One model's function, and the form of the operator for each kind of call met so far."""

    name: str
    function: Callable  # the model's own code
    roles: Roles
    keep_bits: bool
    found: dict[Call, Form | str] = field(default_factory=dict)

    def find(self, call: Call) -> Form | str:
        if call not in self.found:
            if self.keep_bits and self.roles.sin is None:
                # torch fuses the products of complex numbers in the last elements of a loop only,
                # which depends on sizes and threads.
                self.found[call] = "products of complex numbers round otherwise"
            else:
                self.found[call] = forms.find(self._as_probed, call, keep_bits=self.keep_bits)
        return self.found[call]

    def _as_probed(
        self, q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, unsqueeze_dim: int
    ) -> object:
        if self.roles.sin is None:
            given = {self.roles.q: q, self.roles.cos: torch.complex(cos, sin)}
        else:
            given = {self.roles.q: q, self.roles.cos: cos, self.roles.sin: sin}
        if self.roles.k is not None:
            given[self.roles.k] = k
        if "unsqueeze_dim" in self.roles.names:
            given["unsqueeze_dim"] = unsqueeze_dim
        return self.function(**given)


_entries: list[Entry] = []
_index: dict[tuple[object, bool], int] = {}


def entries() -> tuple[Entry, ...]:
    return tuple(_entries)


def entry(key: object, name: str, function: Callable, *, keep_bits: bool) -> int:
    """The number of the function's entry, by which a traced call refers to it."""
    if (key, keep_bits) not in _index:
        _entries.append(Entry(name, function, roles(function), keep_bits))
        _index[key, keep_bits] = len(_entries) - 1
    return _index[key, keep_bits]


# torch.compile takes what these return as a constant: they are run, not traced. What they are given
# has to be plain: of a named tuple the tracer makes an empty one.
@torch.compiler.assume_constant_result
def entry_of_kernel(cls: type[nn.Module], keep_bits: bool) -> int:
    """The entry of a function of which the package kernels made a module of this class."""
    if (index := _index.get((cls, keep_bits))) is not None:
        return index
    function = inspect.getclosurevars(cls.forward).nonlocals.get("func", cls)
    name = f"{function.__module__}.{function.__qualname__}"
    return entry(cls, name, own_code(cls()), keep_bits=keep_bits)


@torch.compiler.assume_constant_result
def form_of(
    index: int, unsqueeze_dim: int, q: tuple, k: tuple | None, cos: tuple, sin: tuple
) -> Form | None:
    entry = _entries[index]
    key = q, k, cos, sin, unsqueeze_dim  # equal to the Call of the same specs
    if (found := entry.found.get(key)) is None:
        k_spec = None if k is None else Spec(*k)
        found = entry.find(Call(Spec(*q), k_spec, Spec(*cos), Spec(*sin), unsqueeze_dim))
    return found if isinstance(found, Form) else None


def rotate(
    index: int,
    unsqueeze_dim: int,
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    norm: forms.Norm | None = None,
) -> Any:  # noqa: ANN401
    """What the function returns, by the operator; None where only its own code will do."""
    if q.device.type not in DEVICES:
        return None
    key = None if k is None else _spec(k)
    numbers = operator.index(index), operator.index(unsqueeze_dim)
    form = form_of(*numbers, _spec(q), key, _spec(cos), _spec(sin))
    if form is None or not forms.fits(form, q, k, cos, sin):
        return None
    if torch.is_grad_enabled():
        if cos.requires_grad or sin.requires_grad:
            return None
        if not form.in_training and (q.requires_grad or (k is not None and k.requires_grad)):
            return None
    return forms.apply(form, q, k, cos, sin, norm)


def _spec(x: Tensor) -> tuple[torch.dtype, int, int]:
    # index: a width that a tracer took for a variable is one no longer
    return x.dtype, x.dim(), operator.index(x.shape[-1])


def replacement(
    function: Callable, name: str, *, keep_bits: bool, with_norms: bool = False
) -> Callable:
    """A function of the same arguments that asks the operator first.

    with_norms: it takes the norms of q and k before them, (q_norm, k_norm, eps, offset, q, k, ...).
    """
    own = own_code(function)
    index = entry(function, name, own, keep_bits=keep_bits)
    role = _entries[index].roles
    rotation = {role.q, role.k, role.cos, role.sin, "unsqueeze_dim"}

    def ours(norm: forms.Norm | None, args: tuple, kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        given = dict(zip(role.names, args, strict=False))
        given.update(kwargs)
        for name, value in given.items():
            if name not in rotation and value is not role.defaults.get(name):
                return None
        cos = given[role.cos]
        cos, sin = (cos.real, cos.imag) if role.sin is None else (cos, given[role.sin])
        key = None if role.k is None else given.get(role.k)
        return rotate(index, role.unsqueeze_dim(given), given[role.q], key, cos, sin, norm)

    def rotary(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        result = ours(None, args, kwargs)
        return own(*args, **kwargs) if result is None else result

    def normed(
        q_norm: nn.Module,
        k_norm: nn.Module,
        eps: float,
        offset: float,
        q: Tensor,
        k: Tensor,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """The same for rows that the model norms first."""
        weights = q_norm.weight, k_norm.weight
        # Of another dtype, they change the result's; those of an offloaded module are elsewhere.
        if all(w.dtype == q.dtype and w.device == q.device for w in weights):
            result = ours((*weights, eps, offset), (q, k, *args), kwargs)
            if result is not None:
                return result
        return rotary(q_norm(q), k_norm(k), *args, **kwargs)

    return normed if with_norms else rotary
