"""What models are made of: a map of density by run and component, attention beside MLP, and profiles over depth."""

import math
from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from esa.report.across.axes import legend, name_room, span, value_axis, widened
from esa.report.charts import panel_title, tick_label
from esa.report.charts_scores import COMPONENTS
from esa.report.compare_charts import look
from esa.report.frames import log_ticks
from esa.report.interactive import faded, tips
from esa.report.markdown import number, percent
from esa.report.theme import PALETTE, TYPE

_WIDE, _ROW = 330, 22
_DIVERGING = [PALETTE["blue"], "#f4f4f2", PALETTE["red"]]
_TIPS: dict[str, Any] = {
    "run": ("label", str), "metric": ("metric", str), "of": ("value", str), "share of score": ("score_share", percent),
    "share of weights": ("weight_share", percent), "density": ("density", number), "of the top K": ("num_top", number),
    "mean damage": ("mean_damage", number), "joint damage": ("joint_damage", number),
}  # fmt: skip


def _shortened(frame: pl.DataFrame, names: Mapping[str, str]) -> pl.DataFrame:
    """Return the frame with the short name of each ``label`` in ``run``."""
    return frame.with_columns(pl.col("label").replace_strict(dict(names), return_dtype=pl.String).alias("run"))


def component_map(shares: pl.DataFrame, names: Mapping[str, str], title: str) -> alt.LayerChart:
    """Show the density of each component in each run as a colour, its share of the score in % as text where it fits."""
    found = shares["value"].unique(maintain_order=True).to_list()
    order = [name for name in COMPONENTS if name in found] + sorted(set(found) - set(COMPONENTS))
    rows = _shortened(shares, names).with_columns(
        pl.when(pl.col("density") > 0).then(pl.col("density").log(10)).alias("log_density"),
        (pl.col("score_share") * 100).round(0).cast(pl.Int64, strict=False).cast(pl.String).fill_null("").alias("text"),
    )
    room = name_room(list(names.values()))
    cell = min(44.0, (_WIDE - room) / len(order))
    most = max(abs(end) for end in span(rows["log_density"])) or 1.0
    told, tooltip = tips(rows, _TIPS)
    x = alt.X("value:N", sort=order, title=None, axis=alt.Axis(labelAngle=-50, domain=False, ticks=False))
    y = alt.Y(
        "run:N",
        sort=list(names.values()),
        title=None,
        axis=alt.Axis(domain=False, ticks=False, labelLimit=room, labelPadding=4),
    )
    ends = [math.log10(one) for one in log_ticks(10**-most, 10**most, 9)]
    labels = " : ".join(f"datum.value === {power!r} ? '{tick_label(10**power)}'" for power in ends)
    color = alt.Color(
        "log_density:Q", title="density (1: the model's mean)",
        scale=alt.Scale(domain=[-most, 0, most], range=_DIVERGING, interpolate="rgb"),
        legend=alt.Legend(orient="bottom", gradientLength=200, gradientThickness=10, values=ends, labelExpr=f"{labels} : ''"),
    )  # fmt: skip
    squares = alt.Chart(told).mark_rect(stroke="white", strokeWidth=1, invalid=None)
    empty = alt.condition("isValid(datum.log_density)", color, alt.value("#e4e4e4"))
    layers = [squares.encode(x=x, y=y, color=empty, tooltip=tooltip)]
    if cell >= 2 * TYPE - 4:
        ink = alt.condition(f"abs(datum.log_density) > {0.55 * most}", alt.value("#ffffff"), alt.value(PALETTE["ink"]))
        layers.append(
            alt.Chart(told).mark_text(fontSize=TYPE - 1).encode(x=x, y=y, text="text:N", color=ink, tooltip=tooltip)
        )
    subtitle = ["colour: density of the score", "number: share of the score in %"][: len(layers)]
    return alt.LayerChart(layer=layers).properties(
        width=round(cell * len(order)),
        height=_ROW * len(names),
        title=alt.Title(title, subtitle=subtitle, frame="bounds"),
    )


