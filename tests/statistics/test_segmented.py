"""A planted change of slope is found with its place and slopes; a straight line is not taken for one."""

import math

import numpy as np
import pytest

from esa.spec import generator
from esa.statistics.laws import Points
from esa.statistics.segmented import break_rows, changepoint, profile_intervals, segments_of
from tests.statistics.test_laws import family


def test_a_planted_change_is_found() -> None:
    """Break, both slopes and an interval that holds the break; the single line is rejected."""
    found = changepoint(family("broken_power", sizes=10, between=0.03, seed=1), 499, 199)
    assert found.reason is None
    assert found.x == pytest.approx(1e6, rel=0.2)
    assert found.low < 1e6 < found.high
    assert found.slope_below == pytest.approx(-0.1, abs=0.1)
    assert found.slope_above == pytest.approx(-0.8, abs=0.15)
    assert found.p_value == pytest.approx(1 / 500)


def test_in_the_values_themselves() -> None:
    """Under the natural response slopes are per unit of ln x of y itself, negative values and all."""
    x = np.geomspace(1e5, 1e7, 9)
    y = -1 + 0.1 * np.minimum(np.log(x / 1e6), 0) + 2 * np.maximum(np.log(x / 1e6), 0)
    found = changepoint(Points(x, y, np.arange(9), "natural"), 99, 99)
    assert (found.slope_below, found.slope_above) == pytest.approx((0.1, 2), abs=1e-6)
    assert found.x == pytest.approx(1e6, rel=1e-6)
    assert found.low <= 1e6 <= found.high


def test_a_straight_line_is_rarely_rejected() -> None:
    """Of 100 families without a change, p is at most 0.05 in no more than 12 (binomial 99.9 %), and in some below 0.5."""
    p_values = [changepoint(family(sizes=7, between=0.2, seed=seed), 199, 9).p_value for seed in range(100)]
    assert sum(p <= 0.05 for p in p_values) <= 12
    assert 25 <= sum(p <= 0.5 for p in p_values) <= 75


def test_an_exact_line_has_no_change() -> None:
    """Points on a straight line but for rounding have p of one."""
    assert changepoint(family(sizes=7), 99, 99).p_value == 1


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (family(sizes=5, between=0.1), "5 models, a changepoint needs 6"),
        (Points(np.repeat([1.0, 2.0, 4.0], 2), np.arange(1.0, 7), np.arange(6), "log"), "3 distinct sizes, a changepoint needs 6"),
        (Points(np.geomspace(1, 64, 7), np.full(7, 2.0), np.arange(7), "log"), "it does not vary"),
    ],
)  # fmt: skip
def test_too_few_models_are_refused(points: Points, reason: str) -> None:
    """Under six models or sizes, and without variation, there is a reason and no number."""
    found = changepoint(points)
    assert found.reason == reason
    assert found.x is found.low is found.high is found.slope_below is found.p_value is None


def test_residual_sums_are_those_of_ordinary_lines() -> None:
    """For every break the residual sum of squares, a contrast and its variance are those of NumPy's least squares."""
    rng = generator(0, "test")
    axis, response = np.sort(rng.random(9)), rng.normal(size=9)
    segments = segments_of(axis, axis[1], axis[-2])
    rss = segments.rss(response[None])[0]
    rows = np.tile([0.0, 0.0, 1.0], (len(segments.breaks), 1))
    weights, scale = segments.contrast(rows)
    for place in (0, 40, 160):
        basis = break_rows(axis, segments.breaks)[place]
        solution, _, _, _ = np.linalg.lstsq(basis, response, rcond=None)
        assert rss[place] == pytest.approx(((response - basis @ solution) ** 2).sum())
        assert weights[place] @ response == pytest.approx(solution[2])
        assert scale[place] == pytest.approx(np.linalg.inv(basis.T @ basis)[2, 2])


def test_a_profile_is_the_naive_profile() -> None:
    """The ends of a slope are where a grid of slopes, the break sought anew at each, crosses the same threshold."""
    rng = generator(1, "test")
    axis = np.linspace(0, 1, 9)
    response = np.minimum(axis - 0.5, 0) - 2 * np.maximum(axis - 0.5, 0) + 0.05 * rng.normal(size=9)
    segments = segments_of(axis, axis[1], axis[-2])
    rows = np.tile([0.0, 1.0, 0.0], (len(segments.breaks), 1))
    # residuals that are all equal in size leave F(1, M - 4) as the larger: no resample enters the threshold
    (low, high), _ = profile_intervals(segments, response, [rows], 1, _Still(), 0.95)
    best = segments.rss(response[None]).min()
    threshold = best * (1 + 6.607890973703367 / 5)  # F(1, 5) at 95 %

    def profile(slope: float) -> float:
        found = []
        for basis in segments.basis:
            reduced, target = basis[:, [0, 2]], response - slope * basis[:, 1]
            solution, _, _, _ = np.linalg.lstsq(reduced, target, rcond=None)
            found.append(((target - reduced @ solution) ** 2).sum())
        return min(found)

    for end, inward in ((low, 1e-4), (high, -1e-4)):
        assert profile(end) == pytest.approx(threshold, rel=1e-6)
        assert profile(end + inward) < threshold < profile(end - inward)
    assert math.isfinite(low)


class _Still:
    """A generator that draws each residual onto its own place."""

    def integers(self, low: int, high: int, size: tuple[int, int]) -> np.ndarray:
        """Return the places themselves."""
        return np.tile(np.arange(high), (size[0], 1))
