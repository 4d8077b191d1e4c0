"""What lies in an outputs folder is told as it is: complete, incomplete, failed or stale, and why."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from esa.artifact import Step, marking_failures, runs, sha256_of
from esa.artifact.removal import choose, remove
from esa.artifact.runs import Check, StepState, dependents, is_step, read_steps, run_file
from esa.artifact.steps import FAILED
from esa.errors import ArtifactError, DataError, EsaError, ModelError
from tests.artifact.house import TEXT, House, spec, write


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Return an outputs folder with five finished steps."""
    return House(tmp_path / "outputs")


COMPLETE = ("complete", "")


def test_finished_steps_are_complete(house: House) -> None:
    """Finished steps are complete, in the order of the pipeline, with their size, their end and how long they took."""
    found = read_steps(house.root)
    assert [(one.folder.parent.name, one.step, one.status, one.why) for one in found] == [
        ("x", "score", "complete", ""), ("x", "rank", "complete", ""), ("x", "perturb", "complete", ""),
        ("x", "overlap", "complete", ""), ("y", "rank", "complete", ""),
    ]  # fmt: skip
    score = found[0]
    assert score.id == house.score.id
    assert score.num_bytes == sum(path.stat().st_size for path in score.folder.iterdir())
    assert score.when == score.manifest["created"]
    assert score.seconds == score.manifest["seconds"]


def test_a_step_in_a_folder_of_its_own_is_of_no_run(house: House) -> None:
    """A step that -o put beside the runs is at home in its own folder, and not in that of all runs."""
    step = Step("scale", spec("z"), {"0:score": house.score.id}, folder=house.root / "laws")
    assert step.begin(since=time.perf_counter() - 7.0)
    step.finish(tables={})
    homes = {one.folder.name: one.home.name for one in read_steps(house.root)}
    assert homes["laws"] == "laws"
    assert homes[house.score.folder.name] == "x"
    laws = next(one for one in read_steps(house.root) if one.step == "scale")
    assert laws.seconds is not None
    assert laws.seconds >= 7.0, "the work began before the folder was opened"


def test_one_run_and_one_step_can_be_asked_for(house: House) -> None:
    """The folder of a run gives its steps, that of a step itself, both judged by what lies beside them."""
    assert [one.step for one in read_steps(house.root / "x")] == ["score", "rank", "perturb", "overlap"]
    assert [(one.step, one.status) for one in read_steps(house.perturb.folder)] == [("perturb", "complete")]
    assert [(one.step, one.status) for one in read_steps(house.root / "y")] == [("rank", "complete")]
    with pytest.raises(ArtifactError, match="nope: no such folder"):
        read_steps(house.root / "nope")


def test_runs_come_in_the_order_of_their_last_step(house: House) -> None:
    """The run that was worked on last is the last."""
    path = house.root / "x" / house.overlap.folder.name / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "created": "2999-01-01T00:00:00+00:00"}))
    assert [one.folder.parent.name for one in read_steps(house.root)] == ["y", "x", "x", "x", "x"]


def test_a_step_that_is_no_longer_written_is_incomplete(house: House) -> None:
    """A step that was begun and has neither manifest nor mark is incomplete, and so is what was made from it stale."""
    house.score.begin(force=True)
    house.score.release()
    assert house.status()["x/score"] == ("incomplete", "stopped before its end; the same command goes on from there")
    assert house.status()["x/rank"] == ("stale", f"score-{house.score.id}, which it was made from, is incomplete")
    assert house.status()["x/perturb"] == ("stale", f"rank-{house.rank.id}, which it was made from, is stale")


def test_a_step_that_is_written_is_running(house: House) -> None:
    """A step that a process writes is incomplete, and the process is named."""
    house.overlap.begin(force=True)
    status, why = house.status()["x/overlap"]
    assert status == "incomplete"
    assert why.startswith(f"running (pid {os.getpid()}, since 2")
    assert [one.step for one in read_steps(house.root) if one.running] == ["overlap"]


