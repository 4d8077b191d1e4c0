"""`--only` takes runs of a sweep by number, in every command that reads a spec; two processes may be given the same one."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from esa import score
from esa.cli import member
from esa.cli.members import choose, differences
from esa.errors import BusyError, EsaError
from esa.spec import load_sweep
from tests.cli.conftest import SPEC, Invoke
from tests.cli.test_writers import HOLD

SWEEP = '\n[sweep]\n"calibration.length" = [12, 16]\n"perturb.0.method" = ["zero", "sign_flip"]\n'
WHICH = """\
# 2 of 4 runs
#
# only  run      calibration.length  perturb.0.method
#    0  tiny-00  12                  "zero"
#    3  tiny-03  16                  "sign_flip"
"""


@pytest.fixture
def sweep(folder: Path) -> Path:
    """Let ``s.toml`` describe four runs."""
    (folder / "s.toml").write_text(SPEC + SWEEP)
    return folder


def tables(root: Path) -> dict[str, bytes]:
    """Return the bytes of every table below a folder of runs."""
    paths = [path for path in root.rglob("*") if path.suffix in (".csv", ".parquet")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_one_run_alone_is_the_same_run(sweep: Path, esa: Invoke) -> None:
    """A run taken out of a sweep has the folder, the ids and the bytes that it has among the others."""
    alone = esa("run", "-s", "s.toml", "-q", "-o", "alone", "--only", "3")
    assert alone.exit_code == 0, alone.output
    assert [path.name for path in Path("alone").iterdir()] == ["tiny-03"]
    assert Path(alone.stdout.strip()).parent.name.startswith("tiny-03-")
    two = esa("run", "-s", "s.toml", "-o", "two", "--only", "2-3", "--only", "3,2")
    assert two.exit_code == 0, two.output
    assert sorted(path.name for path in Path("two").iterdir()) == ["tiny-02", "tiny-03"]
    assert len(two.stdout.splitlines()) == 2
    assert '  run 2 of 2: tiny-03 (calibration.length = 16, perturb.0.method = "sign_flip")\n' in two.stderr
    assert tables(Path("alone/tiny-03")) == tables(Path("two/tiny-03"))
    assert len(tables(Path("alone/tiny-03"))) > 5


def test_the_plan_says_which_number_is_which_run(sweep: Path, esa: Invoke) -> None:
    """--dry-run opens with a table of the chosen runs, as comments, and prints their plans alone."""
    done = esa("run", "-s", "s.toml", "-n", "--only", "0,3")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(WHICH)
    assert done.stdout.count('\nname = "tiny-') == 2
    assert esa("run", "-s", "s.toml", "-n").stdout.startswith("# 4 of 4 runs\n")


WRONG = {
    "outside": (
        "0-4",
        "4 is not the number of a run; s.toml describes 4 runs, counted from 0: 0 (tiny-00), 1 (tiny-01), 2 (tiny-02),"
        " 3 (tiny-03)\n  hint: esa run --spec s.toml --dry-run shows which is which\n",
    ),
    "far outside": ("7-9", "7 is not the number of a run; s.toml describes 4 runs, counted from 0: 0 (tiny-00), "),
    "backwards": ("3-1", "'3-1' ends before it begins; allowed: 1-3\n"),
    "a name": ("tiny-01", "'tiny-01' is not a number; allowed: 3, 0-3, 0-3,7\n"),
    "negative": ("-1", "'-1' is not a number; allowed: 3, 0-3, 0-3,7\n"),
    "nothing": ("", "'' is not a number; allowed: 3, 0-3, 0-3,7\n"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_a_wrong_number_names_the_runs(case: str, sweep: Path, esa: Invoke) -> None:
    """A number that no run has is refused with how many runs there are and their names; nothing is written."""
    only, words = WRONG[case]
    done = esa("run", "-s", "s.toml", f"--only={only}")
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.startswith(f"esa: error: --only: {words}")
    assert not Path("outputs").exists()


def test_many_runs_are_named_by_their_ends(sweep: Path) -> None:
    """Of a long sweep the error names the first and the last."""
    Path("s.toml").write_text(SPEC + f'\n[sweep]\n"score.seeds" = {[[seed] for seed in range(12)]}\n')
    with pytest.raises(EsaError, match=r"12 runs, .*: 0 \(tiny-00\), 1 \(tiny-01\), \.\.\. 11 \(tiny-11\)\n"):
        choose(["12"], load_sweep("s.toml"), Path("s.toml"))


def test_a_spec_without_a_sweep_is_number_0(folder: Path, esa: Invoke) -> None:
    """One run has the number 0 and no other; its name stays as it is."""
    assert esa("score", "-s", "s.toml", "-q", "--only", "0").stdout.startswith("outputs/tiny/score-")
    done = esa("run", "-s", "s.toml", "--only", "1")
    assert done.stderr.endswith(" 1 is not the number of a run; s.toml describes one run, counted from 0: 0 (tiny)\n")


def test_every_step_takes_one_run(sweep: Path, esa: Invoke) -> None:
    """Commands of one step refuse a sweep, take one run of it, and refuse several."""
    done = esa("score", "-s", "s.toml")
    assert (done.exit_code, done.stderr.splitlines()[0]) == (
        3, "esa: error: s.toml: sweep: describes 4 runs where one is needed"
    )  # fmt: skip
    scored = esa("score", "-s", "s.toml", "-q", "--only", "2").stdout.strip()
    assert Path(scored).parent == Path("outputs/tiny-02")
    ranked = esa("rank", scored, "-s", "s.toml", "-q", "--only", "2").stdout.strip()
    assert Path(ranked).parent == Path("outputs/tiny-02")
    optional = (["overlap", ranked], ["arch"], ["rank", scored])  # those that can do without a spec
    for words in (["perturb", "--targets", ranked], ["eval"], ["score"], *optional):
        planned = esa(*words, "-s", "s.toml", "--only", "2", "--dry-run")
        assert (planned.exit_code, 'name = "tiny-02"' in planned.stdout) == (0, True), planned.output
        several = esa(*words, "-s", "s.toml", "--only", "1-2", "--dry-run")
        assert several.stderr == (
            "esa: error: --only: 1-2 chooses 2 runs where one is needed\n  hint: esa run takes several\n"
        )
    for words in optional:
        assert esa(*words, "--only", "2").stderr.startswith("esa: error: --spec: no spec is given\n")


def test_differences_are_the_keys_of_the_sweep(folder: Path) -> None:
    """Runs differ in the swept keys, not in their names nor in the options that another method brings with it."""
    swept = '\n[sweep]\n"perturb.0.method" = ["zero", "gauss_noise"]\n"rank.k" = [[1], [2, 3]]\n'
    (folder / "s.toml").write_text(SPEC + swept)
    found = differences(load_sweep("s.toml"))
    assert found[0] == {"rank.k": "[1]", "perturb.0.method": '"zero"'}
    assert found[3] == {"rank.k": "[2, 3]", "perturb.0.method": '"gauss_noise"'}
    (folder / "s.toml").write_text(SPEC)
    assert differences(load_sweep("s.toml")) == [{}]


def test_a_run_that_another_process_writes_is_waited_for(
    sweep: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --only a step of another process is waited for and then gone on with; without, it is refused at once."""
    monkeypatch.setattr(member, "_PAUSE", 0.02)
    step = score.score_step(load_sweep("s.toml")[0])
    step.begin()
    step.release()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(step.folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=sweep, env={"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        refused = esa("run", "-s", "s.toml")
        assert (refused.exit_code, "is being written by another process" in refused.stderr) == (3, True)
        threading.Timer(0.5, other.kill).start()
        done = esa("run", "-s", "s.toml", "--only", "0")
    assert done.exit_code == 0, done.output
    words = f"  waiting: {step.folder} is being written by another process (pid {other.pid}, since "
    assert done.stderr.count(words) == 1
    assert Path(done.stdout.strip()).exists()


def test_what_another_process_finished_is_reused(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the wait a step that the other process finished is taken over, not computed again."""
    monkeypatch.setattr(member, "_PAUSE", 0.01)
    calls = []

    def run(*_: object, **__: object) -> str:
        calls.append(1)
        if len(calls) == 1:
            raise BusyError("is being written by another process", where="outputs/tiny-00/score-x")
        return "finished"

    monkeypatch.setattr(member, "run_member", run)
    notes: list[str] = []
    progress = type("Notes", (), {"note": lambda _, text: notes.append(text)})()
    spec = load_sweep("s.toml")[0]
    assert member.run_patiently(spec, None, Path("outputs"), force=False, progress=progress) == "finished"
    assert (len(calls), notes) == (2, ["waiting: outputs/tiny-00/score-x is being written by another process"])


@pytest.mark.slow
def test_two_processes_of_one_run_end_well(sweep: Path) -> None:
    """The same number given to two processes at once gives one finished run, and both print its report."""
    words = [sys.executable, "-m", "esa", "run", "-s", "s.toml", "-q", "--only", "1", "--threads", "1"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) for _ in range(2)]
    ends = [one.communicate() for one in both]
    assert [one.returncode for one in both] == [0, 0], ends
    assert ends[0][0] == ends[1][0]
    steps = json.loads(Path("outputs/tiny-01/run.json").read_text())["steps"]
    assert {path.parent.name for path in Path("outputs/tiny-01").glob("*/manifest.json")} == set(steps.values())


SLURM = Path(__file__).parents[2] / "scripts/slurm"


def sbatch(script: str, *words: str, program: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a job script as Slurm would, with a program of its own in place of ``esa`` or ``torchrun``."""
    folder = Path("bin")
    folder.mkdir(exist_ok=True)
    stand_in = folder / ("torchrun" if script.startswith("torchrun") else "esa")
    stand_in.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
    stand_in.chmod(0o755)
    path = f"{folder.absolute()}:{os.environ['PATH']}"
    words = ("bash", str(SLURM / script), *words)
    return subprocess.run(words, capture_output=True, text=True, env={**environment, "PATH": path}, check=False)


def test_an_array_task_runs_its_run(sweep: Path, esa: Invoke) -> None:
    """The array's script runs the run of its task's number, with the CPUs it was given and further options."""
    slurm = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_CPUS_PER_TASK": "6"}
    done = sbatch("array.sbatch", "s.toml", "-n", "-o", "elsewhere", program="echo", **slurm)
    assert done.stdout == "run --spec s.toml --only 2 --threads 6 -n -o elsewhere\n", done.stderr
    planned = esa(*done.stdout.replace("--threads 6 ", "").split())
    assert planned.stdout.startswith("# 1 of 4 runs\n")
    assert "  score: elsewhere/tiny-02/score-" in planned.stdout
    alone = sbatch("array.sbatch", "s.toml", program="echo")
    assert (alone.returncode, "SLURM_ARRAY_TASK_ID: submit it with --array=0-7" in alone.stderr) == (1, True)
    assert "usage: sbatch --array=0-7 " in sbatch("array.sbatch", program="echo").stderr


def test_a_node_splits_one_step(sweep: Path) -> None:
    """The script for a node starts a process per GPU and shares the CPUs among them."""
    slurm = {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "18"}
    done = sbatch("torchrun.sbatch", "s.toml", "--only", "3", program="echo", **slurm)
    assert done.stdout == ("--standalone --nproc-per-node 4 -m esa score --spec s.toml --threads 4 --only 3\n"), (
        done.stderr
    )
    assert "usage: sbatch " in sbatch("torchrun.sbatch", program="echo", **slurm).stderr
