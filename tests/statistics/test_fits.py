"""Planted curves are found again with their parameters, and told apart; points that cannot carry a curve are refused."""

import math

import numpy as np
import pytest
from scipy.optimize import curve_fit

from esa.artifact import make_table
from esa.artifact.schemas import SCHEMAS
from esa.statistics.curves import FITS
from esa.statistics.fits import Fit, compare_curves, fit_curve, fit_rows

X = np.asarray([0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0])
PLANTED = {"power": (2.0, 1.5), "hill": (8.0, 0.1, 2.0), "weibull": (8.0, 0.1, 1.5)}


def planted(name: str, noise: float = 0.02, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of a planted curve with relative noise, and their standard errors."""
    truth = FITS[name](X, np.asarray(PLANTED[name]))
    return truth * (1 + noise * np.random.default_rng(seed).normal(size=len(X))), noise * truth


@pytest.mark.parametrize("name", list(PLANTED))
def test_an_exact_curve_is_found_exactly(name: str) -> None:
    """Points without noise give the planted parameters back to six digits, R2 of one and a finite AICc."""
    found = fit_curve(name, X, FITS[name](X, np.asarray(PLANTED[name])))
    assert found.values == pytest.approx(PLANTED[name], rel=1e-6)
    assert found.r2 == pytest.approx(1)
    assert math.isfinite(found.aicc)


@pytest.mark.parametrize("name", list(PLANTED))
def test_the_planted_curve_wins(name: str) -> None:
    """Of three curves the planted one has the most weight, a saturating one nearly all; the weights add up to one."""
    y, errors = planted(name)
    found = {fit.model: fit for fit in compare_curves(X, y, errors)}
    assert max(found.values(), key=lambda fit: fit.weight).model == name
    # The saturating curves hold the power law as a limit: they lose to it by no more than their third parameter.
    assert found[name].weight > (0.5 if name == "power" else 0.95)
    assert math.fsum(fit.weight for fit in found.values()) == pytest.approx(1)
    best = min(fit.aicc for fit in found.values())
    ratio = found["power"].weight / found["hill"].weight
    assert ratio == pytest.approx(math.exp((found["hill"].aicc - found["power"].aicc) / 2), rel=1e-6)
    assert found[name].aicc == best


def test_it_is_scipys_curve_fit() -> None:
    """From a good start SciPy's own fit reaches the same parameters, and the covariance's interval is near the profile's."""
    y, errors = planted("hill")
    theirs, covariance = curve_fit(lambda x, top, c, b: top * x**b / (c**b + x**b), X, y, PLANTED["hill"], sigma=errors)
    found = fit_curve("hill", X, y, errors)
    assert found.values == pytest.approx(theirs, rel=1e-5)
    reach = 2.447 * np.sqrt(np.diag(covariance))  # t with 6 degrees of freedom
    for value, (low, high), one in zip(found.values, found.intervals, reach, strict=True):
        assert low == pytest.approx(value - one, abs=0.15 * one)
        assert high == pytest.approx(value + one, abs=0.15 * one)


def test_aicc_by_hand() -> None:
    """AICc and R2 are their formulas, the variance counted as a parameter, the errors as a likelihood's."""
    y, errors = planted("power")
    found = fit_curve("power", X, y, errors)
    rss = (((y - FITS["power"](X, np.asarray(found.values))) / errors) ** 2).sum()
    expected = 9 * math.log(rss / 9) + 2 * np.log(errors).sum() + 6 + 2 * 3 * 4 / (9 - 4)
    assert found.aicc == pytest.approx(expected)
    mean = np.average(y, weights=errors**-2)
    assert found.r2 == pytest.approx(1 - rss / (((y - mean) / errors) ** 2).sum())
    scaled = fit_curve("power", X, y, errors * 10)
    assert (scaled.values, scaled.aicc) == (pytest.approx(found.values), pytest.approx(found.aicc))


def test_the_intervals_cover() -> None:
    """Of 40 noisy curves the intervals of the ceiling hold the planted one about 95 % of the time."""
    inside = 0
    for seed in range(40):
        low, high = fit_curve("hill", X, *planted("hill", 0.05, seed)).intervals[0]
        inside += low <= 8 <= (high or math.inf)
    assert 0.88 <= inside / 40 <= 1


def test_a_ceiling_that_is_never_approached_has_no_upper_end() -> None:
    """Points of a power law say nothing of a ceiling: its interval is open above, and the power law is preferred."""
    fits = {fit.model: fit for fit in compare_curves(X, *planted("power"))}
    assert fits["hill"].intervals[0].high is None
    assert fits["power"].weight > 0.5


def test_no_random_draw() -> None:
    """The same points give the same digits."""
    given = planted("weibull")
    assert compare_curves(X, *given) == compare_curves(X, *given)


def test_the_unit_of_y_and_x_scales_the_parameters() -> None:
    """A thousandfold y has a thousandfold ceiling, a hundredfold x a hundredfold bend; neither moves the exponent."""
    y, errors = planted("hill")
    values, scaled = fit_curve("hill", X, y, errors).values, fit_curve("hill", 100 * X, 1000 * y, 1000 * errors).values
    assert scaled == pytest.approx((1000 * values[0], 100 * values[1], values[2]), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "x", "y", "reason"),
    [
        ("power", [1, 2, 3], [1, 2, 3], "3 points, power needs 4"),
        ("hill", [1, 2, 3, 4], [1, 2, 3, 4], "4 points, hill needs 5"),
        ("power", [1, 1, 2, 2], [1, 2, 3, 4], "2 distinct x, power needs 3"),
        ("power", [0, 1, 2, 3], [1, 2, 3, 4], "an x is not above zero"),
        ("power", [1, 2, 3, 4], [1, 2, 3, math.inf], "a point is not finite"),
        ("power", [1, 2, 3, 4], [-1, 0, -1, -2], "no y is above zero"),
        ("power", [1, 2, 3, 4], [1, 1, 1, 1], "y does not vary"),
    ],
)
def test_refusals_say_why(name: str, x: list[float], y: list[float], reason: str) -> None:
    """Too few, unusable or empty points give a reason and no number, and no row."""
    found = fit_curve(name, x, y)
    assert found == Fit(name, len(x), reason)
    assert fit_rows("r", "dose", [found]) == []


