"""What the kernel's scalar unit executes, counted: it does not grow unseen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import scalar_counter as scalar

RECORDED = Path(__file__).parent / "scalar_counts.json"


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    try:
        rows = scalar.count(scalar.build(tmp_path_factory.mktemp("scalar")))
    except scalar.CannotCount as why:
        pytest.skip(str(why))
    return {row["case"]: row for row in rows}


def test_no_more_scalar_instructions(counted: dict[str, dict[str, int]]) -> None:
    """Within 10 % of what is recorded; fewer are welcome, and then recorded."""
    recorded = json.loads(RECORDED.read_text())
    if scalar.version() != recorded["counted on"]:
        pytest.skip(f"counted on {scalar.version()}, recorded on {recorded['counted on']}")
    instructions = {case: row["instructions"] for case, row in counted.items()}
    assert instructions == pytest.approx(recorded["instructions"], rel=0.1)


def test_an_entry_fits_the_instruction_cache(counted: dict[str, dict[str, int]]) -> None:
    """What one launch executes, at 4 bytes an instruction."""
    for case, row in counted.items():
        assert 4 * row["distinct"] <= scalar.CACHE, case


def test_counts_agree_with_the_trace(counted: dict[str, dict[str, int]]) -> None:
    """The header for counting issues what the simulated kernel does."""
    torch = pytest.importorskip("torch")
    from npu_rope import simulator

    q = torch.empty(64, 80, 128, dtype=torch.bfloat16)
    tables = torch.ones(2, 64, 128)
    run = simulator.apply(q[:, :64], q[:, 64:72], *tables, events=True)
    events = run.trace.cores[0].events
    row = counted["Qwen2.5-72B, 64"]
    assert row["vector"] == sum(event.pipe == "V" for event in events)
    assert row["moves"] == sum(event.pipe in ("MTE2", "MTE3") for event in events)
