"""Axes and looks that the charts across models share: values on linear or logarithmic axes, a colour and a shape per name."""

import math
import textwrap
from typing import Any

import altair as alt
import polars as pl

from esa.report.charts import axis_labels
from esa.report.frames import log_ticks
from esa.report.theme import PALETTE, RUNS

EXTENT = 46  # pixels for the labels of a vertical axis, fixed so that panels above each other line up
_PLAIN = (1e-3, 1e6)  # beyond, values are labelled with an exponent
_TITLE = 46  # letters of a bold title above a figure
_FEWEST = 3  # ticks; with fewer a logarithmic axis is labelled at round steps instead


def span(*columns: pl.Series) -> tuple[float, float]:
    """Return the smallest and the largest of all finite values; 0 and 1 where there are none."""
    known = pl.concat([column.cast(pl.Float64) for column in columns]).drop_nulls()
    known = known.filter(known.is_finite())
    return (float(known.min()), float(known.max())) if known.len() else (0.0, 1.0)  # type: ignore[arg-type]


def widened(low: float, high: float, *, log: bool, room: float = 0.06) -> tuple[float, float]:
    """Return a domain with a little room at both ends, and some width where all values are one."""
    if log:
        factor = max((high / low) ** room, 1.02)
        return low / factor, high * factor
    more = max((high - low) * room, abs(high) * 0.02, 1e-9)
    return low - more, high + more


def value_axis(low: float, high: float, title: str | None, *, log: bool, **axis: Any) -> dict[str, Any]:
    """Return title, scale and axis for a domain that is final: round ticks, few of them."""
    kind: dict[str, Any] = {"domain": [low, high], "nice": False}
    most = max(abs(low), abs(high))
    written = ".3~e" if most < _PLAIN[0] or most >= _PLAIN[1] else ",~r" if most >= 1 else "~r"
    if not log:
        plain = {"tickCount": 5} if _PLAIN[0] <= most < _PLAIN[1] else {"tickCount": 5, "format": written}
        return {"title": title, "scale": alt.Scale(**kind, zero=False), "axis": alt.Axis(**{**plain, **axis})}
    ticks = log_ticks(low, high, 5)
    if len(ticks) < _FEWEST and high > 10 * low:  # a decade or two: round steps would crowd its upper end
        ticks = log_ticks(low, high, 9)
    if len(ticks) >= _FEWEST:
        shown = {"values": ticks, "labelExpr": axis_labels(ticks)}
    else:
        shown = {"values": round_steps(low, high), "format": written}
    return {"title": title, "scale": alt.Scale(type="log", **kind), "axis": alt.Axis(**{**shown, **axis})}


def round_steps(low: float, high: float, most: int = 5) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten between two values, ``most`` at most."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough) + 1e-9)
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, math.floor(high / step + 1e-9) + 1)]


def colors(names: list[str], **legend: Any) -> tuple[list[str], list[str]]:
    """Return a colour and a shape per name: beyond six, colours come again in other shapes."""
    places = range(len(names))
    return (
        [PALETTE[RUNS[n % len(RUNS)][0]] for n in places],
        [RUNS[(n + n // len(RUNS)) % len(RUNS)][1] for n in places],
    )


def legend(names: list[str], title: str | None, room: int = 330, **more: Any) -> alt.Legend | None:
    """Return a legend below the chart, in as many columns as fit; None for one name, which the caption gives."""
    if len(names) < 2:
        return None
    columns = max(1, min(4, room // (30 + round(6.6 * max(map(len, names))))))
    return alt.Legend(
        title=title, orient="bottom", direction="horizontal", columns=columns, symbolOpacity=1, labelLimit=300, **more
    )


def wrapped(title: str) -> list[str]:
    """Return a title in lines that fit above a figure."""
    return textwrap.wrap(title, _TITLE) or [title]


def name_room(names: list[str], most: int = 150) -> int:
    """Return the pixels that the longest name takes beside an axis."""
    return min(round(6.4 * max(map(len, names), default=0)) + 6, most)
