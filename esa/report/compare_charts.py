"""What sets runs side by side: a colour, and a shape, per run in every chart; a frame in, a chart out."""

import json
from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from esa.report.charts import axis_labels, panel_title, ratio_domain, without_ratio
from esa.report.charts_scores import COMPONENTS, FLOOR, HEIGHT, PANEL, count_axes
from esa.report.frames import log_ticks
from esa.report.interactive import faded, tips
from esa.report.markdown import number, percent
from esa.report.theme import PALETTE, RUNS, WIDTH, one_line

_RUN: dict[str, Any] = {"run": ("label", str)}


def look(names: Mapping[str, str], room: int, *, lines: bool = False) -> tuple[alt.Color, alt.Shape]:
    """Return the colour and the shape of each run, the same in every figure: beyond six, colours come again in other shapes.

    ``room``: the pixels beside each other that the legend has.
    """
    shorts = list(names.values())
    colors = [PALETTE[RUNS[n % len(RUNS)][0]] for n in range(len(shorts))]
    shapes = [RUNS[(n + n // len(RUNS)) % len(RUNS)][1] for n in range(len(shorts))]
    columns = max(1, min(3, room // (26 + round(6.6 * max(map(len, shorts))))))
    kind: dict[str, Any] = {"symbolType": "stroke", "symbolStrokeWidth": 3} if lines else {}
    legend = alt.Legend(orient="bottom", direction="horizontal", symbolOpacity=1, columns=columns, **kind)
    color = alt.Color("run:N", title=None, scale=alt.Scale(domain=shorts, range=colors), legend=legend)
    return color, alt.Shape("run:N", title=None, scale=alt.Scale(domain=shorts, range=shapes))


def named(frame: pl.DataFrame, names: Mapping[str, str]) -> pl.DataFrame:
    """Return ``frame`` with the short name of each run in ``run``, and its whole label in ``label``."""
    return frame.with_columns(
        pl.col("run").alias("label"), pl.col("run").replace_strict(dict(names), return_dtype=pl.String)
    )


def weights_chart(weights: pl.DataFrame, effect: str, names: Mapping[str, str]) -> alt.LayerChart:
    """Show the perplexity over the intact one of single weights, a row per weight and a mark per run that tried it.

    ``weights``: run, target, name (short), rank, ratio and so on; a weight without a perplexity is a cross at the right edge.
    """
    lines = {
        "weight": ("target", str), "value": ("weight", number), "rank in the run": ("rank", number),
        "perplexity": ("ppl", number), "over intact": ("ratio", number), "delta NLL": ("delta_nll", number),
        "outcome": ("outcome", str),
    }  # fmt: skip
    rows, tooltip = tips(named(weights, names), _RUN | lines)
    low, high = ratio_domain(rows["ratio"])
    ticks = log_ticks(low, high, 5)
    titles = dict(weights.select("target", "name").iter_rows())
    room = min(round(6.3 * max(map(len, titles.values()))), 190)
    shown = " : ".join(
        f"datum.value === {json.dumps(one_line(key))} ? {json.dumps(one_line(text))}" for key, text in titles.items()
    )
    axis = alt.Axis(labelExpr=f"{shown} : ''", labelLimit=190, domain=False, ticks=False, grid=False)
    y = alt.Y("target:N", sort=list(titles), title=None, axis=axis, scale=alt.Scale(padding=0))
    offset = alt.YOffset("run:N", scale=alt.Scale(domain=list(names.values()), paddingOuter=1.0))
    x = alt.X(
        "ratio:Q",
        title="perplexity over intact (ratio)",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=ticks, labelExpr=axis_labels(ticks), domain=False, ticks=False),
    )
    color, shape = look(names, WIDTH - 16 - room)
    intact = alt.Chart(pl.DataFrame({"ratio": [1.0]})).mark_rule(color=PALETTE["ink"], strokeDash=[4, 3], strokeWidth=1)
    marks = alt.Chart(rows.filter(pl.col("ratio").is_not_null())).mark_point(
        filled=True, size=48, stroke="white", strokeWidth=0.5
    )
    place = {"y": y, "yOffset": offset, "color": color, "tooltip": tooltip}
    layers = [
        *_stripes(len(titles), names),
        intact.encode(x=x),
        marks.encode(x=x, shape=shape, opacity=faded(1), **place),
    ]
    width = WIDTH - 16 - room
    crosses, subtitle = without_ratio(rows, width, **place)
    layers += crosses
    title = alt.Title([f"{effect}:", "weights one at a time, by run"], subtitle=subtitle, frame="bounds")
    return alt.LayerChart(layer=layers).properties(width=width, height=_row(names) * len(titles), title=title)


def _row(names: Mapping[str, str]) -> int:
    """Return the height of a row that holds a mark per run, in pixels."""
    return max(20, 6 * len(names) + 8)


def _stripes(count: int, names: Mapping[str, str]) -> list[alt.Chart]:
    """Return a light band behind every other row, so that the marks of one belong together."""
    place = alt.Chart(pl.DataFrame({"band": [0]})).mark_rect(color="#f1f1ef")
    edges = [(_row(names) * n, _row(names) * (n + 1)) for n in range(0, count, 2)]
    return [
        place.encode(x=alt.value(0), x2=alt.value("width"), y=alt.value(top), y2=alt.value(low)) for top, low in edges
    ]


def distributions_chart(distribution: pl.DataFrame, names: Mapping[str, str]) -> alt.VConcatChart:
    """Show how many weights score how much in each run, both axes logarithmic, a panel per metric and a line per run."""
    metrics = distribution["metric"].unique(maintain_order=True).to_list()
    panels = [
        _distribution_panel(distribution.filter(pl.col("metric") == metric), names, metric, metric == metrics[-1])
        for metric in metrics
    ]
    return alt.vconcat(*panels, spacing=8).properties(
        title=alt.Title("Number of weights by score and run", subtitle="bins of an eighth of a decade", frame="bounds")
    )


def _distribution_panel(rows: pl.DataFrame, names: Mapping[str, str], metric: str, last: bool) -> alt.LayerChart:
    x, y, _ = count_axes(rows, last)
    color, _ = look(names, PANEL, lines=True)
    told, tooltip = tips(
        named(rows, names), _RUN | {"score from": ("low", number), "to": ("high", number), "weights": ("count", number)}
    )
    layers = [
        alt.Chart(_steps(part))
        .mark_line(interpolate="step-after", strokeWidth=wide)
        .encode(x=x, y=y, color=color, opacity=faded(1))
        for part, wide in _nested(named(rows, names), names)
    ]
    touch = alt.Chart(told).mark_point(filled=True, size=70, opacity=0).encode(x=x, y=y, tooltip=tooltip)
    return alt.LayerChart(layer=[*layers, touch, panel_title(metric)]).properties(width=PANEL, height=HEIGHT)


def _nested(rows: pl.DataFrame, names: Mapping[str, str]) -> list[tuple[pl.DataFrame, float]]:
    """Return each run's rows with the width of its line: the later ones are thinner, so that equal lines all show."""
    parts = [part for short in names.values() if (part := rows.filter(pl.col("run") == short)).height]
    wider = min(2.6, 6 / max(1, len(parts) - 1))
    return [(part, 1.2 + wider * (len(parts) - 1 - n)) for n, part in enumerate(parts)]


def _steps(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the outline of one run's histogram: down to the floor where a bin is empty, and at both ends."""
    run, points, before = rows["run"][0], [], None
    for low, high, count in rows.select("low", "high", "count").iter_rows():
        if before is None or low > before * 1.001:
            points += [(before, FLOOR)] if before is not None else [(low, FLOOR)]
        points.append((low, float(count)))
        before = high
    points.append((before, FLOOR))
    return pl.DataFrame({"run": [run] * len(points), "low": [x for x, _ in points], "count": [y for _, y in points]})


def components_chart(shares: pl.DataFrame, names: Mapping[str, str]) -> alt.ConcatChart:
    """Show which share of all score lies in which component, a panel per metric, a mark per run."""
    found = shares["component"].drop_nulls().unique().to_list()
    order = [name for name in COMPONENTS if name in found] + sorted(set(found) - set(COMPONENTS))
    metrics = shares["metric"].unique(maintain_order=True).to_list()
    high = 1.06 * float(shares["score_share"].max() or 0)  # type: ignore[arg-type]
    color, shape = look(names, PANEL)
    panels = []
    for place, metric in enumerate(metrics):
        told, tooltip = tips(named(shares.filter(pl.col("metric") == metric), names), _share_tips("component"))
        axis = alt.Axis(domain=False, ticks=False, labels=place % 2 == 0, grid=False)
        y = alt.Y("component:N", sort=order, title=None, axis=axis, scale=alt.Scale(domain=order, padding=0))
        x = alt.X(
            "score_share:Q",
            title="share of score (%)",
            scale=alt.Scale(domain=[-0.02 * high, high], nice=False),
            axis=_share_axis(),
        )
        offset = alt.YOffset("run:N", scale=alt.Scale(domain=list(names.values()), paddingOuter=1.0))
        marks = alt.Chart(told).mark_point(filled=True, size=42, stroke="white", strokeWidth=0.5)
        dots = marks.encode(x=x, y=y, yOffset=offset, color=color, shape=shape, opacity=faded(1), tooltip=tooltip)
        panel = alt.LayerChart(layer=[*_stripes(len(order), names), dots, panel_title(metric)])
        panels.append(panel.properties(width=285 if len(metrics) == 1 else 138, height=_row(names) * len(order)))
    title = alt.Title("Where the score lies, by component and run", frame="bounds")
    return alt.concat(*panels, columns=2, spacing={"row": 10, "column": 14}).properties(title=title)


def depths_chart(shares: pl.DataFrame, names: Mapping[str, str]) -> alt.VConcatChart:
    """Show which share of all score lies in which block, a panel per metric, a line per run."""
    blocks = shares.filter(pl.col("block").is_not_null())
    last_block = int(blocks["block"].max())  # type: ignore[arg-type]
    metrics = blocks["metric"].unique(maintain_order=True).to_list()
    high = 1.06 * float(blocks["score_share"].max() or 0)  # type: ignore[arg-type]
    color, _ = look(names, PANEL, lines=True)
    panels = []
    for metric in metrics:
        rows = named(blocks.filter(pl.col("metric") == metric), names).sort("block", maintain_order=True)
        axis = alt.Axis(format="d", tickMinStep=1, tickCount=8, grid=False, labels=metric == metrics[-1])
        x = alt.X(
            "block:Q",
            title="block" if metric == metrics[-1] else None,
            scale=alt.Scale(domain=[-0.4, last_block + 0.4], nice=False),
            axis=axis,
        )
        y = alt.Y("score_share:Q", title="share (%)", scale=alt.Scale(domain=[0, high], nice=False), axis=_share_axis())
        told, tooltip = tips(rows, _share_tips("block"))
        layers = [
            alt.Chart(part.select("run", "block", "score_share"))
            .mark_line(strokeWidth=wide)
            .encode(x=x, y=y, color=color, opacity=faded(1))
            for part, wide in _nested(rows, names)
        ]
        touch = alt.Chart(told).mark_point(filled=True, size=70, opacity=0).encode(x=x, y=y, tooltip=tooltip)
        panels.append(alt.LayerChart(layer=[*layers, touch, panel_title(metric)]).properties(width=PANEL, height=90))
    title = alt.Title("Where the score lies, by block and run", frame="bounds")
    return alt.vconcat(*panels, spacing=8).properties(title=title)


def _share_axis() -> alt.Axis:
    return alt.Axis(
        labelExpr="format(datum.value * 100, ',~r')", tickCount=4, domain=False, ticks=False, labelFlush=False
    )


def _share_tips(by: str) -> dict[str, Any]:
    return _RUN | {
        by: (by, str),
        "metric": ("metric", str),
        "share of score": ("score_share", percent),
        "share of weights": ("weight_share", percent),
    }
