"""The tail index of exact Pareto draws is found from their histogram, and what has no tail has none."""

import numpy as np
import pytest

from esa.statistics.tail_index import hill_tail_index

EDGES = 10 ** (np.arange(0, 64 * 14 + 1) / 64)


def binned(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the histogram of values above one, 64 bins a decade."""
    counts, _ = np.histogram(values, EDGES)
    return EDGES[:-1], EDGES[1:], counts


@pytest.mark.parametrize("index", [0.7, 1.0, 2.0, 4.0])
def test_a_pareto_tail_is_found(index: float) -> None:
    """Within four standard errors of the index, the bins' share of the error being small."""
    values = (1 - np.random.default_rng(0).random(200_000)) ** (-1 / index)
    assert hill_tail_index(*binned(values), 0.05) == pytest.approx(index, rel=4 / np.sqrt(10_000))


def test_it_is_hills_estimator_of_the_unbinned_values() -> None:
    """Bins change Hill's estimator of the same values by under 0.5 %."""
    values = np.sort(np.random.default_rng(1).lognormal(3, 1, 50_000))
    low, high, counts = binned(values)
    found = hill_tail_index(low, high, counts, 0.01)
    above = np.cumsum(counts[::-1])[::-1]
    edge = low[np.flatnonzero(above >= 500)[-1]]
    tail = values[values >= edge]
    assert found == pytest.approx(1 / np.log(tail / edge).mean(), rel=5e-3)


def test_order_and_splitting_of_bins_do_not_matter() -> None:
    """Bins of several tensors, in any order, add up."""
    low, high, counts = binned((1 - np.random.default_rng(2).random(5000)) ** -1.0)
    whole = hill_tail_index(low, high, counts, 0.1)
    order = np.random.default_rng(3).permutation(2 * len(low))
    split = np.concatenate([counts // 3, counts - counts // 3])
    assert hill_tail_index(np.tile(low, 2)[order], np.tile(high, 2)[order], split[order], 0.1) == pytest.approx(whole)


def test_zeros_count_but_have_no_place_in_a_tail() -> None:
    """As many zeros as values make the top tenth of all the top fifth of these; a tail down to zero is none."""
    low, high, counts = binned((1 - np.random.default_rng(4).random(5000)) ** -1.0)
    zeros = (np.append(low, 0.0), np.append(high, 0.0), np.append(counts, 5000))
    assert hill_tail_index(*zeros, 0.1) == pytest.approx(hill_tail_index(low, high, counts, 0.2))
    assert hill_tail_index(*zeros, 0.9) is None


def test_what_has_no_tail() -> None:
    """Nine values, a single bin or nothing have no index; a share of zero is a ValueError."""
    assert hill_tail_index([1.0, 2.0], [2.0, 4.0], [5, 4], 1.0) is None
    assert hill_tail_index([1.0, 2.0], [2.0, 4.0], [5, 5], 1.0) is not None
    assert hill_tail_index([1.0], [2.0], [500], 0.1) is None
    assert hill_tail_index([], [], [], 0.1) is None
    with pytest.raises(ValueError, match="not 0"):
        hill_tail_index([1.0], [2.0], [500], 0.0)
