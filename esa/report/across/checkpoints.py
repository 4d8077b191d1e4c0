"""Training on the page: when the critical weights of the last checkpoint appear, and whether they stay."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.across.charts_checkpoints import ranks_chart
from esa.report.evidence.charts import line_chart
from esa.report.figures import Figure, slug
from esa.report.markdown import bullets, code, escape, number, percent, table

FIGURES = 4  # trajectories that are drawn, one metric and K each
WEIGHTS, VANISHED = 10, 5  # lines of one figure: of the last top K, and of weights that are no longer in it
SHOWN = 20  # rows of the table
_OF = ["model", "metric", "seed", "k"]


def checkpoint_parts(run: Gathered) -> list[str]:
    """Return the section: how many of the last top K were there when, then weight by weight."""
    emergence = run.table("scale", "emergence/1")
    if emergence is None:
        return []
    kept = _first_seeds(emergence)
    return [bullets(appearance_sentences(run)), "### Weight by weight", *_weights(kept), _NOTE]


def appearance_sentences(run: Gathered) -> list[str]:
    """Return, per training run, metric and K, how many of the last top K are there since when; the first score seed."""
    emergence, trajectory = run.table("scale", "emergence/1"), run.table("scale", "trajectory/1")
    if emergence is None:
        return []
    ends = {} if trajectory is None else dict(trajectory.group_by("model").agg(pl.col("step").max()).iter_rows())
    return [_when(row, part, ends.get(row["model"])) for row, part in _series(_first_seeds(emergence))]


_NOTE = (
    "In the top: at how many of the checkpoints. Stays from: the first step from which it is in the top K of every later"
    " checkpoint. Exits: how often it leaves."
)


def _first_seeds(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of the first score seed of every model and metric."""
    return frame.filter(pl.col("seed").eq_missing(pl.col("seed").first().over("model", "metric")))


def _series(frame: pl.DataFrame) -> Iterator[tuple[dict[str, Any], pl.DataFrame]]:
    """Yield each model, metric, seed and k with its rows, in the order of the table."""
    for key, part in frame.group_by(_OF, maintain_order=True):
        yield dict(zip(_OF, key, strict=True)), part


