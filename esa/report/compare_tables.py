"""The tables that set runs side by side, as Markdown: a row per case or key, columns for each run."""

import re
from collections.abc import Sequence
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.compare_frames import damage_by_run, same_metric, worst_of_all
from esa.report.compare_specs import Difference
from esa.report.comparison import Comparison
from esa.report.head import windows_text
from esa.report.markdown import MISSING, code, escape, number, spread, table
from esa.report.provenance import model_rows
from esa.report.tables import label as effect_label

WEIGHTS = 15
_HASH = re.compile(r"[0-9a-f]{40,64}(?=$|,)")
_CASE = ["method", "options", "unit", "metric", "group", "k"]


def runs_table(comparison: Comparison) -> str:
    """Return a row per run: its question where they differ, model, scores, ranking and texts.

    Columns that say nothing of any run are left out.
    """
    columns: dict[str, list[str]] = {"run": [code(label) for label in comparison.labels]}
    if comparison.question is None:
        columns["question"] = [escape(run.spec.question) for run in comparison.runs]
    columns |= {
        "model": [_model(run) for run in comparison.runs],
        "metrics": [_scored(run, "metric") for run in comparison.runs],
        "seeds": [_scored(run, "seed") for run in comparison.runs],
        "mode": [escape(run.spec.rank.mode) if "rank" in run.folders else MISSING for run in comparison.runs],
        "k": [_ks(run) for run in comparison.runs],
        "calibration": [escape(windows_text(run, "score")) or MISSING for run in comparison.runs],
        "evaluation": [escape(windows_text(run, "perturb")) or MISSING for run in comparison.runs],
        "cases": [
            number(run.damage["case"].n_unique()) if run.damage is not None else MISSING for run in comparison.runs
        ],
    }
    kept = {name: cells for name, cells in columns.items() if set(cells) != {MISSING}}
    rows = [list(cells) for cells in zip(*kept.values(), strict=True)]
    return table(list(kept), rows, "".join("r" if name == "cases" else "l" for name in kept))


def _model(run: Gathered) -> str:
    found = dict.fromkeys(
        str(one["model"].get("id")) for one in run.manifests.values() if isinstance(one.get("model"), dict)
    )
    return "; ".join(code(one) for one in found) or MISSING


def _scored(run: Gathered, column: str) -> str:
    frame = run.tensors if run.tensors is not None else run.ranking
    if frame is None:
        return MISSING
    values = frame[column].drop_nulls().unique(maintain_order=column == "metric").to_list()
    return escape(", ".join(map(str, values if column == "metric" else sorted(values)))) or MISSING


def _ks(run: Gathered) -> str:
    return (
        ", ".join(number(k) for k in run.spec.rank.k) if "rank" in run.folders or "perturb" in run.folders else MISSING
    )


def difference_table(differences: Sequence[Difference], labels: Sequence[str], *, facts: bool) -> str:
    """Return a row per key, or fact, that differs, and a column per run."""
    rows = []
    for one in differences:
        lead = [escape(one.key)] if facts else [code(one.key), escape(", ".join(one.steps))]
        rows.append([*lead, *(_value(value, facts=facts) for value in one.values)])
    header = ["fact"] if facts else ["key", "read by"]
    return table([*header, *map(escape, labels)], rows) if rows else ""


def _value(value: str | None, *, facts: bool) -> str:
    if value is None:
        return MISSING
    if facts and (found := _HASH.match(value)):  # of a commit, ", with uncommitted changes" may follow
        return code(found[0]) + escape(value[found.end() :])
    return escape(value)


def intact_table(comparison: Comparison) -> str:
    """Return a row per run: the intact model's numbers, the noise floor, and how many cases were measured."""
    rows = []
    for label, run in comparison.pairs:
        if run.damage is None:
            continue
        row = run.damage.row(0, named=True)
        counts = run.damage.unique("case", keep="first")["outcome"]
        measured = [row["ppl_base"], row["nll_base"], row["accuracy_base"], row["noise_floor"]]
        counted = [counts.len(), int(counts.is_in(["collapsed", "uniform"]).sum()), int((counts == "nonfinite").sum())]
        rows.append([code(label), *map(number, measured), *map(number, counted)])
    header = [
        "run", "intact perplexity", "mean NLL (nats per token)", "token accuracy", "noise floor", "cases", "collapsed",
        "nonfinite",
    ]  # fmt: skip
    return table(header, rows, "lrrrrrrr") if rows else ""


def worst_table(weights: pl.DataFrame, labels: Sequence[str]) -> str:
    """Return the worst single weights of all runs, ``WEIGHTS`` per method at most: in each run the ratio and the rank there."""
    rows = []
    several = weights["places"].n_unique() > 1
    for (method, options, places), part in weights.group_by(["method", "options", "places"], maintain_order=True):
        by_run = {(row["target"], row["run"]): row for row in part.iter_rows(named=True)}
        runs = part["run"].unique().to_list()
        for target in worst_of_all(part, WEIGHTS):
            cells = [_ratio_and_rank(by_run.get((target, label))) for label in labels]
            values = [
                row["weight"] for (name, _), row in by_run.items() if name == target and row["weight"] is not None
            ]
            spelled = " / ".join(dict.fromkeys(map(number, values))) or MISSING
            holders = [f"{places + 1}: {', '.join(label for label in labels if label in runs)}"] if several else []
            rows.append(
                [
                    escape(effect_label(str(method), options)),
                    code(target),
                    spelled,
                    *map(escape, holders),
                    *(x for pair in cells for x in pair),
                ]
            )
    header = ["method", "weight", "value", *(["addresses of"] if several else [])]
    pairs = [name for label in labels for name in (f"{escape(label)}: ratio", "rank")]
    return table([*header, *pairs], rows, "llr" + ("l" if several else "") + "rr" * len(labels))


