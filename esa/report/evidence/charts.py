"""What causal evidence looks like: responses with bands, lines over an axis, intervals, bits; a frame in, a chart out."""

from typing import Any

import altair as alt
import polars as pl

from esa.report.charts import CROSS, axis_labels, ratio_domain
from esa.report.frames import log_ticks
from esa.report.interactive import tips
from esa.report.markdown import number
from esa.report.theme import PALETTE, RUNS

FIELDS = {"sign": "red", "exponent": "blue", "mantissa": "gold"}
_LINE_TIPS: dict[str, Any] = {
    "of": ("series", str), "at": ("x", number), "value": ("y", number), "low": ("low", number), "high": ("high", number),
}  # fmt: skip
_INTERVAL_TIPS: dict[str, Any] = {
    "metric": ("name", str),
    "value": ("value", number),
    "low": ("low", number),
    "high": ("high", number),
}
_BIT_TIPS: dict[str, Any] = {
    "bit": ("bit", str), "field": ("field", str), "old": ("old", number), "new": ("new", number), "perplexity": ("ppl", number),
    "over intact": ("ratio", number), "outcome": ("outcome", str),
}  # fmt: skip


def response_chart(points: pl.DataFrame, band: pl.DataFrame, x_title: str, title: str) -> alt.LayerChart:
    """Show the perplexity over the intact one against a dose: a line per series with its interval, and the random draws' range.

    points: x, y, low, high, series; band: x, low, high, possibly empty. Both axes are logarithmic where the doses allow.
    """
    span = pl.concat([points["y"], points["low"], points["high"], band["low"], band["high"]])
    low, high = ratio_domain(span)
    x, y = axis_x(points["x"], x_title), ratio_axis(low, high)
    layers = [_intact(y)]
    if band.height:
        area = alt.Chart(band).mark_area(color=PALETTE["grey"], opacity=0.3)
        layers.append(area.encode(x=x, y=alt.Y("low:Q", **y), y2="high:Q"))
    layers += _lines(points, x, y)
    subtitle = ["line: top weights, bar: interval", *(["grey: range of the random draws"] if band.height else [])]
    return alt.LayerChart(layer=layers).properties(
        width=290, height=170, title=alt.Title(title, subtitle=subtitle, frame="bounds")
    )


def line_chart(points: pl.DataFrame, x_title: str, y_title: str, title: str, *, log_y: bool = False) -> alt.LayerChart:
    """Show a line per series with its interval where it has one: x, y, low, high, series."""
    known = pl.concat([points["y"], points["low"], points["high"]]).drop_nulls()
    if log_y:
        positive = known.filter(known > 0)
        ends = (float(positive.min()), float(positive.max()))  # type: ignore[arg-type]
        low, high = ends[0] / 1.3, ends[1] * 1.3
        points = points.filter(pl.col("y") > 0)
        ticks = log_ticks(low, high, 6)
        scale = alt.Scale(type="log", domain=[low, high], nice=False)
        y = {
            "title": y_title,
            "scale": scale,
            "axis": alt.Axis(values=ticks, labelExpr=axis_labels(ticks), domain=False),
        }
    else:
        low, high = min(0.0, float(known.min())), max(1.0, float(known.max()))  # type: ignore[arg-type]
        scale = alt.Scale(domain=[low, high])
        y = {"title": y_title, "scale": scale, "axis": alt.Axis(domain=False, tickCount=5)}
    layers = _lines(points, axis_x(points["x"], x_title), y)
    return alt.LayerChart(layer=layers).properties(width=290, height=170, title=alt.Title(title, frame="bounds"))


def interval_chart(rows: pl.DataFrame, x_title: str, title: str) -> alt.LayerChart:
    """Show a value with its interval per name, in the order of the rows: name, value, low, high."""
    names = rows["name"].to_list()
    known = pl.concat([rows["value"], rows["low"], rows["high"]]).drop_nulls()
    domain = [min(0.0, float(known.min())), max(1.0, float(known.max()))]  # type: ignore[arg-type]
    shown, tooltip = tips(rows, _INTERVAL_TIPS)
    y = alt.Y("name:N", sort=names, title=None, axis=alt.Axis(domain=False, ticks=False, labelLimit=190))
    x: dict[str, Any] = {
        "title": x_title,
        "scale": alt.Scale(domain=domain),
        "axis": alt.Axis(domain=False, tickCount=6),
    }
    base = alt.Chart(shown)
    bars = base.mark_rule(color=PALETTE["blue"], strokeWidth=1.5).encode(x=alt.X("low:Q", **x), x2="high:Q", y=y)
    marks = base.mark_point(filled=True, size=60, color=PALETTE["blue"])
    layers = [bars, marks.encode(x=alt.X("value:Q", **x), y=y, tooltip=tooltip)]
    room = min(round(6.3 * max(map(len, names))), 190)
    return alt.LayerChart(layer=layers).properties(
        width=364 - room, height=max(40, 20 * len(names)), title=alt.Title(title, frame="bounds")
    )


