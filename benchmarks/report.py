"""What every benchmark prints and keeps: a table, JSON, and a line of progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

RESULTS = Path(__file__).parent / "results"
Item = TypeVar("Item")
Row = dict[str, Any]


def cell(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return ""
    if isinstance(value, bool):
        return "met" if value else "MISSED"
    if isinstance(value, tuple):  # a range
        low, high = map(cell, value)
        return low if low == high else f"{low}-{high}"
    if isinstance(value, float):
        return (
            f"{value:.0f}"
            if abs(value) >= 1000
            else f"{value:.3g}"
            if value < 100
            else f"{value:.1f}"
        )
    return str(value)


def table(rows: Sequence[Row]) -> str:
    """Columns by the keys of the rows, in order of first appearance; numbers to the right."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[cell(row.get(key)) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in [keys, *cells]) for i in range(len(keys))]
    texts = [any(isinstance(row.get(key), str) for row in rows) for key in keys]

    def line(values: Sequence[str]) -> str:
        pad = (
            value.ljust(width) if text else value.rjust(width)
            for value, width, text in zip(values, widths, texts, strict=True)
        )
        return "  ".join(pad).rstrip()

    return "\n".join([line(keys), line(["-" * width for width in widths]), *map(line, cells)])


def save(name: str, note: str, rows: Sequence[Row], folder: Path | None = None) -> Path:
    folder = folder or RESULTS
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(f'{{"note": {json.dumps(note)},\n "rows": [\n  {lines}\n]}}\n')
    return path


def progress(items: Iterable[Item], what: str) -> Iterator[Item]:
    """The items, with a bar on stderr where that is a terminal, and a line for each where not."""
    todo = list(items)
    for done, item in enumerate(todo):
        name = getattr(item, "name", str(item))
        if sys.stderr.isatty():
            bar = "#" * (24 * done // len(todo))
            print(f"\r\033[K{what} [{bar:24}] {done}/{len(todo)} {name}", end="", file=sys.stderr)
        else:
            print(f"{what} {done + 1}/{len(todo)} {name}", file=sys.stderr)
        sys.stderr.flush()
        yield item
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
