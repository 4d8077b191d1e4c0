"""A step that an error leaves unfinished says so; one that was broken off does not; neither keeps its lock."""

import json
import os
from pathlib import Path

import pytest

from esa.artifact import Step, make_table, marking_failures, steps
from esa.artifact.lock import LOCK, holder
from esa.artifact.steps import FAILED
from esa.errors import ArtifactError, EsaError, ModelError
from tests.artifact.test_steps import INPUTS, spec


def make(folder: Path) -> Step:
    """Return a step that lives in ``folder``."""
    return Step("rank", spec(), INPUTS, folder=folder)


@marking_failures()
def run(folder: Path, error: BaseException | None) -> Step:
    """Begin a step, end in ``error`` if there is one, and finish."""
    step = make(folder)
    if not step.begin():
        return step
    if error is not None:
        raise error
    step.write(make_table("ranking/1", []), "ranking.csv")
    step.finish(tables={"ranking.csv": "ranking/1"})
    return step


ERRORS = [
    (ModelError("'x': no such folder", where="model.id", hint="look"), "model.id: 'x': no such folder"),
    (RuntimeError("CUDA out of memory.\nTried to"), "RuntimeError: CUDA out of memory.\nTried to"),
    (MemoryError(), "MemoryError: "),
    (ValueError("x" * 5000), "ValueError: " + "x" * 1988),
]


@pytest.mark.parametrize(("error", "words"), ERRORS)
def test_an_error_marks_its_step(tmp_path: Path, error: Exception, words: str) -> None:
    """An error between begin and finish comes out as it is, and stands in failed.json; the lock is gone."""
    with pytest.raises(type(error)) as caught:
        run(tmp_path, error)
    assert caught.value is error
    content = json.loads((tmp_path / FAILED).read_text(encoding="utf-8"))
    assert (content["step"], content["run"], content["error"]) == ("rank", make(tmp_path).id, words)
    assert content["failed"].endswith("+00:00")
    assert sorted(os.listdir(tmp_path)) == [FAILED, "spec.toml"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(0)])
def test_what_is_broken_off_is_not_marked(tmp_path: Path, error: BaseException) -> None:
    """Ctrl-C and the like leave a step incomplete and unlocked."""
    with pytest.raises(type(error)):
        run(tmp_path, error)
    assert os.listdir(tmp_path) == ["spec.toml"]


def test_the_next_beginning_takes_the_mark_away(tmp_path: Path) -> None:
    """A failed step that is begun again and finished is complete, and no word of the failure is left."""
    with pytest.raises(ModelError):
        run(tmp_path, ModelError("no"))
    assert run(tmp_path, None).complete
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "ranking.csv", "spec.toml"]
    assert run(tmp_path, ModelError("never reached: it is complete")).complete


def test_a_finished_step_is_not_marked(tmp_path: Path) -> None:
    """An error behind the manifest, such as a failed check, marks nothing."""

    @marking_failures()
    def check() -> None:
        run(tmp_path, None)
        raise EsaError("the check failed")

    with pytest.raises(EsaError):
        check()
    assert not (tmp_path / FAILED).exists()


def test_only_the_steps_begun_within_are_marked(tmp_path: Path) -> None:
    """A step inside another one's run fails alone where its error is dealt with, and both do where it is not."""

    @marking_failures()
    def outer(caught: bool) -> None:
        make(tmp_path / "outer").begin()
        try:
            run(tmp_path / "inner", ModelError("inner"))
        except ModelError:
            if not caught:
                raise

    outer(caught=True)
    assert (tmp_path / "inner" / FAILED).exists()
    assert os.listdir(tmp_path / "outer") == ["spec.toml"]
    with pytest.raises(ModelError):
        outer(caught=False)
    assert json.loads((tmp_path / "outer" / FAILED).read_text())["error"] == "inner"


def test_an_abandoned_step_leaves_nothing(tmp_path: Path) -> None:
    """A step that had finished no part when its content failed takes its folder, lock and all, away; else it is marked."""

    @marking_failures()
    def score(folder: Path, *, part: bool) -> None:
        step = make(folder)
        step.begin()
        if part:
            (folder / ".parts").mkdir()
        step.abandon(unless=folder / ".parts")
        raise EsaError("NaN")

    for part in (False, True):
        with pytest.raises(EsaError):
            score(tmp_path / "step", part=part)
        left = sorted(os.listdir(tmp_path / "step")) if (tmp_path / "step").exists() else []
        assert left == ([".parts", FAILED, "spec.toml"] if part else [])


def test_the_error_matters_more_than_its_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where failed.json cannot be written either, the first error comes out, and the lock is given back."""

    def refuse(path: Path, content: object) -> None:
        raise ArtifactError("cannot be written: No space left on device", where=str(path))

    monkeypatch.setattr(steps, "write_json", refuse)
    with pytest.raises(ModelError, match="first"):
        run(tmp_path, ModelError("first"))
    assert os.listdir(tmp_path) == ["spec.toml"]
    assert holder(tmp_path) is None


def test_a_beginning_that_fails_is_no_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose opening cannot be written holds no lock."""

    def refuse(*_: object) -> None:
        raise ArtifactError("cannot be written")

    monkeypatch.setattr(steps, "write_text", refuse)
    with pytest.raises(ArtifactError):
        make(tmp_path).begin()
    assert not (tmp_path / LOCK).exists()
