"""The pages of steps that read several runs: each section where its table is, sentences and charts from planted numbers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from esa import report
from esa.artifact import make_table, read_manifest
from esa.artifact.grouping import group
from esa.errors import SpecError
from esa.report.across.architecture import density_sentences
from esa.report.across.law_figures import FIGURES, chosen
from esa.report.across.meta import forest_frames
from esa.report.across.questions import answer_parts
from esa.report.across.scaling import law_sentences, left_out, size, standing_law
from esa.report.evidence.retest import fit_parts
from tests.report import across
from tests.report.chromium import Browser, find
from tests.report.conftest import Fake

Maker = Callable[..., Fake]
SCALE = ("Scaling laws", "Through training", "Meta-analysis")
ARCH = (
    "Architecture", "Where critical weights cluster", "Experts", "Base and instruct", "Between families", "Block by block",
    "Models as a tree", "Classifier of the family", "Robustness", "Further comparisons",
)  # fmt: skip
SMALL: dict[str, Any] = {"metrics": ("act_mag",), "methods": ({"method": "zero"},)}


def section(markdown: str, title: str) -> str:
    """Return the text under one heading."""
    return markdown.split(f"\n## {title}\n")[1].split("\n## ", maxsplit=1)[0]


def titles(markdown: str) -> list[str]:
    """Return the headings of a page."""
    return re.findall(r"^## (.*)$", markdown, re.MULTILINE)


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> report.ReportResult:
    """Return the page of a scale step."""
    root = tmp_path_factory.mktemp("scale")
    return report.run([across.scaling(root)], root=root / "reports")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> report.ReportResult:
    """Return the page of an arch step with every table."""
    root = tmp_path_factory.mktemp("arch")
    return report.run([across.comparing(root)], root=root / "reports")


def test_a_scale_step_stands_as_a_run_of_its_own(scaled: report.ReportResult) -> None:
    """Its page names no absent step and no model, judges no criterion, and says how it was called and what it wrote."""
    text = scaled.markdown
    assert titles(text) == ["Finding", "Scaling laws", "Provenance", "Reproduction", "Artifacts"]
    assert "Absent" not in text
    assert text.startswith("# llama_smollm2\n")
    assert "esa scale RUN..." in section(text, "Reproduction")
    assert "esa overlap" not in text
    assert "/laws.csv" in section(text, "Artifacts")


@pytest.mark.parametrize("name", ["a+b", "../b", "a_../../b", "a/b", ".b", ""])
def test_a_name_that_could_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """The name of a step of several runs is read back as it was written; one that is no plain word is refused."""
    folder = across.write_step(tmp_path, "scale", {"laws/1": [across.law()]})
    assert group([folder]).runs[0].name == "llama_smollm2"
    manifest = (folder / "manifest.json").read_text()
    assert '"name": "llama_smollm2"' in manifest
    (folder / "manifest.json").write_text(manifest.replace('"name": "llama_smollm2"', f'"name": "{name}"'))
    with pytest.raises(SpecError, match=f"name: .*not '{re.escape(name)}'"):
        group([folder])


def test_the_verdicts_open_the_laws(scaled: report.ReportResult) -> None:
    """How many quantities follow a law comes first, then each verdict as the table says it; a law that failed is no law."""
    text = section(scaled.markdown, "Scaling laws").strip()
    assert text.startswith(
        "**Over the number of weights 1 of 2 quantities follows a law: power 1.** Fitted to 6 models"
    )
    assert "- Jaccard index across seeds, act_mag: No power law (R2 0.12)" in text
    assert (
        "| -0.3000 [-0.3300, -0.2700] | 0.08000 | 135 M: 0.1455 [0.1000, 0.2000] | 900 k [300 k, 3 M], p 0.8000 |"
        in text
    )
    assert "all models are dense" in text
    assert "- `llama-0.1m-seed0`: its held-out NLL 5.2 is not under the bigram's 4.9" in text


def test_a_law_stands_as_its_verdict_says() -> None:
    """No law stands under a verdict of none or of too few models; one that stands instead of a power law does."""
    assert standing_law(across.law()) == "power"
    assert standing_law(across.law(verdict="No power law (R2 0.12)")) is None
    assert (
        standing_law(across.law(law="saturating", verdict="No power law (R2 0.3); saturating (R2 0.9) instead"))
        == "saturating"
    )
    mixed = make_table("laws/1", [across.law(), across.law(quantity="tail_index", flags="indicative")]).frame
    assert law_sentences(mixed)[0].endswith("1 of the 2 fits is indicative, from fewer than six.")
    few = across.law(law=None, num_models=2, flags="few_models", verdict="Refused: 2 models with a value, 3 are needed")
    assert standing_law(few) is None
    frame = make_table("laws/1", [across.law(flags="indicative", num_models=4), few]).frame
    assert law_sentences(frame.unique("quantity", keep="first", maintain_order=True)) == [
        "**Over the number of weights 1 of 1 quantities follows a law: power 1.** Fitted to 4 models; all of it is indicative,"
        " from fewer than six."
    ]


def test_every_quantity_is_drawn_before_any_second_subject() -> None:
    """Of many laws the first of each quantity is drawn, at most a fixed number in all, in the order of the table."""
    rows = [across.law(quantity=q, subject=str(n)) for q in ("a", "b") for n in range(FIGURES)]
    picked = chosen(rows)
    assert len(picked) == FIGURES
    assert [row["quantity"] for row in picked] == ["a"] * (FIGURES // 2) + ["b"] * (FIGURES // 2)
    assert picked == sorted(picked, key=rows.index)


def test_who_is_left_out_is_named_once_per_reason() -> None:
    """Runs under one reason share a line, which names the quantities where it holds for some only."""
    rows = across.points() + across.points("tail_index")
    rows = [
        {**row, "excluded": "collapsed" if row["quantity"] == "tail_index" and n % 12 in (3, 4) else None}
        for n, row in enumerate(rows)
    ]
    assert left_out(make_table("points/1", rows).frame) == [
        "`llama-0.3m-seed1` and `llama-0.9m-seed0`: collapsed (tail\\_index)".replace("\\_", "_")
    ]


def test_sizes_read_as_people_say_them() -> None:
    """Numbers of weights have three digits and a suffix."""
    assert [size(value) for value in (999.0, 1000.0, 1_300_000.0, 999_999.9, 7e9, 2e12)] == [
        "999",
        "1 k",
        "1.3 M",
        "1 M",
        "7 B",
        "2 T",
    ]


@pytest.mark.usefixtures("undrawn")
def test_training_says_when_weights_came(tmp_path: Path) -> None:
    """The weight that was always there is counted, the half-way step is named, and the ones that left are too."""
    result = report.run([across.training(tmp_path)], root=tmp_path / "reports")
    text = section(result.markdown, "Through training").strip()
    assert text.startswith("- **Of the last top 10 by `obd` of `llama-1.3m-seed0` 1 is in it at all 6 checkpoints.**")
    assert (
        "5 of 7 stay from an earlier checkpoint on, half of the list from step 1,400; the last is step 5,600."
        " 1 more weight was in it once" in text
    )  # being in the list at the last checkpoint alone is no staying
    assert "Scaling laws" not in titles(result.markdown)
    data = pl.read_csv(next((result.folder / "data").glob("ranks_*.csv")))
    assert dict(data.group_by("fate").len().iter_rows()) == {
        "always there": 6,
        "came and stays": 36,
        "not in the last": 6,
    }
    assert len(list((result.folder / "figures").glob("final_jaccard.svg"))) == 1


@pytest.mark.usefixtures("undrawn")
def test_the_forest_has_a_diamond_and_says_how_the_models_differ(tmp_path: Path) -> None:
    """The pooled effect, the heterogeneity, the prediction interval, who was left out and what could not be pooled."""
    result = report.run([across.pooled(tmp_path)], root=tmp_path / "reports")
    text = section(result.markdown, "Meta-analysis").strip()
    assert text.startswith(
        "- **obd, zero, k = 10: the pooled effect of 6 models is above zero: 1.050 [0.8000, 1.300] nats per token** (p = 2.000e-4)."
        " The models differ beyond chance: I2 62.0 %, Q 13.20, p = 0.02000. In another such model it would lie in 0.3000 to 1.800."
    )
    assert "magnitude, zero, k = 10: not pooled, 2 models; at least 3 are needed." in text
    assert "- `mixtral-tiny`: the top weights leave NaN or Inf (obd, zero, k = 10)" in text
    data = pl.read_csv(next((result.folder / "data").glob("forest_*.csv")))
    assert data["name"].to_list() == [*across.FAMILY[::2], "pooled"]


def test_equal_labels_are_told_apart_in_a_forest() -> None:
    """Two runs of one label stand in two rows, none of them the pooled one's."""
    rows = [{"label": label, "effect": 1.0, "num_parameters": n} for n, label in enumerate(("a", "a", "pooled"))]
    found, pooled = forest_frames(make_table("effects/1", rows).frame, None)
    assert found["name"].to_list() == ["a", "a (2)", "pooled (2)"]
    assert pooled.is_empty()


