"""How agreement grows: with K, with the number of calibration windows, and with the number of seeds averaged."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esa.overlap import agreement
from esa.overlap.chance import Universe, expected_jaccard, shared_anatomy
from esa.overlap.compare import list_sizes, refuse_other_shapes
from esa.overlap.lists import RankedList
from esa.overlap.members import common_mode, encode
from esa.overlap.seed_scores import Group, seed_scores
from esa.spec import generator

CURVES = ("k", "windows", "seeds")
LEVEL = 0.95  # of intervals
Pair = tuple[int, int]
Row = dict[str, Any]


@dataclass(frozen=True)
class Chance:
    """What corrects for chance: the number of weights where the lists do not say it, and the seed of permutations."""

    universe: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Agreement:
    """Jaccard indices of pairs of lists, ``(num_pairs,)``, and what chance gives them; None where that is not known."""

    jaccard: NDArray[np.float64]
    expected: NDArray[np.float64] | None

    @property
    def corrected(self) -> NDArray[np.float64] | None:
        """Return ``(J - E) / (1 - E)``: 1 for equal lists, 0 on average for unrelated ones.

        None where E is not known, or is 1 because the lists hold every weight there is.
        Source: the correction of Hubert and Arabie, Comparing partitions, Journal of Classification 2, 1985.
        """
        if self.expected is None or bool((self.expected >= 1).any()):
            return None
        found: NDArray[np.float64] = (self.jaccard - self.expected) / (1 - self.expected)
        return found


def agreements(
    lists: Sequence[RankedList], pairs: Sequence[Pair], by: str, ks: Sequence[int], chance: Chance
) -> dict[int, Agreement]:
    """Return the agreement of pairs of lists (by number) at each k, by one kind of member (see ``compare``)."""
    mode = common_mode(lists)
    members = encode(lists, by, mode)
    universes = []
    for i, j in pairs:
        refuse_other_shapes(lists[i], lists[j])
        aggregate = lists[i].aggregate or lists[j].aggregate
        universes.append(
            Universe(mode, None) if aggregate else Universe(mode, shared_anatomy(lists[i], lists[j]), chance.universe)
        )
    found = {}
    for k in ks:
        sets = [np.unique(one.code[one.position < k]) for one in members]
        jaccards, expected = [], []
        for (i, j), universe in zip(pairs, universes, strict=True):
            shared = len(np.intersect1d(sets[i], sets[j], assume_unique=True))
            jaccards.append(agreement.jaccard(shared, len(sets[i]), len(sets[j])))
            expected.append(expected_jaccard(by, (members[i].quotas(k), members[j].quotas(k)), universe, chance.seed))
        known = None if any(one is None for one in expected) else np.asarray(expected, dtype=np.float64)
        found[k] = Agreement(np.asarray(jaccards), known)
    return found


def log_grid(largest: int) -> tuple[int, ...]:
    """Return 1, 2, 5, 10, 20, 50, ... up to ``largest``, which ends it."""
    steps = (step * 10**decade for decade in range(len(str(largest))) for step in (1, 2, 5))
    return (*(one for one in steps if one < largest), largest)


def jackknife(values: NDArray[np.float64], pairs: Sequence[Pair]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean over pairs of seeds, from leaving out each seed with all its pairs.

    ``mean +- t sqrt((n - 1)/n sum_i (mean_(i) - mean of them)^2)`` with n seeds and t of n - 1 degrees of freedom, at most
    1. None under 3 seeds, where a seed is in every pair, or where all agree alike, which is no certainty. Pairs share seeds,
    so that a spread over pairs is too narrow.
    Source: Arvesen, Jackknifing U-statistics, Annals of Mathematical Statistics 40, 1969.
    """
    from scipy import stats

    seeds = sorted({seed for pair in pairs for seed in pair})
    rest = [np.asarray([seed not in pair for pair in pairs]) for seed in seeds]
    if len(seeds) < 3 or not all(one.any() for one in rest):
        return None
    without = np.asarray([values[one].mean() for one in rest])
    if np.ptp(without) == 0:
        return None
    error = math.sqrt((len(seeds) - 1) / len(seeds) * float(((without - without.mean()) ** 2).sum()))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(seeds) - 1)) * error
    return float(values.mean()) - reach, min(1.0, float(values.mean()) + reach)


def curve_k(group: Group, by: str, ks: Sequence[int] | None, chance: Chance) -> list[Row]:
    """Return the agreement between seeds at every K of a logarithmic grid, or of ``ks``, up to the lists' length."""
    largest = min(list_sizes(group.lists))
    grid = log_grid(largest) if ks is None else tuple(sorted(ks))
    pairs, seeds = _seed_pairs(group)
    found = agreements(group.lists, pairs, by, grid, chance)
    return [_row("k", group, by, k, k, "between_seeds", found[k], seeds) for k in grid]


