"""What the kernel's scalar unit executes, counted: it does not grow unseen.

The figures kept are another machine's where the compiler is another: they are made anew by
`python -m benchmarks scalar --step`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from npu_rope import simulator

from benchmarks import scalar, shapes
from benchmarks.report import Row

RECORDED = json.loads((Path(__file__).parent / "scalar_counts.json").read_text())
CACHE = 16  # KB, of instructions


@pytest.fixture(scope="module")
def counted() -> dict[str, Row]:
    try:
        return {row["case"]: row for row in scalar.held()}
    except scalar.CannotCount as why:
        pytest.skip(str(why))


def test_no_more_scalar_instructions(counted: dict[str, Row]) -> None:
    """Within 10 % of what is recorded; fewer are welcome, and then recorded."""
    note = scalar.NOTE.format(machine=scalar.machine(step=True))
    if note != RECORDED["note"]:
        pytest.skip(f"counted on {scalar.machine(step=True)}, recorded: {RECORDED['note']}")
    recorded = {row["case"]: row["instructions"] for row in RECORDED["rows"]}
    instructions = {case: row["instructions"] for case, row in counted.items()}
    assert instructions == pytest.approx(recorded, rel=0.1)


def test_an_entry_fits_the_instruction_cache(counted: dict[str, Row]) -> None:
    """What one launch executes, at 4 bytes an instruction."""
    assert {case: row["code KB"] for case, row in counted.items() if row["code KB"] > CACHE} == {}


def test_counts_agree_with_the_trace(counted: dict[str, Row]) -> None:
    """The header for counting issues what the simulated kernel does."""
    made = shapes.make(shapes.find("Qwen2.5-72B, 64"))
    events = simulator.apply(*made.args(), events=True).trace.cores[0].events
    row = counted["Qwen2.5-72B, 64"]
    assert row["vector"] == sum(event.pipe == "V" for event in events)
    assert row["moves"] == sum(event.pipe in ("MTE2", "MTE3") for event in events)
