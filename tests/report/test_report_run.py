"""The whole report, from artifacts to files."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from esa import report
from esa.artifact import find_table, read_manifest, sha256_of
from esa.errors import ArtifactError
from esa.report.markdown import number
from esa.report.tables import damage_summary
from esa.report.theme import PRINTED_POINTS
from tests.report.conftest import WORST

SECTIONS = [
    "Question", "Finding", "Criteria", "Worst single weights", "Damage", "Controls side by side", "Score distribution", "Where the score lies",
    "Stability and agreement", "Bit faults", "Provenance", "Reproduction", "Artifacts",
]  # fmt: skip
Maker = Callable[..., Any]


def written(made: Any, **more: Any) -> report.ReportResult:
    """Return the report of a fake run."""
    return report.run([made.run], root=made.root / "reports", **more)


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.+)$", text, flags=re.MULTILINE)


def section(text: str, name: str) -> str:
    """Return what stands under a heading."""
    return re.split(r"^## ", text.split(f"\n## {name}\n")[1], flags=re.MULTILINE)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, report.ReportResult]:
    """Return a complete fake run and its report, made once."""
    from tests.report.conftest import Fake

    made = Fake(tmp_path_factory.mktemp("whole"))
    made.write()
    return made, written(made)


def test_every_section_stands_in_order(whole: tuple[Any, report.ReportResult]) -> None:
    """A complete run gives every section, once, in the order a reader needs."""
    made, result = whole
    assert result.markdown.startswith("# fake_run\n")
    assert headings(result.markdown) == SECTIONS
    assert made.question in section(result.markdown, "Question")
    assert result.path.name == "report.html"
    assert (result.folder / "report.md").read_text(encoding="utf-8") == result.markdown
    assert result.folder.name.startswith("fake_run-")


def test_the_finding_states_what_was_measured(whole: tuple[Any, report.ReportResult]) -> None:
    """The worst weight's address, value, share, perplexities and ratio are those of the tables."""
    made, result = whole
    damage = find_table(made.folders["perturb"], "damage/1").frame
    row = damage.filter((pl.col("target") == f"{WORST}:507,1229") & (pl.col("method") == "zero")).row(0, named=True)
    finding = section(result.markdown, "Finding")
    assert (
        f"One weight of 134,515,008, `{WORST}:507,1229` (value 5.876), set to zero, takes perplexity from"
        f" {number(row['ppl_base'])} to {number(row['ppl'])}, {number(row['ppl'] / row['ppl_base'])} times"
    ) in finding
    assert "noise floor of 2.500e-6 nats per token" in finding
    assert "**zero: the top weights do more harm than every random draw of as many in 9 of 9 comparisons**" in finding
    assert "Above every random one." in section(result.markdown, "Damage")


