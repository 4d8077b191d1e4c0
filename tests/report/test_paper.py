"""The folder for LaTeX: it compiles, shows the artifacts' numbers and texts as they are, and is the same twice."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from esa.artifact import find_table
from esa.errors import ArtifactError
from esa.report import paper
from esa.report.paper.rounding import number, with_interval
from esa.report.tables import collapse
from tests.report.conftest import Fake
from tests.report.evidence import complete

EVIL = r"a_b%c#d$\evil{}&~^<i>|é×→"  # noqa: RUF001
Maker = Callable[..., Any]


def compiled(folder: Path) -> str:
    """Return the text of the compiled example, its lines joined; skip where there is no TeX."""
    for name in ("pdflatex", "bibtex"):
        if shutil.which(name) is None:
            pytest.skip(f"no {name}: the example is not compiled")
    commands = [["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "example.tex"]]
    if (folder / "references.bib").read_text():
        commands += [["bibtex", "example"], commands[0]]
    for command in [*commands, commands[0]]:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout.decode("latin-1")[-1500:]
    log = (folder / "example.log").read_text(encoding="latin-1")
    assert "undefined" not in log, [line for line in log.splitlines() if "undefined" in line]
    if shutil.which("pdftotext") is None:
        pytest.skip("no pdftotext: the compiled page is not read")
    done = subprocess.run(["pdftotext", "-layout", "example.pdf", "-"], cwd=folder, capture_output=True, check=True)
    return " ".join(done.stdout.decode().split())


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fake, list[Path], paper.PaperResult]:
    """Return a run with every table of evidence, its sources, and its paper, made once."""
    made = Fake(
        tmp_path_factory.mktemp("paper"), metrics=("act_mag", "obd"), methods=({"method": "zero"},), singles=True
    )
    made.write()
    sources = [made.run, *complete(made)]
    return made, sources, paper.write(sources, made.root / "paper")


def test_the_example_compiles_and_shows_a_tables_and_a_macros_number(
    whole: tuple[Fake, list[Path], paper.PaperResult],
) -> None:
    """pdflatex and bibtex accept example.tex, and the text of its pages holds a table's number and a fact of the methods."""
    made, _, result = whole
    text = compiled(result.folder)
    rows = collapse(find_table(made.folders["perturb"], "damage/1").frame)
    row = rows.filter((pl.col("metric") == "act_mag") & (pl.col("k") == 10) & (pl.col("group") == "top_k")).row(
        0, named=True
    )
    assert with_interval(row["delta_nll"], row["delta_low"], row["delta_high"]) in text
    assert "134,515,008 weights" in text
    assert result.macros["esaParameters"] == "134,515,008"
    assert "Optimal brain damage" in text  # the references hold what the methods cite
    assert "??" not in text


def test_every_table_a_layout_of_which_has_rows_is_written(whole: tuple[Fake, list[Path], paper.PaperResult]) -> None:
    """Tables of all steps are there, booktabs with caption and label, and example.tex inputs each of them."""
    result = whole[2]
    names = {path.stem for path in result.files if path.parent.name == "tables"}
    assert {
        "worst",
        "damage_zero",
        "damage_zero_single",
        "overlap",
        "components",
        "truth",
        "detector",
        "faults",
    } <= names
    assert {"tasks", "interactions", "intact", "seeds", "criteria", "dose", "confirmatory"} <= names
    example = (result.folder / "example.tex").read_text()
    for name in names:
        tex = (result.folder / f"tables/{name}.tex").read_text()
        assert rf"\label{{tab:esa-{name.replace('_', '-')}}}" in tex
        assert r"\toprule" in tex
        assert r"\caption{" in tex
        assert rf"\input{{tables/{name}}}" in example


