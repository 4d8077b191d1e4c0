"""Planted shifts of level are found to the place; noise and short series have none."""

import numpy as np
import pytest

from esa.statistics.series import series_changepoints


def test_planted_shifts_are_found() -> None:
    """Two shifts of six standard deviations are found where they are, and the noise is estimated beside them."""
    values = np.repeat([0.0, 3.0, 1.0], [17, 23, 14]) + 0.5 * np.random.default_rng(1).normal(size=54)
    found = series_changepoints(values)
    assert found.places == (17, 40)
    assert found.noise == pytest.approx(0.5, rel=0.4)
    assert found.reason is None


def test_every_place_is_tried() -> None:
    """An exact step is found at whichever place it is: none is skipped, in jumps or otherwise."""
    for place in range(3, 19):
        assert series_changepoints([1.0] * place + [0.5] * (22 - place)).places == (place,)


def test_it_is_the_best_segmentation() -> None:
    """For a single shift the place is that of the least squares over all places."""
    values = np.random.default_rng(5).normal(size=30) + np.repeat([0.0, 4.0], [12, 18])
    costs = {place: values[:place].var() * place + values[place:].var() * (30 - place) for place in range(3, 28)}
    assert series_changepoints(values).places == (min(costs, key=costs.get),)


def test_noise_has_few() -> None:
    """Of 100 series of 50 values of mere noise at most 12 show a shift (4 % expected)."""
    rng = np.random.default_rng(0)
    assert sum(bool(series_changepoints(rng.normal(size=50)).places) for _ in range(100)) <= 12


def test_short_constant_and_broken_series() -> None:
    """Under 20 values there is a reason; a constant has no shift; what is not finite is a ValueError."""
    assert series_changepoints([1.0] * 19).reason == "19 values, shifts of level need 20"
    assert series_changepoints([1.0] * 20) == ((), 0.0, None)
    with pytest.raises(ValueError, match="not finite"):
        series_changepoints([float("nan")] * 20)
