"""Dose-response, discrimination and retest: planted responses come out, and where there is none nothing is made up."""

import json
from typing import Any

import numpy as np
import pytest

from esa.perturb.evidence.doses import discrimination_rows, dose_rows
from esa.perturb.evidence.effects import Windows, effects
from esa.perturb.evidence.retest import reliability_rows
from esa.spec import Spec, spec_from_dict
from tests.perturb.evidence import damage_row, measured

SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def spec(**sections: Any) -> Spec:
    """Return a spec whose screen has nineteen draws."""
    return spec_from_dict({"name": "x", "model": {"id": "m"}, **sections})


def noise(case: str, sigma: float, **about: Any) -> dict[str, Any]:
    """Return a row of Gaussian noise at one dose."""
    options = json.dumps({"relative_to": "weight", "sigma": sigma})
    return damage_row(case, **{"method": "gauss_noise", "options": options, "dose": sigma, **about})


def campaign(response: Any, of_random: Any, draws: int = 5) -> tuple[list[dict[str, Any]], Windows]:
    """Return a campaign of six doses: what the top group and every random draw cost at each, with little noise."""
    rng = np.random.default_rng(5)
    rows, damage = [], {}
    for sigma in SIGMAS[::-1]:  # in any order
        rows.append(noise(f"t{sigma}", sigma))
        damage[f"t{sigma}"] = response(sigma) + 1e-3 * rng.standard_normal(64)
        for draw in range(draws):
            rows.append(noise(f"r{sigma}-{draw}", sigma, metric=None, group="random_k", draw=draw))
            damage[f"r{sigma}-{draw}"] = of_random(sigma) + 1e-3 * rng.standard_normal(64)
    return rows, measured(damage, tokens=15)


def test_a_planted_power_law_is_found() -> None:
    """Damage of 2 sigma^1.5 is monotone, apart from nothing at 0.02 on, and the power curve carries the exponent."""
    rows, windows = campaign(lambda sigma: 2 * sigma**1.5, lambda sigma: 0.0)
    found, fits = dose_rows("r", effects(rows, windows), spec(), 0.005)
    (row,) = found
    assert row["doses"] == "0.01 0.02 0.05 0.1 0.2 0.5"
    assert (row["rising"], row["separates_at"], row["merges_at"]) == (1.0, 0.02, None)
    assert row["page_p"] < 1e-6
    power = {fit["parameter"]: fit for fit in fits if fit["model"] == "power"}
    assert power["b"]["low"] < power["b"]["value"] < power["b"]["high"]
    assert power["b"]["value"] == pytest.approx(1.5, rel=0.01)
    assert power["a"]["value"] == pytest.approx(2, rel=0.02)
    assert power["a"]["quantity"] == "damage of gauss_noise by sigma: act_mag, top_k, joint k=5"


def test_groups_merge_where_all_is_broken() -> None:
    """The dose where random weights do as much harm is where the groups merge again."""
    rows, windows = campaign(lambda sigma: min(8.0, 40 * sigma), lambda sigma: 8.5 if sigma >= 0.5 else 0.01)
    (row,), _ = dose_rows("r", effects(rows, windows), spec(), 0.005)
    assert (row["separates_at"], row["merges_at"]) == (0.01, 0.5)


def test_bits_of_a_quantisation_do_less_as_they_grow() -> None:
    """The strength of quantize is fewer bits, of clamp a lower quantile, of scale the distance from 1."""
    for method, option, values in [("quantize", "bits", (8, 6, 4)), ("clamp", "quantile", (0.999, 0.99, 0.9)),
                                   ("scale", "factor", (1.1, 1.5, 3.0))]:  # fmt: skip
        rows = [
            damage_row(f"c{n}", method=method, options=json.dumps({option: value}), dose=value)
            for n, value in enumerate(values)
        ]
        windows = measured({f"c{n}": np.full(8, 0.1 * (n + 1)) + 1e-4 * np.arange(8) for n in range(3)}, tokens=5)
        (row,), _ = dose_rows("r", effects(rows, windows), spec(), 0.0)
        assert (row["doses"], row["rising"]) == (" ".join(str(float(value)) for value in values), 1.0)


