"""Randomisation tests count what they say, hold their level, and know the smallest p they can give."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from esa.statistics.multiplicity import benjamini_hochberg, holm
from esa.statistics.permutation import (
    all_flips,
    monte_carlo_p,
    sign_flip_p,
    smallest_adjusted_p,
    smallest_monte_carlo_p,
    smallest_sign_flip_p,
)


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
@pytest.mark.parametrize("number", [2, 3, 7, 11])
def test_exact_by_hand_and_by_scipy(number: int, alternative: str) -> None:
    """With few windows all flips are counted: the naive loop and SciPy's permutation test give the same p."""
    d = np.random.default_rng(number).normal(0.3, 1, number).round(1).tolist()  # rounded: with ties
    sums = np.asarray([np.dot(signs, d) for signs in product((1, -1), repeat=number)]).round(9)
    observed = round(sum(d), 9)
    extreme = {"greater": sums >= observed, "less": sums <= observed, "two-sided": abs(sums) >= abs(observed)}
    found = sign_flip_p(d, 0, "a", alternative=alternative)
    assert found == extreme[alternative].mean()
    theirs = stats.permutation_test(
        (np.asarray(d),), np.sum, permutation_type="samples", alternative=alternative, vectorized=False
    )
    assert found == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_random_flips_come_near_the_exact_p(alternative: str) -> None:
    """With fewer permutations than flips p is counted among random ones, within their error, and never zero."""
    d = np.random.default_rng(3).normal(0.4, 1, 14).tolist()
    exact = sign_flip_p(d, 0, "a", 2**14, alternative)
    found = sign_flip_p(d, 0, "a", 9999, alternative)
    assert found != exact
    assert found == pytest.approx(exact, abs=5 * (exact * (1 - exact) / 9999) ** 0.5)
    assert (found * 10_000) == pytest.approx(round(found * 10_000))
    assert sign_flip_p([1.0] * 20, 0, "a", 99, "greater") == 1 / 100


def test_blocks_change_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flips taken in blocks are as many as at once."""
    d = np.random.default_rng(3).normal(0.2, 1, 40).tolist()
    whole = sign_flip_p(d, 0, "a", 999)
    monkeypatch.setattr("esa.statistics.permutation._BLOCK", 40 * 100)
    assert sign_flip_p(d, 0, "a", 999) == pytest.approx(whole, abs=0.08)
    assert sign_flip_p([1.0] * 40, 0, "a", 999, "greater") == 1 / 1000


def test_it_holds_its_level() -> None:
    """Under the null at most 5 % of the p values are at most 0.05, and about as many: it is not merely cautious."""
    rng = np.random.default_rng(0)
    found = [sign_flip_p(rng.standard_t(3, 24), 0, str(run), 999, "greater") for run in range(600)]
    assert 0.03 < np.mean(np.asarray(found) <= 0.05) < 0.07


def test_nothing_differs() -> None:
    """Differences of zero are no evidence at all; no windows give no p; NaN is refused."""
    assert sign_flip_p([0.0] * 30, 0, "a") == 1
    assert sign_flip_p([0.0, 0.0], 0, "a", alternative="greater") == 1
    assert sign_flip_p([], 0, "a") is None
    with pytest.raises(ValueError, match="not finite"):
        sign_flip_p([1.0, float("nan")], 0, "a")


def test_all_flips_are_all() -> None:
    """Every combination of signs once, the identity first."""
    assert all_flips(np.asarray([1.0, 2.0])).tolist() == [3.0, 1.0, -1.0, -3.0]


def test_rank_among_draws() -> None:
    """The value counts itself; a draw as large as it counts against it, a broken draw more so."""
    draws = [0.1, 0.2, 0.3, 0.4]
    assert monte_carlo_p(0.5, draws) == 1 / 5
    assert monte_carlo_p(0.4, draws) == 2 / 5
    assert monte_carlo_p(0.1 + 0.3, [0.4 + 1e-17]) == 1
    assert monte_carlo_p(0.0, draws) == 1
    assert monte_carlo_p(0.0, draws, "less") == 1 / 5
    assert monte_carlo_p(0.5, draws, "two-sided") == 2 / 5
    assert monte_carlo_p(0.5, [*draws, float("inf")]) == 2 / 6
    assert monte_carlo_p(float("inf"), draws) == 1 / 5
    assert monte_carlo_p(float("inf"), [float("inf"), 0.0]) == 2 / 3
    assert monte_carlo_p(0.5, []) == 1
    with pytest.raises(ValueError, match="NaN"):
        monte_carlo_p(0.5, [float("nan")])


@pytest.mark.parametrize("alternative", ["greater", "two-sided"])
@pytest.mark.parametrize("number", [3, 5, 13, 64])
def test_the_smallest_sign_flip_p_is_reached(number: int, alternative: str) -> None:
    """Windows that all point one way give the very p that is announced, exact and random alike."""
    assert smallest_sign_flip_p(number, 9999, alternative) == sign_flip_p([1.0] * number, 0, "a", 9999, alternative)


def test_random_flips_may_draw_the_identity() -> None:
    """Just beyond the exact range what is announced is a lower bound: the identity itself is drawn now and then."""
    assert smallest_sign_flip_p(14) == 1e-4 <= sign_flip_p([1.0] * 14, 0, "a") <= 5e-4


def test_the_smallest_p_of_the_other_rules_is_reached() -> None:
    """A value above all draws, alone or among tests that show nothing, has the p that is announced."""
    single = monte_carlo_p(1.0, [0.0] * 19)
    assert smallest_monte_carlo_p(19) == single == 0.05
    for reached in (1, 2, 5):
        family = [single] * reached + [1.0] * (8 - reached)
        assert smallest_adjusted_p(single, 8, reached) == pytest.approx(benjamini_hochberg(family)[0])
        assert smallest_adjusted_p(single, 8, reached, "holm") == pytest.approx(holm(family)[0])
    assert smallest_adjusted_p(0.05, 8, 8) == 0.05
    assert smallest_adjusted_p(0.5, 8) == 1


def test_adjusted_by_the_papers_rules() -> None:
    """Adjusted p values are the naive transcriptions of both papers, in the order given."""
    p = [0.03, 0.001, 0.2, 0.04, 0.011, 0.9]
    ordered = sorted(p)
    naive_bh = [min(min(1, ordered[j] * 6 / (j + 1)) for j in range(ordered.index(one), 6)) for one in p]
    naive_holm = [max(min(1, (6 - j) * ordered[j]) for j in range(ordered.index(one) + 1)) for one in p]
    assert benjamini_hochberg(p) == pytest.approx(naive_bh)
    assert holm(p) == pytest.approx(naive_holm)


def test_a_missing_p_is_not_counted() -> None:
    """None and NaN stay None, and the others are adjusted as if they were not there."""
    for adjust in (benjamini_hochberg, holm):
        first, second = adjust([0.01, 0.04])
        assert adjust([None, 0.01, float("nan"), 0.04]) == [None, first, None, second]
        assert adjust([None]) == [None]
        assert adjust([]) == []
