"""``esa perturb --validate``: what it prints, delivers and refuses."""

from pathlib import Path

import pytest

from esa.artifact import read_table
from tests.cli.conftest import Invoke

TRUTH = "[truth]\nweights = 40\ntop = 3\nstrata = 4\n[statistics]\nresamples = 99\n"


@pytest.fixture
def scored(folder: Path, esa: Invoke) -> str:
    """Return the score step of the folder's spec, to which a small sample was added."""
    (folder / "s.toml").write_text((folder / "s.toml").read_text() + TRUTH)
    return esa("score", "-s", "s.toml").stdout.strip()


def test_metrics_are_printed_best_first_and_the_table_is_delivered(scored: str, esa: Invoke, folder: Path) -> None:
    """The console orders the metrics by Spearman's correlation; -o writes the very table of the step's folder."""
    done = esa("perturb", "-s", "s.toml", "--validate", scored)
    assert done.exit_code == 0, done.stderr
    step = Path(done.stdout.strip())
    table = read_table(step / "truth.csv", "truth/1").frame
    found = {row["metric"]: row["value"] for row in table.to_dicts() if row["quantity"] == "spearman"}
    shown = [line.split()[0] for line in done.stderr.splitlines() if line.split()[:1] and line.split()[0] in found]
    assert shown == sorted(found, key=lambda metric: -found[metric])
    assert "Metrics against the damage of zeroing" in done.stderr
    assert "largest 3" in done.stderr
    again = esa("perturb", "-s", "s.toml", "--validate", scored, "-o", "truth.csv", "-q")
    assert (folder / "truth.csv").read_bytes() == (step / "truth.csv").read_bytes()
    assert (again.stdout, again.stderr) == ("", "")


def test_the_dry_run_counts_and_touches_nothing(scored: str, esa: Invoke, folder: Path) -> None:
    """--dry-run says how many weights on how much text, and the step's memory."""
    before = sorted(folder.rglob("*"))
    done = esa("perturb", "-s", "s.toml", "--validate", scored, "-n")
    assert done.exit_code == 0, done.stderr
    assert (
        "#   truth: the intact model, 20 rewrites for the noise floor, and at most 40 weights, each 6 windows of 16 tokens"
        in done.stdout
    )
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--target", "lm_head.weight:0,0"), "--target"),
        (("--targets", "top.csv"), "--targets"),
        (("--method", "zero"), "--method"),
        (("--faults",), "--faults"),
        (("-k", "3"), "-k"),
    ],
)
def test_flags_that_it_would_not_read_are_refused(scored: str, esa: Invoke, flags: tuple[str, ...], named: str) -> None:
    """Targets, methods, K and faults beside --validate end with exit code 3, naming the flag."""
    done = esa("perturb", "-s", "s.toml", "--validate", scored, *flags)
    assert done.exit_code == 3
    assert f"--validate: zeroes a sample of what a score step scored; it takes no {named}" in done.stderr


def test_a_folder_of_another_step_is_refused(scored: str, esa: Invoke) -> None:
    """A rank step says what it is and what is needed, in two lines."""
    ranked = esa("rank", scored).stdout.strip()
    done = esa("perturb", "-s", "s.toml", "--validate", ranked)
    assert done.exit_code == 3
    assert "is a rank step; a score step is needed" in done.stderr
