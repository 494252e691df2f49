"""A pytest plugin: writes what was found on this machine into a file that can be sent back.

    pytest -p report --report FILE ...

Versions and settings come first, then every test with its time and what it recorded (pytest's
``record_property``), then the failures in full.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

# What decides a build or a run; nothing else of the environment is written down.
SETTINGS = ("ASCEND_", "NPU_ROPE_", "TASK_QUEUE_ENABLE", "PYTORCH_NPU_ALLOC_CONF", "LD_PRELOAD")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report", help="the file to write", metavar="FILE")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--report"):
        config.pluginmanager.register(Report(Path(config.getoption("--report")).absolute()))


def head() -> list[str]:
    doctor = [sys.executable, "-m", "npu_rope", "doctor"]
    found = subprocess.run(doctor, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    settings = [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(SETTINGS)]
    return [
        time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + f" {platform.platform()}",
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs",
        *settings,
        "",
        *found.stdout.splitlines(),
    ]


class Report:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = head()
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        self.lines += ["", f"{report.outcome:8}{report.duration:8.2f} s  {report.nodeid}"]
        self.lines += [f"    {name}: {value}" for name, value in report.user_properties]
        if report.skipped and isinstance(report.longrepr, tuple):
            self.lines.append(f"    {report.longrepr[2]}")
        if report.failed:
            self.failures += ["", f"==== {report.nodeid}", report.longreprtext]

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        self.path.write_text("\n".join([*self.lines, *self.failures, ""]))
        print(f"The report to send back: {self.path}")
