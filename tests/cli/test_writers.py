"""Commands that write: one at a time per step, and what goes wrong is told by `esa runs`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from esa import model, perturb, score
from esa.artifact import Journal
from esa.errors import ModelError
from esa.spec import load_spec
from tests.cli.conftest import Invoke

HOLD = """
import sys
from pathlib import Path
from esa.artifact.lock import acquire
lock = acquire(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_step_of_another_process_is_refused_before_the_model_is_loaded(
    folder: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process writes the scores, `esa score` and `esa run` end at once with one error and code 3."""
    step = score.score_step(load_spec("s.toml"))
    step.begin()
    step.release()
    monkeypatch.setattr(model, "load_model", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(score, "load_model", lambda *_: pytest.fail("loaded"))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(step.folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder, env={"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        for words in (["score"], ["score", "--force"], ["run"], ["run", "--force"]):
            done = esa(*words, "-s", "s.toml")
            assert (done.exit_code, done.stdout) == (3, "")
            assert f"esa: error: {step.folder}: is being written by another process (pid {other.pid}, " in done.stderr
        assert f"running (pid {other.pid}, " in esa("runs").stdout
        planned = esa("run", "-s", "s.toml", "--dry-run")
        assert planned.exit_code == 0
        assert "(is being written by another process" in planned.stdout
        other.kill()
    assert sorted(path.name for path in step.folder.iterdir()) == [".lock", "spec.toml"]


def journal(folder: Path) -> list[str]:
    """Return the lines of the one journal there is."""
    return next(folder.glob("outputs/tiny/perturb-*/cases.jsonl")).read_text().splitlines()


def test_a_failed_campaign_is_listed_and_goes_on(folder: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign that an error ends is failed, with its words; the same command goes on behind its journal."""
    whole = Journal.append

    def append(self: Journal, key: str, entry: dict[str, object]) -> None:
        if len(self.done) == 5:
            raise ModelError("out of memory", where="cuda:0")
        whole(self, key, entry)

    monkeypatch.setattr(Journal, "append", append)
    words = ("perturb", "-s", "s.toml", "-q", "--target", "model.layers.1.mlp.down_proj.weight:1,2")
    assert esa(*words).exit_code == 3
    failed = [line for line in esa("runs").stdout.splitlines() if " failed " in line]
    assert len(failed) == 1
    assert failed[0].startswith("tiny/perturb-")
    assert failed[0].endswith("  cuda:0: out of memory")
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    before = set(journal(folder))
    assert esa(*words).exit_code == 0
    assert [line.split()[1] for line in esa("runs").stdout.splitlines()[1:]] == ["complete"]
    assert before < set(journal(folder))
    assert not list(folder.glob("outputs/tiny/*/failed.json"))


def test_a_step_remembers_what_it_was_made_from(folder: Path, esa: Invoke) -> None:
    """Scores computed again with the same result leave their ranking complete."""
    scored = esa("score", "-s", "s.toml", "-q").stdout.strip()
    ranked = esa("rank", scored, "-q").stdout.strip()
    manifest = json.loads(Path(ranked, "manifest.json").read_text())
    assert manifest["upstream"].keys() == {manifest["inputs"]["score"]}
    assert esa("score", "-s", "s.toml", "-q", "--force").exit_code == 0
    assert [line.split()[1] for line in esa("runs").stdout.splitlines()[1:]] == ["complete"] * 2


def test_the_twins_mark_and_unlock_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python call that fails marks its step and gives its lock back, so that another process may go on."""
    spec = load_spec("s.toml")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(perturb.Campaign, "evaluate", fail)
    with pytest.raises(RuntimeError):
        perturb.run(spec, ["model.layers.1.mlp.down_proj.weight:1,2"])
    found = next(Path("outputs/tiny").glob("perturb-*"))
    assert json.loads((found / "failed.json").read_text())["error"] == "RuntimeError: no"
    assert not (found / ".lock").exists()
