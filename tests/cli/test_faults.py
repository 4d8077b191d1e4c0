"""Bits and faults as a user asks for them: flags, what is printed, what is written, what is refused."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from esa.artifact import read_manifest, read_table
from tests.cli.conftest import Invoke

TARGET = "model.layers.1.mlp.down_proj.weight:5,7"


def test_a_sweep_shows_every_bit_of_a_target(folder: Path, esa: Invoke) -> None:
    """A row per bit with its field, what the number becomes and what that does; the step holds them as a table."""
    done = esa("perturb", "-s", "s.toml", "--target", TARGET, "--sweep-bits", "--set", "model.dtype=bfloat16")
    assert done.exit_code == 0, done.stderr
    table = read_table(Path(done.stdout.strip()) / "bits.csv", "bits/1").frame
    assert table["bit"].to_list() == list(range(16))
    assert set(table["target"]) == {TARGET}
    assert f"Bits of {TARGET}" in done.stderr
    assert re.search(r"^ *14 +exponent +\S+ +\S+ +\S+ +(uniform|collapsed|nonfinite)", done.stderr, re.MULTILINE)
    (section,) = read_manifest(Path(done.stdout.strip()))["spec"]["perturb"]
    assert (section["bit"], section["unit"], section["groups"]) == (list(range(16)), ["single"], ["top_k"])


def test_a_campaign_of_faults_is_printed_written_and_reused(folder: Path, esa: Invoke) -> None:
    """Flags are short for the keys of [faults]; outcomes with their intervals on stderr, the folder on stdout."""
    words = ("perturb", "-s", "s.toml", "--faults", "--fault-rate", "1e-5", "--fault-rate", "1e-3", "--trials", "20")
    done = esa(*words)
    assert done.exit_code == 0, done.stderr
    step = Path(done.stdout.strip())
    assert re.fullmatch(r"faults-[0-9a-f]{12}", step.name)
    assert sorted(path.name for path in step.iterdir()) == [
        "cases.jsonl", "fault_list.parquet", "fault_rates.csv", "fault_trials.csv", "manifest.json", "spec.toml",
    ]  # fmt: skip
    manifest = read_manifest(step)
    assert (manifest["spec"]["faults"]["rates"], manifest["spec"]["faults"]["trials"]) == ([1e-5, 1e-3], 20)
    assert manifest["num_bits"] == 32 * manifest["model"]["num_parameters"]
    assert "Random faults: how trials ended" in done.stderr
    assert "Fatal single flips by bit (" in done.stderr
    assert re.search(r"^1e-05 +20 ", done.stderr, re.MULTILINE)
    again = esa(*words)
    assert "is complete" in again.stderr
    assert again.stdout == done.stdout


def test_a_list_replays_through_a_pipe(folder: Path, esa: Invoke, shell: Any) -> None:
    """A list as CSV through a pipe gives the same faults, also with a code's words; the trials go to stdout."""
    first = Path(
        esa(
            "perturb", "-s", "s.toml", "--faults", "--fault-rate", "1e-4", "--trials", "3", "--ecc", "secded"
        ).stdout.strip()
    )
    read_table(first / "fault_list.parquet", "fault_list/1").frame.write_csv(folder / "list.csv")
    done = shell("cat list.csv | esa perturb -s s.toml --faults --ecc secded --fault-list - -o - -q")
    assert done.returncode == 0, done.stderr
    trials, before = pl.read_csv(done.stdout), pl.read_csv(first / "fault_trials.csv")
    assert trials["outcome"].to_list() == ["masked"] * 3
    assert trials["num_corrected"].sum() > 0
    assert trials.drop("run").equals(before.drop("run"))


def test_a_campaign_without_single_flips_says_which_rate_gives_them(folder: Path, esa: Invoke) -> None:
    """Where the code corrects everything, or every trial has many flips, nothing is told by bit, and why."""
    words = ("perturb", "-s", "s.toml", "--faults", "--trials", "3", "--fault-rate")
    assert (
        "No trial was left with exactly one flip: the code corrects it;"
        in esa(*words, "1e-4", "--ecc", "secded").stderr
    )
    assert (
        "No trial was left with exactly one flip (37 % of trials are at a rate of 3.5e-06);"
        in esa(*words, "1e-2").stderr
    )


def test_the_dry_run_counts_bits_and_faults(folder: Path, esa: Invoke) -> None:
    """The plan says how many bits there are, how many faults a trial has, and touches nothing."""
    done = esa(
        "perturb", "-s", "s.toml", "--faults", "--fault-rate", "1e-4", "-n", "--set", "faults.include=['lm_head*']"
    )
    assert done.exit_code == 0, done.stderr
    assert "faults: the intact model and 100 trials at each of 1 rates" in done.stdout
    assert "49,152 bits of 1 parameters; rate 0.0001: 4.92 faults a trial" in done.stdout
    assert "faults: outputs/tiny/faults-<id>/" in done.stdout
    assert not (folder / "outputs").exists()


REFUSED = [
    (("--trials", "3"), "--trials: needs --faults"),
    (("--fault-list", "x.csv"), "--fault-list: needs --faults"),
    (("--faults", "--target", TARGET), "--faults: hits weights at random.*takes no --target"),
    (("--faults", "--sweep-bits"), "takes no --sweep-bits"),
    (("--faults", "--method", "zero"), "takes no --method"),
    (("--faults",), "faults.rates: names no bit error rate"),
    (("--faults", "--fault-rate", "1.5"), "faults.rates"),
    (("--faults", "--ecc", "crc"), "faults.ecc"),
    (("--faults", "--fault-rate", "0.5", "--trials", "1000"), "faults.rates: 1000 trials at rate 0.5"),
    (("--faults", "--fault-list", "x.csv", "--trials", "3"), "--fault-list: brings its own.*takes no --trials"),
    (("--faults", "--fault-list", "nosuch.csv"), "nosuch.csv: no such file"),
    (("--sweep-bits", "--target", TARGET, "--method", "zero"), "--sweep-bits: is a method of its own.*no --method"),
    (("--sweep-bits",), "give either --targets or --target"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_what_makes_no_sense_is_refused(folder: Path, esa: Invoke, words: tuple[str, ...], said: str) -> None:
    """Exit code 3, the flag or key at fault, and nothing written."""
    done = esa("perturb", "-s", "s.toml", *words)
    assert done.exit_code == 3, done.output
    assert re.search(said, done.stderr), done.stderr
    assert not (folder / "outputs").exists()
