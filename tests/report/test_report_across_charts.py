"""Charts of several runs: planted residuals, trees, labels and axes come out where they were put."""

import math

import polars as pl
import pytest

from esa.artifact import make_table
from esa.report.across.axes import round_steps, value_axis
from esa.report.across.charts_models import pareto_chart, placed
from esa.report.across.charts_scaling import Drawn, domain
from esa.report.across.families import tree_lines
from esa.report.across.law_figures import interpolated, law_points
from esa.report.across.robustness import less_is_better
from esa.report.theme import specification
from tests.report import across


def drawn() -> Drawn:
    """Return what the plot of the planted power law shows."""
    points = make_table("points/1", across.points()).frame
    found = law_points(across.law(), points, make_table("bands/1", across.band()).frame)
    assert found is not None
    return found


def test_narrow_logarithmic_axes_are_still_labelled() -> None:
    """Where fewer than three decades or halves fit, round steps are labelled instead."""
    assert round_steps(0.21, 0.26) == [0.21, 0.22, 0.23, 0.24, 0.25, 0.26]
    axis = value_axis(0.21, 0.26, "y", log=True)["axis"].to_dict()
    assert len(axis["values"]) >= 3
    sizes = value_axis(9.8e4, 6e6, "x", log=True)["axis"].to_dict()["values"]
    assert sizes == [1e5, 2e5, 5e5, 1e6, 2e6, 5e6]  # not 2, 4 and 6 million, crowded at the upper end
    assert value_axis(0.1, 100, "y", log=True)["axis"].to_dict()["values"] == [0.1, 1, 10, 100]


def test_a_tree_is_drawn_from_its_leaves() -> None:
    """Each merge has two lines to its children and one between them, at its distance; every model is a leaf once."""
    rows = [("a", "b", 1.0, 2), ("c", "d", 2.0, 2), ("merge 1", "merge 2", 3.0, 4)]
    merges = make_table("tree/1", [
        {"metric": "obd", "merge": n, "left": left, "right": right, "distance": far, "size": count}
        for n, (left, right, far, count) in enumerate(rows, start=1)
    ]).frame  # fmt: skip
    lines, leaves = tree_lines(merges)
    assert leaves == {"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0}
    assert lines.height == 9
    root = lines.filter((pl.col("joined") == 3.0) & (pl.col("x") == pl.col("x2"))).row(0, named=True)
    assert (root["y"], root["y2"]) == (0.5, 2.5)


def test_names_of_a_front_do_not_cover_each_other() -> None:
    """Two models at one place have their names a line apart, and one at the right edge has its name to the left."""
    rows = pl.DataFrame({"name": ["first", "second", "far"], "damage": [1.0, 1.0, 9.9], "task_score": [0.5, 0.5, 0.1]})
    found = placed(rows, (0.0, 10.0), (0.0, 1.0), 300, 200, log=False)
    heights = dict(found.select("name", "at").iter_rows())
    assert abs(heights["first"] - heights["second"]) * 200 >= 13
    assert dict(found.select("name", "side").iter_rows())["far"] == "left"


def test_less_is_better_turns_the_axis_round() -> None:
    """A perplexity's axis runs downwards, so that better is up for every task; a name keeps to its mark on it."""
    assert [less_is_better(name) for name in ("perplexity", "arc: acc,none", "word_perplexity,none")] == [
        True,
        False,
        True,
    ]
    rows = make_table("robustness/1", across.robustness()).frame.with_columns(pl.col("label").alias("name"))
    domains = [
        specification(pareto_chart(rows, "y", "t", less=less))["layer"][0]["encoding"]["y"]["scale"]["domain"]
        for less in (True, False)
    ]
    assert domains[0] == domains[1][::-1]
    assert domains[1][0] < domains[1][1]
    flat = pl.DataFrame({"name": ["a"], "damage": [1.0], "task_score": [0.2]})
    assert placed(flat, (0.0, 10.0), (1.0, 0.0), 300, 200, log=False)["at"].to_list() == pytest.approx([0.2])


def test_a_wild_band_does_not_flatten_the_points() -> None:
    """The axis is cut where a band would take all of its room."""
    found = drawn()
    wild = found.band.with_columns(pl.lit(1e-30).alias("low"), pl.lit(1e30).alias("high"))
    low, high = domain(Drawn(found.points, wild, "", "", "", [], log=True, shapes=""))
    assert math.log10(high / low) < 4


def test_residuals_are_what_the_planted_noise_was() -> None:
    """The residual of each point is the noise it was planted with, in logarithms; the excluded run is not among them."""
    found = drawn()
    assert found.points["label"].to_list() == across.FAMILY[1:]
    assert found.points["residual"].to_list() == pytest.approx([0.1 * across.noise(n) for n in range(1, 12)], abs=1e-9)
    assert (found.log, found.shapes, found.x_title) == (True, "training seed", "number of weights")
    low, high = domain(found)
    assert low < found.points["y"].min()  # type: ignore[operator]
    assert high > found.points["high"].max()  # type: ignore[operator]


def test_the_law_between_the_bands_points_is_on_a_straight_line() -> None:
    """A power law is exact between the points of its band on logarithmic axes, and unknown outside of them."""
    band = pl.DataFrame({"x": [1.0, 100.0], "y": [8.0, 2.0]})
    assert interpolated(band, [10.0, 1.0, 100.0], log=True) == pytest.approx([4.0, 8.0, 2.0])
    assert interpolated(band, [1000.0, 0.5], log=True) == [None, None]
    assert interpolated(band, [10.0], log=False) == pytest.approx([5.0])
