"""``torchrun -m esa score``: several processes make the artifact of one, and one that fails ends them all."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from esa.artifact import read_manifest, read_table
from esa.cli import processes
from esa.errors import EsaError, LostError
from esa.score import TABLES
from tests.cli.conftest import Invoke

METRICS = '["magnitude", "act_mag", "super_activation", "grad_x_weight", "ggn_diag", "obd"]'
SETTINGS = ["--set", f"score.metrics={METRICS}", "--set", "score.peak_ratio=1.0", "--set", "score.probes=2"]
# What torchrun starts in place of esa, so that one process fails in the second seed: by an error, a bug, or from outside.
DRIVER = """\
import os, signal, sys
from esa.cli.main import main
from esa.errors import EsaError
from esa.score.engine import Engine

how, sys.argv = sys.argv[1], ["esa", *sys.argv[2:]]
original = Engine.run

def failing(self, windows, seed):
    if seed == 1 and how == "error" + os.environ["RANK"]:
        raise EsaError("a fault of this process alone")
    if seed == 1 and how == "kill" + os.environ["RANK"]:
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, windows, seed)

Engine.run = failing
main()
"""
Launch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def torchrun(folder: Path) -> Launch:
    """Start so many processes in the folder with the tiny model, and return what they print and how they end."""

    def launch(size: int, *words: str) -> "subprocess.CompletedProcess[str]":
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", *words]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120, check=False)

    return launch


def said(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """Return what esa itself said on stderr, without torchrun's own words."""
    return re.findall(r"^(?:esa: |  hint: ).*$", done.stderr, flags=re.MULTILINE)


def assert_same_numbers(left: Path, right: Path) -> None:
    """Raise AssertionError, naming table and column, unless two steps hold the same rows, numbers to 1e-5 of themselves."""
    for name, kind in TABLES.items():
        one, other = read_table(left / name, kind).frame, read_table(right / name, kind).frame
        for column in one.columns:
            if one[column].dtype in (pl.Float32, pl.Float64):
                a, b = one[column].to_numpy(), other[column].to_numpy()
                # Signed terms that cancel leave rounding of their size: it is counted against the largest.
                atol = 1e-7 * np.nanmax(np.abs(a), initial=0)
                assert np.allclose(a, b, rtol=1e-5, atol=atol, equal_nan=True), f"{name}: {column}"
            else:
                assert one[column].equals(other[column]), f"{name}: {column}"