def test_every_number_of_a_table_is_a_macro(whole: tuple[Fake, list[Path], paper.PaperResult]) -> None:
    """The macros of the damage table hold what its cells show, with their estimate and ends apart."""
    made, _, result = whole
    rows = collapse(find_table(made.folders["perturb"], "damage/1").frame)
    for row in rows.filter((pl.col("group") == "top_k") & (pl.col("unit") == "joint")).iter_rows(named=True):
        metric = {"act_mag": "ActMag", "obd": "Obd"}[row["metric"]]
        name = f"esaDamage{metric}Zero{ {1: 'One', 10: 'Ten', 100: 'OneHundred'}[row['k']] }"
        shown = with_interval(row["delta_nll"], row["delta_low"], row["delta_high"])
        assert result.macros[name] == shown
        assert result.macros[f"{name}Estimate"] == shown.split(" [")[0]
        assert result.macros[f"{name}Low"] == shown.split(" [")[1].split(",")[0]
        assert result.macros[f"{name}Perplexity"] == number(row["ppl_mean"])


def test_macros_say_what_they_are_and_where_from(whole: tuple[Fake, list[Path], paper.PaperResult]) -> None:
    """Each definition is a line of letters alone, once, with its meaning and source behind it."""
    lines = (whole[2].folder / "macros.tex").read_text().splitlines()[1:]
    names = [re.fullmatch(r"\\newcommand\{\\([A-Za-z]+)\}\{.*\}% .+ \[.+\]", line) for line in lines]
    assert all(names)
    assert len({found[1] for found in names if found}) == len(lines)
    ten = next(line for line in lines if line.startswith(r"\newcommand{\esaDamageObdZeroTen}"))
    assert "metric obd, method zero, k 10: delta NLL [damage/1, perturb-" in ten


def test_the_methods_state_facts_of_the_manifests_alone(whole: tuple[Fake, list[Path], paper.PaperResult]) -> None:
    """Numbers of the methods are macros; a fact that no manifest holds has no sentence."""
    made, _, result = whole
    methods = (result.folder / "methods.tex").read_text()
    assert not re.search(r"(?<![A-Za-z])\d", re.sub(r"\\cite\{[^}]*\}|^%.*", "", methods, flags=re.MULTILINE))
    assert r"~\cite{lecun1990obd}" in methods
    assert "revision" not in methods  # the manifest's is null
    alone = paper.write([made.folders["rank"]], made.root / "alone")
    text = (alone.folder / "methods.tex").read_text()
    assert "ranked over the whole model" in text
    assert "The model is" not in text
    assert (alone.folder / "references.bib").read_text() == ""
    assert r"\bibliography" not in (alone.folder / "example.tex").read_text()


def test_the_same_artifacts_give_the_same_bytes(whole: tuple[Fake, list[Path], paper.PaperResult]) -> None:
    """A second folder is the first, byte for byte, PDF figures too, in which fonts are embedded."""
    made, sources, result = whole
    again = paper.write(sources, made.root / "again")
    ours = {path.relative_to(result.folder) for path in result.files}
    first = {name: data for name, data in contents(result.folder).items() if Path(name) in ours}
    assert contents(again.folder) == first
    drawn = [data for name, data in first.items() if name.endswith(".pdf")]
    assert len(drawn) > 5
    assert all(b"/FontFile2" in data and b"Date" not in data for data in drawn)


def test_hostile_texts_compile_and_appear_as_they_are(fake: Maker) -> None:
    """A model's name, a text, a metric's file of TeX commands and unicode stand in the page literally."""
    made = fake(evil=EVIL, metrics=("act_mag",), methods=({"method": "zero"},), model_id="m/" + EVIL, name="evil_run")
    text = compiled(paper.write([made.run], made.root / "paper").folder)
    assert EVIL in text.replace("\N{MODIFIER LETTER CIRCUMFLEX ACCENT}", "^").replace("\N{SMALL TILDE}", "~")


