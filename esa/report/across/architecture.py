"""Architecture on the page: where score and damage lie in each model, attention against MLP, depth, and clusters."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.across.charts_architecture import cluster_strips, component_map, parts_chart, profiles_chart
from esa.report.across.questions import answer_parts, asked, share_range, significant
from esa.report.compare_frames import short_names
from esa.report.evidence.claims import ends
from esa.report.figures import Figure, slug
from esa.report.markdown import MISSING, bullets, code, escape, join, number, percent, table

METRICS = 3  # that are drawn
COMPONENTS = 3  # that a sentence names
LEVEL = 0.05  # of a test that a sentence counts
ROWS = 60  # of the table of parts; shares.csv has all
_PARTS = ("attention", "mlp", "expert")
ATTENTION, DEPTH = ("attention against MLP", "embedding and head"), ("depth",)
CLUSTERS, PROFILES = ("clustering",), ("profiles",)
QUESTIONS = (*ATTENTION, *DEPTH, *CLUSTERS, *PROFILES)
_NOTE = (
    "Density: share of the score over share of the weights, 1 the model's mean; the first score seed. Damage in nats per token:"
    " mean and largest of the weights of that part that were tried alone, and of all of it together where that was tried."
)


def architecture_parts(run: Gathered) -> list[str]:
    """Return the section: the densest component of each model, then shares by part, attention against MLP, and depth."""
    shares = run.table("arch", "shares/1")
    attention, depth = asked(run, *ATTENTION), asked(run, *DEPTH)
    if shares is None and attention.is_empty() and depth.is_empty():
        return []
    parts = [bullets(lines) if (lines := density_sentences(shares, attention)) else "No share of the score is known."]
    parts += models_table(run)
    if shares is not None and (rows := _with_values(first_seeds(shares))).height:
        parts += ["### By part of the model", *_part_table(rows), _NOTE]
    for title, answers in (("Attention against MLP", attention), ("Depth", depth)):
        if found := answer_parts(answers):
            parts += [f"### {title}", *found]
    return parts


def models_table(run: Gathered) -> list[str]:
    """Return which model each label stands for; nothing where the step did not record it."""
    stated = run.manifests["arch"].get("models") if "arch" in run.manifests else None
    if not isinstance(stated, list) or not stated:
        return []
    rows = [
        [
            code(str(one["label"])), escape(str(one["id"] or MISSING)), escape(str(one["family"] or MISSING)),
            *(MISSING if one[name] is None else number(one[name]) for name in ("num_parameters", "num_blocks")),
        ]
        for one in stated
    ]  # fmt: skip
    return [table(["run", "model", "family", "weights", "blocks"], rows, "lllrr")]


def first_seeds(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of the first score seed of every run and metric."""
    return frame.filter(pl.col("seed").eq_missing(pl.col("seed").first().over("label", "metric")))


def density_sentences(shares: pl.DataFrame | None, tests: pl.DataFrame | None = None) -> list[str]:
    """Return, per metric, which component is the densest in how many models, and how attention and MLP compare.

    ``tests``: the rows of ``comparison/1`` that hold attention against the MLP within blocks, where there are any.
    """
    if shares is None:
        return []
    lines = []
    rows = first_seeds(shares).filter(pl.col("density").is_not_null())
    for (metric,), part in rows.group_by(["metric"], maintain_order=True):
        components = part.filter(pl.col("by") == "component")
        if components.is_empty():
            continue
        best = components.sort("density", descending=True, maintain_order=True).unique(
            "label", keep="first", maintain_order=True
        )
        lines.append(_densest(metric, best) + _attention(part) + _tested(metric, tests))
    return lines


def _densest(metric: Any, best: pl.DataFrame) -> str:
    """Return which component is the densest in how many models, the commonest first."""
    counts = best.group_by("value", maintain_order=True).agg(pl.len().alias("count"), pl.col("density"))
    rows = counts.sort("count", descending=True, maintain_order=True).to_dicts()
    words = [
        f"{code(row['value'], cell=False)} in {number(row['count'])} of {number(best.height)} models"
        f" ({share_range(row['density'], number)} times the mean)"
        for row in rows[:COMPONENTS]
    ]
    left = len(rows) - COMPONENTS
    more = f", and {'another' if left == 1 else f'{number(left)} others'} elsewhere" if left > 0 else ""
    return f"**By {code(metric, cell=False)} the densest component is {join(words)}{more}.**"


def _attention(rows: pl.DataFrame) -> str:
    """Return in how many models attention is denser than the MLP, its experts included."""
    parts = rows.filter((pl.col("by") == "part") & pl.col("value").is_in(_PARTS))
    sums = parts.with_columns(
        pl.when(pl.col("value") == "attention").then(pl.lit("a")).otherwise(pl.lit("m")).alias("side")
    )
    sums = sums.group_by("label", "side", maintain_order=True).agg(
        pl.col("score_share").sum(), pl.col("weight_share").sum()
    )
    density = (pl.col("score_share") / pl.col("weight_share")).alias("density")
    wide = sums.with_columns(density).pivot("side", index="label", values="density")
    if not {"a", "m"} <= set(wide.columns) or (wide := wide.drop_nulls(["a", "m"])).is_empty():
        return ""
    denser = int((wide["a"] > wide["m"]).sum())
    return f" Attention is denser than the MLP in {number(denser)} of {number(wide.height)}."


def _with_values(shares: pl.DataFrame) -> pl.DataFrame:
    """Return the parts of which anything is known: those that no score reaches and nothing tried have rows of nulls."""
    known = pl.any_horizontal(pl.col("weight_share", "score_share", "num_tested", "joint_damage").is_not_null())
    return shares.filter((pl.col("by") == "part") & known)


