"""How sure it is that a weight belongs to the top K: across seeds, and when the seeds are drawn again."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from esa.artifact import Table, make_table
from esa.overlap.seed_scores import Group, SeedScores, seed_scores
from esa.spec import generator

RESAMPLES = 999
_CHUNK = 64  # resamples sorted at once
_TAIL = 2.5  # percent on either side of an interval


def confidence(groups: Sequence[Group], ks: Sequence[int], *, seed: int = 0, run: str | None = None) -> Table:
    """Return ``confidence/1``: per metric with several seeds and K, every weight that makes the top K at least once.

    ``seed_share``: the share of the seeds whose list has the weight in its first K (of its unit, where the mode has several).
    ``resample_share``: the same over 999 bootstrap resamples: as many seeds drawn with replacement, each weight's mean score
    over them ranked again. ``mean_rank`` and the 95 % percentile interval ``low``, ``high`` are of its rank in those.
    A seed that does not list a weight counts with the smallest score that it lists in the unit: ranks beyond the lists' length
    are bounds. Resamples draw seeds, not texts: with n seeds there are few different ones, and what all seeds have in
    common (the text, its length) is not varied.
    Rows: by metric as given, k, unit, then the most certain first. Draws: ``generator(seed, "confidence", mode, metric)``.
    Cost: 999 sorts of the weights that any seed lists. Source: Efron, Bootstrap methods: another look at the jackknife,
    Annals of Statistics 7, 1979; for ranks Hall and Miller, Using the bootstrap to quantify the authority of an
    empirical ranking, Annals of Statistics 37, 2009.
    """
    frames = []
    for group in groups:
        if len(group.lists) < 2:
            continue
        matrix = seed_scores(group)
        draws = _resamples(len(group.lists), generator(seed, "confidence", group.mode, group.metric))
        found = resampled(matrix, draws, ks)
        for number, k in enumerate(sorted(ks)):
            share = (matrix.place < k).mean(axis=0)
            frame = matrix.frame.select("unit_name", "parameter", "index", "indices").with_columns(
                pl.lit(group.metric).alias("metric"),
                pl.lit(group.mode).alias("mode"),
                pl.lit(k, pl.Int64).alias("k"),
                pl.lit(len(group.lists), pl.Int64).alias("num_seeds"),
                pl.Series("seed_share", share),
                pl.Series("resample_share", found.shares[number]),
                pl.Series("mean_rank", found.mean),
                pl.Series("low", found.low),
                pl.Series("high", found.high),
                pl.Series("unit", matrix.unit),
            )
            once = frame.filter((pl.col("seed_share") > 0) | (pl.col("resample_share") > 0))
            certain = ["resample_share", "seed_share"]
            frames.append(
                once.sort("unit", *certain, "mean_rank", descending=[False, True, True, False], maintain_order=True)
            )
    rows: Any = pl.concat(frames).with_columns(pl.lit(run, pl.String).alias("run")) if frames else []
    return make_table("confidence/1", rows)


class Resampled:
    """What the resamples give: ``shares`` ``(num_ks, num_weights)``; mean, low and high rank, each ``(num_weights,)``."""

    def __init__(self, num_ks: int, num_weights: int) -> None:
        self.shares = np.empty((num_ks, num_weights))
        self.mean, self.low, self.high = (np.empty(num_weights) for _ in range(3))


def resampled(matrix: SeedScores, draws: NDArray[np.float64], ks: Sequence[int]) -> Resampled:
    """Return how often each weight makes the first k of its unit, and its ranks, over resamples of the seeds.

    ``draws`` ``(num_resamples, num_seeds)``: how often each seed was drawn. Memory: the ranks of one unit in all resamples,
    4 bytes each.
    """
    found = Resampled(len(ks), matrix.unit.size)
    edges = np.searchsorted(matrix.unit, np.arange(matrix.unit.max() + 2))
    for start, stop in itertools.pairwise(edges):
        ranks = np.empty((len(draws), stop - start), dtype=np.int32)
        for first in range(0, len(draws), _CHUNK):
            some = draws[first : first + _CHUNK]
            order = np.argsort(-(some @ matrix.scores[:, start:stop]), axis=1, kind="stable")
            places = np.arange(1, stop - start + 1, dtype=np.int32)[None, :]
            np.put_along_axis(ranks[first : first + _CHUNK], order, places, axis=1)
        for number, k in enumerate(sorted(ks)):
            found.shares[number, start:stop] = (ranks <= k).mean(axis=0)
        found.mean[start:stop] = ranks.mean(axis=0)
        found.low[start:stop], found.high[start:stop] = np.percentile(
            ranks, [_TAIL, 100 - _TAIL], axis=0, method="inverted_cdf", overwrite_input=True
        )
    return found


def _resamples(num_seeds: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.multinomial(num_seeds, [1 / num_seeds] * num_seeds, size=RESAMPLES).astype(np.float64)
