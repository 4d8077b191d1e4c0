"""Single weights on the page: the detector's candidates with their groups, and how well each metric predicts measured damage."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.evidence.charts import interval_chart
from esa.report.evidence.claims import ends
from esa.report.figures import Figure
from esa.report.markdown import MISSING, code, escape, join, number, table

SHOWN = 30
_QUANTITIES = {
    "spearman": "Spearman", "spearman_signed": "with harm alone", "top_1_percent": "top 1 % shared",
    "top_10_percent": "top 10 % shared",
    "spearman_behind_best": "behind the best", "spearman_measured": "among the measured", "top_measured": "their top shared",
    "slope": "slope of the prediction", "intercept": "intercept",
}  # fmt: skip


def detector_parts(run: Gathered) -> list[str]:
    """Return the section: how many candidates are critical, alone or together, which published ones were found, and the table."""
    found = run.table("detector", "detector/1")
    if found is None:
        return ["**No candidate stands out.**"] if "detector" in run.folders else []
    counts = [
        f"{number(int((found['verdict'] == name).sum()))} {name.replace('_', ' ')}"
        for name in dict.fromkeys(found["verdict"].drop_nulls().to_list())
    ]
    parts = [
        f"**Of {number(found.height)} candidates {join(counts)}.** {_grouped(found)}".strip(),
        _published(run, found),
    ]
    rows = sorted(found.to_dicts(), key=lambda row: (_group_place(found, row), row["rank"]))
    cells = [_candidate(row) for row in rows[:SHOWN]]
    header = [
        "weight", "verdict", "role", "value", "alone: delta NLL", "perplexity", "group", "group: delta NLL", "group perplexity",
        "added by it", "growth", "peak ratio", "published",
    ]  # fmt: skip
    parts.append(table(header, cells, "lllrrrlrrrrrl"))
    parts.append(
        "Candidates that share a row or a column stand together. Growth: what the weight adds to the residual stream's peak;"
        " an eraser takes away. Alone, group, added: nats per token with the 95 % interval. Critical together: harmless alone or"
        " unclear, harmful with its group."
        + (f" {number(len(rows) - SHOWN)} more are in `detector.csv`." if len(rows) > SHOWN else "")
    )
    return [part for part in parts if part]


def _grouped(found: pl.DataFrame) -> str:
    groups = found["group"].drop_nulls().unique(maintain_order=True).to_list()
    if not groups:
        return "None shares a row or a column with another."
    count = "1 group shares" if len(groups) == 1 else f"{number(len(groups))} groups share"
    return f"{count} a row or a column: {'; '.join(escape(name) for name in groups)}."


def _published(run: Gathered, found: pl.DataFrame) -> str:
    """Say which published weights were found and missed, where the model is a published one."""
    lines = []
    for one in run.manifests["detector"].get("published") or []:
        if isinstance(one, dict):
            named = [code(target, cell=False) for target in one.get("found") or []]
            missed = [code(target, cell=False) for target in one.get("missed") or []]
            lines.append(
                f"Published for {escape(one.get('model'))}: {number(len(named))} of {number(len(named) + len(missed))} found"
                + (f" ({join(named)})" if named else "")
                + (f"; missed {join(missed)}" if missed else "")
                + "."
            )
    known = found.filter(pl.col("published").fill_null(False))
    if not lines and known.height:
        lines.append(f"{number(known.height)} candidates are published ones.")
    return " ".join(lines)


def _group_place(found: pl.DataFrame, row: dict[str, Any]) -> int:
    """Return the rank of the first candidate of the row's group: what keeps a group together."""
    if row["group"] is None:
        return int(row["rank"])
    return int(found.filter(pl.col("group") == row["group"])["rank"].min())  # type: ignore[arg-type]


