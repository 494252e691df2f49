"""The drop-in for LMDeploy's Ascend backend: one launch in place of its default rotary chain.

Nothing has to be called: `import torch` installs an import hook (npu_rope_autoload), and the hook
calls :func:`patch_what_is_loaded`. Three places are patched, each undone by :func:`disable`:

    dlinfer's registry      vendor_ops_registry["apply_rotary_pos_emb"]; read at every call
    LMDeploy's layer        DlinferApplyRotaryEmbImpl.forward, before it copies strided rows
    Qwen2.5-VL's model      forward, so that the vision angles stay in float32

Whatever is not known to mean what npu_rope.apply does goes to LMDeploy's own code, as does
everything once the operator has raised, and everything in dlinfer's graph mode.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import npu_rope_autoload
import torch
from npu_rope_autoload import ANGLES, LAYER, REGISTRY, logger
from torch import Tensor

import npu_rope

__all__ = ["disable", "enable", "is_active", "status"]

ANGLES_SWITCH = "NPU_ROPE_LMDEPLOY_ANGLES"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Pair = tuple[Tensor, Tensor]


# ---- the rotation ----


def _rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, over_q: bool, over_k: bool, **options: object
) -> Pair:
    """One launch. Each of q and k is written over itself or to a contiguous tensor of its own."""
    apply = torch.ops.npu_rope.apply
    if over_q and over_k:
        torch.ops.npu_rope.apply_(q, k, cos, sin, **options)
        return q, k
    if not over_q and not over_k:
        return apply(q, k, cos, sin, **options)
    out = q if over_q else q.new_empty(q.shape), k if over_k else k.new_empty(k.shape)
    apply.out(q, k, cos, sin, **options, q_out=out[0], k_out=out[1])
    return out


def _tables(q: object, k: object, cos: object, sin: object) -> Pair | None:
    """The tables in the operator's shape, or None where they do not hold a row for each token.

    q is [T, H, D] or [B, S, H, D]; tables are [T, W], [T, 1, W], [1, T, 1, W] or [B, S, W].
    """
    if not all(isinstance(x, Tensor) for x in (q, k, cos, sin)):
        return None
    if q.dim() not in (3, 4) or k.dim() != q.dim() or q.shape[:-2] != k.shape[:-2]:
        return None
    if q.dtype not in DTYPES or k.dtype != q.dtype or q.shape[-1] != k.shape[-1]:
        return None
    if cos.dtype not in DTYPES or sin.dtype != cos.dtype or sin.shape != cos.shape:
        return None
    if cos.dim() < 2 or cos.shape[:-1].numel() != q.shape[:-2].numel():
        return None
    shape = (*q.shape[:-2], cos.shape[-1])
    return cos.reshape(shape), sin.reshape(shape)


def _rotate_layer(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    inplace: bool = True,
    complex_mode: bool = False,
    return_native_layout: bool = True,
    *unknown: object,
    serves_pairs: bool = True,
    **unknown_too: object,
) -> Pair | None:
    """DlinferApplyRotaryEmbImpl.forward in all its versions; None for what is not ours.

    With inplace, a caller gives q and k away and goes on with what is returned, which attention
    overwrites in turn. So rows that lie dense are rotated where they are, and slices of a packed
    QKV come out as contiguous tensors of their own; both are what the default returns.
    """
    tables = _tables(query, key, cos, sin)
    if tables is None or unknown or unknown_too:
        return None
    width, head_dim = cos.shape[-1], query.shape[-1]
    if complex_mode:
        # Adjacent pairs. Full tables have two orders here, by backend: only half tables are clear.
        if 2 * width != head_dim or not serves_pairs:
            return None
        options = {
            "rotary_dim": head_dim,
            "interleaved": True,
            "deinterleave": return_native_layout,
        }
        over_q = over_k = inplace
    elif width <= head_dim and width % 2 == 0:
        options = {}
        over_q, over_k = inplace and query.is_contiguous(), inplace and key.is_contiguous()
    else:
        return None
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        over_q = over_k = False
    return _rotate(query, key, *tables, over_q, over_k, cast_tables=False, **options)


def _rotate_registered(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *unused: object
) -> Pair | None:
    """The registry entry: (q, k, cos, sin), before dlinfer 0.1.8 with two more, both None.

    The default's fused kernel writes over dense rows of 128, whatever its schema says, and LMDeploy
    has a caller that relies on it; so do we. All else is left as it came.
    """
    tables = _tables(query, key, cos, sin)
    if tables is None or any(x is not None for x in unused):
        return None
    width, head_dim = cos.shape[-1], query.shape[-1]
    if width > head_dim or width % 2:
        return None
    over = width == head_dim == 128
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        over = False
    return _rotate(
        query,
        key,
        *tables,
        over and query.is_contiguous(),
        over and key.is_contiguous(),
        cast_tables=False,
    )


class _Angles(Tensor):
    """Vision angles that a cast to 16 bits leaves in float32; anything else sees a plain tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def to(self, *args: object, **kwargs: object) -> Tensor:
        plain = self.as_subclass(Tensor)
        wanted = plain.to(*args, **kwargs)
        if wanted.dtype in (torch.bfloat16, torch.float16):
            return plain.to(wanted.device)
        return wanted


