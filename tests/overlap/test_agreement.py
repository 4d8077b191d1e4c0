"""Set and rank agreement against naive transcriptions and scipy."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from esa.overlap.agreement import jaccard, kendall, overlap_coefficient, rank_biased_overlap, spearman


def naive_rbo(first: list[int], second: list[int], p: float) -> float:
    """Transcribe equation 32 of Webber et al. 2010 term by term."""
    short, long = sorted([first, second], key=len)
    s, l = len(short), len(long)

    def x(d: int) -> int:
        return len(set(short[:d]) & set(long[:d]))

    total = sum(x(d) / d * p**d for d in range(1, l + 1))
    total += sum(x(s) * (d - s) / (s * d) * p**d for d in range(s + 1, l + 1))
    return (1 - p) / p * total + ((x(l) - x(s)) / l + x(s) / s) * p**l


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("num_a", "num_b"), [(5, 5), (1, 1), (3, 9), (9, 3), (20, 21)])
def test_rbo_is_webbers_equation(num_a: int, num_b: int, p: float) -> None:
    """RBO_ext equals the published equation for lists of equal and unequal length."""
    rng = np.random.default_rng(num_a * 100 + num_b)
    for _ in range(20):
        first, second = (rng.permutation(25)[:n].tolist() for n in (num_a, num_b))
        assert rank_biased_overlap(first, second, p) == pytest.approx(naive_rbo(first, second, p), abs=1e-12)
        assert rank_biased_overlap(first, second, p) == pytest.approx(rank_biased_overlap(second, first, p), abs=1e-12)


def test_rbo_is_the_limit_of_its_infinite_sum() -> None:
    """With agreement held constant beyond depth k, the infinite sum (1 - p) sum p^(d-1) A_d converges to RBO_ext."""
    first, second, p = [1, 2, 3, 4], [2, 1, 5, 3], 0.8
    agreements = [len(set(first[:d]) & set(second[:d])) / d for d in range(1, 5)]
    agreements += [agreements[-1]] * 400
    endless = (1 - p) * math.fsum(a * p**d for d, a in enumerate(agreements))
    assert rank_biased_overlap(first, second, p) == pytest.approx(endless, abs=1e-12)


def test_rbo_takes_its_persistence_from_the_longer_list() -> None:
    """The default p is 1 - 1/K: 0 for single members, where RBO is their agreement."""
    assert rank_biased_overlap([1], [1]) == 1
    assert rank_biased_overlap([1], [2]) == 0
    first, second = [1, 2, 3, 4], [2, 3]
    assert rank_biased_overlap(first, second) == rank_biased_overlap(first, second, 0.75)


def test_rbo_of_nothing() -> None:
    """Two empty lists agree, one empty list agrees with nothing."""
    assert rank_biased_overlap([], []) == 1
    assert rank_biased_overlap([], [1]) == 0


def test_rbo_is_bounded() -> None:
    """Identical lists give 1 and disjoint ones 0, at any length and p."""
    for size, p in itertools.product([1, 2, 10, 1000], [0.0, 0.3, 0.999]):
        assert rank_biased_overlap(range(size), range(size), p) == pytest.approx(1, abs=1e-12)
        assert rank_biased_overlap(range(size), range(size, 2 * size), p) == 0


def test_set_measures() -> None:
    """Jaccard and the overlap coefficient are their set formulas, for empty sets too."""
    for size_a, size_b in itertools.product(range(4), repeat=2):
        for start in range(5):
            a, b = set(range(size_a)), set(range(start, start + size_b))
            shared = len(a & b)
            assert jaccard(shared, size_a, size_b) == (len(a & b) / len(a | b) if a | b else 1)
            if size_a and size_b:
                assert overlap_coefficient(shared, size_a, size_b) == len(a & b) / min(size_a, size_b)
    assert overlap_coefficient(0, 0, 0) == 1
    assert overlap_coefficient(0, 0, 3) == 0


def test_correlations_are_scipys() -> None:
    """Spearman and Kendall equal scipy's, with and without gaps in the ranks."""
    rng = np.random.default_rng(0)
    for size in (3, 4, 30, 200):
        a, b = rng.permutation(500)[:size], rng.permutation(500)[:size]
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
        assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


@pytest.mark.parametrize("ranks", [([], []), ([1, 2], [2, 1]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [4, 4, 4])])
def test_correlations_need_an_order(ranks: tuple[list[int], list[int]]) -> None:
    """Fewer than three shared members, or a constant side, have no correlation: null, never NaN."""
    assert spearman(*ranks) is None
    assert kendall(*ranks) is None
