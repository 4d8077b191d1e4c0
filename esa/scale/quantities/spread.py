"""How unevenly a metric's scores are spread over a model's weights, from the histogram of all of them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from esa.artifact.gather import Gathered
from esa.scale.quantities.measured import Measured, Wanted

TOP = 0.01  # the share of weights whose scores make the tail

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """The scores of one metric and seed, over the whole model: bins by falling score, their counts, the exact sum.

    ``means``: of the scores in a bin, as if they lay evenly in the logarithm: ``(high - low) / ln(high / low)``.
    """

    metric: str
    seed: int | None
    low: Array
    high: Array
    count: npt.NDArray[np.int64]
    total: float | None

    @property
    def means(self) -> Array:
        """Return the mean score within each bin, 0 of the bin of zeros."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (self.high - self.low) / np.log(self.high / self.low)
        return np.where(self.low > 0, found, 0.0)

    def first(self, number: float) -> Array:
        """Return how many weights of each bin are among the ``number`` highest ones; the last of those bins in part."""
        before = np.cumsum(self.count) - self.count
        return np.clip(number - before, 0, self.count)


def histograms(run: Gathered, wanted: Wanted) -> Iterator[Scores]:
    """Yield the scores of each metric and seed that are asked for; nothing where there is no score step."""
    histogram, tensors = run.histogram, run.tensors
    if histogram is None:
        return
    found = histogram.group_by("metric", "seed", "bin_low", "bin_high").agg(pl.col("count").sum())
    for (metric, seed), part in found.sort("metric", "seed", "bin_low").partition_by(
        "metric", "seed", as_dict=True, maintain_order=True
    ).items():  # fmt: skip
        if not wanted.metric(str(metric)):
            continue
        falling = part.reverse()
        total = None
        if tensors is not None:
            of = tensors.filter(
                (pl.col("metric") == metric) & pl.col("seed").eq_missing(seed) & pl.col("expert").is_null()
            )
            total = float(of["sum"].sum()) if of.height and not of["sum"].null_count() else None
        yield Scores(
            str(metric),
            seed,
            falling["bin_low"].to_numpy(),
            falling["bin_high"].to_numpy(),
            falling["count"].to_numpy(),
            total,
        )


def half_share(run: Gathered, wanted: Wanted) -> Iterator[Measured]:
    """Yield the smallest share of the weights that hold half of the total score.

    ``n / N``: n the fewest weights, highest first, with ``sum of their scores >= total / 2``. Of ``histogram/1`` (64 bins a
    decade), the scores of a bin taken at the bin's mean and the sum of all bins scaled to the exact total of ``tensors/1``.
    ``low``, ``high``: bounds that hold whatever the scores within the bins are (all at their upper, all at their lower
    edge, the total exact); they lie some 4 % apart. Of 0 to 0.5: 0.5 where all weights count the same.
    """
    for one in histograms(run, wanted):
        number = float(one.count.sum())
        sums = one.count * one.means
        if not sums.sum() > 0:
            yield Measured("half_share", one.metric, None, one.seed, excluded="every score is zero")
            continue
        total = one.total if one.total is not None else float(sums.sum())
        scaled = one.means * (total / float(sums.sum()))
        value, low, high = (_half(one, scores, total) / number for scores in (scaled, one.high, one.low))
        yield Measured("half_share", one.metric, value, one.seed, low=low, high=min(high, 1.0))


def _half(one: Scores, scores: Array, total: float) -> float:
    """Return how many weights hold half of the total, the bins' scores being these."""
    reached = np.cumsum(one.count * scores)
    place = int(np.searchsorted(reached, total / 2))
    if place == len(reached):
        return float(one.count.sum())
    before = float(reached[place - 1]) if place else 0.0
    return float(one.count[:place].sum()) + (total / 2 - before) / float(scores[place])


def top_to_median(run: Gathered, wanted: Wanted) -> Iterator[Measured]:
    """Yield the mean score of the top 1 % of the weights over the median score.

    ``mean of the N / 100 highest scores / median``, of ``histogram/1``, each score at its bin's mean: within 4 % of the
    exact one. Without a value where the median is zero, as where most of an embedding was never read.
    """
    for one in histograms(run, wanted):
        number = int(one.count.sum())
        median = float(one.means[np.searchsorted(np.cumsum(one.count), number / 2)])
        if median == 0:
            why = f"the median score is zero: {int(one.count[-1]):,} of {number:,} scores are"
            yield Measured("top_to_median", one.metric, None, one.seed, excluded=why)
            continue
        top = one.first(TOP * number)
        yield Measured("top_to_median", one.metric, float(top @ one.means / top.sum()) / median, one.seed)


def tail_index(run: Gathered, wanted: Wanted) -> Iterator[Measured]:
    """Yield the tail index of the scores: the exponent ``alpha`` of ``P(score > s) ~ s^-alpha`` in the top 1 % (Hill).

    The smaller, the heavier the tail: under 2 the scores have no finite variance, under 1 no mean. See
    ``esa.statistics.tail_index.hill_tail_index``.
    """
    from esa.statistics.tail_index import hill_tail_index

    for one in histograms(run, wanted):
        value = hill_tail_index(one.low, one.high, one.count, TOP)
        why = "too few scores above zero for a tail" if value is None else None
        yield Measured("tail_index", f"{one.metric}, top 1 %", value, one.seed, excluded=why)