def parts_chart(shares: pl.DataFrame, names: Mapping[str, str], title: str) -> alt.LayerChart:
    """Show the density of attention and of the MLP (experts apart) of each run, logarithmic: a mark per part."""
    rows = _shortened(shares, names).filter(pl.col("density") > 0)
    parts = rows["value"].unique(maintain_order=True).to_list()
    room = name_room(list(names.values()))
    low, high = widened(*span(rows["density"], pl.Series([1.0])), log=True)
    x = alt.X("density:Q", **value_axis(low, high, "density (1: the model's mean)", log=True, domain=False))
    y = alt.Y(
        "run:N",
        sort=list(names.values()),
        title=None,
        axis=alt.Axis(domain=False, ticks=False, labelLimit=room, grid=False),
    )
    looks = {"attention": ("blue", "circle"), "mlp": ("red", "square"), "expert": ("gold", "triangle-up")}
    more = [("ink", "diamond"), ("sky", "triangle-down"), ("grey", "cross")]
    looks |= {name: more[n % 3] for n, name in enumerate(one for one in parts if one not in looks)}
    colour = alt.Color(
        "value:N", title=None, legend=legend(parts, None),
        scale=alt.Scale(domain=parts, range=[PALETTE[looks[name][0]] for name in parts]),
    )  # fmt: skip
    shape = alt.Shape("value:N", title=None, scale=alt.Scale(domain=parts, range=[looks[name][1] for name in parts]))
    told, tooltip = tips(rows, _TIPS)
    mean = alt.Chart(pl.DataFrame({"density": [1.0]})).mark_rule(color=PALETTE["ink"], strokeDash=[4, 3], strokeWidth=1)
    spans = rows.group_by("run", maintain_order=True).agg(
        pl.col("density").min().alias("low"), pl.col("density").max().alias("high")
    )
    bars = alt.Chart(spans).mark_rule(color="#c9c9c9", strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q", y=y)
    marks = alt.Chart(told).mark_point(filled=True, size=60, stroke="white", strokeWidth=0.5)
    dots = marks.encode(x=x, y=y, color=colour, shape=shape, opacity=faded(1), tooltip=tooltip)
    return alt.LayerChart(layer=[bars, mean.encode(x=x), dots]).properties(
        width=_WIDE - room,
        height=_ROW * len(names),
        title=alt.Title(title, subtitle=["dashed: the model's mean"], frame="bounds"),
    )


def profiles_chart(shares: pl.DataFrame, names: Mapping[str, str]) -> alt.VConcatChart:
    """Show the density of the score over relative depth, logarithmic: a panel per metric, a line per run."""
    metrics = shares["metric"].unique(maintain_order=True).to_list()
    color, _ = look(names, 300, lines=True)
    panels = []
    for metric in metrics:
        rows = _shortened(shares.filter((pl.col("metric") == metric) & (pl.col("density") > 0)), names)
        rows = rows.sort("run", "relative_depth", maintain_order=True)
        last = metric == metrics[-1]
        x = alt.X(
            "relative_depth:Q",
            **value_axis(0.0, 1.0, "relative depth" if last else None, log=False, labels=last, grid=False),
        )
        y = alt.Y(
            "density:Q",
            **value_axis(*widened(*span(rows["density"]), log=True), "density", log=True, domain=False, minExtent=34),
        )
        told, tooltip = tips(
            rows, {**_TIPS, "of": ("value", lambda block: f"block {block}"), "at depth": ("relative_depth", number)}
        )
        lines = alt.Chart(rows.select("run", "relative_depth", "density")).mark_line(strokeWidth=1.6)
        touch = alt.Chart(told).mark_point(filled=True, size=70, opacity=0).encode(x=x, y=y, tooltip=tooltip)
        layers = [lines.encode(x=x, y=y, color=color, opacity=faded(0.9)), touch, panel_title(metric)]
        panels.append(alt.LayerChart(layer=layers).properties(width=310, height=105))
    title = alt.Title("Density of the score over depth", subtitle=["1: the model's mean"], frame="bounds")
    return alt.vconcat(*panels, spacing=8).properties(title=title)


def cluster_strips(profiles: pl.DataFrame, names: Mapping[str, str], title: str) -> alt.LayerChart:
    """Show the cluster of every block as a colour over relative depth, a strip per run: relative_depth, label, cluster."""
    counts = profiles.group_by("label", maintain_order=True).agg(pl.len().alias("count"))
    rows = _shortened(profiles.join(counts, on="label", maintain_order="left"), names)
    half = 0.5 / pl.col("count")
    rows = rows.with_columns(
        (pl.col("relative_depth") - half).alias("low"), (pl.col("relative_depth") + half).alias("high")
    )
    found = sorted(rows["cluster"].unique().to_list(), key=lambda name: (len(name), name))
    tints = [PALETTE[name] for name in ("blue", "gold", "red", "sky", "ink", "grey")]
    room = name_room(list(names.values()))
    told, tooltip = tips(rows, {"run": ("label", str), "block": ("block", str), "cluster": ("cluster", str)})
    color = alt.Color(
        "cluster:N", title="cluster", legend=legend(found, "cluster") or alt.Legend(title="cluster", orient="bottom"),
        scale=alt.Scale(domain=found, range=[tints[n % len(tints)] for n in range(len(found))]),
    )  # fmt: skip
    y = alt.Y("run:N", sort=list(names.values()), title=None, axis=alt.Axis(domain=False, ticks=False, labelLimit=room))
    x = alt.X("low:Q", **value_axis(0.0, 1.0, "relative depth", log=False, grid=False))
    bars = alt.Chart(told).mark_bar(height=_ROW - 6, stroke="white", strokeWidth=0.7)
    chart: alt.LayerChart = alt.LayerChart(layer=[bars.encode(x=x, x2="high:Q", y=y, color=color, tooltip=tooltip)])
    return chart.properties(width=_WIDE - room, height=_ROW * len(names), title=alt.Title(title, frame="bounds"))
