"""Says what is installed, which backends are live, and why one is not.

Every look is taken by itself, so that what is broken (``import torch`` too) is a line of the report
and not its end.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import npu_rope

Line = tuple[str, str, str]
"""(mark, subject, finding); marks: ok, -- (absent, and that is fine), no (a defect)."""


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch() -> Iterator[Line]:
    try:
        import torch

        yield "ok", "torch", f"{torch.__version__}"
    except Exception as error:
        yield "no", "torch", f"`import torch` fails: {_first_line(error)}"
        if _installed("torch-npu") and not os.environ.get("ASCEND_HOME_PATH"):
            yield (
                "no",
                "",
                "torch_npu is installed but CANN's environment is not set: source set_env.sh, or "
                "set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to load torch without it",
            )


def _cann() -> Iterator[Line]:
    home = os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME")
    if not home:
        yield "--", "CANN", "not found: ASCEND_HOME_PATH is not set (source CANN's set_env.sh)"
        return
    for path in sorted(Path(home).glob("*/ascend_toolkit_install.info")):
        for line in path.read_text().splitlines():
            if line.startswith("version="):
                yield "ok", "CANN", f"{line.removeprefix('version=')} in {home}"
                return
    yield "ok", "CANN", f"in {home}, version unknown"


def _torch_npu() -> Iterator[Line]:
    version = _installed("torch-npu")
    if version is None:
        yield "--", "torch_npu", "not installed"
        return
    torch_version = _installed("torch") or "none"
    pair = version.split(".")[:2] == torch_version.split("+")[0].split(".")[:2]
    yield (
        "ok" if pair else "no",
        "torch_npu",
        version if pair else f"{version}, which does not pair with torch {torch_version}",
    )


def _operator() -> Iterator[Line]:
    try:
        npu_rope._load()
        from npu_rope import _C
    except Exception as error:
        yield "no", "operator", _first_line(error)
        return
    yield "ok", "operator", f"loaded, built for torch {_C.built_for_torch}"
    yield from _cpu()
    yield from _npu()


def _trial(device: str) -> str:
    """What a small call on this device gives, beside the reference."""
    import torch

    from npu_rope import reference

    q, k = torch.randn(3, 4, 80).bfloat16(), torch.randn(3, 2, 80).bfloat16()
    angles = torch.outer(torch.arange(3.0), torch.rand(40))
    args = (q, k, angles.cos(), angles.sin())
    got = torch.ops.npu_rope.apply(*(t.to(device) for t in args), rotary_dim=80)
    expected = reference.apply(*args, rotary_dim=80)
    right = all(torch.equal(a.cpu(), b) for a, b in zip(got, expected, strict=True))
    return f"a trial call {'equals' if right else 'DIFFERS FROM'} the reference"


def _cpu() -> Iterator[Line]:
    import torch

    try:
        how = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
        trial = _trial("cpu")
        yield "no" if "DIFFERS" in trial else "ok", "backend cpu", f"live ({how}); {trial}"
    except Exception as error:
        yield "no", "backend cpu", f"a trial call fails: {_first_line(error)}"


def _npu() -> Iterator[Line]:
    subject = "backend npu"
    if importlib.util.find_spec("torch_npu") is None:
        yield "--", subject, "not live: torch_npu is not installed"
        return
    named = os.environ.get("NPU_ROPE_NPU_LIBRARY")
    library = Path(named) if named else Path(__file__).with_name("libnpu_rope_npu.so")
    if not library.exists():
        yield (
            "no",
            subject,
            "not live: npu_rope was built without its NPU library; with CANN's set_env.sh sourced, "
            "`pip install --no-build-isolation --force-reinstall --no-deps` builds it",
        )
        return
    try:
        import torch
        import torch_npu  # noqa: F401  where autoload is off

        if not torch.npu.is_available():
            yield "no", subject, "not live: torch.npu.is_available() is False"
            return
        what = f"{torch.npu.device_count()} x {torch.npu.get_device_name()}"
        if library.parent.name == "npu_simulated":
            what += ", SIMULATED"
        trial = _trial("npu")
        yield "no" if "DIFFERS" in trial else "ok", subject, f"live ({what}); {trial}"
    except Exception as error:
        yield "no", subject, f"not live: {_first_line(error)}"


def _simulate() -> Iterator[Line]:
    from npu_rope import simulate

    places = [path.name for path in sorted(simulate.install_folder().glob("torch_npu-*"))]
    if places:
        yield (
            "ok",
            "simulate",
            f"{', '.join(places)} in {simulate.install_folder()}, which uninstalling leaves: "
            "`python -m npu_rope simulate --remove` removes it",
        )
    else:
        yield "--", "simulate", "has installed nothing in this environment"


def _lmdeploy() -> Iterator[Line]:
    try:
        from npu_rope import lmdeploy
    except Exception as error:  # of torch too, which raises what it likes
        why = f"npu_rope does not load in it: {_first_line(error)}"
        yield "no", "LMDeploy", f"its rotary layer stays its own, since {why}"
        return
    try:
        yield from lmdeploy.status()
    except Exception as error:
        yield "no", "LMDeploy", _first_line(error)


def report() -> list[Line]:
    looks: list[Callable[[], Iterator[Line]]] = [
        _torch,
        _torch_npu,
        _cann,
        _operator,
        _simulate,
        _lmdeploy,
    ]
    python = f"{platform.python_version()} on {platform.machine()}, {sys.executable}"
    lines: list[Line] = [("ok", "python", python), ("ok", "npu_rope", npu_rope.__version__)]
    for look in looks:
        lines += look()
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m npu_rope doctor", description=__doc__)
    parser.parse_args(argv)
    lines = report()
    for mark, subject, finding in lines:
        print(f"  {mark}  {subject:<14} {finding}")
    return int(any(mark == "no" for mark, _, _ in lines))