def test_the_fewest_points_have_a_fit_but_no_aicc() -> None:
    """Parameters plus two points are fitted; AICc needs one more, and without it there is no weight."""
    y = FITS["hill"](X[:5], np.asarray(PLANTED["hill"])) * [1.01, 0.99, 1.02, 0.99, 1.01]
    power, hill = compare_curves(X[:5], y, models=("power", "hill"))
    assert (hill.aicc, hill.weight, hill.r2 > 0.99) == (None, None, True)
    assert power.weight == 1
    assert all(fit.weight is None for fit in compare_curves(X[:4], y[:4], models=("power",)))


def test_errors_must_be_above_zero() -> None:
    """A point without error would decide alone: refused."""
    with pytest.raises(ValueError, match="above zero"):
        fit_curve("power", X, X, [0.0] * len(X))


def test_rows_are_a_table() -> None:
    """A row per parameter in the curve's order, with the columns of fits/1."""
    y, errors = planted("hill")
    rows = fit_rows("abc", "dose:zero", compare_curves(X, y, errors))
    assert [(row["model"], row["parameter"]) for row in rows] == [
        (name, parameter) for name, curve in FITS.items() for parameter in curve.parameters
    ]
    assert list(rows[0]) == list(SCHEMAS["fits/1"])
    table = make_table("fits/1", rows)
    assert table.frame["num_points"].to_list() == [9] * 8
    assert table.frame.filter(model="hill", parameter="ceiling")["value"][0] == pytest.approx(8, rel=0.05)


def test_every_curve_is_what_its_formula_says() -> None:
    """Each registered curve equals its own formula, read with the planted numbers, and names a parameter per number."""
    for name, values in PLANTED.items():
        curve = FITS[name]
        assert (curve.name, len(curve.parameters), len(curve.positive)) == (name, len(values), len(values))
    a, b = PLANTED["power"]
    assert FITS["power"](X, np.asarray([a, b])) == pytest.approx(a * X**b)
    top, c, b = PLANTED["hill"]
    assert FITS["hill"](X, np.asarray([top, c, b])) == pytest.approx(top * X**b / (c**b + X**b))
    assert FITS["weibull"](X, np.asarray([top, c, b])) == pytest.approx(top * (1 - np.exp(-((X / c) ** b))))
