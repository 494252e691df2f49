"""What the drop-in has to say: what it served and left, which versions, what doctor shows."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import npu_rope_autoload

Look = tuple[str, str]
"""(mark, finding); marks as doctor's: ok, -- (absent, and that is fine), no (a defect)."""


# ---- calls ----


@dataclass
class Count:
    """The calls that one kind of patch got in this process. Replays of NPU graphs are not seen."""

    name: str
    served: int = 0
    left: dict[str, int] = field(default_factory=dict)  # why, but for its numbers

    def leave(self, why: str) -> bool:
        """Counts one that LMDeploy's own code serves; whether it is the first of its kind."""
        kind = re.sub(r"\d+", "#", why)
        self.left[kind] = self.left.get(kind, 0) + 1
        return self.left[kind] == 1

    def __str__(self) -> str:
        left = "".join(f"; {times} left to LMDeploy: {why}" for why, times in self.left.items())
        return f"{self.served} calls served{left}"


# ---- versions ----

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


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text.split("+")[0])[:3]))


def cannot_serve(lmdeploy: str, dlinfer: str) -> str | None:
    """Why this pair fails whatever rotates q and k; None where nothing is known against it."""
    if _numbers(lmdeploy) >= (0, 13) and _numbers(dlinfer) < (0, 2, 8):
        return (
            "LMDeploy from 0.13 on hands decode attention more than dlinfer before 0.2.8 takes; "
            "of PyPI's pairs, 0.12.3 with 0.2.7 is the newest that can"
        )
    if (lmdeploy, dlinfer) == ("0.12.3", "0.2.6"):
        return "dlinfer 0.2.6 does not import (MoECommType); take 0.2.7"
    return None


def _pair() -> Look:
    pair = {name: version(name) for name in ("lmdeploy", "dlinfer-ascend")}
    missing = [name for name, its in pair.items() if its is None]
    if missing:
        return "--", f"{' and '.join(missing)} not installed"
    lmdeploy, dlinfer = pair.values()
    both = f"{lmdeploy} with dlinfer-ascend {dlinfer}"
    tested = dlinfer in TESTED.get(lmdeploy, ())
    rope = "its rope is tested" if tested else "a pair that is not tested"
    if lmdeploy in TESTED and not tested:
        rope += f" (tested beside it: {', '.join(TESTED[lmdeploy])})"
    if why := cannot_serve(lmdeploy, dlinfer):
        return "no", f"{both} CANNOT SERVE: {why}; {rope}"
    return "ok" if tested else "--", f"{both}: {rope}; nothing known against serving with it"


# ---- this installation ----


def _hook() -> Look:
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


def _self_check() -> Look:
    import torch

    from npu_rope import reference
    from npu_rope.lmdeploy import rotate

    qkv = torch.randn(5, 4 * 80).bfloat16()
    q, k = qkv[:, :160].unflatten(1, (2, 80)), qkv[:, 160:240].unflatten(1, (1, 80))
    angles = torch.outer(torch.arange(5.0), torch.rand(40)).repeat(1, 2)
    tables = angles.cos(), angles.sin()
    rotated = rotate.layer(q, k, *tables, True, False, False)
    expected = reference.apply(q, k, *tables, cast_tables=False)
    if isinstance(rotated, tuple) and all(map(torch.equal, rotated, expected)):
        return "ok", "a call as LMDeploy's vision layers make it equals the reference"
    return "no", f"a call as LMDeploy's vision layers make it DIFFERS FROM the reference: {rotated}"


TRIAL = f"""
import importlib, json, torch
importlib.import_module({npu_rope_autoload.LAYER!r})
from npu_rope import _C, lmdeploy
found = {{"npu": torch._C._get_privateuse1_backend_name() == "npu"}}
if found["npu"]:
    found["available"] = torch.npu.is_available()
    found["problem"] = _C.npu_library_problem()
    if found["available"] and not found["problem"]:
        torch.npu.current_stream()
        found["problem"] = _C.npu_chip_problem()
found["active"] = lmdeploy.is_active()
print(json.dumps(found))
"""


def _trial() -> Look:
    """What LMDeploy's own process would find; some ten seconds."""
    result = subprocess.run([sys.executable, "-c", TRIAL], capture_output=True, text=True)
    where = "in a new process"
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return "--", f"LMDeploy's Ascend layer does not import here: {last}"
    found = json.loads(result.stdout.splitlines()[-1])
    if not npu_rope_autoload.switched_on():
        return "--", f"{where}, LMDeploy's Ascend layer runs its own operator, as the switch says"
    if not found["npu"]:
        takes = "runs npu_rope's operator" if found["active"] else "runs its own operator"
        mark = "--" if found["active"] else "no"
        return mark, f"{where}, LMDeploy's Ascend layer {takes}; on CPU tensors: torch has no npu"
    if found["problem"]:
        return "no", f"{where}, LMDeploy's Ascend layer runs its own operator: {found['problem']}"
    if not found["available"]:
        return "no", f"{where}, torch.npu.is_available() is False: nothing can be served"
    if not found["active"]:
        return "no", f"{where}, LMDeploy's Ascend layer runs its own operator"
    return "ok", f"{where}, LMDeploy's Ascend layer runs npu_rope's operator, on npu tensors"


def _this_process() -> list[tuple[str, str, str]]:
    """Where LMDeploy is loaded in this process: what is patched, and the calls so far."""
    from npu_rope.lmdeploy import patch, rotate

    lines = []
    taken: dict[str, bool] = {}
    for place, how in patch.places():
        taken[place.switch] = taken.get(place.switch, False) or how == "taken"
        if how != "taken":
            lines.append(("no", "  left as it is", f"{place}: {how}"))
    for switch in sorted(patch.state.without):
        lines.append(("--", f"  {switch}", f"turned off by {patch.WITHOUT} or enable(without=...)"))
    if taken.get(patch.LAYER.switch):
        active = "active" if patch.is_active() else "not active"
        if rotate.rounding[1]:
            active += ", with a rounding for each product and sum"
        why = f": {patch.state.problem}" if patch.state.problem else ""
        mark = "no" if why else "ok" if patch.is_active() else "--"
        lines.append((mark, "  this process", active + why))
    elif any(count.served for count in patch.counts.values()):
        still = "NPU graphs that were captured before still replay npu_rope's kernel"
        lines.append(("--", "  this process", f"not active any more; {still}"))
    for switch, is_taken in taken.items():
        if is_taken:
            mark = "--" if patch.counts[switch].left else "ok"
            lines.append((mark, f"  {switch}", str(patch.counts[switch])))
    return lines


def status() -> list[tuple[str, str, str]]:
    """(mark, subject, finding) of each look; marks as doctor's: ok, -- (absent, fine), no.

    The pair of versions, the hook, a self-check, what a new process would find (some ten seconds),
    and of this process what is patched, what is turned off, and the calls served and left.
    """
    looks: dict[str, Callable[[], Look]] = {
        "LMDeploy": _pair,
        "  hook": _hook,
        "  self-check": _self_check,
    }
    if version("lmdeploy") and version("dlinfer-ascend"):
        looks["  trial"] = _trial
    lines = []
    for subject, look in looks.items():
        mark, finding = look()
        if look is _hook and mark == "no" and not version("lmdeploy"):
            mark = "--"  # nobody misses it
        lines.append((mark, subject, finding))
    return lines + _this_process()
