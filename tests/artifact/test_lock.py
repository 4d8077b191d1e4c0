"""Two processes never write one step at once, and nothing that died keeps its lock."""

import errno
import fcntl
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esa.artifact import Step, make_table
from esa.artifact.lock import LOCK, Holder, acquire, busy, holder
from esa.errors import ArtifactError
from tests.artifact.test_steps import INPUTS, spec

Process = subprocess.Popen[str]
Start = Callable[..., Process]

PRELUDE = """
import sys
from pathlib import Path
from esa.artifact import Step, make_table
from esa.artifact.lock import acquire, holder
from tests.artifact.test_steps import INPUTS, spec
folder = Path(sys.argv[1])
step = Step("rank", spec(), INPUTS, folder=folder)
def say(*words): print(*words, flush=True)
def wait(): assert sys.stdin.readline()
def write():
    step.write(make_table("ranking/1", [{"run": step.id, "parameter": "p"}], step.meta()), "ranking.csv")
    step.finish(tables={"ranking.csv": "ranking/1"})
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start another Python that knows ``step`` and ``folder``, and end it with the test."""
    running: list[Process] = []

    def begin(code: str, folder: Path = tmp_path / "step") -> Process:
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", PRELUDE + code, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
        )
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def heard(process: Process) -> str:
    """Return the next line that a process says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: Process) -> None:
    """Let a process that waits go on."""
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()


def make(folder: Path) -> Step:
    """Return the step that the other process writes."""
    return Step("rank", spec(), INPUTS, folder=folder)


def listing(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder with its bytes."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_second_writer_is_refused(tmp_path: Path, start: Start) -> None:
    """While another process writes a step, beginning it is one error that names that process, and nothing is touched."""
    folder = tmp_path / "step"
    other = start("step.begin(); say('begun'); wait()")
    assert heard(other) == "begun"
    before, found = listing(folder), holder(folder)
    assert found is not None
    assert re.fullmatch(rf"pid {other.pid}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC", str(found))
    for force in (False, True):
        with pytest.raises(ArtifactError) as caught:
            make(folder).begin(force=force)
        assert str(caught.value) == (
            f"{folder}: is being written by another process ({found})\n"
            "hint: wait until it is done, or stop it: the same command then reuses or resumes what it wrote"
        )
        assert caught.value.exit_code == 3
    assert listing(folder) == before


def test_a_step_that_is_being_written_is_refused_before_a_model_is_loaded(tmp_path: Path, start: Start) -> None:
    """Asking whether a step is complete already fails while another process writes it: no work is begun in vain."""
    other = start("step.begin(); say('begun'); wait()")
    assert heard(other) == "begun"
    with pytest.raises(ArtifactError, match="is being written by another process"):
        _ = make(tmp_path / "step").complete


def test_what_the_other_finished_meanwhile_is_reused(tmp_path: Path, start: Start) -> None:
    """A step that was not complete when it was asked for, and is when the lock comes free, is not written again."""
    folder = tmp_path / "step"
    mine = make(folder)
    assert not mine.complete
    other = start("step.begin(); say('begun'); wait(); write(); say('done')")
    assert heard(other) == "begun"
    tell(other)
    assert heard(other) == "done"
    before = listing(folder)
    assert mine.begin() is False
    assert mine.complete
    assert listing(folder) == before
    assert LOCK not in before
    assert mine.begin(force=True) is True


@pytest.mark.parametrize("end", ["kill", "exit", "error"])
def test_a_lock_ends_with_its_process(tmp_path: Path, start: Start, end: str) -> None:
    """However the other process ends, its lock is gone, and the step goes on from what it left."""
    folder = tmp_path / "step"
    other = start(
        "step.begin(); say('begun'); wait(); 1 / 0" if end == "error" else "step.begin(); say('begun'); wait()"
    )
    assert heard(other) == "begun"
    if end == "kill":
        other.kill()
    else:
        tell(other)
    other.wait()
    assert holder(folder) is None
    step = make(folder)
    assert step.begin() is True
    assert not step.complete


RACE = """
say('ready'); wait()
from esa.errors import ArtifactError
for _ in range(400):
    try:
        if step.begin():
            assert not (folder / "manifest.json").exists()
            write()
            say('wrote')
        else:
            say('reused')
        break
    except ArtifactError as error:
        assert 'is being written' in str(error), error
        import time; time.sleep(0.05)
else:
    say('gave up')
