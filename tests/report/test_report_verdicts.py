"""Verdicts on planted numbers: every quantity computed by hand, and what is said where it cannot be."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esa.artifact.grouping import group
from esa.report.criteria import Band, Criterion, load_criteria
from esa.report.quantities.measures import Found, Needs
from esa.report.verdicts import Judged, judge, verdict
from tests.report.conftest import BASE, FLOOR, Fake
from tests.report.evidence import add_step, add_tables, candidate, claim, dose

Maker = Callable[..., Fake]
SMALL: dict[str, Any] = {"metrics": ("act_mag",), "methods": ({"method": "zero"},)}
CONFIRM = {"confirm": {"metric": "act_mag", "k": 10}}


def held(*folders: Path) -> dict[str, Judged]:
    """Return the verdicts of the criteria that ship, by id: the first of each."""
    found: dict[str, Judged] = {}
    grouped = group(list(folders))
    for one in judge(load_criteria(), [(run.name, run) for run in grouped.runs]):
        found.setdefault(one.criterion.id, one)
    return found


def with_claims(made: Fake, *rows: dict[str, Any]) -> dict[str, Judged]:
    """Return the verdicts on a run whose campaign claims ``rows``."""
    add_tables(made.folders["perturb"], {"tests.csv": ("tests/1", rows)})
    return held(made.run)


def number_of(one: Judged) -> float:
    """Return the value behind a verdict."""
    assert isinstance(one.answer, Found), one.why
    return one.answer.value


def criterion(good: dict[str, float], bad: dict[str, float] | None = None) -> Criterion:
    """Return a criterion with these bands."""
    bands = {"good": Band(**good), "bad": None if bad is None else Band(**bad)}
    return Criterion(id="x", quantity="seed_jaccard", phase="any", source="test", **bands)


@pytest.mark.parametrize(
    ("good", "bad", "value", "low", "high", "expected"),
    [
        ({"min": 3.0}, None, 3.0, None, None, "good"),
        ({"above": 3.0}, None, 3.0, None, None, "bad"),
        ({"min": 3.0}, None, 4.0, 2.0, 5.0, "between"),
        ({"min": 3.0}, None, 2.0, 1.0, 2.9, "bad"),
        ({"above": 0.3}, {"below": 0.2}, 0.25, None, None, "between"),
        ({"above": 0.3}, {"below": 0.2}, 0.15, 0.1, 0.25, "between"),
        ({"above": 0.3}, {"below": 0.2}, 0.15, 0.1, 0.19, "bad"),
        ({"min": 3.0}, None, math.inf, None, None, "good"),
    ],
)
def test_the_whole_interval_decides(good: Any, bad: Any, value: float, low: Any, high: Any, expected: str) -> None:
    """Good and bad need value and interval in the band; what straddles a bound is between."""
    assert verdict(criterion(good, bad), Found(value, "", low, high))[0] == expected


def test_what_cannot_be_reached_says_what_it_would_need() -> None:
    """A best value outside of the good band is unattainable, and so is no value; the reason is made of the numbers."""
    one = criterion({"min": 4.0})
    limited = Found(1.0, "ignored", best=1.0, needs="architectures", has="1 (Llama)")
    assert verdict(one, limited) == ("unattainable", "needs at least 4 architectures, has 1 (Llama)")
    assert verdict(one, Needs("two seeds")) == ("unattainable", "needs two seeds")


def test_separation_is_the_conservative_ratio(fake: Maker) -> None:
    """Four times the largest draw at the least is good at 3 and bad at 5; the reason names both numbers."""
    found = with_claims(fake(**SMALL, settings=CONFIRM), claim(low=0.4, ratio=4.0, num_draws=19))
    assert [found[name].verdict for name in ("separation_random", "separation_random_strict")] == ["good", "bad"]
    assert found["separation_random"].why == "low end 0.4000 nats per token over the largest of 19 draws, 0.1000"
    floor = with_claims(fake(name="floor", **SMALL, settings=CONFIRM), claim(low=4 * FLOOR, ratio=4.0))
    assert "over the noise floor, 2.500e-6" in floor["separation_random"].why


def test_a_broken_model_is_beyond_every_ratio(fake: Maker) -> None:
    """Where only the top weights leave NaN the separation is infinite; where only a draw does it is nothing."""
    lost = {"estimate": None, "low": None, "high": None, "ratio": None}
    found = with_claims(
        fake(**SMALL, settings=CONFIRM), claim(**lost, flags="nonfinite"), claim("hurts", **lost, flags="nonfinite")
    )
    assert number_of(found["separation_random"]) == number_of(found["effect_size"]) == math.inf
    assert found["effect_size"].verdict == "good"
    draw = with_claims(fake(name="draw", **SMALL, settings=CONFIRM), claim(ratio=None, flags="nonfinite_draws"))
    assert (number_of(draw["separation_random"]), draw["separation_random"].verdict) == (0.0, "bad")


def test_random_over_bottom_by_hand(fake: Maker) -> None:
    """The mean low end of the draws over the bottom's high end, or the noise floor where that is larger."""
    rows = [
        {"case": f"r{n}", "group": "random_k", "draw": n, "delta_nll": 1.0, "delta_low": low, "delta_high": 2.0}
        for n, low in enumerate((0.4, 0.8))
    ]
    bottom = {
        "case": "b",
        "metric": "act_mag",
        "group": "bottom_k",
        "delta_nll": 0.1,
        "delta_low": 0.0,
        "delta_high": 0.15,
    }
    about = {
        "seed": 0,
        "method": "zero",
        "options": "{}",
        "unit": "joint",
        "k": 10,
        "outcome": "ok",
        "ppl_base": 19.5,
        "noise_floor": 0.01,
    }
    made = fake(**SMALL, settings=CONFIRM)
    add_tables(made.folders["perturb"], {"damage.csv": ("damage/1", [{**about, **row} for row in (*rows, bottom)])})
    assert number_of(held(made.run)["separation_bottom"]) == pytest.approx(0.6 / 0.15)
    quiet = {**bottom, "delta_high": 1e-4}
    add_tables(made.folders["perturb"], {"damage.csv": ("damage/1", [{**about, **row} for row in (*rows, quiet)])})
    assert number_of(held(made.run)["separation_bottom"]) == pytest.approx(0.6 / 0.01)


