"""What training does to critical weights: the rank of each at every checkpoint, one line per weight."""

from typing import Any

import altair as alt
import polars as pl

from esa.report.across.axes import legend, span, widened, wrapped
from esa.report.charts import axis_labels
from esa.report.frames import log_ticks
from esa.report.interactive import faded, tips
from esa.report.markdown import number
from esa.report.theme import PALETTE

# what became of a weight -> its colour and shape
FATES = {
    "always there": ("blue", "circle"),
    "came and stays": ("red", "square"),
    "comes and goes": ("gold", "triangle-up"),
    "not in the last": ("grey", "diamond"),
}
_TIPS: dict[str, Any] = {
    "weight": ("target", str), "checkpoint": ("label", str), "step": ("step", number), "rank": ("rank", number),
    "score": ("score", number),
}  # fmt: skip


def ranks_chart(rows: pl.DataFrame, k: int, x_title: str, title: str) -> alt.LayerChart:
    """Show the rank of each weight at each checkpoint, 1 on top, logarithmic; a weight that is not listed lies on the lower edge.

    rows: x, rank (null outside of the list), target, fate, label, step, score.
    """
    lowest = max(float(rows["rank"].max() or k), k)  # type: ignore[arg-type]
    edge, end = lowest * 1.6, lowest * 2
    rows = rows.with_columns(pl.col("rank").fill_null(edge).cast(pl.Float64).alias("y"))
    told, tooltip = tips(rows, _TIPS)
    x = training_axis(rows["x"], x_title)
    ticks = [one for one in log_ticks(1, lowest, 5) if one <= lowest]
    axis = alt.Axis(
        values=[*ticks, edge], labelExpr=f"datum.value > {lowest} ? 'outside' : {axis_labels(ticks)}", domain=False
    )
    scale = alt.Scale(type="log", domain=[end, 0.85], nice=False)
    y: dict[str, Any] = {"title": "rank", "scale": scale, "axis": axis}
    fates = [name for name in FATES if name in rows["fate"].to_list()]
    color = alt.Color(
        "fate:N", title=None, legend=legend(fates, None),
        scale=alt.Scale(domain=fates, range=[PALETTE[FATES[name][0]] for name in fates]),
    )  # fmt: skip
    shape = alt.Shape("fate:N", title=None, scale=alt.Scale(domain=fates, range=[FATES[name][1] for name in fates]))
    line = alt.Chart(rows.select("x", "y", "target", "fate")).mark_line(strokeWidth=1.3)
    inside = alt.Chart(pl.DataFrame({"y": [float(k)]})).mark_rule(
        color=PALETTE["ink"], strokeDash=[4, 3], strokeWidth=1
    )
    marks = alt.Chart(told).mark_point(filled=True, size=34, stroke="white", strokeWidth=0.4)
    place = alt.Y("y:Q", **y)
    layers = [
        inside.encode(y=place),
        line.encode(x=x, y=place, color=color, detail="target:N", opacity=faded(0.75)),
        marks.encode(x=x, y=place, color=color, shape=shape, opacity=faded(1), tooltip=tooltip),
    ]
    heading = alt.Title(wrapped(title), subtitle=[f"dashed: the top {number(k)}"], frame="bounds")
    return alt.LayerChart(layer=layers).properties(width=295, height=190, title=heading)


def training_axis(values: pl.Series, title: str) -> alt.X:
    """Return an axis over training: from its first checkpoint to its last, ``20M`` tokens for 20,000,000."""
    low, high = widened(*span(values), log=False, room=0.03)
    axis = alt.Axis(tickCount=6, grid=False, format="~s")
    return alt.X("x:Q", title=title, scale=alt.Scale(domain=[low, high], nice=False, zero=False), axis=axis)
