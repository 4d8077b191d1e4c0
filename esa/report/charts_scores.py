"""What the scores look like: their distribution with its tail, and where in the model they lie."""

import math
from collections.abc import Callable
from typing import Any

import altair as alt
import polars as pl

from esa.report.charts import axis_labels, panel_title
from esa.report.frames import log_ticks
from esa.report.interactive import faded, tips
from esa.report.markdown import number, percent
from esa.report.theme import PALETTE

COMPONENTS = (
    "embed", "attn.q", "attn.k", "attn.v", "attn.qkv", "attn.o", "mlp.gate", "mlp.up", "mlp.gate_up", "mlp.down", "router",
    "expert.gate", "expert.up", "expert.gate_up", "expert.down", "norm", "lm_head", "other",
)  # fmt: skip
PANEL, HEIGHT = 310, 105
FLOOR = 0.7  # below a count of one, on a logarithmic axis
_SHARE = "share of score"
_WEIGHTS = "share of weights"


def distribution_chart(distribution: pl.DataFrame, cuts: pl.DataFrame) -> alt.VConcatChart:
    """Show how many weights score how much, both axes logarithmic, a panel per metric; ``cuts`` marks the score of rank k."""
    metrics = distribution["metric"].unique(maintain_order=True).to_list()
    panels = [
        _distribution_panel(
            distribution.filter(pl.col("metric") == metric), cuts.filter(pl.col("metric") == metric), metric, last
        )
        for metric, last in zip(metrics, [False] * (len(metrics) - 1) + [True], strict=True)
    ]
    subtitle = "bins of an eighth of a decade"
    if cuts.height:
        subtitle += "; red: the score at rank " + ", ".join(map(number, sorted(cuts["k"].unique().to_list())))
    return alt.vconcat(*panels, spacing=8).properties(
        title=alt.Title("Number of weights by score", subtitle=subtitle, frame="bounds")
    )


def count_axes(rows: pl.DataFrame, last: bool) -> tuple[alt.X, alt.Y, tuple[float, float]]:
    """Return logarithmic axes of scores and counts, and the scores' range; the ``last`` panel names what lies along x."""
    low, high = float(rows["low"].min()), float(rows["high"].max()) * 1.2  # type: ignore[arg-type]
    top = float(rows["count"].max()) * 2  # type: ignore[arg-type]
    x_ticks, y_ticks = log_ticks(low, high, 7), log_ticks(FLOOR, top, 4)
    x = alt.X(
        "low:Q",
        title="score (in the unit of the metric)" if last else None,
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=x_ticks, labelExpr=axis_labels(x_ticks), grid=False),
    )
    y = alt.Y(
        "count:Q",
        title="weights (count)",
        scale=alt.Scale(type="log", domain=[FLOOR, top], nice=False),
        axis=alt.Axis(values=y_ticks, labelExpr=axis_labels(y_ticks), domain=False, ticks=False),
    )
    return x, y, (low, high)


def _distribution_panel(rows: pl.DataFrame, cuts: pl.DataFrame, metric: str, last: bool) -> alt.LayerChart:
    x, y, (low, high) = count_axes(rows, last)
    lines = {"score from": ("low", number), "to": ("high", number), "weights": ("count", number)}
    told, tooltip = tips(rows, lines)
    bars = (
        alt.Chart(told.drop("metric").with_columns(pl.lit(FLOOR).alias("floor")))
        .mark_rect(color=PALETTE["sky"], stroke=PALETTE["blue"], strokeWidth=0.4)
        .encode(x=x, x2="high", y=y, y2="floor", tooltip=tooltip)
    )
    layers: list[alt.Chart] = [bars]
    layers += [*_cut_marks(cuts, low, high), panel_title(metric)]
    return alt.LayerChart(layer=layers).properties(width=PANEL, height=HEIGHT)


def _cut_marks(cuts: pl.DataFrame, low: float, high: float) -> list[alt.Chart]:
    """Return a rule per cut with its k on the left of its upper end, a line higher where it would touch the cut before."""
    layers = []
    before, line = -math.inf, 0
    for k, score in cuts.sort("score").select("k", "score").iter_rows():
        at = PANEL * math.log(score / low) / math.log(high / low)
        line = line + 1 if at - 7 * len(number(k)) - 6 < before else 0
        before, top = at, -13 * line
        row = pl.DataFrame({"score": [score], "k": [number(k)]})
        told, tooltip = tips(row, {"rank": ("k", str), "score": ("score", number)})
        base = alt.Chart(told).encode(x=alt.X("score:Q"), tooltip=tooltip)
        rule = base.mark_rule(color=PALETTE["red"], strokeWidth=1.1)
        layers.append(rule.encode(y=alt.value(top), y2=alt.value(HEIGHT)))
        text = base.mark_text(color=PALETTE["red"], align="right", baseline="top", dx=-3)
        layers.append(text.encode(y=alt.value(top), text="k:N"))
    return layers


