"""What a campaign shows: planted damage is found, random weights are the null, and what cannot be shown is not claimed."""

from typing import Any

import numpy as np
import pytest

from esa.perturb.evidence.claims import claim_rows
from esa.perturb.evidence.effects import Windows, effects
from esa.spec import Spec, spec_from_dict
from tests.perturb.evidence import damage_row, measured


def spec(**sections: Any) -> Spec:
    """Return a spec with one method, nineteen draws and sections of choice."""
    given = {"name": "x", "model": {"id": "m"}, "perturb": [{"method": "zero"}], "rank": {"k": [5], "draws": 19}}
    return spec_from_dict({**given, **sections})


def campaign(top: float, num_windows: int = 64, draws: int = 19, spread: float = 0.01) -> tuple[list[Any], Windows]:
    """Return a campaign whose top group costs ``top`` nats per token, whose random and bottom ones cost nothing but noise."""
    rng = np.random.default_rng(3)
    rows = [damage_row("t", group="top_k"), damage_row("b", group="bottom_k"), damage_row("m", group="matched_k")]
    rows += [damage_row(f"r{n}", metric=None, group="random_k", draw=n) for n in range(draws)]
    shift = {"t": top, "m": 0.02}
    damage = {row["case"]: shift.get(row["case"], 0.0) + spread * rng.standard_normal(num_windows) for row in rows}
    return rows, measured(damage, tokens=15)


def claims(found: tuple[list[Any], Windows], chosen: Spec, floor: float | None = 1e-3) -> dict[str, dict[str, Any]]:
    """Return the claims on a campaign by name; those of one name by group."""
    rows = claim_rows("r", effects(*found), chosen, floor)
    return {f"{row['claim']}:{row['group']}": row for row in rows}


def test_planted_damage_is_claimed() -> None:
    """A top group that costs 0.3 nats hurts, and more than every control, each with an interval around 0.3."""
    found = claims(campaign(0.3), spec())
    for name in ("hurts", "more_than_random", "more_than_bottom", "more_than_matched"):
        row = found[f"{name}:top_k"]
        assert row["holds"], name
        expected = 0.28 if name == "more_than_matched" else 0.3
        assert row["low"] < expected < row["high"]
        assert row["high"] - row["low"] < 0.02
    assert found["more_than_random:top_k"]["p_value"] == pytest.approx(1 / 20)
    assert found["more_than_random:top_k"]["z"] > 20
    assert found["more_than_random:top_k"]["cliffs_delta"] == 1.0


def test_the_ratio_is_conservative() -> None:
    """The low end of the top's interval stands over the largest random draw, or over the noise floor where that is larger."""
    rows, windows = campaign(0.3)
    found = effects(rows, windows)
    largest = max(one.order for one in found if one.about["group"] == "random_k")
    row = claims((rows, windows), spec())["more_than_random:top_k"]
    assert row["ratio"] == pytest.approx(row["low"] / max(largest, 1e-3))
    assert claims((rows, windows), spec(), floor=0.1)["more_than_random:top_k"]["ratio"] == pytest.approx(
        row["low"] / 0.1
    )


def test_nothing_is_claimed_of_a_null() -> None:
    """Where the top group is as harmless as random ones nothing is claimed of it, but that the controls do no harm."""
    found = claims(campaign(0.0, spread=0.002), spec())
    assert not any(found[f"{name}:top_k"]["holds"] for name in ("hurts", "more_than_random", "more_than_bottom"))
    assert found["no_harm:bottom_k"]["holds"]
    assert found["no_harm:random_k"]["num_draws"] == 19


def test_false_alarms_keep_to_their_level() -> None:
    """Over 200 campaigns without any effect, the screen of ``hurts`` claims something of a group in about 5 % of them."""
    alarms = 0
    for number in range(200):
        rng = np.random.default_rng(number)
        rows = [damage_row(f"t{n}", group="top_k", k=n + 1) for n in range(4)]
        damage = {row["case"]: 0.1 * rng.standard_normal(32) for row in rows}
        found = claim_rows("r", effects(rows, measured(damage, tokens=15)), spec(), 0.0)
        alarms += any(row["holds"] for row in found)
    assert 2 <= alarms <= 20


def test_the_confirmatory_test_stands_apart() -> None:
    """The claim that [confirm] names uses all draws and is not adjusted; the screen uses the first nineteen."""
    rows, windows = campaign(0.3, draws=199)
    found = claims((rows, windows), spec(confirm={"metric": "act_mag", "k": 5}))
    row = found["more_than_random:top_k"]
    assert (row["phase"], row["num_draws"], row["p_value"], row["adjustment"]) == ("confirmatory", 199, 1 / 200, "none")
    assert row["p_adjusted"] == row["p_value"]
    screened = claims((rows, windows), spec(confirm={"metric": "act_mag", "k": 4}))["more_than_random:top_k"]
    assert (screened["phase"], screened["num_draws"]) == ("screen", 19)


