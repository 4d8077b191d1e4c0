"""What ``esa run`` and ``esa perturb`` print at the end, from what was measured."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from esa.cli.console import number, print_table

_WORST = 5


def print_summary(
    manifest: Mapping[str, Any], ranking: pl.DataFrame, damage: pl.DataFrame | None, stability: Mapping[str, Any] | None
) -> None:
    """Print the damage table, the worst single weights, and the stability across seeds."""
    if damage is not None:
        print_damage(damage)
        print_worst(damage, ranking, manifest["model"])
    if stability is not None:
        print_stability(stability)


def print_stability(stability: Mapping[str, Any]) -> None:
    """Print how far each metric's top weights agree across seeds."""
    rows = [
        [
            metric,
            k,
            number(one["jaccard_mean"], 3),
            number(one["jaccard_std"], 2),
            number(one["num_seeds"]),
            number(one["topk_overlap_size"]),
        ]
        for metric, found in stability["metrics"].items()
        for k, one in found.items()
    ]
    header = ["metric", "k", "jaccard", "sd", "seeds", "in all"]
    print_table("Top weights across seeds", header, rows, right=header[1:])


def print_damage(damage: pl.DataFrame) -> None:
    """Print one row per method, metric, group and k: perplexity as mean and range over draws and repeats."""
    from esa.report.tables import damage_summary

    rows = []
    for row in damage_summary(damage.filter(pl.col("unit") == "joint")).to_dicts():
        several = row["cases"] > 1 and row["ppl_min"] is not None
        spread = f"{number(row['ppl_min'])} to {number(row['ppl_max'])}" if several else ""
        method = row["method"] if row["options"] == "{}" else f"{row['method']} {row['options']}"
        rows.append(
            [method, row["metric"] or "-", row["group"], str(row["k"]), str(row["cases"]), number(row["ppl_mean"]), spread,
             _times(row["ratio"]), row["outcome"]]
        )  # fmt: skip
    header = ["method", "metric", "group", "k", "cases", "perplexity", "range", "x intact", "outcome"]
    if rows:
        base = damage["ppl_base"].drop_nulls()
        intact = f" (intact: {number(base[0])})" if len(base) else ""
        print_table(f"Damage by group and k{intact}", header, rows, right=["k", "cases", "perplexity", "x intact"])


def print_worst(damage: pl.DataFrame, ranking: pl.DataFrame, model: Mapping[str, Any]) -> None:
    """Print the single weights whose perturbation costs most, worst first."""
    from esa.report.tables import worst_single

    rows = [
        [
            row["target"],
            number(row["weight"]),
            number(row["ppl"]),
            _times(row["ratio"]),
            number(row["delta_nll"], 3),
            row["metrics"] or "-",
        ]
        for row in worst_single(damage, ranking).head(_WORST).to_dicts()
    ]
    header = ["address", "weight", "perplexity", "x intact", "delta NLL", "rank by metric"]
    if rows:
        title = f"Worst single weights of {number(model['num_parameters'])}"
        print_table(title, header, rows, right=["weight", "perplexity", "x intact", "delta NLL"])


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{number(ratio, 3)}"
