"""Would other draws and other texts say the same, and which curve damage follows: reliability and fits on the page."""

from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.evidence.claims import ends
from esa.report.markdown import MISSING, code, escape, number, table
from esa.report.tables import label

ROWS = 30  # of a table
_RELIABLE = 0.75  # of an ICC: "good" by Koo and Li, J. Chiropr. Med. 15, 2016
_NOTE = (
    "Over windows: the same damages on the even and on the odd evaluation windows; over repeats: of draws of the noise. ICC(2,1):"
    " the share of the spread that is between the sets of weights, with its 95 % interval. sd: within a set, nats per token."
)
_FIT_NOTE = (
    "Curves through the damage at strengths above zero. Weight: Akaike's, among the curves that could be fitted to the"
    " same points. Intervals are profile intervals."
)


def reliability_parts(run: Gathered) -> list[str]:
    """Return the section: how far two halves of the evaluation windows agree, then every set of cases."""
    found = run.table("perturb", "reliability/1")
    if found is None:
        return []
    rows = [reliability_row(row) for row in found.head(ROWS).iter_rows(named=True)]
    left = found.height - ROWS
    more = f"{number(left)} more are in `reliability.csv`." if left > 0 else ""
    return [reliability_sentence(found), table(RELIABILITY_HEADER, rows, RELIABILITY_ALIGN), more, _NOTE]


def reliability_sentence(found: pl.DataFrame) -> str:
    """Return how many of the agreements between evaluation windows are good, and the least of them."""
    known = found.filter((pl.col("over") == "windows") & pl.col("icc").is_not_null())
    if known.is_empty():
        return "No two sets of weights were measured on enough windows for an agreement between halves of them."
    good = int((known["low"] >= _RELIABLE).sum())
    least = known.sort("icc", maintain_order=True).row(0, named=True)
    return (
        f"**Between halves of the evaluation windows, {number(good)} of {number(known.height)} agreements are good: the low"
        f" end of ICC(2,1) is {_RELIABLE} or more.** The least is {ends(least['icc'], least['low'], least['high'])}"
        f" ({escape(label(least['method'], least['options']))})."
    )


RELIABILITY_HEADER = [
    "over",
    "metric",
    "group",
    "method",
    "unit",
    "k",
    "sets",
    "measured",
    "mean",
    "sd",
    "cv",
    "ICC(2,1)",
]
RELIABILITY_ALIGN = "lllllrrrrrrr"


def reliability_row(row: dict[str, Any]) -> list[str]:
    """Return the cells of one row of ``reliability/1``."""
    return [
        escape(row["over"]), escape(row["metric"] or "all"), escape(row["group"] or row["target"]),
        escape(label(row["method"], row["options"])), escape(row["unit"]), number(row["k"]), number(row["num_cases"]),
        number(row["num_measurements"]), number(row["mean"]), number(row["sd"]), number(row["cv"]),
        ends(row["icc"], row["low"], row["high"]) if row["icc"] is not None else MISSING,
    ]  # fmt: skip


def fit_parts(run: Gathered) -> list[str]:
    """Return the section: which curve of damage against dose is preferred how often, then the best curve of each response."""
    found = run.table("perturb", "fits/1")
    if found is None:
        return []
    best = best_curves(found)
    counts = best["model"].value_counts(sort=True, name="count").sort("count", "model", descending=[True, False])
    words = [f"{escape(model)} {number(count)}" for model, count in counts.iter_rows()]
    plural = "" if best.height == 1 else "s"
    text = f"**Curves through {number(best.height)} dose-response{plural}, the preferred one: {', '.join(words)}.**"
    rows = [_curve(found, row) for row in best.head(ROWS).iter_rows(named=True)]
    left = best.height - ROWS
    more = f"{number(left)} more are in `fits.csv`." if left > 0 else ""
    header = ["response", "curve", "weight", "R2", "points", "parameters"]
    return [text, table(header, rows, "llrrrl"), more, _FIT_NOTE]


def best_curves(fits: pl.DataFrame) -> pl.DataFrame:
    """Return, per quantity of ``fits/1``, the row of the curve of the largest weight; the best R2 where no weight is known."""
    ordered = fits.sort("weight", "r2", descending=True, nulls_last=True, maintain_order=True)
    order = fits["quantity"].unique(maintain_order=True).to_list()
    first = ordered.unique("quantity", keep="first", maintain_order=True)
    return first.sort(pl.col("quantity").replace_strict(order, list(range(len(order))), return_dtype=pl.Int64))


def _curve(fits: pl.DataFrame, row: dict[str, Any]) -> list[str]:
    mine = fits.filter((pl.col("quantity") == row["quantity"]) & (pl.col("model") == row["model"]))
    parameters = [
        f"{escape(name)} {ends(*rest)}" for name, *rest in mine.select("parameter", "value", "low", "high").iter_rows()
    ]
    return [
        escape(row["quantity"]), code(row["model"]), number(row["weight"]), number(row["r2"]), number(row["num_points"]),
        ", ".join(parameters),
    ]  # fmt: skip
