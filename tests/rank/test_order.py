"""Orders, draws and matches against their definitions."""

import numpy as np
import pytest
from scipy.stats import chisquare, hypergeom

from esa.rank.order import draw, highest, lowest, nearest_unused, split


def test_highest_is_the_head_of_the_whole_order() -> None:
    """The partition gives what a full sort gives, ties by tensor and index."""
    rng = np.random.default_rng(0)
    score, tensor, index = rng.integers(0, 9, 500) / 8, rng.integers(0, 3, 500), rng.permutation(500)
    whole = sorted(range(500), key=lambda i: (-score[i], tensor[i], index[i]))
    for k in (1, 7, 100, 500, 600):
        assert highest(score, tensor, index, k).tolist() == whole[:k]


def test_the_hidden_zeros_weigh_in() -> None:
    """A tensor with 3 of 4 zeros gives 3 of 4 of the lowest, though both keep 8 rows: hypergeometric counts."""
    score, tensor, index = np.zeros(16), np.repeat([0, 1], 8), np.tile(np.arange(8), 2)
    counts = np.zeros(7)
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        rows, cut, tied, taken = lowest(score, tensor, index, 6, num_zero={0: 30, 1: 10}, rng=rng)
        assert (cut, tied, taken) == (0.0, 40, 6)
        counts[np.count_nonzero(tensor[rows] == 0)] += 1
    expected = hypergeom(40, 30, 6).pmf(np.arange(7)) * 2000
    assert chisquare([counts[:3].sum(), *counts[3:]], [expected[:3].sum(), *expected[3:]]).pvalue > 0.01


def test_a_reservoir_keeps_its_own_order() -> None:
    """The kept zeros of a tensor come in the order of the file, which is the reservoir's."""
    index = np.array([5, 2, 9, 1])
    rows, *_ = lowest(np.zeros(4), np.zeros(4, int), index, 3, num_zero={0: 50}, rng=np.random.default_rng(0))
    assert rows.tolist() == [0, 1, 2]


def test_lowest_of_a_smaller_k_is_a_prefix() -> None:
    """The order of ties does not depend on K."""
    rng = np.random.default_rng(0)
    score, tensor, index = rng.integers(0, 5, 200) / 4, np.sort(rng.integers(0, 4, 200)), np.arange(200)
    for k in (1, 10, 60, 199):
        part, whole = (
            lowest(score, tensor, index, size, num_zero={1: 500, 2: 90}, rng=np.random.default_rng(3))[0]
            for size in (k, 200)
        )
        assert part.tolist() == whole[:k].tolist()


@pytest.mark.parametrize("total", [40, 70_000, 5_000_000_000, 10**15])
def test_a_draw_is_distinct_and_a_prefix_of_a_larger_one(total: int) -> None:
    """Small and huge universes alike; the huge one would not fit in memory if it were listed."""
    few, many = (draw(total, k, np.random.default_rng(1)).tolist() for k in (17, 40))
    assert few == many[:17]
    assert len(set(many)) == 40
    assert 0 <= min(many) <= max(many) < total


def test_a_whole_universe_can_be_drawn() -> None:
    """K equal to the number of weights gives each once, by rejection too."""
    assert sorted(draw(70_000, 70_000, np.random.default_rng(0)).tolist()) == list(range(70_000))


@pytest.mark.parametrize("total", [60, 66_000])
def test_a_draw_is_uniform(total: int) -> None:
    """Every part of the universe is drawn alike."""
    drawn = np.concatenate([draw(total, 6, np.random.default_rng(seed)) for seed in range(2000)])
    assert chisquare(np.bincount(drawn * 12 // total, minlength=12)).pvalue > 0.01


def test_nearest_unused_is_greedy() -> None:
    """Each target takes the nearest of what the ones before it left, the smaller of two."""
    rng = np.random.default_rng(0)
    targets, candidates = np.round(rng.normal(size=60), 1), np.sort(np.round(rng.normal(size=80), 1))
    free, expected = list(range(80)), []
    for target in targets:
        best = min(free, key=lambda i: (round(abs(candidates[i] - target), 9), candidates[i]))
        free.remove(best)
        expected.append(candidates[best])
    found = nearest_unused(np.round(targets * 10), np.round(candidates * 10))
    assert len(set(found.tolist())) == 60
    assert candidates[found].tolist() == expected


def test_nearest_unused_says_when_none_is_left() -> None:
    """More targets than candidates leave the last ones without."""
    assert nearest_unused(np.array([1.0, 1.0, 1.0]), np.array([0.0, 5.0])).tolist() == [0, 1, -1]


def test_split_skips_codes_that_do_not_occur() -> None:
    """Each code comes with its positions, ascending."""
    assert [(c, at.tolist()) for c, at in split(np.array([2, 0, 2]), 4)] == [(0, [1]), (2, [0, 2])]
    assert list(split(np.array([], dtype=int), 1)) == []
