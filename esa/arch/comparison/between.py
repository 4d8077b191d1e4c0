"""Do the blocks of two models differ? Permutation tests of block features within strata of depth, with effect sizes."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from esa.arch.comparison.findings import Found, Options, Row, compared
from esa.arch.comparison.profiles import FEATURES, block_features
from esa.arch.comparison.scored import all_scored
from esa.arch.comparison.sources import Labelled
from esa.spec import generator
from esa.statistics.effects import cliffs_delta
from esa.statistics.permutation import monte_carlo_p

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
QUESTION = "between"
_MOST_STRATA = 5  # of the depth
_PER_STRATUM = 2  # blocks of the shallower model that a stratum should hold
_BLOCK = 2_000_000  # permuted labels held at once


class Compared(NamedTuple):
    """A difference of means within strata of depth, its interval, and its permutation p with the smallest there is."""

    difference: float
    low: float | None
    high: float | None
    p_value: float
    smallest_p: float
    num_strata: int


def compare(runs: Sequence[Labelled], options: Options) -> Found:
    """Test every two runs' blocks for a difference in every feature of :func:`profiles.block_features`, metric by metric.

    Rows of comparison/1, question ``between``, subject the feature: ``mean_difference`` (a minus b, see
    :func:`within_strata`) with p, and ``cliffs_delta`` of all blocks of a against all of b with its interval. Holm's
    adjustment runs over all features, pairs and metrics. A feature that blocks of either run lack is tested on the others.

    Exchangeable under the null are blocks of the two models at the same depth: labels move within a stratum of the relative
    depth, never across. Neighbouring blocks of one model are not independent draws, and a model is one training run: a small
    p says that these two sets of blocks differ, not that their families do.
    """
    rows: list[Row] = []
    for metric in options.metrics:
        subjects = all_scored(runs, metric, options)
        features = {one.label: block_features(one).drop_nulls("value") for one in subjects}
        for a, b in combinations(subjects, 2):
            for name in FEATURES:
                rows += _feature(name, metric, (a.label, features[a.label]), (b.label, features[b.label]), options)
    return Found({"comparison/1": rows}, adjust=frozenset({QUESTION}))


def _feature(
    name: str, metric: str, a: tuple[str, pl.DataFrame], b: tuple[str, pl.DataFrame], options: Options
) -> list[Row]:
    """Return the rows of a feature; none where both runs lack it."""
    (x, depth_x), (y, depth_y) = (
        (part["value"].to_numpy(), part["relative_depth"].to_numpy())
        for part in (frame.filter(pl.col("feature") == name) for _, frame in (a, b))
    )
    if not len(x) and not len(y):
        return []
    about = {"b": b[0], "num": len(x) + len(y)}
    if min(len(x), len(y)) < 2:
        why = f"{len(x)} and {len(y)} blocks have it; at least 2 of each are needed"
        return [compared(QUESTION, a[0], metric, name, "mean_difference", **about, why=why)]
    found = within_strata(x, depth_x, y, depth_y, options, f"{metric} {name} {a[0]} {b[0]}")
    effect = cliffs_delta(x, y, options.level)
    assert effect is not None
    strata = f"labels shuffled within {found.num_strata} strata of depth" if found.num_strata > 1 else "labels shuffled"
    return [
        compared(
            QUESTION, a[0], metric, name, "mean_difference", **about, value=found.difference, low=found.low,
            high=found.high, expected=0.0, null=strata, p_value=found.p_value, smallest_p=found.smallest_p,
        ),
        compared(
            QUESTION, a[0], metric, name, "cliffs_delta", **about, value=effect.value, low=effect.low, high=effect.high,
            expected=0.0,
        ),
    ]  # fmt: skip


def within_strata(x: Array, depth_x: Array, y: Array, depth_y: Array, options: Options, name: str) -> Compared:
    """Return the difference of two samples' means within strata of depth, with a permutation p.

    Strata: equal parts of the relative depth, 5 at most and as many as leave 2 blocks of the shallower model in each. With
    n_s and m_s blocks of the two in stratum s and their means, the statistic and its weights are ::

        D = sum_s w_s (mean x_s - mean y_s) / sum_s w_s,   w_s = n_s m_s / (n_s + m_s)

    p: two-sided, ``(1 + #{abs(D*) >= abs(D)}) / (1 + R)`` over R permutations of the labels within strata. smallest_p:
    1 / (1 + R), or 2 over the number of distinct labellings where that is larger (equal sizes: every one has a mirror image).
    Interval: percentile bootstrap of the blocks, within strata and models; None where a stratum holds one block of a model.
    A stratum without blocks of both is passed over.
    Shapes: x, depth_x ``(n,)``; y, depth_y ``(m,)``. Cost: R (n + m) numbers.
    Source: Good, Permutation, Parametric and Bootstrap Tests of Hypotheses, 2005, chapter 3 (blocked comparisons).
    """
    number = max(1, min(_MOST_STRATA, min(len(x), len(y)) // _PER_STRATUM))
    values, depth = np.concatenate([x, y]), np.concatenate([depth_x, depth_y])
    is_x = np.arange(len(values)) < len(x)
    strata = np.minimum((depth * number).astype(np.int64), number - 1)
    usable = [s for s in range(number) if 0 < int(is_x[strata == s].sum()) < int((strata == s).sum())]
    if not usable:  # depths that never meet: without strata
        strata, usable = np.zeros(len(values), dtype=np.int64), [0]
    members = [np.flatnonzero(strata == s) for s in usable]
    counts = [int(is_x[part].sum()) for part in members]
    observed = float(_statistic([values[part] for part in members], [is_x[part][None] for part in members])[0])
    draw = generator(options.seed, QUESTION, name)
    rows = max(1, _BLOCK // len(values))
    null: list[Array] = []
    for start in range(0, options.permutations, rows):
        here = min(rows, options.permutations - start)
        labels = [
            draw.permuted(np.broadcast_to(np.arange(len(part)) < count, (here, len(part))), axis=1)
            for part, count in zip(members, counts, strict=True)
        ]
        null.append(_statistic([values[part] for part in members], labels))
    labellings = math.prod(math.comb(len(part), count) for part, count in zip(members, counts, strict=True))
    mirrored = 2 if all(2 * count == len(part) for part, count in zip(members, counts, strict=True)) else 1
    p = monte_carlo_p(abs(observed), np.abs(np.concatenate(null)))
    low, high = _interval([values[part] for part in members], counts, [is_x[part] for part in members], draw, options)
    return Compared(observed, low, high, p, max(1 / (1 + options.permutations), mirrored / labellings), len(usable))


def _statistic(values: Sequence[Array], labels: Sequence[npt.NDArray[np.bool_]]) -> Array:
    """Return D of every labelling ``(R, n_s)`` of each stratum's values ``(n_s,)``."""
    total, weights = np.zeros(len(labels[0])), 0.0
    for part, first in zip(values, labels, strict=True):
        n = int(first[0].sum())
        m = len(part) - n
        sums = first @ part
        total = total + n * m / (n + m) * (sums / n - (part.sum() - sums) / m)
        weights += n * m / (n + m)
    found: Array = total / weights
    return found


def _interval(
    values: Sequence[Array], counts: Sequence[int], labels: Sequence[npt.NDArray[np.bool_]], draw: np.random.Generator,
    options: Options,
) -> tuple[float | None, float | None]:  # fmt: skip
    """Return the percentile interval of D over resamples of the blocks within strata and models."""
    if any(min(count, len(part) - count) < 2 for part, count in zip(values, counts, strict=True)):
        return None, None
    total, weights = np.zeros(options.resamples), 0.0
    for part, count, first in zip(values, counts, labels, strict=True):
        other = len(part) - count
        means = [
            sample[draw.integers(0, len(sample), (options.resamples, len(sample)))].mean(axis=1)
            for sample in (part[first], part[~first])
        ]
        total = total + count * other / (count + other) * (means[0] - means[1])
        weights += count * other / (count + other)
    low, high = np.quantile(total / weights, [(1 - options.level) / 2, (1 + options.level) / 2])
    return float(low), float(high)