def test_a_failed_step_says_why(house: House) -> None:
    """A step that an error ended is failed, with the error on one line and the time it came."""

    @marking_failures()
    def run() -> None:
        house.perturb.begin(force=True)
        raise EsaError("first line\nsecond line", where="eval.source")

    with pytest.raises(EsaError):
        run()
    assert house.status()["x/perturb"] == ("failed", "eval.source: first line second line")
    found = next(one for one in read_steps(house.root) if one.step == "perturb")
    assert found.when == json.loads((found.folder / FAILED).read_text())["failed"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\x00"])
def test_marks_that_cannot_be_read_are_failures(house: House, text: str) -> None:
    """A broken failed.json, or a broken manifest, is told as such and hides no other step."""
    house.perturb.begin(force=True)
    house.perturb.release()
    (house.perturb.folder / FAILED).write_text(text)
    status, why = house.status()["x/perturb"]
    assert status == "failed"
    assert why.startswith("failed.json cannot be read")
    (house.rank.folder / "manifest.json").write_text(text)
    status, why = house.status()["x/rank"]
    assert status == "failed"
    assert why.startswith("manifest.json ")
    assert house.status()["x/score"] == COMPLETE


def test_a_check_that_did_not_hold_is_a_failure(house: House) -> None:
    """A campaign whose weights did not come back is failed, although it has a manifest."""
    edit(house.perturb, checksum={"restored": False})
    assert house.status()["x/perturb"] == ("failed", "its checksum changed: a perturbation was not restored")


def edit(step: Step, **content: object) -> None:
    """Change keys of a step's manifest."""
    path = step.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))


def test_a_changed_table_makes_a_step_stale(house: House) -> None:
    """A table that is gone, has another size, or is newer than its manifest with other bytes is named."""
    path = house.rank.folder / "rank.csv"
    data = path.read_bytes()
    path.write_bytes(data + b"x")
    assert house.status()["x/rank"] == (
        "stale", f"rank.csv was changed: {len(data) + 1:,} bytes where its step wrote {len(data):,}"
    )  # fmt: skip
    assert house.status()["x/overlap"] == ("stale", f"rank-{house.rank.id}, which it was made from, is stale")
    path.write_bytes(data[:-1] + b"x")
    assert house.status()["x/rank"] == ("stale", "rank.csv was changed: its sha256 is another")
    path.write_bytes(data)
    assert house.status()["x/rank"] == COMPLETE
    path.unlink()
    assert house.status()["x/rank"] == ("stale", "rank.csv is gone")


