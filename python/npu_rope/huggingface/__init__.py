"""npu_rope in the place of the rotary functions of Hugging Face transformers."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from . import dispatch
from .patch import patch, unpatch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import ModuleType

__all__ = ["decisions", "patch", "register", "registered", "unpatch", "unregister"]

LAYER_NAME = "rotary_pos_emb"  # under which transformers looks for a kernel


def register(*, keep_bits: bool = True, devices: Iterable[str] = ("npu", "cpu")) -> None:
    """Make npu_rope the kernel of transformers' rotary functions, for models kernelized from now.

    Takes effect where a model asks for kernels: ``from_pretrained(..., use_kernels=True)``,
    ``model.set_use_kernels(True)`` or ``kernels.kernelize(model, mode=..., device=...)``; for
    inference, training and torch.compile. Each model's function is compared with the operator when
    it is first called; what the operator does not do exactly stays with the model's own code.

    Args:
        keep_bits: results and gradients are bit for bit those of the model's own code in eager
            PyTorch. False computes in float32 from the tables as they are and rounds once, which
            is more exact.
        devices: of the models that will use it.

    Raises:
        ImportError: the package ``kernels`` is missing, or transformers takes another version.
    """
    _kernels().register_kernel_mapping(_mapping(_Repository(keep_bits), devices))


def unregister(*, devices: Iterable[str] = ("npu", "cpu")) -> None:
    """Take :func:`register` back for models kernelized from now.

    A model that is kernelized already keeps its kernels, as transformers defines it, until it is
    kernelized again.
    """
    _kernels().register_kernel_mapping(_mapping({}, devices))


def registered(
    *, keep_bits: bool = True, devices: Iterable[str] = ("npu", "cpu")
) -> AbstractContextManager[None]:
    """:func:`register` for models kernelized inside a ``with``; then as it was before."""
    return _kernels().use_kernel_mapping(_mapping(_Repository(keep_bits), devices))


def decisions() -> list[str]:
    """What was found for each function and each kind of call so far, a line each."""
    return [
        f"{entry.name}: {call}: {found}"
        for entry in dispatch.entries()
        for call, found in entry.found.items()
    ]


def _kernels() -> ModuleType:
    """The package kernels, where transformers takes it."""
    try:
        import kernels
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "npu_rope.huggingface needs the package kernels to register with transformers: "
            "pip install 'transformers[kernels]'. patch(model) does without."
        ) from error
    from transformers import __version__
    from transformers.utils import is_kernels_available

    if not is_kernels_available():
        raise ImportError(
            f"transformers {__version__} does not take kernels {kernels.__version__}, and calls no "
            "kernel: pip install 'transformers[kernels]' names the version. patch(model) does "
            "without."
        )
    return kernels


def _mapping(repository: _Repository | dict, devices: Iterable[str]) -> dict[str, Any]:
    return {LAYER_NAME: dict.fromkeys(devices, repository)}


@dataclass(frozen=True)
class _Repository:
    """What the package kernels takes a layer from: here the layer is at hand."""

    keep_bits: bool

    def load(self) -> type[nn.Module]:
        return _layer(self.keep_bits)


@functools.cache
def _layer(keep_bits: bool) -> type[nn.Module]:
    class NpuRope(nn.Module):
        """Its forward becomes that of the module which kernels made of a model's function."""

        can_torch_compile = True
        has_backward = True

        def forward(
            self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
        ) -> tuple[Tensor, Tensor]:
            index = dispatch.entry_of_kernel(type(self), keep_bits)
            result = dispatch.rotate(index, unsqueeze_dim, q, k, cos, sin)
            if result is None:
                return type(self).forward(self, q, k, cos, sin, unsqueeze_dim)
            return result

    return NpuRope
