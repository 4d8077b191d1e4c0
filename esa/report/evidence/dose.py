"""Dose and control on the page: damage against dose beside random draws, discrimination, and the controls side by side."""

import math
from collections.abc import Iterator
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.evidence.charts import response_chart
from esa.report.evidence.claims import ends
from esa.report.figures import Figure, slug
from esa.report.markdown import code, escape, number, percent, table
from esa.report.tables import label, options_of

FIGURES = 6  # dose-responses that are drawn
_CONTROLS = (
    ("top_k", "zero"), ("top_k", "zero_keep_peak"), ("matched_k", "zero"), ("random_k", "zero"), ("bottom_k", "zero"),
)  # fmt: skip
_LARGE = 700.0  # nats at which exp is about to overflow


def dose_parts(run: Gathered) -> list[str]:
    """Return the section: how many responses are monotone, and where top and random part."""
    doses = run.table("perturb", "dose/1")
    return [] if doses is None else [_monotone(doses), _dose_table(doses)]


def _monotone(doses: pl.DataFrame) -> str:
    top = doses.filter(pl.col("group") == "top_k")
    rows = top if top.height else doses
    whole = int((rows["rising"] == 1.0).sum())
    parted = int(rows["separates_at"].is_not_null().sum())
    what = "of the top weights " if top.height else ""
    text = f"**{number(whole)} of {number(rows.height)} dose-responses {what}are monotone within the noise floor.**"
    return text + f" {number(parted)} come above every random draw at some dose."


def _dose_table(doses: pl.DataFrame) -> str:
    rows = [
        [
            escape(row["metric"] or row["target"] or "all"), escape(row["group"]), escape(f"{row['method']}, {row['option']}"),
            number(row["k"]), escape(row["doses"]), number(row["rising"]), number(row["spearman"]), number(row["p_value"]),
            number(row["separates_at"]), number(row["merges_at"]), escape(row["curve"]),
        ]
        for row in doses.iter_rows(named=True)
    ]  # fmt: skip
    header = [
        "metric", "group", "method, option", "k", "doses", "rising", "Spearman", "p", "separates at", "merges at", "best curve",
    ]  # fmt: skip
    return table(header, rows, "lllrlrrrrrl")