"""


def test_of_many_that_begin_at_once_one_writes(tmp_path: Path, start: Start) -> None:
    """Of four processes that begin a step at the same moment exactly one writes it, and the others reuse it."""
    racers = [start(RACE) for _ in range(4)]
    assert {heard(racer) for racer in racers} == {"ready"}
    for racer in racers:
        tell(racer)
    assert sorted(heard(racer) for racer in racers) == ["reused", "reused", "reused", "wrote"]
    assert sorted(path.name for path in (tmp_path / "step").iterdir()) == ["manifest.json", "ranking.csv", "spec.toml"]


TURNS = """
say('ready'); wait()
import time
for _ in range(100):
    try:
        lock = acquire(folder)
    except Exception as error:
        assert 'is being written' in str(error), error
        continue
    (folder / "owner").write_text(str(step))
    assert (folder / "owner").read_text() == str(step)
    (folder / "owner").unlink()
    lock.release()
    try: folder.rmdir()
    except OSError: pass
say('done')
"""


def test_a_lock_that_comes_and_goes_keeps_apart(start: Start) -> None:
    """Locks taken and given back with their files and folders hundreds of times never belong to two processes at once."""
    racers = [start(TURNS) for _ in range(3)]
    assert {heard(racer) for racer in racers} == {"ready"}
    for racer in racers:
        tell(racer)
    assert [heard(racer) for racer in racers] == ["done"] * 3


def test_looking_at_a_lock_stops_nobody(tmp_path: Path, start: Start) -> None:
    """A process that asks again and again who holds a lock keeps no other from taking it."""
    watcher = start("say('ready')\nwhile True: holder(folder)")
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / LOCK).touch()
    assert heard(watcher) == "ready"
    for _ in range(50):
        acquire(tmp_path / "step").release()
        (tmp_path / "step" / LOCK).touch()


def test_one_process_may_begin_again(tmp_path: Path) -> None:
    """The process that holds a lock begins the step again, as often as it likes, and finishes it once."""
    folder = tmp_path / "step"
    first, second = make(folder), make(folder)
    assert first.begin()
    assert second.begin()
    assert second.begin(force=True)
    second.write(make_table("ranking/1", []), "ranking.csv")
    second.finish(tables={"ranking.csv": "ranking/1"})
    assert not (folder / LOCK).exists()
    assert holder(folder) is None


def test_a_forgotten_step_gives_its_lock_back(tmp_path: Path) -> None:
    """A step that is begun and then dropped holds no lock."""
    step = make(tmp_path)
    step.begin()
    assert holder(tmp_path) == Holder(os.getpid(), holder(tmp_path).since)  # type: ignore[union-attr]
    del step
    assert holder(tmp_path) is None


def test_another_thread_is_refused(tmp_path: Path) -> None:
    """Two threads of one process do not write one step either; a thread that has ended holds nothing."""
    kept, said = [], []

    def begin() -> None:
        try:
            kept.append(acquire(tmp_path))
        except ArtifactError as error:
            said.append(error.what)

    def run() -> None:
        thread = threading.Thread(target=begin)
        thread.start()
        thread.join()

    lock = acquire(tmp_path)
    run()
    assert len(said) == 1
    assert said[0].startswith(f"is being written by another thread of this process (pid {os.getpid()}, since ")
    lock.release()
    run()
    assert len(kept) == 1
    assert acquire(tmp_path) is kept[0]


def test_a_forked_child_holds_nothing(tmp_path: Path, start: Start) -> None:
    """A lock ends with the process that took it, also where that left a forked child behind."""
    code = """
import os, time
lock = acquire(folder)
if os.fork() == 0:
    say('forked')
    time.sleep(1)
    os._exit(0)
wait()
os._exit(0)
"""
    other = start(code)
    assert heard(other) == "forked"
    assert holder(tmp_path / "step") is not None
    tell(other)
    other.wait()
    assert holder(tmp_path / "step") is None


def test_a_lock_file_alone_locks_nothing(tmp_path: Path) -> None:
    """A lock's file that a killed process left, whatever stands in it, is taken over."""
    (tmp_path / LOCK).write_text("\x00 nonsense")
    assert holder(tmp_path) is None
    lock = acquire(tmp_path)
    assert holder(tmp_path) is not None
    lock.release()
    lock.release()
    assert not (tmp_path / LOCK).exists()


def test_a_lock_of_unknown_owner_is_told_as_such(tmp_path: Path) -> None:
    """A holder whose file says nothing yet is still a holder."""
    descriptor = os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert holder(tmp_path) == Holder()
        assert str(busy(tmp_path, Holder()).what) == "is being written by another process (its pid is not known)"
    finally:
        os.close(descriptor)


def test_a_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where locks are not to be had, nothing is written without one."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ArtifactError) as caught:
        make(tmp_path / "step").begin()
    assert str(caught.value) == (
        f"{tmp_path / 'step'}: cannot be locked: No locks available\n"
        "hint: its file system knows no locks: write to a folder on another one with -o"
    )


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """A step below a file is refused by name."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "step"):
        with pytest.raises(ArtifactError, match=rf"^{folder}: cannot be written: (Not a directory|File exists)$"):
            make(folder).begin()
