"""Plain text in columns for standard output, safe from whatever the files hold that it comes from."""

import shutil
from collections.abc import Collection, Sequence

from rich.cells import cell_len, set_cell_size

GAP = "  "


def printable(text: str) -> str:
    """Return text as one line that no terminal obeys: control, format and unassigned characters as their escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Return a line per row, its cells in columns; those of the columns ``right`` end where the column ends."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(cell_len(row[column]) for row in cells if column < len(row)) for column in range(_most(cells))]
    return [
        GAP.join(
            " " * (width - cell_len(cell)) + cell if column in right else set_cell_size(cell, width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in cells
    ]


def cut(text: str, width: int) -> str:
    """Return text of at most ``width`` columns, an ellipsis where its end is missing."""
    shown = printable(text)
    return shown if cell_len(shown) <= width else f"{set_cell_size(shown, width - 1)}…"


def window_width() -> int:
    """Return the columns of the terminal; 80 where the output goes elsewhere, unless COLUMNS says otherwise."""
    return shutil.get_terminal_size((80, 24)).columns


def duration(seconds: float | None) -> str:
    """Return a duration as people read it: ``0.0 s``, ``61.1 s``, ``6.3 min``, ``2.1 h``."""
    if seconds is None:
        return ""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _most(rows: Sequence[Sequence[str]]) -> int:
    return max((len(row) for row in rows), default=0)
