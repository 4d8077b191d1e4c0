"""The summary across seeds counts every pair."""

import itertools
import statistics

import pytest

from esa.artifact import Table
from esa.overlap import stability_summary
from esa.overlap.stability import outlier_warnings, outliers
from tests.overlap.planted import DOWN, joined, lists, ranking

SETS = {0: [1, 2, 3, 4], 1: [1, 2, 3, 5], 2: [1, 6, 7, 8]}


def seeds(metric: str = "act_mag") -> Table:
    """Return a ranking with three seeds."""
    return joined(*(ranking([(DOWN, i) for i in ix], metric=metric, seed=seed) for seed, ix in SETS.items()))


def test_every_pair_counts() -> None:
    """The Jaccard indices of all pairs of seeds, their mean and sample deviation, and what all seeds share."""
    summary = stability_summary(lists(seeds()), [1, 4])
    assert summary is not None
    expected = [
        len(set(SETS[i]) & set(SETS[j])) / len(set(SETS[i]) | set(SETS[j])) for i, j in itertools.combinations(SETS, 2)
    ]
    at_four = summary["metrics"]["act_mag"]["4"]
    assert at_four["jaccard_all"] == expected
    assert at_four["jaccard_mean"] == pytest.approx(statistics.mean(expected))
    assert at_four["jaccard_std"] == pytest.approx(statistics.stdev(expected))
    assert (at_four["num_seeds"], at_four["topk_overlap_size"]) == (3, 1)
    assert summary["metrics"]["act_mag"]["1"]["jaccard_mean"] == 1


def test_flat_keys_are_those_of_the_first_metric_at_the_largest_k() -> None:
    """The flat keys repeat one entry of the structure and say which."""
    summary = stability_summary(lists(joined(seeds("act_mag"), seeds("wanda"))), [4, 1])
    assert summary is not None
    assert (summary["metric"], summary["k"], summary["by"]) == ("act_mag", 4, "weight")
    assert list(summary["metrics"]) == ["act_mag", "wanda"]
    for key, value in summary["metrics"]["act_mag"]["4"].items():
        assert summary[key] == value


def test_two_seeds_have_no_deviation() -> None:
    """One pair has a mean and no sample deviation: null, not 0."""
    summary = stability_summary(lists(*(ranking([(DOWN, i) for i in SETS[s]], seed=s) for s in (0, 1))))
    assert summary is not None
    assert (summary["jaccard_mean"], summary["jaccard_std"], summary["num_seeds"]) == (3 / 5, None, 2)


def test_no_summary_without_seeds() -> None:
    """One seed has no stability, and one seed twice (of two models) is not two seeds."""
    assert stability_summary(lists(ranking([(DOWN, 1)]), ranking([(DOWN, 1)], metric="wanda"))) is None
    assert stability_summary(lists(ranking([(DOWN, 1)]), ranking([(DOWN, 2)]))) is None


def test_a_seed_with_another_list_is_named() -> None:
    """Of five seeds the one whose list shares nothing with the others is the outlier, and the warning says how far off it is."""
    sets = {seed: [0, 1, 2, 3, 4, 5, 6, 7, 8, 10 + seed] for seed in range(4)} | {9: list(range(14, 24))}
    table = joined(*(ranking([(DOWN, i) for i in ix], seed=seed) for seed, ix in sets.items()))
    summary = stability_summary(lists(table), [10])
    assert summary is not None
    found = summary["metrics"]["act_mag"]["10"]
    assert found["outlier_seeds"] == [9]
    good = (3 * 9 / 11 + 0) / 4
    assert found["jaccard_by_seed"] == pytest.approx({"0": good, "1": good, "2": good, "3": good, "9": 0})
    assert outlier_warnings(summary) == [
        "act_mag, k = 10: the list of seed 9 is an outlier: mean Jaccard 0.000 with the others, median of the seeds 0.614"
    ]


def test_seeds_that_differ_alike_are_no_outliers() -> None:
    """Three seeds are too few to name one; among equal ones the exchange of one or two weights names none."""
    assert outliers([0.9, 0.9, 0.0], 0.1) == []
    assert outliers([0.9, 0.9, 0.9, 0.0], 0.1) == [3]
    assert outliers([0.9, 0.9, 0.9, 0.7], 0.1) == []
    assert outliers([0.5, 0.6, 0.7, 0.8, 0.4], 0.01) == []
