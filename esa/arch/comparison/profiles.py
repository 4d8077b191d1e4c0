"""Do the blocks of models fall into kinds? Features of every block, k-means and HDBSCAN over the blocks of all runs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from esa.arch.comparison.findings import Found, Options, Row, compared
from esa.arch.comparison.kmeans import kmeans, silhouette
from esa.arch.comparison.roles import ATTENTION, MLP, with_role
from esa.arch.comparison.scored import Scored, all_scored
from esa.arch.comparison.sources import Labelled
from esa.spec import generator
from esa.spec.seeds import derive_seed
from esa.statistics.permutation import monte_carlo_p, smallest_monte_carlo_p

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
QUESTION = "profiles"
FEATURES = (
    "log_density_attention", "log_density_mlp", "log_top_to_median", "log_peak_ratio", "share_of_top",
)  # fmt: skip
NUM_CLUSTERS = range(2, 7)
_STARTS = 5  # of k-means, the best kept
_FEWEST = 8  # blocks: under so many two clusters are found in anything
_MOST_REFITS = 499  # permutations that refit all k-means: after Holm over nine tests .002 is still .018
_PART = 3  # of the depth: thirds


def block_features(one: Scored) -> pl.DataFrame:
    """Return the features of every block: columns block, relative_depth, feature, value; a feature unknown in a block is null.

    - ``log_density_attention``, ``log_density_mlp``: ln of (share of the model's score over share of its scored weights) of the
      block's attention or MLP (experts belong to it); null where it has no score.
    - ``log_top_to_median``: ln of (where the block's top 1 % begins over its median), from histogram/1, at the geometric
      middle of the bins; null where half of the scores are zero.
    - ``log_peak_ratio``: ln of the largest peak_ratio of the block's tensors; of metrics that record it.
    - ``share_of_top``: share of the model's top K that lies in the block; null without a list.
    Shapes: ``num_blocks * len(FEATURES)`` rows, by block, then in the order of ``FEATURES``.
    """
    tensors = with_role(one.tensors)
    score, numel = float(tensors["sum"].sum()), int(tensors["numel"].sum())
    rows: list[Row] = []
    for block in range(one.num_blocks):
        here = tensors.filter(pl.col("block") == block)
        peaks = here["peak_ratio"].drop_nulls()
        values = {
            "log_density_attention": _log_density(here.filter(pl.col("role").is_in(ATTENTION)), score, numel),
            "log_density_mlp": _log_density(here.filter(pl.col("role").is_in(MLP)), score, numel),
            "log_top_to_median": _log_top_to_median(one.histogram, here["parameter"].to_list()),
            "log_peak_ratio": _log(float(peaks.max())) if len(peaks) else None,  # type: ignore[arg-type]
            "share_of_top": None if one.top is None else float((one.top["block"] == block).sum()) / one.top.height,
        }
        depth = (block + 0.5) / one.num_blocks
        rows += [{"block": block, "relative_depth": depth, "feature": name, "value": values[name]} for name in FEATURES]
    schema = {"block": pl.Int64, "relative_depth": pl.Float64, "feature": pl.String, "value": pl.Float64}
    return pl.DataFrame(rows, schema=schema)


def _log(value: float) -> float | None:
    return math.log(value) if value > 0 else None


def _log_density(part: pl.DataFrame, score: float, numel: int) -> float | None:
    """Return ln of (share of score over share of weights) of some tensors, None where they have no score."""
    weights = int(part["numel"].sum())
    return _log(float(part["sum"].sum()) / score * numel / weights) if weights and score > 0 else None


def _log_top_to_median(histogram: pl.DataFrame | None, parameters: Sequence[str]) -> float | None:
    """Return ln of the 99th percentile over the median of the scores of some tensors, all together."""
    if histogram is None:
        return None
    bins = histogram.filter(pl.col("parameter").is_in(list(parameters)))
    bins = bins.group_by("bin_low", "bin_high").agg(pl.col("count").sum()).sort("bin_low", "bin_high")
    if bins.is_empty():
        return None
    upto, total = bins["count"].cum_sum(), int(bins["count"].sum())
    median, top = (
        math.sqrt(float(bins["bin_low"][place]) * float(bins["bin_high"][place]))
        for place in (int((upto < share * total).sum()) for share in (0.5, 0.99))
    )
    return math.log(top / median) if median > 0 else None


def compare(runs: Sequence[Labelled], options: Options) -> Found:
    """Cluster the blocks of all runs by their features, metric by metric: ``profiles/1`` and rows of ``comparison/1``.

    Features are standardised over all blocks; one that some block lacks, or that has no spread, is left out of the clustering
    and named. k-means (k-means++, the best of 5 starts) for 2 to 6 clusters, the number by the largest mean silhouette s =
    (b - a) / max(a, b); HDBSCAN with at least 5 blocks (a tenth of all, where that is more) per cluster, noise -1.

    comparison/1, question ``profiles``, a = all runs: ``silhouette`` against features shuffled over the blocks each by itself,
    which keeps their values and takes away that they go together, the number of clusters chosen anew each time (at most 499
    times); ``num_clusters`` of both; ``noise_share`` of HDBSCAN; ``adjusted_rand``, agreement of the
    k-means clusters with the run that a block is of (where there are several) and with the third of the depth that it lies
    in, against shuffled labels (neighbours are alike: any profile that is
    smooth over the depth agrees with its thirds). Under 8 blocks refused.
    Cost: 2,500 k-means of a few hundred blocks, seconds per metric.
    Source: Rousseeuw, "Silhouettes", J. Comput. Appl. Math. 20, 1987; Hubert and Arabie, "Comparing partitions", J. Classif.
    2, 1985; Campello, Moulavi and Sander, "Density-based clustering based on hierarchical density estimates", PAKDD 2013.
    """
    tables: dict[str, list[Row]] = {"profiles/1": [], "comparison/1": []}
    for metric in options.metrics:
        subjects = all_scored(runs, metric, options)
        if not subjects:
            continue
        profiles, rows = cluster_blocks(subjects, options)
        tables["profiles/1"] += profiles
        tables["comparison/1"] += rows
    return Found(tables, adjust=frozenset({QUESTION}))


def cluster_blocks(subjects: Sequence[Scored], options: Options) -> tuple[list[Row], list[Row]]:
    """Return the rows of profiles/1 and of comparison/1 for the runs' scores by one metric."""
    from sklearn.cluster import HDBSCAN

    metric = subjects[0].metric
    frame = pl.concat([block_features(one).with_columns(pl.lit(one.label).alias("label")) for one in subjects])
    blocks = frame.select("label", "block", "relative_depth").unique(maintain_order=True)
    points, used, left_out = standardised(frame)
    about = "all runs"
    if len(points) < _FEWEST or len(used) < 2:
        why = (
            f"{len(points)} blocks with {len(used)} features that all of them have; at least {_FEWEST} and 2 are needed"
        )
        return _labelled(frame, metric, blocks, None, None), [
            compared(QUESTION, about, metric, None, "silhouette", why=why)
        ]
    seed = derive_seed(options.seed, QUESTION, metric) % 2**32
    clusters, height = best_kmeans(points, seed)
    dense = HDBSCAN(min_cluster_size=max(5, len(points) // 10), copy=True).fit_predict(points).astype(np.int64)
    draw = generator(options.seed, QUESTION, metric, "shuffled")
    times = min(_MOST_REFITS, options.permutations)
    null = [best_kmeans(draw.permuted(points, axis=0), seed)[1] for _ in range(times)]
    why = f"features: {', '.join(used)}"
    if left_out:
        why += f"; left out, as not all blocks have them or none differ: {', '.join(left_out)}"
    rows = [
        compared(
            QUESTION, about, metric, "k-means", "silhouette", value=height, expected=float(np.mean(null)),
            null="features shuffled over blocks", p_value=monte_carlo_p(height, null),
            smallest_p=smallest_monte_carlo_p(times), num=len(points), why=why,
        ),
        compared(QUESTION, about, metric, "k-means", "num_clusters", value=len(set(clusters.tolist())), num=len(points)),
        compared(
            QUESTION, about, metric, "HDBSCAN", "num_clusters", value=len(set(dense.tolist()) - {-1}), num=len(points)
        ),
        compared(QUESTION, about, metric, "HDBSCAN", "noise_share", value=float((dense == -1).mean()), num=len(points)),
    ]  # fmt: skip
    thirds = np.minimum((blocks["relative_depth"].to_numpy() * _PART).astype(np.int64), _PART - 1)
    labels = blocks["label"].rank("dense").to_numpy().astype(np.int64)
    against = [("k-means clusters and thirds of the depth", thirds)]
    if len(subjects) > 1:
        against.insert(0, ("k-means clusters and runs", labels))
    for subject, other in against:
        rows.append(_agreement(subject, clusters, other, metric, about, options))
    return _labelled(frame, metric, blocks, clusters, dense), rows


def standardised(frame: pl.DataFrame) -> tuple[Array, list[str], list[str]]:
    """Return the blocks as standardised points ``(blocks, features)``, the features that are used, and those left out."""
    columns, used, left_out = [], [], []
    for name in FEATURES:
        values = frame.filter(pl.col("feature") == name)["value"]
        spread = 0.0 if values.null_count() else float(values.to_numpy().std())
        if spread > 1e-12 * float(values.abs().max() or 0.0):  # type: ignore[arg-type]
            columns.append((values.to_numpy() - values.to_numpy().mean()) / spread)
            used.append(name)
        else:
            left_out.append(name)
    num = frame.filter(pl.col("feature") == FEATURES[0]).height
    return (np.column_stack(columns) if columns else np.empty((num, 0))), used, left_out


def best_kmeans(points: Array, seed: int) -> tuple[Ints, float]:
    """Return the labels and the mean silhouette of the k-means whose silhouette is largest, 2 to 6 clusters."""
    draw = np.random.default_rng(seed)
    apart = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=-1))
    best: tuple[Ints, float] | None = None
    distinct = len(np.unique(points, axis=0))
    for number in NUM_CLUSTERS:
        if number >= min(len(points), distinct + 1):
            break
        labels = kmeans(points, number, _STARTS, draw)
        value = silhouette(apart, labels)
        if best is None or value > best[1]:
            best = labels, value
    assert best is not None, "two features with spread make two distinct blocks"
    return best


def _agreement(subject: str, one: Ints, other: Ints, metric: str, about: str, options: Options) -> Row:
    """Return the row of the adjusted Rand index of two labellings of the blocks, against shuffled labels."""
    from sklearn.metrics import adjusted_rand_score

    if len(set(other.tolist())) < 2:
        return compared(QUESTION, about, metric, subject, "adjusted_rand", why="all blocks have one label")
    draw = generator(options.seed, QUESTION, metric, subject)
    value = float(adjusted_rand_score(one, other))
    times = min(options.permutations, 999)
    null = [float(adjusted_rand_score(one, draw.permutation(other))) for _ in range(times)]
    return compared(
        QUESTION, about, metric, subject, "adjusted_rand", value=value, expected=0.0, null="labels shuffled over blocks",
        p_value=monte_carlo_p(value, null), smallest_p=smallest_monte_carlo_p(times), num=len(one),
    )  # fmt: skip


def _labelled(
    frame: pl.DataFrame, metric: str, blocks: pl.DataFrame, kmeans: Ints | None, dense: Ints | None
) -> list[Row]:
    """Return the rows of profiles/1: every feature of every block with the block's clusters."""
    clusters: dict[str, Any] = {"kmeans": kmeans, "hdbscan": dense}
    marks = blocks.with_columns(
        pl.Series(name, values, dtype=pl.Int64) if values is not None else pl.lit(None, pl.Int64).alias(name)
        for name, values in clusters.items()
    )
    joined = frame.join(marks.drop("relative_depth"), on=["label", "block"], how="left", maintain_order="left")
    return joined.with_columns(pl.lit(metric).alias("metric")).to_dicts()