def test_every_question_has_its_section(compared: report.ReportResult) -> None:
    """Each section stands once, in its order, with its figures; what is new is listed, what is refused says why."""
    text = compared.markdown
    assert [title for title in titles(text) if title in ARCH] == list(ARCH)
    html = compared.path.read_text()
    assert all(html.count(f">{title}</h2>") == 1 for title in ARCH)
    names = {path.stem for path in (compared.folder / "figures").glob("*.svg")}
    for start in (
        "components_obd", "parts_act_mag", "depth_profiles", "clusters_obd", "experts_", "usage_", "tree_obd", "features_obd", "robustness_",
        "pareto_",
    ):  # fmt: skip
        assert any(name.startswith(start) for name in names), start
    assert "- No accuracy of `all runs`: models by family: llama 2" in section(text, "Classifier of the family")
    assert "| novelty | 0.5000 |" in section(text, "Further comparisons")
    assert names == {path.stem for path in (compared.folder / "data").glob("*.csv")}


def test_sentences_of_the_comparison_are_computed(compared: report.ReportResult) -> None:
    """The densest component, what stays, the closest pair, the most loaded expert and the ends of the ranking."""
    text = compared.markdown
    assert "**By `obd` the densest component is `mlp.down` in 4 of 4 models (6.000 to 9.000 times the mean).**" in text
    assert "Attention is denser than the MLP in 0 of 4." in text
    assert (
        "**Of the top 10 by `obd` of `smollm2-135m` 7 stay in `smollm2-135m-base`**; 1 move within their row or column"
        in text
    )
    assert "`llama-1.3m-seed0` and `llama-6m-seed0` are the most alike (distance 0.1000)" in section(
        text, "Models as a tree"
    )
    assert "in one expert of 8** (block 3, expert 3," in section(text, "Experts")
    assert "1 expert got no token" in section(text, "Experts")
    assert (
        "costs `smollm2-135m` (0.3000 nats per token) least and `mixtral-tiny` (4.000 nats per token) most.** The interval of the"
        " rank is a single rank for 2 of 4 models." in section(text, "Robustness")
    )
    assert "1 of 1 tests are under p = 0.05 after Holm's adjustment" in section(text, "Between families")


