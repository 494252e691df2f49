"""How the operator gets into LMDeploy and dlinfer: every patched name, taken and put back.

`import torch` installs an import hook (npu_rope_autoload), and the hook calls
:func:`patch_what_is_loaded` when one of the modules of `PATCHES` has been executed.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import npu_rope_autoload
import torch
from npu_rope_autoload import logger

import npu_rope
from npu_rope import _C, source
from npu_rope.lmdeploy import rotate
from npu_rope.lmdeploy.report import Count, version

Function = Callable[..., Any]

WITHOUT = "NPU_ROPE_LMDEPLOY_WITHOUT"


# ---- whether to serve ----


class _State:
    enabled = npu_rope_autoload.switched_on()
    without = frozenset(filter(None, os.environ.get(WITHOUT, "").replace(",", " ").split()))
    problem = ""  # what keeps the operator from this process for good
    announced = False
    graph: ModuleType | None = None  # dlinfer.graph


state = _State()
_lock = threading.RLock()


def serving() -> bool:
    """Not in dlinfer's graph mode, nor where torch.compile traces: LMDeploy's own is traced."""
    if not state.enabled or state.problem or torch.compiler.is_compiling():
        return False
    return not (state.graph is not None and state.graph.config.enable_graph_mode)


def _leave(count: Count, why: str, args: tuple[object, ...]) -> None:
    """A call goes to LMDeploy's own code: this one alone, or all of them where none ever can."""
    if why in (_problem_of(args), *filter(None, [state.problem])):
        if not state.problem:
            state.problem = why
            logger.warning("npu_rope leaves LMDeploy as it is: %s", why)
        return
    if count.leave(why):
        logger.warning(
            "npu_rope leaves %s to LMDeploy's own operator, here and whenever this recurs: %s; %s",
            count.name,
            why,
            ", ".join(map(_shown, args)),
        )


def _problem_of(args: tuple[object, ...]) -> str | None:
    on_npu = any(isinstance(x, torch.Tensor) and x.device.type == "npu" for x in args)
    if not on_npu:
        return None
    return _C.npu_library_problem() or _C.npu_chip_problem(rotate.rounding[1]) or None


def _shown(x: object) -> str:
    if not isinstance(x, torch.Tensor):
        return repr(x)
    return f"{str(x.dtype).removeprefix('torch.')}{[*x.shape]} by {[*x.stride()]} on {x.device}"


# ---- what stands in LMDeploy ----


def _layer(original: Function, count: Count) -> Function:
    @functools.wraps(original)
    def forward(
        self: object,
        query: torch.Tensor,
        key: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        inplace: bool = True,
        complex_mode: bool = False,
        return_native_layout: bool | None = None,
        *unknown: object,
        **named: object,
    ) -> rotate.Pair:
        if serving():
            if unknown or named:
                rotated: rotate.Pair | str = "arguments that are not known"
            else:
                rotated = rotate.layer(
                    query, key, cos, sin, inplace, complex_mode, bool(return_native_layout)
                )
            if rotated.__class__ is tuple:
                count.served += 1
                return rotated
            _leave(count, rotated, (query, key, cos, sin, inplace, complex_mode))
            # LMDeploy's own operator refuses tables of another dtype than q's.
            if isinstance(cos, torch.Tensor) and isinstance(sin, torch.Tensor):
                cos, sin = cos.to(query.dtype), sin.to(query.dtype)
        if complex_mode:
            named["complex_mode"] = True
        if return_native_layout is not None:
            named["return_native_layout"] = True
        return original(self, query, key, cos, sin, inplace, *unknown, **named)

    return forward


def _registry(original: Function, count: Count) -> Function:
    @functools.wraps(original)
    def apply_rotary_pos_emb(*args: object, **kwargs: object) -> rotate.Pair:
        if serving():
            named = [kwargs[name] for name in ("query", "key", "cos", "sin") if name in kwargs]
            if len(named) == len(kwargs) and len(args) + len(named) >= 4:
                rotated = rotate.registered(*args, *named)
            else:
                rotated = "arguments that are not known"
            if rotated.__class__ is tuple:
                count.served += 1
                return rotated
            _leave(count, rotated, (*args, *named))
        return original(*args, **kwargs)

    return apply_rotary_pos_emb


