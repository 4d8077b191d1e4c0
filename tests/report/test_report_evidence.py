"""The page of causal evidence: criteria, claims, detector, truth, bits and doses, each with its finding, none without its table."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esa import report
from esa.artifact import find_table, read_manifest, read_table
from esa.artifact.grouping import group
from esa.errors import ArtifactError, SpecError
from esa.report.evidence.claims import claims_parts
from esa.report.evidence.dose import dose_band
from esa.report.evidence.weights import truth_order
from tests.report.conftest import Fake
from tests.report.evidence import add_step, add_tables, candidate, claim, claims, complete, noisy_draws, swept, truths

Maker = Callable[..., Fake]
SMALL: dict[str, Any] = {
    "metrics": ("act_mag",),
    "methods": ({"method": "zero"},),
    "settings": {"confirm": {"metric": "act_mag", "k": 10}},
}
SECTIONS = (
    "Criteria", "Claims", "Controls side by side", "Dose-response",
    "Which method tells critical weights apart", "Candidates of the detector", "Which metric tells the truth", "Interactions", "Propagation", "Bit by bit", "Random faults", "Agreement curves", "Tasks",
)  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fake, report.ReportResult]:
    """Return a run with every table, and its report."""
    made = Fake(tmp_path_factory.mktemp("evidence"), **SMALL)
    made.write()
    more = complete(made)
    return made, report.run([made.run, *more], root=made.root / "reports")


def section(markdown: str, title: str) -> str:
    """Return the text under one heading."""
    return markdown.split(f"\n## {title}\n")[1].split("\n## ", maxsplit=1)[0]


def test_every_table_has_its_section(written: tuple[Fake, report.ReportResult]) -> None:
    """Each section stands once on both pages, in its order, and its chart has a file, a caption and its data."""
    _made, result = written
    titles = re.findall(r"^## (.*)$", result.markdown, re.MULTILINE)
    assert [title for title in titles if title in SECTIONS] == list(SECTIONS)
    html = result.path.read_text()
    for title in SECTIONS:
        assert html.count(f">{title}</h2>") == 1, title
    names = {path.stem for path in (result.folder / "figures").glob("*.svg")}
    expected = ("dose_gauss_noise_sigma_10", "truth", "bits_", "curve_k", "propagation_1_")
    assert all(any(name.startswith(start) for name in names) for start in expected)
    assert names == {path.stem for path in (result.folder / "data").glob("*.csv")}


def test_without_the_tables_there_are_no_sections(fake: Maker) -> None:
    """A run of scores alone has criteria that nothing can be said of, and no section of evidence."""
    made = fake(steps=("score",), metrics=("act_mag",))
    markdown = report.run([made.run], root=made.root / "reports").markdown
    assert not [title for title in SECTIONS[1:] if f"\n## {title}\n" in markdown]
    assert section(markdown, "Criteria").strip().startswith("**1 verdict: 1 good, 0 between and 0 bad.**")


def test_the_verdicts_are_a_table_of_the_report(written: tuple[Fake, report.ReportResult]) -> None:
    """criteria.csv holds a row per verdict with the report's id, and the page shows each as word and colour."""
    _, result = written
    manifest = read_manifest(result.folder)
    table = find_table(result.folder, "criteria/1").frame
    assert table["run"].unique().to_list() == [manifest["run"]]
    rows = {row["id"]: row for row in table.iter_rows(named=True)}
    assert (rows["separation_random"]["value"], rows["separation_random"]["verdict"]) == (12.0, "good")
    assert rows["mode_agreement"]["value"] == pytest.approx(0.64)
    assert rows["baseline_spread"]["verdict"] == "good"
    assert rows["scaling_fit"]["why"].startswith("needs 4 models")
    html = result.path.read_text()
    for word in ("good", "bad", "unattainable"):
        assert f'<td class="verdict {word}">{word}</td>' in html


