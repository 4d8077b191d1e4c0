"""Forest plots: an effect with its interval per row, squares as large as their weights, the pooled mean as a diamond."""

import json
from typing import Any

import altair as alt
import polars as pl

from esa.report.across.axes import name_room, span, value_axis, widened, wrapped
from esa.report.interactive import tips
from esa.report.markdown import number, percent
from esa.report.theme import PALETTE, one_line

ROW, WHOLE = 19, 380
_LEFT = 46  # pixels of a figure that are neither names nor panel
_TIPS: dict[str, Any] = {
    "of": ("name", str), "value": ("value", number), "low": ("low", number), "high": ("high", number),
    "weight": ("weight", percent), "note": ("note", str),
}  # fmt: skip


def forest_chart(
    rows: pl.DataFrame,
    pooled: pl.DataFrame,
    x_title: str,
    title: str,
    subtitle: list[str],
    *,
    zero: bool,
    log: bool = False,
) -> alt.LayerChart:
    """Show a value with its interval per row, in the order of the rows, and below a line the pooled ones as diamonds.

    rows: name, value, low, high, weight (a share, or null: equal squares), note. pooled: name, value, low, high,
    prediction_low, prediction_high; may be empty. ``zero`` draws the line of no effect.
    """
    names = [*rows["name"].to_list(), *pooled["name"].to_list()]
    columns = [rows[name] for name in ("value", "low", "high")]
    columns += [pooled[name] for name in ("value", "low", "high", "prediction_low", "prediction_high")]
    low, high = span(*columns)
    low, high = widened(*(min(low, 0.0), max(high, 0.0)) if zero and not log else (low, high), log=log)
    room = name_room(names, 170)
    x = value_axis(low, high, x_title, log=log, domain=False)
    place = {name: at for at, name in enumerate(dict.fromkeys(names))}
    lines = " : ".join(f"datum.value === {at} ? {json.dumps(one_line(name))}" for name, at in place.items())
    axis = alt.Axis(
        values=list(place.values()), labelExpr=f"{lines} : ''", labelLimit=room, domain=False, ticks=False, grid=False
    )
    y: dict[str, Any] = {
        "title": None,
        "axis": axis,
        "scale": alt.Scale(domain=[len(place) - 0.4, -0.6], nice=False, zero=False),
    }
    rows = rows.with_columns(pl.col("name").replace_strict(place, return_dtype=pl.Int64).alias("at"))
    layers = []
    if zero:
        none = alt.Chart(pl.DataFrame({"value": [0.0]})).mark_rule(
            color=PALETTE["ink"], strokeDash=[4, 3], strokeWidth=1
        )
        layers.append(none.encode(x=alt.X("value:Q", **x)))
    told, tooltip = tips(rows.drop_nulls("value"), _TIPS)
    bars = alt.Chart(rows.drop_nulls(["low", "high"])).mark_rule(color=PALETTE["blue"], strokeWidth=1.5)
    layers.append(bars.encode(x=alt.X("low:Q", **x), x2="high:Q", y=alt.Y("at:Q", **y)))
    size: dict[str, Any] = {"size": alt.value(60)}
    if rows["weight"].count():
        most = float(rows["weight"].max() or 1.0)  # type: ignore[arg-type]
        size = {"size": alt.Size("weight:Q", legend=None, scale=alt.Scale(domain=[0, most], range=[12, 150]))}
    marks = alt.Chart(told).mark_point(filled=True, shape="square", color=PALETTE["blue"], opacity=1)
    layers.append(marks.encode(x=alt.X("value:Q", **x), y=alt.Y("at:Q", **y), tooltip=tooltip, **size))
    for row in pooled.iter_rows(named=True):
        layers += _diamond(row, place[row["name"]], x, y)
    return alt.LayerChart(layer=layers).properties(
        width=WHOLE - _LEFT - room,
        height=max(60, ROW * len(place)),
        title=alt.Title(wrapped(title), subtitle=subtitle, frame="bounds"),
    )


def _diamond(row: dict[str, Any], at: int, x: dict[str, Any], y: dict[str, Any]) -> list[alt.Chart]:
    """Return the pooled mean as a diamond as wide as its interval, over the line of the prediction interval."""
    layers = []
    if row["prediction_low"] is not None and row["prediction_high"] is not None:
        frame = pl.DataFrame({"low": [row["prediction_low"]], "high": [row["prediction_high"]], "at": [float(at)]})
        rule = alt.Chart(frame).mark_rule(color=PALETTE["red"], strokeWidth=1.2, strokeDash=[3, 2])
        layers.append(rule.encode(x=alt.X("low:Q", **x), x2="high:Q", y=alt.Y("at:Q", **y)))
    ends = [(row["low"], 0.0), (row["value"], 0.32), (row["high"], 0.0)]
    if any(end is None for end, _ in ends):
        return layers
    frame = pl.DataFrame({
        "value": [end for end, _ in ends], "top": [at - half for _, half in ends], "low_end": [at + half for _, half in ends],
    }, schema=dict.fromkeys(("value", "top", "low_end"), pl.Float64))  # fmt: skip
    told, tooltip = tips(
        frame.with_columns(pl.lit(str(row["name"])).alias("name"), pl.lit(row["value"]).alias("mean")),
        {"of": ("name", str), "mean": ("mean", number)},
    )
    shape = alt.Chart(told).mark_area(color=PALETTE["red"], opacity=1, orient="vertical")
    layers.append(shape.encode(x=alt.X("value:Q", **x), y=alt.Y("top:Q", **y), y2="low_end:Q", tooltip=tooltip))
    return layers