def test_the_effect_in_perplexity_has_its_interval(fake: Maker) -> None:
    """0.08 with an interval from 0.04 to 0.12 is between; from 0.11 on it is good."""

    def row(*rises: float) -> dict[str, Any]:
        values = [math.log1p(rise / 19.5) for rise in rises]
        return claim("hurts", **dict(zip(("estimate", "low", "high"), values, strict=True)))

    one = with_claims(fake(**SMALL, settings=CONFIRM), row(0.08, 0.04, 0.12))["effect_size"]
    assert (one.verdict, one.answer.value, one.answer.low) == ("between", pytest.approx(0.08), pytest.approx(0.04))  # type: ignore[union-attr]
    made = fake(name="more", **SMALL, settings=CONFIRM)
    assert with_claims(made, row(0.13, 0.11, 0.15))["effect_size"].verdict == "good"


def test_a_p_that_no_draws_can_reach_is_unattainable(fake: Maker) -> None:
    """Nineteen draws reach 0.05 and not below: both levels are unattainable; 199 decide at both."""
    few = {"phase": "confirmatory", "num_draws": 19, "p_value": 0.05, "smallest_p": 0.05}
    found = with_claims(fake(**SMALL, settings=CONFIRM), claim(**few))
    assert found["significance"].why == "needs under 0.05 as smallest attainable p, has 0.05000 (19 draws of random_k)"
    many = {"phase": "confirmatory", "num_draws": 199, "p_value": 0.02, "smallest_p": 0.005}
    found = with_claims(fake(name="many", **SMALL, settings=CONFIRM), claim(**many))
    assert [found[name].verdict for name in ("significance", "significance_strict")] == ["good", "bad"]
    assert held(fake(name="none", **SMALL).run)["significance"].verdict == "unattainable"


