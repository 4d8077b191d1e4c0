"""What a law looks like: models as points, the law with its band out to the target, and the residuals below it."""

from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

from esa.report.across.axes import EXTENT, colors, legend, span, value_axis, widened, wrapped
from esa.report.interactive import faded, tips
from esa.report.markdown import number
from esa.report.theme import PALETTE

PANEL, HEIGHT, BELOW = 300, 170, 60
_REACH = 3.0  # a band may widen the axis to this power of the points' range, or a factor of ten; beyond, it is cut
_TIPS: dict[str, Any] = {
    "run": ("label", str), "family": ("family", str), "kind": ("kind", str), "training seed": ("training_seed", str),
    "x": ("x", number), "value": ("y", number), "low": ("low", number), "high": ("high", number), "law there": ("law", number),
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A quantity against the size of models: points, the law's band, and how the axes read.

    points: x, y, low, high, law (its value there), residual, label, family, kind, training_seed, look (of the shape);
    band: x, y, low, high. ``shapes`` names what the shape tells.
    """

    points: pl.DataFrame
    band: pl.DataFrame
    x_title: str
    y_title: str
    title: str
    subtitle: list[str]
    log: bool
    shapes: str


def law_chart(drawn: Drawn) -> alt.VConcatChart:
    """Show points and law (dashed beyond the largest model) above the residuals; x is logarithmic, y as the fit was made."""
    x_low, x_high = widened(*span(drawn.points["x"], drawn.band["x"]), log=True, room=0.03)
    lower = alt.X("x:Q", **value_axis(x_low, x_high, drawn.x_title, log=True, grid=False))
    bare = alt.X("x:Q", **value_axis(x_low, x_high, None, log=True, labels=False, grid=False))
    upper = bare if drawn.points["residual"].count() else lower
    rows, tooltip = tips(drawn.points, _TIPS)
    look = _look(drawn.points, drawn.shapes)
    low, high = domain(drawn)
    fixed = {"domain": False, "minExtent": EXTENT, "maxExtent": EXTENT}
    y = value_axis(low, high, drawn.y_title, log=drawn.log, **fixed)
    layers = [*_band(drawn, upper, y, low), *_bars(rows, upper, y, (low, high))]
    marks = alt.Chart(rows).mark_point(filled=True, size=56, stroke="white", strokeWidth=0.6)
    layers.append(marks.encode(x=upper, y=alt.Y("y:Q", **y), opacity=faded(1), tooltip=tooltip, **look))
    panels = [alt.LayerChart(layer=layers).properties(width=PANEL, height=HEIGHT)]
    if rows["residual"].count():
        panels.append(_residuals(rows.drop_nulls("residual"), lower, look, tooltip, fixed, drawn))
    heading = alt.Title(wrapped(drawn.title), subtitle=drawn.subtitle, frame="bounds")
    return alt.vconcat(*panels, spacing=8).properties(title=heading)


def domain(drawn: Drawn) -> tuple[float, float]:
    """Return the vertical axis: all points, their intervals and the band, these two cut where they would flatten the points."""
    low, high = span(drawn.points["y"])
    ends = span(
        drawn.points["low"],
        drawn.points["high"],
        *(drawn.band[name] for name in ("y", "low", "high")),
        drawn.points["y"],
    )
    if drawn.log:
        reach = max((high / low) ** (_REACH - 1), 10.0)
        positive = [drawn.band[name].filter(drawn.band[name] > 0) for name in ("y", "low", "high")]
        bars = [drawn.points[name].filter(drawn.points[name] > 0) for name in ("low", "high")]
        ends = span(drawn.points["y"], *positive, *bars)
        return widened(max(ends[0], low / reach), min(ends[1], high * reach), log=True)
    reach = max((high - low) * (_REACH - 1), 0.1 * abs(high))
    return widened(max(ends[0], low - reach), min(ends[1], high + reach), log=False)


def _look(points: pl.DataFrame, shapes: str) -> dict[str, Any]:
    families = points["family"].unique(maintain_order=True).to_list()
    kinds = sorted(points["look"].unique().to_list())
    tints, _ = colors(families)
    _, forms = colors(kinds)
    return {
        "color": alt.Color(
            "family:N", scale=alt.Scale(domain=families, range=tints), title=None, legend=legend(families, None)
        ),
        "shape": alt.Shape(
            "look:N", scale=alt.Scale(domain=kinds, range=forms), title=None, legend=legend(kinds, shapes)
        ),
    }


def _band(drawn: Drawn, x: alt.X, y: dict[str, Any], floor: float) -> list[alt.Chart]:
    band = drawn.band.drop_nulls("y").sort("x")
    if drawn.log:  # a logarithmic axis mirrors what is below zero instead of leaving it out
        band = band.filter(pl.col("y") > 0)
    if band.is_empty():
        return []
    largest = float(drawn.points["x"].max())  # type: ignore[arg-type]
    known = band.drop_nulls(["low", "high"])
    if drawn.log:
        known = known.filter(pl.col("high") > 0).with_columns(pl.col("low").clip(floor, None))
    layers = []
    if known.height:
        area = alt.Chart(known).mark_area(color=PALETTE["grey"], opacity=0.25, clip=True)
        layers.append(area.encode(x=x, y=alt.Y("low:Q", **y), y2="high:Q"))
    inside = band.filter(pl.col("x") <= largest)
    beyond = pl.concat([inside.tail(1), band.filter(pl.col("x") > largest)])
    for part, dash in ((inside, [1, 0]), (beyond, [5, 4])):
        if part.height > 1:
            line = alt.Chart(part.select("x", "y")).mark_line(
                color=PALETTE["ink"], strokeWidth=1.4, strokeDash=dash, clip=True
            )
            layers.append(line.encode(x=x, y=alt.Y("y:Q", **y)))
    return layers


def _bars(rows: pl.DataFrame, x: alt.X, y: dict[str, Any], ends: tuple[float, float]) -> list[alt.Chart]:
    known = rows.drop_nulls(["low", "high"]).with_columns(pl.col("low", "high").clip(*ends))
    if known.is_empty():
        return []
    bars = alt.Chart(known.select("x", "low", "high")).mark_rule(color=PALETTE["grey"], strokeWidth=1)
    return [bars.encode(x=x, y=alt.Y("low:Q", **y), y2="high:Q")]


def _residuals(
    rows: pl.DataFrame, x: alt.X, look: dict[str, Any], tooltip: list[alt.Tooltip], fixed: dict[str, Any], drawn: Drawn
) -> alt.LayerChart:
    most = max(abs(end) for end in span(rows["residual"])) * 1.15 or 1.0
    title = "ln(value/law)" if drawn.log else "value - law"
    y = value_axis(-most, most, title, log=False, **{**fixed, "tickCount": 3})
    zero = alt.Chart(pl.DataFrame({"residual": [0.0]})).mark_rule(color=PALETTE["ink"], strokeWidth=1)
    marks = alt.Chart(rows).mark_point(filled=True, size=40, stroke="white", strokeWidth=0.5)
    points = marks.encode(x=x, y=alt.Y("residual:Q", **y), opacity=faded(1), tooltip=tooltip, **look)
    below: alt.LayerChart = alt.LayerChart(layer=[zero.encode(y=alt.Y("residual:Q", **y)), points])
    return below.properties(width=PANEL, height=BELOW)
