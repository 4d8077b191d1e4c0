"""Bits on the page: what each flipped bit of a weight does, and how often random faults are fatal, with Wilson intervals."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.evidence.charts import bits_chart
from esa.report.evidence.claims import ends
from esa.report.figures import Figure, slug
from esa.report.markdown import MISSING, code, escape, join, number, percent, table

WEIGHTS = 3  # weights whose bits are shown one by one
_FATAL = ("collapsed", "uniform", "nonfinite")


def bits_parts(run: Gathered) -> list[str]:
    """Return the section: which bits are fatal, and a row per bit of the first weights, the most significant bit first."""
    found = run.table("perturb", "bits/1")
    if found is None:
        return []
    weights = found["target"].unique(maintain_order=True).to_list()
    parts = [_fatal(found)]
    for target in weights[:WEIGHTS]:
        part = found.filter(pl.col("target") == target).sort("bit", descending=True, maintain_order=True)
        rows = [
            [
                number(row["bit"]), escape(row["field"]), code(row["old_bits"]), code(row["new_bits"]), number(row["old"]),
                _stored(row["new"]), MISSING if row["ppl"] is None else number(row["ppl"]),
                ends(row["delta_nll"], row["delta_low"], row["delta_high"]), escape(row["outcome"]),
            ]
            for row in part.iter_rows(named=True)
        ]  # fmt: skip
        header = [
            "bit", "field", "old bits", "new bits", "old value", "new value", "perplexity", "delta NLL (nats per token)",
            "outcome",
        ]  # fmt: skip
        parts += [f"### {code(target, cell=False)}", table(header, rows, "rlllrrrrl")]
    if len(weights) > WEIGHTS:
        parts.append(f"{number(len(weights) - WEIGHTS)} more weights are in `bits.csv`.")
    return parts


def _fatal(found: pl.DataFrame) -> str:
    lines = []
    for (target,), part in found.group_by(["target"], maintain_order=True):
        bits = part.filter(pl.col("outcome").is_in(_FATAL))["bit"].sort(descending=True).to_list()
        named = f"bit{'s' if len(bits) > 1 else ''} {join([str(bit) for bit in bits])}" if bits else "none"
        lines.append(f"of {code(target, cell=False)} {named} of {number(part.height)}")
    shown = lines[:WEIGHTS]
    return f"**Flips that leave no working model: {'; '.join(shown)}.** Bit 0 is the least significant."


def _stored(value: float | None) -> str:
    return "NaN or Inf" if value is None else number(value)


def fault_parts(run: Gathered) -> list[str]:
    """Return the section: how trials of random faults ended by rate, and where a single flip is fatal."""
    found = run.table("faults", "fault_rates/1")
    if found is None:
        return []
    whole = found.filter(pl.col("by") == "all")
    fatal = whole.filter(pl.col("outcome") == "fatal").to_dicts()
    lines = [f"at {number(row['rate'])} in {_share(row)}" for row in fatal]
    section = run.spec.faults
    code_ = (
        "without error correction"
        if section.ecc == "none"
        else f"under {section.ecc}, detected words: {section.on_detect}"
    )
    parts = [
        f"**Trials that end with no working model, by bit error rate: {'; '.join(lines)}** ({code_})." if lines else ""
    ]
    rates = whole["rate"].unique(maintain_order=True).to_list()
    outcomes = [
        name for name in whole["outcome"].unique(maintain_order=True).to_list()
        if name != "fatal" and whole.filter(pl.col("outcome") == name)["count"].sum()
    ]  # fmt: skip
    cells = {(row["rate"], row["outcome"]): row for row in whole.iter_rows(named=True)}
    rows = [
        [number(rate), number(cells[rate, "fatal"]["trials"]), *(_share(cells[rate, name]) for name in outcomes)]
        for rate in rates
    ]
    parts.append(table(["bit error rate", "trials", *map(escape, outcomes)], rows, "rr" + "r" * len(outcomes)))
    parts.append(f"Shares of the trials with {100 * run.spec.statistics.level:g} % Wilson intervals.")
    for by, title in (("bit", "bit"), ("block", "block"), ("component", "component")):
        part = found.filter(pl.col("by") == by)
        if part.height:
            wide = part["width"].drop_nulls().n_unique() > 1
            each = [
                [
                    escape(f"{row['value']} of {row['width']}" if wide else row["value"]),
                    number(row["trials"]),
                    _share(row),
                ]
                for row in part.iter_rows(named=True)
            ]
            parts += [
                f"### A single flip, by {title}",
                table([title, "single flips", "fatal"], each, "rrr" if by == "bit" else "lrr"),
            ]
    return [part for part in parts if part]


def _share(row: dict[str, Any]) -> str:
    if row["share"] is None:
        return MISSING
    return f"{percent(row['share'])} [{percent(row['low'])}, {percent(row['high'])}]"


def figures(run: Gathered) -> Iterator[Figure]:
    """Yield the bits of the first weights: the perplexity of each flip."""
    found = run.table("perturb", "bits/1")
    if found is None or run.damage is None:
        return
    base = float(run.damage["ppl_base"][0])
    for target in found["target"].unique(maintain_order=True).to_list()[:WEIGHTS]:
        data = found.filter(pl.col("target") == target).with_columns((pl.col("ppl") / base).alias("ratio"))
        data = data.select("bit", "field", "ratio", "old", "new", "ppl", "outcome")
        place = str(target).replace(".weight:", " ")
        chart = bits_chart(data, place)
        caption = f"Perplexity over the intact one after flipping one bit of {code(target, cell=False)}, logarithmic."
        yield Figure(f"bits_{slug(str(target))}", "bits", chart, data, f"Bits of {place}", caption)
