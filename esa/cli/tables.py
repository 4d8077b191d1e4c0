"""Tables as a person reads them: a line per column, the first rows in bands that fit the window, files of steps."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from esa.cli.plain import GAP, aligned, cut, printable

if TYPE_CHECKING:
    import polars as pl

    from esa.artifact.describe import Column
    from esa.artifact.runs import StepState

_TO = " .. "
_NARROWEST = 12
_WIDEST = 48  # columns of a cell; the longest parameter names of decoders stay whole


def column_lines(columns: Sequence["Column"], width: int) -> list[str]:
    """Return a line per column: type, nulls, distinct values, and what the values are or between which they lie."""
    rows = [["column", "type", "nulls", "distinct"]]
    rows += [[one.name, one.type, f"{one.nulls:,}", f"{one.distinct:,}"] for one in columns]
    lines = aligned(rows, right={2, 3})
    room = max(width - len(lines[0]) - len(GAP), 2 * _NARROWEST)
    values = ["values", *(_values(one, room) for one in columns)]
    return [f"{line}{GAP}{cut(value, room)}".rstrip() for line, value in zip(lines, values, strict=True)]


def head_lines(
    frame: "pl.DataFrame", columns: Sequence["Column"], rows: int, width: int, *, chosen: bool
) -> Iterator[str]:
    """Yield the first rows, columns side by side as far as ``width`` allows, the next ones in a further band.

    Columns of a single value are left out, which their own lines say already, unless the columns were ``chosen``.
    """
    height = min(rows, frame.height)
    varied = [one for one in columns if chosen or one.distinct + (one.nulls > 0) > 1]
    if not height or not varied:
        return
    left_out = "" if len(varied) == len(columns) else "; columns of one value are left out"
    yield ""
    yield f"first {height:,} of {frame.height:,} rows{left_out}" if height < frame.height else f"all rows{left_out}"
    head = frame.head(height)
    cells = [[one.name, *(_cell(value) for value in head[one.name].to_list())] for one in varied]
    numbers = ["", *map(str, range(1, height + 1))]
    band: list[list[str]] = []
    kinds: list[str] = []
    for one, column in zip(varied, cells, strict=True):
        if band and max(map(cell_len, aligned(list(zip(numbers, *band, column, strict=True))))) > width:
            yield from _band(numbers, band, kinds)
            band, kinds = [], []
        band.append(column)
        kinds.append(one.type)
    yield from _band(numbers, band, kinds)


def pairs(lines: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Return ``label  text`` lines, long texts wrapped behind their label, equal labels said once."""
    room = max((len(label) for label, _ in lines), default=0) + len(GAP)
    found, before = [], ""
    for label, text in lines:
        wrapped = textwrap.wrap(printable(text), max(width - room, 20), break_on_hyphens=False)
        for number, part in enumerate(wrapped or [""]):
            found.append(f"{label if number == 0 and label != before else '':<{room}}{part}".rstrip())
        before = label
    return found


def file_lines(steps: Sequence["StepState"], root: Path) -> list[str]:
    """Return a line per file that finished steps vouch for: its path below ``root``, its kind, its size."""
    from esa.artifact.space import size_text

    rows = [["file", "kind", "size"]]
    for one in steps:
        kinds = one.manifest.get("kinds")
        for name, kind in kinds.items() if isinstance(kinds, dict) else ():
            path = one.folder / str(name)
            size = size_text(path.stat().st_size) if path.is_file() else "gone"
            rows.append([str(path.relative_to(root)), str(kind), size])
    return aligned(rows, right={2}) if len(rows) > 1 else ["no tables: the step is not finished"]


def _values(one: "Column", room: int) -> str:
    """Return the values of a column in at most ``room`` columns: all of them where they are few, else their bounds."""
    if one.few:
        return ", ".join(map(_cell, one.few))
    if one.low is None:
        return ""
    ends = [cut(_cell(end), max((room - len(_TO)) // 2, _NARROWEST)) for end in (one.low, one.high)]
    return _cell(one.low) if one.distinct == 1 else _TO.join(ends)


def _band(numbers: list[str], band: list[list[str]], kinds: list[str]) -> Iterator[str]:
    right = {0, *(place for place, kind in enumerate(kinds, start=1) if kind not in ("text", "boolean"))}
    yield from ("", *aligned(list(zip(numbers, *band, strict=True)), right))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else cut(str(value), _WIDEST)
