"""Planted laws are found again, each model votes once, and what too few models cannot carry is refused."""

import math

import numpy as np
import pytest
from scipy.optimize import least_squares

from esa.registry import FITS, load
from esa.statistics.law_fitting import fit_many, predict
from esa.statistics.law_forms import form_of, scaling_of
from esa.statistics.laws import LAWS, Points, compare_laws, leave_one_model_out, model_means, response_of

PLANTED = {
    "power": (3.0, -0.3), "linear": (5.0, 2e-6), "logarithmic": (20.0, -1.0), "exponential": (3.0, -4e-7),
    "saturating": (1.0, 300.0, -0.5), "broken_power": (4.0, -0.1, -0.8, 1e6),
}  # fmt: skip


def family(
    law: str = "power", sizes: int = 8, seeds: int = 2, between: float = 0.0, within: float = 0.0, seed: int = 0,
    response: str = "log",
) -> Points:  # fmt: skip
    """Return the points of a planted family; noise is a factor."""
    rng, x = np.random.default_rng(seed), np.geomspace(1e5, 6e6, sizes)
    cluster = np.repeat(np.arange(sizes), seeds)
    noise = np.repeat(between * rng.normal(size=sizes), seeds) + within * rng.normal(size=len(cluster))
    return Points(x[cluster], LAWS[law](x, PLANTED[law])[cluster] * np.exp(noise), cluster, response)


@pytest.mark.parametrize("response", ["log", "natural"])
@pytest.mark.parametrize("law", list(LAWS))
def test_an_exact_law_is_found_and_preferred(law: str, response: str) -> None:
    """Points without noise give the planted parameters back, R2 of one, and all the weight; left-out models are foretold."""
    points = family(law, response=response)
    found = {fit.law: fit for fit in compare_laws(points)}
    assert found[law].values == pytest.approx(PLANTED[law], rel=1e-5)
    assert found[law].r2 == pytest.approx(1)
    assert found[law].weight > 0.99  # the power law shares with the broken one that holds it
    assert math.fsum(fit.weight for fit in found.values()) == pytest.approx(1)
    left = leave_one_model_out(points, law)
    assert left.predictions == pytest.approx(LAWS[law](np.unique(points.x), PLANTED[law]), rel=1e-4)
    assert left.error < 1e-4
    assert (left.factor is None) == (response == "natural")


@pytest.mark.parametrize("response", ["log", "natural"])
@pytest.mark.parametrize("law", list(LAWS))
def test_no_local_search_does_better(law: str, response: str) -> None:
    """With noise, SciPy's least squares from the planted parameters and from the fit itself reach no lower sum of squares."""
    points = family(law, sizes=10, between=0.15, seed=3, response=response)
    x, response_means, _ = model_means(points)
    form = form_of(law, response, scaling_of(x))
    fitted = fit_many(form, x, response_means[None])
    width = form.num_linear
    low = np.concatenate([np.full(width, -np.inf), form.low - 1e-9])
    high = np.concatenate([np.full(width, np.inf), form.high + 1e-9])
    rng = np.random.default_rng(0)
    for start in [fitted.coordinates[0], *(fitted.coordinates[0] + rng.normal(scale=0.5, size=(6, len(low))))]:
        theirs = least_squares(
            lambda c: predict(form, x, c[None])[0] - response_means,
            np.clip(start, low + 1e-6, high - 1e-6),
            bounds=(low, high),
        )
        assert fitted.rss[0] <= 2 * theirs.cost * (1 + 1e-6)


def test_a_power_law_is_numpys_line_through_the_means() -> None:
    """The exponent is that of a straight line through the model means of ln y; R2 and AICc are those by hand."""
    points = family(between=0.2, within=0.1, seeds=3)
    z = np.log(points.y).reshape(8, 3).mean(axis=1)
    u = np.log(np.unique(points.x))
    slope, start = np.polyfit(u, z, 1)
    rss = ((z - start - slope * u) ** 2).sum()
    (fit,) = compare_laws(points, ["power"])
    assert fit.values == pytest.approx((math.exp(start), slope))
    assert fit.r2 == pytest.approx(1 - rss / ((z - z.mean()) ** 2).sum())
    assert fit.aicc == pytest.approx(8 * math.log(rss / 8) + 6 + 24 / 4)
    assert (fit.num_points, fit.num_models, fit.weight) == (24, 8, 1.0)


def test_more_seeds_are_no_more_models() -> None:
    """Every point three times over changes no number but their count: six models with six points stay six observations."""
    once = family(sizes=6, seeds=2, between=0.2, within=0.1)
    thrice = Points(np.tile(once.x, 3), np.tile(once.y, 3), np.tile(once.cluster, 3), "log")
    for one, other in zip(compare_laws(once), compare_laws(thrice), strict=True):
        assert (one.num_points, other.num_points) == (12, 36)
        assert other.aicc == pytest.approx(one.aicc) if one.aicc is not None else other.aicc is None
        assert other.values == pytest.approx(one.values, rel=1e-6)


def test_six_models_prefer_no_broken_law() -> None:
    """Of 100 power-law families with 2 runs and 3 score seeds, six models never prefer the broken law, twelve seldom."""
    wins = {6: 0, 12: 0}
    for sizes in wins:
        for seed in range(100):
            fits = compare_laws(
                family(sizes=sizes, seeds=6, between=0.1, within=0.1, seed=seed), ["power", "broken_power"]
            )
            wins[sizes] += (fits[1].weight or 0.0) > (fits[0].weight or 0.0)
    assert wins[6] == 0
    assert wins[12] <= 10
    alone = compare_laws(family(sizes=6, between=0.1))
    assert alone[-1].reason is None
    assert alone[-1].aicc is alone[-1].weight is None


