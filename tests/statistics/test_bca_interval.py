"""The BCa interval is SciPy's, and the percentile interval follows the sample it is given."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from esa.spec import generator
from esa.statistics.bootstrap import bca_interval, paired_bca_interval, paired_interval, percentile_interval


def windows(number: int, unequal: bool) -> tuple[list[float], list[float], list[int]]:
    """Return skewed NLL sums of changed and intact windows."""
    rng = np.random.default_rng(number)
    tokens = rng.integers(5, 30, number) if unequal else np.full(number, 11)
    base = rng.normal(3, 0.5, number) * tokens
    return (base + rng.lognormal(-1, 1, number) * tokens).tolist(), base.tolist(), tokens.tolist()


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("number", [12, 100])
def test_it_is_scipys_on_the_same_resamples(number: int, unequal: bool) -> None:
    """SciPy, handed the distribution of the same resamples, ends where ours does; it resamples windows as pairs."""
    changed, base, tokens = windows(number, unequal)
    d, sizes = np.subtract(changed, base), np.asarray(tokens)
    picks = generator(4, "bootstrap", "a").integers(0, number, (1999, number))
    drawn = SimpleNamespace(bootstrap_distribution=d[picks].sum(axis=1) / sizes[picks].sum(axis=1))
    theirs = stats.bootstrap(
        (d, sizes),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        n_resamples=0,
        bootstrap_result=drawn,
        method="BCa",
        confidence_level=0.9,
    ).confidence_interval
    ours = paired_bca_interval(changed, base, tokens, 4, "a", 0.9)
    assert ours == pytest.approx(tuple(theirs), rel=1e-9)


def test_equal_windows_need_no_sizes() -> None:
    """With equal windows it is the BCa interval of the plain mean of the differences per token."""
    changed, base, tokens = windows(40, False)
    d = np.subtract(changed, base) / 11
    picks = generator(0, "bootstrap", "a").integers(0, 40, (1999, 40))
    expected = bca_interval(d[picks].mean(axis=1), d.mean(), (d.sum() - d) / 39, 0.95)
    assert paired_bca_interval(changed, base, tokens, 0, "a") == pytest.approx(expected, rel=1e-9)


def test_it_leans_towards_the_long_tail() -> None:
    """Of right-skewed differences it reaches further up than down, as the studentized one does."""
    given = windows(100, False)
    mean = (sum(given[0]) - sum(given[1])) / sum(given[2])
    for interval in (paired_bca_interval, paired_interval):
        low, high = interval(*given, 0, "a")
        assert high - mean > 1.1 * (mean - low) > 0


def test_no_spread_and_too_few_windows() -> None:
    """Windows that all differ alike give that difference; under three there is none; one-sided draws say nothing."""
    assert paired_bca_interval([3.0, 7.0, 7.0], [2.0, 5.0, 5.0], [4, 8, 8], 0, "a") == pytest.approx((0.25, 0.25))
    assert paired_bca_interval([3.0, 7.0], [2.0, 5.0], [4, 8], 0, "a") == (None, None)
    assert bca_interval(np.asarray([1.0, 2.0]), 5.0, np.asarray([1.0, 2.0, 3.0]), 0.9) == (None, None)


def mean_of(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the statistic that takes the mean of resampled values."""
    return lambda picks: values[picks].mean(axis=1)


def test_percentiles_of_a_mean() -> None:
    """Of a mean it is about the normal interval, and SciPy's percentile bootstrap."""
    values = np.random.default_rng(0).normal(2, 1, 400)
    low, high = percentile_interval(mean_of(values), 400, 0.95, 1999, generator(0, "a"))
    error = values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_strata_keep_their_sizes() -> None:
    """With strata every resample holds as many of each; two constant strata then leave no spread at all."""
    values, strata = np.asarray([1.0] * 5 + [9.0] * 15), np.asarray([0] * 5 + [1] * 15)
    seen = []

    def statistic(picks: np.ndarray) -> np.ndarray:
        seen.append(picks)
        return values[picks].mean(axis=1)

    assert percentile_interval(statistic, 20, 0.9, 99, generator(0, "a"), strata) == (7.0, 7.0)
    assert (np.sort(strata[seen[0]], axis=1) == strata).all()
    low, high = percentile_interval(mean_of(values), 20, 0.9, 99, generator(0, "a"))
    assert low < 7 < high


def test_large_samples_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks together hold all resamples, and the interval stays what it is."""
    values = np.random.default_rng(0).normal(size=50)
    whole = percentile_interval(mean_of(values), 50, 0.9, 999, generator(0, "a"))
    monkeypatch.setattr("esa.statistics.bootstrap._BLOCK", 50 * 100)
    sizes = []

    def counted(picks: np.ndarray) -> np.ndarray:
        sizes.append(len(picks))
        return mean_of(values)(picks)

    assert percentile_interval(counted, 50, 0.9, 999, generator(0, "a")) == pytest.approx(whole, rel=1e-6)
    assert sizes == [100] * 9 + [99]


def test_undefined_resamples_are_left_out_up_to_half() -> None:
    """NaN on few resamples is left out; on most of them there is no interval."""
    values = np.asarray([0.0, 1.0, 2.0, 3.0])

    def some(picks: np.ndarray) -> np.ndarray:
        found = values[picks].mean(axis=1)
        return np.where(picks[:, 0] == 0, np.nan, found)

    def most(picks: np.ndarray) -> np.ndarray:
        return np.where(picks[:, 0] == 0, values[picks].mean(axis=1), np.nan)

    low, high = percentile_interval(some, 4, 0.9, 199, generator(0, "a"))
    assert 0 < low < high < 3
    assert percentile_interval(most, 4, 0.9, 199, generator(0, "a")) == (None, None)
    assert percentile_interval(mean_of(values), 1, 0.9, 199, generator(0, "a")) == (None, None)