def rivals(apart: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of lists that several methods or doses were tried on: of one alone none is the best."""
    return apart.filter(pl.len().over("metric", "seed", "k") > 1)


def discrimination_parts(run: Gathered) -> list[str]:
    """Return the section: which method or dose tells top weights from random ones best; nothing where none has a rival."""
    table_of = run.table("perturb", "discrimination/1")
    if table_of is None or (apart := rivals(table_of)).is_empty():
        return []
    first = apart.filter((pl.col("place") == 1) & pl.col("power").is_not_null())
    best = [
        f"{code(row['metric'], cell=False)} at k = {number(row['k'])}: {escape(label(row['method'], row['options']))}"
        f" (power {percent(row['power'])})"
        for row in first.iter_rows(named=True)
    ]
    rows = [
        [
            escape(row["metric"]), number(row["k"]), number(row["place"]), escape(label(row["method"], row["options"])),
            number(row["damage"]), number(row["z"]), number(row["auc"]), number(row["p_value"]), percent(row["power"]),
            number(row["num_draws"]),
        ]
        for row in apart.sort("metric", "k", "place", maintain_order=True, nulls_last=True).iter_rows(named=True)
    ]  # fmt: skip
    header = ["metric", "k", "place", "method", "damage (nats per token)", "z", "AUC", "p", "power", "draws"]
    note = (
        "Power: the share of resamples of the windows in which the top weights do more harm than random ones at the level of"
        " the screen. AUC over repeats. Place by power, then z."
    )
    unnamed = "No best one is named: the draws are too few for any power."
    return [f"Best: {'; '.join(best)}." if best else unnamed, table(header, rows, "lrrlrrrrrr"), note]


def controls_parts(run: Gathered) -> list[str]:
    """Return zero, zero_keep_peak, matched, random and bottom side by side, a row per metric and k; nothing under two columns."""
    if run.damage is None:
        return []
    cells = _control_cells(run.damage)
    present = [column for column in _CONTROLS if any(column in found for found in cells.values())]
    if ("top_k", "zero") not in present or len(present) < 3:
        return []
    rows = [
        [escape(metric), number(k), *(ends(*found[column]) if column in found else "" for column in present)]
        for (metric, k), found in cells.items()
    ]
    names = [
        f"top, {method}" if group == "top_k" else f"{group.removesuffix('_k')}, {method}" for group, method in present
    ]
    finding = _mediated(cells)
    note = (
        "Damage in nats per token: of one case with its interval, of random draws the mean [smallest, largest]."
        " zero_keep_peak sets the weight to zero and gives its contribution back at the peak tokens alone."
    )
    return [finding, table(["metric", "k", *names], rows, "lr" + "r" * len(present)), note]


def _control_cells(damage: pl.DataFrame) -> dict[tuple[str, int], dict[tuple[str, str], tuple[Any, Any, Any]]]:
    """Return damage with its ends by metric and k, then group and method; the first seed and options."""
    joint = damage.filter((pl.col("unit") == "joint") & pl.col("method").is_in(["zero", "zero_keep_peak"]))
    metrics = joint["metric"].drop_nulls().unique(maintain_order=True).to_list()
    cells: dict[tuple[str, int], dict[tuple[str, str], tuple[Any, Any, Any]]] = {}
    for metric in metrics:
        mine = joint.filter(pl.col("metric").eq_missing(pl.lit(metric)) | pl.col("metric").is_null())
        for k in mine["k"].drop_nulls().unique().sort().to_list():
            for group, method in _CONTROLS:
                part = mine.filter((pl.col("k") == k) & (pl.col("group") == group) & (pl.col("method") == method))
                part = part.filter(
                    pl.col("seed").eq_missing(pl.lit(part["seed"][0] if part.height else None, pl.Int64))
                )
                known = part["delta_nll"].drop_nulls()
                if part.height == 1:
                    found = tuple(part.select("delta_nll", "delta_low", "delta_high").row(0))
                elif known.len():
                    found = (known.mean(), known.min(), known.max())
                else:
                    continue
                cells.setdefault((str(metric), int(k)), {})[group, method] = found
    return cells


def _mediated(cells: dict[tuple[str, int], dict[tuple[str, str], tuple[Any, Any, Any]]]) -> str:
    """Say, where both were measured, how much of the damage is left when the peak keeps its contribution."""
    found = []
    for (metric, k), columns in cells.items():
        zero, kept = columns.get(("top_k", "zero")), columns.get(("top_k", "zero_keep_peak"))
        if zero and kept and zero[0] and kept[0] is not None and zero[1] is not None and zero[1] > 0:
            found.append(f"{code(metric, cell=False)} at k = {number(k)} {percent(max(kept[0], 0.0) / zero[0])}")
    if not found:
        return ""
    return f"Of the damage of zeroing, left when the peak tokens keep what the weights give them: {', '.join(found)}."


def figures(run: Gathered) -> Iterator[Figure]:
    """Yield a chart per method, option and k of a dose-response of top weights: each metric, and the random draws."""
    doses = run.table("perturb", "dose/1")
    if doses is None or run.damage is None:
        return
    kept = doses.filter(pl.col("group").is_in(["top_k"]) & (pl.col("unit") == "joint"))
    for n, ((method, option, k), part) in enumerate(kept.group_by(["method", "option", "k"], maintain_order=True)):
        points, band = dose_points(run, part.to_dicts()), dose_band(run.damage, str(method), str(option), int(k))
        if n >= FIGURES or points["y"].count() < 2:
            continue
        title = f"{method} by {option}, k = {number(k)}"
        chart = response_chart(points, band, str(option), title)
        caption = f"Perplexity over the intact one at each dose of {code(option, cell=False)}, the {number(k)} weights together."
        yield Figure(
            f"dose_{slug(f'{method}_{option}_{k}')}", "dose", chart, points, f"Dose-response of {title}", caption
        )


def dose_points(run: Gathered, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Return the responses of rows of ``dose/1``: x, the perplexity over intact (y) with its interval, the metric (series)."""
    tests = run.table("perturb", "tests/1")
    found = []
    for row in rows:
        if tests is None:
            continue
        mine = tests.filter(
            (pl.col("claim") == "hurts") & (pl.col("group") == "top_k") & (pl.col("unit") == "joint")
            & (pl.col("method") == row["method"]) & (pl.col("k") == row["k"])
            & pl.col("metric").eq_missing(pl.lit(row["metric"], pl.String))
            & pl.col("seed").eq_missing(pl.lit(row["seed"], pl.Int64))
        )  # fmt: skip
        wanted = {float(word) for word in str(row["doses"]).split()}
        for one in mine.iter_rows(named=True):
            dose = options_of(one["options"]).get(row["option"])
            if isinstance(dose, int | float) and float(dose) in wanted and one["estimate"] is not None:
                y, low, high = (
                    None if end is None else _ratio(end) for end in (one["estimate"], one["low"], one["high"])
                )
                found.append(
                    {"x": float(dose), "y": y, "low": low, "high": high, "series": str(row["metric"] or "targets")}
                )
    schema = {"x": pl.Float64, "y": pl.Float64, "low": pl.Float64, "high": pl.Float64, "series": pl.String}
    return pl.DataFrame(found, schema=schema).sort("series", "x", maintain_order=True)


def dose_band(damage: pl.DataFrame, method: str, option: str, k: int) -> pl.DataFrame:
    """Return the range of the random draws at each dose as x, low, high; repeats of a draw are averaged."""
    rows = damage.filter(
        (pl.col("unit") == "joint")
        & (pl.col("group") == "random_k")
        & (pl.col("method") == method)
        & (pl.col("k") == k)
    )
    doses = [options_of(text).get(option) for text in rows["options"].to_list()]
    rows = rows.with_columns(
        pl.Series("x", [float(one) if isinstance(one, int | float) else None for one in doses], dtype=pl.Float64)
    )
    means = rows.drop_nulls(["x", "delta_nll"]).group_by("x", "draw").agg(pl.col("delta_nll").mean())
    return (
        means.group_by("x")
        .agg(
            pl.col("delta_nll").min().exp().alias("low"),
            pl.col("delta_nll").clip(None, _LARGE).max().exp().alias("high"),
        )
        .sort("x")
    )


def _ratio(delta: float) -> float:
    return math.exp(min(delta, _LARGE))
