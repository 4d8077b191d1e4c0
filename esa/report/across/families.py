"""Models beside each other on the page: base and instruct, what carries over between families, their tree, a classifier."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.across.charts_forest import forest_chart
from esa.report.across.charts_models import tree_chart
from esa.report.across.questions import answer_parts, asked, significant
from esa.report.figures import Figure, slug
from esa.report.markdown import bullets, code, escape, join, number, percent, table

METRICS = 3  # that are drawn
ROWS = 30  # weights of the table of positions
FEATURES = 15
STATUSES = {"stays": "stay", "moves": "move within their row or column", "vanishes": "vanish", "appears": "appear"}
VARIANTS, TRANSFER, BLOCKS, TREE, CLASSIFIER = (
    ("variants",),
    ("transfer",),
    ("between",),
    ("tree",),
    ("family classifier",),
)


def variant_parts(run: Gathered) -> list[str]:
    """Return the section: which critical weights stay, move, vanish and appear, and the damage of each other's lists."""
    positions, answers = run.table("arch", "positions/1"), asked(run, *VARIANTS)
    if positions is None and answers.is_empty():
        return []
    parts = [bullets(_stays(positions)) if positions is not None else "No two models at hand have the same addresses."]
    parts += answer_parts(answers)
    return parts if positions is None else [*parts, "### Weight by weight", *_positions(positions)]


def _stays(positions: pl.DataFrame) -> list[str]:
    lines = []
    for (a, b, metric, k), part in positions.group_by(["a", "b", "metric", "k"], maintain_order=True):
        found = part["status"].to_list()
        order = [name for name in STATUSES if name in found] + sorted(set(found) - set(STATUSES))
        counts = {name: found.count(name) for name in order}
        words = [f"{number(counts[name])} {STATUSES.get(name, escape(name))}" for name in counts if name != "stays"]
        text = f"**Of the top {number(k)} by {code(metric, cell=False)} of {code(a, cell=False)}"
        text += f" {number(counts.get('stays', 0))} stay in {code(b, cell=False)}**"
        lines.append(text + (f"; {join(words)}." if words else "."))
    return lines


def _positions(positions: pl.DataFrame) -> list[str]:
    rows = [
        [
            code(row["a"]), code(row["b"]), escape(row["metric"]), code(row["target"]), number(row["rank_a"]),
            number(row["rank_b"]), escape(row["status"]), code(row["moved_from"]) if row["moved_from"] is not None else "",
        ]
        for row in positions.head(ROWS).iter_rows(named=True)
    ]  # fmt: skip
    left = positions.height - ROWS
    header = ["from", "to", "metric", "weight", "rank before", "rank after", "status", "moved from"]
    return [table(header, rows, "llllrrll"), f"{number(left)} more are in `positions.csv`." if left > 0 else ""]


def transfer_parts(run: Gathered) -> list[str]:
    """Return the section: does one model's critical position, as depth, component and row, predict the other's."""
    rows = asked(run, *TRANSFER)
    found = answer_parts(rows)
    return (
        [f"**Do one model's critical positions predict another's? {significant(rows)}**".replace(" **", "**"), *found]
        if found
        else []
    )


def block_parts(run: Gathered) -> list[str]:
    """Return the section: how two models' blocks differ, feature by feature."""
    rows = asked(run, *BLOCKS)
    found = answer_parts(rows)
    return (
        [f"**Do the blocks of two models differ? {significant(rows)}**".replace(" **", "**"), *found] if found else []
    )


def tree_parts(run: Gathered) -> list[str]:
    """Return the section: which two models are the most alike, and how much of the distances the tree keeps."""
    tree, answers = run.table("arch", "tree/1"), asked(run, *TREE)
    if tree is None and answers.is_empty():
        return []
    lines = []
    for (metric,), part in tree.group_by(["metric"], maintain_order=True) if tree is not None else ():
        first, last = part.row(0, named=True), part.row(-1, named=True)
        pair = f"{code(first['left'], cell=False)} and {code(first['right'], cell=False)}"
        lines.append(
            f"**By {code(metric, cell=False)}, {pair} are the most alike (distance {number(first['distance'])});** the last two"
            f" groups of the {number(last['size'])} models are {number(last['distance'])} apart."
        )
    return [bullets(lines) if lines else "No tree: there are too few models.", *answer_parts(answers)]


