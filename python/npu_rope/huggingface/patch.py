"""Rotary functions that transformers does not dispatch, replaced in one model's modules."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from types import CellType, CodeType, FunctionType, MethodType

from torch import nn

from . import dispatch, norms


def patch(model: nn.Module, *, keep_bits: bool = True, with_norms: bool = False) -> dict[str, int]:
    """Let this model's modules call the operator where they call a rotary function.

    Every method of every module that calls a function over q, k, cos and sin is given to that
    module anew, calling the operator in its place; other models are not touched. See
    :func:`npu_rope.huggingface.register` for ``keep_bits`` and for what is left to the model.

    Args:
        keep_bits: as for ``register``.
        with_norms: where a method norms every head of q and k by RMSNorm just before it rotates
            them, as Qwen3's and Gemma-3's do, both are one call. It rounds once, at the end, so it
            is refused beside ``keep_bits``.

    Returns:
        How many modules call each function, by the function's name; "... after norms" where the
        norms are in the call.

    Raises:
        ValueError: no module of the model calls such a function, or both arguments are True.
            Nothing is changed then.
    """
    if with_norms and keep_bits:
        raise ValueError("with_norms rounds otherwise than the model, expected keep_bits=False")
    methods = [
        (module, name, method, called)
        for module in model.modules()
        for name, method in _methods(module)
        if (called := _called(method))
    ]
    if not methods:
        raise ValueError(
            f"no module of {type(model).__name__} calls a function over q, k, cos and sin; "
            "expected a model of Hugging Face transformers"
        )
    counts: dict[str, int] = {}
    for module, name, method, called in methods:
        changed = with_norms and _norming_ours(module, method)
        if changed:
            called = [f"{function} after norms" for function in called]
        else:
            changed = _calling_ours(method, keep_bits)
        setattr(changed, _ORIGINAL, method)
        setattr(module, name, MethodType(changed, module))
        for function in called:
            counts[function] = counts.get(function, 0) + 1
    return counts


def unpatch(model: nn.Module) -> None:
    """Give every module of a patched model its own methods back."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, MethodType) and hasattr(value.__func__, _ORIGINAL):
                original = getattr(value.__func__, _ORIGINAL)
                if original is inspect.getattr_static(type(module), name, None):
                    delattr(module, name)
                else:  # another package keeps the method under a name of its own
                    setattr(module, name, MethodType(original, module))


_ORIGINAL = "_npu_rope_original"
_PREFIX = "_npu_rope_"


def _methods(module: nn.Module) -> Iterator[tuple[str, FunctionType]]:
    """The module's methods as a call finds them; those of one that wraps it under another name."""
    held = vars(module)
    for cls in reversed(type(module).__mro__):
        if cls.__module__.startswith("torch."):
            continue
        for name, value in vars(cls).items():
            found = inspect.getattr_static(type(module), name)
            if isinstance(value, FunctionType) and name not in held and found is value:
                yield name, value
    for name, value in held.items():
        if isinstance(value, MethodType) and value.__self__ is module:
            yield name, getattr(value.__func__, _ORIGINAL, value.__func__)


def _called(function: FunctionType) -> list[str]:
    """The full names of the rotary functions that it calls, or what it wraps."""
    names = [_full_name(function, name) for name in _rotary_names(function)]
    for inner in _wrapped(function):
        names += _called(inner)
    return names


def _rotary_names(function: FunctionType) -> list[str]:
    """The global names of rotary functions that the function's code reads."""
    return [
        name
        for name in dict.fromkeys(_global_names(function.__code__))
        if isinstance(value := function.__globals__.get(name), (FunctionType, nn.Module))
        and dispatch.roles(value)
    ]


def _wrapped(function: FunctionType) -> list[FunctionType]:
    """The functions that a decorator's function holds; not itself, as a recursive one does."""
    held = (_content(cell) for cell in function.__closure__ or ())
    return [x for x in held if isinstance(x, FunctionType) and x is not function]


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was put into it yet
        return None


def _full_name(method: FunctionType, name: str) -> str:
    return f"{method.__globals__['__name__']}.{name}"


def _global_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _norming_ours(module: nn.Module, function: FunctionType) -> FunctionType | None:
    """The method with the module's norms of q and k in the one call that rotates them."""
    rotary = tuple(_rotary_names(function))
    step = norms.find(function, rotary)
    if step is None or len(rotary) != 1:
        return None
    modules = (getattr(module, name, None) for name in (step.q_norm, step.k_norm))
    if (constants := norms.constants(*modules)) is None:
        return None
    return norms.rewritten(function, step, _full_name(function, step.rotary), *constants)


def _calling_ours(function: FunctionType, keep_bits: bool) -> FunctionType:
    """The function, or the wrapper and what it wraps, calling ours in the place of its own.

    It reads them under other names, which the globals of its module hold beside the old ones: what
    is replaced there later still reaches it, and torch.compile finds a name where it looks for it.
    """
    names = {}
    for name in _rotary_names(function):
        names[name] = f"{_PREFIX}{'' if keep_bits else 'float32_'}{name}"
        function.__globals__[names[name]] = dispatch.replacement(
            function.__globals__[name], _full_name(function, name), keep_bits=keep_bits
        )
    inner = {id(x): _calling_ours(x, keep_bits) for x in _wrapped(function) if _called(x)}
    closure = tuple(
        CellType(inner[id(_content(cell))]) if id(_content(cell)) in inner else cell
        for cell in function.__closure__ or ()
    )
    changed = FunctionType(
        _renamed(function.__code__, names),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        closure,
    )
    changed.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(changed, function)


def _renamed(code: CodeType, names: dict[str, str]) -> CodeType:
    return code.replace(
        co_names=tuple(names.get(name, name) for name in code.co_names),
        co_consts=tuple(
            _renamed(constant, names) if isinstance(constant, CodeType) else constant
            for constant in code.co_consts
        ),
    )
