"""What the page across models may say: claims that their tests carry, nulls that stay nulls, and a file per figure."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from esa.artifact import make_table
from esa.artifact.grouping import group
from esa.report.across.architecture import architecture_parts, density_sentences
from esa.report.across.charts_scaling import Drawn, law_chart
from esa.report.across.law_figures import law_points
from esa.report.across.meta import figures as meta_figures
from esa.report.across.meta import pooled_findings
from esa.report.across.robustness import robustness_parts
from esa.report.across.scaling import beyond
from esa.report.criteria import load_criteria
from esa.report.figures import Figure, distinct
from esa.report.opening import content_of, opened
from esa.report.paper.names import Macros
from esa.report.paper.tables import paper_tables
from esa.report.verdicts import judge
from tests.report import across


def test_what_a_test_says_stands_beside_the_densities() -> None:
    """Attention may be denser everywhere and not be told apart from the MLP: how often it is, after adjustment, is said."""
    about = {"metric": "obd", "seed": 0, "by": "part"}
    rows = [
        {**about, "label": label, "value": value, "weight_share": 0.5, "score_share": score, "density": 2 * score}
        for label in "ab" for value, score in (("attention", 0.6), ("mlp", 0.4))
    ]  # fmt: skip
    rows += [
        {**about, "by": "component", "label": one, "value": "mlp.up", "weight_share": 0.5, "density": 1.0}
        for one in "ab"
    ]
    tests = [
        across.answer("attention against MLP", "density_ratio", a=a, value=1.5, p_value=0.03, p_adjusted=adjusted)
        for a, adjusted in (("a", 0.04), ("b", 0.2))
    ]
    found = density_sentences(make_table("shares/1", rows).frame, make_table("comparison/1", tests).frame)
    assert found[0].endswith(
        "Attention is denser than the MLP in 2 of 2. By the test within blocks they differ in 1 of 2 (adjusted p at most 0.05)."
    )


def test_a_part_of_which_nothing_is_known_has_no_row(tmp_path: Path) -> None:
    """What no metric scored and nothing tried is left out of the table of parts; what was tried without a score is in it."""
    about = {"label": "m", "metric": "obd", "seed": 0, "by": "part"}
    rows = [
        *across.shares(("m",)), {**about, "value": "not scored"},
        {**about, "value": "shared", "num_tested": 1, "mean_damage": 0.25, "max_damage": 0.25},
    ]  # fmt: skip
    folder = across.write_step(tmp_path, "arch", {"shares/1": rows})
    text = "\n\n".join(architecture_parts(group([folder]).runs[0]))
    assert "not scored" not in text
    row = next(line for line in text.splitlines() if line.startswith("| `m` | obd | shared |"))
    assert row.split(" | ")[7:9] == ["1", "0.2500"]


def test_an_order_within_the_intervals_is_no_order(tmp_path: Path) -> None:
    """Where the intervals of first and last rank overlap it is not settled who loses least; without any nothing is bold."""
    rows = across.robustness()
    for row in rows:
        row["rank_low"], row["rank_high"] = 1, 4
    unknown = [{**row, "k": 10, "rank_low": None, "rank_high": None} for row in rows]
    folder = across.write_step(tmp_path, "arch", {"robustness/1": [*rows, *unknown]})
    text = robustness_parts(group([folder]).runs[0])[0]
    assert text.startswith(
        "- **Which model loses least with the top 100 by `obd` under zero is not settled: the intervals of the ranks overlap**,"
        " from `smollm2-135m` (0.3000 nats per token) to `mixtral-tiny` (4.000 nats per token)."
    )
    assert "- Losing the top 10 by `obd` under zero costs `smollm2-135m`" in text
    assert text.endswith("no interval of their ranks is known.")


def test_a_law_without_r2_claims_none(tmp_path: Path) -> None:
    """A fit whose R2 is not known is drawn without one: a null is not 0.00."""
    for row in (across.law(), across.law(r2=None)):
        drawn = law_points(row, make_table("points/1", across.points()).frame, None)
        assert drawn is not None
        assert drawn.subtitle[1] == ("power law, R2 0.97" if row["r2"] else "power law")


def test_figures_of_one_page_have_names_of_their_own(tmp_path: Path) -> None:
    """Long tasks whose slugs are cut alike still give a file each, on the page of a step and beside another one."""
    rows = [
        {**row, "metric": metric, "task": "language_modeling (file:outputs/a/folder/of/some/depth/held_out.txt, 128 tokens)"}
        for metric in ("obd", "act_mag", "wanda") for row in across.robustness()
    ]  # fmt: skip
    one = across.write_step(tmp_path, "arch", {"robustness/1": rows})
    other = across.write_step(tmp_path, "arch", {"robustness/1": rows, "shares/1": across.shares()}, name="other")
    for folders in ([one], [one, other]):
        found = [figure.name for figure in content_of(opened(folders, None)[0], []).figures]
        assert sum(name.startswith("pareto_") for name in found) == 3 * len(folders)
        assert len(found) == len(set(found))
    same = [Figure("a", "s", None, pl.DataFrame(), "t", "c")] * 3  # type: ignore[arg-type]
    assert [figure.name for figure in distinct(same)] == ["a", "a_2", "a_3"]


def test_the_criteria_of_scaling_read_a_scale_step(tmp_path: Path) -> None:
    """R2 and the prediction of the largest model come from the points of its fits: the largest K, nobody that was left out."""
    rows = [
        {**row, "k": k, "value": row["num_parameters"] ** 0.5 * (1 if k == 100 else 1 + 9 * (n % 2))}
        for k in (10, 100) for n, row in enumerate(across.points(subject=f"obd, zero, top {k}"))
    ]  # fmt: skip
    rows[12]["value"], rows[13]["value"] = (
        1e9,
        -1.0,
    )  # of the smallest model: the first is excluded, the second no damage
    folder = across.write_step(tmp_path, "scale", {"points/1": rows, "laws/1": [across.law()]})
    judged = {one.criterion.id: one for one in judge(load_criteria(), group([folder]).runs[0].pairs)}
    fit, prediction = judged["scaling_fit"], judged["scaling_prediction"]
    assert (fit.subject, fit.verdict) == ("obd, zero, top 100", "good")
    assert fit.why.endswith("to the power 0.5000, 5 sizes; 1 without damage above zero left out")
    assert prediction.verdict == "good"


def drawn_law(**changes: Any) -> Drawn:
    """Return what the plot of a law and its band shows."""
    row = across.law(**changes)
    points = across.points(row["quantity"], row["subject"])
    bands = [one | {"quantity": row["quantity"]} for one in across.band()]
    found = law_points(row, make_table("points/1", points).frame, make_table("bands/1", bands).frame)
    assert found is not None
    return found


def test_a_law_that_does_not_stand_is_not_drawn_beyond_the_models() -> None:
    """Its line ends at the largest model and the title says that none stands; one that stands goes on to the target."""
    standing, fallen = drawn_law(), drawn_law(verdict="No power law (R2 0.12)")
    largest = float(standing.points["x"].max())  # type: ignore[arg-type]
    assert float(standing.band["x"].max()) == pytest.approx(across.TARGET)  # type: ignore[arg-type]
    assert float(fallen.band["x"].max()) == largest  # type: ignore[arg-type]
    assert fallen.points["residual"].to_list() == standing.points["residual"].to_list()
    assert not fallen.points["residual"].null_count()
    assert fallen.subtitle[1] == "no law stands; the best is power, R2 0.97"


def test_a_law_is_drawn_and_read_as_far_as_its_quantity_can_be() -> None:
    """A share over 1 is no prediction: the line ends where it leaves 0 to 1, and its value at the target says so."""
    shown = drawn_law(quantity="half_share")
    assert 0 < float(shown.band["y"].max()) <= 1.0  # type: ignore[arg-type]
    assert float(shown.band["high"].max()) <= 1.0  # type: ignore[arg-type]
    row = across.law(quantity="half_share", predicted=2.15)
    assert beyond(row) == " (the law does not reach there: it cannot be over 1)"
    assert beyond(row | {"quantity": "top_to_median", "predicted": 6e-8}).endswith("it cannot be under 1)")
    assert beyond(row | {"predicted": 0.5}) == beyond(across.law(predicted=9.0)) == ""


def test_a_law_below_zero_has_no_line_on_a_logarithmic_axis() -> None:
    """A linear law that leaves the positive numbers ends there: the axis would mirror it."""
    shown = drawn_law()
    band = shown.band.with_columns(pl.when(pl.col("x") > 1e7).then(-pl.col("y")).otherwise(pl.col("y")).alias("y"))
    values = json.dumps(law_chart(replace(shown, band=band)).to_dict())
    assert '"y": -' not in values


def test_of_many_pooled_effects_all_are_counted_and_the_largest_is_told(tmp_path: Path) -> None:
    """The finding is not that of whichever came first: how many are above zero, below, neither, and the largest above."""
    rows = [
        {"subject": f"s{n}", "num_models": 6, "mean": float(n), "low": n - 1.5, "high": n + 1.5, "p_value": 0.5}
        for n in range(-2, 5)
    ]
    effects = [{"label": "m", "subject": f"s{n}", "effect": float(n), "stderr": 1.0} for n in range(-2, 5)]
    folder = across.write_step(tmp_path, "scale", {"meta/1": rows, "effects/1": effects})
    run = group([folder]).runs[0]
    found = pooled_findings(run, 4)
    assert found[0].startswith(
        "**Of 7 pooled effects of top against random weights 3 are above zero, 1 below, and 3 not told from it**"
    )
    assert found[1].startswith("**s4: the pooled effect of 6 models is above zero")
    assert len(pooled_findings(run, 7)) == 7
    assert [figure.title for figure in meta_figures(run)] == [f"Meta-analysis: s{n}" for n in (4, 3, 2, 1)]


def test_a_paper_shows_the_preferred_law_and_no_row_of_nulls(tmp_path: Path) -> None:
    """Of all laws that were tried the table has the one that was preferred; a part without any value has no row."""
    quantity = "damage_top_k: obd, k = 10, zero"
    fits = [{"quantity": quantity, "model": law, "parameter": "b", "value": -0.3} for law in ("linear", "power")]
    fits.append({"quantity": "refused", "model": "linear", "parameter": "b", "value": 0.1})
    scale = across.write_step(tmp_path, "scale", {"laws/1": [across.law()], "fits/1": fits})
    about = {"metric": "obd", "seed": 0, "by": "part"}
    empty = [{**about, "label": "m", "value": "not scored"}]
    arch = across.write_step(tmp_path, "arch", {"shares/1": [*across.shares(("m",)), *empty]})
    runs = [(name, group([folder]).runs[0]) for name, folder in (("scale", scale), ("arch", arch))]
    tables = {one.name: one for one in paper_tables(runs, [], Macros())}
    assert [row[1] for row in tables["fits"].rows] == ["power", "linear"]
    assert not any("not scored" in cell for row in tables["regions_part"].rows for cell in row)
