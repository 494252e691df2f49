"""What the files here share: LMDeploy's Ascend layer, and a count of what it launches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

warnings.filterwarnings("ignore")

from lmdeploy.pytorch.devices import DeviceContext, get_device_manager  # noqa: E402
from npu_rope import lmdeploy as drop_in  # noqa: E402

Pair = tuple[Tensor, Tensor]


@contextmanager
def ascend() -> Iterator[None]:
    """Modules that are built in here are those of LMDeploy's Ascend backend."""
    with get_device_manager().context(DeviceContext("ascend")):
        yield


def build_layer() -> torch.nn.Module:
    from lmdeploy.pytorch.nn import ApplyRotaryEmb

    with ascend():
        return ApplyRotaryEmb()


class Launches(TorchDispatchMode):
    """The operators that would each be a kernel on an NPU: those that neither view nor allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(  # noqa: ANN204
        self,
        func,  # noqa: ANN001
        types: object,
        args: tuple = (),
        kwargs: dict | None = None,
    ):
        allocates = func.__name__.split(".")[0] in ("empty", "empty_like", "new_empty")
        if not allocates and not func.is_view and func.__name__ != "_unsafe_view.default":
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def is_ours(name: str) -> bool:
    return name.startswith("npu_rope.")


def launches(call: Callable[[], object]) -> list[str]:
    with Launches() as counted:
        call()
    return counted.names


@contextmanager
def default() -> Iterator[None]:
    """LMDeploy as it is without us."""
    drop_in.disable()
    try:
        yield
    finally:
        drop_in.enable()


def packed(tokens: int, *widths: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Slices of one packed row per token, as a fused QKV projection gives them."""
    return list(torch.randn(tokens, sum(widths)).to(dtype).split(widths, 1))


def heads(x: Tensor, head_dim: int) -> Tensor:
    return x.unflatten(-1, (-1, head_dim))


def tables(tokens: int, width: int, dtype: torch.dtype = torch.bfloat16, base: float = 1e4) -> Pair:
    """Full tables in half order: cat(f, f), as LMDeploy makes them."""
    frequencies = base ** -(torch.arange(width / 2) * 2 / width)
    angles = torch.outer(torch.arange(1, tokens + 1) * 37.0, frequencies)
    angles = torch.cat((angles, angles), 1)
    return angles.cos().to(dtype), angles.sin().to(dtype)
