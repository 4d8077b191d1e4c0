"""The data behind the figures and tables that set runs side by side: a column ``run`` with its label, else as for one run."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from esa.report.comparison import Comparison
from esa.report.frames import damage_points, score_distribution, shares, single_weights
from esa.report.tables import collapse, first_seed

_OVERLAPS = pl.Schema({
    "run_a": pl.String, "metric_a": pl.String, "run_b": pl.String, "metric_b": pl.String, "k": pl.Int64,
    "size_a": pl.Int64, "size_b": pl.Int64, "shared": pl.Int64, "jaccard": pl.Float64,
})  # fmt: skip


@dataclass(frozen=True)
class TopList:
    """The ``top_k`` of one run, metric and first seed: each member with its rank, and the group of runs it compares within."""

    run: str
    metric: str
    places: int
    mode: str
    ks: tuple[int, ...]
    members: dict[tuple[str, str], int]

    def top(self, k: int) -> set[tuple[str, str]]:
        """Return the members of rank k and less: unit and address."""
        return {member for member, rank in self.members.items() if rank <= k}


def top_lists(comparison: Comparison) -> list[TopList]:
    """Return the top weights of every run and metric, as its rank step lists them."""
    found = []
    for places, group in enumerate(comparison.places):
        for label, run in comparison.labelled(group):
            if run.ranking is None:
                continue
            rows = first_seed(run.ranking).filter((pl.col("group") == "top_k") & pl.col("metric").is_not_null())
            address = pl.col("parameter") + ":" + pl.coalesce("indices", pl.col("index").cast(pl.String))
            rows = rows.with_columns(address.alias("address"))
            for (metric, mode), part in rows.group_by(["metric", "mode"], maintain_order=True):
                members = {
                    (str(unit), where): rank
                    for unit, where, rank in part.select("unit_name", "address", "rank").iter_rows()
                }
                longest = max(members.values())
                ks = tuple(k for k in sorted(set(run.spec.rank.k)) if k <= longest)
                found.append(TopList(label, str(metric), places, str(mode), ks, members))
    order = {label: n for n, label in enumerate(comparison.labels)}
    return sorted(found, key=lambda one: order[one.run])


def top_overlaps(lists: Iterable[TopList]) -> pl.DataFrame:
    """Return the Jaccard index of every two lists, of one run or two, at each k that both have: shared over all members.

    Only lists of one mode, of runs whose addresses compare. In a mode other than global a member is a weight of a unit, and
    k counts within each.
    """
    rows = []
    for a, b in itertools.combinations(lists, 2):
        if a.places != b.places or a.mode != b.mode:
            continue
        for k in sorted(set(a.ks) & set(b.ks)):
            one, two = a.top(k), b.top(k)
            shared = len(one & two)
            rows.append((a.run, a.metric, b.run, b.metric, k, len(one), len(two), shared, shared / len(one | two)))
    return pl.DataFrame(rows, schema=_OVERLAPS, orient="row")


def same_metric(overlaps: pl.DataFrame) -> pl.DataFrame:
    """Return the overlaps of one metric's lists in two runs."""
    return overlaps.filter((pl.col("metric_a") == pl.col("metric_b")) & (pl.col("run_a") != pl.col("run_b")))


def overlap_matrix(overlaps: pl.DataFrame) -> pl.DataFrame:
    """Return :func:`top_overlaps` both ways round, at the largest k that lists of two runs share, by metric and run.

    Empty where no list of one run compares with one of another.
    """
    across = overlaps.filter(pl.col("run_a") != pl.col("run_b"))
    rows = overlaps.filter(pl.col("k") == across["k"].max()) if across.height else across
    sides = [
        rows.select(
            *(
                pl.col(f"{name}_{one}").alias(f"{name}_{end}")
                for one, end in zip(ends, "ab", strict=True)
                for name in ("run", "metric")
            ),
            "jaccard", "shared", "k",
        )
        for ends in ("ab", "ba")
    ]  # fmt: skip
    frame = pl.concat(sides)
    metrics, runs = (frame[f"{name}_a"].unique(maintain_order=True).to_list() for name in ("metric", "run"))
    order = [
        pl.col(f"{name}_{end}").replace_strict(values, list(range(len(values))), return_dtype=pl.Int64)
        for end in "ab"
        for name, values in (("metric", metrics), ("run", runs))
    ]
    return frame.sort(order, maintain_order=True)


