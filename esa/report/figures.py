"""Which figures a run has: for each its name, its chart, its data and what it shows, in words."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import altair as alt
import polars as pl

from esa.artifact.gather import Gathered
from esa.report import charts, charts_scores
from esa.report.findings import share_sentences
from esa.report.frames import (
    LEFT_OUT,
    SINGLES,
    damage_points,
    drawn,
    jaccard_matrix,
    score_distribution,
    shares,
    single_weights,
    thresholds,
)
from esa.report.markdown import number, percent
from esa.report.sections import has_matrix
from esa.report.tables import first_seed, label

SECTIONS = ("damage", "distribution", "shares", "agreement")


@dataclass(frozen=True)
class Figure:
    """A chart under ``figures/<name>.png`` and ``.svg``, its data under ``data/<name>.csv``, its place and its caption."""

    name: str
    section: str
    chart: alt.TopLevelMixin
    data: pl.DataFrame
    title: str
    caption: str


def figures(run: Gathered) -> Iterator[Figure]:
    """Yield every figure that the artifacts at hand allow, in the order of the report."""
    if run.plain_damage is not None:
        yield from _damage(run.plain_damage, run.ranking)
    if run.histogram is not None:
        yield from _distribution(run, run.histogram)
    if run.tensors is not None:
        yield from _shares(run.tensors)
    if run.overlap is not None and has_matrix(run.overlap):
        matrix = jaccard_matrix(run.overlap)
        if matrix.height:
            caption = (
                "Jaccard index of every two lists by weight: the weights that both hold over those that either holds."
            )
            yield Figure(
                "agreement", "agreement", charts.heat_map(matrix), matrix, "Agreement of the top weights", caption
            )


def _damage(damage: pl.DataFrame, ranking: pl.DataFrame | None) -> Iterator[Figure]:
    taken: set[str] = set()
    for (unit, method, options), part in damage.group_by(["unit", "method", "options"], maintain_order=True):
        effect = label(str(method), options)
        alone = unit != "joint"
        name = "_".join(["damage", *([str(unit)] if alone else []), slug(effect)])
        name += f"_{len(taken)}" if name in taken else ""
        taken.add(name)
        title = f"Damage of {effect}, {'one weight at a time' if alone else 'k weights together'}"
        caption = "Perplexity over the intact perplexity, logarithmic"
        if alone:
            points = single_weights(part, ranking)
            chart: alt.TopLevelMixin = charts.single_chart(points.head(SINGLES), effect)
            most = f" The {SINGLES} most harmful of {number(points.height)}." if points.height > SINGLES else ""
            caption += f", the most harmful weight first.{most}"
        else:
            points = damage_points(part)
            chart = charts.damage_chart(points, effect)
            shared = damage["metric"].null_count() and damage["metric"].n_unique() > 2
            caption += "; random_k is shared by all metrics." if shared else "."
        lost = points.filter(pl.col("ratio").is_null()).height
        if lost:
            noun = "weights" if alone else "marks"
            caption += (
                f" {number(lost)} of {number(points.height)} {noun} are crosses: these cases have no finite perplexity."
            )
        yield Figure(name, "damage", chart, points, title, caption)


def _distribution(run: Gathered, histogram: pl.DataFrame) -> Iterator[Figure]:
    whole = score_distribution(histogram)
    if whole.is_empty():
        return
    shown = drawn(whole)
    cuts = thresholds(run.ranking, list(run.spec.rank.k))
    left_out = int(whole["count"].sum()) - int(shown["count"].sum())
    caption = "Bins of an eighth of a decade, all tensors together."
    if left_out:
        caption += f" Not drawn: {number(left_out)} weights, the lowest {100 * LEFT_OUT:g} % of each metric at most."
    if zeros := _zeros(run.tensors):
        caption += f" {number(zeros)} scores, all metrics together, are zero and have no place on the axis."
    chart = charts_scores.distribution_chart(shown, cuts)
    yield Figure("distribution", "distribution", chart, whole, "Distribution of the scores", caption)


def _zeros(tensors: pl.DataFrame | None) -> int:
    return int(first_seed(tensors)["num_zero"].sum() or 0) if tensors is not None else 0


def _shares(tensors: pl.DataFrame) -> Iterator[Figure]:
    component = shares(tensors, "component")
    if component.is_empty():
        return
    caption = " ".join(share_sentences(component, "component"))
    chart = charts_scores.component_chart(component)
    yield Figure("components", "shares", chart, component, "Share of the score by component", caption)
    depth = shares(tensors, "block")
    if depth["block"].drop_nulls().is_empty():
        return
    outside = depth.filter(pl.col("block").is_null())
    caption = " ".join(share_sentences(depth.filter(pl.col("block").is_not_null()), "block"))
    if outside.height:
        parts = [f"{row['metric']} {percent(row['score_share'])}" for row in outside.iter_rows(named=True)]
        held = percent(float(outside["weight_share"][0]))
        caption += f" Outside the blocks, and not drawn: {', '.join(parts)}, in {held} of the weights."
    yield Figure("depth", "shares", charts_scores.depth_chart(depth), depth, "Share of the score by block", caption)


def distinct(drawn: Iterable[Figure]) -> Iterator[Figure]:
    """Yield figures with a name each: a name is that of files, and of two that differ late a slug may be the same."""
    taken: set[str] = set()
    for figure in drawn:
        name, count = figure.name, 1
        while name in taken:
            count += 1
            name = f"{figure.name}_{count}"
        taken.add(name)
        yield figure if name == figure.name else replace(figure, name=name)


def slug(text: str) -> str:
    """Return text as a part of a file's name: letters, digits, dots, dashes and underscores, 60 at most."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.")[:60] or "method"
