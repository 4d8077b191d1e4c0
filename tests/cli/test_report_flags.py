"""``esa report`` with --paper, --log and --week: what it prints, writes and refuses."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from esa.errors import EXIT_CONTENT, EXIT_USAGE
from tests.report.conftest import Fake

Invoke = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work beside an outputs folder with one finished run."""
    monkeypatch.chdir(tmp_path)
    made = Fake(Path(), metrics=("act_mag",), methods=({"method": "zero"},))
    return made.write()


def test_a_paper_is_written_and_its_path_printed(esa: Invoke, run: Path) -> None:
    """--paper prints the folder alone on stdout and writes no page."""
    done = esa("report", run, "--paper", "paper", "-q")
    assert (done.exit_code, done.stdout) == (0, "paper\n")
    assert Path("paper/example.tex").is_file()
    assert sorted(path.name for path in Path("paper").iterdir()) == [
        "example.tex", "figures", "findings.tex", "macros.tex", "methods.tex", "references.bib", "tables",
    ]  # fmt: skip
    assert not Path("reports").exists()


def test_an_entry_is_appended_once(esa: Invoke, run: Path) -> None:
    """--log prints the log's path; a second time it says that the run is there, --force enters it again."""
    done = esa("report", run, "--log", "--command", "make it")
    assert (done.exit_code, done.stdout) == (0, "reports/LOG.md\n")
    log = Path("reports/LOG.md")
    first = log.read_text()
    assert "make it" in first
    again = esa("report", run, "--log")
    assert again.exit_code == 0
    assert "reports/LOG.md has this run already" in again.stderr
    assert log.read_text() == first
    assert esa("report", run, "--log", "--force").exit_code == 0
    assert log.read_text().count("<!-- esa:entry") == 2


def test_both_may_be_asked_for(esa: Invoke, run: Path) -> None:
    """--paper and --log together print a path each."""
    assert esa("report", run, "--paper", "p", "--log", "-q").stdout == "p\nreports/LOG.md\n"


def test_a_dry_run_says_what_it_would_write_and_touches_nothing(esa: Invoke, run: Path) -> None:
    """-n prints the runs, the folder and the entry."""
    done = esa("report", run, "--paper", "p", "--log", "-n", "-q")
    assert done.exit_code == 0
    assert "# reads fake_run: " in done.stdout
    assert "# loads no model; writes p/" in done.stdout
    assert "### Key results" in done.stdout
    assert done.stdout.endswith("# appends this to reports/LOG.md\n")
    assert not Path("p").exists()
    assert not Path("reports").exists()


def test_the_week_needs_no_run(esa: Invoke, run: Path) -> None:
    """--week prints the summary of this week or of a date's; with --log it is appended, with -n it is not."""
    this = esa("report", "--week")
    assert this.exit_code == 0
    assert re.match(r"## Week \d{4}-W\d\d: ", this.stdout)
    assert "Runs finished: 1 (`fake_run`)" in this.stdout
    assert not Path("reports").exists()
    other = esa("report", "--week", "2026-W10")
    assert other.stdout.startswith("## Week 2026-W10: 2026-03-02 to 2026-03-08\n")
    assert other.stdout == esa("report", "2026-03-04", "--week").stdout
    assert esa("report", "--week", "--log", "-n").stdout.endswith("# appends this to reports/LOG.md\n")
    assert not Path("reports").exists()
    assert esa("report", "--week", "--log").stdout == this.stdout
    assert Path("reports/LOG.md").read_text().endswith(this.stdout)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--week", "yesterday"], "--week: 'yesterday' is no date; allowed: a day such as 2026-11-16, or a week such as 2026-W47"),
        (["--week", "2026-01-01", "2026-01-02"], "--week: takes one DATE, not 2 words"),
        (["--week", "-o", "x"], "--out: is the folder of the page, and --week writes none"),
        (["--week", "--paper", "x"], "--paper: has nothing to do with a week"),
        (["outputs/fake_run", "--paper", "p", "-o", "x"], "--out: is the folder of the page, and --paper writes none"),
        (["outputs/fake_run", "--command", "x"], "--command: belongs to an entry of the log"),
        (["outputs/fake_run", "--paper", "p", "--force"], "--force: --paper always writes its files anew"),
        (["outputs/fake_run", "--paper", "outputs/fake_run/run.json"], "outputs/fake_run/run.json: is a file; a paper is a folder"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(esa: Invoke, run: Path, words: list[str], message: str) -> None:
    """Options that another way of writing does not read are errors, and nothing is written."""
    done = esa("report", *words)
    assert done.exit_code == EXIT_CONTENT
    assert f"esa: error: {message}" in " ".join(done.stderr.split())
    assert not Path("reports").exists()


def test_without_a_run_usage_is_wrong(esa: Invoke, run: Path) -> None:
    """A report of nothing is a matter of usage."""
    done = esa("report")
    assert done.exit_code == EXIT_USAGE
    assert "Missing argument 'RUN...'" in done.stderr
