"""Curves of agreement: every number is the naive one, and they rise where a planted truth says so."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from esa.errors import SelectionError
from esa.overlap.agreement import jaccard
from esa.overlap.curves import (
    Agreement,
    Chance,
    curve_k,
    curve_seeds,
    curve_windows,
    jackknife,
    log_grid,
    onset,
    split_halves,
)
from esa.overlap.seed_scores import Group, groups_of, seed_scores
from esa.statistics.hypergeometric import expected_jaccard
from tests.overlap.noisy import ADDRESSES, noisy, noisy_scores
from tests.overlap.planted import NUM_WEIGHTS, TENSORS, joined, lists, ranking

CHANCE = Chance()


def group(noise: float = 0.5, **options: Any) -> Group:
    """Return the one group of a noisy ranking."""
    [found] = groups_of(lists(noisy(noise, **options)))
    return found


def test_the_grid_is_logarithmic_up_to_the_lists_length() -> None:
    """1, 2, 5, 10, ... and the length itself, once."""
    assert log_grid(1) == (1,)
    assert log_grid(20) == (1, 2, 5, 10, 20)
    assert log_grid(137) == (1, 2, 5, 10, 20, 50, 100, 137)


def test_curve_k_is_the_mean_over_all_pairs_of_seeds() -> None:
    """At every K Jaccard, what chance gives, and the correction are those of sets made by hand from the scores."""
    rows = curve_k(group(), "weight", None, CHANCE)
    assert [row["x"] for row in rows] == [row["k"] for row in rows] == [1, 2, 5, 10, 20]
    tops = [np.argsort(-noisy_scores(0.5, seed), kind="stable") for seed in range(5)]
    for row in rows:
        k = row["x"]
        sets = [set(top[:k].tolist()) for top in tops]
        expected = [len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2)]
        chance = expected_jaccard(((k, k, NUM_WEIGHTS),))
        assert row["jaccard"] == pytest.approx(np.mean(expected))
        assert row["expected_jaccard"] == pytest.approx(chance)
        assert row["corrected"] == pytest.approx((np.mean(expected) - chance) / (1 - chance))
        assert (row["pair"], row["num_pairs"]) == ("between_seeds", 10)


def test_per_layer_lists_are_cut_in_each_tensor() -> None:
    """K counts per tensor, and chance knows each tensor's size."""
    rows = curve_k(group(k=5, mode="per_layer"), "weight", [2], CHANCE)
    sets = []
    for seed in range(5):
        scores, chosen = noisy_scores(0.5, seed), set()
        for tensor in TENSORS:
            mine = [n for n, (name, _) in enumerate(ADDRESSES) if name == tensor["parameter"]]
            chosen |= set(sorted(mine, key=lambda n: -scores[n])[:2])
        sets.append(chosen)
    assert rows[0]["jaccard"] == pytest.approx(
        np.mean([len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2)])
    )
    assert rows[0]["expected_jaccard"] == pytest.approx(expected_jaccard(tuple((2, 2, t["numel"]) for t in TENSORS)))


def test_unrelated_lists_are_corrected_to_zero() -> None:
    """Lists of random weights agree by more than 0.1 by chance alone, and by nothing once that is taken off."""
    rng = np.random.default_rng(3)
    tables = [
        ranking([ADDRESSES[n] for n in rng.choice(NUM_WEIGHTS, 40, replace=False)], seed=seed) for seed in range(40)
    ]
    [row] = curve_k(groups_of(lists(joined(*tables)))[0], "weight", [40], CHANCE)
    assert row["jaccard"] > 0.1
    assert abs(row["corrected"]) < 0.01


def test_without_a_universe_nothing_is_corrected() -> None:
    """Where the lists do not say what they were drawn from, the corrected columns are null, and a given number fills them."""
    tables = [ranking([("h.0.down.weight", n) for n in range(s, s + 4)], seed=s, anatomy=False) for s in range(3)]
    [found] = groups_of(lists(joined(*tables)))
    [row] = curve_k(found, "weight", [4], CHANCE)
    assert (row["expected_jaccard"], row["corrected"], row["low"]) == (None, None, None)
    [row] = curve_k(found, "weight", [4], Chance(universe=24))
    assert row["expected_jaccard"] == pytest.approx(expected_jaccard(((4, 4, 24),)))
    assert Agreement(np.ones(1), np.ones(1)).corrected is None  # the lists hold all there is


def test_by_anything_but_weight_chance_is_permuted() -> None:
    """By component nearly everything is shared by chance, and the correction says so."""
    [row] = curve_k(group(), "component", [20], CHANCE)
    assert row["by"] == "component"
    assert row["expected_jaccard"] > 0.8


def test_the_jackknife_is_the_naive_one() -> None:
    """The interval leaves out each seed with its pairs; two seeds have none, nor have pairs that all agree alike."""
    pairs = list(itertools.combinations(range(4), 2))
    values = np.random.default_rng(1).uniform(0.2, 0.6, len(pairs))
    without = [np.mean([v for v, pair in zip(values, pairs, strict=True) if s not in pair]) for s in range(4)]
    error = math.sqrt(3 / 4 * sum((one - np.mean(without)) ** 2 for one in without))
    reach = 3.182446305 * error  # t of 3 degrees of freedom
    assert jackknife(values, pairs) == pytest.approx((values.mean() - reach, values.mean() + reach))
    assert jackknife(values[:1], [(0, 1)]) is None
    assert jackknife(np.full(6, 0.5), pairs) is None


