"""How models relate: a tree of merges, and what a task's score costs in robustness."""

import json
from typing import Any

import altair as alt
import polars as pl

from esa.report.across.axes import name_room, span, value_axis, widened, wrapped
from esa.report.interactive import tips
from esa.report.markdown import number
from esa.report.theme import PALETTE, TYPE, one_line

_WIDE, _ROW = 330, 22
_LETTER, _LINE = 6.4, TYPE + 2  # pixels of a letter, and of a line of labels


def tree_chart(segments: pl.DataFrame, leaves: dict[str, float], title: str, x_title: str) -> alt.LayerChart:
    """Show a tree of merges from its leaves on the left to the last merge on the right: x, x2, y, y2 of every line."""
    room = name_room(list(leaves))
    high = span(segments["x2"])[1] * 1.04 or 1.0
    x = value_axis(0.0, high, x_title, log=False, grid=False)
    names = " : ".join(f"datum.value === {at} ? {json.dumps(one_line(name))}" for name, at in leaves.items())
    axis = alt.Axis(
        values=list(leaves.values()), labelExpr=f"{names} : ''", labelLimit=room, domain=False, ticks=False, grid=False
    )
    y: dict[str, Any] = {
        "title": None,
        "axis": axis,
        "scale": alt.Scale(domain=[len(leaves) - 0.5, -0.5], nice=False, zero=False),
    }
    told, tooltip = tips(segments, {"joined at": ("joined", number), "models": ("size", number)})
    lines = alt.Chart(told).mark_rule(color=PALETTE["blue"], strokeWidth=1.6, strokeCap="square")
    place = {"x": alt.X("x:Q", **x), "x2": "x2:Q", "y": alt.Y("y:Q", **y), "y2": "y2:Q"}
    chart: alt.LayerChart = alt.LayerChart(layer=[lines.encode(tooltip=tooltip, **place)])
    return chart.properties(
        width=_WIDE - room, height=max(60, _ROW * len(leaves)), title=alt.Title(wrapped(title), frame="bounds")
    )


def pareto_chart(rows: pl.DataFrame, y_title: str, title: str, *, less: bool = False) -> alt.LayerChart:
    """Show each model's task score against the damage to it: name, damage, task_score with their ends, on_front.

    Better is up and to the left, also where ``less`` is better: that axis is turned round. The models that no other beats in
    both are red, and joined.
    """
    width, height = 290, 190
    log = bool((rows["damage"] > 0).all()) and span(rows["damage"])[1] > 5 * span(rows["damage"])[0]
    ends = [rows[name] for name in ("damage", "low", "high")]
    x_low, x_high = widened(*span(*([one.filter(one > 0) for one in ends] if log else ends)), log=log)
    y_low, y_high = widened(
        *span(*(rows[name] for name in ("task_score", "task_low", "task_high"))), log=False, room=0.1
    )
    x = value_axis(x_low, x_high, "damage of its own top weights (nats per token)", log=log, grid=False)
    ends_of_y = (y_high, y_low) if less else (y_low, y_high)
    y = value_axis(*ends_of_y, y_title, log=False, domain=False)
    rows = rows.with_columns(pl.col("low", "high").clip(x_low, x_high))
    told, tooltip = tips(rows, {
        "model": ("name", str), "damage": ("damage", number), "low": ("low", number), "high": ("high", number),
        "task score": ("task_score", number), "its low": ("task_low", number), "its high": ("task_high", number),
    })  # fmt: skip
    at = {"x": alt.X("damage:Q", **x), "y": alt.Y("task_score:Q", **y)}
    front = rows.filter(pl.col("on_front")).sort("damage", "task_score").select("damage", "task_score")
    base = alt.Chart(told)
    halos: tuple[dict[str, Any], ...] = ({"stroke": "white", "strokeWidth": 3}, {})
    grey: dict[str, Any] = {"color": "#c4c4c4", "strokeWidth": 1}
    layers = [
        alt.Chart(rows.drop_nulls(["low", "high"])).mark_rule(**grey).encode(x=alt.X("low:Q", **x), x2="high:Q", y=at["y"]),
        alt.Chart(rows.drop_nulls(["task_low", "task_high"])).mark_rule(**grey).encode(
            x=at["x"], y=alt.Y("task_low:Q", **y), y2="task_high:Q"
        ),
        alt.Chart(front).mark_line(color=PALETTE["red"], strokeWidth=1.3, strokeDash=[4, 3]).encode(**at),
        base.mark_point(filled=True, size=60, stroke="white", strokeWidth=0.5, opacity=1).encode(
            **at, tooltip=tooltip,
            color=alt.condition("datum.on_front", alt.value(PALETTE["red"]), alt.value(PALETTE["blue"])),
            shape=alt.condition("datum.on_front", alt.value("circle"), alt.value("square")),
        ),
    ]  # fmt: skip
    labels = placed(rows, (x_low, x_high), ends_of_y, width, height, log=log)
    beside: tuple[dict[str, Any], ...] = ({"align": "left", "dx": 7}, {"align": "right", "dx": -7})
    for side, place in zip(("right", "left"), beside, strict=True):
        part = labels.filter(pl.col("side") == side)
        if part.height:
            for halo in halos:  # below the letters, so that lines do not cross them
                text = alt.Chart(part).mark_text(baseline="middle", fontSize=TYPE - 1, **place, **halo)
                layers.append(text.encode(x=alt.X("damage:Q", **x), y=alt.Y("at:Q", **y), text="name:N"))
    subtitle = ["red: no model is better in both", "better: up and to the left"]
    return alt.LayerChart(layer=layers).properties(
        width=width, height=height, title=alt.Title(wrapped(title), subtitle=subtitle, frame="bounds")
    )


def placed(
    rows: pl.DataFrame, x: tuple[float, float], y: tuple[float, float], width: int, height: int, *, log: bool
) -> pl.DataFrame:
    """Return where the models' names stand: beside their marks, towards the middle, moved down where one would cover another.

    Columns: name, damage, at (the height in units of the task), side. A name without room within the panel is left out.
    """
    position = pl.col("damage").log() if log else pl.col("damage")
    low, high = pl.select(pl.lit(list(x)).list.eval(pl.element().log()) if log else pl.lit(list(x))).item()
    across = ((position - low) / (high - low) * width).alias("across")
    down = ((y[1] - pl.col("task_score")) / (y[1] - y[0]) * height).alias("down")
    boxes: list[tuple[float, float, float]] = []
    found: list[dict[str, Any]] = []
    for row in rows.select("name", "damage", across, down).sort("down").iter_rows(named=True):
        wide = _LETTER * len(row["name"]) + 8
        right = row["across"] + wide <= width or row["across"] < width / 2
        start = row["across"] if right else row["across"] - wide
        top = row["down"]
        while any(start < end and begin < start + wide and abs(top - other) < _LINE for begin, end, other in boxes):
            top += 1
        if top > height:
            continue
        boxes.append((start, start + wide, top))
        at = y[1] - top / height * (y[1] - y[0])
        found.append({"name": row["name"], "damage": row["damage"], "at": at, "side": "right" if right else "left"})
    schema = {"name": pl.String, "damage": pl.Float64, "at": pl.Float64, "side": pl.String}
    return pl.DataFrame(found, schema=schema)
