"""The report's tables as Markdown: worst single weights, damage, agreement, bit faults."""

from typing import Any

import polars as pl

from esa.report.frames import largest_k
from esa.report.markdown import code, escape, number, spread, table
from esa.report.tables import collapse, fault_summary, label

WORST_SHOWN = 10


def worst_table(worst: pl.DataFrame) -> str:
    """Return the most harmful single weights, ``WORST_SHOWN`` at most."""
    rows = []
    for row in worst.head(WORST_SHOWN).iter_rows(named=True):
        repeats = f" (worst of {number(row['repeats'])})" if row["repeats"] > 1 else ""
        rows.append([
            code(row["target"]), number(row["weight"]), escape(row["metrics"] or row["group"]),
            escape(label(row["method"], row["options"])) + repeats, _one_ppl(row), number(row["ratio"]), _delta(row),
            escape(row["outcome"]),
        ])  # fmt: skip
    header = [
        "weight",
        "value",
        "listed by (rank)",
        "method",
        "perplexity",
        "ratio",
        "delta NLL (nats per token)",
        "outcome",
    ]
    return table(header, rows, "lrllrrrl")


def worst_note(worst: pl.DataFrame, ranking: pl.DataFrame | None) -> str:
    """Say what the table leaves out, and what a listing means."""
    parts = []
    if worst.height > WORST_SHOWN:
        parts.append(f"The {WORST_SHOWN} most harmful of {number(worst.height)}; every one is in `damage.csv`.")
    if ranking is not None:
        parts.append(
            "Listed by: the metrics whose `top_k` (first seed) holds the weight, with its rank; else its group."
        )
        if worst.head(WORST_SHOWN)["weight"].null_count():
            parts.append("A ranking holds no value for weights that were drawn at random.")
    return " ".join(parts)


def damage_table(damage: pl.DataFrame) -> str:
    """Return the damage of every method, metric, group and k; draws and repeats as ``mean [min, max]``."""
    rows = []
    for row in collapse(damage).iter_rows(named=True):
        floor = ", within noise" if row["below_floor"] else ""
        rows.append([
            escape(label(row["method"], row["options"])), escape(row["unit"]), escape(row["metric"] or "all"),
            escape(row["group"]), number(row["k"]), number(row["cases"]), _ppl(row), number(row["ratio"]), _delta(row),
            number(row["accuracy"]), number(row["agreement"]), number(row["kl"]), escape(row["outcome"]) + floor,
        ])  # fmt: skip
    header = [
        "method", "unit", "metric", "group", "k", "cases", "perplexity", "ratio", "delta NLL", "accuracy", "agreement", "KL",
        "outcome",
    ]  # fmt: skip
    return table(header, rows, "llllrrrrrrrrl")


def intact_line(damage: pl.DataFrame) -> str:
    """Return the intact model's numbers and the noise floor."""
    row = damage.row(0, named=True)
    parts = [f"perplexity {number(row['ppl_base'])}", f"mean NLL {number(row['nll_base'])} nats per token"]
    if row["accuracy_base"] is not None:
        parts.append(f"token accuracy {number(row['accuracy_base'])}")
    if row["noise_floor"] is not None:
        parts.append(f"noise floor {number(row['noise_floor'])} nats per token")
    return f"Intact: {', '.join(parts)}."


def fault_table(faults: pl.DataFrame, damage: pl.DataFrame) -> str:
    """Return the flipped bits by field of the stored number."""
    rows = []
    for row in fault_summary(faults, damage).iter_rows(named=True):
        bits = ", ".join(str(bit) for bit in row["bits"])
        worst = "overflow" if row["overflow"] else number(row["ppl_max"])
        mean = "overflow" if row["overflow"] else number(row["ppl_mean"])
        cells = [escape(row["field"]), bits, number(row["flips"]), number(row["cases"]), number(row["ppl_base"])]
        rows.append([*cells, mean, worst, escape(row["outcome"])])
    header = [
        "field",
        "bits",
        "flips",
        "cases",
        "intact perplexity",
        "mean perplexity",
        "largest perplexity",
        "outcome",
    ]
    return table(header, rows, "llrrrrrl")


def agreement_table(overlap: pl.DataFrame) -> list[str]:
    """Return, per two metrics (or one and its seeds), k and unit, the mean Jaccard index beside what chance gives.

    Rank-biased overlap stands where both lists hold k members: of shorter ones most of it would be extrapolation.
    """
    pairs = overlap.with_columns(
        pl.coalesce("metric_a", "label_a").alias("first"), pl.coalesce("metric_b", "label_b").alias("second")
    )
    means = pairs.group_by("first", "second", "by", "k", maintain_order=True).agg(
        pl.len().alias("pairs"),
        pl.col("jaccard").mean(),
        pl.col("jaccard").min().alias("low"),
        pl.col("jaccard").max().alias("high"),
        pl.col("expected_jaccard").mean(),
        pl.when((pl.min_horizontal("size_a", "size_b") >= pl.col("k")).all()).then(pl.col("rbo").mean()).alias("rbo"),
    )
    rows = [
        [
            escape(row["first"]), escape(row["second"]), escape(row["by"]), number(row["k"]), number(row["pairs"]),
            spread(row["jaccard"], row["low"], row["high"]), number(row["expected_jaccard"]), number(row["rbo"]),
        ]
        for row in means.iter_rows(named=True)
    ]  # fmt: skip
    header = ["list", "and list", "by", "k", "pairs", "Jaccard", "by chance", "rank-biased overlap"]
    short = means["rbo"].null_count() > 0 and pairs["rbo"].count() > 0
    note = "No rank-biased overlap where a list holds fewer than k members: most of it would be extrapolation."
    return [table(header, rows, "lllrrrrr"), *([note] if short else [])]


def stability_table(summary: dict[str, Any]) -> str:
    """Return ``stability_summary.json`` as a table: per metric and k, how far its lists agree between seeds."""
    rows = [
        [
            escape(metric), escape(k), number(entry.get("num_seeds")), number(len(entry.get("jaccard_all") or [])),
            number(entry.get("jaccard_mean")), number(entry.get("jaccard_std")), number(entry.get("topk_overlap_size")),
        ]
        for metric, found in summary.get("metrics", {}).items()
        for k, entry in found.items()
    ]  # fmt: skip
    header = ["metric", "k", "seeds", "pairs", "mean Jaccard", "standard deviation", "in every list"]
    return table(header, rows, "lrrrrrr") if rows else ""


def has_matrix(overlap: pl.DataFrame) -> bool:
    """Tell whether any two lists were compared by weight: without them there is no heat map."""
    return bool(largest_k(overlap)["jaccard"].drop_nulls().len())


def _ppl(row: dict[str, Any]) -> str:
    if row["overflow"]:
        return "overflow"
    return spread(row["ppl_mean"], row["ppl_min"], row["ppl_max"])


def _one_ppl(row: dict[str, Any]) -> str:
    return "overflow" if row["ppl"] is None and row["delta_nll"] is not None else number(row["ppl"])


def _delta(row: dict[str, Any]) -> str:
    low, high = row["delta_low"], row["delta_high"]
    interval = f" [{number(low)}, {number(high)}]" if low is not None and high is not None else ""
    return number(row["delta_nll"]) + interval