def test_attention_is_held_against_the_mlp_with_its_experts() -> None:
    """Score and weights of experts and shared MLP are added before the densities are compared."""
    about = {"label": "m", "metric": "obd", "seed": 0}
    parts = [("attention", 0.2, 0.3), ("mlp", 0.1, 0.35), ("expert", 0.5, 0.2)]
    rows = [
        {**about, "by": "part", "value": v, "weight_share": w, "score_share": s, "density": s / w} for v, w, s in parts
    ]
    rows.append(
        {**about, "by": "component", "value": "attn.q", "weight_share": 0.2, "score_share": 0.3, "density": 1.5}
    )
    assert density_sentences(make_table("shares/1", rows).frame)[0].endswith(
        "Attention is denser than the MLP in 1 of 1."
    )


def test_empty_columns_of_answers_are_left_out() -> None:
    """A table of answers has only the columns that say something; refusals of one reason share a line."""
    rows = [
        across.answer("depth", "centre_of_mass", value=0.6),
        *[across.answer("depth", "quarter", a=a, why="no scores", subject="head / blocks") for a in "xy"],
    ]
    found = answer_parts(make_table("comparison/1", rows).frame)
    assert found[0].splitlines()[0] == "| of | metric | quantity | value |"
    assert found[1] == "- No quarter (head / blocks) of `x` and `y`: no scores"
    assert answer_parts(make_table("comparison/1", []).frame) == []


@pytest.mark.usefixtures("undrawn")
def test_runs_and_a_step_of_several_make_one_page(fake: Maker) -> None:
    """Beside two runs a scale step is of neither: its sections open the page, and its id is among the report's inputs."""
    made = [fake(name=name, **SMALL) for name in ("a", "b")]
    scale = across.scaling(made[0].root)
    grouped = group([*(one.run for one in made), scale])
    assert [run.name for run in grouped.runs] == ["a", "b"]
    assert [set(one.folders) for one in grouped.between] == [{"scale"}]
    result = report.run([*(one.run for one in made), scale], root=made[0].root / "reports")
    assert titles(result.markdown).index("Scaling laws") < titles(result.markdown).index("Runs")
    assert read_manifest(scale)["run"] in read_manifest(result.folder)["inputs"].values()
    assert f"scale-{read_manifest(scale)['run']}" in section(result.markdown, "Reproduction")


