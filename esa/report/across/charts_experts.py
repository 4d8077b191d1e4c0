"""What experts hold: a map of block by expert, its usage beside it, and score against usage."""

from typing import Any

import altair as alt
import polars as pl

from esa.report.across.axes import span, value_axis, widened, wrapped
from esa.report.charts import panel_title
from esa.report.interactive import tips
from esa.report.markdown import number, percent
from esa.report.theme import PALETTE, SHADES

_BESIDE, _ALONE, _MOST_HIGH = 145, 300, 320
_TIPS: dict[str, Any] = {
    "block": ("block", str), "expert": ("expert", str), "share of score": ("score_share", percent), "usage": ("usage", percent),
    "density": ("density", number), "of the top K": ("num_top", number),
}  # fmt: skip


def expert_map(experts: pl.DataFrame, title: str) -> alt.HConcatChart:
    """Show which share of the score each expert of each block holds, and beside it the share of tokens routed to it."""
    blocks = sorted(experts["block"].unique().to_list())
    numbers = sorted(experts["expert"].unique().to_list())
    used = experts["usage"].count() > 0
    width = _BESIDE if used else _ALONE
    height = min(_MOST_HIGH, max(60, 16 * len(blocks)))
    told, tooltip = tips(experts.with_columns(pl.col("block", "expert").cast(pl.String)), _TIPS)
    columns = [("score_share", "share of score")] + ([("usage", "usage (share of tokens)")] if used else [])
    panels = []
    for place, (column, name) in enumerate(columns):
        x = alt.X(
            "expert:O", title="expert", sort=[str(one) for one in numbers], axis=_axis(numbers, width / 22, angle=0)
        )
        y = alt.Y(
            "block:O", title="block" if place == 0 else None, sort=[str(one) for one in blocks],
            axis=_axis(blocks, height / 16, labels=place == 0),
        )  # fmt: skip
        high = span(experts[column])[1] or 1.0
        ends = [0.0, high]
        color = alt.Color(
            f"{column}:Q", title=None, scale=alt.Scale(domain=ends, range=SHADES),
            legend=alt.Legend(orient="bottom", gradientLength=width - 20, gradientThickness=9, values=[0, high], format=".2~p"),
        )  # fmt: skip
        squares = alt.Chart(told).mark_rect(stroke="white", strokeWidth=0.5 if width / len(numbers) > 6 else 0)
        layers = [squares.encode(x=x, y=y, color=color, tooltip=tooltip), panel_title(name)]
        panels.append(alt.LayerChart(layer=layers).properties(width=width, height=height))
    chart = alt.hconcat(*panels, spacing=12).resolve_scale(color="independent")
    found: alt.HConcatChart = chart.properties(title=alt.Title(wrapped(title), frame="bounds"))
    return found


def _axis(values: list[int], room: float, *, labels: bool = True, angle: float = 0) -> alt.Axis:
    """Return an axis that labels as many of the numbers as fit."""
    step = next(one for one in (1, 2, 4, 8, 16, 32, 64, 128, 256, len(values)) if len(values) / one <= max(room, 1))
    shown = [str(one) for one in values[::step]]
    return alt.Axis(values=shown, labelAngle=angle, labels=labels, domain=False, ticks=False)


def usage_chart(experts: pl.DataFrame, title: str, subtitle: list[str]) -> alt.LayerChart:
    """Show each expert's share of its block's score against its usage; the line is a share that is the usage: usage, within."""
    told, tooltip = tips(experts, {**_TIPS, "share of the block's score": ("within", percent)})
    x = alt.X("usage:Q", **_share_axis(experts["usage"], "usage (share of the block's tokens)", grid=False))
    y = alt.Y("within:Q", **_share_axis(experts["within"], "share of the block's score", domain=False))
    low = max(span(experts["usage"])[0], span(experts["within"])[0])
    high = min(span(experts["usage"])[1], span(experts["within"])[1])
    layers = []
    if high > low:
        ends = pl.DataFrame({"usage": [low, high], "within": [low, high]})
        layers.append(
            alt.Chart(ends).mark_line(color=PALETTE["ink"], strokeDash=[4, 3], strokeWidth=1).encode(x=x, y=y)
        )
    marks = alt.Chart(told).mark_point(filled=True, size=36, color=PALETTE["blue"], opacity=0.7)
    layers.append(marks.encode(x=x, y=y, tooltip=tooltip))
    return alt.LayerChart(layer=layers).properties(
        width=290,
        height=170,
        title=alt.Title(wrapped(title), subtitle=[*subtitle, "dashed: score as usage"], frame="bounds"),
    )


def _share_axis(values: pl.Series, title: str, **axis: Any) -> dict[str, Any]:
    low, high = widened(*span(values), log=False)
    return value_axis(max(0.0, low), high, title, log=False, format=".2~%", **axis)
