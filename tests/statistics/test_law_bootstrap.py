"""Intervals of laws: they shrink with the noise, widen beyond the sizes, repeat themselves and know where they end."""

import numpy as np
import pytest
from scipy.stats import t as student

from esa.statistics.law_bootstrap import bootstrap_laws
from esa.statistics.laws import LAWS, compare_laws
from tests.statistics.test_laws import PLANTED, family

AT = np.geomspace(1e5, 6e7, 7)


@pytest.mark.parametrize("response", ["log", "natural"])
def test_every_law_has_intervals_around_its_fit(response: str) -> None:
    """For all six laws the parameters and the values lie within their ends, and the same seed gives the same ends."""
    for law in LAWS:
        points = family(law, sizes=10, between=0.03, within=0.02, response=response)
        fits = compare_laws(points, [law])
        found = bootstrap_laws(points, fits, AT, 199)[law]
        for value, (low, high) in zip(fits[0].values, found.parameters, strict=True):
            assert low is None or low <= value <= (value if high is None else high), law
        inside = AT <= 6e6
        y = LAWS[law](AT, fits[0].values)
        assert (found.band_low[inside] <= y[inside] * (1 + 1e-9)).all(), law
        assert (y[inside] <= found.band_high[inside] * (1 + 1e-9)).all(), law
        again = bootstrap_laws(points, fits, AT, 199)[law]
        assert again.parameters == found.parameters
        np.testing.assert_array_equal(again.band_low, found.band_low)


def test_a_power_laws_interval_is_no_narrower_than_students() -> None:
    """With 12 models the exponent's interval lies near the textbook one, and never inside it."""
    points = family(sizes=12, seeds=1, between=0.1)
    u, z = np.log(points.x), np.log(points.y)
    slope, start = np.polyfit(u, z, 1)
    error = np.sqrt(((z - start - slope * u) ** 2).sum() / 10 / ((u - u.mean()) ** 2).sum())
    reach = student.ppf(0.975, 10) * error
    low, high = bootstrap_laws(points, compare_laws(points, ["power"]), AT)["power"].parameters[1]
    assert low <= slope - reach * (1 - 1e-6)
    assert high >= slope + reach * (1 - 1e-6)
    assert high - low < 1.4 * 2 * reach


def test_the_band_opens_beyond_the_sizes() -> None:
    """The band's factor is wider at ten times the largest size than in the middle."""
    points = family(sizes=8, between=0.1)
    found = bootstrap_laws(points, compare_laws(points, ["power"]), np.asarray([8e5, 6e7]), 199)["power"]
    width = np.log(found.band_high / found.band_low)
    assert width[1] > 2 * width[0]


def test_more_noise_is_a_wider_interval() -> None:
    """Ten times the noise gives about ten times the width."""
    widths = []
    for noise in (0.02, 0.2):
        points = family(sizes=8, between=noise, seed=2)
        low, high = bootstrap_laws(points, compare_laws(points, ["power"]), AT, 199)["power"].parameters[1]
        widths.append(high - low)
    assert widths[1] == pytest.approx(10 * widths[0], rel=0.01)


@pytest.mark.parametrize("law", list(LAWS))
def test_a_law_met_exactly_has_no_width(law: str) -> None:
    """Without noise both ends are the value itself."""
    points = family(law, sizes=8)
    found = bootstrap_laws(points, compare_laws(points, [law]), AT, 99)[law]
    for value, (low, high) in zip(PLANTED[law], found.parameters, strict=True):
        assert low == pytest.approx(value, rel=1e-4)
        assert high == pytest.approx(value, rel=1e-4)
    np.testing.assert_allclose(found.band_low, found.band_high)


def test_refused_laws_have_none_and_sizes_are_above_zero() -> None:
    """A fit with a reason has no intervals; no size is fine; a size of zero is a ValueError."""
    points = family(sizes=5, between=0.1)
    fits = compare_laws(points, ["power", "broken_power"])
    found = bootstrap_laws(points, fits, np.empty(0), 99)
    assert list(found) == ["power"]
    assert found["power"].band_low.shape == (0,)
    with pytest.raises(ValueError, match="above zero"):
        bootstrap_laws(points, fits, np.asarray([0.0]))


def test_a_break_that_noise_hides_is_open() -> None:
    """Where a single line does as well, an end of the break is None, and the slopes still have their ends."""
    points = family("power", sizes=8, between=0.3)
    found = bootstrap_laws(points, compare_laws(points, ["broken_power"]), AT, 199)["broken_power"]
    assert None in found.parameters[3]
    assert None not in found.parameters[1]


def test_ends_keep_to_what_the_law_allows() -> None:
    """A saturating exponent stays below zero on both ends, and a break between the inner sizes or open, in y itself too."""
    points = family("power", sizes=12, between=0.1, within=0.1, seeds=3)
    _, _, (low, high) = bootstrap_laws(points, compare_laws(points, ["saturating"]), AT, 199)["saturating"].parameters
    assert low < high < 0
    natural = family("power", sizes=12, between=0.1, response="natural")
    found = bootstrap_laws(natural, compare_laws(natural, ["broken_power"]), AT, 199)["broken_power"].parameters[3]
    assert all(end is None or 1.4e5 < end < 4.2e6 for end in found)
