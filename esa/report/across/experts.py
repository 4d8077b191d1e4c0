"""Experts on the page: which hold the score, whether they are the ones that are used, and how concentrated both are."""

from collections.abc import Iterator

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.across.architecture import first_seeds
from esa.report.across.charts_experts import expert_map, usage_chart
from esa.report.across.questions import answer_parts, asked
from esa.report.figures import Figure, slug
from esa.report.markdown import MISSING, bullets, code, escape, number, percent, table

FIGURES = 4  # runs and metrics that are drawn
ROWS = 20  # experts in the table
ANSWERS = {
    "Experts against shared weights": ("expert against shared",),
    "Score against usage": ("score against usage",),
    "Score against usage, block by block": ("score against usage by block",),
    "Concentration over experts": ("concentration over experts",),
    "Specialisation": ("specialisation",),
}
EXPERTS = tuple(name for names in ANSWERS.values() for name in names)


def expert_parts(run: Gathered) -> list[str]:
    """Return the section: what the most loaded expert holds of its block, the answers, the experts with the most score."""
    experts = run.table("arch", "experts/1")
    answers = {title: rows for title, names in ANSWERS.items() if (rows := asked(run, *names)).height}
    if experts is None and not answers:
        return []
    parts = [bullets(_sentences(experts)) if experts is not None else "No run at hand scored experts apart."]
    for title, rows in answers.items():
        if found := answer_parts(rows):
            parts += [f"### {title}", *found]
    if experts is not None:
        parts += ["### The experts with the largest share of the score", *_table(first_seeds(experts))]
    return parts


def within_blocks(experts: pl.DataFrame) -> pl.DataFrame:
    """Return the experts with ``within``: their share of the score of all experts of their block."""
    of = ["label", "metric", "seed", "block"]
    return experts.with_columns((pl.col("score_share") / pl.col("score_share").sum().over(of)).alias("within"))


def _sentences(experts: pl.DataFrame) -> list[str]:
    lines = []
    rows = within_blocks(first_seeds(experts))
    for (label, metric), part in rows.group_by(["label", "metric"], maintain_order=True):
        known = part.filter(pl.col("within").is_finite())
        if known.is_empty():
            continue
        most = known.sort("within", descending=True, maintain_order=True).row(0, named=True)
        count = known.group_by("block").len()["len"].max()
        text = (
            f"**{code(label, cell=False)} by {code(metric, cell=False)}: at most {percent(most['within'])} of a block's"
            f" expert score is in one expert of {number(count)}** (block {number(most['block'])},"  # type: ignore[arg-type]
            f" expert {number(most['expert'])}"
        )
        text += f", {percent(most['usage'])} of the tokens)." if most["usage"] is not None else ")."
        unused = int((known["usage"] == 0).sum())
        lines.append(text + (f" {number(unused)} expert{'' if unused == 1 else 's'} got no token." if unused else ""))
    return lines


def _table(experts: pl.DataFrame) -> list[str]:
    ordered = experts.sort("score_share", descending=True, nulls_last=True, maintain_order=True)
    rows = [
        [
            code(row["label"]), escape(row["metric"]), number(row["block"]), number(row["expert"]), percent(row["score_share"]),
            number(row["density"]), percent(row["usage"]), number(row["num_top"]) if row["num_top"] is not None else MISSING,
        ]
        for row in ordered.head(ROWS).iter_rows(named=True)
    ]  # fmt: skip
    header = ["run", "metric", "block", "expert", "share of score", "density", "usage", "of the top K"]
    left = experts.height - ROWS
    return [table(header, rows, "llrrrrrr"), f"{number(left)} more are in `experts.csv`." if left > 0 else ""]


def figures(run: Gathered) -> Iterator[Figure]:
    """Yield, per run and metric, the map of experts with their usage, and their score against their usage."""
    experts = run.table("arch", "experts/1")
    if experts is None:
        return
    rows = within_blocks(first_seeds(experts))
    groups = rows.group_by(["label", "metric"], maintain_order=True)
    for count, ((label, metric), part) in enumerate(groups):
        if count >= FIGURES:
            return
        title, name = f"{label}, {metric}", slug(f"{label}_{metric}")
        caption = f"Share of all score of the model by {code(metric, cell=False)}, and share of the tokens routed to each expert."
        known = part.filter(pl.col("score_share").is_not_null())
        if known.height:
            yield Figure(f"experts_{name}", "experts", expert_map(known, title), known, f"Experts of {title}", caption)
        both = known.filter(pl.col("usage").is_not_null() & pl.col("within").is_finite())
        if both.height > 1:
            caption = (
                f"{number(both.height)} experts, a mark each; on the dashed line the share of the score is the usage."
            )
            chart = usage_chart(both, title, ["score against usage"])
            yield Figure(f"usage_{name}", "experts", chart, both, f"Score against usage: {title}", caption)
