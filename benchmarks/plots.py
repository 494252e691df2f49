"""Pictures of results, by matplotlib where it is installed (pip install .[bench])."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pipes import LOAD, STORE, VECTOR, Step
from benchmarks.report import RESULTS, Row

OURS, THEIRS, BOUND = "#1f6f8b", "#d98c5f", "#9a9a9a"
MARKERS = {"Add": "o", "Cast": "s", "Mul": "^", "Mul, broadcast": "v", "RmsNorm": "x"}
MISSING = "no picture: matplotlib is missing (pip install .[bench])"


def _pyplot() -> Any:  # noqa: ANN401
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "npu_rope", "font.size": 9, "axes.spines.top": False,
                         "axes.spines.right": False})  # fmt: skip
    return plt


def _write(plt: Any, figure: Any, stem: str) -> Path:  # noqa: ANN401
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{stem}.png"
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return path


def timeline(steps: Sequence[Step], title: str, stem: str, until: float) -> Path | str:
    plt = _pyplot()
    if plt is None:
        return MISSING
    figure, axis = plt.subplots(figsize=(10, 2.4))
    lanes = (LOAD, VECTOR, STORE)
    colours = {"Cast": "#3a7d5c", "Mul": OURS, "Add": "#6c5b9e", "Sub": "#6c5b9e",
               "ShiftLeft": "#8fb339", "And": "#8fb339", "TransDataTo5HD": "#b8860b"}  # fmt: skip
    together = {"Add": "Add, Sub", "Sub": "Add, Sub", "ShiftLeft": "ShiftLeft, And",
                "And": "ShiftLeft, And"}  # fmt: skip
    shown: dict[str, Any] = {}
    for lane, pipe in enumerate(lanes):
        for step in steps:
            if step.pipe != pipe or step.begin > until:
                continue
            name = step.name if pipe == VECTOR else "transfer"
            name = together.get(name, name)
            colour = THEIRS if pipe != VECTOR else colours.get(step.name, BOUND)
            length = min(step.end, until) - step.begin
            edges = {"edgecolor": "white", "linewidth": 0.3}
            bar = axis.barh(lane, length, 0.7, step.begin, color=colour, **edges)
            shown.setdefault(name, bar)
    axis.set_yticks(range(3), ["MTE2\nloads", "V\nvector", "MTE3\nstores"])
    axis.invert_yaxis()
    axis.set_xlim(0, min(until, max(step.end for step in steps)))
    axis.set_xlabel("µs from the core's start (modelled, not measured)")
    axis.set_title(title, fontsize=9)
    axis.legend(shown.values(), shown, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return _write(plt, figure, stem)


def model(rows: Sequence[Row]) -> Path | str:
    """Time by number of tokens, one panel a kind of rotation."""
    plt = _pyplot()
    if plt is None:
        return MISSING
    panels = {
        "Qwen2.5-72B": "Qwen2.5-72B: D 128, 64+8 heads",
        "Qwen2.5-VL vision": "Qwen2.5-VL vision: D 80, 16+16 heads",
        "DeepSeek-V2/V3": "DeepSeek-V3 MLA: 64 of 192, 128+1 heads",
    }
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        points = sorted(
            (int(row["case"].rpartition(",")[2]), row)
            for row in rows
            if row["case"].rpartition(",")[0] == name
            and (row["soc"], row["memory"]) == ("910B1", "HBM")
        )
        tokens = [count for count, _ in points]
        for key, label, colour, style in (
            ("default us", "LMDeploy's default", THEIRS, "o-"),
            ("total us", "npu_rope", OURS, "o-"),
            ("bound us", "bytes / 1.6 TB/s", BOUND, "--"),
        ):
            axis.plot(tokens, [row[key] for _, row in points], style, color=colour, label=label)
        for count, row in points:
            if count in (512, 8192):  # too close to the one before
                continue
            axis.annotate(f"{row['speedup']:.1f}x", (count, row["default us"]), fontsize=8,
                          xytext=(0, 5), textcoords="offset points", ha="center")  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="tokens", title=title)
        axis.title.set_fontsize(10)
        axis.set_ylim(0.3, 3000)
        axis.margins(x=0.1)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("µs of one call on 910B1\n(modelled, not measured)")
    axes[0].legend(frameon=False, loc="upper left")
    return _write(plt, figure, "model")


def validation(rows: Sequence[Row]) -> Path | str:
    plt = _pyplot()
    if plt is None:
        return MISSING
    figure, axis = plt.subplots(figsize=(4.6, 4.2))
    for op, marker in MARKERS.items():
        pairs = [(row["measured us"], row["model us"]) for row in rows if row["op"] == op]
        axis.plot(*zip(*pairs, strict=True), marker, label=op, alpha=0.8, markersize=5)
    axis.plot([1, 200], [1, 200], color=BOUND, linewidth=1)
    axis.plot([1, 200], [1.25, 250], ":", [1, 200], [0.8, 160], ":", color=BOUND, linewidth=1)
    axis.set(xscale="log", yscale="log", ylabel="modelled µs")
    axis.set_xlabel("measured µs (msopmodeling's op profiles)")
    axis.set_title("The model against measured ops (dotted: ±25 %)", fontsize=9)
    axis.legend(frameon=False)
    axis.grid(alpha=0.25)
    return _write(plt, figure, "validation")


def cpu(rows: Sequence[Row], machine: str, titles: Mapping[str, str]) -> Path | str:
    """Time of each competitor by shape, with the most threads that were measured."""
    plt = _pyplot()
    if plt is None:
        return MISSING
    colours = {"read-modify-write": BOUND, "npu_rope.apply_": OURS,
               "vLLM": "#6c5b9e", "Hugging Face, compiled": "#e7c19d", "Hugging Face": THEIRS,
               "LMDeploy": "#a0522d"}  # fmt: skip
    labels = {
        "read-modify-write": "reading and writing q and k, no arithmetic",
        "npu_rope.apply_": "npu_rope",
        "vLLM": "vLLM's CPU kernel (bf16 tables)",
        "LMDeploy": "LMDeploy's eager form",
    }
    threads = max(row["threads"] for row in rows)
    shown = [
        row
        for row in rows
        if row["threads"] == threads
        and row["case"].endswith(" bfloat16 half")
        and row["competitor"] in colours
    ]
    if not shown:
        return "no picture: none of bfloat16 half was measured"
    cases = list(dict.fromkeys(row["case"] for row in shown))
    figure, axis = plt.subplots(figsize=(11, 3.6))
    names = [name for name in colours if any(row["competitor"] == name for row in shown)]
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        points = [(cases.index(row["case"]), row["us"]) for row in shown
                  if row["competitor"] == name]  # fmt: skip
        left = [case - 0.4 + (place + 0.5) * width for case, _ in points]
        axis.bar(left, [us for _, us in points], width, color=colours[name],
                 label=labels.get(name, name))  # fmt: skip
    ticks = [titles[case.split()[0]] for case in cases]
    axis.set_xticks(range(len(cases)), ticks, fontsize=8)
    axis.set(yscale="log", ylabel=f"µs of one call, {threads} threads")
    axis.set_title(f"bfloat16, half style, float32 tables: measured ({machine})", fontsize=9)
    axis.legend(frameon=False, loc="upper left")
    axis.grid(axis="y", alpha=0.25)
    return _write(plt, figure, "cpu")
