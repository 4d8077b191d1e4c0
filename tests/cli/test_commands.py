"""Every command on a tiny model: what it prints, writes, and ends with."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from esa.perturb import campaign
from tests.cli.conftest import SPEC, Invoke

WEIGHT = "model.layers.1.mlp.down_proj.weight"


def test_run_does_it_all(folder: Path, esa: Invoke) -> None:
    """`esa run` leaves finished steps and run.json, prints the tables on stderr and the report's path alone on stdout."""
    done = esa("run", "-s", "s.toml")
    assert done.exit_code == 0, done.stderr
    assert Path(done.stdout.strip()).name == "report.html"
    assert Path(done.stdout.strip()).exists()
    steps = json.loads((folder / "outputs/tiny/run.json").read_text())["steps"]
    assert list(steps) == ["score", "rank", "perturb", "overlap"]
    for step in steps.values():
        assert (folder / "outputs/tiny" / step / "manifest.json").exists()
    for text in ("Damage of zero, by group and k", "Worst single weights of 8,944", "Top weights across seeds"):
        assert text in done.stderr


def test_a_second_run_reuses_every_step(folder: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run is not computed again: no model is loaded, no file changes."""
    first = esa("run", "-s", "s.toml", "-q")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    monkeypatch.setattr("esa.model.load_model", lambda *_: pytest.fail("the model was loaded"))
    second = esa("run", "-s", "s.toml", "-q")
    assert second.exit_code == 0, second.output
    assert second.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before


def test_a_new_perturbation_does_not_rescore(folder: Path, esa: Invoke) -> None:
    """Another method makes another perturb step and leaves the scores alone."""
    esa("run", "-s", "s.toml", "-q")
    done = esa("run", "-s", "s.toml", "-q", "--set", "perturb.0.method=sign_flip")
    assert done.exit_code == 0, done.output
    assert len(list((folder / "outputs/tiny").glob("score-*"))) == 1
    assert len(list((folder / "outputs/tiny").glob("perturb-*"))) == 2


def test_stepwise_gives_the_tables_of_run(folder: Path, esa: Invoke) -> None:
    """Score, rank, perturb and overlap one by one write the very tables of `esa run`."""
    esa("run", "-s", "s.toml", "-q")
    tables = {path.relative_to(folder): path.read_bytes() for path in folder.glob("outputs/tiny/*/*.csv")}
    score = esa("score", "-s", "s.toml", "-q", "--force").stdout.strip()
    rank = esa("rank", score, "-s", "s.toml", "-q", "--force").stdout.strip()
    perturb = esa("perturb", "-s", "s.toml", "--targets", rank, "-q", "--force").stdout.strip()
    overlap = esa("overlap", rank, "-s", "s.toml", "-q", "--force").stdout.strip()
    assert all(Path(step).is_dir() for step in (score, rank, perturb, overlap))
    assert {path.relative_to(folder): path.read_bytes() for path in folder.glob("outputs/tiny/*/*.csv")} == tables


def test_dry_run_touches_nothing(folder: Path, esa: Invoke) -> None:
    """--dry-run prints spec, passes, memory and outputs, as TOML with comments, and writes no file."""
    before = sorted(folder.rglob("*"))
    for words in (["run"], ["score"], ["eval"], ["perturb", "--targets", "top.csv"]):
        done = esa(*words, "-s", "s.toml", "--dry-run")
        assert done.exit_code == 0, done.output
        for text in ('name = "tiny"', "# passes", "# memory (8,944 weights, 4 bytes each)", "# outputs", "peak "):
            assert text in done.stdout
        (folder / "again.toml").write_text(done.stdout)
        assert esa("check", "again.toml", "-q").exit_code == 0
        (folder / "again.toml").unlink()
    assert sorted(folder.rglob("*")) == before


def test_one_weight_by_address(folder: Path, esa: Invoke) -> None:
    """--target and --method need no ranking; the damage table names the weight."""
    done = esa(
        "perturb",
        "-s",
        "s.toml",
        "--target",
        f"{WEIGHT}:3,5",
        "--method",
        "scale",
        "--option",
        "factor=0.5",
        "-o",
        "d.csv",
    )
    assert done.exit_code == 0, done.output
    row = pl.read_csv(folder / "d.csv").row(0, named=True)
    assert (row["target"], row["method"], row["options"], row["dose"]) == (
        f"{WEIGHT}:3,5",
        "scale",
        '{"factor":0.5}',
        0.5,
    )


def test_eval_prints_the_metrics(folder: Path, esa: Invoke) -> None:
    """`esa eval -o -` writes NLL, perplexity, bits per byte and accuracy as CSV on stdout."""
    done = esa("eval", "-s", "s.toml", "-o", "-", "-q")
    assert done.exit_code == 0, done.output
    step = next((folder / "outputs/tiny").glob("eval-*"))
    assert pl.read_csv(step / "eval.csv")["metric"].to_list() == ["nll", "perplexity", "bits_per_byte", "accuracy"]


BAD_SPECS = {
    "metric": ("score.metrics=['hutchinson']", "'hutchinson' is not a metric (did you mean 'hutchinson_diag'?)"),
    "type": ("calibration.windows='8'", "input should be a valid integer"),
    "short text": ("calibration.windows=9999", "builtin:dev_small: is too short: it holds "),
    "missing text": ("eval.source='file:nowhere.txt'", "file:nowhere.txt: no such file"),
    "missing model": ("model.id='./nowhere'", "model.id: './nowhere': no such folder"),
    "device": ("model.device='cuda:0'", "model.device: 'cuda:0' is not available; available: cpu"),
    "keep": ("rank.k=[70]", "rank.k: K = 70 is more than the 64 scores that will be kept of model.embed_tokens.weight"),
    "include": ("score.include=['no.such.*']", "score.include: 'no.such.*' matches no parameter"),
}


@pytest.mark.parametrize("case", list(BAD_SPECS))
def test_bad_content_is_one_clear_error(case: str, folder: Path, esa: Invoke) -> None:
    """Bad content ends with exit code 3, an error that names place and value, and no finished perturb step."""
    change, text = BAD_SPECS[case]
    done = esa("run", "-s", "s.toml", "-q", "--set", change)
    assert done.exit_code == 3, done.output
    assert done.stderr.startswith("esa: error: ")
    assert text in done.stderr
    assert "Traceback" not in done.output
    assert not list(folder.glob("outputs/tiny/perturb-*"))


BAD_TARGETS = {
    "name": (f"{WEIGHT[:-8]}.weigth:0,0", f"(did you mean '{WEIGHT}'?)"),
    "outside": (f"{WEIGHT}:16,0", f"(16, 0) is outside {WEIGHT}, of shape (16, 24)"),
    "form": ("down_proj[0]", "is not an address; allowed: NAME:I,J"),
}


@pytest.mark.parametrize("case", list(BAD_TARGETS))
def test_bad_targets(case: str, folder: Path, esa: Invoke) -> None:
    """A target that names no weight is refused with what would."""
    target, text = BAD_TARGETS[case]
    done = esa("perturb", "-s", "s.toml", "--target", target, "-q")
    assert (done.exit_code, text in done.stderr) == (3, True), done.output
    assert not (folder / "outputs").exists()


def test_bad_tables(folder: Path, esa: Invoke) -> None:
    """A list without the columns, one with NaN scores, and one that is missing are refused by name."""
    (folder / "a.csv").write_text("weight,value\n1,2\n")
    (folder / "b.csv").write_text("parameter,index,score\nw,3,nan\n")
    cases = {
        "a.csv": "a.csv: has neither the columns of ranking/1 nor of an older list",
        "b.csv": "b.csv:2: score: nan is not a score; a number is finite or null",
        "c.csv": "c.csv: no such file",
    }
    for name, text in cases.items():
        done = esa("perturb", "-s", "s.toml", "--targets", name, "-q")
        assert (done.exit_code, text in done.stderr) == (3, True), done.output


def test_unknown_option_is_a_usage_error(esa: Invoke) -> None:
    """An unknown option or command ends with 2, bad content given by a flag with 3."""
    assert esa("score", "--nonsense").exit_code == 2
    assert esa("nonsense").exit_code == 2
    assert esa("score").exit_code == 3


def test_interruption_resumes(folder: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends with 130 and keeps what is finished; the same command goes on and gives an uninterrupted run's tables."""
    esa("run", "-s", "s.toml", "-q", "-o", "whole")
    original, calls = campaign.Campaign._finish, []

    def interrupted(self: campaign.Campaign, *case: Any) -> None:
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        original(self, *case)

    monkeypatch.setattr(campaign.Campaign, "_finish", interrupted)
    stopped = esa("run", "-s", "s.toml", "-q")
    assert stopped.exit_code == 130
    assert "interrupted" in stopped.stderr
    step = next((folder / "outputs/tiny").glob("perturb-*"))
    assert not (step / "manifest.json").exists()
    lines = (step / "cases.jsonl").read_text().splitlines()
    assert len(lines) == 31  # the model, its intact measurement, and 29 cases and rewrites in the order of their blocks
    again = esa("run", "-s", "s.toml", "-q")
    assert again.exit_code == 0, again.output
    for name in ("damage.csv", "windows.csv"):
        assert (step / name).read_bytes() == (folder / "whole/tiny" / step.name / name).read_bytes()
    manifest = json.loads((step / "manifest.json").read_text())
    assert manifest["num_reused"] == sum('"key":"floor-' not in line for line in lines[2:]) > 0
    assert manifest["checksum"]["restored"] is True


def test_sweep_runs_every_member(folder: Path, esa: Invoke) -> None:
    """A spec with [sweep] runs each member in a folder of its own."""
    (folder / "s.toml").write_text(SPEC + '\n[sweep]\n"calibration.length" = [12, 16]\n')
    done = esa("run", "-s", "s.toml", "-q")
    assert done.exit_code == 0, done.output
    assert {path.parent.name for path in folder.glob("outputs/*/run.json")} == {"tiny-00", "tiny-01"}


def test_list_and_version(esa: Invoke) -> None:
    """--list names what a spec may name; --version prints the version."""
    assert "hutchinson_diag" in esa("--list").stdout
    assert esa("--version").stdout.startswith("esa ")