def test_cumulative_k_is_a_dose() -> None:
    """The first 1, 2, 4 and 8 weights are a series over K."""
    named = {1: "w:0,0"}  # one weight is named, several are not
    rows = [damage_row(f"c{k}", unit="cumulative", k=k, target=named.get(k)) for k in (1, 2, 4, 8)]
    windows = measured({f"c{k}": np.full(40, 0.01 * k) + 1e-5 * np.arange(40) for k in (1, 2, 4, 8)}, tokens=5)
    (row,), fits = dose_rows("r", effects(rows, windows), spec(), 0.0)
    assert (row["option"], row["doses"], row["k"], row["spearman"]) == ("k", "1.0 2.0 4.0 8.0", None, 1.0)
    assert row["target"] is None
    assert fits[0]["quantity"] == "damage of zero by k: act_mag, top_k, cumulative"


def test_a_broken_dose_is_counted() -> None:
    """A dose that left NaN enters no trend, and stands apart from random weights that live."""
    rows, windows = campaign(lambda sigma: sigma, lambda sigma: 0.0)
    broken = Windows(windows.base, windows.num_tokens, {**windows.nll, "t0.5": None})
    (row,), _ = dose_rows("r", effects(rows, broken), spec(), 0.0)
    assert (row["num_broken"], row["rising"], row["merges_at"]) == (1, 1.0, None)


def test_two_doses_are_no_response() -> None:
    """A line needs three points."""
    rows, windows = campaign(lambda sigma: sigma, lambda sigma: 0.0)
    few = [row for row in rows if row["dose"] < 0.03]
    assert dose_rows("r", effects(few, windows), spec(), 0.0) == ([], [])


def test_the_best_dose_is_where_random_weights_do_nothing() -> None:
    """A dose at which the top stands far above the draws has power 1 and the first place; one where all is equal has neither."""
    rows, windows = campaign(lambda sigma: 1.0 if sigma == 0.1 else 0.0, lambda sigma: 0.0, draws=19)
    found = discrimination_rows("r", effects(rows, windows), windows, spec())
    best = next(row for row in found if row["place"] == 1)
    assert (best["dose"], best["power"], best["auc"], best["p_value"]) == (0.1, 1.0, 1.0, 1 / 20)
    assert max(row["power"] for row in found if row is not best) < 0.9
    assert sorted(row["place"] for row in found) == [1, 2, 3, 4, 5, 6]


def test_power_is_what_resampling_the_windows_gives() -> None:
    """The vectorised power equals a loop over resamples of the windows."""
    rows, windows = campaign(lambda sigma: 4e-4, lambda sigma: 0.0, draws=19)
    chosen = [row for row in rows if row["dose"] == 0.1]
    (row,) = discrimination_rows("r", effects(chosen, windows), windows, spec(statistics={"resamples": 1999}))
    rng, hits = np.random.default_rng(0), 0
    top, *others = (windows.difference(one["case"]) for one in chosen)
    for _ in range(1000):
        picks = rng.integers(0, 64, 64)
        hits += sum(other[picks].sum() >= top[picks].sum() for other in others) == 0
    assert 0.05 < row["power"] < 0.95
    assert row["power"] == pytest.approx(hits / 1000, abs=0.05)


def test_retest_tells_stable_from_unstable() -> None:
    """Cases that differ far more than their halves do have an ICC near 1; cases that differ by noise alone near 0."""
    rng = np.random.default_rng(2)
    rows = [damage_row(f"c{n}", group="top_k", metric=f"m{n}") for n in range(12)]
    for size, low, high in ((1.0, 0.98, 1.0), (0.0, -0.6, 0.6)):
        damage = {f"c{n}": size * n + 0.1 * rng.standard_normal(40) for n in range(12)}
        windows = measured(damage, tokens=9)
        (row,) = reliability_rows("r", effects(rows, windows), windows, 0.95)
        assert (row["over"], row["num_cases"]) == ("windows", 12)
        assert low <= row["icc"] <= high