def test_several_confirmatory_tests_are_holm_adjusted(fake: Maker) -> None:
    """Two runs with p 0.005 and 0.04 are judged at 0.01 and 0.04."""
    runs = []
    for name, p in (("a", 0.005), ("b", 0.04)):
        made = fake(name=name, **SMALL, settings=CONFIRM)
        row = claim(phase="confirmatory", p_value=p, smallest_p=0.005, num_draws=199)
        add_tables(made.folders["perturb"], {"tests.csv": ("tests/1", [row])})
        runs.append((name, group([made.run]).runs[0]))
    found = [one for one in judge(load_criteria(), runs) if one.criterion.id == "significance_strict"]
    assert [(one.subject, number_of(one), one.verdict) for one in found] == [("a", 0.01, "bad"), ("b", 0.04, "bad")]


def test_the_advantage_must_hold_under_every_method(fake: Maker) -> None:
    """One method of two that fails is named; one method alone shows nothing about all."""
    lost = claim(method="gauss_noise", options='{"sigma":0.1}', holds=False)
    found = with_claims(fake(**SMALL, settings=CONFIRM), claim(), lost)["all_methods"]
    assert (found.verdict, found.why) == ("bad", "1 of 2 methods and options; not under gauss_noise, sigma 0.1")
    alone = with_claims(fake(name="alone", **SMALL, settings=CONFIRM), claim())["all_methods"]
    assert alone.verdict == "unattainable"


def test_architectures_are_counted_over_the_runs(fake: Maker) -> None:
    """One architecture is unattainable; four of which one fails is bad."""
    folders = []
    for n, (name, holds) in enumerate((("Llama", True), ("GPT2", True), ("Phi3", True), ("Gemma2", False))):
        made = fake(name=f"run{n}", **SMALL, settings=CONFIRM)
        add_tables(made.folders["perturb"], {"tests.csv": ("tests/1", [claim(holds=holds)])})
        path = made.folders["perturb"] / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({**manifest, "model": {**manifest["model"], "architecture": name}}))
        folders.append(made.run)
    assert held(folders[0])["architectures"].why == "needs at least 4 architectures, has 1 (Llama)"
    found = held(*folders)["architectures"]
    assert (found.verdict, number_of(found)) == ("bad", 3.0)


def test_the_least_monotone_response_counts(fake: Maker) -> None:
    """Of two responses of the metric the worse one is judged; another metric's is not."""
    made = fake(**SMALL, settings=CONFIRM)
    rows = [dose(), dose(option="prob", rising=0.75), dose(metric="obd", rising=0.1)]
    add_tables(made.folders["perturb"], {"dose.csv": ("dose/1", rows)})
    found = held(made.run)["monotone_dose"]
    assert (found.verdict, number_of(found)) == ("bad", 0.75)


def test_lists_are_judged_by_their_summaries(fake: Maker) -> None:
    """The mean Jaccard across seeds at the subject's k, and the shared part of two metrics' lists."""
    made = fake(
        metrics=("grad_x_weight", "grad_squared"),
        methods=SMALL["methods"],
        settings={"confirm": {"metric": "grad_squared", "k": 10}},
    )
    summary = {
        "metrics": {
            "grad_squared": {
                str(k): {"jaccard_mean": mean, "num_seeds": 3, "jaccard_all": [mean]}
                for k, mean in ((10, 0.35), (100, 0.9))
            }
        }
    }
    (made.folders["overlap"] / "stability_summary.json").write_text(json.dumps(summary))
    found = held(made.run)
    assert [found[f"seed_stability{name}"].verdict for name in ("", "_strict", "_ideal")] == [
        "good",
        "between",
        "between",
    ]
    assert number_of(found["gradient_agreement"]) == pytest.approx(0.1)  # one of ten, as the fake run's lists share
    assert found["gradient_agreement"].verdict == "bad"
    assert "two seeds or more" in held(fake(name="one", **SMALL).run)["seed_stability"].why


