"""Big campaigns: killed again and again they end with the tables of an undisturbed one, and their cost stays linear."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from esa.artifact import read_manifest, write_table
from tests.perturb.killed import KILLS, RANKING
from tests.perturb.planted import DOWN, HEAD, TOP, UP, ranking, rows

REPOSITORY = Path(__file__).parents[2]
MANY = [*TOP, *((name, 7 * number + 11) for number in range(7) for name in (DOWN, UP, HEAD))]


def assert_same_tables(left: Path, right: Path) -> None:
    """Raise AssertionError, naming the file, unless two finished steps hold the same tables byte for byte."""
    kinds = read_manifest(left)["kinds"]
    assert read_manifest(right)["kinds"] == kinds
    for name in kinds:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_twenty_kills_change_no_byte(tmp_path: Path) -> None:
    """A campaign of hundreds of cases, killed 20 times by SIGKILL at random points and resumed, writes the same tables.

    Joint, single, cumulative, leave-one-out and pairs, with noise, bits, hooks, gradients and swaps among its methods.
    """
    table = ranking(
        rows("act_mag", 0, "top_k", MANY[:20]),
        *(rows(None, 0, "random_k", [(UP, (37 * n + 101 * draw) % 384) for n in range(20)], draw) for draw in range(2)),
    )
    write_table(table, tmp_path / RANKING)
    done = subprocess.run(
        [sys.executable, "-m", "tests.perturb.killed", tmp_path],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ended"] == [0, 0], done.stderr
    assert told["kills"] == [-signal.SIGKILL] * KILLS
    assert told["sizes"] == sorted(told["sizes"])
    ((whole,), (broken,)) = ((tmp_path / name / "tiny").iterdir() for name in ("whole", "broken"))
    assert_same_tables(whole, broken)
    facts, alone = read_manifest(broken), read_manifest(whole)
    assert alone["num_reused"] == 0
    assert facts["num_cases"] == alone["num_cases"] > 300
    assert 0 < facts["num_reused"] < facts["num_cases"]
    assert facts["checksum"] == alone["checksum"]
    name = next(iter(facts["kinds"]))
    (broken / name).write_bytes((broken / name).read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(AssertionError):
        assert_same_tables(whole, broken)
