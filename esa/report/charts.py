"""What damage and agreement look like: a frame in, a chart out."""

import json
import math
import re
import textwrap
from typing import Any

import altair as alt
import polars as pl

from esa.report.frames import log_ticks
from esa.report.interactive import faded, tips
from esa.report.markdown import number
from esa.report.theme import GROUPS, PALETTE, SHADES, TYPE, WIDTH, one_line

CROSS = "M-.9,-.9L.9,.9M-.9,.9L.9,-.9"
_TIPS: dict[str, Any] = {
    "metric": ("metric", str), "group": ("group", str), "k": ("k", number), "seed": ("seed", str), "draw": ("draw", str),
    "repeat": ("repeat", str), "weight": ("target", str), "perplexity": ("ppl", number), "over intact": ("ratio", number),
    "outcome": ("outcome", str),
}  # fmt: skip
_SINGLE_TIPS: dict[str, Any] = {
    "weight": ("target", str), "value": ("weight", number), "listed by": ("metrics", str), "group": ("group", str),
    "perplexity": ("ppl", number), "over intact": ("ratio", number), "delta NLL": ("delta_nll", number),
    "outcome": ("outcome", str),
}  # fmt: skip
_PAIR_TIPS: dict[str, Any] = {
    "list": ("a", str), "and list": ("b", str), "Jaccard": ("jaccard", number), "shared": ("shared", number),
}  # fmt: skip


def damage_chart(points: pl.DataFrame, effect: str, by: str = "metric") -> alt.ConcatChart:
    """Show the perplexity over the intact one by k and group, a panel per ``metric`` or ``run``, a mark per case.

    ``effect`` names what was done. All panels share one scale. A case without a perplexity is a cross above the panel.
    """
    titles = points[by].unique(maintain_order=True).to_list()
    broken = points["ratio"].null_count() > 0
    panels = [
        _damage_panel(points, by, title, left=n % 2 == 0, single=len(titles) == 1) for n, title in enumerate(titles)
    ]
    subtitle = ["dashed: intact; a mark per draw or repeat"]
    if broken:
        subtitle.append("cross above the panel: no finite perplexity")
    return alt.concat(*panels, columns=2, spacing={"row": 10, "column": 12}).properties(
        title=alt.Title(_heading(effect, "k weights together"), subtitle=subtitle, frame="bounds")
    )


def _heading(effect: str, how: str) -> list[str]:
    long = len(effect) + len(how) > 44
    return [*textwrap.wrap(f"{effect}:", 46), how] if long else [f"{effect}: {how}"]


def _damage_panel(points: pl.DataFrame, by: str, title: str, *, left: bool, single: bool) -> alt.LayerChart:
    lines = {"run": ("label", str), **_TIPS} if by == "run" else _TIPS
    rows, tooltip = tips(points.filter(pl.col(by) == title), lines)
    rows = rows.select("k", "group", "ratio", pl.selectors.starts_with("tip_")).with_columns(
        pl.col("k").cast(pl.String)
    )
    groups, color, shape = _group_look(points)
    low, high = ratio_domain(points["ratio"])
    ticks = log_ticks(low, high, 7)
    ks = [str(k) for k in sorted(points["k"].drop_nulls().unique().to_list())]
    x = alt.X("k:O", title="weights at once (k)", scale=alt.Scale(domain=ks), axis=alt.Axis(labelAngle=0, ticks=False))
    offset = alt.XOffset("group:N", scale=alt.Scale(domain=groups, paddingOuter=0.7))
    y = alt.Y(
        "ratio:Q",
        title="perplexity over intact (ratio)" if left else None,
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=ticks, labels=left, labelExpr=axis_labels(ticks), domain=False, ticks=False),
    )
    intact = alt.Chart(pl.DataFrame({"ratio": [1.0]})).mark_rule(color=PALETTE["ink"], strokeDash=[4, 3], strokeWidth=1)
    marks = (
        alt.Chart(rows.filter(pl.col("ratio").is_not_null()))
        .mark_point(filled=True, size=46, stroke="white", strokeWidth=0.5)
        .encode(x=x, xOffset=offset, y=y, color=color, shape=shape, opacity=faded(0.75), tooltip=tooltip)
    )
    layers: list[alt.Chart] = [intact.encode(y=y), marks]
    layers.append(panel_title(title, above=20 if points["ratio"].null_count() else 7))
    broken = rows.filter(pl.col("ratio").is_null())
    if broken.height:
        cross = alt.Chart(broken).mark_point(shape=CROSS, size=40, strokeWidth=1.8, filled=False)
        place = {"x": x, "xOffset": offset, "y": alt.value(-7)}
        layers.append(cross.encode(**place, color=color, opacity=faded(1), tooltip=tooltip))
    return alt.LayerChart(layer=layers).properties(
        width=300 if single else 145,
        height=170 if single else 140,
    )


