"""`esa scale` over planted families: the laws that were planted come out, and what is no law is said to be none."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from esa.artifact import make_table
from esa.errors import ArtifactError
from esa.progress import Recording, Silent
from esa.scale import Asked, ScaleResult, Settings, Wanted, plan, run
from esa.spec import generator
from esa.statistics.multiplicity import holm
from tests.planted_runs import Case, Planted, family

QUICK = Settings(resamples=199, permutations=199)
ONE = Wanted(ks=(1,))
WIDTHS = (4, 6, 9, 13, 19, 28)


def power_damage(exponent: float = -0.4, noise: float = 0.02, scale: float = 20.0) -> Any:
    """Return damages ``scale N^exponent`` with a factor of noise per run; random weights do nothing."""

    def damage(one: Planted, case: Case) -> float:
        if case.group != "top_k":
            return 1e-6
        factor = math.exp(noise * float(generator(one.model_seed, "noise", case.k).standard_normal()))
        return scale * one.num_parameters**exponent * factor

    return damage


def made(root: Path, widths: Sequence[int] = WIDTHS, **knobs: Any) -> list[Path]:
    """Write a family of perturb steps, and return the run folders."""
    steps = {"steps": ("score", "rank", "perturb"), "ks": (1,), "singles": 0, "damage": power_damage()}
    return [root / "outputs" / one.name for one in family(root, widths, **{**steps, **knobs})]


def scaled(root: Path, sources: Sequence[Path], asked: Asked | None = None, **given: Any) -> ScaleResult:
    """Run ``esa scale`` with few draws."""
    return run(sources, asked or Asked(wanted=ONE, settings=QUICK), out=root / "scale", **given)


def law(result: ScaleResult, quantity: str, subject: str) -> dict[str, Any]:
    """Return the one row of ``laws/1`` of a quantity and subject."""
    frame = result.tables["laws/1"].frame
    (row,) = frame.filter((pl.col("quantity") == quantity) & (pl.col("subject") == subject)).to_dicts()
    return row


TOP = ("damage_top_k", "act_mag, zero, top 1")


def test_a_planted_power_law_comes_out(tmp_path: Path) -> None:
    """Exponent, weight, extrapolation and the band lie where they were planted."""
    sources = made(tmp_path, training_seeds=(0, 1))
    asked = Asked(wanted=ONE, settings=replace(QUICK, targets=(1e6, 1e5)))
    result = scaled(tmp_path, sources, asked)
    row = law(result, *TOP)
    assert (row["law"], row["response"], row["num_models"], row["num_points"]) == ("power", "log", 6, 12)
    assert row["exponent"] == pytest.approx(-0.4, abs=0.02)
    assert row["exponent_low"] < -0.4 < row["exponent_high"]
    assert row["power_r2"] == row["r2"] > 0.99
    assert row["verdict"].startswith("Power law x^-0.4")
    assert row["target"] == 1e6
    assert row["predicted"] == pytest.approx(20 * 1e6**-0.4, rel=0.1)
    assert row["predicted_low"] < 20 * 1e6**-0.4 < row["predicted_high"]
    assert row["prediction_error"] < 0.1
    assert "far" in row["flags"]
    bands = result.tables["bands/1"].frame.filter((pl.col("subject") == TOP[1]) & (pl.col("law") == "power"))
    assert {1e5, 1e6} <= set(bands["x"])
    inside = bands.select((pl.col("low") <= pl.col("y")) & (pl.col("y") <= pl.col("high")))
    assert inside.to_series().all()
    assert bands["x"].is_sorted()


def test_a_damage_that_does_not_follow_size_is_no_law(tmp_path: Path) -> None:
    """Noise without a trend is printed as no power law, and nothing is extrapolated from it."""
    values = (1.0, 1.9, 0.6, 1.7, 0.7, 1.3)

    def damage(one: Planted, case: Case) -> float:
        return values[WIDTHS.index(one.width)]

    asked = Asked(wanted=ONE, settings=replace(QUICK, targets=(1e9,)))
    row = law(scaled(tmp_path, made(tmp_path, damage=damage), asked), *TOP)
    assert row["verdict"].startswith("No power law (R2 0.")
    assert (row["target"], row["predicted"]) == (1e9, None)


def test_the_p_of_covariates_is_adjusted_over_the_whole_table(tmp_path: Path) -> None:
    """Two families measured in many ways: Holm's p is over all quantities, subjects and terms, as the changepoints' is."""
    one = made(tmp_path, (4, 9, 19), steps=("score", "rank", "perturb", "eval"))
    other = [
        Planted(tmp_path, f"g{width}", width=width, blocks=3, model_type="gpt2", steps=("score",))
        for width in (5, 11, 23)
    ]
    sources = [*one, *(each.write() or tmp_path / "outputs" / each.name for each in other)]
    frame = scaled(tmp_path, sources, Asked(settings=QUICK)).tables["covariates/1"].frame.drop_nulls("p_value")
    tests = frame.unique(["quantity", "subject", "term"], maintain_order=True)
    assert tests.height > 1
    assert tests["p_adjusted"].to_list() == pytest.approx(holm(tests["p_value"].to_list()))


def test_a_model_of_two_variants_and_other_units_are_warned_of(tmp_path: Path) -> None:
    """A vote that averages base and instruct, and rankings by other units, are said before the laws are."""
    sources = made(tmp_path, (4, 6))
    twin = Planted(tmp_path, "w4_chat", width=4, chat_template=True, steps=("score",))
    layered = Planted(tmp_path, "w9", width=9, steps=("score",), settings={"rank": {"mode": "per_layer"}})
    for each in (twin, layered):
        each.write()
    progress = Recording(None)
    scaled(tmp_path, [*sources, *(tmp_path / "outputs" / each.name for each in (twin, layered))], progress=progress)
    said = "\n".join(progress.warnings)
    assert "the one vote of w4 is a mean over variants (w4_seed0 is base, w4_chat is instruct)" in said
    assert "rank.mode differs between runs" in said


def test_damages_that_are_not_told_from_none_are_counted(tmp_path: Path) -> None:
    """Where the intervals of damages hold 0, a law through them may be one of noise: flag and verdict say so."""
    result = scaled(tmp_path, made(tmp_path, half_width=3.0))
    row = law(result, *TOP)
    assert "unclear" in row["flags"].split(",")
    assert "; 6 of 6 values are not told from 0 by their own windows" in row["verdict"]


def test_few_models_are_indicative_and_fewer_are_refused(tmp_path: Path) -> None:
    """Four models carry a flag and a warning, two are refused by name."""
    sources = made(tmp_path, WIDTHS[:4])
    listener = Silent()
    row = law(scaled(tmp_path, sources, progress=listener), *TOP)
    assert "indicative" in row["flags"].split(",")
    assert row["verdict"].endswith("; indicative: 4 models")
    assert listener.warnings == ["4 models: what follows is indicative; 6 or more carry a law"]
    with pytest.raises(ArtifactError, match=r"2 models \(w4, w6\) of 2 runs; a law needs at least 3 models"):
        scaled(tmp_path / "two", sources[:2])


def test_what_broke_is_named_and_not_fitted(tmp_path: Path) -> None:
    """A nonfinite and a collapsed model stand in points with a reason, in no fit, and in the flags."""

    def damage(one: Planted, case: Case) -> float | None:
        return {4: None, 6: 9.0}.get(one.width, 20 * one.num_parameters**-0.4)

    result = scaled(tmp_path, made(tmp_path, damage=damage))
    row = law(result, *TOP)
    assert row["num_models"] == 4
    assert {"left_out", "collapsed", "nonfinite", "indicative"} <= set(row["flags"].split(","))
    points = result.tables["points/1"].frame.filter(pl.col("quantity") == "damage_top_k")
    assert points["excluded"].to_list()[:3] == [
        "nonfinite: NaN or Inf in the logits", "collapsed: a perplexity over half the vocabulary", None,
    ]  # fmt: skip
    assert points["value"].to_list()[:2] == [None, None]


def test_a_run_that_learnt_nothing_keeps_its_points_and_loses_its_vote(tmp_path: Path) -> None:
    """A member that does not beat the bigram is named on screen and in the table, and the law is that of the others."""
    sources = made(tmp_path)
    poor = Planted(
        tmp_path, "poor", width=40, steps=("score", "rank", "perturb"), ks=(1,), damage=lambda one, case: 4.0,
        training={"held_out_nll": 6.0, "bigram_nll": 5.0},
    )  # fmt: skip
    listener = Silent()
    result = scaled(tmp_path, [*sources, poor.write()], progress=listener)
    why = "learnt too little: held-out NLL 6.000, a bigram's is 5.000"
    assert f"poor stands in no fit: {why}" in listener.warnings
    assert law(result, *TOP)["exponent"] == pytest.approx(-0.4, abs=0.02)
    frame = result.tables["points/1"].frame
    assert set(frame.filter(pl.col("label") == "poor")["excluded"]) == {why}
    assert frame.filter((pl.col("label") == "poor") & (pl.col("quantity") == "damage_top_k"))["value"].to_list() == [
        4.0
    ]


def test_active_weights_are_another_axis(tmp_path: Path) -> None:
    """Over active the law is of the weights that a token uses; a run that does not say how many is left out by name."""
    widths = {width: 10 * width**3 for width in WIDTHS}
    made_runs = [
        Planted(
            tmp_path, f"w{width}", width=width, active_parameters=active, num_experts=2, steps=("score", "rank", "perturb"),
            ks=(1,), damage=lambda one, case: 20 * float(one.active_parameters or 1) ** -0.7,
        )
        for width, active in widths.items()
    ]  # fmt: skip
    unknown = Planted(tmp_path, "unknown", width=40, num_experts=2, steps=("score", "rank", "perturb"), ks=(1,))
    sources = [one.write() for one in (*made_runs, unknown)]
    result = scaled(tmp_path, sources, Asked("active", ONE, QUICK))
    assert law(result, *TOP)["exponent"] == pytest.approx(-0.7, abs=1e-6)
    left = result.tables["points/1"].frame.filter(pl.col("label") == "unknown")
    assert set(left["excluded"]) == {"its manifests do not say how many weights are active"}


def test_a_family_beside_size_is_a_covariate(tmp_path: Path) -> None:
    """A family whose damage is twice another's at equal size has an effect of ln 2; what does not vary is not listed."""
    sources = made(tmp_path, training_seeds=(0,))
    twice = power_damage(scale=40.0)
    gpt = {"model_type": "gpt2", "architecture": "GPT2LMHeadModel", "damage": twice}
    others = [
        Planted(tmp_path, f"g{width}", width=width, model_seed=width, steps=("score", "rank", "perturb"), ks=(1,), singles=0, **gpt).write()
        for width in (5, 8, 11, 16)
    ]  # fmt: skip
    result = scaled(tmp_path, [*sources, *others])
    frame = result.tables["covariates/1"].frame
    (row,) = frame.filter(pl.col("quantity") == "damage_top_k").to_dicts()
    assert (row["term"], row["level"], row["against"], row["num_models"]) == ("family", "gpt2", "llama", 10)
    assert row["estimate"] == pytest.approx(math.log(2), abs=0.05)
    assert row["low"] < math.log(2) < row["high"]
    assert set(frame["term"]) == {"family"}


