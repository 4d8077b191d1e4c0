"""What a chart does under a pointer: a tooltip on every mark, and a legend that singles out what is clicked in it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import altair as alt
import polars as pl

from esa.report.markdown import MISSING

SHOWN = "shown"  # the selection of every chart that has one: bound to its legend, the same in all panels
FADED = 0.08


def tips(
    frame: pl.DataFrame, lines: Mapping[str, tuple[str, Callable[[Any], str]]]
) -> tuple[pl.DataFrame, list[alt.Tooltip]]:
    """Return ``frame`` with a column of text per line of a tooltip, and the tooltip: title -> (column, how it is written).

    The texts are those of the tables, to the digit. A line that has nothing to say for any row is left out.
    """
    texts, shown = [], []
    for title, (column, write) in lines.items():
        if frame[column].null_count() == frame.height:
            continue
        name = f"tip_{column}"
        texts.append(pl.Series(name, [MISSING if value is None else write(value) for value in frame[column].to_list()]))
        shown.append(alt.Tooltip(name, type="nominal", title=title))
    return frame.with_columns(texts), shown


def faded(opacity: float) -> Any:
    """Return the opacity of a mark: its own while nothing, or its own entry, is singled out in the legend."""
    return alt.condition(alt.selection_point(name=SHOWN), alt.value(opacity), alt.value(FADED))


def bind_legend(content: dict[str, Any]) -> None:
    """Define, in a chart's specification, the selection that its :func:`faded` marks refer to; a chart without keeps as it is.

    Altair would define one per panel and warn of it, and names the views differently from version to version.
    """
    units = [found[0] for panel in _panels(content) if (found := [unit for unit in panel if _is_faded(unit)])]
    if not units:
        return
    for number, unit in enumerate(units):
        unit["name"] = f"marks{number}"
    content["params"] = [{
        "name": SHOWN,
        # Each click adds an entry or takes it away again, with a mouse as with a finger; without any, all are shown.
        "select": {"type": "point", "fields": [units[0]["encoding"]["color"]["field"]], "toggle": "true", "clear": False},
        "bind": "legend",
        "views": [unit["name"] for unit in units],
    }]  # fmt: skip


def _panels(content: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Yield the layers of each panel: of all layers of one panel only one may own the selection."""
    if "layer" in content:
        yield content["layer"]
    for key in ("concat", "vconcat"):
        for child in content.get(key, []):
            yield from _panels(child)


def _is_faded(unit: Mapping[str, Any]) -> bool:
    condition = unit["encoding"].get("opacity", {}).get("condition")
    return isinstance(condition, dict) and condition.get("param") == SHOWN