def _group_look(points: pl.DataFrame) -> tuple[list[str], alt.Color, alt.Shape]:
    """Return the groups in their order, and the colour and shape that each has in every figure."""
    found = points["group"].drop_nulls().unique().to_list()
    groups = [name for name in GROUPS if name in found] + sorted(set(found) - set(GROUPS))
    looks = [GROUPS.get(name, ("ink", "cross")) for name in groups]
    color = alt.Color(
        "group:N",
        title=None,
        scale=alt.Scale(domain=groups, range=[PALETTE[name] for name, _ in looks]),
        legend=alt.Legend(orient="bottom", direction="horizontal", symbolOpacity=1, columns=4),
    )
    shape = alt.Shape("group:N", title=None, scale=alt.Scale(domain=groups, range=[form for _, form in looks]))
    return groups, color, shape


def single_chart(weights: pl.DataFrame, effect: str) -> alt.LayerChart:
    """Show the perplexity over the intact one of single weights, each changed alone: a line per weight, as they come.

    ``weights``: see :func:`esa.report.frames.single_weights`. A weight without a perplexity is a cross at the right edge.
    """
    rows, tooltip = tips(weights, _SINGLE_TIPS)
    low, high = ratio_domain(rows["ratio"])
    ticks = log_ticks(low, high, 5)
    labels = dict(weights.select("target", "label").iter_rows())
    longest = max(map(len, labels.values()))
    room = min(round(6.3 * longest), 190)
    names = " : ".join(
        f"datum.value === {json.dumps(one_line(key))} ? {json.dumps(one_line(text))}" for key, text in labels.items()
    )
    axis = alt.Axis(labelExpr=f"{names} : ''", labelLimit=190, domain=False, ticks=False, grid=True, gridDash=[1, 3])
    y = alt.Y("target:N", sort=list(labels), title=None, axis=axis)
    x = alt.X(
        "ratio:Q",
        title="perplexity over intact (ratio)",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(values=ticks, labelExpr=axis_labels(ticks), domain=False, ticks=False),
    )
    _, color, shape = _group_look(rows)
    intact = alt.Chart(pl.DataFrame({"ratio": [1.0]})).mark_rule(color=PALETTE["ink"], strokeDash=[4, 3], strokeWidth=1)
    look = {"color": color, "tooltip": tooltip}
    marks = (
        alt.Chart(rows.filter(pl.col("ratio").is_not_null()))
        .mark_point(filled=True, size=60, stroke="white", strokeWidth=0.5)
        .encode(x=x, y=y, shape=shape, opacity=faded(0.9), **look)
    )
    layers: list[alt.Chart] = [intact.encode(x=x), marks]
    width = WIDTH - 16 - room
    crosses, subtitle = without_ratio(rows, width, y=y, **look)
    layers += crosses
    title = alt.Title(_heading(effect, "weights one at a time"), subtitle=subtitle, frame="bounds")
    return alt.LayerChart(layer=layers).properties(width=width, height=17 * len(labels), title=title)


def without_ratio(rows: pl.DataFrame, width: float, **place: Any) -> tuple[list[alt.Chart], list[str]]:
    """Return crosses at the right edge for weights without a finite perplexity, and the subtitle that explains the marks."""
    subtitle = ["dashed: intact; block, component, row and column"]
    broken = rows.filter(pl.col("ratio").is_null())
    if broken.is_empty():
        return [], subtitle
    cross = alt.Chart(broken).mark_point(shape=CROSS, size=40, strokeWidth=1.8, filled=False)
    crosses = [cross.encode(x=alt.value(width - 6), opacity=faded(1), **place)]
    return crosses, [*subtitle, "cross at the right edge: no finite perplexity"]