def test_twelve_models_tell_a_broken_law() -> None:
    """A slope that falls by 0.7 at the break, under 5 % noise, gives the broken law nearly all the weight."""
    fits = {fit.law: fit for fit in compare_laws(family("broken_power", sizes=12, between=0.05, within=0.05))}
    assert fits["broken_power"].weight > 0.95
    assert fits["broken_power"].values[3] == pytest.approx(1e6, rel=0.3)


@pytest.mark.parametrize("sizes", [3, 4])
def test_few_models_are_weighed_by_their_residuals(sizes: int) -> None:
    """Three or four models have no AICc; laws of two parameters are then weighed as equals, and their weights add up to one."""
    fits = [fit for fit in compare_laws(family(sizes=sizes)) if fit.weight is not None]
    assert [fit.law for fit in fits] == ["power", "linear", "logarithmic", "exponential"]
    assert all(fit.aicc is None for fit in fits)
    assert max(fits, key=lambda fit: fit.weight).law == "power"
    assert math.fsum(fit.weight for fit in fits) == pytest.approx(1)


@pytest.mark.parametrize(
    ("points", "law", "reason"),
    [
        (family(sizes=5), "broken_power", "5 models, broken_power needs 6"),
        (family(sizes=4), "saturating", "4 models, saturating needs 5"),
        (family(sizes=2), "power", "2 models, power needs 3"),
        (Points(np.full(4, 1e6), np.arange(1.0, 5), np.arange(4), "log"), "power", "1 distinct sizes, power needs 3"),
        (Points(np.geomspace(1, 8, 4), np.full(4, 2.0), np.arange(4), "log"), "power", "it does not vary"),
    ],
)
def test_what_cannot_carry_a_law_is_refused(points: Points, law: str, reason: str) -> None:
    """Too few models, too few sizes or a quantity that does not vary: no fit, and the reason."""
    (fit,) = compare_laws(points, [law])
    assert fit.reason == reason
    assert (fit.values, fit.r2, fit.aicc, fit.weight) == ((), None, None, None)
    assert leave_one_model_out(points, law).error is None


def test_leave_one_out_by_hand() -> None:
    """The error is that of NumPy's lines without one model each, and its factor exp(error) - 1."""
    points = family(sizes=7, seeds=1, between=0.3)
    u, z = np.log(points.x), np.log(points.y)
    errors = [z[i] - np.polyval(np.polyfit(np.delete(u, i), np.delete(z, i), 1), u[i]) for i in range(7)]
    found = leave_one_model_out(points, "power")
    assert found.error == pytest.approx(math.sqrt(np.mean(np.square(errors))))
    assert found.factor == pytest.approx(math.expm1(found.error))
    assert found.models == tuple(range(7))


def test_leave_one_out_says_what_is_missing() -> None:
    """Three models leave two, which carry no law."""
    found = leave_one_model_out(family(sizes=3), "power")
    assert found.error is None
    assert found.predictions == (None, None, None)
    assert found.reason == "without one model: 2 models, power needs 3"


@pytest.mark.parametrize(
    ("x", "y", "cluster", "response", "what"),
    [
        ([1.0, 2.0], [1.0], [0, 1], "log", "differ in length"),
        ([1.0, 2.0], [1.0, math.nan], [0, 1], "natural", "not finite"),
        ([0.0, 2.0], [1.0, 1.0], [0, 1], "log", "above zero"),
        ([1.0, 2.0], [0.0, 1.0], [0, 1], "log", "above zero"),
        ([1.0, 2.0], [1.0, 1.0], [0, 0], "log", "share one x"),
    ],
)
def test_points_that_are_none(x: list, y: list, cluster: list, response: str, what: str) -> None:
    """Points that do not fit together are a ValueError that says which way."""
    with pytest.raises(ValueError, match=what):
        Points(np.asarray(x), np.asarray(y), np.asarray(cluster), response)


def test_the_response() -> None:
    """Values above zero are fitted in logs; a zero or a negative one turns to the values themselves."""
    assert response_of([1.0, 2.0]) == "log"
    assert response_of([0.0, 2.0]) == response_of([-1.0, 2.0]) == "natural"


def test_the_formulas_are_what_they_say() -> None:
    """Every law's value at x = 3 is its formula's; the broken one is continuous."""
    given = {"a": 2.0, "b": -0.5, "c": 1.0, "b1": -0.5, "b2": -1.5, "x0": 2.0, "x": 3.0, "ln3": math.log(3)}
    expected = {
        "power": 2 * 3**-0.5, "linear": 2 - 0.5 * 3, "logarithmic": 2 - 0.5 * math.log(3), "exponential": 2 * math.exp(-1.5),
        "saturating": 1 + 2 * 3**-0.5, "broken_power": 2 * 2**1.0 * 3**-1.5,
    }  # fmt: skip
    for name, law in LAWS.items():
        values = [given[parameter] for parameter in law.parameters]
        assert law(np.asarray([3.0]), values)[0] == pytest.approx(expected[name])
    broken = LAWS["broken_power"](np.asarray([2 - 1e-9, 2 + 1e-9]), [2.0, -0.5, -1.5, 2.0])
    assert broken[0] == pytest.approx(broken[1])


def test_the_registry_names_the_laws() -> None:
    """Every law is a registered fit, in the same order, and is the function that the registry loads."""
    assert list(FITS) == list(LAWS)
    assert all(load("fit", name) is law.value for name, law in LAWS.items())