def test_the_jackknife_covers_the_truth() -> None:
    """Over a hundred campaigns of six seeds the intervals hold the mean agreement at least nine times in ten."""
    found = []
    for campaign in range(100):
        seeds = range(1000 + 6 * campaign, 1006 + 6 * campaign)
        sets = [set(np.argsort(-noisy_scores(0.5, seed))[:20].tolist()) for seed in seeds]
        pairs = list(itertools.combinations(range(6), 2))
        found.append((np.asarray([jaccard(len(sets[i] & sets[j]), 20, 20) for i, j in pairs]), pairs))
    truth = np.mean([values.mean() for values, _ in found])
    covered = 0
    for values, pairs in found:
        interval = jackknife(values, pairs)
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert covered >= 88


def test_split_halves_are_disjoint_and_distinct() -> None:
    """Few halves are all listed, many are drawn; none comes twice, in either order."""
    rng = np.random.default_rng(0)
    for number, m, most in ((4, 1, 20), (4, 2, 20), (5, 2, 20), (8, 3, 20), (9, 4, 20)):
        halves = split_halves(number, m, most, rng)
        total = math.comb(number, m) * math.comb(number - m, m) // 2
        assert len(halves) == min(total, most)
        assert len({frozenset(pair) for pair in halves}) == len(halves)
        assert all(len(a) == len(b) == m and not set(a) & set(b) for a, b in halves)


def test_averaging_seeds_makes_halves_agree() -> None:
    """With noise between seeds the agreement of halves rises with the seeds that each averages."""
    rows = curve_seeds(group(0.6, seeds=range(8), k=100), "weight", [10], 20, CHANCE)
    assert [(row["x"], row["pair"]) for row in rows] == [(m, "split_half") for m in (1, 2, 3, 4)]
    values = [row["corrected"] for row in rows]
    assert values[3] > values[1] > values[0]
    assert values[3] > values[0] + 0.15
    assert all(row["low"] <= row["corrected"] <= row["high"] for row in rows)


def test_a_half_ranks_by_the_mean_score() -> None:
    """Two against two seeds of complete lists: the tops of the two means of the raw scores, compared by hand."""
    rows = curve_seeds(group(seeds=range(4), k=NUM_WEIGHTS), "weight", [10], 20, CHANCE)
    scores = [noisy_scores(0.5, seed) for seed in range(4)]
    found = []
    for a, b in (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2))):
        tops = [set(np.argsort(-np.mean([scores[s] for s in half], axis=0))[:10].tolist()) for half in (a, b)]
        found.append(len(tops[0] & tops[1]) / len(tops[0] | tops[1]))
    assert rows[-1]["num_pairs"] == 3
    assert rows[-1]["jaccard"] == pytest.approx(np.mean(found))


@pytest.mark.parametrize("mode", ["global", "per_layer"])
def test_a_half_of_one_seed_is_that_seed_s_list(mode: str) -> None:
    """Down to its last weight: no weight that the seed does not list takes the place of one that it lists."""
    of = group(seeds=range(4), k=10, mode=mode)
    (half,) = curve_seeds(of, "weight", [10], 20, CHANCE)[:1]
    (pair,) = curve_k(of, "weight", [10], CHANCE)
    assert (half["x"], half["num_pairs"], pair["num_pairs"]) == (1, 6, 6)
    assert half["jaccard"] == pytest.approx(pair["jaccard"])


def test_what_a_seed_does_not_list_has_its_smallest_score() -> None:
    """A weight that a seed leaves out counts with the smallest score that the seed lists in the unit, and ranks behind that."""
    first = ranking([("h.0.down.weight", 0), ("h.0.down.weight", 1)], seed=0)  # scores 1, 1/2
    second = ranking([("h.0.down.weight", 2), ("h.0.down.weight", 1)], seed=1)
    matrix = seed_scores(groups_of(lists(joined(first, second)))[0])
    assert matrix.frame["index"].to_list() == [0, 1, 2]
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    assert matrix.scores.tolist() == [[1, 0.5, below], [below, 0.5, 1]]
    assert matrix.place.tolist() == [[0, 1, 2], [2, 1, 0]]


def test_more_windows_agree_better_with_each_other_and_with_the_longest() -> None:
    """With less noise in longer runs both lines rise; with the longest run different seeds are paired."""
    runs = {windows: groups_of(lists(noisy(2.0 / math.sqrt(windows), k=20)))[0] for windows in (4, 16, 64)}
    rows = curve_windows(runs, "weight", [20], CHANCE)
    lines = {
        pair: [(row["x"], row["num_pairs"]) for row in rows if row["pair"] == pair]
        for pair in ("between_seeds", "with_longest")
    }
    assert lines == {"between_seeds": [(4, 10), (16, 10), (64, 10)], "with_longest": [(4, 20), (16, 20)]}
    for pair in lines:
        values = [row["corrected"] for row in rows if row["pair"] == pair]
        assert values == sorted(values)


def test_onset_is_where_a_curve_stays_above() -> None:
    """A dip behind a high point moves the onset behind the dip; a low end means never."""
    assert onset({1: 0.9, 2: 0.4, 5: 0.6, 10: 0.5}, 0.5) == 5
    assert onset({1: 0.9, 2: 0.6}, 0.5) == 1
    assert onset({1: 0.9, 2: 0.4}, 0.5) is None
    assert onset({1: 0.9, 2: None}, 0.5) is None


def test_a_seed_twice_is_refused() -> None:
    """Two lists of one metric and seed come from different models or windows, and no curve may mix them."""
    with pytest.raises(SelectionError) as error:
        groups_of(lists(noisy(0.5), noisy(0.5)))
    assert str(error.value).startswith("1.csv:act_mag:seed 0: act_mag from seed 0 is also in 0.csv:act_mag:seed 0")
