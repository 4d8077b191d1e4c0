"""What damage does inside the model on the page: interactions between weights, and the change of every block's output."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.evidence.charts import line_chart
from esa.report.evidence.claims import ends
from esa.report.figures import Figure, slug
from esa.report.markdown import code, escape, number, percent, table
from esa.report.tables import label

SHOWN = 20
FIGURES = 4


def interaction_parts(run: Gathered) -> list[str]:
    """Return the section: which weights do more together than the sum of each alone, largest first."""
    found = run.table("perturb", "interactions/1")
    if found is None:
        return []
    ordered = found.sort(pl.col("interaction").abs(), descending=True, nulls_last=True, maintain_order=True)
    named = pl.col("target_a").is_not_null() & pl.col("target_b").is_not_null()
    pairs = ordered.filter(named).unique(
        ["method", "options", "target_a", "target_b"], keep="first", maintain_order=True
    )
    found = pl.concat([pairs, ordered.filter(~named)])  # a pair that two metrics name was measured once
    more, less = int((found["low"] > 0).sum()), int((found["high"] < 0).sum())
    text = (
        f"**Of {number(found.height)} sets of weights {number(more)} do more harm together than the sum of each alone, and"
        f" {number(less)} less; of the others the interval holds zero.**"
    )
    ordered = found.sort(pl.col("interaction").abs(), descending=True, nulls_last=True, maintain_order=True)
    rows = [
        [
            escape(row["metric"] or row["group"]), escape(label(row["method"], row["options"])), _weights(row),
            number(row["joint"]), number(row["sum_of_singles"]), ends(row["interaction"], row["low"], row["high"]),
        ]
        for row in ordered.head(SHOWN).iter_rows(named=True)
    ]  # fmt: skip
    header = ["metric", "method", "weights", "joint", "sum of singles", "interaction (nats per token)"]
    left = found.height - SHOWN
    note = f"The {SHOWN} largest; {number(left)} more are in `interactions.csv`." if left > 0 else ""
    return [text, table(header, rows, "lllrrr"), note]


def _weights(row: dict[str, Any]) -> str:
    if row["target_a"] is not None and row["target_b"] is not None:
        return f"{code(row['target_a'])} and {code(row['target_b'])}"
    return f"{escape(row['unit'])}, k = {number(row['k'])}"


def propagation_parts(run: Gathered) -> list[str]:
    """Return the section: per case the block whose output changes most, at the first token and at the rest."""
    found = run.table("perturb", "propagation/1")
    if found is None:
        return []
    rows, lines = [], []
    for case, part in _cases(found):
        for (tokens,), some in part.group_by(["tokens"], maintain_order=True):
            known = some.drop_nulls("relative_change")
            if known.is_empty() or not known["relative_change"].max():
                continue
            most = known.sort("relative_change", descending=True, maintain_order=True).row(0, named=True)
            last = some.sort("block").row(-1, named=True)
            lines.append((most["relative_change"], case, tokens, most["block"]))
            rows.append([
                escape(case), escape(tokens), number(most["block"]), percent(most["relative_change"]), number(most["cosine"]),
                percent(last["relative_change"]), number(last["cosine"]),
            ])  # fmt: skip
    if not rows:
        return ["No block's output changes."]
    share, case, tokens, block = max(lines, key=lambda line: line[0])
    where = f"in block {number(block)} at the {'first token' if tokens == 'first' else 'other tokens'}"
    text = f"**The largest change of a block's output is {percent(share)} of its length, {where} ({escape(case)}).**"
    header = ["case", "tokens", "most changed block", "relative change", "cosine", "in the last block", "cosine there"]
    return [text, table(header, rows[:SHOWN], "llrrrrr")]


def _cases(found: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield each case once with words for it: metric, group, method, k."""
    once = found.unique(["case", "block", "tokens"], keep="first", maintain_order=True)
    for _, part in once.group_by(["case"], maintain_order=True):
        row = part.row(0, named=True)
        what = row["target"] if row["target"] and row["metric"] is None else f"{row['metric'] or 'all'} {row['group']}"
        draw = f" draw {row['draw']}" if row["draw"] is not None else ""
        yield f"{label(row['method'], row['options'])}, {what}{draw}, k = {number(row['k'])}", part


def figures(run: Gathered) -> Iterator[Figure]:
    """Yield, for each of the first cases, the relative change of every block's output, the first token and the rest."""
    found = run.table("perturb", "propagation/1")
    if found is None:
        return
    taken = 0
    for case, part in _cases(found):
        if taken >= FIGURES or not (part["relative_change"].drop_nulls() > 0).any():
            continue
        taken += 1
        words = part["tokens"].replace({"first": "first token", "rest": "other tokens"})
        ends_ = [pl.lit(None, pl.Float64).alias(end) for end in ("low", "high")]
        data = part.select(
            pl.col("block").alias("x"), pl.col("relative_change").alias("y"), *ends_, words.alias("series")
        ).drop_nulls("y")  # fmt: skip
        chart = line_chart(data, "block", "relative change of its output", case, log_y=True)
        caption = "Length of the change of each block's output over the length of the output; blocks before the change have none."
        yield Figure(
            f"propagation_{taken}_{slug(case)}"[:70], "propagation", chart, data, f"Propagation: {case}", caption
        )
