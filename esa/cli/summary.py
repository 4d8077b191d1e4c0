"""What ``esa run`` and ``esa perturb`` print at the end, from what was measured."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from esa.cli.console import number, print_line, print_table

_WORST = 5
_PARTS = 20


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
            ", ".join(map(str, one.get("outlier_seeds", []))),
        ]
        for metric, found in stability["metrics"].items()
        for k, one in found.items()
    ]
    header = ["metric", "k", "jaccard", "sd", "seeds", "in all", "outliers"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    print_table("Top weights across seeds", header, rows, right=header[1:])


def print_curve(curve: pl.DataFrame, summary: Mapping[str, Any]) -> None:
    """Print a curve's points, from where each of its lines stays above the level, and which mode is the steadier."""
    kind, unit = summary["curve"], {"k": "k", "windows": "windows", "seeds": "seeds averaged"}[summary["curve"]]
    header = ["metric", "mode", "by", "k", unit, "pairs", "of", "jaccard", "by chance", "corrected", "95 %"]
    rows = [
        [
            row["metric"],
            row["mode"],
            row["by"],
            number(row["k"]),
            number(row["x"]),
            number(row["num_pairs"]),
            row["pair"].replace("_", " "),
            number(row["jaccard"], 3),
            number(row["expected_jaccard"], 2),
            number(row["corrected"], 3),
            "-" if row["low"] is None else f"{number(row['low'], 3)} to {number(row['high'], 3)}",
        ]
        for row in curve.to_dicts()
    ]
    shown = [place for place, name in enumerate(header) if not (kind == "k" and name == "k" and place == 3)]
    print_table(
        f"Agreement of top lists by {unit}",
        [header[place] for place in shown],
        [[row[place] for place in shown] for row in rows],
        right=["k", unit, "pairs", "jaccard", "by chance", "corrected"],
    )
    for line in summary["lines"]:
        print_line(onset_words(line, summary["level"], unit))
    for metric, found in summary.get("modes", {}).items():
        size = found["sizes"][-1]
        numbers = " and ".join(f"{number(round(size['num_weights'][mode]))} {mode}" for mode in size["num_weights"])
        print_line(
            f"{metric}: of its {numbers} hotspots {number(size['shared'], 3)} are in common ({size['share']:.1%})."
        )
        print_line(f"{metric}: {found['reason']}.")


def onset_words(line: Mapping[str, Any], level: float, unit: str) -> str:
    """Return in words from where on a line of a curve stays at or above the level."""
    at = "" if line["k"] is None else f" at k = {line['k']:,}"
    name = f"{line['metric']} {line['mode']} by {line['by']}{at}, {line['pair'].replace('_', ' ')}"
    looked = f"{unit} = {line['smallest']:,} to {line['largest']:,}"
    if not line["chance_known"]:
        return f"{name}: not corrected, for what chance gives is not known (--universe)."
    if line["from"] is None:
        return f"{name}: never stays above {level:g} within the range ({looked})."
    return f"{name}: stays above {level:g} from {unit} = {line['from']:,} on ({looked})."


def print_damage(damage: pl.DataFrame) -> None:
    """Print a table per method: one row per metric, group and k, perplexity as mean and range over draws and repeats."""
    from esa.report.tables import damage_summary, label

    base = damage["ppl_base"].drop_nulls()
    intact = f" (intact: {number(base[0])})" if len(base) else ""
    summary = damage_summary(damage.filter(pl.col("unit") == "joint"))
    header = ["metric", "group", "k", "perplexity", "range", "x intact", "outcome"]
    for (method, options), part in summary.group_by("method", "options", maintain_order=True):
        rows = []
        for row in part.to_dicts():
            several = row["cases"] > 1 and row["ppl_min"] is not None and row["ppl_max"] is not None
            spread = f"{number(row['ppl_min'])} to {number(row['ppl_max'])}" if several else ""
            rows.append(
                [row["metric"] or "-", row["group"], str(row["k"]), number(row["ppl_mean"]), spread, _times(row["ratio"]),
                 row["outcome"]]
            )  # fmt: skip
        title = f"Damage of {label(str(method), str(options))}, by group and k{intact}"
        print_table(title, header, rows, right=["k", "perplexity", "x intact"])


def print_parts(damage: pl.DataFrame) -> None:
    """Print what single targets, all but one, and pairs cost: per method and unit the worst of a list that a person named."""
    from esa.report.tables import label

    swept = (pl.col("method") == "bit_flip") & pl.col("options").str.contains(
        '"bit":'
    )  # bit by bit in a table of its own
    named = damage.filter(
        pl.col("group") == "targets", pl.col("unit").is_in(["single", "leave_one_out", "pairs"]), ~swept
    )
    words = {"single": "each alone", "leave_one_out": "all but the one named", "pairs": "every two together"}
    for (method, options, unit), part in named.group_by("method", "options", "unit", maintain_order=True):
        ordered = part.sort(pl.col("delta_nll").fill_null(float("inf")), descending=True, maintain_order=True)
        rows = [
            [_times(_ratio(row)), number(row["ppl"]), number(row["delta_nll"]), row["outcome"], row["target"]]
            for row in ordered.head(_PARTS).to_dicts()
        ]
        rest = f", the worst {_PARTS} of {number(part.height)}" if part.height > _PARTS else ""
        title = f"{label(str(method), str(options))}, {words[str(unit)]}{rest}"
        print_table(title, ["x intact", "perplexity", "delta NLL", "outcome", "target"], rows,
                    right=["x intact", "perplexity", "delta NLL"], wrap=("target",))  # fmt: skip


def _ratio(row: Mapping[str, Any]) -> float | None:
    return None if row["ppl"] is None or row["ppl_base"] is None else row["ppl"] / row["ppl_base"]


def print_worst(damage: pl.DataFrame, ranking: pl.DataFrame, model: Mapping[str, Any]) -> None:
    """Print the single weights whose perturbation costs most, worst first."""
    from esa.report.tables import label, worst_single

    worst = worst_single(damage, ranking).head(_WORST).to_dicts()
    if worst:
        several = len({(row["method"], row["options"]) for row in worst}) > 1
        rows = [
            [_times(row["ratio"]), number(row["ppl"]), number(row["weight"])]
            + ([label(row["method"], row["options"])] if several else [])
            + [row["target"]]
            for row in worst
        ]
        title = f"Worst single weights of {number(model['num_parameters'])}"
        header = ["x intact", "perplexity", "weight", *(["method"] if several else []), "address"]
        print_table(title, header, rows, right=header[:3])
        if worst[0]["metrics"]:
            print_line(f"The first one's rank by metric: {worst[0]['metrics']}.")


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{number(ratio, 3)}"