def classifier_parts(run: Gathered) -> list[str]:
    """Return the section: can the family be told from the profile of a model left out, and by which features."""
    features, answers = run.table("arch", "features/1"), asked(run, *CLASSIFIER)
    if features is None and answers.is_empty():
        return []
    told = answers.filter(pl.col("value").is_not_null())
    lines = [
        f"**By {code(row['metric'], cell=False)} the family of {percent(row['value'])} of {number(row['num'])} models"
        f" left out is told** (expected {percent(row['expected'])}, p = {number(row['p_value'])})."
        for row in told.iter_rows(named=True)
    ]
    return [bullets(lines) if lines else "The family is not classified.", *answer_parts(answers)]


def figures(run: Gathered) -> Iterator[Figure]:
    """Yield the tree of the models by each metric, and the features that carry the classifier."""
    if (tree := run.table("arch", "tree/1")) is not None:
        for (metric,), part in list(tree.group_by(["metric"], maintain_order=True))[:METRICS]:
            segments, leaves = tree_lines(part)
            chart = tree_chart(segments, leaves, f"Models by {metric}", "distance")
            caption = f"Models that are alike in where their score by {code(metric, cell=False)} lies are joined first."
            yield Figure(f"tree_{slug(str(metric))}", "tree", chart, part, f"Models as a tree, by {metric}", caption)
    if (features := run.table("arch", "features/1")) is not None:
        for (metric,), part in list(features.group_by(["metric"], maintain_order=True))[:METRICS]:
            yield _features(part, str(metric))


def _features(features: pl.DataFrame, metric: str) -> Figure:
    rows = features.head(FEATURES).select(
        pl.col("feature").alias("name"), pl.col("importance").alias("value"), "low", "high",
        pl.lit(None, pl.Float64).alias("weight"), pl.col("families").alias("note"),
    )  # fmt: skip
    chart = forest_chart(
        rows, no_pooled(), "importance", f"What tells the family by {metric}", ["bar: range of the folds"], zero=False
    )
    most = f"the largest {number(rows.height)} of {number(features.height)}"
    caption = f"Mean absolute coefficient over the models left out: {most}."
    return Figure(
        f"features_{slug(metric)}", "classifier", chart, features, f"Features of the classifier by {metric}", caption
    )


def no_pooled() -> pl.DataFrame:
    """Return the pooled rows of a forest plot that has none."""
    columns = dict.fromkeys(("value", "low", "high", "prediction_low", "prediction_high"), pl.Float64)
    return pl.DataFrame(schema={"name": pl.String, **columns})


def tree_lines(merges: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, float]]:
    """Return the lines of a tree, x, x2, y, y2, joined (the distance) and size, and the height of each leaf.

    ``merges``: rows of ``tree/1`` of one metric, where ``left`` and ``right`` name a model, or an earlier merge as ``merge 1``.
    """
    rows = {f"merge {row['merge']}": row for row in merges.iter_rows(named=True)}
    leaves: dict[str, float] = {}
    lines: list[dict[str, Any]] = []

    def place(name: str) -> tuple[float, float]:
        """Return the distance and the height of a node, its lines drawn."""
        if name not in rows:
            leaves[name] = float(len(leaves))
            return 0.0, leaves[name]
        row = rows.pop(name)
        told = {"joined": row["distance"], "size": row["size"]}
        (x_left, y_left), (x_right, y_right) = place(row["left"]), place(row["right"])
        for x, y in ((x_left, y_left), (x_right, y_right)):
            lines.append({"x": x, "x2": row["distance"], "y": y, "y2": y, **told})
        lines.append({"x": row["distance"], "x2": row["distance"], "y": y_left, "y2": y_right, **told})
        return row["distance"], (y_left + y_right) / 2

    while rows:  # one tree, or several where merges are missing
        place(next(reversed(rows)))
    schema = {**dict.fromkeys(("x", "x2", "y", "y2", "joined"), pl.Float64), "size": pl.Int64}
    return pl.DataFrame(lines, schema=schema), leaves
