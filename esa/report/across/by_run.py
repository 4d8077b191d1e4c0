"""What the page of several runs says of causal evidence: each run's dose-responses, metric truth, methods and reliability."""

from collections.abc import Callable, Iterator, Sequence

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.evidence.claims import ends
from esa.report.evidence.dose import rivals
from esa.report.evidence.retest import RELIABILITY_ALIGN, RELIABILITY_HEADER, reliability_row, reliability_sentence
from esa.report.evidence.weights import truth_order
from esa.report.markdown import code, escape, join, number, percent, table
from esa.report.tables import label

Pairs = Sequence[tuple[str, Gathered]]
ROWS = 12  # of each run in a table


def evidence_by_run(pairs: Pairs) -> Iterator[tuple[str, list[str]]]:
    """Yield title and text of every section of evidence that at least one of the runs has a table for."""
    sections: tuple[tuple[str, Callable[[Pairs], list[str]]], ...] = (
        ("Dose-response", doses), ("Which metric tells the truth", truths),
        ("Which method tells critical weights apart", methods), ("Reliability", reliabilities),
    )  # fmt: skip
    for title, parts in sections:
        if found := parts(pairs):
            yield title, found


def _tables(pairs: Pairs, step: str, kind: str) -> list[tuple[str, pl.DataFrame]]:
    return [(name, found) for name, run in pairs if (found := run.table(step, kind)) is not None]


def _more(found: Sequence[tuple[str, int]]) -> str:
    """Say how many rows of which runs the table leaves out."""
    left = [f"{number(count - ROWS)} of {code(name, cell=False)}" for name, count in found if count > ROWS]
    return f"Not shown: {join(left)}; the page of each run has them." if left else ""


def doses(pairs: Pairs) -> list[str]:
    """Return the dose-responses of the top weights of every run: where they rise, and where they leave random ones."""
    found = [(name, _top(rows)) for name, rows in _tables(pairs, "perturb", "dose/1")]
    if not found:
        return []
    whole = sum(int((rows["rising"] == 1.0).sum()) for _, rows in found)
    every = sum(rows.height for _, rows in found)
    text = f"**{number(whole)} of {number(every)} dose-responses of {number(len(found))} runs"
    text += " are monotone within the noise floor.**"
    cells = [
        [
            code(name), escape(row["metric"] or row["target"] or "all"), escape(f"{row['method']}, {row['option']}"),
            number(row["k"]), escape(row["doses"]), number(row["rising"]), number(row["spearman"]), number(row["separates_at"]),
            escape(row["curve"]),
        ]
        for name, rows in found for row in rows.head(ROWS).iter_rows(named=True)
    ]  # fmt: skip
    header = ["run", "metric", "method, option", "k", "doses", "rising", "Spearman", "separates at", "best curve"]
    return [text, table(header, cells, "lllrlrrrl"), _more([(name, rows.height) for name, rows in found])]


def _top(rows: pl.DataFrame) -> pl.DataFrame:
    top = rows.filter((pl.col("group") == "top_k") & (pl.col("unit") == "joint"))
    return top if top.height else rows


def truths(pairs: Pairs) -> list[str]:
    """Return the weighted Spearman correlation of every metric with measured damage, a column per run."""
    found = [(name, truth_order(rows).drop_nulls("value")) for name, rows in _tables(pairs, "truth", "truth/1")]
    found = [(name, rows.unique("metric", keep="first", maintain_order=True)) for name, rows in found if rows.height]
    if not found:
        return []
    first = [(name, rows["metric"][0]) for name, rows in found]
    best = [f"{code(name, cell=False)}: {code(metric, cell=False)}" for name, metric in first]
    same = len({metric for _, metric in first}) == 1
    where = "the one run" if len(first) == 1 else f"all {number(len(first))} runs"
    text = (
        f"**{code(first[0][1], cell=False)} agrees best with measured damage in {where} that measured it.**"
        if same
        else f"**The metric that agrees best with measured damage differs between runs: {join(best)}.**"
    )
    metrics = list(dict.fromkeys(metric for _, rows in found for metric in rows["metric"].to_list()))
    cells = {
        (name, row["metric"]): ends(row["value"], row["low"], row["high"])
        for name, rows in found
        for row in rows.to_dicts()
    }
    rows = [[escape(metric), *(cells.get((name, metric), "") for name, _ in found)] for metric in metrics]
    note = "Weighted Spearman correlation of score and size of the measured change, 95 % bootstrap intervals; the first seed."
    return [text, table(["metric", *(code(name) for name, _ in found)], rows, "l" + "r" * len(found)), note]


def methods(pairs: Pairs) -> list[str]:
    """Return, per run, metric and k, the method and dose of the most power to tell top weights from random ones, of several."""
    known = (pl.col("place") == 1) & pl.col("power").is_not_null()
    found = [(name, rivals(rows).filter(known)) for name, rows in _tables(pairs, "perturb", "discrimination/1")]
    found = [(name, rows) for name, rows in found if rows.height]
    if not found:
        return []
    names = [row["method"] for _, rows in found for row in rows.iter_rows(named=True)]
    counts = sorted({name: names.count(name) for name in names}.items(), key=lambda one: (-one[1], one[0]))
    words = ", ".join(f"{escape(name)} {number(count)}" for name, count in counts)
    text = f"**Best by power, over {number(len(names))} lists of {number(len(found))} runs: {words}.**"
    cells = [
        [
            code(name), escape(row["metric"]), number(row["k"]), escape(label(row["method"], row["options"])),
            number(row["damage"]), number(row["z"]), number(row["auc"]), number(row["p_value"]), percent(row["power"]),
        ]
        for name, rows in found for row in rows.head(ROWS).iter_rows(named=True)
    ]  # fmt: skip
    header = ["run", "metric", "k", "best method", "damage (nats per token)", "z", "AUC", "p", "power"]
    return [text, table(header, cells, "llrlrrrrr"), _more([(name, rows.height) for name, rows in found])]


def reliabilities(pairs: Pairs) -> list[str]:
    """Return how far halves of the evaluation windows agree in every run."""
    found = [
        (name, rows.filter((pl.col("over") == "windows") & pl.col("icc").is_not_null()))
        for name, rows in _tables(pairs, "perturb", "reliability/1")
    ]
    found = [(name, rows) for name, rows in found if rows.height]
    if not found:
        return []
    text = reliability_sentence(pl.concat([rows for _, rows in found]))
    cells = [
        [code(name), *reliability_row(row)] for name, rows in found for row in rows.head(ROWS).iter_rows(named=True)
    ]
    header, align = ["run", *RELIABILITY_HEADER], f"l{RELIABILITY_ALIGN}"
    return [text, table(header, cells, align), _more([(name, rows.height) for name, rows in found])]