def test_other_criteria_are_another_report(written: tuple[Fake, report.ReportResult], tmp_path: Path) -> None:
    """The file's sha256 is among the inputs: an edited one has another id, the same one is reused; a broken one is refused."""
    made, result = written
    one = "[[criterion]]\nid = 'x'\nquantity = 'num_nonfinite'\ngood = { max = 0 }\nphase = 'any'\nsource = 's'\n"
    path = tmp_path / "mine.toml"
    path.write_text(one)
    other = report.run([made.run], root=tmp_path, criteria=path)
    assert read_table(other.folder / "criteria.csv", "criteria/1").frame["id"].to_list() == ["x"]
    assert report.run([made.run], root=tmp_path, criteria=path).reused
    assert "criteria" in read_manifest(result.folder)["inputs"]
    path.write_text(one.replace("max = 0", "max = 1"))
    assert report.run([made.run], root=tmp_path, criteria=path).folder != other.folder
    path.write_text(one.replace("num_nonfinite", "nothing"))
    with pytest.raises(SpecError, match=r"mine.toml:3: criterion.0.quantity: 'nothing' is not a quantity"):
        report.run([made.run], root=tmp_path, criteria=path)


def test_the_confirmatory_test_comes_first(written: tuple[Fake, report.ReportResult]) -> None:
    """It opens the claims in a sentence with its p and level; the screen follows with adjusted p and flags."""
    text = section(written[1].markdown, "Claims")
    assert text.strip().startswith(
        "**Confirmatory: the top 10 weights by `act_mag` under zero do more harm than 199 draws of as many random ones**"
        " (p = 0.005000, level 0.05000, 12.00 times the largest at the least)."
    )
    assert "more harm than random ones: 0 of 1" in text
    assert "| few windows |" in text
    assert (
        section(written[1].markdown, "Finding").strip().startswith("- **Confirmatory: the top 10 weights by `act_mag`")
    )


def test_doses_and_bits_do_not_flood_the_page(written: tuple[Fake, report.ReportResult]) -> None:
    """A dose-response and a sweep have one section each: no chart or sentence per dose or per bit elsewhere."""
    _, result = written
    assert not list((result.folder / "figures").glob("damage_gauss_noise*"))
    assert "sigma" not in section(result.markdown, "Finding")


def test_a_test_that_fails_is_said_to_fail() -> None:
    """The sentence of a confirmatory test that does not hold claims nothing."""
    from esa.artifact import make_table

    row = claim(phase="confirmatory", p_value=0.3, holds=False, ratio=0.5)
    text = claims_parts(make_table("tests/1", [row]).frame)[0]
    assert "are not shown to do more harm than 19 draws" in text
    assert "times the largest" not in text
    none = claims_parts(make_table("tests/1", [claim()]).frame)[0]
    assert none == "No confirmatory test was named (`confirm.metric`): all is a screen."


def test_runs_side_by_side_are_adjusted_together(fake: Maker) -> None:
    """The page of two runs judges both and adjusts their confirmatory tests by Holm."""
    made = [fake(name=name, **SMALL) for name in ("a", "b")]
    for one, p in zip(made, (0.005, 0.04), strict=True):
        row = claim(phase="confirmatory", p_value=p, smallest_p=0.005, num_draws=199)
        add_tables(one.folders["perturb"], {"tests.csv": ("tests/1", [row])})
    markdown = report.run([one.run for one in made], root=made[0].root / "reports").markdown
    text = section(markdown, "Confirmatory tests")
    assert "holds in 2 of 2 runs after Holm's adjustment: `a` and `b`" in text
    assert "| 0.01000 | 0.005000 |" in text
    assert "| `significance` | a | under 0.05 | 0.01000 | good |" in section(markdown, "Criteria")


def test_groups_of_the_detector_stand_together(written: tuple[Fake, report.ReportResult]) -> None:
    """Candidates of one row follow each other although an eraser ranks between them, and published ones are accounted for."""
    text = section(written[1].markdown, "Candidates of the detector")
    assert (
        "**Of 3 candidates 2 critical and 1 harmless.** 1 group shares a row or a column: row 507 of blocks 2, 11."
        in text
    )
    assert "Published for SmolLM2: 1 of 2 found" in text
    assert "missed `model.layers.1.mlp.down_proj.weight:1,2`" in text
    blocks = re.findall(r"^\| `model\.layers\.(\d+)\.", text, re.MULTILINE)
    assert blocks == ["11", "2", "28"]


