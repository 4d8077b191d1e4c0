"""How far a metric's top weights agree between score seeds."""

from collections.abc import Iterator
from itertools import combinations

import polars as pl

from esa.artifact.gather import Gathered
from esa.scale.quantities.measured import Measured, Wanted


def seed_jaccard(run: Gathered, wanted: Wanted) -> Iterator[Measured]:
    """Yield the mean Jaccard index of the top K of two score seeds, for each metric and K.

    ``|A and B| / |A or B|`` by weight, the mean over all pairs of seeds: of ``overlap/1``, or of the ranking itself (the K of
    ``rank.k``) where the run has no overlap step. ``low``, ``high``: the least and the best agreeing pair. Two random lists
    of K of N weights share about ``K / 2 N``, nothing for a K that is small beside N. A metric of one seed has none.
    """
    found = _of_overlap(run) or _of_ranking(run)
    for (metric, k), values in sorted(found.items()):
        if wanted.metric(metric) and wanted.k(k):
            value = sum(values) / len(values)
            yield Measured("seed_jaccard", f"{metric}, top {k:,}", value, k=k, low=min(values), high=max(values))


def _of_overlap(run: Gathered) -> dict[tuple[str, int], list[float]]:
    """Return the indices of every two seeds of a metric, by metric and K, as the overlap step found them."""
    table = run.overlap
    if table is None:
        return {}
    rows = table.filter(
        (pl.col("by") == "weight") & (pl.col("run_a") == pl.col("run_b")) & (pl.col("metric_a") == pl.col("metric_b"))
        & (pl.col("seed_a") != pl.col("seed_b")) & pl.col("jaccard").is_not_null()
    )  # fmt: skip
    found: dict[tuple[str, int], list[float]] = {}
    for row in rows.iter_rows(named=True):
        found.setdefault((row["metric_a"], row["k"]), []).append(row["jaccard"])
    return found


def _of_ranking(run: Gathered) -> dict[tuple[str, int], list[float]]:
    """Return the same of the ranking's lists."""
    ranking = run.ranking
    if ranking is None:
        return {}
    lists: dict[str, dict[int, dict[tuple[str, str], int]]] = {}
    top = ranking.filter((pl.col("group") == "top_k") & pl.col("metric").is_not_null() & pl.col("seed").is_not_null())
    for metric, seed, rank, parameter, indices in top.select(
        "metric", "seed", "rank", "parameter", "indices"
    ).iter_rows():
        lists.setdefault(metric, {}).setdefault(seed, {})[parameter, indices] = rank
    found: dict[tuple[str, int], list[float]] = {}
    for metric, seeds in lists.items():
        for k in run.spec.rank.k:
            tops = [{weight for weight, rank in ranks.items() if rank <= k} for ranks in seeds.values()]
            pairs = [len(a & b) / len(a | b) for a, b in combinations(tops, 2)]
            if pairs:
                found[metric, k] = pairs
    return found
