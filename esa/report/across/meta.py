"""The meta-analysis on the page: every model's effect, the pooled mean, and how much the models differ beyond chance."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.across.charts_forest import forest_chart
from esa.report.evidence.claims import ends
from esa.report.figures import Figure, slug
from esa.report.markdown import MISSING, bullets, code, escape, number, percent, table

SENTENCES = 4  # effects that have one each; of more, a sentence on all of them and one on the largest
FIGURES = 4  # subjects that are drawn
_POOLED = "pooled"
_NOTE = (
    "Effect: what the top weights do beyond random ones, nats per token. Pooled by random effects: each model counts with one"
    " over its own variance plus tau2, the variance between models. Prediction interval: where the effect in another such"
    " model would lie. I2: the share of the spread that is between models; Q tests whether there is any."
)


def meta_parts(run: Gathered) -> list[str]:
    """Return the section: the pooled effect and the heterogeneity in a sentence per subject, then the numbers."""
    effects, pooled = run.table("scale", "effects/1"), run.table("scale", "meta/1")
    if effects is None and pooled is None:
        return []
    lines = pooled_findings(run, SENTENCES)
    parts = [bullets(lines) if lines else "No effect could be pooled."]
    if pooled is not None:
        parts += ["### Pooled", _pooled_table(pooled)]
    if effects is not None:
        parts += ["### Of each model", _effect_table(effects), *_excluded(effects)]
    return [*parts, _NOTE]


def pooled_sentences(run: Gathered) -> list[str]:
    """Return the pooled effect of every subject in a sentence or two."""
    pooled = run.table("scale", "meta/1")
    return [] if pooled is None else [_pooled_sentence(row) for row in pooled.iter_rows(named=True)]


def pooled_findings(run: Gathered, most: int) -> list[str]:
    """Return the pooled effects as findings: each where they are few, else how many are told from zero, and the largest."""
    pooled = run.table("scale", "meta/1")
    if pooled is None:
        return []
    rows = [row for row in pooled.to_dicts() if row["mean"] is not None]
    if pooled.height <= most or not rows:
        return pooled_sentences(run)[:most]
    above = [row for row in rows if row["low"] is not None and row["low"] > 0]
    below = [row for row in rows if row["high"] is not None and row["high"] < 0]
    text = f"**Of {number(len(rows))} pooled effects of top against random weights {number(len(above))} are above zero,"
    text += f" {number(len(below))} below, and {number(len(rows) - len(above) - len(below))} not told from it**"
    text += " (95 % intervals, each by itself)."
    largest = max(above, key=lambda row: float(row["mean"]), default=None)
    return [text] if largest is None else [text, _pooled_sentence(largest)]


def _pooled_sentence(row: dict[str, Any]) -> str:
    """Return the pooled effect in a sentence, and whether the models differ."""
    subject = escape(row["subject"])
    if row["mean"] is None:
        return f"{subject}: not pooled, {escape(row['why'] or 'no estimate')}."
    found = {True: "is above", False: "is not shown to be above"}[row["low"] is not None and row["low"] > 0]
    if row["high"] is not None and row["high"] < 0:
        found = "is below"
    text = f"**{subject}: the pooled effect of {number(row['num_models'])} models {found} zero:"
    text += f" {ends(row['mean'], row['low'], row['high'])} nats per token** (p = {number(row['p_value'])})."
    if row["i2"] is not None:
        differ = "differ" if row["q_p"] is not None and row["q_p"] <= 0.05 else "are not shown to differ"
        text += f" The models {differ} beyond chance: I2 {percent(row['i2'])}, Q {number(row['q'])}, p = {number(row['q_p'])}."
    if row["prediction_low"] is not None and row["prediction_high"] is not None:
        text += f" In another such model it would lie in {number(row['prediction_low'])} to {number(row['prediction_high'])}."
    return text


def _pooled_table(pooled: pl.DataFrame) -> str:
    rows = [
        [
            escape(row["subject"]), number(row["num_models"]), ends(row["mean"], row["low"], row["high"]), number(row["p_value"]),
            _range(row["prediction_low"], row["prediction_high"]), number(row["tau2"]), percent(row["i2"]), number(row["q"]),
            number(row["q_p"]),
        ]
        for row in pooled.iter_rows(named=True)
    ]  # fmt: skip
    return table(
        ["subject", "models", "pooled effect", "p", "prediction interval", "tau2", "I2", "Q", "p of Q"],
        rows,
        "lrrrrrrrr",
    )


def _range(low: float | None, high: float | None) -> str:
    return MISSING if low is None or high is None else f"[{number(low)}, {number(high)}]"


def _effect_table(effects: pl.DataFrame) -> str:
    rows = [
        [
            escape(row["subject"]), code(row["label"]), escape(row["family"]), number(row["num_parameters"]),
            ends(row["effect"], row["low"], row["high"]), number(row["stderr"]), percent(row["weight"]),
        ]
        for row in effects.filter(pl.col("excluded").is_null()).iter_rows(named=True)
    ]  # fmt: skip
    header = ["subject", "run", "family", "weights", "effect (nats per token)", "standard error", "weight"]
    return table(header, rows, "lllrrrr")


def _excluded(effects: pl.DataFrame) -> list[str]:
    lines = [
        f"{code(row['label'], cell=False)}: {escape(row['excluded'])} ({escape(row['subject'])})"
        for row in effects.drop_nulls("excluded").iter_rows(named=True)
    ]
    return ["Not pooled:", bullets(lines)] if lines else []


def figures(run: Gathered) -> Iterator[Figure]:
    """Yield a forest plot per subject: a square per model, its size the weight, and the pooled mean as a diamond."""
    effects, pooled = run.table("scale", "effects/1"), run.table("scale", "meta/1")
    if effects is None:
        return
    known = effects.filter(pl.col("excluded").is_null() & pl.col("effect").is_not_null())
    if pooled is not None:  # the largest effects first: of many subjects the first ones are those of one metric
        order = pooled.sort("mean", descending=True, nulls_last=True, maintain_order=True)["subject"].to_list()
        place = pl.col("subject").replace_strict(
            order, list(range(len(order))), default=len(order), return_dtype=pl.Int64
        )
        known = known.sort(place, maintain_order=True)
    for count, ((subject,), part) in enumerate(known.group_by(["subject"], maintain_order=True)):
        if count >= FIGURES:
            return
        mine = (
            None if pooled is None else pooled.filter(pl.col("subject").eq_missing(pl.lit(subject))).drop_nulls("mean")
        )
        data, diamonds = forest_frames(part, mine)
        x_title = "top less random (nats per token)"
        subtitle = ["square: a model, its area the weight", "red: pooled mean; dashed: prediction interval"]
        chart = forest_chart(data, diamonds, x_title, str(subject or "all"), subtitle[: 1 + diamonds.height], zero=True)
        caption = f"Effect of {number(data.height)} models with 95 % intervals; the vertical line is no effect."
        caption += "" if diamonds.height else " Not pooled."
        written = pl.concat([data, diamonds], how="diagonal")
        yield Figure(
            f"forest_{slug(str(subject or 'all'))}", "meta", chart, written, f"Meta-analysis: {subject}", caption
        )


def forest_frames(effects: pl.DataFrame, pooled: pl.DataFrame | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows of a forest plot, the smallest model first, and its pooled row; labels that clash get a number."""
    ordered = effects.sort("num_parameters", maintain_order=True, nulls_last=True)
    names: list[str] = []
    for label in ordered["label"].to_list():
        base, number_, name = str(label), 2, str(label)
        while name in names or name == _POOLED:
            name, number_ = f"{base} ({number_})", number_ + 1
        names.append(name)
    rows = ordered.select(
        pl.Series("name", names),
        pl.col("effect").alias("value"),
        "low",
        "high",
        "weight",
        pl.col("family").alias("note"),
    )
    columns = ["low", "high", "prediction_low", "prediction_high"]
    schema = {"name": pl.String, "value": pl.Float64, **dict.fromkeys(columns, pl.Float64)}
    if pooled is None or pooled.is_empty():
        return rows, pl.DataFrame(schema=schema)
    return rows, pooled.head(1).select(pl.lit(_POOLED).alias("name"), pl.col("mean").alias("value"), *columns)
