"""`esa runs` tells what lies in outputs/, line by line, and deletes only what it was told to, after asking."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esa.artifact import Step
from tests.artifact.house import House, spec, write
from tests.cli.conftest import Invoke, fail


def test_every_step_is_a_line(house: House, esa: Invoke) -> None:
    """The list has a header and a line per step on stdout, the totals on stderr."""
    done = esa("runs")
    assert done.exit_code == 0
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["step", "status", "size", "when", "(UTC)", "took"]
    steps = [house.score, house.rank, house.perturb, house.overlap, house.other]
    assert [line.split()[:2] for line in lines] == [[f"{one.spec.name}/{one.folder.name}", "complete"] for one in steps]
    assert re.fullmatch(r"esa: 5 steps of 2 runs, [\d.]+ kB: 5 complete\n", done.stderr)
    assert esa("runs", "list").stdout == esa("runs", "outputs").stdout == done.stdout
    assert esa("runs", "-q").stderr == ""


def test_a_reason_stands_in_its_line(house: House, esa: Invoke) -> None:
    """What is wrong with a step stands behind it in the same line, where grep finds it, on one line whatever it holds."""
    fail(house.rank, "no room\x1b[31m left\nat all")
    lines = {line.split()[0]: line for line in esa("runs").stdout.splitlines()}
    failed, stale = lines[f"x/{house.rank.folder.name}"], lines[f"x/{house.perturb.folder.name}"]
    assert failed.split()[1] == "failed"
    assert failed.endswith("  no room\\x1b[31m left at all")
    assert stale.split()[1] == "stale"
    assert stale.endswith(f"  rank-{house.rank.id}, which it was made from, is failed")


@pytest.mark.parametrize(("columns", "digits"), [(80, 10), (120, 16)])
def test_the_columns_fit_the_window(
    house: House, esa: Invoke, monkeypatch: pytest.MonkeyPatch, columns: int, digits: int
) -> None:
    """The time is cut to the day where the line would not fit otherwise."""
    write(Step("score", spec("smollm2_quickstart"), {}, root=house.root))
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = esa("runs").stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert re.search(r"  \d{4}-\d\d-\d\d(?: \d\d:\d\d)?  ", lines[1])[0].strip().__len__() == digits  # type: ignore[index]


def test_there_may_be_nothing(tmp_path: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an outputs folder, or with an empty one, nothing is listed, and that is no error; a missing FOLDER is one."""
    monkeypatch.chdir(tmp_path)
    words = "esa: no step of esa lies in outputs; esa run --spec specs/quickstart.toml makes the first\n"
    for _ in range(2):
        done = esa("runs")
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", words)
        (tmp_path / "outputs").mkdir(exist_ok=True)
    done = esa("runs", "nope")
    assert (done.exit_code, done.stderr) == (3, "esa: error: nope: no such folder\n")


def test_a_run_is_listed_by_name_or_path(house: House, esa: Invoke) -> None:
    """A run's own list names its steps; its bare name will do."""
    assert esa("runs", "y").stdout == esa("runs", "outputs/y").stdout
    assert esa("runs", "y").stdout.splitlines()[1].split()[:2] == [house.other.folder.name, "complete"]


def test_verifying_finds_what_times_hide(house: House, esa: Invoke) -> None:
    """--verify hashes every table, and says that a model is not where it was."""
    path = house.rank.folder / "rank.csv"
    state = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert "stale" not in esa("runs").stdout
    found = esa("runs", "--verify").stdout
    assert "rank.csv was changed: its sha256 is another" in found
    assert "its model m: is gone" in found


def test_listing_loads_no_torch(house: House) -> None:
    """The list comes without torch, unless a local model is to be hashed."""
    code = "import sys; from esa.cli.main import app; app(['runs'], standalone_mode=False)"
    code += "; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_nobody_to_ask_is_an_error(house: House, esa: Invoke) -> None:
    """Without a terminal and without --yes nothing is deleted, and the error says what would help."""
    done = esa("runs", "rm", "x")
    assert done.exit_code == 3
    assert done.stdout == ""
    assert done.stderr.endswith(
        "esa: error: esa runs rm: standard input is no terminal: nobody can be asked\n"
        "  hint: --yes deletes without asking\n"
    )
    assert esa("runs").stdout.count("complete") == 5