def heat_map(matrix: pl.DataFrame, subtitle: str | list[str] = "by metric and seed") -> alt.LayerChart:
    """Show the Jaccard index of every two lists of top weights, with its value where the cells can hold it."""
    names = matrix["a"].unique(maintain_order=True).to_list()
    cell = min(46.0, 260 / len(names))
    side = round(cell * len(names))
    axis: dict[str, Any] = {"domain": False, "ticks": False, "labelLimit": 120}
    if cell < TYPE + 1:  # no room for a label per list: one per metric, in the middle of its seeds
        metrics: dict[str, list[str]] = {}
        for name in names:
            metrics.setdefault(re.sub(r" \d+$", "", name), []).append(name)
        middles = [members[len(members) // 2] for members in metrics.values()]
        axis |= {"values": middles, "labelExpr": "replace(datum.label, / [0-9]+$/, '')"}
    x = alt.X("b:N", sort=names, title=None, axis=alt.Axis(labelAngle=-50, **axis))
    y = alt.Y("a:N", sort=names, title=None, axis=alt.Axis(**axis))
    lines: dict[str, Any] = {
        "list": ("a", str),
        "and list": ("b", str),
        "Jaccard": ("jaccard", number),
        "shared": ("shared", number),
    }
    rows, tooltip = tips(matrix, lines)
    base = alt.Chart(rows).encode(tooltip=tooltip)
    legend = alt.Legend(orient="bottom", gradientLength=160, gradientThickness=10, values=[0, 0.5, 1])
    squares = base.mark_rect(stroke="white", strokeWidth=1 if cell > TYPE else 0.3).encode(
        x=x,
        y=y,
        color=alt.Color(
            "jaccard:Q",
            title="Jaccard index (shared over all)",
            scale=alt.Scale(domain=[0, 1], range=SHADES),
            legend=legend,
        ),
    )
    layers = [squares]
    if cell >= 27:
        shown = "datum.jaccard == 0 ? '0' : datum.jaccard == 1 ? '1' : format(datum.jaccard, '.2f')"
        ink = alt.condition("datum.jaccard > 0.58", alt.value("#ffffff"), alt.value(PALETTE["ink"]))
        text = base.mark_text(fontSize=TYPE).transform_calculate(shown=shown)
        layers.append(text.encode(x=x, y=y, text="shown:N", color=ink))
    title = alt.Title(f"Agreement of the top {number(matrix['k'][0])} weights", subtitle=subtitle, frame="bounds")
    return alt.LayerChart(layer=layers).properties(width=side, height=side, title=title)


def panel_title(text: str, above: float = 7) -> alt.Chart:
    """Return a panel's title as a mark: a real title moves up with whatever else the panel holds, and rows of panels split."""
    mark = alt.Chart(pl.DataFrame({"text": [text]})).mark_text(align="left", baseline="alphabetic", fontWeight="bold")
    # A baseline of letters, not of the line's box: boxes differ with the font that a reader has.
    title: alt.Chart = mark.encode(x=alt.value(0), y=alt.value(-above - 3), text="text:N")
    return title


def ratio_domain(ratios: pl.Series) -> tuple[float, float]:
    """Return an axis that holds every ratio and shows at least 0.8 to 2, so that noise does not look like an effect."""
    known = ratios.drop_nulls()
    low = float(known.min()) if known.len() else 1.0  # type: ignore[arg-type]
    high = float(known.max()) if known.len() else 1.0  # type: ignore[arg-type]
    low, high = min(0.8, low), max(2.0, high)
    room = (high / low) ** 0.06
    return low / room, high * room


def axis_labels(values: list[float]) -> str:
    """Return a Vega expression that gives each tick its label: 0.01 to 10,000 as they are, else with an exponent."""
    expression = "''"
    for value in reversed(values):
        expression = f"datum.value < {value * 1.01!r} ? '{tick_label(value)}' : {expression}"
    return expression


def tick_label(value: float) -> str:
    """Return ``10,000``, ``0.5``, or ``1e-7``: superscripts are missing in most fonts and would fall back to another."""
    exponent = math.floor(math.log10(value * (1 + 1e-9)))
    if -2 <= exponent <= 4:
        return f"{value:,.{max(0, -exponent)}f}"
    return f"{round(value / 10.0**exponent)}e{exponent}"