def test_several_runs_share_tables_and_say_what_agrees_once(tmp_path: Path) -> None:
    """A row says whose it is, macros carry the run's name, and a sentence that all runs share stands once."""
    runs = []
    for name, effect in (("one", 1.0), ("two_2", 0.5)):
        made = Fake(tmp_path, name=name, effect=effect, metrics=("act_mag",), methods=({"method": "zero"},))
        made.settings = {"eval": {"windows": 32, "length": 64}}
        runs.append(made.write())
    result = paper.write(runs, tmp_path / "paper")
    assert result.macros["esaDamageOneActMagZeroTen"] != result.macros["esaDamageTwoTwoActMagZeroTen"]
    assert result.macros["esaParameters"] == "134,515,008"
    methods = (result.folder / "methods.tex").read_text()
    assert methods.count("The model is") == 1
    assert "In run" not in methods
    table = (result.folder / "tables/damage_zero.tex").read_text()
    assert re.search(r"two\\_2 & act\\_mag & top & 10", table)
    compiled(result.folder)


def test_laws_and_comparisons_across_models_have_tables(fake: Maker) -> None:
    """The step folders of esa scale and esa arch give booktabs tables and macros of their numbers."""
    from tests.report.evidence import add_step

    made = fake(metrics=("act_mag",), methods=({"method": "zero"},))
    law = {
        "over": "parameters", "quantity": "damage", "subject": "obd, zero, k = 10", "num_models": 6, "num_points": 12,
        "law": "power", "weight": 0.91, "r2": 0.97, "prediction_error": 1.2, "target": 1e9, "predicted": 3.14159,
        "predicted_low": 2.5, "predicted_high": 4.0, "verdict": "power law",
    }  # fmt: skip
    pooled = {"subject": "obd", "num_models": 6, "mean": 1.7346, "low": 1.377, "high": 2.129, "prediction_low": 0.2, "prediction_high": 3.3}  # fmt: skip
    scale = add_step(made, "scale", {"laws.csv": ("laws/1", [law]), "meta.csv": ("meta/1", [pooled])})
    ranked = {
        "label": "m_1",
        "metric": "obd",
        "method": "zero",
        "k": 10,
        "damage": 0.5,
        "low": 0.4,
        "high": 0.61,
        "rank": 1,
    }
    arch = add_step(made, "arch", {"robustness.csv": ("robustness/1", [ranked])}, labels=["m_1", "m_2"])
    one = paper.write([scale], made.root / "laws")
    assert one.macros["esaMetaObd"] == "1.73 [1.38, 2.13]"
    assert "1.73 [1.38, 2.13]" in (one.folder / "tables/meta.tex").read_text()
    assert any(value == "3.1 [2.5, 4.0]" for value in one.macros.values())
    assert "compared by AICc" in (one.folder / "methods.tex").read_text()
    compiled(one.folder)
    two = paper.write([arch], made.root / "models")
    assert "0.50 [0.40, 0.61]" in (two.folder / "tables/robustness.tex").read_text()
    assert two.macros["esaComparedModels"] == "2" if "esaComparedModels" in two.macros else True


def test_a_folder_is_not_cleaned_up_and_what_is_in_the_way_is_refused(fake: Maker) -> None:
    """Other files stay; a file where the folder belongs, and a folder where a file does, are errors before a byte is written."""
    made = fake(metrics=("act_mag",), methods=({"method": "zero"},), steps=("rank",))
    home = made.root / "paper"
    home.mkdir()
    (home / "mine.tex").write_text("mine")
    paper.write([made.folders["rank"]], home)
    assert (home / "mine.tex").read_text() == "mine"
    with pytest.raises(ArtifactError, match="is a file; a paper is a folder"):
        paper.write([made.folders["rank"]], home / "mine.tex" / "deeper")
    other = made.root / "other"
    (other / "macros.tex").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="is a folder, where a file of the paper belongs"):
        paper.write([made.folders["rank"]], other)
    assert [path.name for path in other.iterdir()] == ["macros.tex"]
