"""The data behind each figure: from the artifacts' tables to the few rows that are drawn and written as CSV."""

import math

import polars as pl

from esa.report.tables import first_seed, worst_single

BINS_PER_DECADE = 8  # histogram/1 has 64: a tail of single weights is not readable at that width
SINGLES = 15  # single weights in one figure, the most harmful ones
LEFT_OUT = 1e-4  # the share of weights, those with the lowest scores, that the distribution does not draw


def damage_points(damage: pl.DataFrame) -> pl.DataFrame:
    """Return a point per case of one method, options and unit: metric, group, k, draw, repeat, ppl, ratio, outcome.

    The groups that all metrics share (metric null) stand beside each metric's own. ``ratio`` is the perplexity over the
    intact one, null where there is none.
    """
    own = damage.filter(pl.col("metric").is_not_null())
    shared = damage.filter(pl.col("metric").is_null())
    metrics = own["metric"].unique(maintain_order=True).to_list() or ["all"]
    every = [own, *(shared.with_columns(pl.lit(metric).alias("metric")) for metric in metrics)]
    columns = ["metric", "seed", "group", "k", "draw", "repeat", "target", "ppl", "ratio", "outcome"]
    return pl.concat(every).with_columns((pl.col("ppl") / pl.col("ppl_base")).alias("ratio")).select(columns)


def single_weights(damage: pl.DataFrame, ranking: pl.DataFrame | None) -> pl.DataFrame:
    """Return the weights that one method changed alone, the most harmful first: see :func:`worst_single`, and ``label``.

    ``label`` is short: block, component, row and column where the ranking knows them (``11 mlp.down 507,1229``), else the
    address; always the address where two short ones would be the same.
    """
    worst = worst_single(damage, ranking)
    columns = ["target", "label", "weight", "ppl", "ratio", "delta_nll", "metrics", "group", "outcome"]
    address = pl.col("target").str.replace(".weight:", " ", literal=True).str.replace(":", " ", literal=True)
    if ranking is None:
        return worst.with_columns(address.alias("label")).select(columns)
    places = ranking.select("parameter", "block", "component").drop_nulls("component").unique("parameter", keep="first")
    places = places.with_columns(pl.concat_str(["block", "component"], separator=" ", ignore_nulls=True).alias("place"))
    short = pl.col("place") + " " + pl.col("target").str.split(":").list.last()
    named = worst.with_columns(pl.col("target").str.replace(r":[^:]*$", "").alias("parameter")).join(
        places.select("parameter", "place"), on="parameter", how="left", maintain_order="left"
    )
    named = named.with_columns(short.alias("label"))
    unclear = pl.col("label").is_null() | (pl.len().over("label") > 1)
    return named.with_columns(pl.when(unclear).then(address).otherwise("label").alias("label")).select(columns)


def score_distribution(histogram: pl.DataFrame) -> pl.DataFrame:
    """Return how many weights score within each eighth of a decade, all tensors of a metric together, its first seed.

    Columns: metric, low, high, count. Zero scores have no place on the axis and are not in it.
    """
    width = 1 / BINS_PER_DECADE
    middle = (pl.col("bin_low") * pl.col("bin_high")).sqrt()
    order = histogram["metric"].unique(maintain_order=True).to_list()
    return (
        first_seed(histogram)
        .filter((pl.col("bin_low") > 0) & (pl.col("bin_high") > pl.col("bin_low")))
        .with_columns((middle.log(10) / width).floor().cast(pl.Int64).alias("bin"))
        .group_by("metric", "bin", maintain_order=True)
        .agg(pl.col("count").sum())
        .sort(pl.col("metric").replace_strict(order, list(range(len(order))), return_dtype=pl.Int64), "bin")
        .select(
            "metric",
            (10.0 ** (pl.col("bin") * width)).alias("low"),
            (10.0 ** ((pl.col("bin") + 1) * width)).alias("high"),
            "count",
        )
    )