def curve_windows(runs: Mapping[int, Group], by: str, ks: Sequence[int], chance: Chance) -> list[Row]:
    """Return the agreement at each number of windows: between the seeds of a run, and with the run of most windows.

    ``runs``: by number of windows, one metric and mode. ``with_longest`` pairs different seeds where there are any, since
    one seed may draw the same windows in both runs.
    """
    rows, longest = [], runs[max(runs)]
    for number, group in sorted(runs.items()):
        pairs, seeds = _seed_pairs(group)
        if pairs:
            found = agreements(group.lists, pairs, by, ks, chance)
            rows += [_row("windows", group, by, k, number, "between_seeds", found[k], seeds) for k in ks]
        if group is longest:
            continue
        both, offset = (*group.lists, *longest.lists), len(group.lists)
        every = list(itertools.product(range(offset), range(offset, len(both))))
        apart = [(i, j) for i, j in every if both[i].seed != both[j].seed] or every
        found = agreements(both, apart, by, ks, chance)
        seeds = [(both[i].seed or 0, both[j].seed or 0) for i, j in apart]
        rows += [_row("windows", group, by, k, number, "with_longest", found[k], seeds) for k in ks]
    return rows


def curve_seeds(group: Group, by: str, ks: Sequence[int], splits: int, chance: Chance) -> list[Row]:
    """Return the agreement of lists that average m seeds each, over random disjoint halves of m seeds, m = 1, 2, ...

    A half's list has the first k weights of each unit by the mean score over its seeds; what a seed does not list counts
    as the smallest score that it lists there. ``splits`` different halves are drawn, or all where there are no more.
    low and high are the 2.5 and 97.5 % quantiles over the splits: they share seeds and give no confidence interval.
    """
    matrix, number, rows = seed_scores(group), len(group.lists), list[Row]()
    for m in range(1, number // 2 + 1):
        halves = split_halves(number, m, splits, generator(chance.seed, "curve", group.mode, group.metric, m))
        lists = [
            matrix.listed(matrix.scores[list(half)].mean(axis=0), max(ks), f"{group.metric}: mean of {m} seeds")
            for pair in halves
            for half in pair
        ]
        found = agreements(lists, [(2 * n, 2 * n + 1) for n in range(len(halves))], by, ks, chance)
        rows += [_row("seeds", group, by, k, m, "split_half", found[k], None) for k in ks]
    return rows


def split_halves(
    number: int, m: int, most: int, rng: np.random.Generator
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return different unordered pairs of disjoint sets of ``m`` of ``number``: all of them, or ``most`` drawn uniformly."""
    total = math.comb(number, m) * math.comb(number - m, m) // 2
    if total <= most:
        first = itertools.combinations(range(number), m)
        both = ((a, b) for a in first for b in itertools.combinations(sorted(set(range(number)) - set(a)), m))
        return [(a, b) for a, b in both if a < b]
    drawn: dict[tuple[tuple[int, ...], tuple[int, ...]], None] = {}
    while len(drawn) < most:
        order = rng.permutation(number).tolist()
        a, b = sorted((tuple(sorted(order[:m])), tuple(sorted(order[m : 2 * m]))))
        drawn[a, b] = None
    return list(drawn)


def onset(points: Mapping[int, float | None], level: float) -> int | None:
    """Return the smallest x from which on every point reaches ``level``; None where the last one does not."""
    found = None
    for x in sorted(points, reverse=True):
        value = points[x]
        if value is None or value < level:
            break
        found = x
    return found


def _seed_pairs(group: Group) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs of a group's lists, by number and by seed."""
    pairs = list(itertools.combinations(range(len(group.lists)), 2))
    return pairs, [(group.seeds[i], group.seeds[j]) for i, j in pairs]


def _row(
    curve: str, group: Group, by: str, k: int, x: int, pair: str, found: Agreement, seeds: Sequence[Pair] | None
) -> Row:
    corrected = found.corrected
    if corrected is None:
        interval = None
    elif seeds is not None:
        interval = jackknife(corrected, seeds)
    else:
        tail = 50 * (1 - LEVEL)
        low, high = np.percentile(corrected, [tail, 100 - tail])
        interval = (float(low), float(high)) if len(corrected) > 1 else None
    return {
        "curve": curve, "metric": group.metric, "mode": group.mode, "by": by, "k": k, "x": x, "pair": pair,
        "jaccard": float(found.jaccard.mean()),
        "expected_jaccard": None if found.expected is None else float(found.expected.mean()),
        "corrected": None if corrected is None else float(corrected.mean()),
        "low": None if interval is None else interval[0],
        "high": None if interval is None else interval[1],
        "num_pairs": len(found.jaccard),
    }  # fmt: skip
