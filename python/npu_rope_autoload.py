"""The `torch.backends` entry point: `import torch` runs install() in every process.

It puts one finder on sys.meta_path, which lets every import pass but the few in WATCHED. After
one of those has been executed, npu_rope.lmdeploy takes its place in it. Until then nothing of
npu_rope is loaded, and nothing of LMDeploy ever is from here. The standard library alone, and no
module of the package npu_rope, because an exception in here would break `import torch`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

REGISTRY = "dlinfer.vendor.ascend.torch_npu_ops"
LAYER = "lmdeploy.pytorch.backends.dlinfer.apply_rotary_emb"
MODELS = tuple(
    f"lmdeploy.pytorch.models.{name}"
    for name in (
        "chatglm2",
        "deepseek_v2",
        "deepseek_v32",
        "gemma",
        "glm4",
        "glm4_moe",
        "glm_moe_dsa",
        "kimi_k25_vision",
        "kimi_k2_language",
        "llama4",
        "qwen2_5_vl",
        "qwen3",
        "qwen3_5",
        "qwen3_dflash",
        "qwen3_moe",
        "qwen3_next",
        "sdar",
        "sdar_moe",
    )
)
WATCHED = frozenset((REGISTRY, LAYER, *MODELS))  # the modules of npu_rope.lmdeploy.PATCHES

SWITCH = "NPU_ROPE_LMDEPLOY"

# A child of LMDeploy's logger: --log-level and LMDEPLOY_LOG_FILE govern it too.
logger = logging.getLogger("lmdeploy.npu_rope")


class Finder(MetaPathFinder):
    """Finds a watched module as the finders behind it do, and has it announced when executed."""

    is_npu_rope_s = True  # by which another copy of this module knows it

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in WATCHED:
            return None
        finders = [*sys.meta_path]
        places = [i for i, finder in enumerate(finders) if finder is self]
        # Behind the last of them: each is asked once, even where one stands there twice.
        for finder in finders[places[-1] + 1 :] if places else []:
            if hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    announced = getattr(spec.loader, "is_npu_rope_s", False)
                    if hasattr(spec.loader, "exec_module") and not announced:
                        spec.loader = AnnouncingLoader(spec.loader)
                    return spec
        return None


class AnnouncingLoader(Loader):
    """Loads by another loader, to which the module belongs from before its first line is run."""

    is_npu_rope_s = True

    def __init__(self, loader: Any) -> None:  # noqa: ANN401  whatever the finder gave
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        announce(module.__name__)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.loader, name)


_FINDER = Finder()
_warned = False


def announce(name: str) -> None:
    """The watched module of this name has been executed. Whatever goes wrong stays in here."""
    global _warned
    try:
        from npu_rope import lmdeploy

        lmdeploy.patch_what_is_loaded(executed=name)
    except Exception as error:
        if not _warned:
            _warned = True
            logger.warning("npu_rope leaves LMDeploy as it is: %s: %s", type(error).__name__, error)


def install(whatever_the_switch: bool = False) -> None:
    """What the entry point names. Once in a process, however often it is called."""
    if (whatever_the_switch or switched_on()) and not installed():
        sys.meta_path.insert(0, _FINDER)


def uninstall() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if not _is_ours(finder)]


def switched_on() -> bool:
    return os.environ.get(SWITCH, "1").strip().lower() not in ("0", "off", "false", "no")


def installed() -> bool:
    return any(map(_is_ours, sys.meta_path))


def _is_ours(finder: object) -> bool:
    return getattr(finder, "is_npu_rope_s", False) is True