def test_runs_measured_differently_are_warned_of(tmp_path: Path) -> None:
    """Another evaluation text in one run is named: a law cannot tell it from size."""
    sources = made(tmp_path, WIDTHS[:5])
    other = Planted(
        tmp_path, "other", width=28, steps=("score",), settings={"eval": {"source": "builtin:sentences"}}
    )  # fmt: skip
    listener = Silent()
    scaled(tmp_path, [*sources, other.write()], progress=listener)
    (text,) = [one for one in listener.warnings if one.startswith("eval.source")]
    assert text.endswith("builtin:prose_eval in w4_seed0, w6_seed0, w9_seed0, ...; builtin:sentences in other") or (
        "builtin:sentences in other" in text
    )


def test_the_same_question_gives_the_same_bytes_and_is_answered_once(tmp_path: Path) -> None:
    """Two computations agree byte for byte; a finished step is reused; another option is another step."""
    sources = made(tmp_path, WIDTHS[:4])
    first, again = run(sources, Asked(wanted=ONE, settings=QUICK), root=tmp_path / "a"), scaled(tmp_path, sources)
    for name in ("points.csv", "laws.csv", "fits.csv", "bands.csv"):
        assert (first.folder / name).read_bytes() == (again.folder / name).read_bytes()
    assert run(sources, Asked(wanted=ONE, settings=QUICK), root=tmp_path / "a").reused
    other = run(sources, Asked(wanted=ONE, settings=replace(QUICK, seed=1)), root=tmp_path / "a")
    assert other.folder != first.folder
    assert first.folder.parent.name == "w4_seed0_w6_seed0_w9_seed0_w13_seed0"