def _candidate(row: dict[str, Any]) -> list[str]:
    return [
        code(row["target"]), escape(str(row["verdict"]).replace("_", " ")), escape(row["role"] or "missed"),
        number(row["weight"]),
        ends(row["delta_nll"], row["delta_low"], row["delta_high"]), _ppl(row["ppl"], row["outcome"]),
        escape(row["group"]) if row["group"] else "",
        ends(row["group_delta_nll"], row["group_delta_low"], row["group_delta_high"]) if row["group"] else "",
        _ppl(row["group_ppl"], row["group_outcome"]) if row["group"] else "",
        ends(row["added_nll"], row["added_low"], row["added_high"]) if row["group"] else "",
        number(row["growth"]), number(row["peak_ratio"]), {True: "yes", False: "no", None: ""}[row["published"]],
    ]  # fmt: skip


def _ppl(value: float | None, outcome: str | None) -> str:
    if value is None:
        return escape(outcome) if outcome else MISSING
    return number(value)


def truth_parts(run: Gathered) -> list[str]:
    """Return the section: the metric that agrees best with measured damage, and every figure of every metric."""
    found = run.table("truth", "truth/1")
    if found is None:
        return []
    order = truth_order(found)
    names = {row["quantity"] for row in found.iter_rows(named=True)}
    shown = [name for name in _QUANTITIES if name in names] + sorted(names - set(_QUANTITIES))
    cells = {
        (row["metric"], row["seed"], row["quantity"]): ends(row["value"], row["low"], row["high"])
        for row in found.iter_rows(named=True)
    }
    rows = [
        [escape(_name(found, metric, seed)), *(cells.get((metric, seed, name), "") for name in shown)]
        for metric, seed in order.select("metric", "seed").iter_rows()
    ]
    header = ["metric", *(_QUANTITIES.get(name, escape(name)) for name in shown)]
    return [_truest(found, order), table(header, rows, "l" + "r" * len(shown)), _TRUTH_NOTE]


_TRUTH_NOTE = (
    "Spearman: of score and size of the measured change, each weight counted for those of the model that it stands for;"
    " changes under the noise floor are tied at zero. Shared: of the truly largest part, what the highest scores hold. Among"
    " the measured: each weight counted once. Slope 1 and intercept 0: the signed prediction is right on average. 95 %"
    " bootstrap intervals over the weights."
)


def truth_order(found: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of the weighted Spearman correlation, the best metric first."""
    return found.filter(pl.col("quantity") == "spearman").sort(
        "value", descending=True, nulls_last=True, maintain_order=True
    )


def _truest(found: pl.DataFrame, order: pl.DataFrame) -> str:
    known = order.drop_nulls("value").to_dicts()
    if not known:
        return "The sample gives no correlation for any metric."
    best, *others = known
    name = code(_name(found, best["metric"], best["seed"]), cell=False)
    paired = found.filter(pl.col("quantity") == "spearman_behind_best")
    behind = int((paired["low"] > 0).sum())
    num, censored = number(best["num_weights"]), best["num_censored"]
    value = ends(best["value"], best["low"], best["high"])
    text = f"**{name} agrees best with the measured damage of {num} weights: Spearman {value}.**"
    if others and paired.height:
        text += f" {number(behind)} of {number(len(others))} others are behind it by more than their paired interval."
    return text + (f" {number(censored)} of the changes are under the noise floor." if censored else "")


def _name(found: pl.DataFrame, metric: str, seed: int | None) -> str:
    several = found.filter(pl.col("metric") == metric)["seed"].n_unique() > 1
    return f"{metric} seed {seed}" if several else metric


def figures(run: Gathered) -> Iterator[Figure]:
    """Yield the metrics in the order of their weighted Spearman correlation, with intervals."""
    found = run.table("truth", "truth/1")
    if found is None or (order := truth_order(found).drop_nulls("value")).is_empty():
        return
    names = [_name(found, metric, seed) for metric, seed in order.select("metric", "seed").iter_rows()]
    data = order.select(pl.Series("name", names), "value", "low", "high")
    chart = interval_chart(data, "weighted Spearman correlation", "Metric against measured damage")
    caption = "Of score and size of the measured loss change of zeroing each weight, with 95 % bootstrap intervals."
    yield Figure("truth", "truth", chart, data, "Which metric tells the truth", caption)