@dataclass(frozen=True)
class Step:
    """A few statements of a method of LMDeploy's, and one launch in their place.

    In `ours`, `rotate` is the function of rotate.py: the rotated pair, or None for what is left to
    `its_own`, LMDeploy's statements.
    """

    rotate: Callable[..., rotate.Pair | str]
    before: str
    ours: str
    relies_on: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Functions that `before` calls, in its class or module, and their source.body_hash."""
    instead: Mapping[str, Function] = field(default_factory=dict)
    """Functions of its class that write in another order than `rotate`, replaced once a call is
    served, so that a later one that is left to `its_own` agrees with what the cache holds."""
    can_round_each: bool = True
    """Whether round_each gives the bits of `its_own`, which it is asked for; else it is left."""

    def __call__(self, original: Function, count: Count) -> Function:
        module = sys.modules[original.__module__]
        owner = getattr(module, original.__qualname__.split(".")[0])
        for name, known in self.relies_on.items():
            source.check(owner if hasattr(owner, name) else module, {name: known})

        def take(*args: Any) -> rotate.Pair | None:  # noqa: ANN401
            if not serving() or (rotate.rounding[1] and not self.can_round_each):
                return None
            rotated = self.rotate(*args)
            if rotated.__class__ is not tuple:
                _leave(count, rotated, args)
                return None
            count.served += 1
            for name, function in self.instead.items():
                if getattr(owner, name) is not function:
                    _displaced.append((owner, name, inspect.getattr_static(owner, name)))
                    setattr(owner, name, staticmethod(function))
            return rotated

        return source.replaced(original, self.before, self.ours, {"rotate": take})


def _keep_angles(original: Function, count: Count) -> Function:
    """Qwen2.5-VL's forward rounds the angles of its vision tower, which takes cos and sin of them.

    In float32 they stay as they are: the tower's tables are float32, and the layer takes those.
    """

    def keep(angles: object) -> bool:
        kept = isinstance(angles, torch.Tensor) and angles.dtype == torch.float32 and is_active()
        count.served += kept
        return kept

    ours = "(vis_pos_emb if keep(vis_pos_emb) else its_own)"
    return source.replaced(original, "vis_pos_emb.to(dtype)", ours, {"keep": keep})


MLA = Step(
    rotate.into,
    before="""
        q_pe, k_pe = self.apply_rotary_pos_emb(q_pe, k_pe, cos, sin, inplace=False)
        query_states[..., nope_size:] = q_pe
        key_states[..., nope_size:] = k_pe
    """,
    ours="""
        npu_rope_rotated = rotate(
            q_pe, k_pe, cos, sin, query_states[..., nope_size:], key_states[..., nope_size:])
        if npu_rope_rotated is None:
            its_own
        else:
            q_pe, k_pe = npu_rope_rotated
    """,
)
GLM = Step(
    rotate.pairs_in_place,
    before="""
        q_rope = self._extract_rope(query_states)
        k_rope = self._extract_rope(key_states)
        q_rope, k_rope = self.apply_rotary_pos_emb(q_rope, k_rope, cos, sin, inplace=True)
        query_states = self._fill_rope(query_states, q_rope)
        key_states = self._fill_rope(key_states, k_rope)
    """,
    ours="""
        npu_rope_rotated = rotate(query_states, key_states, cos, sin)
        if npu_rope_rotated is None:
            its_own
        else:
            query_states, key_states = npu_rope_rotated
    """,
    # dlinfer has a _fill_rope of its own for ChatGLM: the rotated half comes behind the other one.
    relies_on={
        "_extract_rope": ("776a0f147e71",),
        "_fill_rope": ("c418d2e606c3", "a0758b147653"),
    },
    instead={"_fill_rope": rotate.fill_rope},
)
LLAMA4 = Step(
    rotate.pairs,
    before="""
        query_states = query_states.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        key_states = key_states.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        query_states, key_states = self.apply_rotary_pos_emb(query_states, key_states, cos, sin)
        query_states = query_states.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        key_states = key_states.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    """,
    ours="""
        npu_rope_rotated = rotate(query_states, key_states, cos, sin)
        if npu_rope_rotated is None:
            its_own
        else:
            query_states, key_states = npu_rope_rotated
    """,
)
LLAMA4_VISION = Step(
    rotate.complex_pairs,
    before="""
        query_states, key_states = vision_apply_rotary_emb(
            query_states, key_states, freqs_ci=freqs_ci)
    """,
    ours="""
        npu_rope_rotated = rotate(query_states, key_states, freqs_ci)
        if npu_rope_rotated is None:
            its_own
        else:
            query_states, key_states = npu_rope_rotated
    """,
    relies_on={
        "vision_apply_rotary_emb": ("a300c1a61a7f",),
        "reshape_for_broadcast": ("f992af79d025",),
    },
)
KIMI_VISION = Step(
    rotate.complex_pairs,
    before="xq, xk = apply_rope(xq, xk, rope_freqs_cis)",
    ours="""
        npu_rope_rotated = rotate(xq, xk, rope_freqs_cis)
        if npu_rope_rotated is None:
            its_own
        else:
            xq, xk = npu_rope_rotated
    """,
    relies_on={"apply_rope": ("65a5cbaf3bc9",)},
)
QWEN3 = Step(
    rotate.normed,
    before="""
        query_states = self.q_norm(query_states)
        key_states = self.k_norm(key_states)
        cos, sin = rotary_pos_emb
        query_states, key_states = self.apply_rotary_pos_emb(
            query_states, key_states, cos, sin, inplace=True)
    """,
    ours="""
        cos, sin = rotary_pos_emb
        npu_rope_rotated = rotate(self.q_norm, self.k_norm, query_states, key_states, cos, sin)
        if npu_rope_rotated is None:
            its_own
        else:
            query_states, key_states = npu_rope_rotated
    """,
    # CANN documents neither the order in which its RmsNorm adds nor what it rounds between.
    can_round_each=False,
)
SDAR = replace(QWEN3, before=QWEN3.before.replace(", inplace=True", ""))
GLM4_MOE = replace(
    QWEN3,
    before="""
        if self.use_qk_norm:
            query_states = self.q_norm(query_states)
            key_states = self.k_norm(key_states)
        cos, sin = rotary_pos_emb
        query_states, key_states = self.apply_rotary_pos_emb(
            query_states, key_states, cos, sin, inplace=True)
    """,
    ours="""
        cos, sin = rotary_pos_emb
        npu_rope_rotated = None
        if self.use_qk_norm:
            npu_rope_rotated = rotate(self.q_norm, self.k_norm, query_states, key_states, cos, sin)
        if npu_rope_rotated is None:
            its_own
        else:
            query_states, key_states = npu_rope_rotated
    """,
)
GEMMA3 = replace(
    QWEN3,
    before="""
        if self.model_type == 'gemma3_text':
            query_states = self.q_norm(query_states)
            key_states = self.k_norm(key_states)
        if rotary_pos_emb_local is not None and self.sliding_window != -1:
            cos, sin = rotary_pos_emb_local
        else:
            cos, sin = rotary_pos_emb
        query_states, key_states = self.apply_rotary_pos_emb(
            query_states, key_states, cos, sin, inplace=True)
    """,
    ours="""
        if rotary_pos_emb_local is not None and self.sliding_window != -1:
            cos, sin = rotary_pos_emb_local
        else:
            cos, sin = rotary_pos_emb
        npu_rope_rotated = None
        if self.model_type == 'gemma3_text':
            npu_rope_rotated = rotate(self.q_norm, self.k_norm, query_states, key_states, cos, sin)
        if npu_rope_rotated is None:
            its_own
        else:
            query_states, key_states = npu_rope_rotated
    """,
)


# ---- every patched name ----


@dataclass(frozen=True, eq=False)
class Patch:
    """An entry of a dict or an attribute of a class, in a module of LMDeploy's or dlinfer's."""

    switch: str  # the name by which NPU_ROPE_LMDEPLOY_WITHOUT leaves it as it is
    module: str
    owner: str
    name: str
    replace: Callable[[Function, Count], Function]  # raises source.Unknown
    tried: tuple[str, str] | None  # first and last version of LMDeploy; None: every pair

    def find(self, module: ModuleType) -> Function | None:
        owner = getattr(module, self.owner, {})
        return (owner if isinstance(owner, dict) else vars(owner)).get(self.name)

    def set(self, module: ModuleType, value: Function) -> None:
        owner = getattr(module, self.owner)
        if isinstance(owner, dict):
            owner[self.name] = value
        else:
            setattr(owner, self.name, value)

    def __str__(self) -> str:
        return f"{self.module}.{self.owner}.{self.name}"


_MODELS = "lmdeploy.pytorch.models"
LAYER = Patch(
    "layer",
    "lmdeploy.pytorch.backends.dlinfer.apply_rotary_emb",
    "DlinferApplyRotaryEmbImpl",
    "forward",
    _layer,
    None,
)
# fmt: off
PATCHES = (
    LAYER,
    Patch("registry", "dlinfer.vendor.ascend.torch_npu_ops", "vendor_ops_registry",
          "apply_rotary_pos_emb", _registry, None),
    Patch("angles", f"{_MODELS}.qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "forward",
          _keep_angles, ("0.7.2", "0.18.0")),
    Patch("mla", f"{_MODELS}.deepseek_v2", "DeepseekV2Attention", "forward",
          MLA, ("0.6.5", "0.18.0")),
    Patch("mla", f"{_MODELS}.deepseek_v32", "DeepseekV32Attention", "forward",
          MLA, ("0.11.1", "0.18.0")),
    Patch("mla", f"{_MODELS}.glm_moe_dsa", "GlmMoeDsaAttention", "forward",
          MLA, ("0.18.0", "0.18.0")),
    Patch("mla", f"{_MODELS}.kimi_k2_language", "KimiK2Attention", "forward",
          MLA, ("0.18.0", "0.18.0")),
    Patch("glm", f"{_MODELS}.glm4", "Glm4Attention", "forward",
          GLM, ("0.10.2", "0.18.0")),
    Patch("glm", f"{_MODELS}.chatglm2", "SelfAttention", "forward",
          GLM, ("0.6.5", "0.18.0")),
    Patch("llama4", f"{_MODELS}.llama4", "Llama4TextAttention", "forward",
          LLAMA4, ("0.7.3", "0.18.0")),
    Patch("llama4_vision", f"{_MODELS}.llama4", "Llama4VisionAttention", "forward",
          LLAMA4_VISION, ("0.7.3", "0.18.0")),
    Patch("kimi_vision", f"{_MODELS}.kimi_k25_vision", "MoonViTEncoderLayer", "attention_qkvpacked",
          KIMI_VISION, ("0.18.0", "0.18.0")),
    Patch("qwen3_norm", f"{_MODELS}.qwen3", "Qwen3Attention", "forward",
          QWEN3, ("0.7.3", "0.18.0")),
    Patch("qwen3_norm", f"{_MODELS}.qwen3_moe", "Qwen3MoeAttention", "forward",
          QWEN3, ("0.7.3", "0.18.0")),
    Patch("qwen3_norm", f"{_MODELS}.qwen3_dflash", "DFlashQwen3Attention", "forward",
          QWEN3, ("0.18.0", "0.18.0")),
    Patch("qwen3_next_norm", f"{_MODELS}.qwen3_next", "Qwen3NextAttention", "forward",
          QWEN3, ("0.11.1", "0.18.0")),
    Patch("qwen3_next_norm", f"{_MODELS}.qwen3_5", "Qwen3_5Attention", "forward",
          QWEN3, ("0.12.3", "0.18.0")),
    Patch("glm4_moe_norm", f"{_MODELS}.glm4_moe", "Glm4MoeAttention", "forward",
          GLM4_MOE, ("0.10.2", "0.18.0")),
    Patch("gemma3_norm", f"{_MODELS}.gemma", "GemmaAttention", "forward",
          GEMMA3, ("0.7.2", "0.18.0")),
    Patch("sdar_norm", f"{_MODELS}.sdar", "SDARAttention", "forward",
          SDAR, ("0.10.2", "0.18.0")),
    Patch("sdar_norm", f"{_MODELS}.sdar_moe", "SDARMoeAttention", "forward",
          SDAR, ("0.10.2", "0.18.0")),
)
# fmt: on
SWITCHES = tuple(dict.fromkeys(patch.switch for patch in PATCHES))
counts = {switch: Count(switch) for switch in SWITCHES}
_taken: dict[Patch, tuple[Function, Function]] = {}
"""What was there, and what is there now."""
_displaced: list[tuple[type, str, object]] = []
"""What `Step.instead` has replaced."""
_unknown: dict[Patch, tuple[Function, str]] = {}
"""What was left as it is, and why."""


# ---- taken and put back ----


def patch_what_is_loaded(executed: str | None = None) -> None:
    """Takes every place whose module is loaded, for vendor ascend; again is the same as once.

    executed: the module that has just been executed, which Python calls unfinished still.
    """
    with _lock:
        vendor = sys.modules.get("dlinfer.vendor")
        if not state.enabled or vendor is None:
            return
        if getattr(vendor, "vendor_name", None) != "ascend":
            return
        graph = sys.modules.get("dlinfer.graph")
        if hasattr(getattr(graph, "config", None), "enable_graph_mode"):
            state.graph = graph
        for patch in PATCHES:
            module = sys.modules.get(patch.module)
            if module is None:
                continue
            if patch.module == executed or not getattr(module.__spec__, "_initializing", False):
                _take(patch, module)
        if LAYER in _taken and not state.announced:
            state.announced = True
            _announce()


def _announce() -> None:
    if unknown := sorted(state.without - {*SWITCHES}):
        logger.warning("%s names %s, expected some of %s", WITHOUT, unknown, list(SWITCHES))
    if torch._C._get_privateuse1_backend_name() == "npu":
        state.problem = _C.npu_library_problem()
    if state.problem:
        logger.warning("npu_rope leaves LMDeploy as it is: %s", state.problem)
        return
    logger.info(
        "npu_rope %s rotates q and k for LMDeploy %s over dlinfer %s (%s=0 turns it off)",
        npu_rope.__version__,
        version("lmdeploy"),
        version("dlinfer-ascend"),
        npu_rope_autoload.SWITCH,
    )


def _take(patch: Patch, module: ModuleType) -> None:
    found = patch.find(module)
    if patch.switch in state.without or (found is None and patch.tried is not None):
        return  # not wanted, or not in this version of LMDeploy
    if patch in _taken and found is _taken[patch][1]:
        return
    if patch in _unknown and found is _unknown[patch][0]:
        return
    if getattr(found, "_npu_rope_replaces", None) is not None:
        return  # by another copy of this module
    try:
        if found is None:
            raise source.Unknown("it is not there")
        replacement = patch.replace(found, counts[patch.switch])
    except source.Unknown as unknown:
        _unknown[patch] = (found, str(unknown))
        logger.warning("npu_rope leaves %s as it is: %s", patch, unknown)
        return
    replacement._npu_rope_replaces = found
    patch.set(module, replacement)
    _taken[patch] = (found, replacement)


def enable(without: Iterable[str] | None = None, round_each: bool | None = None) -> None:
    """Turns the drop-in on, also where NPU_ROPE_LMDEPLOY=0, and where LMDeploy is loaded already.

    Args:
        without: what is left as LMDeploy has it, of `SWITCHES`: "layer", "registry", "angles",
            "mla", "glm", ... None leaves that as it was; at first it is what
            NPU_ROPE_LMDEPLOY_WITHOUT names, separated by commas.
        round_each: whether each product and sum is rounded to q's dtype, which gives the bits of
            LMDeploy's chain of torch operators, and not the result alone, which is more exact. None
            leaves that as it was; at first it is NPU_ROPE_LMDEPLOY_ROUND_EACH=1.

    Raises:
        ValueError: `without` names something else.
    """
    if without is not None:
        without = frozenset(without)
        if unknown := sorted(without - {*SWITCHES}):
            raise ValueError(f"without names {unknown}, expected some of {list(SWITCHES)}")
    with _lock:
        if without is not None and without != state.without:
            _put_back()
            state.without = without
        if round_each is not None:
            rotate.rounding = (rotate.rounding[0], round_each)
        state.enabled, state.announced, state.problem = True, False, ""
        npu_rope_autoload.install(whatever_the_switch=True)
        patch_what_is_loaded()


def disable() -> None:
    """Puts back the very objects that were there; layers that were built meanwhile follow.

    NPU graphs that were captured before are not reached: they replay npu_rope's kernel until
    LMDeploy captures them anew. Restart the server to be without it.
    """
    with _lock:
        if LAYER in _taken and any(count.served for count in counts.values()):
            logger.info(
                "npu_rope is off; NPU graphs that were captured before still replay its kernel"
            )
        state.enabled = False
        npu_rope_autoload.uninstall()
        _put_back()


def _put_back() -> None:
    for patch, (original, replacement) in _taken.items():
        module = sys.modules.get(patch.module)
        if module is None:
            continue
        if patch.find(module) is replacement:
            patch.set(module, original)
        else:  # ours lies under another's, and hands everything on from now on
            logger.warning("%s was replaced again: left", patch)
    for owner, name, function in reversed(_displaced):
        setattr(owner, name, function)
    _displaced.clear()
    _taken.clear()
    _unknown.clear()


def is_active() -> bool:
    """Whether LMDeploy's Ascend layer, in this process, runs npu_rope's operator."""
    return LAYER in _taken and serving()


def places() -> list[tuple[Patch, str]]:
    """Every patch whose module is loaded, and "taken" or why not."""
    lines = []
    for patch in PATCHES:
        if patch in _taken:
            lines.append((patch, "taken"))
        elif patch in _unknown:
            lines.append((patch, _unknown[patch][1]))
    return lines
