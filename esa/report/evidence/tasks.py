"""Agreement curves and tasks on the page: how lists agree as K, windows and seeds grow, and tasks before and after."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.evidence.charts import line_chart
from esa.report.evidence.claims import ends
from esa.report.figures import Figure
from esa.report.markdown import bullets, code, escape, number, percent, table
from esa.report.tables import label

_UNITS = {"k": "k", "windows": "windows", "seeds": "seeds averaged"}
SHOWN = 60


def curve_parts(run: Gathered) -> list[str]:
    """Return the section: from where on each line of each curve stays at the level, and which mode is steadier."""
    lines = []
    for curve, found in run.curves.items():
        level, unit = found["level"], _UNITS[curve]
        for line in found["lines"]:
            lines.append(_onset(line, level, unit))
        for metric, one in found.get("modes", {}).items():
            size = one["sizes"][-1]
            lines.append(
                f"{code(metric, cell=False)}: {percent(size['share'])} of its hotspots are the same globally and per layer;"
                f" {escape(one['reason'])}."
            )
    return [bullets(lines)] if lines else []


def _onset(line: dict[str, Any], level: float, unit: str) -> str:
    k = "" if line["k"] is None else f" at k = {number(line['k'])}"
    pair = escape(line["pair"].replace("_", " "))
    words = f"{code(line['metric'], cell=False)}, {escape(line['mode'])} by {escape(line['by'])}{k}, {pair}"
    looked = f"{unit} {number(line['smallest'])} to {number(line['largest'])}"
    if not line["chance_known"]:
        return f"{words}: not corrected, for what chance gives is not known."
    if line["from"] is None:
        return f"{words}: never stays above {number(level)} ({looked})."
    return f"{words}: **stays above {number(level)} from {unit} = {number(line['from'])} on** ({looked})."


def task_parts(run: Gathered) -> list[str]:
    """Return the section: tasks of the intact model and their spread, and what each perturbation changes, paired."""
    parts: list[str] = []
    damage, spread = run.table("perturb", "task_damage/1"), run.table("eval", "spread/1")
    if damage is not None:
        parts += _task_damage(run, damage)
    intact = run.table("eval", "eval/1")
    if intact is not None:
        rows = [
            [
                escape(row["task"]), escape(row["metric"]), escape(row["source"]) if row["source"] else "", number(row["length"]),
                number(row["seed"]), number(row["value"]), number(row["stderr"]), number(row["num_items"]),
            ]
            for row in intact.head(SHOWN).iter_rows(named=True)
        ]  # fmt: skip
        header = ["task", "figure", "source", "length", "seed", "value", "standard error", "items"]
        parts += ["### The intact model", table(header, rows, "lllrrrrr")]
    if spread is not None:
        rows = [
            [
                escape(row["task"]), escape(row["metric"]), escape(row["source"]) if row["source"] else "", number(row["length"]),
                number(row["num_seeds"]), number(row["mean"]), number(row["sd"]), percent(row["cv"]),
            ]
            for row in spread.iter_rows(named=True)
        ]  # fmt: skip
        header = ["task", "figure", "source", "length", "seeds", "mean", "standard deviation", "spread (cv)"]
        parts += ["### Across seeds", table(header, rows, "lllrrrrr")]
    return parts


def _task_damage(run: Gathered, damage: pl.DataFrame) -> list[str]:
    cases: dict[str, dict[str, Any]] = {}
    for row in run.damage.iter_rows(named=True) if run.damage is not None else ():
        cases.setdefault(row["case"], row)
    worse = int(((damage["delta_high"] < 0) | (damage["delta_low"] > 0)).sum())
    count = f"{number(worse)} of {number(damage.height)} figures"
    text = f"**{count} under a perturbation differ from the intact model's: zero is not in their interval.**"
    rows = []
    for row in damage.head(SHOWN).iter_rows(named=True):
        case = cases.get(row["case"])
        what = str(row["case"])
        if case is not None:
            method = label(case["method"], case["options"])
            what = f"{case['metric'] or 'all'} {case['group']}, {method}, k = {number(case['k'])}"
        rows.append([
            escape(what), escape(row["task"]), escape(row["metric"]), number(row["intact"]), number(row["value"]),
            ends(row["delta"], row["delta_low"], row["delta_high"]), number(row["p_value"]), number(row["num_items"]),
            number(row["num_changed"]),
        ])  # fmt: skip
    header = ["weights", "task", "figure", "before", "after", "difference", "p", "items", "changed"]
    left = damage.height - SHOWN
    note = f"{number(left)} more are in `task_damage.csv`." if left > 0 else ""
    return [text, table(header, rows, "lllrrrrrr"), note]


def figures(run: Gathered) -> Iterator[Figure]:
    """Yield each curve by weight: chance-corrected Jaccard against k, windows or seeds, a line per metric, mode and k."""
    for curve in run.curves:
        found = run.table(f"curve {curve}", "curve/1")
        if found is None:
            continue
        rows = found.filter(pl.col("by") == "weight").drop_nulls("corrected")
        if rows.is_empty():
            continue
        several = [
            name
            for name in ("metric", "mode", "k", "pair")
            if rows[name].n_unique() > 1 and (name, curve) != ("k", "k")
        ]
        words = [pl.format(f"{name} {{}}" if name == "k" else "{}", pl.col(name)) for name in several or ["metric"]]
        rows = rows.with_columns(pl.col("pair").str.replace_all("_", " "))
        series = pl.concat_str(words, separator=", ").alias("series")
        data = rows.select("x", pl.col("corrected").alias("y"), "low", "high", series)
        unit = _UNITS[curve]
        chart = line_chart(data, unit, "chance-corrected Jaccard", f"Agreement against {unit}")
        caption = f"Chance-corrected Jaccard index of top lists against {unit}: 0 by chance, 1 equal."
        yield Figure(f"curve_{curve}", "curve", chart, data, f"Agreement against {unit}", caption)
