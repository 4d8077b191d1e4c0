"""Commands meet through pipes as through files."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

Shell = Callable[[str], "subprocess.CompletedProcess[bytes]"]

PIPELINES = {
    "files": "esa score -s s.toml -o scores.parquet -q && esa rank scores.parquet -k 5 -o top.csv -q"
    " && esa perturb -s s.toml --targets top.csv -o damage.csv -q",
    "folders": "r=$(esa rank $(esa score -s s.toml -q) -k 5 -q) && esa perturb -s s.toml --targets $r -o damage.csv -q",
    "pipe": "esa score -s s.toml -o - -q | esa rank - -k 5 -q | esa perturb -s s.toml --targets - -o damage.csv -q",
    "pipe to stdout": "esa score -s s.toml -o - -q | esa rank - -k 5 -q | esa perturb -s s.toml --targets - -o - -q > damage.csv",
}


@pytest.fixture(scope="module")
def expected() -> dict[str, pl.DataFrame]:
    """Hold the first pipeline's damage for the others to be compared with."""
    return {}


@pytest.mark.parametrize("way", list(PIPELINES))
def test_score_to_damage(way: str, folder: Path, shell: Shell, expected: dict[str, pl.DataFrame]) -> None:
    """From score to damage, files, folders and pipes give the same table but for the step's own id."""
    done = shell(PIPELINES[way])
    assert done.returncode == 0, done.stderr.decode()
    damage = pl.read_csv(folder / "damage.csv").drop("run")
    assert damage.height == 22
    assert damage.equals(expected.setdefault("damage", damage))


def test_a_closed_pipe_ends_quietly(shell: Shell) -> None:
    """`| head` ends the writer without a word, and with exit code 0."""
    done = shell("esa score -s s.toml -o - -f csv -q | head -n 1; echo ${PIPESTATUS[0]}")
    assert done.stdout.decode().splitlines()[1] == "0"
    assert done.stdout.startswith(b"run,metric,seed,stratum,parameter,index")
    assert done.stderr == b""


def test_a_truncated_pipe_is_refused(shell: Shell) -> None:
    """Half a table on stdin is an error, not half a result: Parquet by its footer, CSV by its last line."""
    done = shell("esa score -s s.toml -o - -q | head -c 5000 | esa rank - -k 5")
    assert b"esa: error: standard input: is a truncated Parquet file" in done.stderr
    done = shell("esa score -s s.toml -o - -f csv -q | head -c 5000 | esa rank - -k 5; echo $?")
    assert b"esa: error: standard input: is truncated: its last line does not end" in done.stderr
    assert done.stdout.strip() == b"3"


def test_help_is_quick_and_light(shell: Shell) -> None:
    """`esa --help` names every command."""
    done = shell("esa --help")
    for command in ("run", "score", "rank", "perturb", "overlap", "eval", "report", "check"):
        assert command in done.stdout.decode()