def drawn(distribution: pl.DataFrame) -> pl.DataFrame:
    """Return the distribution without the lowest ``LEFT_OUT`` of each metric's weights."""
    above = pl.col("count").cum_sum(reverse=True).over("metric") / pl.col("count").sum().over("metric")
    below = 1 - above + pl.col("count") / pl.col("count").sum().over("metric")
    return distribution.filter(below > LEFT_OUT)


def thresholds(ranking: pl.DataFrame | None, ks: list[int]) -> pl.DataFrame:
    """Return the score of rank k of each metric's global ``top_k``, its first seed: metric, k, score."""
    schema = pl.Schema({"metric": pl.String, "k": pl.Int64, "score": pl.Float64})
    if ranking is None:
        return pl.DataFrame(schema=schema)
    rows = first_seed(ranking).filter(
        (pl.col("group") == "top_k") & (pl.col("mode") == "global") & pl.col("rank").is_in(ks) & (pl.col("score") > 0)
    )
    return rows.select("metric", pl.col("rank").alias("k"), "score").cast(schema).unique(maintain_order=True)


def shares(tensors: pl.DataFrame, by: str) -> pl.DataFrame:
    """Return what share of all score, and of all weights, lies in each ``component`` or ``block``, per metric, first seed.

    Columns: metric, ``by``, score_share, weight_share. A metric whose scores sum to zero has no shares and no rows.
    """
    return (
        first_seed(tensors)
        .group_by("metric", by, maintain_order=True)
        .agg(pl.col("sum").sum(), pl.col("numel").sum())
        .with_columns(
            (pl.col("sum") / pl.col("sum").sum().over("metric")).alias("score_share"),
            (pl.col("numel") / pl.col("numel").sum().over("metric")).alias("weight_share"),
        )
        .filter(pl.col("score_share").is_finite())
        .select("metric", by, "score_share", "weight_share")
    )


def jaccard_matrix(overlap: pl.DataFrame) -> pl.DataFrame:
    """Return the Jaccard index of every two lists by weight at the largest k, both ways round: a, b, jaccard, shared, k.

    The lists stand in the order metric, seed. Empty where nothing was compared by weight.
    """
    rows = largest_k(overlap)
    sides = [rows.select(*_side("a", "a"), *_side("b", "b"), "jaccard", "shared", "k")]
    sides.append(rows.select(*_side("b", "a"), *_side("a", "b"), "jaccard", "shared", "k"))
    frame = pl.concat(sides).filter(pl.col("label_a") != pl.col("label_b")).unique(["label_a", "label_b"], keep="first")
    names = frame.select("label_a", "a").unique()
    if names["a"].n_unique() < names.height:  # two runs of one metric and seed: only the labels tell them apart
        frame = frame.with_columns(pl.col("label_a").alias("a"), pl.col("label_b").alias("b"))
    return frame.sort("metric_a", "seed_a", "a", "metric_b", "seed_b", "b").select("a", "b", "jaccard", "shared", "k")


def largest_k(overlap: pl.DataFrame) -> pl.DataFrame:
    """Return the comparisons by weight at the largest k."""
    rows = overlap.filter(pl.col("by") == "weight")
    return rows.filter(pl.col("k") == pl.col("k").max()) if rows.height else rows


def _side(source: str, target: str) -> list[pl.Expr]:
    """Return the columns that name one of two lists, ``metric seed`` where it has a metric, else its label."""
    metric, seed, label = pl.col(f"metric_{source}"), pl.col(f"seed_{source}"), pl.col(f"label_{source}")
    with_seed = pl.when(seed.is_null()).then(metric).otherwise(metric + " " + seed.cast(pl.String))
    return [
        pl.when(metric.is_null()).then(label).otherwise(with_seed).alias(target),
        metric.alias(f"metric_{target}"),
        seed.alias(f"seed_{target}"),
        label.alias(f"label_{target}"),
    ]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most about ``most`` round values for a logarithmic axis: decades, or 1-2-5 where there are few decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if math.log10(high / low) < most / 3:
        values = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
        return [value for value in values if low <= value <= high]
    stride = max(1, math.ceil((last - first) / most))
    powers = [power for power in range(first, last + 1) if power % stride == 0]
    return [10.0**power for power in powers if low <= 10.0**power <= high]