def test_metrics_stand_in_the_order_of_their_truth(written: tuple[Fake, report.ReportResult]) -> None:
    """The best metric comes first in text, table and chart, with its interval, and the censored changes are counted."""
    from esa.artifact import make_table

    assert truth_order(make_table("truth/1", truths()).frame)["metric"].to_list() == ["obd", "act_mag", "magnitude"]
    text = section(written[1].markdown, "Which metric tells the truth")
    assert "**`obd` agrees best with the measured damage of 300 weights: Spearman 0.8100 [0.7100, 0.9100].**" in text
    assert (
        "1 of 2 others are behind it by more than their paired interval. 40 of the changes are under the noise floor."
        in text
    )


def test_bits_run_from_the_most_significant(written: tuple[Fake, report.ReportResult]) -> None:
    """The fatal bits are named, and the table begins with the sign."""
    text = section(written[1].markdown, "Bit by bit")
    assert "`model.layers.11.mlp.down_proj.weight:507,1229` bit 14 of 16" in text
    assert re.findall(r"^\| (\d+) \| (?:sign|exponent|mantissa)", text, re.MULTILINE) == [
        str(bit) for bit in range(15, -1, -1)
    ]
    assert "NaN or Inf" in text


def test_the_band_is_the_range_of_the_draws() -> None:
    """At each dose the band runs from the least to the most harmful draw, as perplexity over intact."""
    from esa.artifact import make_table

    frame = make_table("damage/1", noisy_draws()).frame
    band = dose_band(frame, "gauss_noise", "sigma", 10)
    assert band["x"].to_list() == [0.05, 0.1, 0.2, 0.5]
    assert band["low"].to_list() == [1.0] * 4
    assert band["high"].to_list() == pytest.approx([2.718281828 ** (sigma * 0.04) for sigma in (0.05, 0.1, 0.2, 0.5)])


def test_what_files_say_stays_text(fake: Maker) -> None:
    """Markup in any column of the new tables is shown as text on both pages, and no element of it comes to be."""
    evil = "<img src=x onerror=alert(1)>|`*_[a](javascript:b)"
    made = fake(**SMALL)
    perturb = made.folders["perturb"]
    add_tables(perturb, {
        "tests.csv": ("tests/1", [{**row, "flags": evil, "method": evil} for row in claims()]),
        "bits.csv": ("bits/1", [{**row, "target": evil, "field": evil, "outcome": evil} for row in swept()]),
    })  # fmt: skip
    detector = [candidate(1, 1, 2, 3, target=evil, group=evil, verdict=evil, role=evil)]
    folder = add_step(
        made, "detector", {"detector.csv": ("detector/1", detector)}, published=[{"model": evil, "found": [evil]}]
    )
    truth = add_step(
        made,
        "truth",
        {"truth.csv": ("truth/1", [{**row, "metric": evil, "quantity": "spearman"} for row in truths()[:1]])},
    )
    html = report.run([made.run, folder, truth], root=made.root / "reports").path.read_text()
    body = html.split("<main>")[1].split("</main>")[0]
    assert "<img src=x" not in body
    assert 'javascript:b"' not in body
    assert "&lt;img src=x" in body


def test_further_steps_join_their_run(fake: Maker) -> None:
    """Step folders of truth, detector, curve, faults and eval belong to the one run that is given with them."""
    made = fake(**SMALL)
    more = complete(made)
    runs = group([made.run, *more]).runs
    assert len(runs) == 1
    assert set(runs[0].folders) == {
        "score",
        "rank",
        "perturb",
        "overlap",
        "truth",
        "detector",
        "faults",
        "eval",
        "curve k",
    }
    assert [run.name for run in group(more[:1]).runs] == [made.name]


def test_a_step_of_no_use_is_refused(fake: Maker) -> None:
    """The error names the step and those that a report takes."""
    made = fake(**SMALL)
    folder = add_step(made, "report", {})
    with pytest.raises(
        ArtifactError,
        match="is a step 'report'; what is read here: score, rank, perturb, overlap, curve, truth, detector",
    ):
        report.run([folder], root=made.root / "reports")