def _tested(metric: Any, tests: pl.DataFrame | None) -> str:
    """Return in how many of the models the two differ by the test within blocks; empty where nothing was tested."""
    if tests is None:
        return ""
    mine = tests.filter((pl.col("metric") == metric) & pl.col("p_value").is_not_null())
    p = mine.select(pl.coalesce("p_adjusted", "p_value")).to_series()
    count = f"{number(int((p <= LEVEL).sum()))} of {number(mine.height)}"
    return f" By the test within blocks they differ in {count} (adjusted p at most {LEVEL:g})." if mine.height else ""


def _part_table(rows: pl.DataFrame) -> list[str]:
    cells = [
        [
            code(row["label"]), escape(row["metric"]), escape(row["value"]), percent(row["weight_share"]),
            percent(row["score_share"]), number(row["density"]), number(row["num_top"]) if row["k"] else MISSING,
            number(row["num_tested"]) if row["num_tested"] else MISSING, number(row["mean_damage"]), number(row["max_damage"]),
            ends(row["joint_damage"], row["joint_low"], row["joint_high"]),
        ]
        for row in rows.head(ROWS).iter_rows(named=True)
    ]  # fmt: skip
    header = [
        "run", "metric", "part", "share of weights", "share of score", "density", "of the top K", "tried alone", "mean damage",
        "largest damage", "all of it zeroed",
    ]  # fmt: skip
    left = rows.height - ROWS
    return [table(header, cells, "lllrrrrrrrr"), f"{number(left)} more are in `shares.csv`." if left > 0 else ""]


def clustering_parts(run: Gathered) -> list[str]:
    """Return the section on where critical weights cluster, and which blocks are alike; nothing for neither."""
    critical, profiles = asked(run, *CLUSTERS), asked(run, *PROFILES)
    table_ = run.table("arch", "profiles/1")
    if critical.is_empty() and profiles.is_empty() and table_ is None:
        return []
    lines = (
        [f"**Do critical weights share a row or a column more than chance has it? {text}**"]
        if (text := significant(critical))
        else []
    )
    parts = ["\n\n".join(lines) or "What is shared, and which blocks are alike."]
    if found := answer_parts(critical):
        parts += ["### Rows and columns that the top K share", *found]
    if found := answer_parts(profiles):
        parts += ["### Clusters of block profiles", *found]
    return parts


def figures(run: Gathered) -> Iterator[Figure]:
    """Yield the map of components and the parts of each metric, the profiles over depth, and the clusters of blocks."""
    shares = run.table("arch", "shares/1")
    if shares is not None:
        rows = first_seeds(shares)
        names = short_names(rows["label"].unique(maintain_order=True).to_list())
        metrics = rows["metric"].unique(maintain_order=True).head(METRICS).to_list()
        for metric in metrics:
            yield from _of_metric(rows.filter(pl.col("metric") == metric), names, metric)
        depth = rows.filter((pl.col("by") == "depth") & pl.col("metric").is_in(metrics) & (pl.col("density") > 0))
        if depth.height:
            caption = (
                "Density of each block, share of the score over share of the weights; the first score seed of each run."
            )
            yield Figure(
                "depth_profiles", "architecture", profiles_chart(depth, names), depth, "Profiles over depth", caption
            )
    if (profiles := run.table("arch", "profiles/1")) is not None:
        yield from _clusters(profiles)


def _of_metric(rows: pl.DataFrame, names: dict[str, str], metric: str) -> Iterator[Figure]:
    components = rows.filter((pl.col("by") == "component") & pl.col("density").is_not_null())
    if components.height:
        chart = component_map(components, names, f"Components by {metric}")
        caption = f"By {code(metric, cell=False)}: red holds more of the score than of the weights, blue less."
        yield Figure(
            f"components_{slug(metric)}", "architecture", chart, components, f"Components by {metric}", caption
        )
    parts = rows.filter((pl.col("by") == "part") & pl.col("value").is_in(_PARTS) & (pl.col("density") > 0))
    if parts["value"].n_unique() > 1:
        chart = parts_chart(parts, names, f"Attention against MLP by {metric}")
        caption = (
            f"Density by {code(metric, cell=False)} of all attention and all MLP weights of each model, logarithmic."
        )
        yield Figure(
            f"parts_{slug(metric)}", "architecture", chart, parts, f"Attention against MLP by {metric}", caption
        )


def _clusters(profiles: pl.DataFrame) -> Iterator[Figure]:
    names = short_names(profiles["label"].unique(maintain_order=True).to_list())
    for metric in profiles["metric"].unique(maintain_order=True).head(METRICS).to_list():
        rows = profiles.filter((pl.col("metric") == metric) & pl.col("kmeans").is_not_null())
        blocks = rows.unique(["label", "block"], keep="first", maintain_order=True)
        if blocks.is_empty():
            continue
        data = blocks.select(
            "label", "metric", "block", "relative_depth", pl.col("kmeans").cast(pl.String).alias("cluster"), "hdbscan"
        )
        noise = int((data["hdbscan"] == -1).sum())
        count = number(data["cluster"].n_unique())
        caption = f"k-means of the profiles of all blocks by {code(metric, cell=False)}, {count} clusters."
        caption += f" HDBSCAN leaves {number(noise)} of {number(data.height)} blocks in none."
        chart = cluster_strips(data, names, f"Clusters of blocks by {metric}")
        yield Figure(
            f"clusters_{slug(str(metric))}", "clustering", chart, data, f"Clusters of blocks by {metric}", caption
        )