def test_the_tail_is_measured_between_bin_edges(fake: Maker) -> None:
    """98 scores in a bin from 1 to 2 and two from 30 to 40: the top 1 % begins at 30, the median lies below 2."""
    made = fake(**SMALL)
    about = {"metric": "act_mag", "seed": 0, "parameter": "w"}
    bins = [
        {**about, "bin_low": 1.0, "bin_high": 2.0, "count": 98},
        {**about, "bin_low": 30.0, "bin_high": 40.0, "count": 2},
    ]
    add_tables(made.folders["score"], {"histogram.parquet": ("histogram/1", bins)})
    found = held(made.run)["heavy_tail"]
    assert (number_of(found), found.verdict) == (15.0, "good")


def test_pruning_is_held_against_magnitude(fake: Maker) -> None:
    """0.3 nats at most against 0.5 at least is a gain of 40 %; a harmless magnitude pruning gives none to measure."""
    made = fake(**SMALL, settings=CONFIRM)
    about = {
        "seed": 0,
        "group": "bottom_k",
        "method": "zero",
        "options": "{}",
        "unit": "joint",
        "k": 100,
        "outcome": "ok",
        "ppl_base": 19.5,
        "noise_floor": 0.01,
    }

    def tables(low: float) -> dict[str, Any]:
        mine = {"case": "a", "metric": "act_mag", "delta_nll": 0.2, "delta_low": 0.1, "delta_high": 0.3}
        theirs = {"case": "m", "metric": "magnitude", "delta_nll": 0.6, "delta_low": low, "delta_high": 0.7}
        return {"damage.csv": ("damage/1", [{**about, **mine}, {**about, **theirs}])}

    add_tables(made.folders["perturb"], tables(0.5))
    assert number_of(held(made.run)["pruning"]) == pytest.approx(0.4)
    add_tables(made.folders["perturb"], tables(0.005))
    assert "at which pruning by magnitude does harm" in held(made.run)["pruning"].why


def test_roles_are_those_that_the_detector_tested(fake: Maker) -> None:
    """Of the top ten one is a writer with a verdict; an unclear one has no role."""
    made = fake(**SMALL, settings=CONFIRM)
    unclear = candidate(2, 5, 1, 1, verdict="unclear")
    folder = add_step(made, "detector", {"detector.csv": ("detector/1", [candidate(1, 11, 507, 1229), unclear])})
    found = held(made.run, folder)["roles"]
    assert (number_of(found), found.why, found.verdict) == (0.1, "1 writer among the top 10: 10.0 %", "bad")


def evaluation(made: Fake, *nll: float | None, cv: float | None = None) -> Path:
    """Return an eval step with one measurement per value."""
    rows = [
        {"case": "i", "task": "language_modeling", "metric": "nll", "value": one, "source": "t", "length": 8, "seed": n}
        for n, one in enumerate(nll)
    ]
    spread = [
        {
            "task": "language_modeling",
            "metric": "perplexity",
            "source": "t",
            "length": 8,
            "num_seeds": 2,
            "mean": 9.0,
            "cv": cv,
        }
    ]
    return add_step(made, "eval", {"eval.csv": ("eval/1", rows), "spread.csv": ("spread/1", spread)})


def test_the_baseline_is_judged(fake: Maker) -> None:
    """A spread of 7 % is between, one of 11 % bad; a measurement without an NLL is a NaN."""
    found = held(evaluation(fake(name="a", steps=("score",), **SMALL), BASE, None, cv=0.07))
    assert [found[name].verdict for name in ("baseline_spread", "no_nan")] == ["between", "bad"]
    found = held(evaluation(fake(name="b", steps=("score",), **SMALL), BASE, BASE, cv=0.11))
    assert [found[name].verdict for name in ("baseline_spread", "no_nan")] == ["bad", "good"]