def test_the_numbers_of_the_damage_table_are_those_of_the_artifact(whole: tuple[Any, report.ReportResult]) -> None:
    """Every row of the summary is a row of the report with the same perplexity, ratio and outcome."""
    made, result = whole
    lines = [line for line in section(result.markdown, "Damage").splitlines() if line.startswith("| ")][2:]
    summary = damage_summary(find_table(made.folders["perturb"], "damage/1").frame)
    assert len(lines) == summary.height
    for line, row in zip(lines, summary.iter_rows(named=True), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert cells[2:6] == [row["metric"] or "all", row["group"], number(row["k"]), number(row["cases"])]
        assert cells[6].split(" ")[0] == number(row["ppl_mean"])
        assert cells[7] == number(row["ratio"])
        assert cells[12].startswith(row["outcome"])


def test_collapsed_and_nonfinite_cases_are_shown(whole: tuple[Any, report.ReportResult]) -> None:
    """Cases without a number are counted in the finding, named in the table, and crosses in the figure."""
    _, result = whole
    assert "ended with NaN or Inf in the logits (nonfinite)" in section(result.markdown, "Finding")
    assert "cases collapsed: perplexity over half the vocabulary" in section(result.markdown, "Finding")
    assert "1 collapsed, 1 nonfinite |" in section(result.markdown, "Damage")
    assert "3 of 126 marks are crosses" in result.markdown
    points = pl.read_csv(result.folder / "data/damage_bit_flip_bit_14.csv")
    assert points.filter(pl.col("outcome") == "nonfinite")["ratio"].null_count() == 3
    svg = (result.folder / "figures/damage_bit_flip_bit_14.svg").read_text()
    assert "cross above the panel: no finite perplexity" in svg
    assert "cross above" not in (result.folder / "figures/damage_zero.svg").read_text()
    assert not re.search(r"\b(nan|inf)\b", result.markdown.replace("NaN or Inf", ""), flags=re.IGNORECASE)


def test_two_methods_never_share_a_figure(fake: Maker) -> None:
    """Options that differ only in a sign, or make a long name, have figures of their own."""
    methods = tuple({"method": "scale", "factor": factor} for factor in (1.5, -1.5))
    result = written(fake(methods=methods, metrics=("act_mag",)))
    names = sorted(path.stem for path in (result.folder / "figures").glob("damage_*.svg"))
    assert names == ["damage_scale_factor_-1.5", "damage_scale_factor_1.5"]


def test_bit_faults_have_their_table(whole: tuple[Any, report.ReportResult]) -> None:
    """Flips are summed by field of the stored number."""
    assert "| exponent | 14 | 66 | 66 | 19.50 |" in section(whole[1].markdown, "Bit faults")


def test_provenance_and_reproduction_are_complete(whole: tuple[Any, report.ReportResult]) -> None:
    """Model, data, seeds, versions, memory, checksum, commands and every file's sha256 are there."""
    made, result = whole
    provenance = section(result.markdown, "Provenance")
    for needed in (
        "f1" * 32,
        "ab" * 32,
        "builtin:prose_eval",
        "2,048",
        "0, 1, 2",
        "134,479,872",
        "polars",
        "restored",
        "iB |",  # of this process: MiB alone, GiB behind thousands of tests
    ):
        assert needed in provenance
    assert "No step gave a warning" in provenance
    commands = section(result.markdown, "Reproduction")
    names = {step: f"outputs/fake_run/{folder.name}" for step, folder in made.folders.items()}
    assert f"esa score --spec {names['score']}/spec.toml" in commands
    assert f"esa perturb --spec {names['perturb']}/spec.toml --targets {names['rank']}" in commands
    artifacts = section(result.markdown, "Artifacts")
    for folder in made.folders.values():
        for name, digest in read_manifest(folder)["outputs"].items():
            assert f"{folder.name}/{name}" in artifacts
            assert digest in artifacts


def test_figures_are_png_and_svg_with_their_data(whole: tuple[Any, report.ReportResult]) -> None:
    """Every figure is a PNG, an SVG that parses, and a CSV; the page names each, and the manifest vouches for all."""
    _, result = whole
    names = {path.stem for path in (result.folder / "figures").glob("*.svg")}
    assert {"distribution", "components", "depth", "agreement", "damage_zero"} <= names
    for name in names:
        assert (result.folder / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert ET.parse(result.folder / f"figures/{name}.svg").getroot().tag.endswith("svg")
        assert pl.read_csv(result.folder / f"data/{name}.csv").height
        for link in (f"(figures/{name}.png)", f"(figures/{name}.svg)", f"(data/{name}.csv)"):
            assert link in result.markdown
    manifest = read_manifest(result.folder)
    assert manifest["step"] == "report"
    for file, digest in manifest["outputs"].items():
        assert sha256_of(result.folder / file) == digest


@pytest.mark.parametrize("many", [False, True])
def test_no_type_is_under_seven_points_in_print(fake: Maker, many: bool) -> None:
    """At 85 mm width every text of every figure is 7 points or more, also with eight metrics."""
    metrics = ("magnitude", "act_mag", "wanda", "grad_x_weight", "grad_squared", "fisher_obd", "hutchinson_diag", "obd")
    result = written(fake(metrics=metrics if many else ("act_mag",), methods=({"method": "zero"},), singles=True))
    assert (result.folder / "figures/damage_single_zero.svg").exists()
    for path in (result.folder / "figures").glob("*.svg"):
        svg = path.read_text()
        width = float(re.search(r'<svg[^>]*\bwidth="([\d.]+)"', svg)[1])  # type: ignore[index]
        sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)(?:px)?"', svg)]
        assert sizes, path.name
        assert min(sizes) * PRINTED_POINTS / width >= 7, path.name


def test_a_run_without_an_effect_claims_none(fake: Maker) -> None:
    """Where nothing raises the perplexity, the report says so and nothing else."""
    result = written(fake(effect=0.0, broken=False))
    finding = section(result.markdown, "Finding")
    assert "No case of 132 raises the perplexity" in finding
    assert "none raises the perplexity: the mean NLL" in finding
    assert "takes perplexity" not in finding
    assert "Above every random one" not in finding
    assert "zero: in none of 9 comparisons do the top weights do more harm than random" in finding
    assert "The top stays within the noise floor." in section(result.markdown, "Damage")


def test_a_checksum_that_differs_is_said_loudly(fake: Maker) -> None:
    """A model that was not restored stands in the finding and in the provenance."""
    made = fake(methods=({"method": "zero"},), metrics=("act_mag",))
    path = made.folders["perturb"] / "manifest.json"
    content = json.loads(path.read_text())
    content["checksum"] = {"before": "aa", "after": "bb", "restored": False}
    path.write_text(json.dumps(content))
    result = written(made)
    assert "Distrust these numbers" in section(result.markdown, "Finding")
    assert "**NOT restored**" in section(result.markdown, "Provenance")


@pytest.mark.parametrize(
    ("steps", "present", "absent"),
    [
        (("score",), ["Score distribution", "Where the score lies"], ["Finding", "Damage", "Stability and agreement"]),
        (("rank", "perturb"), ["Damage", "Worst single weights"], ["Score distribution", "Stability and agreement"]),
        (("overlap",), ["Stability and agreement", "Finding"], ["Damage", "Bit faults", "Where the score lies"]),
        (("rank",), ["Provenance", "Artifacts"], ["Finding", "Damage", "Score distribution"]),
    ],
)
def test_sections_without_their_step_are_left_out(fake: Maker, steps: tuple, present: list, absent: list) -> None:
    """Any subset of the steps gives a report that names the absent ones and leaves their sections out."""
    made = fake(steps=steps)
    result = report.run([made.folders[step] for step in steps], root=made.root / "reports")
    found = headings(result.markdown)
    assert set(present) <= set(found)
    assert not set(absent) & set(found)
    missing = [step for step in ("score", "rank", "perturb", "overlap") if step not in steps]
    line = next(line for line in result.markdown.splitlines() if line.startswith("Made from"))
    assert all(step in line.split("Absent")[1] for step in missing)
    assert (result.folder / "manifest.json").exists()


def test_the_same_artifacts_give_the_same_bytes(fake: Maker) -> None:
    """Two reports of one run agree byte for byte: page, SVG and data, also from the step folders one by one."""
    made = fake(methods=({"method": "zero"},))
    one = written(made)
    two = report.run(list(made.folders.values()), out=made.root / "again")
    assert two.markdown.encode() == one.markdown.encode()
    for path in sorted(one.folder.rglob("*.*")):
        if path.name != "manifest.json" and path.is_file():
            assert (two.folder / path.relative_to(one.folder)).read_bytes() == path.read_bytes(), path.name


def test_a_complete_report_is_reused(fake: Maker) -> None:
    """A second call draws nothing; force draws again; another run's folder is refused."""
    made = fake(steps=("score",))
    first = written(made)
    before = (first.folder / "manifest.json").stat().st_mtime_ns
    assert not first.reused
    again = written(made)
    assert again.reused
    assert again.markdown == first.markdown
    assert (first.folder / "manifest.json").stat().st_mtime_ns == before
    assert not written(made, force=True).reused
    other = fake(name="other", steps=("score",), question="Another?")
    with pytest.raises(ArtifactError, match="give another folder"):
        report.run([other.run], out=first.folder)


def test_text_from_files_is_escaped(fake: Maker) -> None:
    """Hostile names, questions and warnings are text in the page, not markup."""
    made = fake(
        steps=("score",),
        question="Is <b>this</b> a `question` | or # [not](x)?",
        model_id="org/<img src=x>`|`name",
        warnings=("<script>alert('|')</script>",),
    )
    text = written(made).markdown
    assert "Is &lt;b&gt;this&lt;/b&gt; a \\`question\\` \\| or # \\[not\\](x)?" in text
    assert "&lt;script&gt;alert('\\|')&lt;/script&gt;" in text
    assert "| id | ``org/<img src=x>`\\|`name`` |" in text
    assert "<script" not in text
    assert "<b>" not in text
    assert "No step gave a warning" not in text


def test_a_step_of_another_run_is_told(fake: Maker) -> None:
    """Damage measured on another ranking than the one at hand is a warning in the page and in the manifest."""
    one, two = fake(name="one"), fake(name="two", metrics=("act_mag",))
    result = report.run([one.folders["rank"], two.folders["perturb"]], root=one.root / "reports")
    assert "was not made from rank-" in section(result.markdown, "Provenance")
    assert any("was not made from rank-" in text for text in read_manifest(result.folder)["warnings"])


def test_what_is_no_finished_step_is_refused(fake: Maker, tmp_path: Path) -> None:
    """A folder without manifest, a step twice, an edited table, a missing folder: each has its own sentence."""
    made = fake()
    (tmp_path / "empty").mkdir()
    for sources, words in (
        ([tmp_path / "empty"], "holds neither run.json nor manifest.json"),
        ([tmp_path / "nowhere"], "no such folder"),
        ([], "names no finished step"),
        ([written(made).folder], "is a step 'report'"),
    ):
        with pytest.raises(ArtifactError, match=re.escape(words)):
            report.run(sources, root=tmp_path / "reports")
    table = made.folders["perturb"] / "damage.csv"
    table.write_text(table.read_text().replace("ok", "OK", 1))
    with pytest.raises(ArtifactError, match="is not the file that the step wrote"):
        report.run([made.folders["perturb"]], root=tmp_path / "reports")


def test_the_report_needs_no_torch(fake: Maker) -> None:
    """Analysis runs on a laptop: neither importing nor running the report imports torch."""
    made = fake(steps=("score", "rank"))
    code = (
        "import sys; from pathlib import Path; from esa import report\n"
        f"report.run([Path({str(made.run)!r})], root=Path({str(made.root / 'reports')!r}))\n"
        "assert 'torch' not in sys.modules and 'rich' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_stability_across_seeds_has_its_table(fake: Maker) -> None:
    """stability_summary.json is shown per metric and k; a null standard deviation is a dash."""
    made = fake(methods=({"method": "zero"},), metrics=("act_mag",))
    entry = {"jaccard_mean": 0.75, "jaccard_std": None, "jaccard_all": [0.75], "num_seeds": 2, "topk_overlap_size": 86}
    content = {"by": "weight", "metric": "act_mag", "k": 100, **entry, "metrics": {"act_mag": {"100": entry}}}
    (made.folders["overlap"] / "stability_summary.json").write_text(json.dumps(content))
    result = written(made)
    assert "| act_mag | 100 | 2 | 1 | 0.7500 | – | 86 |" in section(result.markdown, "Stability and agreement")  # noqa: RUF001
