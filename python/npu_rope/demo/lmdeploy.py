"""LMDeploy's own rotary layer, `nn.ApplyRotaryEmb` of its Ascend backend, before and after.

dlinfer changes torch for the whole process, so the layer runs in one of its own; on CPU tensors,
beside a stand-in for torch_npu. tests/lmdeploy/packages.py brings what it needs.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

CACHE = Path(sys.prefix) / "share/npu_rope/lmdeploy"
PACKAGES = ("standin", "lmdeploy-0.18.0", "dlinfer-ascend-0.2.7", "besides")
PATCHES = 64  # the image is PATCHES x PATCHES
TOKENS = PATCHES * PATCHES


def section() -> int:
    """Prints it; 0 too where the packages are not there."""
    folders = [CACHE / name for name in PACKAGES]
    missing = [folder.name for folder in folders if not folder.is_dir()]
    if missing:
        print(
            f"\nLMDeploy's own layer is not shown, for want of {', '.join(missing)}:\n"
            "`make test` or `python tests/lmdeploy/packages.py` in a checkout brings them (300 MB)."
        )
        return 0
    sys.stdout.flush()
    path = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-W", "ignore", "-m", __name__]
    return subprocess.run(command, env=env).returncode


@dataclass(frozen=True)
class Case:
    name: str
    q: Tensor
    k: Tensor
    angles: Tensor  # float32, [tokens, rotary_dim], in half order
    inplace: bool
    rounds_angles: bool = False  # as LMDeploy does for Qwen2.5-VL

    def tables(self, before: bool) -> tuple[Tensor, Tensor]:
        """As they reach the layer, without the drop-in and with it."""
        if self.rounds_angles:
            angles = self.angles.bfloat16() if before else self.angles
            return angles.cos(), angles.sin()
        return self.angles.cos().bfloat16(), self.angles.sin().bfloat16()

    def error(self, rotated: tuple[Tensor, Tensor]) -> float:
        """Root mean square, as a share of the values': against float64 and unrounded angles."""
        cos, sin = (
            x.unsqueeze(1) for x in (self.angles.double().cos(), self.angles.double().sin())
        )
        squares = torch.zeros(2, dtype=torch.float64)
        for x, y in zip((self.q, self.k), rotated, strict=True):
            x1, x2 = x.double().chunk(2, -1)
            exact = x.double() * cos + torch.cat((-x2, x1), -1) * sin
            squares += torch.stack(((y.double() - exact).square().sum(), exact.square().sum()))
        return (squares[0] / squares[1]).sqrt().item()


def cases() -> list[Case]:
    def packed(*heads: int) -> list[Tensor]:
        return list(torch.randn(TOKENS, sum(heads), 80).bfloat16().split(heads, 1))

    def frequencies(width: int) -> Tensor:
        return 1e4 ** -(torch.arange(0, width, 2) / width)

    q, k, _ = packed(16, 16, 16)
    rows, columns = torch.arange(TOKENS) // PATCHES, torch.arange(TOKENS) % PATCHES
    angles = torch.cat([torch.outer(x.float(), frequencies(40)) for x in (rows, columns)], 1)
    vision = Case("Qwen2.5-VL vision, packed QKV", q, k, angles.repeat(1, 2), True, True)

    q = torch.randn(TOKENS, 16, 192).bfloat16()[..., 128:]
    k = torch.randn(TOKENS, 1, 576).bfloat16()[..., 512:]
    angles = torch.outer(torch.arange(float(TOKENS)), frequencies(64)).repeat(1, 2)
    return [vision, Case("DeepSeek-V2 MLA, q_pe and k_pe", q, k, angles, False)]


def main() -> int:
    from npu_rope_autoload import logger
    from torch.utils._python_dispatch import TorchDispatchMode

    from npu_rope import lmdeploy as drop_in
    from npu_rope.demo.measure import fastest

    logger.setLevel(logging.WARNING)  # on and off below would stand in the table

    class Launches(TorchDispatchMode):
        """What would each be a kernel on an NPU: operators that neither view nor allocate."""

        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            allocates = func.__name__.split(".")[0] in ("empty", "empty_like", "new_empty")
            self.count += not allocates and not func.is_view
            return func(*args, **(kwargs or {}))

    from lmdeploy.pytorch.devices import DeviceContext, get_device_manager
    from lmdeploy.pytorch.nn import ApplyRotaryEmb

    with get_device_manager().context(DeviceContext("ascend")):
        layer = ApplyRotaryEmb()
    from importlib.metadata import version

    pair = f"LMDeploy {version('lmdeploy')} over dlinfer {version('dlinfer-ascend')}"
    print(f"\n{pair}: its own rotary layer, {TOKENS} tokens, bfloat16, on CPU tensors")
    print(f"   {'':<34}{'launches':>18}{'time':>24}{'rms error':>20}")
    fine = True
    for case in cases():
        results = []
        for before in (True, False):
            (drop_in.disable if before else drop_in.enable)()
            call = (case.q, case.k, *case.tables(before), case.inplace)
            with Launches() as launches:
                rotated = layer(*call)
            (seconds,) = fastest([lambda call=call: layer(*call)])
            results.append((launches.count, seconds * 1e3, case.error(rotated)))
        (n0, t0, e0), (n1, t1, e1) = results
        fine &= n1 == 1 and e1 <= e0 and drop_in.is_active()
        print(
            f"   {case.name:<34}{n0:>10} -> {n1:<4}{t0:>10.2f} -> {t1:.2f} ms"
            f"{e0:>12.3%} -> {e1:.3%}"
        )
    print("   before -> after; the launches are what the same calls cost on an NPU.")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