def bits_chart(bits: pl.DataFrame, title: str) -> alt.LayerChart:
    """Show the perplexity over the intact one for each flipped bit of one weight, the most significant bit first.

    bits: bit, field, ratio, old, new, ppl, outcome. A flip without a finite perplexity is a cross above the panel.
    """
    rows, tooltip = tips(bits, _BIT_TIPS)
    order = [str(bit) for bit in sorted(bits["bit"].to_list(), reverse=True)]
    rows = rows.with_columns(pl.col("bit").cast(pl.String))
    x = alt.X(
        "bit:N",
        sort=order,
        title="bit (0 least significant)",
        axis=alt.Axis(labelAngle=0, ticks=False, labelOverlap=True),
    )
    y = ratio_axis(*ratio_domain(bits["ratio"]))
    fields = [name for name in FIELDS if name in bits["field"].to_list()] + sorted(
        set(bits["field"].to_list()) - set(FIELDS)
    )
    color = alt.Color(
        "field:N", title=None, scale=alt.Scale(domain=fields, range=[PALETTE[FIELDS.get(name, "ink")] for name in fields]),
        legend=alt.Legend(orient="bottom", direction="horizontal"),
    )  # fmt: skip
    marks = alt.Chart(rows.filter(pl.col("ratio").is_not_null())).mark_point(filled=True, size=50)
    layers = [_intact(y), marks.encode(x=x, y=alt.Y("ratio:Q", **y), color=color, tooltip=tooltip)]
    broken = rows.filter(pl.col("ratio").is_null())
    subtitle = ["dashed: intact"]
    if broken.height:
        cross = alt.Chart(broken).mark_point(shape=CROSS, size=40, strokeWidth=1.8, filled=False)
        layers.append(cross.encode(x=x, y=alt.value(-7), color=color, tooltip=tooltip))
        subtitle.append("cross above the panel: no finite perplexity")
    heading = alt.Title(title, subtitle=subtitle, frame="bounds", offset=18 if broken.height else 8)
    return alt.LayerChart(layer=layers).properties(width=300, height=150, title=heading)


def axis_x(values: pl.Series, title: str) -> alt.X:
    """Return an axis for ``x``: logarithmic where all is above zero and spans more than a factor of 5."""
    known = values.drop_nulls()
    low, high = float(known.min()), float(known.max())  # type: ignore[arg-type]
    if low > 0 and high / low > 5:
        ticks = log_ticks(low, high, 6) or [low, high]
        domain = [low / 1.15, high * 1.15]
        axis = alt.Axis(values=ticks, labelExpr=axis_labels(ticks), grid=False)
        return alt.X("x:Q", title=title, scale=alt.Scale(type="log", domain=domain, nice=False), axis=axis)
    return alt.X("x:Q", title=title, scale=alt.Scale(zero=False, padding=8), axis=alt.Axis(tickCount=6, grid=False))


def ratio_axis(low: float, high: float) -> dict[str, Any]:
    """Return the title, scale and axis of perplexity over the intact one, logarithmic."""
    ticks = log_ticks(low, high, 6)
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis = alt.Axis(values=ticks, labelExpr=axis_labels(ticks), domain=False, ticks=False)
    return {"title": "perplexity over intact (ratio)", "scale": scale, "axis": axis}


def _intact(y: dict[str, Any]) -> alt.Chart:
    """Return the line of the intact model."""
    line = alt.Chart(pl.DataFrame({"ratio": [1.0]})).mark_rule(color=PALETTE["ink"], strokeDash=[4, 3], strokeWidth=1)
    shown: alt.Chart = line.encode(y=alt.Y("ratio:Q", **y))
    return shown


def _lines(points: pl.DataFrame, x: alt.X, y: dict[str, Any]) -> list[alt.Chart]:
    """Return line, bars and marks per series, in the colours and shapes of the runs."""
    rows, tooltip = tips(points, _LINE_TIPS)
    names = points["series"].unique(maintain_order=True).to_list()
    looks = [RUNS[place % len(RUNS)] for place in range(len(names))]
    legend = None if len(names) == 1 else alt.Legend(orient="bottom", direction="horizontal", columns=2)
    color = alt.Color(
        "series:N", title=None, legend=legend, scale=alt.Scale(domain=names, range=[PALETTE[name] for name, _ in looks])
    )
    shape = alt.Shape(
        "series:N", title=None, legend=legend, scale=alt.Scale(domain=names, range=[form for _, form in looks])
    )
    base = alt.Chart(rows)
    found = [base.mark_line(strokeWidth=1.5).encode(x=x, y=alt.Y("y:Q", **y), color=color)]
    if points["low"].count():
        bars = alt.Chart(rows.filter(pl.col("low").is_not_null() & pl.col("high").is_not_null()))
        found.append(bars.mark_rule(strokeWidth=1).encode(x=x, y=alt.Y("low:Q", **y), y2="high:Q", color=color))
    marks = base.mark_point(filled=True, size=40, opacity=1)
    found.append(marks.encode(x=x, y=alt.Y("y:Q", **y), color=color, shape=shape, tooltip=tooltip))
    return found