# ---- what stands in LMDeploy ----


class _State:
    enabled = npu_rope_autoload.switched_on()
    angles = os.environ.get(ANGLES_SWITCH, "1").strip().lower() not in ("0", "off", "false", "no")
    failure: str | None = None  # of the operator; from then on everything is left to LMDeploy
    announced = False
    graph: ModuleType | None = None  # dlinfer.graph


_state = _State()
_lock = threading.RLock()


def _ours_to_serve() -> bool:
    if not _state.enabled:
        return False
    return not getattr(getattr(_state.graph, "config", None), "enable_graph_mode", False)


def _attempt(rotate: Callable[..., Pair | None], *args: object, **kwargs: object) -> Pair | None:
    """Nothing is written before the operator has passed its checks, so the original can follow."""
    if _state.failure is not None:
        return None
    try:
        return rotate(*args, **kwargs)
    except Exception as error:
        _state.failure = (
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
        logger.warning("npu_rope steps aside, LMDeploy's own operator serves: %s", _state.failure)
        return None


def _with_cast_tables(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *rest: object, **kwargs: object
) -> tuple[tuple[object, ...], dict[str, object]]:
    """LMDeploy's own operator refuses tables of another dtype than q's."""
    if all(isinstance(x, Tensor) for x in (query, cos, sin)):
        cos, sin = cos.to(query.dtype), sin.to(query.dtype)
    return (query, key, cos, sin, *rest), kwargs


def _layer_forward(original: Callable[..., Pair]) -> Callable[..., Pair]:
    # The version that says what order complex_mode writes in. Before it, that is not ours to know.
    serves_pairs = "return_native_layout" in inspect.signature(original).parameters
    rotate = functools.partial(_rotate_layer, serves_pairs=serves_pairs)

    @functools.wraps(original)
    def forward(self: object, *args: object, **kwargs: object) -> Pair:
        if _ours_to_serve():
            rotated = _attempt(rotate, *args, **kwargs)
            if rotated is not None:
                return rotated
            args, kwargs = _with_cast_tables(*args, **kwargs)
        return original(self, *args, **kwargs)

    return forward


def _registered_op(original: Callable[..., Pair]) -> Callable[..., Pair]:
    @functools.wraps(original)
    def apply_rotary_pos_emb(*args: object, **kwargs: object) -> Pair:
        if _ours_to_serve():
            rotated = _attempt(_rotate_registered, *args, **kwargs)
            if rotated is not None:
                return rotated
        return original(*args, **kwargs)

    return apply_rotary_pos_emb


def _model_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    """LMDeploy's forward casts `vis_pos_emb` to the model's dtype; cos and sin come after."""

    @functools.wraps(original)
    def forward(self: object, *args: object, **kwargs: object) -> Any:  # noqa: ANN401
        angles = kwargs.get("vis_pos_emb")
        if (
            isinstance(angles, Tensor)
            and angles.dtype == torch.float32
            and _state.angles
            and is_active()
        ):
            kwargs["vis_pos_emb"] = angles.as_subclass(_Angles)
        return original(self, *args, **kwargs)

    return forward


@dataclass(frozen=True)
class _Place:
    """An entry of a dict or an attribute of a class, in a module of LMDeploy's or dlinfer's."""

    module: str
    owner: str
    name: str
    replace: Callable[[Callable[..., Any]], Callable[..., Any]]

    def find(self, module: ModuleType) -> Callable[..., Any] | None:
        owner = getattr(module, self.owner, {})
        return (owner if isinstance(owner, dict) else vars(owner)).get(self.name)

    def set(self, module: ModuleType, value: Callable[..., Any]) -> None:
        owner = getattr(module, self.owner)
        if isinstance(owner, dict):
            owner[self.name] = value
        else:
            setattr(owner, self.name, value)


_LAYER_PLACE = _Place(LAYER, "DlinferApplyRotaryEmbImpl", "forward", _layer_forward)
_PLACES = (
    _Place(REGISTRY, "vendor_ops_registry", "apply_rotary_pos_emb", _registered_op),
    _LAYER_PLACE,
    _Place(ANGLES, "Qwen2_5_VLForConditionalGeneration", "forward", _model_forward),
)
_patches: dict[_Place, tuple[Callable[..., Any], Callable[..., Any]]] = {}
"""What was there, and what is there now."""


def patch_what_is_loaded(executed: str | None = None) -> None:
    """Takes every place whose module is loaded, for vendor ascend; again is the same as once.

    executed: the module that has just been executed, which Python calls unfinished still.
    """
    with _lock:
        vendor = sys.modules.get("dlinfer.vendor")
        if not _state.enabled or vendor is None:
            return
        if getattr(vendor, "vendor_name", None) != "ascend":
            return
        _state.graph = sys.modules.get("dlinfer.graph", _state.graph)
        for place in _PLACES:
            module = sys.modules.get(place.module)
            if module is None:
                continue
            if place.module == executed or not getattr(module.__spec__, "_initializing", False):
                _patch(place, module)
        if _LAYER_PLACE in _patches and not _state.announced:
            _state.announced = True
            logger.info(
                "npu_rope %s rotates q and k for LMDeploy %s over dlinfer %s (%s=0 turns it off)",
                npu_rope.__version__,
                _version("lmdeploy"),
                _version("dlinfer-ascend"),
                npu_rope_autoload.SWITCH,
            )


def _patch(place: _Place, module: ModuleType) -> None:
    found = place.find(module)
    if found is None:
        logger.warning(
            "npu_rope knows no %s.%s in this version of %s, and leaves it as it is",
            place.owner,
            place.name,
            place.module,
        )
        return
    if place in _patches and found is _patches[place][1]:
        return
    replacement = place.replace(found)
    place.set(module, replacement)
    _patches[place] = (found, replacement)


def enable(angles: bool | None = None) -> None:
    """Turns the drop-in on, also where NPU_ROPE_LMDEPLOY=0, and where LMDeploy is loaded already.

    Args:
        angles: whether Qwen2.5-VL's vision angles stay in float32; None leaves it as it is, which
            is True unless NPU_ROPE_LMDEPLOY_ANGLES=0.
    """
    with _lock:
        _state.enabled, _state.failure = True, None
        if angles is not None:
            _state.angles = angles
        npu_rope_autoload.install(whatever_the_switch=True)
        patch_what_is_loaded()


def disable() -> None:
    """Puts back the very objects that were there; layers that were built meanwhile follow."""
    with _lock:
        _state.enabled = False
        npu_rope_autoload.uninstall()
        for place, (original, replacement) in _patches.items():
            module = sys.modules.get(place.module)
            if module is None:
                continue
            if place.find(module) is replacement:
                place.set(module, original)
            else:  # ours lies under another's, and hands everything on from now on
                logger.warning("%s.%s was replaced again: left", place.owner, place.name)
        _patches.clear()


def is_active() -> bool:
    """Whether LMDeploy's Ascend layer, in this process, runs npu_rope's operator."""
    return _LAYER_PLACE in _patches and _state.failure is None and _ours_to_serve()


# ---- what doctor shows ----

TESTED = {  # LMDeploy: the versions of dlinfer-ascend beside which tests/test_lmdeploy.py runs it
    "0.6.5": ("0.1.4",),
    "0.7.1": ("0.1.6",),
    "0.7.2": ("0.1.7", "0.1.8"),
    "0.7.3": ("0.1.7", "0.1.8"),
    "0.8.0": ("0.2.0",),
    "0.9.2.post1": ("0.2.1.post2", "0.2.2"),
    "0.10.2": ("0.2.3.post2",),
    "0.11.1": ("0.2.4", "0.2.5"),
    "0.12.3": ("0.2.7",),
    "0.18.0": ("0.2.7",),
}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hook() -> tuple[str, str]:
    group = importlib.metadata.entry_points(group="torch.backends")
    if not any(entry.value.startswith(npu_rope_autoload.__name__) for entry in group):
        return "no", "no entry point is installed: install npu_rope again, with pip"
    if not npu_rope_autoload.switched_on():
        return "--", f"turned off by {npu_rope_autoload.SWITCH}={os.environ['NPU_ROPE_LMDEPLOY']}"
    if npu_rope_autoload.installed():
        return "ok", "import hook installed, by `import torch`"
    then = "call npu_rope.lmdeploy.enable() in every process that serves"
    if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0":
        return "no", f"TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps it off: unset it, or {then}"
    return "no", f"torch was imported by torch_npu: import torch first, or {then}"


def _pair() -> tuple[str, str]:
    pair = {name: _version(name) for name in ("lmdeploy", "dlinfer-ascend")}
    missing = [name for name, version in pair.items() if version is None]
    if missing:
        return "--", f"{' and '.join(missing)} not installed"
    lmdeploy, dlinfer = pair.values()
    if dlinfer in TESTED.get(lmdeploy, ()):
        return "ok", f"{lmdeploy} with dlinfer-ascend {dlinfer}: a tested pair"
    beside = f"; tested beside it: {', '.join(TESTED[lmdeploy])}" if lmdeploy in TESTED else ""
    return "--", f"{lmdeploy} with dlinfer-ascend {dlinfer}: not a tested pair{beside}"


def _self_check() -> tuple[str, str]:
    qkv = torch.randn(5, 4 * 80).bfloat16()
    q, k = qkv[:, :160].unflatten(1, (2, 80)), qkv[:, 160:240].unflatten(1, (1, 80))
    angles = torch.outer(torch.arange(5.0), torch.rand(40)).repeat(1, 2)
    tables = angles.cos(), angles.sin()
    rotated = _rotate_layer(q, k, *tables)
    expected = npu_rope.reference.apply(q, k, *tables, cast_tables=False)
    if rotated is not None and all(map(torch.equal, rotated, expected)):
        return "ok", "a call as LMDeploy's vision layers make it equals the reference"
    return "no", "a call as LMDeploy's vision layers make it DIFFERS FROM the reference"


TRIAL = f"""
import importlib, torch
importlib.import_module({LAYER!r})
from npu_rope import lmdeploy
print("active" if lmdeploy.is_active() else "not active")
"""


def _trial() -> tuple[str, str]:
    """What LMDeploy's own process would find; some ten seconds."""
    result = subprocess.run([sys.executable, "-c", TRIAL], capture_output=True, text=True)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return "--", f"LMDeploy's Ascend layer does not import here: {last}"
    if result.stdout.split()[-2:] != ["not", "active"]:
        return "ok", "in a new process, LMDeploy's Ascend layer runs npu_rope's operator"
    if not npu_rope_autoload.switched_on():
        return "--", "in a new process, LMDeploy's Ascend layer runs its own operator"
    return "no", "in a new process, LMDeploy's Ascend layer runs its own operator"


def status() -> list[tuple[str, str, str]]:
    """(mark, subject, finding) of each look; marks as doctor's: ok, -- (absent, fine), no."""
    looks: dict[str, Callable[[], tuple[str, str]]] = {
        "LMDeploy": _pair,
        "  hook": _hook,
        "  self-check": _self_check,
    }
    if _version("lmdeploy") and _version("dlinfer-ascend"):
        looks["  trial"] = _trial
    lines = []
    for subject, look in looks.items():
        mark, finding = look()
        if look is _hook and mark == "no" and not _version("lmdeploy"):
            mark = "--"  # nobody misses it
        lines.append((mark, subject, finding))
    if _state.failure is not None:
        lines.append(("no", "  stepped aside", _state.failure))
    elif is_active():
        angles = "in float32" if _state.angles else "as LMDeploy rounds them"
        lines.append(("ok", "  this process", f"active; Qwen2.5-VL's vision angles {angles}"))
    return lines