def test_two_processes_make_the_artifact_of_one(torchrun: Launch, esa: Invoke) -> None:
    """The step has the id and the rows of one process's; one process prints, and only the folder on stdout."""
    assert esa("score", "-s", "s.toml", "-q", "-o", "one", *SETTINGS).exit_code == 0
    done = torchrun(2, "-m", "esa", "score", "-s", "s.toml", "-o", "two", *SETTINGS)
    assert (done.returncode, done.stdout) == (0, "two\n"), done.stderr
    assert done.stderr.count("2 processes share the windows; CPU threads of each: 1 (--threads)") == 1
    assert read_manifest(Path("one"))["run"] == read_manifest(Path("two"))["run"]
    assert_same_numbers(Path("one"), Path("two"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_other_numbers_of_processes_make_it_too(size: int, torchrun: Launch, esa: Invoke) -> None:
    """Three processes make the same artifact, and one under torchrun the very same bytes."""
    assert esa("score", "-s", "s.toml", "-q", "-o", "one", *SETTINGS).exit_code == 0
    done = torchrun(size, "-m", "esa", "score", "-s", "s.toml", "-o", "other", *SETTINGS)
    assert (done.returncode, done.stdout) == (0, "other\n"), done.stderr
    assert_same_numbers(Path("one"), Path("other"))
    if size == 1:
        for name in TABLES:
            same = Path("one", name).read_bytes() == Path("other", name).read_bytes()
            assert same, name


def test_a_process_that_fails_ends_the_run(torchrun: Launch, esa: Invoke) -> None:
    """Its error is printed once; the step is marked with it, nothing is half written, and the run goes on where it was."""
    Path("driver.py").write_text(DRIVER)
    begun = time.monotonic()
    done = torchrun(2, "driver.py", "error1", "score", "-s", "s.toml", "-o", "out", "-q")
    assert time.monotonic() - begun < 60
    assert done.returncode != 0
    assert (said(done), done.stdout) == (["esa: error: process 1: a fault of this process alone"], ""), done.stderr
    left = sorted(path.name for path in Path("out").iterdir() if not path.name.startswith("."))
    assert left == ["failed.json", "spec.toml"]
    assert "process 1 failed: a fault of this process alone" in Path("out", "failed.json").read_text()
    assert esa("score", "-s", "s.toml", "-q", "-o", "out").exit_code == 0
    assert read_manifest(Path("out"))["kinds"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["error0", "kill0", "kill1"])
def test_a_process_that_goes_ends_the_run(how: str, torchrun: Launch) -> None:
    """Whichever process fails or is killed, the run ends soon, and several processes go on where it was."""
    Path("driver.py").write_text(DRIVER)
    assert torchrun(2, "driver.py", how, "score", "-s", "s.toml", "-o", "out", "-q").returncode != 0
    assert not Path("out", "manifest.json").exists()
    assert list(Path("out").glob(".parts-*/0.done")), "the first seed is kept"
    done = torchrun(2, "-m", "esa", "score", "-s", "s.toml", "-o", "out", "-q")
    assert (done.returncode, done.stdout) == (0, "out\n"), done.stderr
    assert not list(Path("out").glob(".parts-*"))


def test_an_error_of_all_is_said_once(torchrun: Launch) -> None:
    """What every process finds wrong with the spec is printed by the first."""
    done = torchrun(2, "-m", "esa", "score", "-s", "s.toml", "--set", "score.metrics=['obdd']")
    assert done.returncode != 0
    assert len([line for line in said(done) if line.startswith("esa: error: ")]) == 1
    assert "'obdd' is not a metric" in done.stderr


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be process 1 of 2, whose patience is short."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "_GRACE", 0.0)


@pytest.mark.parametrize("words", [["run", "-s", "s.toml"], ["eval", "-s", "s.toml"], ["rank", "x"], ["init"]])
def test_other_commands_are_refused(words: list[str], folder: Path, esa: Invoke, second_of_two: None) -> None:
    """A command that several processes would do several times over says that only esa score splits its windows."""
    done = esa(*words)
    assert (done.exit_code, done.stderr) == (
        3,
        f"esa: error: process 1: torchrun: esa {words[0]} works in one process, 2 were started; only esa score splits its"
        f" windows over several\n  hint: esa score under torchrun first; esa {words[0]} without it then finds the scores\n",
    )
    assert sorted(path.name for path in folder.iterdir()) == ["model", "s.toml"]


def test_the_others_print_no_plan(folder: Path, esa: Invoke, second_of_two: None) -> None:
    """--dry-run prints the plan once."""
    done = esa("score", "-s", "s.toml", "--dry-run")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


def test_who_waits_and_who_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process speaks at once, but of a lost other only after a while; the others wait to be ended."""
    waited: list[float] = []
    monkeypatch.setattr(processes.time, "sleep", waited.append)
    error, lost = EsaError("wrong", where="here", hint="right it"), LostError("gone")
    assert processes.in_turn(error) is error
    monkeypatch.setattr(processes, "number_of_processes", lambda: (0, 2))
    assert (processes.in_turn(error), waited) == (error, [])
    assert (processes.in_turn(lost).lines(), len(waited)) == (["process 0: gone"], 1)
    monkeypatch.setattr(processes, "number_of_processes", lambda: (1, 2))
    assert (processes.in_turn(error).lines(), len(waited)) == (["process 1: here: wrong"], 2)
    assert processes.in_turn(error).hint == "right it"