def test_what_goes_and_what_depends_on_it_is_shown(house: House, esa: Invoke) -> None:
    """Before anything goes, its size and what was made from it are shown; with --yes it goes at once."""
    report = Step("report", house.rank.spec, {"rank": house.rank.id}, folder=Path("reports/x-1"))
    report.begin()
    report.finish(tables={})
    done = esa("runs", "rm", f"x/{house.rank.folder.name}", "--yes")
    assert (done.exit_code, done.stdout) == (0, "")
    shown, depends = done.stderr.split("\nmade from them, and stale without them:\n")
    assert [line.split()[0] for line in shown.splitlines()] == ["step", f"x/{house.rank.folder.name}"]
    assert [line.split()[0] for line in depends.splitlines()[:-1]] == [
        f"x/{house.perturb.folder.name}", f"x/{house.overlap.folder.name}", "reports/x-1",
    ]  # fmt: skip
    assert re.fullmatch(r"esa: deleted 1 step, [\d,.]+ k?B", depends.splitlines()[-1])
    assert not house.rank.folder.exists()
    assert esa("runs", "x").stdout.count("is gone") == 2


def test_steps_are_deleted_by_status(house: House, esa: Invoke) -> None:
    """--failed, --incomplete and --stale choose among all runs, or among those named."""
    fail(house.perturb, "no")
    fail(house.other, "no")
    house.overlap.begin(force=True)
    house.overlap.release()
    assert esa("runs", "rm", "x", "--failed", "-y", "-q").exit_code == 0
    assert [one.folder.exists() for one in (house.perturb, house.other, house.overlap)] == [False, True, True]
    assert esa("runs", "rm", "--failed", "--incomplete", "-y").exit_code == 0
    assert [one.folder.exists() for one in (house.perturb, house.other, house.overlap)] == [False, False, False]
    done = esa("runs", "rm", "--stale", "-y")
    assert (done.exit_code, done.stderr) == (0, "esa: nothing to delete: no step is stale\n")


def test_a_running_step_is_not_deleted(house: House, esa: Invoke) -> None:
    """A step that is being written is refused by name, and passed over where steps are chosen by status."""
    house.overlap.begin(force=True)
    done = esa("runs", "rm", "x", "--yes")
    assert done.exit_code == 3
    assert f"outputs/x/{house.overlap.folder.name}: is being written by " in done.stderr
    assert esa("runs", "rm", "--incomplete", "--yes").stderr == "esa: nothing to delete: no step is incomplete\n"
    assert house.score.folder.exists()


def test_deleting_needs_a_name(house: House, esa: Invoke) -> None:
    """Without a name and a status nothing is meant; a name outside the folder is refused."""
    done = esa("runs", "rm", "--yes")
    assert (done.exit_code, done.stderr.splitlines()[0]) == (3, "esa: error: esa runs rm: nothing is named")
    done = esa("runs", "rm", "..", "--yes")
    assert (done.exit_code, done.stderr) == (
        3, "esa: error: outputs/..: is not below outputs; only what lies there is deleted\n"
    )  # fmt: skip


def test_another_folder_may_be_meant(house: House, esa: Invoke) -> None:
    """--in names the folder that the runs are in."""
    Path("outputs").rename("elsewhere")
    assert esa("runs", "rm", "y", "--yes", "--in", "elsewhere").exit_code == 0
    assert sorted(path.name for path in Path("elsewhere").iterdir()) == ["x"]
    assert esa("runs", "elsewhere").stdout.count("complete") == 4


@pytest.mark.parametrize(
    ("answer", "gone"), [("y", True), ("YES", True), ("", False), ("n", False), ("yeah", False), ("\x04", False)]
)
def test_a_person_is_asked(house: House, answer: str, gone: bool) -> None:
    """On a terminal only y or yes deletes; anything else, or the end of the input, leaves all as it is."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "esa", "runs", "rm", "y"],
        stdin=theirs, capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0
    assert (not house.other.folder.exists()) == gone
    assert re.search(r"\nDelete 1 step, [\d,.]+ k?B\? \[y/N\] esa: (nothing was deleted|deleted 1 step)", done.stderr)


def test_ctrl_c_at_the_question_deletes_nothing(house: House) -> None:
    """On a terminal Ctrl-C ends the question with 130, and everything is still there."""
    leader, follower = pty.openpty()
    words = [sys.executable, "-m", "esa", "runs", "rm", "x", "--in", str(house.root)]
    with subprocess.Popen(words, stdin=follower, stdout=follower, stderr=follower, start_new_session=True) as process:
        os.close(follower)
        shown = b""
        while b"[y/N]" not in shown:
            shown += os.read(leader, 4096)
        time.sleep(0.3)  # the question is out before the answer is read
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    os.close(leader)
    assert (house.score.folder / "manifest.json").exists()
