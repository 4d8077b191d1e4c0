"""The hypergeometric null against enumeration, exact fractions, scipy and simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from esa.statistics.hypergeometric import SMALLEST_P, Units, expected_jaccard, expected_shared, log_p_value, p_value


def exact(units: Units) -> dict[int, Fraction]:
    """Return the distribution of the shared number in exact fractions."""
    total = {0: Fraction(1)}
    for a, b, n in units:
        whole = math.comb(n, b)
        one = {x: Fraction(math.comb(a, x) * math.comb(n - a, b - x), whole) for x in range(min(a, b) + 1)}
        merged: dict[int, Fraction] = {}
        for (x, p), (y, q) in itertools.product(total.items(), one.items()):
            merged[x + y] = merged.get(x + y, Fraction(0)) + p * q
        total = merged
    return total


CASES: list[Units] = [
    ((3, 3, 10),),
    ((3, 5, 7),),  # more than half: at least one is always shared
    ((4, 4, 4),),
    ((2, 3, 9), (3, 1, 5), (0, 2, 6)),
    ((5, 5, 50), (5, 5, 60), (5, 5, 50), (1, 1, 2)),
    ((10, 10, 1_000_000), (10, 12, 500_000)),
    ((60, 60, 100_000),),
]


@pytest.mark.parametrize("units", CASES)
def test_p_value_is_exact(units: Units) -> None:
    """P(X >= shared) has twelve right digits for every shared number, however small it is."""
    chances = exact(units)
    for shared in range(sum(min(a, b) for a, b, _ in units) + 1):
        tail = sum((p for x, p in chances.items() if x >= shared), Fraction(0))
        assert p_value(units, shared) == pytest.approx(float(tail), rel=1e-10)


@pytest.mark.parametrize("units", CASES)
def test_expected_jaccard_is_exact(units: Units) -> None:
    """The expectations are those of the exact distribution."""
    chances = exact(units)
    sizes = sum(a + b for a, b, _ in units)
    mean = sum((p * Fraction(x, sizes - x) for x, p in chances.items()), Fraction(0))
    assert expected_jaccard(units) == pytest.approx(float(mean), rel=1e-10)
    assert expected_shared(units) == pytest.approx(float(sum(x * p for x, p in chances.items())), rel=1e-12)


def test_one_unit_is_scipys_hypergeometric() -> None:
    """One unit of a real model's size agrees with scipy's survival function."""
    for n, k, shared in [(10**6, 500, 3), (10**6, 500, 10), (134_515_008, 1000, 1)]:
        assert p_value(((k, k, n),), shared) == pytest.approx(stats.hypergeom(n, k, k).sf(shared - 1), rel=1e-6)


def test_simulation_agrees() -> None:
    """Simulated independent draws with the same quotas have the mean Jaccard and the tail that the null states."""
    units = ((6, 8, 30), (5, 5, 25), (10, 4, 40))
    rng = np.random.default_rng(0)
    shared = sum(rng.hypergeometric(a, n - a, b, size=200_000) for a, b, n in units)
    sizes = sum(a + b for a, b, _ in units)
    assert expected_jaccard(units) == pytest.approx(float((shared / (sizes - shared)).mean()), rel=5e-3)
    for cut in (2, 4, 6):
        assert p_value(units, cut) == pytest.approx(float((shared >= cut).mean()), rel=0.05)


def test_no_underflow_at_the_size_of_published_lists() -> None:
    """226 units of quota 100 give a finite log p of everything, and a p value that is small but never 0."""
    units = ((100, 100, 16_777_216),) * 226
    assert expected_shared(units) == pytest.approx(226 * 1e4 / 16_777_216)
    logs = [log_p_value(units, shared) for shared in (0, 1, 2, 100, 11_000, 22_599, 22_600)]
    assert logs[0] == 0
    assert math.exp(logs[1]) == pytest.approx(1 - math.exp(226 * math.log1p(-1e4 / 16_777_216)), rel=1e-3)
    assert all(math.isfinite(log) for log in logs)
    assert logs == sorted(logs, reverse=True)
    assert logs[-1] == pytest.approx(-226 * (math.lgamma(16_777_217) - math.lgamma(101) - math.lgamma(16_777_117)))
    assert p_value(units, 22_600) == SMALLEST_P > 0


def test_impossible_and_certain() -> None:
    """What must be shared has p = 1, and more than can be shared has log p = -inf."""
    assert p_value(((3, 5, 7),), 1) == 1
    assert log_p_value(((3, 5, 7),), 4) == -math.inf