def run_distributions(comparison: Comparison) -> pl.DataFrame:
    """Return :func:`esa.report.frames.score_distribution` of every run: run, metric, low, high, count."""
    return _stacked([
        (label, score_distribution(run.histogram)) for label, run in comparison.pairs if run.histogram is not None
    ])  # fmt: skip


def run_shares(comparison: Comparison, by: str) -> pl.DataFrame:
    """Return :func:`esa.report.frames.shares` of every run: run, metric, ``by``, score_share, weight_share."""
    return _stacked([(label, shares(run.tensors, by)) for label, run in comparison.pairs if run.tensors is not None])


def _stacked(parts: list[tuple[str, pl.DataFrame]]) -> pl.DataFrame:
    frames = [part.select(pl.lit(label).alias("run"), *part.columns) for label, part in parts]
    return pl.concat(frames) if frames else pl.DataFrame({"run": []}, schema={"run": pl.String})


def damage_by_run(comparison: Comparison) -> pl.DataFrame:
    """Return :func:`esa.report.tables.collapse` of every run's damage, with its label in front."""
    return _stacked([(label, collapse(run.damage)) for label, run in comparison.pairs if run.damage is not None])


def weights_by_run(comparison: Comparison) -> pl.DataFrame:
    """Return the single weights that each run perturbed alone, each with its rank in that run, 1 the most harmful.

    Columns: method, options, places (number of the group of runs whose addresses compare), run, rank, then those of
    :func:`esa.report.frames.single_weights`. A weight has one ``label`` in all runs of a group, and no two share one.
    """
    frames = []
    for places, group in enumerate(comparison.places):
        parts = []
        for label, run in comparison.labelled(group):
            if run.damage is None:
                continue
            for (method, options), part in run.damage.group_by(["method", "options"], maintain_order=True):
                rows = single_weights(part, run.ranking)
                if rows.height:
                    lead = [
                        pl.lit(value, dtype=pl.String).alias(name)
                        for name, value in (("method", method), ("options", options))
                    ]
                    lead += [
                        pl.lit(places).alias("places"),
                        pl.lit(label).alias("run"),
                        pl.int_range(1, rows.height + 1).alias("rank"),
                    ]
                    parts.append(rows.select(*lead, *rows.columns))
        if parts:
            frames.append(_one_label_each(pl.concat(parts)))
    return pl.concat(frames) if frames else pl.DataFrame()


def _one_label_each(rows: pl.DataFrame) -> pl.DataFrame:
    first = pl.col("label").first().over("target")
    rows = rows.with_columns(first.alias("label"))
    clash = pl.col("target").n_unique().over("label") > 1
    return rows.with_columns(pl.when(clash).then("target").otherwise("label").alias("label"))


def worst_of_all(weights: pl.DataFrame, most: int) -> list[str]:
    """Return the addresses of ``weights`` of one effect and group, by their best rank in any run, ``most`` at most."""
    best = weights.group_by("target", maintain_order=True).agg(
        pl.col("rank").min(), pl.col("rank").mean().alias("mean")
    )
    return best.sort("rank", "mean", maintain_order=True)["target"].head(most).to_list()


def points_by_run(comparison: Comparison) -> pl.DataFrame:
    """Return a point per case of weights perturbed together: run, method, options, then those of ``damage_points``."""
    frames = []
    for label, run in comparison.pairs:
        joint = run.damage.filter(pl.col("unit") == "joint") if run.damage is not None else pl.DataFrame()
        if joint.height:
            for (method, options), part in joint.group_by(["method", "options"], maintain_order=True):
                points = damage_points(part)
                lead = [
                    pl.lit(value, dtype=pl.String).alias(name)
                    for name, value in (("run", label), ("method", method), ("options", options))
                ]
                frames.append(points.select(*lead, *points.columns))
    return pl.concat(frames) if frames else pl.DataFrame()


def shared_metrics(frame: pl.DataFrame) -> list[str]:
    """Return the metrics that at least two runs have, in their order of appearance."""
    if frame.is_empty():
        return []
    counts = frame.group_by("metric", maintain_order=True).agg(pl.col("run").n_unique())
    return counts.filter(pl.col("run") > 1)["metric"].to_list()


def short_names(labels: list[str], most: int = 20) -> dict[str, str]:
    """Map each label to one of ``most`` characters at most that no other has: its middle left out, then a number before it."""
    found: dict[str, str] = {}
    for number, label in enumerate(labels, start=1):
        short = label if len(label) <= most else f"{label[: most // 2 - 1]}…{label[-most // 2 :]}"
        if short in found.values():
            short = f"{number} {short[: most - 2 - len(str(number))]}…"
        found[label] = short
    return found