def _ratio_and_rank(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return MISSING, MISSING
    ratio = (
        number(row["ratio"])
        if row["ratio"] is not None
        else "nonfinite"
        if row["outcome"] == "nonfinite"
        else "overflow"
    )
    return ratio, number(row["rank"])


def damage_table(comparison: Comparison) -> str:
    """Return a row per method, unit, metric, group and k of any run, and for each run the ratio and the outcome."""
    frame = damage_by_run(comparison)
    labels = [label for label, run in comparison.pairs if run.damage is not None]
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in _ordered(frame).iter_rows(named=True):
        found.setdefault(tuple(row[name] for name in _CASE), {})[row["run"]] = row
    rows = []
    for (method, options, unit, metric, group, k), by_run in found.items():
        lead = [escape(effect_label(method, options)), escape(unit), escape(metric or "all"), escape(group), number(k)]
        rows.append([*lead, *(cell for label in labels for cell in _damage_cells(by_run.get(label)))])
    header = ["method", "unit", "metric", "group", "k"]
    header += [name for label in labels for name in (f"{escape(label)}: ratio", "outcome")]
    return table(header, rows, "llllr" + "rl" * len(labels))


def _ordered(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of all runs, those of one method, unit, metric and group together, by k; else as they come."""
    keys = ["method", "options", "unit", "metric", "group"]
    first = [pl.col("place").min().over(keys[: n + 1]).alias(f"place{n}") for n in range(len(keys))]
    placed = frame.with_row_index("place").with_columns(*first)
    return placed.sort(*(f"place{n}" for n in range(len(keys))), "k", maintain_order=True)


def _damage_cells(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return MISSING, MISSING
    floor = ", within noise" if row["below_floor"] else ""
    if row["overflow"]:
        return "overflow", escape(row["outcome"]) + floor
    low, high = ((row[name] / row["ppl_base"] if row[name] is not None else None) for name in ("ppl_min", "ppl_max"))
    return spread(row["ratio"], low, high), escape(row["outcome"]) + floor


def stability_table(comparison: Comparison) -> str:
    """Return how far each metric's lists agree between the seeds of each run: a row per metric and k."""
    summaries = [
        (label, run.stability.get("metrics", {})) for label, run in comparison.pairs if run.stability is not None
    ]
    keys = dict.fromkeys((metric, k) for _, found in summaries for metric, by_k in found.items() for k in by_k)
    rows = []
    for metric, k in keys:
        cells = []
        for _, found in summaries:
            entry = found.get(metric, {}).get(k, {})
            cells += [number(entry.get("jaccard_mean")), number(entry.get("num_seeds"))]
        rows.append([escape(metric), escape(k), *cells])
    header = ["metric", "k", *(name for label, _ in summaries for name in (f"{escape(label)}: Jaccard", "seeds"))]
    return table(header, rows, "lr" + "rr" * len(summaries)) if rows else ""


def lists_table(overlaps: pl.DataFrame) -> str:
    """Return, per metric, k and two runs, how far their top weights agree."""
    rows = [
        [
            escape(row["metric_a"]), number(row["k"]), code(row["run_a"]), code(row["run_b"]), number(row["shared"]),
            number(row["size_a"]), number(row["size_b"]), number(row["jaccard"]),
        ]
        for row in same_metric(overlaps).sort("metric_a", "k", maintain_order=True).iter_rows(named=True)
    ]  # fmt: skip
    header = ["metric", "k", "run", "and run", "shared", "of", "and of", "Jaccard"]
    return table(header, rows, "lrllrrrr") if rows else ""


def between_table(comparison: Comparison) -> str:
    """Return the lists of different runs that overlap steps compared: Jaccard beside what chance gives."""
    ranks = {run.inputs["rank"]: label for label, run in reversed(comparison.pairs) if "rank" in run.inputs}
    rows = []
    for one in comparison.between:
        if one.overlap is None:
            continue
        for row in one.overlap.filter(pl.col("run_a") != pl.col("run_b")).iter_rows(named=True):
            sides = [
                f"{code(ranks.get(row[f'run_{side}'], row[f'label_{side}']))} {escape(row[f'metric_{side}'])}"
                + (f", seed {row[f'seed_{side}']}" if row[f"seed_{side}"] is not None else "")
                for side in "ab"
            ]
            rows.append([
                *sides, escape(row["by"]), number(row["k"]), number(row["shared"]), number(row["jaccard"]),
                number(row["expected_jaccard"]), number(row["p_value"]),
            ])  # fmt: skip
    header = ["list", "and list", "by", "k", "shared", "Jaccard", "by chance", "p"]
    return table(header, rows, "lllrrrrr") if rows else ""


def models_table(comparison: Comparison) -> str:
    """Return what the manifests say of each run's model: a row per fact, a column per run."""
    found = [{row[0]: row[1] for row in model_rows(run)} for run in comparison.runs]
    keys = dict.fromkeys(key for one in found for key in one)
    rows = [[key, *(one.get(key, MISSING) for one in found)] for key in keys]
    return table(["model", *map(escape, comparison.labels)], rows) if rows else ""
