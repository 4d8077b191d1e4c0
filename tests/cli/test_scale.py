"""`esa scale` in a shell: the folder on stdout, the laws on stderr, and words for what cannot be done."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
from typer.testing import CliRunner, Result

from esa.artifact import read_table
from esa.cli.main import app
from esa.cli.scale_tables import predicted
from tests.planted_runs import Planted, family

Esa = Callable[..., Result]
FEW = ("--resamples", "99", "--permutations", "99")


@pytest.fixture
def esa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Esa:
    """Run a command in a folder that holds the runs of six models, outputs/w4_seed0 and so on."""
    monkeypatch.chdir(tmp_path)
    family(
        tmp_path, (4, 5, 6, 8, 10, 13), steps=("score", "rank", "perturb"), ks=(1,), singles=0,
        damage=lambda one, case: 20 * one.num_parameters**-0.4 if case.group == "top_k" else 1e-6,
    )  # fmt: skip

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(app, ["scale", *words], catch_exceptions=False)

    return invoke


def test_the_laws_are_printed_and_the_folder_is_the_answer(esa: Esa) -> None:
    """stdout holds the folder alone; stderr the verdicts, the extrapolation and what was refused; -q says nothing."""
    found = esa("outputs", "--to", "7B", "-o", "laws", *FEW)
    assert (found.exit_code, found.stdout) == (0, "laws\n")
    assert "Damage of the top K weights (nats per token)" in found.stderr
    assert "Power law x^-0.40 [-0.40, -0.40] (R2 1.00, weight 1.00)" in found.stderr
    assert "at 7B" in found.stderr
    assert "No power law (R2 0." in found.stderr
    assert (
        "refused: 0 models with a value, 3 are needed; of 6 runs, of one of them: no K within a factor of 2"
        in found.stderr
    )
    again = esa("outputs", "--to", "7B", "-o", "laws", *FEW, "-q")
    assert (again.exit_code, again.stdout, again.stderr) == (0, "laws\n", "")
    assert read_table("laws/laws.csv", "laws/1").frame["target"].drop_nulls().unique().to_list() == [7e9]


def test_a_dry_run_says_what_is_read_and_writes_nothing(esa: Esa) -> None:
    """Runs, models and quantities, every line a comment."""
    found = esa("outputs", "-n", "-o", "laws", "--exclude", "w4_seed0")
    lines = found.stdout.splitlines()
    assert all(line.startswith("# ") for line in lines)
    assert "# leaves out w4_seed0: left out by --exclude" in lines
    assert lines[-1] == "# loads no model; writes laws/"
    assert not Path("laws").exists()


def test_options_narrow_what_is_followed(esa: Esa) -> None:
    """A metric, a K and a fraction leave the quantities of others out."""
    esa("outputs", "-o", "laws", "--metric", "activation_magnitude", "-k", "1", "--fraction", "1e-3", *FEW)
    subjects = set(read_table("laws/laws.csv", "laws/1").frame["subject"])
    assert "act_mag, zero, K nearest to 0.001 of the weights" in subjects
    assert not {one for one in subjects if "1e-5" in one}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--over", "depth"], "--over: 'depth'; allowed: parameters, active, checkpoints"),
        (["--to", "huge"], "--to: 'huge' is no size; allowed: a number above zero, K, M, B or T behind it, as 350M or 7B"),
        (["--fraction", "2"], "--fraction: 2 is no share of the weights; allowed: above 0, at most 1"),
        (["--metric", "wander"], "--metric: 'wander' is not a metric (did you mean 'wanda'?)"),
        (["--exclude", "w5"], "--exclude: 'w5' is none of the runs; they are w"),
        (["--models", "none.csv"], "none.csv: cannot be read"),
        (["--metric", "wanda"], "--metric: no run has 'wanda'; they have: act_mag"),
        (["--method", "quantize"], "--method: no run has 'quantize'; they have: zero"),
        (["-k", "77"], "-k: no run has 77; they have: 1"),
        (["--seed", "-1"], "--seed: -1; allowed: a whole number of at least 0"),
        (["-o", "-"], "--out: '-' is no folder; several tables are written"),
        (["--resamples", "5"], "--resamples: 5; allowed: a whole number of at least 99"),
        (["-k", "0"], "-k: 0; allowed: a whole number of at least 1"),
        (["--exclude", "w4_seed0", "--exclude", "w5_seed0", "--exclude", "w6_seed0", "--exclude", "w8_seed0"],
         "RUN: 2 models (w10, w13) of 6 runs; a law needs at least 3 models; left out: w4_seed0: left out by --exclude"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(esa: Esa, words: list[str], error: str) -> None:
    """Exit code 3, the place, the value and what is allowed, and nothing is written."""
    found = esa("outputs", *(() if "-o" in words else ("-o", "laws")), *words)
    assert found.exit_code == 3
    assert f"esa: error: {error}" in found.stderr
    assert not Path("laws").exists()


def test_a_folder_of_another_step_is_not_written_over(esa: Esa) -> None:
    """A folder that holds other laws is refused, until --force."""
    assert esa("outputs", "-o", "laws", "-k", "1", *FEW, "-q").exit_code == 0
    refused = esa("outputs", "-o", "laws", "-k", "1", "--seed", "1", *FEW, "-q")
    assert refused.exit_code == 3
    assert "give another folder with -o, or --force to write over it" in refused.stderr
    assert esa("outputs", "-o", "laws", "-k", "1", "--seed", "1", *FEW, "-q", "--force").exit_code == 0


def test_a_run_given_twice_counts_once(esa: Esa) -> None:
    """The same steps, by their folder's name or as a copy, are no second training seed."""
    copytree("outputs/w4_seed0", "again")
    found = esa("outputs", "outputs/w4_seed0", "again", "-n", "-o", "laws")
    lines = found.stdout.splitlines()
    assert lines.count("# w4_seed0 is given twice (the same steps); it counts once") == 2
    assert any(line.startswith("# model w4: 1 run,") for line in lines)


