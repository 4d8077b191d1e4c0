"""Which figures several runs have together: for each its chart, its data, and what it shows, in words."""

import textwrap
from collections.abc import Iterator

import polars as pl

from esa.report import charts, compare_charts
from esa.report.compare_frames import (
    overlap_matrix,
    points_by_run,
    run_distributions,
    run_shares,
    shared_metrics,
    short_names,
    top_lists,
    top_overlaps,
    weights_by_run,
    worst_of_all,
)
from esa.report.comparison import Comparison
from esa.report.figures import Figure, slug
from esa.report.frames import drawn
from esa.report.markdown import code, number
from esa.report.tables import label as effect_label

WEIGHTS = 10  # single weights in one figure, those of the best ranks in any run


def compare_figures(comparison: Comparison) -> Iterator[Figure]:
    """Yield every figure that at least two runs have the data for, in the order of the page."""
    names = short_names(comparison.labels)
    taken: set[str] = set()
    yield from _weights(weights_by_run(comparison), names, taken)
    yield from _damage(points_by_run(comparison), names, taken)
    yield from _scores(comparison, names)
    matrix = overlap_matrix(top_overlaps(top_lists(comparison)))
    if matrix.height:
        numbers = {label: str(number) for number, label in enumerate(comparison.labels, start=1)}
        lists = [
            (
                pl.col(f"metric_{end}") + " " + pl.col(f"run_{end}").replace_strict(numbers, return_dtype=pl.String)
            ).alias(end)
            for end in "ab"
        ]
        key = ", ".join(f"{number}\u00a0{names[label]}" for label, number in numbers.items())
        chart = charts.heat_map(matrix.with_columns(lists), [*textwrap.wrap(f"by metric and run: {key}", 54)])
        caption = (
            "Jaccard index of every two lists: the weights that both hold over those that either holds; the first seed of"
            " each run. `esa overlap`, under Reproduction, tells what chance would give."
        )
        yield Figure("top_weights", "lists", chart, matrix, "Agreement of the top weights between runs", caption)


def _weights(weights: pl.DataFrame, names: dict[str, str], taken: set[str]) -> Iterator[Figure]:
    if weights.is_empty():
        return
    for (method, options, _), part in weights.group_by(["method", "options", "places"], maintain_order=True):
        if part["run"].n_unique() < 2:
            continue
        effect = effect_label(str(method), options)
        chosen = worst_of_all(part, WEIGHTS)
        order = pl.col("target").replace_strict(chosen, list(range(len(chosen))), return_dtype=pl.Int64)
        rows = part.filter(pl.col("target").is_in(chosen)).sort(order, maintain_order=True)
        chart = compare_charts.weights_chart(rows.rename({"label": "name"}), effect, names)
        caption = "Perplexity over each run's own intact perplexity, logarithmic. The weights of the best ranks in any run first"
        left = part["target"].n_unique() - len(chosen)
        caption += f"; {number(left)} more are in the data." if left else "."
        name = _unique(f"single_{slug(effect)}", taken)
        yield Figure(name, "weights", chart, part, f"Single weights under {effect}, by run", caption)


def _damage(points: pl.DataFrame, names: dict[str, str], taken: set[str]) -> Iterator[Figure]:
    if points.is_empty():
        return
    for (method, options, metric), part in points.group_by(["method", "options", "metric"], maintain_order=True):
        if part["run"].n_unique() < 2:
            continue
        effect = effect_label(str(method), options)
        name = _unique(f"damage_{slug(effect)}_{slug(str(metric))}", taken)
        chart = charts.damage_chart(compare_charts.named(part, names), f"{effect}, {metric}", by="run")
        caption = "Perplexity over each run's own intact perplexity, logarithmic, the same scale for all runs;"
        caption += f" top and bottom by {code(metric, cell=False)}."
        if lost := part.filter(pl.col("ratio").is_null()).height:
            caption += (
                f" {number(lost)} of {number(part.height)} marks are crosses: these cases have no finite perplexity."
            )
        yield Figure(name, "damage", chart, part, f"Damage of {effect} by {metric}, by run", caption)


def _scores(comparison: Comparison, names: dict[str, str]) -> Iterator[Figure]:
    whole = run_distributions(comparison)
    whole = whole.filter(pl.col("metric").is_in(shared_metrics(whole))) if whole.height else whole
    if whole.height:
        parts = [drawn(part) for (_,), part in whole.group_by(["run"], maintain_order=True)]
        chart = compare_charts.distributions_chart(pl.concat(parts), names)
        caption = (
            "All tensors together, the first seed of each run, metrics of at least two runs. Lines that coincide show inside"
            " each other."
        )
        yield Figure("distribution", "distribution", chart, whole, "Distribution of the scores, by run", caption)
    component = run_shares(comparison, "component")
    component = component.filter(pl.col("metric").is_in(shared_metrics(component))) if component.height else component
    if component.is_empty():
        return
    bars = compare_charts.components_chart(component, names)
    caption = "Share of all score of a metric that lies in each component; the first seed of each run, metrics of at least two."
    yield Figure("components", "shares", bars, component, "Share of the score by component and run", caption)
    depth = run_shares(comparison, "block").filter(pl.col("metric").is_in(component["metric"].unique().to_list()))
    if depth["block"].drop_nulls().len():
        lines = compare_charts.depths_chart(depth, names)
        caption = "Share of all score of a metric that lies in each block; what lies outside the blocks is in the data."
        yield Figure("depth", "shares", lines, depth, "Share of the score by block and run", caption)


def _unique(name: str, taken: set[str]) -> str:
    name += f"_{len(taken)}" if name in taken else ""
    taken.add(name)
    return name
