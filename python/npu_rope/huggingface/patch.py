"""Rotary functions that transformers does not dispatch, replaced in one model's modules."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType

from torch import nn

from . import dispatch


def patch(model: nn.Module, *, keep_bits: bool = True) -> dict[str, int]:
    """Let this model's modules call the operator where they call a rotary function.

    Every method of every module that calls a function over q, k, cos and sin is given to that
    module anew, calling the operator in its place; other models are not touched. See
    :func:`npu_rope.huggingface.register` for ``keep_bits`` and for what is left to the model.

    Returns:
        How many modules call each function, by the function's name.

    Raises:
        ValueError: no module of the model calls such a function. Nothing is changed then.
    """
    methods = [
        (module, name, method, called)
        for module in model.modules()
        for name, method in _methods(module)
        if (called := _rotary_names(method))
    ]
    if not methods:
        raise ValueError(
            f"no module of {type(model).__name__} calls a function over q, k, cos and sin; "
            "expected a model of Hugging Face transformers"
        )
    counts: dict[str, int] = {}
    for module, name, method, called in methods:
        setattr(module, name, MethodType(_calling(method, called, keep_bits), module))
        for function in called:
            full_name = _full_name(method, function)
            counts[full_name] = counts.get(full_name, 0) + 1
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


def _rotary_names(method: FunctionType) -> list[str]:
    """The global names of rotary functions that the method's code reads."""
    return [
        name
        for name in dict.fromkeys(_global_names(method.__code__))
        if callable(value := method.__globals__.get(name))
        and isinstance(value, (FunctionType, nn.Module))
        and dispatch.roles(value)
    ]


def _full_name(method: FunctionType, name: str) -> str:
    return f"{method.__globals__['__name__']}.{name}"


def _global_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _calling(method: FunctionType, called: list[str], keep_bits: bool) -> FunctionType:
    """The method with other names for the functions, under which its module holds ours.

    Its globals stay the module's own, live: what is replaced there later reaches the method, and
    torch.compile finds a name where it looks for it.
    """
    names = {}
    for name in called:
        names[name] = f"{_PREFIX}{'' if keep_bits else 'float32_'}{name}"
        method.__globals__[names[name]] = dispatch.replacement(
            method.__globals__[name], _full_name(method, name), keep_bits=keep_bits
        )
    code = _renamed(method.__code__, names)
    changed = FunctionType(
        code, method.__globals__, method.__name__, method.__defaults__, method.__closure__
    )
    changed.__kwdefaults__ = method.__kwdefaults__
    changed.__dict__.update(method.__dict__)
    changed.__annotations__ = method.__annotations__
    changed.__doc__ = method.__doc__
    changed.__qualname__ = method.__qualname__
    setattr(changed, _ORIGINAL, method)
    return changed


def _renamed(code: CodeType, names: dict[str, str]) -> CodeType:
    return code.replace(
        co_names=tuple(names.get(name, name) for name in code.co_names),
        co_consts=tuple(
            _renamed(constant, names) if isinstance(constant, CodeType) else constant
            for constant in code.co_consts
        ),
    )