def test_phases_are_compared_on_what_they_share(fake: Maker) -> None:
    """Perplexity 2 % up from smoke to standard and 12 % down to extended is no degradation; 12 % up is."""

    def phases(*ratios: float) -> Judged:
        total, folders = BASE, []
        for phase, ratio in zip(("smoke", "standard", "extended"), ratios, strict=True):
            total += math.log(ratio)
            folders.append(
                evaluation(fake(name=f"r{len(ratios)}{ratios[2]}_{phase}", steps=("score",), **SMALL), total)
            )
        return held(*folders)["no_degradation"]

    fine = phases(1.0, 1.02, 0.88)
    assert (fine.verdict, number_of(fine)) == ("good", pytest.approx(0.02))
    assert phases(1.0, 1.02, 1.12).verdict == "bad"
    assert (
        held(evaluation(fake(name="a_smoke", steps=("score",), **SMALL), BASE))["no_degradation"].verdict
        == "unattainable"
    )


def test_damage_against_size_by_hand(fake: Maker) -> None:
    """Damage that doubles with ten times the weights fits a line in logarithms; a largest model off by half is not predicted."""

    def sized(*damages: float) -> dict[str, Judged]:
        folders = []
        for n, damage in enumerate(damages):
            made = fake(name=f"s{n}_{damages[-1]}", **SMALL, settings=CONFIRM)
            add_tables(made.folders["perturb"], {"tests.csv": ("tests/1", [claim("hurts", estimate=damage)])})
            path = made.folders["perturb"] / "manifest.json"
            manifest = json.loads(path.read_text())
            path.write_text(json.dumps({**manifest, "model": {**manifest["model"], "num_parameters": 10 ** (6 + n)}}))
            folders.append(made.run)
        return held(*folders)

    straight = sized(0.1, 0.2, 0.4, 0.8)
    assert number_of(straight["scaling_fit"]) == pytest.approx(1.0)
    assert number_of(straight["scaling_prediction"]) == pytest.approx(0.0, abs=1e-9)
    bent = sized(0.1, 0.2, 0.4, 0.533333)
    assert number_of(bent["scaling_prediction"]) == pytest.approx(0.5, rel=1e-4)
    assert bent["scaling_prediction"].verdict == "bad"
    assert sized(0.1, 0.2)["scaling_fit"].why == "needs 4 models of different size whose top weights do harm, has 2"


def test_without_a_named_metric_each_is_judged(fake: Maker) -> None:
    """A run that names no primary metric is judged by every one, and by the named one alone where there is one."""
    made = fake(metrics=("act_mag", "grad_x_weight"), methods=SMALL["methods"])
    runs = [("r", group([made.run]).runs[0])]
    tails = [one for one in judge(load_criteria(), runs) if one.criterion.id == "heavy_tail"]
    assert [one.subject for one in tails] == ["act_mag", "grad_x_weight"]
    assert {one.subject for one in judge(load_criteria(), runs) if one.criterion.id == "separation_bottom"} == {
        "act_mag, zero, k = 10",
        "grad_x_weight, zero, k = 10",
    }
    named = fake(name="named", metrics=("act_mag", "grad_x_weight"), methods=SMALL["methods"], settings=CONFIRM)
    runs = [("r", group([named.run]).runs[0])]
    assert len([one for one in judge(load_criteria(), runs) if one.criterion.id == "heavy_tail"]) == 1


def test_a_criterion_of_a_phase_is_held_to_its_runs(fake: Maker) -> None:
    """A run whose name says another phase is left out, and what is needed then is said."""
    one = criterion({"above": 0.1}).model_copy(update={"phase": "standard"})
    criteria = load_criteria()
    runs = [("a_smoke", group([fake(name="a_smoke", **SMALL).run]).runs[0])]
    found = judge(type(criteria)((one,), criteria.sha256, criteria.path), runs)
    assert found[0].why == "needs a run of the phase standard, which its name says; has a_smoke"