def component_chart(shares: pl.DataFrame) -> alt.ConcatChart:
    """Show which share of all score lies in which component, a panel per metric, beside the share of the weights."""
    found = shares["component"].drop_nulls().unique().to_list()
    order = [name for name in COMPONENTS if name in found] + sorted(set(found) - set(COMPONENTS))
    metrics = shares["metric"].unique(maintain_order=True).to_list()
    high = _high(shares)
    panels = []
    for place, metric in enumerate(metrics):
        rows = shares.filter(pl.col("metric") == metric)
        left = place % 2 == 0
        y = alt.Y("component:N", sort=order, title=None, axis=alt.Axis(domain=False, ticks=False, labels=left))
        x = alt.X("score_share:Q", title="share (%)", scale=_linear(high), axis=_share_axis())
        told, tooltip = tips(rows, _tips("component"))
        bars = _look(alt.Chart(told).mark_bar(height={"band": 0.72}), _SHARE).encode(x=x, y=y, tooltip=tooltip)
        tick = alt.Chart(told).mark_tick(thickness=2, height={"band": 0.9}, orient="vertical")
        ticks = _look(tick, _WEIGHTS).encode(x=alt.X("weight_share:Q", scale=_linear(high)), y=y, tooltip=tooltip)
        panels.append(
            alt.LayerChart(layer=[bars, ticks, panel_title(metric)]).properties(
                width=285 if len(metrics) == 1 else 138,
                height=17 * len(order),
            )
        )
    return alt.concat(*panels, columns=2, spacing={"row": 10, "column": 14}).properties(
        title=alt.Title("Where the score lies, by component", frame="bounds")
    )


def depth_chart(shares: pl.DataFrame) -> alt.VConcatChart:
    """Show which share of all score lies in which block, a panel per metric, beside the share of the weights."""
    blocks = shares.filter(pl.col("block").is_not_null())
    num_blocks = int(blocks["block"].max()) + 1  # type: ignore[arg-type]
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, num_blocks) if num_blocks / step <= 8)
    metrics = blocks["metric"].unique(maintain_order=True).to_list()
    high = _high(blocks)
    panels = []
    for metric in metrics:
        rows = blocks.filter(pl.col("metric") == metric)
        last = metric == metrics[-1]
        x = alt.X(
            "block:O",
            title="block" if last else None,
            scale=alt.Scale(domain=list(range(num_blocks)), paddingInner=0.15),
            axis=alt.Axis(values=list(range(0, num_blocks, step)), labelAngle=0, labels=last, ticks=last),
        )
        y = alt.Y("score_share:Q", title="share (%)", scale=_linear(high), axis=_share_axis())
        told, tooltip = tips(rows, _tips("block"))
        bars = _look(alt.Chart(told).mark_bar(), _SHARE).encode(x=x, y=y, tooltip=tooltip)
        tick = alt.Chart(told).mark_tick(thickness=2, width={"band": 1.0}, orient="horizontal")
        ticks = _look(tick, _WEIGHTS).encode(x=x, y=alt.Y("weight_share:Q", scale=_linear(high)), tooltip=tooltip)
        panels.append(alt.LayerChart(layer=[bars, ticks, panel_title(metric)]).properties(width=PANEL, height=90))
    return alt.vconcat(*panels, spacing=8).properties(title=alt.Title("Where the score lies, by block", frame="bounds"))


def _high(shares: pl.DataFrame) -> float:
    """Return the end of the axis that all panels share."""
    return 1.04 * max(float(shares[column].max() or 0) for column in ("score_share", "weight_share"))  # type: ignore[arg-type]


def _linear(high: float) -> alt.Scale:
    return alt.Scale(domain=[0, high], nice=False)


def _share_axis() -> alt.Axis:
    percent = "format(datum.value * 100, ',~r')"
    return alt.Axis(labelExpr=percent, tickCount=4, domain=False, ticks=False, labelFlush=False)


def _tips(by: str) -> dict[str, tuple[str, Callable[[Any], str]]]:
    return {
        by: (by, str),
        "metric": ("metric", str),
        _SHARE: ("score_share", percent),
        _WEIGHTS: ("weight_share", percent),
    }


def _look(chart: alt.Chart, name: str) -> alt.Chart:
    legend = alt.Legend(orient="bottom", direction="horizontal", symbolType="square", symbolOpacity=1)
    scale = alt.Scale(domain=[_SHARE, _WEIGHTS], range=[PALETTE["sky"], PALETTE["ink"]])
    return chart.transform_calculate(kind=f"'{name}'").encode(
        color=alt.Color("kind:N", title=None, scale=scale, legend=legend), opacity=faded(1)
    )