def test_a_folder_of_runs_is_all_of_them(tmp_path: Path) -> None:
    """The folder that holds run folders stands for them, in the order of their names."""
    sources = made(tmp_path, (4, 6, 9))
    lines, _ = plan([tmp_path / "outputs"], Asked(wanted=ONE, settings=QUICK))
    assert [line.split(":")[0] for line in lines[:3]] == [
        f"reads {one}" for one in sorted(path.name for path in sources)
    ]


def test_a_plan_names_runs_models_and_quantities_and_writes_nothing(tmp_path: Path) -> None:
    """What would be read, left out and fitted, with no folder made."""
    sources = made(tmp_path, (4, 6, 9), training_seeds=(0, 1))
    asked = Asked(wanted=ONE, settings=QUICK, exclude=("w4_seed1",))
    lines, folder = plan(sources, asked, root=tmp_path / "none")
    assert "leaves out w4_seed1: left out by --exclude" in lines
    assert "model w6: 2 runs, 1,320 weights, llama, dense, base" in lines
    assert "fits damage_top_k: 1 subject" in lines
    assert not folder.parent.exists()


def test_steps_of_a_run_may_be_named_one_by_one(tmp_path: Path) -> None:
    """Step folders are put together to runs as everywhere."""
    family_made = family(tmp_path, (4, 6, 9), steps=("score", "rank", "perturb"), ks=(1,), damage=power_damage())
    steps = [folder for one in family_made for folder in one.folders.values()]
    assert law(scaled(tmp_path, steps), *TOP)["num_models"] == 3


def test_every_table_is_of_its_kind(tmp_path: Path) -> None:
    """What is written reads back as its kind, run ids included."""
    result = scaled(tmp_path, made(tmp_path, (4, 6, 9)))
    assert set(result.tables) == {"laws/1", "points/1", "fits/1", "bands/1"}
    for kind, table in result.tables.items():
        assert make_table(kind, table.frame.to_dicts()).frame.equals(table.frame)
        assert table.frame["run"].n_unique() == 1