def test_a_campaign_by_another_model_s_ranking_is_named(esa: Esa, tmp_path: Path) -> None:
    """What was done to one model by the ranking of another is of neither run: it is left out by name."""
    one, other = (Planted(tmp_path, name, width=width) for name, width in (("one", 7), ("other", 9)))
    one.write()
    other.write()
    crossed = one.cross(other)
    found = esa("outputs", str(crossed), "-o", "laws", *FEW)
    assert found.exit_code == 0
    assert f"{crossed}: changed one model by the ranking of another" in " ".join(found.stderr.split())


def test_no_run_at_all_is_an_error(esa: Esa) -> None:
    """A folder without runs is named."""
    Path("empty").mkdir()
    found = esa("empty")
    assert found.exit_code == 3
    assert "empty: holds neither run.json nor manifest.json" in found.stderr


def test_the_pooled_mean_is_a_table(tmp_path: Path, esa: Esa) -> None:
    """A line per subject with what another model may show and how much models differ; what limits them all is said once."""
    found = esa("outputs", "--meta", "--to", "7B", "-o", "laws", *FEW)
    assert found.exit_code == 0
    table = found.stderr.split("pooled over models (nats per token, random effects)")[1]
    assert "in another model" in table.splitlines()[1]
    assert sum("act_mag, zero, top 1 " in line for line in table.splitlines()) == 1
    assert table.count("all of the family") == 1


def test_a_far_target_is_said_to_be_far(esa: Esa) -> None:
    """A target over ten times beyond the largest model is named as such; a value that no share can take is no number."""
    near, far = (esa("outputs", "--to", to, "-o", to, *FEW).stderr for to in ("20K", "7B"))
    assert "far: 7B lies over 10 times beyond the largest model" in far
    assert "far:" not in near
    row = {"predicted": 1.6, "predicted_low": 0.9, "predicted_high": 2.6, "flags": "far,out_of_range"}
    assert predicted(row) == "out of range"
    assert predicted(row | {"flags": "far"}) == "1.60 [0.90, 2.6]"
    assert predicted(row | {"flags": "far", "predicted_low": None}) == "1.60, no interval"
    assert predicted(row | {"flags": None, "predicted": None, "predicted_low": None}) == "-"