@pytest.mark.usefixtures("undrawn")
def test_steps_of_several_runs_share_a_page(tmp_path: Path) -> None:
    """Two scale steps and an arch step without any run are set under each other, with what no run is there for left out."""
    arch = across.write_step(
        tmp_path, "arch", {"shares/1": across.shares(("one",)), "robustness/1": across.robustness()}
    )
    folders = [across.scaling(tmp_path), across.training(tmp_path), arch]
    result = report.run(folders, root=tmp_path / "reports")
    found = titles(result.markdown)
    assert {"Scaling laws", "Through training", "Architecture", "Provenance"} <= set(found)
    assert not {"What compares", "Runs", "What differs", "Criteria"} & set(found)
    html = result.path.read_text()
    assert len(re.findall(r'<figure id="', html)) == len(set(re.findall(r'<figure id="([^"]*)"', html))) > 5


@pytest.mark.usefixtures("undrawn")
def test_one_kind_of_step_twice_has_sections_told_apart(tmp_path: Path) -> None:
    """Sections of the same title name their step."""
    one = across.scaling(tmp_path)
    other = across.write_step(tmp_path, "scale", {"laws/1": [across.law()], "points/1": across.points()}, name="other")
    result = report.run([one, other], root=tmp_path / "reports")
    expected = [f"Scaling laws: scale-{read_manifest(folder)['run']}" for folder in (one, other)]
    assert [title for title in titles(result.markdown) if title.startswith("Scaling laws")] == expected


def test_what_files_say_stays_text(tmp_path: Path) -> None:
    """Markup in any column of the tables of several runs is shown as text, in tables, sentences and charts."""
    evil = "<img src=x onerror=alert(1)>|`*_[a](javascript:b)"
    texts = ("label", "family", "kind", "subject", "verdict", "excluded", "quantity", "law", "flags", "model")
    laws = [{**across.law(), **dict.fromkeys(("subject", "verdict", "quantity", "law", "flags"), evil)}]
    points = [
        {**row, **dict.fromkeys([name for name in texts if name in row and name != "excluded"], evil)}
        for row in across.points()
    ]
    answers = [{**row, "why": evil, "subject": evil, "null": evil, "b": evil, "a": evil} for row in across.answers()]
    shares = [{**row, "label": evil, "metric": evil} for row in across.shares(("m",))]
    robust = [{**row, "label": f"{evil}{n}", "task": evil} for n, row in enumerate(across.robustness())]
    folders = [
        across.write_step(tmp_path, "scale", {"laws/1": laws, "points/1": points}),
        across.write_step(tmp_path, "arch", {"comparison/1": answers, "shares/1": shares, "robustness/1": robust}),
    ]
    html = report.run(folders, root=tmp_path / "reports").path.read_text()
    body = html.split("<main>")[1].split("</main>")[0]
    assert "<img src=x" not in body
    assert 'javascript:b"' not in body
    assert "&lt;img src=x" in body


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_these_tables_has_none_of_the_sections(fake: Maker) -> None:
    """No section of several runs, of fits or of reliability stands on the page of a run that has no such table."""
    made = fake(steps=("score",), metrics=("act_mag",))
    found = titles(report.run([made.run], root=made.root / "reports").markdown)
    assert not {*SCALE, *ARCH, "Fitted curves", "Reliability"} & set(found)
    assert fit_parts(group([made.run]).runs[0]) == []


@pytest.mark.browser
@pytest.mark.skipif(
    find() is None, reason="no Chromium on this machine: make test-browser installs it, or set ESA_CHROMIUM"
)
def test_the_charts_of_several_runs_are_live(scaled: report.ReportResult, compared: report.ReportResult) -> None:
    """In a browser each chart of both pages is drawn, nothing is complained of, and no page is wider than its window."""
    binary = find()
    assert binary is not None
    browser = Browser(binary)
    try:
        for result in (scaled, compared):
            with browser.page(result.path.as_uri(), 800) as page:
                page.until("document.documentElement.dataset.drawn")
                assert page.complaints() == []
                assert page.requests() == [result.path.as_uri()]
                marks = page.evaluate(
                    "[...document.querySelectorAll('.chart')].map(e => e.querySelectorAll('.live svg .role-mark path').length)"
                )
                assert len(marks) == len(list((result.folder / "figures").glob("*.svg")))
                assert min(marks) > 0
                assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        browser.close()
