"""Pictures of results, by matplotlib where it is installed (pip install .[bench])."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pipes import LOAD, SCALAR, STORE, VECTOR, Step
from benchmarks.report import RESULTS, Row

OURS, THEIRS, BOUND = "#1f6f8b", "#d98c5f", "#9a9a9a"
GROUPS = {"memory": ("o", OURS), "arithmetic": ("s", "#6c5b9e"), "L2": ("^", "#8fb339"),
          "past L2": ("v", "#b8860b"), "rope": ("D", THEIRS)}  # fmt: skip
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
    figure, axis = plt.subplots(figsize=(10, 3.0))
    lanes = (SCALAR, LOAD, VECTOR, STORE)
    colours = {"Cast": "#3a7d5c", "Mul": OURS, "Add, Sub": "#6c5b9e",
               "Shift, And, Or": "#8fb339", "scalar": "#c9c9c9",
               "TransDataTo5HD": "#b8860b"}  # fmt: skip
    together = {"Add": "Add, Sub", "Sub": "Add, Sub"}
    together |= dict.fromkeys(("ShiftLeft", "ShiftRight", "And", "Or"), "Shift, And, Or")
    shown: dict[str, Any] = {}
    for lane, pipe in enumerate(lanes):
        for step in steps:
            if step.pipe != pipe or step.begin > until:
                continue
            kinds = {VECTOR: step.name, SCALAR: "scalar"}
            name = kinds.get(pipe, "transfer")
            name = together.get(name, name)
            colour = THEIRS if pipe in (LOAD, STORE) else colours.get(name, BOUND)
            length = min(step.end, until) - step.begin
            edges = {"edgecolor": "white", "linewidth": 0.3}
            bar = axis.barh(lane, length, 0.7, step.begin, color=colour, **edges)
            shown.setdefault(name, bar)
    axis.set_yticks(range(4), ["S\nscalar", "MTE2\nloads", "V\nvector", "MTE3\nstores"])
    axis.invert_yaxis()
    axis.set_xlim(0, min(until, max(step.end for step in steps)))
    axis.set_xlabel("µs from the core's start (modelled, not measured)")
    axis.set_title(title, fontsize=9)
    axis.legend(shown.values(), shown, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return _write(plt, figure, stem)


def model(rows: Sequence[Row]) -> Path | str:
    """Time by number of tokens as bands between the ends of the law: a panel a kind of rotation,
    from L2 above and from HBM below."""
    plt = _pyplot()
    if plt is None:
        return MISSING
    panels = {
        "Qwen2.5-72B": "Qwen2.5-72B, 64+8 heads",
        "Qwen2.5-VL vision": "Qwen2.5-VL vision",
        "DeepSeek-V2/V3": "DeepSeek-V3 MLA",
    }
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.6), sharex="col", sharey=True)
    for source, line in zip(("L2", "HBM"), axes, strict=True):
        for axis, (name, title) in zip(line, panels.items(), strict=True):
            points = sorted(
                (int(row["case"].rpartition(",")[2]), row)
                for row in rows
                if row["case"].rpartition(",")[0] == name
                and (row["soc"], row["from"]) == ("910B1", source)
            )
            tokens = [count for count, _ in points]
            for key, label, colour in (
                ("default us", "LMDeploy's default", THEIRS),
                ("us", "npu_rope", OURS),
                ("bytes us", "its bytes alone", BOUND),
            ):
                low, high = zip(*(row[key] for _, row in points), strict=True)
                axis.fill_between(tokens, low, high, color=colour, alpha=0.35, linewidth=0)
                axis.plot(tokens, low, color=colour, linewidth=1, label=label)
                axis.plot(tokens, high, color=colour, linewidth=1)
            for count, row in points:
                if count in (256, 512, 8192) and name != "Qwen2.5-VL vision":
                    continue  # too close to the one before
                low, high = row["on one chip"]
                axis.annotate(f"{low:.1f}-{high:.1f}x", (count, row["default us"][1]), fontsize=7,
                              xytext=(0, 4), textcoords="offset points", ha="center")  # fmt: skip
            axis.set(xscale="log", yscale="log", title=f"{title}, from {source}")
            axis.title.set_fontsize(9)
            axis.set_ylim(0.3, 3000)
            axis.margins(x=0.14)
            axis.grid(alpha=0.25)
        line[0].set_ylabel("µs of one call on 910B1\n(modelled, not measured)")
    for axis in axes[-1]:
        axis.set_xlabel("tokens")
    axes[0][0].legend(frameon=False, loc="upper left")
    return _write(plt, figure, "model")


def validation(rows: Sequence[Row]) -> Path | str:
    plt = _pyplot()
    if plt is None:
        return MISSING
    figure, axis = plt.subplots(figsize=(5.2, 4.8))
    for group, (marker, colour) in GROUPS.items():
        for fitted, fill in (("", colour), ("yes", "none")):
            pairs = [(row["measured us"], row["law us"]) for row in rows
                     if (row["group"], row.get("fitted")) == (group, fitted)]  # fmt: skip
            if pairs:
                axis.plot(*zip(*pairs, strict=True), marker, color=colour, markerfacecolor=fill,
                          alpha=0.8, markersize=4.5, linestyle="none",
                          label=group + (" (fitted)" if fitted else ""))  # fmt: skip
    ranges = [(row["measured us"], *row["law us"]) for row in rows if row["group"] == "in models"]
    x, low, high = zip(*ranges, strict=True)
    axis.vlines(x, low, high, color=BOUND, linewidth=1, label="in models (range)", zorder=0)
    ends = 1, 1e5
    for factor, style in ((1, "-"), (1.25, ":"), (0.8, ":")):
        axis.plot(ends, [factor * end for end in ends], style, color=BOUND, linewidth=1)
    axis.set(xscale="log", yscale="log", ylabel="µs by the law", xlabel="measured µs")
    axis.set_title("The law against times that others measured (dotted: ±25 %)", fontsize=9)
    axis.legend(frameon=False, fontsize=7)
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