def test_few_windows_are_flagged() -> None:
    """Under thirty windows every claim says so, and a p that cannot be reached is called unattainable."""
    found = claims(campaign(0.3, num_windows=4), spec())
    assert all("few_windows" in row["flags"] for row in found.values())
    assert "unattainable" in found["hurts:top_k"]["flags"]  # sixteen sign flips
    assert claims(campaign(0.3), spec())["hurts:top_k"]["flags"] is None


def test_bca_stands_beside_from_a_hundred_windows() -> None:
    """The second interval is there from 100 windows on, and agrees with the first on data without skew."""
    few, many = (claims(campaign(0.3, num_windows=n), spec())["hurts:top_k"] for n in (99, 100))
    assert few["bca_low"] is None
    assert many["bca_low"] == pytest.approx(many["low"], abs=2e-3)


def test_a_nonfinite_effect_is_the_worst() -> None:
    """A model that breaks has no interval, beats every draw that does not, and ties with one that breaks too."""
    rows, windows = campaign(0.3)
    broken = Windows(windows.base, windows.num_tokens, {**windows.nll, "t": None})
    row = claims((rows, broken), spec())["more_than_random:top_k"]
    assert (row["estimate"], row["low"], row["p_value"], row["flags"]) == (None, None, 1 / 20, "nonfinite")
    both = Windows(windows.base, windows.num_tokens, {**windows.nll, "t": None, "r3": None})
    assert claims((rows, both), spec())["more_than_random:top_k"]["p_value"] == 2 / 20


def test_an_effect_below_the_floor_is_not_claimed() -> None:
    """A difference that is significant and no larger than the noise floor does not hold."""
    row = claims(campaign(0.3), spec(), floor=0.5)["hurts:top_k"]
    assert row["p_adjusted"] < 0.05
    assert (row["holds"], row["flags"]) == (False, "below_floor")


def test_repeats_are_averaged() -> None:
    """The cases of one effect are its repeats: one claim stands on their mean."""
    rows = [damage_row(case, group="top_k", repeat=n) for n, case in enumerate("ab")]
    found = effects(rows, measured({"a": np.full(40, 0.1), "b": np.full(40, 0.3)}, tokens=7))
    assert len(found) == 1
    assert found[0].estimate == pytest.approx(0.2)


def test_a_difference_below_the_floor_is_not_claimed() -> None:
    """Two groups that hurt alike differ by less than the noise floor: neither hurts more, whatever p says."""
    rows = [damage_row("t", group="top_k"), damage_row("b", group="bottom_k")]
    shape = np.linspace(0.2, 0.4, 64)
    found = claims((rows, measured({"t": shape + 5e-4, "b": shape}, tokens=15)), spec(), floor=1e-3)
    row = found["more_than_bottom:top_k"]
    assert (row["estimate"], row["flags"], row["holds"]) == (pytest.approx(5e-4), "below_floor", False)
    assert row["p_adjusted"] < 0.001
    assert found["hurts:top_k"]["holds"]
    apart = claims((rows, measured({"t": shape * 0 + 5e-4, "b": shape * 0 - 1.0}, tokens=15)), spec(), floor=1e-3)
    assert (apart["more_than_bottom:top_k"]["flags"], apart["more_than_bottom:top_k"]["holds"]) == (None, True)


def test_a_control_that_breaks_is_said() -> None:
    """Against a control that left NaN no difference is stated, and the flag says whose NaN it was."""
    rows, windows = campaign(0.3)
    broken = Windows(windows.base, windows.num_tokens, {**windows.nll, "m": None})
    row = claims((rows, broken), spec())["more_than_matched:top_k"]
    assert (row["estimate"], row["p_value"], row["holds"], row["flags"]) == (None, None, None, "nonfinite_control")


def test_the_screen_uses_every_draw_of_a_ranking() -> None:
    """A ranking with more draws than rank.draws is used whole: only a confirmatory test has draws of its own."""
    rows, windows = campaign(0.3, draws=39)
    found = claims((rows, windows), spec(rank={"k": [5], "draws": 19}))
    assert (found["more_than_random:top_k"]["num_draws"], found["no_harm:random_k"]["num_draws"]) == (39, 39)
    assert found["more_than_random:top_k"]["p_value"] == 1 / 40
