"""Do the blocks of two models differ? Permutation tests of block features within strata of depth, with effect sizes."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from esa.arch.comparison.findings import Found, Options, Row, compared
from esa.arch.comparison.over_blocks import student
from esa.arch.comparison.profiles import FEATURES, block_features
from esa.arch.comparison.scored import all_scored
from esa.arch.comparison.sources import Labelled
from esa.spec import generator
from esa.statistics.effects import cliffs_delta
from esa.statistics.permutation import monte_carlo_p, smallest_monte_carlo_p

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
QUESTION = "between"
_MOST_STRATA = 5  # of the depth
_PER_STRATUM = 2  # blocks of the shallower model that a stratum should hold
_BLOCK = 2_000_000  # permuted labels held at once
_TIE = 1e-12  # relative: a sum in another order must not decide


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

    p: two-sided. Where there are at most R distinct labellings within strata all are counted, ``#{abs(D*) >= abs(D)} / number``,
    the observed one among them; else ``(1 + #{abs(D*) >= abs(D)}) / (1 + R)`` over R random ones. smallest_p: the share of
    labellings as extreme as the most extreme one, or 1 / (1 + R).
    Interval: Student's t, the variance ``sum_s w_s^2 (s_x^2 / n_s + s_y^2 / m_s) / (sum_s w_s)^2`` of the blocks within strata
    and models, Satterthwaite's degrees of freedom; None where a stratum holds one block of a model.
    A stratum without blocks of both is passed over.
    Shapes: x, depth_x ``(n,)``; y, depth_y ``(m,)``. Cost: R (n + m) numbers.
    Source: Good, Permutation, Parametric and Bootstrap Tests of Hypotheses, 2005, chapter 3 (blocked comparisons); Satterthwaite,
    "An approximate distribution of estimates of variance components", Biometrics Bulletin 2, 1946.
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
    parts = [values[part] for part in members]
    labellings = math.prod(math.comb(len(part), count) for part, count in zip(members, counts, strict=True))
    if labellings <= options.permutations:
        null = np.abs(
            _statistic(parts, _every([(len(part), count) for part, count in zip(parts, counts, strict=True)]))
        )
        slack = _TIE * float(null.max())
        p = float((null >= abs(observed) - slack).mean())
        smallest = float((null >= null.max() - slack).mean())
    else:
        p = monte_carlo_p(abs(observed), np.abs(_permuted(parts, counts, options.permutations, draw)))
        smallest = smallest_monte_carlo_p(options.permutations)
    low, high = _interval(observed, parts, [is_x[part] for part in members], options.level)
    return Compared(observed, low, high, p, smallest, len(usable))


def _every(strata: Sequence[tuple[int, int]]) -> list[npt.NDArray[np.bool_]]:
    """Return all labellings of strata of ``n`` blocks with ``count`` x's, an array ``(labellings, n)`` for each stratum."""
    each = []
    for size, count in strata:
        chosen = list(combinations(range(size), count))
        labels = np.zeros((len(chosen), size), dtype=bool)
        labels[np.arange(len(chosen))[:, None], np.array(chosen)] = True
        each.append(labels)
    picks = np.indices([len(labels) for labels in each]).reshape(len(each), -1)
    return [labels[pick] for labels, pick in zip(each, picks, strict=True)]


def _permuted(parts: Sequence[Array], counts: Sequence[int], permutations: int, draw: np.random.Generator) -> Array:
    """Return D of random labellings within strata ``(permutations,)``, ``_BLOCK`` labels at once."""
    rows = max(1, _BLOCK // sum(len(part) for part in parts))
    null: list[Array] = []
    for start in range(0, permutations, rows):
        here = min(rows, permutations - start)
        labels = [
            draw.permuted(np.broadcast_to(np.arange(len(part)) < count, (here, len(part))), axis=1)
            for part, count in zip(parts, counts, strict=True)
        ]
        null.append(_statistic(parts, labels))
    return np.concatenate(null)


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
    difference: float, values: Sequence[Array], labels: Sequence[npt.NDArray[np.bool_]], level: float
) -> tuple[float | None, float | None]:
    """Return the interval of D from the spread of the blocks within strata and models."""
    samples = [(part[first], part[~first]) for part, first in zip(values, labels, strict=True)]
    if any(len(sample) < 2 for pair in samples for sample in pair):
        return None, None
    weights = [len(x) * len(y) / (len(x) + len(y)) for x, y in samples]
    parts = [
        ((weight / sum(weights)) ** 2 * float(sample.var(ddof=1)) / len(sample), len(sample) - 1)
        for weight, pair in zip(weights, samples, strict=True)
        for sample in pair
    ]
    variance = sum(part for part, _ in parts)
    if not variance > 0:
        return difference, difference
    half = student(variance**2 / sum(part**2 / freedom for part, freedom in parts), level) * math.sqrt(variance)
    return difference - half, difference + half