def _when(row: dict[str, Any], part: pl.DataFrame, end: int | None) -> str:
    """Return in a sentence how many of the last top K are there to stay, from when on, and how many left.

    ``end``: the step of the last checkpoint, where being in the list is no staying.
    """
    last = part.drop_nulls("final_rank")
    always = int((last["num_in_top"] == last["num_checkpoints"]).sum())
    what = f"the last top {number(row['k'])} by {code(row['metric'], cell=False)} of {code(row['model'], cell=False)}"
    every = f"all {number(part['num_checkpoints'].max())} checkpoints"  # type: ignore[arg-type]
    text = f"**Of {what} {number(always)} {'is' if always == 1 else 'are'} in it at {every}.**"
    known = last["stays_from"].drop_nulls().sort()
    if known.len() and known[-1] == end:
        before = known.filter(known < end)
        text += f" {number(before.len()) if before.len() else 'None'} of {number(known.len())} stay from an earlier checkpoint on"
        if before.len() >= known.len() / 2:
            text += f", half of the list from step {number(known[(known.len() - 1) // 2])}"
        text += f"; the last is step {number(end)}."
    elif known.len():
        half = known[(known.len() - 1) // 2]
        text += f" Half of the list stays from step {number(half)} on," if half < known[-1] else ""
        text += f" {'all of it' if half < known[-1] else 'All of the list stays'} from step {number(known[-1])}"
        text += "." if half < known[-1] else " on."
    gone = part.height - last.height
    left = (
        " 1 more weight was in it once and is" if gone == 1 else f" {number(gone)} more weights were in it once and are"
    )
    left += " not in the last."
    return text + (left if gone else "")


def _weights(emergence: pl.DataFrame) -> list[str]:
    rows = [
        [
            escape(row["model"]), escape(row["metric"]), number(row["k"]), code(row["target"]), number(row["final_rank"]),
            f"{number(row['num_in_top'])} of {number(row['num_checkpoints'])}", number(row["first_in_top"]),
            number(row["stays_from"]), number(row["num_exits"]),
        ]
        for row in emergence.head(SHOWN).iter_rows(named=True)
    ]  # fmt: skip
    header = ["model", "metric", "k", "weight", "last rank", "in the top", "first at step", "stays from step", "exits"]
    left = emergence.height - SHOWN
    more = f"{number(left)} more are in `emergence.csv`." if left > 0 else ""
    return [table(header, rows, "llrlrrrrr"), more]


def figures(run: Gathered) -> Iterator[Figure]:
    """Yield the ranks over the checkpoints of each training run and metric, then the agreement with the last checkpoint."""
    trajectory, emergence = run.table("scale", "trajectory/1"), run.table("scale", "emergence/1")
    if trajectory is not None and emergence is not None:
        yield from _ranks(_first_seeds(trajectory), _first_seeds(emergence))
    points = run.table("scale", "points/1")
    jaccard = None if points is None else points.filter(pl.col("quantity") == "final_jaccard").drop_nulls("value")
    if jaccard is not None and jaccard.height:
        yield _agreement(jaccard)


def _ranks(trajectory: pl.DataFrame, emergence: pl.DataFrame) -> Iterator[Figure]:
    ks = _drawn_ks(trajectory)
    drawn = [(row, part) for row, part in _series(trajectory) if row["k"] == ks[row["model"], row["metric"]]]
    for count, (row, part) in enumerate(drawn[:FIGURES], start=1):
        told = dict(_fates(emergence, row))
        order = pl.col("target").is_in(list(told))
        column, x_title = axis_of(part)
        data = part.filter(order).select(
            pl.col(column).cast(pl.Float64).alias("x"), "rank", "target", "label", "step", "score",
            pl.col("target").replace_strict(told, return_dtype=pl.String).alias("fate"),
        )  # fmt: skip
        if data.is_empty():
            continue
        title = f"{row['metric']}, {row['model']}"
        lost = int(data["rank"].null_count())
        caption = (
            f"Rank by {code(row['metric'], cell=False)} at each checkpoint of {number(len(told))} weights: the last top"
        )
        caption += f" {number(min(WEIGHTS, row['k']))}, and weights that are no longer in the top {number(row['k'])}."
        if lost:
            caption += f" {number(lost)} of {number(data.height)} marks lie at the edge: outside of the ranking as it was kept."
        name = f"ranks_{count}_{slug(title)}"[:70]
        yield Figure(name, "checkpoints", ranks_chart(data, row["k"], x_title, title), data, f"Ranks: {title}", caption)


def _drawn_ks(trajectory: pl.DataFrame) -> dict[tuple[str, str], int]:
    """Map each model and metric to the K that is drawn: the largest that a figure has lines for, else the smallest."""
    found: dict[tuple[str, str], list[int]] = {}
    for model, metric, k in trajectory.select("model", "metric", "k").unique(maintain_order=True).iter_rows():
        found.setdefault((model, metric), []).append(k)
    return {key: max([k for k in ks if k <= WEIGHTS] or [min(ks)]) for key, ks in found.items()}


def axis_of(rows: pl.DataFrame) -> tuple[str, str]:
    """Return the column and the name of the axis of training: tokens where every checkpoint knows them, else steps."""
    return ("step", "step") if rows["num_tokens"].null_count() else ("num_tokens", "tokens of training")


def _fates(emergence: pl.DataFrame, key: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the weights that are drawn, each with what became of it."""
    mine = emergence.filter(
        *(pl.col(name).eq_missing(pl.lit(value, emergence.schema[name])) for name, value in key.items())
    )
    last = mine.drop_nulls("final_rank").sort("final_rank", maintain_order=True).head(WEIGHTS)
    for row in last.iter_rows(named=True):
        always = row["num_in_top"] == row["num_checkpoints"]
        yield row["target"], "always there" if always else "comes and goes" if row["num_exits"] else "came and stays"
    gone = mine.filter(pl.col("final_rank").is_null()).sort("num_in_top", descending=True, maintain_order=True)
    for target in gone["target"].head(VANISHED).to_list():
        yield target, "not in the last"


def _agreement(jaccard: pl.DataFrame) -> Figure:
    column, x_title = axis_of(jaccard)
    several = jaccard["model"].n_unique() > 1
    name = pl.concat_str([*(["model"] if several else []), "subject"], separator=", ", ignore_nulls=True)
    data = jaccard.select(
        pl.col(column).cast(pl.Float64).alias("x"),
        pl.col("value").alias("y"),
        "low",
        "high",
        name.alias("series"),
        "seed",
    ).sort("series", "x", maintain_order=True)
    first = data.unique(["series", "x"], keep="first", maintain_order=True)  # one score seed
    shown = first["series"].unique(maintain_order=True).head(6).to_list()
    first = first.filter(pl.col("series").is_in(shown))
    chart = line_chart(first.drop("seed"), x_title, "Jaccard index", "Top K against that of the last checkpoint")
    left = data["series"].n_unique() - len(shown)
    start = first.filter(pl.col("x") == first["x"].min())["y"].mean()
    caption = "Weights that both lists hold over those that either holds;"
    caption += f" at the first checkpoint {percent(_real(start))} on average."
    caption += f" {number(left)} more series are in the data." if left else ""
    return Figure("final_jaccard", "checkpoints", chart, data, "Agreement with the last checkpoint", caption)


def _real(value: Any) -> float | None:
    return None if value is None else float(value)
