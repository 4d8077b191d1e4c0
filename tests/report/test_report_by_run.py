"""Reliability and fitted curves on the page of one run, and the evidence of several runs side by side."""

from collections.abc import Callable
from typing import Any

from esa import report
from esa.artifact import make_table
from esa.report.evidence.retest import best_curves
from tests.report.conftest import Fake
from tests.report.evidence import add_step, add_tables, dose, truths

Maker = Callable[..., Fake]
SMALL: dict[str, Any] = {"metrics": ("act_mag",), "methods": ({"method": "zero"},)}


def section(markdown: str, title: str) -> str:
    """Return the text under one heading."""
    return markdown.split(f"\n## {title}\n")[1].split("\n## ", maxsplit=1)[0]


def reliability(over: str, icc: float | None) -> dict[str, Any]:
    """Return a row of ``reliability/1``."""
    ends = {} if icc is None else {"icc": icc, "low": icc - 0.1, "high": icc + 0.05}
    return {
        "over": over, "group": "top_k", "method": "zero", "options": "{}", "unit": "joint", "k": 10, "num_cases": 3, "num_measurements": 2,
        "num_broken": 0, "mean": 1.0, "sd": 0.05, "cv": 0.05, **ends,
    }  # fmt: skip


def fits() -> list[dict[str, Any]]:
    """Return two curves through one dose-response."""
    return [
        {"quantity": "damage of gauss_noise by sigma", "model": model, "parameter": p, "value": 2.0, "low": 1.0, "high": 3.0, "r2": 0.9, "aicc": 1.0, "weight": weight, "num_points": 5}
        for model, weight in (("hill", 0.1), ("power", 0.9)) for p in ("a", "b")
    ]  # fmt: skip


def test_reliability_and_fits_have_sections_of_their_own(fake: Maker) -> None:
    """The page of one run says how many agreements between halves of the windows are good, and which curve is preferred."""
    made = fake(**SMALL)
    add_tables(made.folders["perturb"], {
        "reliability.csv": ("reliability/1", [reliability("windows", 0.95), reliability("windows", 0.5), reliability("repeats", None)]),
        "fits.csv": ("fits/1", fits()),
    })  # fmt: skip
    markdown = report.run([made.run], root=made.root / "reports").markdown
    text = section(markdown, "Reliability").strip()
    assert text.startswith(
        "**Between halves of the evaluation windows, 1 of 2 agreements are good: the low end of ICC(2,1) is 0.75 or more.**"
    )
    assert "The least is 0.5000 [0.4000, 0.5500] (zero)." in text
    assert (
        section(markdown, "Fitted curves")
        .strip()
        .startswith("**Curves through 1 dose-response, the preferred one: power 1.**")
    )


def test_the_preferred_curve_has_the_largest_weight() -> None:
    """Of the curves through one response the one of the largest Akaike weight stands, whatever the order of the table."""
    assert best_curves(make_table("fits/1", fits()).frame)["model"].to_list() == ["power"]
    assert best_curves(make_table("fits/1", fits()[::-1]).frame)["model"].to_list() == ["power"]


def test_evidence_of_several_runs_stands_side_by_side(fake: Maker) -> None:
    """Dose-responses, metric truth, methods and reliability have a row or a column per run that has the table."""
    made = [fake(name=name, **SMALL) for name in ("a", "b")]
    apart = {"metric": "act_mag", "seed": 0, "method": "zero", "options": "{}", "k": 10, "damage": 1.5, "num_draws": 19, "z": 40.0, "auc": 1.0, "p_value": 0.05, "power": 1.0, "place": 1}  # fmt: skip
    sources = [one.run for one in made]
    for one in made:
        add_tables(one.folders["perturb"], {
            "dose.csv": ("dose/1", [dose(), dose(metric="obd", rising=0.5)]), "discrimination.csv": ("discrimination/1", [apart, apart | {"method": "scale", "power": 0.5, "place": 2}]),
            "reliability.csv": ("reliability/1", [reliability("windows", 0.95)]),
        })  # fmt: skip
    score = {"score": made[0].folders["score"].name.removeprefix("score-")}
    sources.append(add_step(made[0], "truth", {"truth.csv": ("truth/1", truths())}, score))
    markdown = report.run(sources, root=made[0].root / "reports").markdown
    assert "**2 of 4 dose-responses of 2 runs are monotone within the noise floor.**" in section(
        markdown, "Dose-response"
    )
    assert "| `a` | act_mag |" in section(markdown, "Dose-response")
    assert "`obd` agrees best with measured damage" in section(markdown, "Which metric tells the truth")
    assert "**Best by power, over 2 lists of 2 runs: zero 2.**" in section(
        markdown, "Which method tells critical weights apart"
    )
    assert "2 of 2 agreements are good" in section(markdown, "Reliability")


def test_of_one_method_alone_none_is_the_best(fake: Maker) -> None:
    """A list with one method has no section; of two methods without a power none is named, on either page."""
    made = [fake(name=name, **SMALL) for name in ("a", "b")]
    row = {"metric": "act_mag", "seed": 0, "method": "zero", "options": "{}", "k": 10, "damage": 1.5, "num_draws": 3, "z": 40.0, "auc": 1.0, "p_value": 0.25, "power": None, "place": 1}  # fmt: skip
    title = "Which method tells critical weights apart"
    for rows, there in (([row], False), ([row, row | {"method": "scale", "place": 2}], True)):
        for one in made:
            add_tables(one.folders["perturb"], {"discrimination.csv": ("discrimination/1", rows)})
        alone = report.run([made[0].run], root=made[0].root / "reports", force=True).markdown
        both = report.run([one.run for one in made], root=made[0].root / "reports", force=True).markdown
        assert (f"## {title}" in alone) == there
        assert f"## {title}" not in both
        if there:
            assert "No best one is named: the draws are too few for any power." in section(alone, title)
            assert "Best" not in section(alone, title)
