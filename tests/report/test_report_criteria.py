"""The criteria file: what it may hold, what every problem says, and that the one that ships is whole."""

from pathlib import Path

import pytest

from esa.errors import SpecError
from esa.report import criteria as module
from esa.report.criteria import Band, load_criteria, shipped
from esa.report.quantities import QUANTITIES

WHOLE = """
[[criterion]]
id = "one"
quantity = "top_over_random"
good = { min = 3.0 }
phase = "any"
source = "protocol"
"""


def written(folder: Path, text: str) -> Path:
    """Write a criteria file named c.toml."""
    path = folder / "c.toml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str) -> list[str]:
    """Return the problems of a file, its folder taken off."""
    with pytest.raises(SpecError) as caught:
        load_criteria(written(folder, text))
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


def test_the_protocol_is_whole() -> None:
    """Every rule of the protocol is a criterion of its own, with its bounds, and every quantity is used and defined."""
    each = {one.id: one for one in load_criteria().each}
    assert {
        name: tuple("" if band is None else str(band) for band in (one.good, one.bad)) for name, one in each.items()
    } == {
        "separation_random": ("at least 3", ""),
        "separation_random_strict": ("at least 5", ""),
        "separation_bottom": ("at least 3", ""),
        "effect_size": ("at least 0.1", "under 0.05"),
        "significance": ("under 0.05", ""),
        "significance_strict": ("under 0.01", ""),
        "all_methods": ("at least 1", ""),
        "architectures": ("at least 4", ""),
        "monotone_dose": ("at least 1", ""),
        "seed_stability": ("over 0.3", "under 0.2"),
        "seed_stability_strict": ("over 0.4", "under 0.2"),
        "seed_stability_ideal": ("over 0.5", "under 0.2"),
        "gradient_agreement": ("over 0.6", "under 0.3"),
        "mode_agreement": ("over 0.5", ""),
        "heavy_tail": ("over 10", ""),
        "baseline_spread": ("under 0.05", "over 0.1"),
        "no_nan": ("at most 0", ""),
        "no_degradation": ("at most 0.05", "over 0.1"),
        "scaling_fit": ("over 0.8", ""),
        "scaling_prediction": ("at most 0.2", ""),
        "pruning": ("over 0.15", ""),
        "roles": ("at least 0.5", ""),
    }
    assert {one.quantity for one in each.values()} == set(QUANTITIES)


def test_every_quantity_says_what_it_is() -> None:
    """A quantity's function defines it in words: an imperative line, then which table and which rows."""
    for name, quantity in QUANTITIES.items():
        assert quantity.definition.startswith("Return "), name
        assert "``" in quantity.definition, name


def test_every_problem_names_its_file_and_line(tmp_path: Path) -> None:
    """Unknown keys and quantities, wrong types, missing keys, empty and meeting bands: all at once, each with its line."""
    text = """[[criterion]]
id = "one"
quantity = "top_over_randm"
good = { min = "3" }
phase = "always"
sorce = "protocol"

[[criterion]]
id = "two"
quantity = "seed_jaccard"
good = {}
bad = { minimum = 1 }
phase = "any"
source = "x"
"""
    found = problems(tmp_path, text)
    assert found == [
        "c.toml:3: criterion.0.quantity: 'top_over_randm' is not a quantity (did you mean 'top_over_random'?); known: "
        + ", ".join(QUANTITIES),
        "c.toml:4: criterion.0.good.min: input should be a valid number, not '3'",
        "c.toml:5: criterion.0.phase: input should be 'smoke', 'standard', 'extended' or 'any', not 'always'",
        "c.toml:1: criterion.0.source: is required and missing",
        "c.toml:6: criterion.0.sorce: unknown key (did you mean 'source'?); allowed: bad, good, id, options, phase, quantity, source",
        "c.toml:11: criterion.1.good: needs a bound: min, above, max or below",
        "c.toml:12: criterion.1.bad.minimum: unknown key (did you mean 'min'?); allowed: above, below, max, min",
    ]


CASES = {
    "bands that meet": (WHOLE + "bad = { below = 3.5 }\n", "c.toml:2: criterion.0: a value may be good (at least 3) and bad (under 3.5) at once"),
    "an empty band": (WHOLE.replace("min = 3.0", "min = 3.0, max = 2.0"), "c.toml:5: criterion.0.good: is empty: its lower bound 3 is over its upper bound 2"),
    "two lower bounds": (WHOLE.replace("min = 3.0", "min = 3.0, above = 2.0"), "c.toml:5: criterion.0.good: takes min or above, not both"),
    "an idle option": (WHOLE + 'options = { metrics = ["a", "b"] }\n', "c.toml:2: criterion.0: options.metrics does nothing to top_over_random; allowed: metric, method, k"),
    "an id twice": (WHOLE + WHOLE, "c.toml:1: the file: two criteria have the id 'one'"),
    "no table": ("criterion = 3\n", "c.toml:1: criterion: input should be a list, not 3"),
    "no TOML": ("[[criterion\n", "c.toml: is not TOML: Expected ']]' at the end of an array declaration (at line 1, column 12)"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_does_not_hold_is_refused(tmp_path: Path, case: str) -> None:
    """One problem, in the words that name the file, the line and what is allowed."""
    text, expected = CASES[case]
    assert problems(tmp_path, text) == [expected]


def test_bands_that_touch_do_not_meet(tmp_path: Path) -> None:
    """A bad band may end where the good one begins, if the bound belongs to one of them alone."""
    load_criteria(written(tmp_path, WHOLE + "bad = { below = 3.0 }\n"))
    assert "at once" in problems(tmp_path, WHOLE + "bad = { max = 3.0 }\n")[0]


def test_a_bound_belongs_to_its_band_or_not() -> None:
    """min and max are in the band, above and below are not."""
    band, other = Band(min=1.0, below=2.0), Band(above=1.0, max=2.0)
    assert [band.holds(value) for value in (1.0, 1.5, 2.0)] == [True, True, False]
    assert [other.holds(value) for value in (1.0, 1.5, 2.0)] == [False, True, True]


def test_the_file_of_a_wheel_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a wheel the criteria lie beside the module; in a checkout in specs/; nowhere is an error that says both places."""
    assert shipped() == Path(module.__file__).parents[2] / "specs/criteria.toml"
    installed = tmp_path / "site-packages/esa/report"
    installed.mkdir(parents=True)
    monkeypatch.setattr(module, "files", lambda name: installed)
    monkeypatch.setattr(module, "__file__", str(installed / "criteria.py"))
    with pytest.raises(SpecError, match="no such file, and none at"):
        shipped()
    (installed / "criteria.toml").write_text(WHOLE)
    assert [one.id for one in load_criteria().each] == ["one"]