def test_repeats_have_a_spread() -> None:
    """Two draws of the noise give their mean, standard deviation and coefficient of variation."""
    rows = [noise(case, 0.1, repeat=n) for n, case in enumerate("ab")]
    windows = measured({"a": np.full(4, 0.1), "b": np.full(4, 0.3)}, tokens=7)
    (row,) = reliability_rows("r", effects(rows, windows), windows, 0.95)
    assert (row["over"], row["num_measurements"]) == ("repeats", 2)
    assert (row["mean"], row["sd"], row["cv"]) == pytest.approx((0.2, 0.02**0.5, 0.02**0.5 / 0.2))


def test_a_quantisation_has_curves() -> None:
    """The strength of quantize is the step between its levels: damage that goes with its square is a power law of 2."""
    bits = (8, 7, 6, 5, 4, 3)
    rows = [damage_row(f"c{n}", method="quantize", options=json.dumps({"bits": n}), dose=n) for n in bits]
    damage = {f"c{n}": np.full(8, 3.0 / (2 ** (n - 1) - 1) ** 2) + 1e-6 * np.arange(8) for n in bits}
    (row,), fits = dose_rows("r", effects(rows, measured(damage, tokens=5)), spec(), 0.0)
    assert row["doses"] == "8.0 7.0 6.0 5.0 4.0 3.0"
    exponent = next(fit for fit in fits if (fit["model"], fit["parameter"]) == ("power", "b"))
    assert exponent["value"] == pytest.approx(2, abs=0.01)


def test_every_draw_of_a_ranking_discriminates() -> None:
    """More draws than rank.draws count where no confirmatory test has draws of its own."""
    rows, windows = campaign(lambda sigma: 1.0, lambda sigma: 0.0, draws=39)
    counts = [
        {row["num_draws"] for row in discrimination_rows("r", effects(rows, windows), windows, chosen)}
        for chosen in (spec(rank={"draws": 19}), spec(rank={"draws": 19}, confirm={"metric": "act_mag"}))
    ]
    assert counts == [{39}, {19}]


def test_repeats_of_several_effects_have_a_correlation() -> None:
    """Groups whose repeats agree far better than the groups do have an ICC near 1 over repeats."""
    rng = np.random.default_rng(4)
    rows = [noise(f"c{n}-{repeat}", 0.1, metric=f"m{n}", repeat=repeat) for n in range(6) for repeat in range(3)]
    damage = {row["case"]: int(row["metric"][1]) + 0.05 * rng.standard_normal(1) + np.zeros(8) for row in rows}
    windows = measured(damage, tokens=9)
    found = reliability_rows("r", effects(rows, windows), windows, 0.95)
    (row,) = [row for row in found if row["over"] == "repeats" and row["num_cases"] > 1]
    assert (row["num_cases"], row["num_measurements"]) == (6, 3)
    assert row["icc"] > 0.99
    assert row["sd"] == pytest.approx(0.05, rel=0.5)


def test_power_that_no_draws_can_give_is_null() -> None:
    """With five draws no p is at most 0.05: the power is unknown, not nothing."""
    rows, windows = campaign(lambda sigma: sigma, lambda sigma: 0.0, draws=5)
    found = discrimination_rows("r", effects(rows, windows), windows, spec())
    assert {row["power"] for row in found} == {None}
    assert next(row["dose"] for row in found if row["place"] == 1) == 0.5
    broken = Windows(windows.base, windows.num_tokens, {**windows.nll, "t0.01": None})
    found = discrimination_rows("r", effects(rows, broken), broken, spec())
    assert next(row["dose"] for row in found if row["place"] == 1) == 0.01


def test_shrinking_and_growing_are_two_responses() -> None:
    """Factors below and above 1 make a series each."""
    factors = (0.9, 0.5, 0.0, 1.1, 2.0, 4.0)
    rows = [
        damage_row(f"c{n}", method="scale", options=json.dumps({"factor": f}), dose=f) for n, f in enumerate(factors)
    ]
    windows = measured({f"c{n}": np.full(8, 0.1 * n) + 1e-4 * np.arange(8) for n in range(6)}, tokens=5)
    found, _ = dose_rows("r", effects(rows, windows), spec(), 0.0)
    assert [row["doses"] for row in found] == ["0.9 0.5 0.0", "1.1 2.0 4.0"]
