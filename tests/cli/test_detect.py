"""``esa perturb --detect`` from a shell: verdicts on stderr, the folder or the table on stdout, refusals before loading."""

import io
from pathlib import Path

import polars as pl
import pytest
from typer.testing import Result

from esa.artifact import read_manifest
from esa.cli.perturb_detect import published_line
from tests.cli.conftest import Invoke
from tests.conftest import make_tokenizer
from tests.perturb.super_weights import LENGTH, TWIN, WINDOWS, WRITER, planted, write_text

SPEC = f"""\
name = "tiny"
[model]
id = "model"
[calibration]
windows = 6
length = 12
[eval]
source = "file:own.txt"
windows = {WINDOWS}
length = {LENGTH}
bos = false
[score]
metrics = ["super_activation"]
rounds = 10
keep = 16
[rank]
k = [1]
"""


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, esa: Invoke) -> Path:
    """Work beside a planted model, its own text, a spec and its scores; return the score folder."""
    loaded = planted(twin=True)
    loaded.model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    write_text(loaded, tmp_path / "own.txt")
    (tmp_path / "s.toml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return folder_of(esa("score", "-s", "s.toml", "-q"))


def folder_of(done: Result) -> Path:
    """Return the folder that a command printed."""
    assert done.exit_code == 0, done.output
    return Path(done.stdout.strip())


def test_the_verdicts_are_printed(scored: Path, esa: Invoke) -> None:
    """Each candidate with its verdict, the shared row, and both together; stdout is the step's folder alone."""
    done = esa("perturb", "-s", "s.toml", "--detect", scored)
    folder = folder_of(done)
    assert (folder / "detector.csv").is_file()
    assert read_manifest(folder)["verdicts"]["critical_together"] == 2
    text = " ".join(done.stderr.split())
    for address in (WRITER, TWIN):
        assert f"writer {address}" in text
    assert text.count("critical together") == 2
    assert "row 5 of block 1 2 " in text
    assert "All 2 writers zeroed together: perplexity" in text
    assert "published" not in text
    again = esa("perturb", "-s", "s.toml", "--detect", scored)
    assert folder_of(again) == folder
    assert "is complete" in again.stderr


def test_the_table_goes_to_stdout(scored: Path, esa: Invoke) -> None:
    """With -o - the table alone is on stdout; a ranking's folder serves as its scores' does."""
    ranked = folder_of(esa("rank", scored, "-q"))
    done = esa("perturb", "-s", "s.toml", "--detect", ranked, "-o", "-", "-q")
    assert done.exit_code == 0, done.output
    frame = pl.read_csv(io.StringIO(done.stdout))
    assert set(frame["target"]) == {WRITER, TWIN}
    assert set(frame["verdict"]) == {"critical_together"}


def test_a_dry_run_counts_the_candidates(scored: Path, esa: Invoke) -> None:
    """The dry run reads the candidates, says what will be evaluated and where it goes, and writes nothing."""
    before = sorted(Path("outputs").rglob("*"))
    done = esa("perturb", "-s", "s.toml", "--detect", scored, "-n")
    assert done.exit_code == 0, done.output
    assert f"# 2 candidates of {scored}" in done.stdout
    assert "detector: each candidate alone, each group together and without one, 40 windows of 16 tokens" in done.stdout
    assert "outputs/tiny/detector-<id>/" in done.stdout
    assert sorted(Path("outputs").rglob("*")) == before


BESIDE = {
    "--target": ("--target", WRITER),
    "--method": ("--method", "zero"),
    "-k": ("-k", 3),
    "--faults": ("--faults",),
}


@pytest.mark.parametrize("flag", BESIDE)
def test_it_takes_no_targets_and_no_methods(flag: str, scored: Path, esa: Invoke) -> None:
    """Beside --detect a flag that names targets, methods or faults is refused, and named."""
    done = esa("perturb", "-s", "s.toml", "--detect", scored, *BESIDE[flag])
    assert done.exit_code == 3
    text = " ".join(done.stderr.split())
    assert f"--detect: zeroes the candidates of a score step; it takes no {flag}" in text


def test_a_folder_that_is_no_step_is_refused(scored: Path, esa: Invoke) -> None:
    """A folder without a manifest is an error about that folder, before any model is loaded."""
    done = esa("perturb", "-s", "s.toml", "--detect", "model")
    assert done.exit_code == 3
    assert "model: is not a finished step: it has no manifest.json" in " ".join(done.stderr.split())
    assert "loading" not in done.stderr


def test_what_is_published_is_said() -> None:
    """A line names the model, how many of its weights were found, and which were missed."""
    one = {"model": "Tiny", "exact": True, "found": ["a:1,2"], "missed": ["b:3,4", "c:5,6"]}
    assert published_line(one) == (
        "The model is Tiny: 1 of its 3 published super weights were found; missed: b:3,4, c:5,6."
    )
    assert published_line({**one, "exact": False, "missed": []}) == (
        "The model looks like Tiny: 1 of its 1 published super weights were found."
    )