def test_a_change_that_hides_is_found_by_verifying(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes changed at the same size and time are found where every file is hashed, and no file is hashed otherwise."""
    path = house.rank.folder / "rank.csv"
    state, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + b"x")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    hashed: list[Path] = []
    monkeypatch.setattr(runs, "sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    assert house.status()["x/rank"] == COMPLETE
    assert hashed == []
    assert house.status(Check(verify=True))["x/rank"] == ("stale", "rank.csv was changed: its sha256 is another")
    assert len(hashed) == 5


def test_a_manifest_without_sizes_is_read_too(house: House) -> None:
    """Steps of an older esa, whose manifests hold no sizes, are judged by time and hash."""
    content = json.loads((house.rank.folder / "manifest.json").read_text())
    del content["sizes"]
    (house.rank.folder / "manifest.json").write_text(json.dumps(content))
    assert house.status()["x/rank"] == COMPLETE
    (house.rank.folder / "rank.csv").write_text("other")
    assert house.status()["x/rank"] == ("stale", "rank.csv was changed: its sha256 is another")


def test_a_step_without_its_origin_is_stale(house: House) -> None:
    """A step whose upstream step is gone says which, across runs too."""
    remove(house.root, [one for one in read_steps(house.root) if one.step == "score"])
    why = f"score-{house.score.id}, which it was made from, is gone"
    assert house.status()["x/rank"] == house.status()["y/rank"] == ("stale", why)


def test_an_origin_with_another_result_makes_a_step_stale(house: House) -> None:
    """An upstream step computed again leaves a step complete if its tables came out the same, and stale if they did not."""
    remove(house.root, [one for one in read_steps(house.root) if one.step == "score"])
    write(house.score)
    assert house.status()["x/rank"] == COMPLETE
    write(house.score, force=True, value="q")
    why = f"score-{house.score.id}, which it was made from, has another result now"
    assert house.status()["x/rank"] == ("stale", why)
    write(house.score, force=True)
    assert house.status()["x/rank"] == COMPLETE


def test_without_a_record_of_its_result_an_origin_is_judged_by_time(house: House) -> None:
    """A step of an older esa, or one made from a folder elsewhere, is stale where its upstream step is younger."""
    for step in (house.rank, house.other):
        edit(step, upstream={})
    assert house.status()["x/rank"] == COMPLETE
    edit(house.score, created="2999-01-01T00:00:00+00:00")
    why = f"score-{house.score.id}, which it was made from, was computed again on 2999-01-01"
    assert house.status()["x/rank"] == house.status()["y/rank"] == ("stale", why)


def test_the_same_step_in_two_runs_is_two(house: House) -> None:
    """Of a step that two runs hold, the one beside counts, then any that is complete; with one of two, nothing is gone."""
    twin = Step("score", spec("y"), house.score.inputs, root=house.root)
    assert twin.id == house.score.id
    twin.begin()
    twin.release()
    assert house.status()["x/rank"] == house.status()["y/rank"] == COMPLETE
    states = read_steps(house.root)
    assert dependents(states, [one for one in states if one.folder == house.score.folder]) == []
    write(twin)
    house.score.begin(force=True)
    house.score.release()
    assert house.status()["x/rank"] == house.status()["y/rank"] == COMPLETE
    remove(house.root, [one for one in read_steps(house.root) if one.folder == twin.folder])
    assert house.status()["y/rank"] == ("stale", f"score-{house.score.id}, which it was made from, is incomplete")


def test_an_origin_given_by_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step made from a folder given by name, beside the outputs folder, is found where the command line names it."""
    monkeypatch.chdir(tmp_path)
    score = write(Step("score", spec(), {}, folder=Path("elsewhere/scores")))
    rank = write(Step("rank", spec(), {"score": score.id}))
    assert [one.status for one in read_steps(Path("outputs"))] == ["stale"]
    edit(rank, argv=["esa", "rank", "elsewhere/scores"])
    assert [one.status for one in read_steps(Path("outputs"))] == ["complete"]


def test_a_report_is_judged_by_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reports folder, whose steps lie right in it, is judged by the outputs folder beside it."""
    monkeypatch.chdir(tmp_path)
    score = write(Step("score", spec(), {}))
    report = Step("report", spec(), {"score": score.id}, folder=Path("reports/x-1"))
    report.begin()
    report.finish(tables={})
    assert [(one.step, one.status) for one in read_steps(Path("reports"))] == [("report", "complete")]
    monkeypatch.chdir("/")
    assert [(one.step, one.status) for one in read_steps(tmp_path / "reports")] == [("report", "complete")]
    remove(tmp_path / "outputs", read_steps(tmp_path / "outputs"))
    assert [one.why for one in read_steps(tmp_path / "reports")] == [
        f"score-{score.id}, which it was made from, is gone"
    ]


def test_texts_and_models_are_hashed(house: House, tmp_path: Path) -> None:
    """A text is held to its hash each time and hashed once; a local model where its files are newer, or all is verified."""
    asked: list[str] = []

    def text_hash(source: str) -> str:
        asked.append(source)
        if source == "builtin:prose_eval":
            raise DataError("no such file", where=source)
        return TEXT

    def model_hash(name: str) -> str:
        if name == "m":
            raise ModelError("is gone")
        return "c" * 64

    found = house.status(Check(text_hash=text_hash, model_hash=model_hash))
    assert found["x/score"] == COMPLETE
    assert found["x/perturb"] == ("stale", "its text builtin:prose_eval: no such file")
    assert asked == ["builtin:prose", "builtin:prose_eval"]
    found = house.status(Check(text_hash=lambda _: "d" * 64, model_hash=model_hash))
    assert found["x/score"] == ("stale", "its text builtin:prose is another now: sha256 dddddddddddd...")
    found = house.status(Check(verify=True, text_hash=lambda _: TEXT, model_hash=model_hash))
    assert found["x/score"] == ("stale", "its model m: is gone")


def test_a_text_may_be_its_own_name(tmp_path: Path) -> None:
    """A step on several texts names each input by its source, and each is held to its hash."""
    inputs = {"file:a.txt": TEXT, "builtin:prose": TEXT, "hf:owner/set:test": TEXT}
    write(Step("eval", spec(), inputs, root=tmp_path))
    hashes = {"file:a.txt": TEXT, "builtin:prose": "e" * 64}
    found = read_steps(tmp_path, Check(text_hash=lambda source: hashes[source]))
    assert [one.why for one in found] == ["its text builtin:prose is another now: sha256 eeeeeeeeeeee..."]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_local_model_is_looked_at_by_time(tmp_path: Path, kind: str) -> None:
    """A model's files that are older than the step are trusted, newer ones hashed, and missing ones named."""
    path = tmp_path / ("m.gguf" if kind == "file" else "m")
    file = path if kind == "file" else path / "weights"
    file.parent.mkdir(exist_ok=True)
    file.write_text("w")
    os.utime(file, (0, 0))
    made = spec(model={"id": str(path)})
    write(Step("score", made, {"model": "b" * 64}, root=tmp_path / "outputs"))
    check = Check(model_hash=lambda _: "c" * 64)

    def state() -> StepState:
        return read_steps(tmp_path / "outputs", check)[0]

    assert state().status == "complete"
    file.write_text("other")
    os.utime(file, (time.time() + 100,) * 2)
    assert (state().status, state().why) == ("stale", f"its model {path} has other files now")
    file.unlink()
    if kind == "folder":
        path.rmdir()
    assert (state().status, state().why) == ("stale", f"its model {path} is gone")


def test_nothing_of_the_hub_is_asked_for(tmp_path: Path) -> None:
    """A text or model of the hub, whose input is a commit, is taken as it is."""
    made = spec(calibration={"source": "builtin:prose"}, model={"id": "owner/model"})
    write(Step("score", made, {"model": "b" * 40, "calibration": "c" * 40}, root=tmp_path))

    def never(name: str) -> str:
        raise AssertionError(name)

    check = Check(verify=True, text_hash=never, model_hash=never)
    assert [one.status for one in read_steps(tmp_path, check)] == ["complete"]


def test_a_run_may_be_looked_at_while_it_goes_on(house: House) -> None:
    """Steps that come and go, files that are written and renamed, never stop the list."""
    code = """
import sys, pathlib, shutil
from tests.artifact.house import *
root = pathlib.Path(sys.argv[1])
print("begun", flush=True)
while True:
    step = write(Step("score", spec("z"), {}, root=root), force=True)
    shutil.rmtree(step.folder)
"""
    words = [sys.executable, "-c", code, str(house.root)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"begun\n"
        seen = {one.status for _ in range(300) for one in read_steps(house.root) if one.folder.parent.name == "z"}
        other.kill()
    assert seen <= {"complete", "incomplete", "stale"}
    assert "incomplete" in seen


def test_what_is_no_step_is_passed_over(house: House) -> None:
    """Files, empty folders and other programs' folders in an outputs folder are no steps."""
    (house.root / "README.md").write_text("words")
    (house.root / "empty" / "er").mkdir(parents=True)
    (house.root / "x" / "notes").mkdir()
    (house.root / "x" / "notes" / "spec.toml").write_text("name = 'x'\n")
    (house.root / "x" / "foreign").mkdir()
    (house.root / "x" / "foreign" / "manifest.json").write_text('{"name": "a web page"}')
    assert len(read_steps(house.root)) == 5
    assert not is_step(house.root / "x" / "notes")


def names(states: Iterable[StepState]) -> list[str]:
    """Return run and step of every state."""
    return [f"{one.folder.parent.name}/{one.step}" for one in states]


def test_what_was_made_from_a_step_is_known(house: House) -> None:
    """What depends on a step is found at any distance, and not what goes with it."""
    states = read_steps(house.root)
    by_name = dict(zip(names(states), states, strict=True))
    assert set(names(dependents(states, [by_name["x/score"]]))) == {"x/rank", "x/perturb", "x/overlap", "y/rank"}
    assert set(names(dependents(states, [by_name["x/rank"]]))) == {"x/perturb", "x/overlap"}
    assert names(dependents(states, [one for one in states if one.folder.parent.name == "x"])) == ["y/rank"]
    assert dependents(states, [by_name["x/perturb"]]) == []


def test_steps_are_chosen_by_run_name_or_path(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run means all its steps, a step itself, by name or path, each once."""
    monkeypatch.chdir(house.root.parent)
    root = Path("outputs")
    states = read_steps(root)
    step = f"x/{house.rank.folder.name}"
    assert names(choose(root, ["y"], states)) == ["y/rank"]
    assert names(choose(root, [step, f"outputs/{step}", str(house.rank.folder.absolute())], states)) == ["x/rank"]
    assert names(choose(root, ["x/", step], states)) == ["x/score", "x/rank", "x/perturb", "x/overlap"]


def test_what_is_not_esas_is_not_chosen(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing, outside, the outputs folder itself, a link, or no step is refused, each in its words."""
    monkeypatch.chdir(tmp_path)
    root = Path("outputs")
    (root / "photos").mkdir()
    write(Step("rank", spec(), {}, folder=Path("beside/step")))
    (root / "link").symlink_to(tmp_path / "beside")
    (root / "x" / "linked").symlink_to(tmp_path / "beside" / "step")
    states = read_steps(root)
    refused = {
        "nope": "outputs/nope: no such run or step\nhint: esa runs lists what there is",
        "beside/step": "beside/step: is not below outputs; only what lies there is deleted",
        "x/../../beside": "outputs/x/../../beside: is not below outputs; only what lies there is deleted",
        ".": "outputs: is not below outputs; only what lies there is deleted",
        "photos": "outputs/photos: is no run and no step: no step of esa wrote it",
        "link": "outputs/link: is a link; only what lies in the folder itself is deleted",
        "x": "outputs/x/linked: is a link; only what lies in the folder itself is deleted",
    }
    for name, words in refused.items():
        with pytest.raises(ArtifactError) as caught:
            choose(root, [name], states)
        assert str(caught.value) == words


def test_removed_steps_leave_run_json_right(house: House) -> None:
    """A removed step leaves run.json; the last one takes it and the run's folder along; other files stay."""
    for step in (house.rank, house.overlap):
        remove(house.root, [one for one in read_steps(house.root) if one.folder == step.folder])
    assert list(run_file(house.root / "x")["steps"]) == ["score", "perturb"]
    (house.root / "y" / "notes.txt").write_text("mine")
    remove(house.root, read_steps(house.root))
    assert sorted(path.relative_to(house.root).as_posix() for path in house.root.rglob("*")) == ["y", "y/notes.txt"]


def test_nothing_is_removed_while_one_is_written(house: House) -> None:
    """A step that is being written stops the removal of all, before anything is touched."""
    states = read_steps(house.root)
    before = sorted(house.root.rglob("*"))
    code = "import sys, pathlib; from esa.artifact.lock import acquire; lock = acquire(pathlib.Path(sys.argv[1]))"
    code += "; print('locked', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(house.perturb.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ArtifactError, match=rf"is being written by another process \(pid {other.pid}, since "):
            remove(house.root, states)
        other.kill()
    assert sorted(house.root.rglob("*")) == sorted([*before, house.perturb.folder / ".lock"])
    remove(house.root, states)
    assert list(house.root.iterdir()) == []


def test_what_cannot_be_removed_is_an_error(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be deleted is an error that names the file, and what is left of it does not look complete."""

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "rank.csv"))

    monkeypatch.setattr("esa.artifact.removal.shutil.rmtree", refuse)
    with pytest.raises(ArtifactError, match=r"rank\.csv: cannot be deleted: Permission denied"):
        remove(house.root, [one for one in read_steps(house.root) if one.folder == house.rank.folder])
    assert house.status()["x/rank"][0] == "incomplete"
