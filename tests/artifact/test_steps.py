"""A step has an id that changes with what it reads, a folder that is complete or not, and a journal that survives a kill."""

import hashlib
import json
import os
import platform
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from esa.artifact import Journal, Step, find_table, make_table, read_manifest, read_table, sha256_of, table_path
from esa.artifact.manifest import command_line
from esa.artifact.steps import JOURNAL, STEP_KEYS, readers, step_id
from esa.errors import ArtifactError
from esa.spec import Spec, load_spec, spec_from_dict
from esa.spec.loading import apply_overrides

INPUTS = {"model": "a" * 64}


def spec(**sections: Any) -> Spec:
    """Return a spec with one perturbation."""
    tree = {"name": "x", "model": {"id": "m"}, "perturb": [{"method": "gauss_noise"}], **sections}
    return spec_from_dict(tree)


# key = value -> the steps that read it
READ_BY = {
    'model.id="other"': "score perturb faults truth detector eval",
    'model.dtype="bfloat16"': "score perturb faults truth detector eval",
    'model.device="cpu"': "score perturb faults truth detector eval",
    'model.shape={model_type = "llama"}': "",
    "calibration.windows=9": "score",
    'calibration.source="builtin:dev_small"': "score",
    "eval.length=64": "perturb faults truth detector eval",
    "eval.batch_tokens=64": "perturb faults truth detector eval",
    'score.metrics=["obd"]': "score overlap",
    "score.seeds=[1]": "score perturb faults truth detector",
    "score.keep=5": "score",
    'score.include=["*"]': "score",
    "rank.k=[3]": "rank perturb overlap curve",
    'rank.mode="per_layer"': "rank",
    "rank.draws=2": "rank perturb",
    'rank.seeds="all"': "perturb",
    'rank.groups=["top_k"]': "rank",
    "perturb.0.sigma=0.1": "perturb",
    "perturb.0.repeats=2": "perturb",
    'overlap.by=["layer"]': "overlap curve",
    "overlap.p=0.5": "overlap curve",
    'question="Why?"': "report",
    'name="y"': "report",
}


@pytest.mark.parametrize("override", READ_BY)
def test_an_id_changes_with_the_keys_its_step_reads(override: str) -> None:
    """A changed key changes the id of every step that reads it, and of no other."""
    before, after = spec(), apply_overrides(spec(), [override])
    changed = [step for step in STEP_KEYS if Step(step, before, INPUTS).id != Step(step, after, INPUTS).id]
    assert " ".join(changed) == READ_BY[override]


@pytest.mark.parametrize("step", list(STEP_KEYS))
def test_an_id_changes_with_its_inputs(step: str) -> None:
    """Another hash, another name or one more input gives another id; their order does not."""
    inputs = [{}, {"a": "1"}, {"a": "2"}, {"b": "1"}, {"a": "1", "b": "1"}]
    assert len({Step(step, spec(), given).id for given in inputs}) == len(inputs)
    assert Step(step, spec(), {"a": "1", "b": "2"}).id == Step(step, spec(), {"b": "2", "a": "1"}).id


def test_ids_of_steps_differ() -> None:
    """Two steps of one spec never share an id, also where they read the same keys."""
    assert len({Step(step, spec(), INPUTS).id for step in STEP_KEYS}) == len(STEP_KEYS)
    assert step_id("score", {}, {}) != step_id("rank", {}, {})


def test_an_id_is_twelve_hex_and_stays() -> None:
    """An id is the first 12 hex of the sha256 of step, schema version, keys and inputs, as JSON of one spelling."""
    text = '{"inputs":{"scores":"abc"},"keys":{"rank":{"k":[1]}},"schema":1,"step":"rank"}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert step_id("rank", {"rank": {"k": [1]}}, {"scores": "abc"}) == expected == "58b79af21353"
    assert Step("rank", spec(rank={"k": 3}), {}).id == Step("rank", spec(rank={"k": [3]}), {}).id


def test_a_folder_is_named_for_its_step(tmp_path: Path) -> None:
    """A step lives in <root>/<name>/<step>-<id>, or where it is told to."""
    step = Step("rank", spec(), INPUTS, root=tmp_path)
    assert step.folder == tmp_path / "x" / f"rank-{step.id}"
    assert Step("rank", spec(), INPUTS).folder == Path("outputs") / "x" / f"rank-{step.id}"
    assert Step("rank", spec(), INPUTS, folder=tmp_path / "here").folder == tmp_path / "here"


def finished(folder: Path, step: str = "rank", made: Spec | None = None) -> Step:
    """Return a finished step in ``folder``."""
    found = Step(step, made or spec(), INPUTS, folder=folder)
    found.begin()
    found.write(make_table("ranking/1", [{"run": found.id, "parameter": "p"}], found.meta()), "ranking.csv")
    found.finish(tables={"ranking.csv": "ranking/1"}, warnings=["a", "b", "a"], seeds=[0])
    return found


def test_the_manifest_makes_a_step_complete(tmp_path: Path) -> None:
    """A step is complete once its manifest is there, and only then can its tables be found."""
    step = Step("rank", spec(), INPUTS, folder=tmp_path)
    assert not step.complete
    step.begin()
    step.write(make_table("ranking/1", []), "ranking.csv")
    assert not step.complete
    with pytest.raises(ArtifactError) as caught:
        find_table(tmp_path, "ranking/1")
    assert str(caught.value) == f"{tmp_path}: is not a finished step: it has no manifest.json"
    step.finish(tables={"ranking.csv": "ranking/1"})
    assert step.complete
    assert find_table(tmp_path, "ranking/1").frame.height == 0


def test_the_resolved_spec_reads_back(tmp_path: Path) -> None:
    """A step's folder holds the spec it ran, every key resolved."""
    made = spec(rank={"k": 7})
    step = finished(tmp_path, made=made)
    assert load_spec(tmp_path / "spec.toml") == made
    assert (tmp_path / "spec.toml").read_text(encoding="utf-8").startswith(f"# rank-{step.id}\n")


def test_another_step_in_the_folder_is_refused(tmp_path: Path) -> None:
    """A folder given by name that holds another finished step is neither reused nor written over."""
    old = finished(tmp_path)
    new = Step("rank", spec(rank={"draws": 1}), INPUTS, folder=tmp_path)
    with pytest.raises(ArtifactError) as caught:
        _ = new.complete
    assert str(caught.value) == (
        f"{tmp_path}: holds rank-{old.id}, not rank-{new.id}\nhint: give another folder with -o, or --force to write over it"
    )


def test_force_writes_over_another_step(tmp_path: Path) -> None:
    """With --force another step takes the folder: the tables that the old one named are gone, a stranger's file stays."""
    finished(tmp_path)
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    new = Step("rank", spec(rank={"draws": 1}), INPUTS, folder=tmp_path)
    assert not new.reusable(force=True)
    assert new.begin(force=True)
    assert not (tmp_path / "ranking.csv").exists()
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"
    new.write(make_table("ranking/1", []), "ranking.csv")
    new.finish(tables={"ranking.csv": "ranking/1"})
    assert new.complete


@pytest.mark.parametrize(
    ("metrics", "changes", "same"),
    [
        (["act_mag"], {"probes": 4, "rounds": 3, "resamples": 2, "reduction": "mean", "probe_groups": 2}, True),
        (["obd"], {"rounds": 3, "resamples": 2}, True),
        (["obd"], {"probes": 4}, False),
        (["super_activation"], {"rounds": 3}, False),
        (["act_mag", "ggn_obd"], {"resamples": 2}, False),
        (["act_mag"], {"dense": True}, False),
    ],
)
def test_keys_that_no_metric_reads_make_no_other_step(
    metrics: list[str], changes: dict[str, object], same: bool
) -> None:
    """A key of [score] enters the step's id where a metric that is scored reads it."""
    plain, changed = (spec(score={"metrics": metrics, **more}) for more in ({}, changes))
    assert (Step("score", plain, INPUTS).id == Step("score", changed, INPUTS).id) == same


@pytest.mark.parametrize(("score", "same"), [({}, True), ({"metrics": ["obd"]}, False)])
def test_a_budget_enters_the_id_where_it_sets_the_groups(score: dict[str, object], same: bool) -> None:
    """model.memory_budget makes another step where curvature's probe groups follow from it."""
    plain = spec(model={"id": "m"}, score=score)
    bounded = spec(model={"id": "m", "memory_budget": "4 GB"}, score=score)
    assert (Step("score", plain, INPUTS).id == Step("score", bounded, INPUTS).id) == same


def test_force_starts_afresh(tmp_path: Path) -> None:
    """--force takes away the manifest and the journal of whatever was there before."""
    finished(tmp_path)
    Journal(tmp_path / JOURNAL).append("a", {"value": 1})
    new = Step("rank", spec(rank={"draws": 1}), INPUTS, folder=tmp_path)
    new.begin(force=True)
    assert not new.complete
    assert Journal(tmp_path / JOURNAL).done == {}


def test_a_killed_step_keeps_its_journal(tmp_path: Path) -> None:
    """Beginning the same step again keeps what it had journalled."""
    step = Step("perturb", spec(), INPUTS, folder=tmp_path)
    step.begin()
    Journal(tmp_path / JOURNAL).append("a", {"value": 1})
    Step("perturb", spec(), INPUTS, folder=tmp_path).begin()
    assert Journal(tmp_path / JOURNAL).done == {"a": {"key": "a", "value": 1}}


def test_a_killed_step_of_another_id_leaves_nothing(tmp_path: Path) -> None:
    """In a folder given by name, the journal of another killed step is not taken for this one's."""
    Step("perturb", spec(), INPUTS, folder=tmp_path).begin()
    Journal(tmp_path / JOURNAL).append("a", {"value": 1})
    Step("perturb", spec(eval={"length": 9}), INPUTS, folder=tmp_path).begin()
    assert Journal(tmp_path / JOURNAL).done == {}


@pytest.mark.parametrize("tail", ['{"key":"c","val', '{"key":"c","value":3}', "\x00\x00", ""])
def test_a_journal_survives_a_half_written_line(tmp_path: Path, tail: str) -> None:
    """A journal whose last line was being written when the process died gives its whole lines, and goes on behind them."""
    path = tmp_path / JOURNAL
    journal = Journal(path)
    journal.append("a", {"value": 1})
    journal.append("b", {"value": [0.1, None], "text": "two\nlines\u2028"})
    with path.open("a", encoding="utf-8") as file:
        file.write(tail)
    again = Journal(path)
    assert again.done == journal.done
    again.append("c", {"value": 4})
    assert Journal(path).done == {**journal.done, "c": {"key": "c", "value": 4}}
    assert len(path.read_text(encoding="utf-8").splitlines()) == 3


def test_each_case_is_on_disk_at_once(tmp_path: Path) -> None:
    """An appended case is a whole line in the file before the next one is begun."""
    journal = Journal(tmp_path / JOURNAL)
    journal.append("a", {"b": 1.5})
    assert (tmp_path / JOURNAL).read_bytes() == b'{"b":1.5,"key":"a"}\n'


def test_a_journal_of_nan_is_refused(tmp_path: Path) -> None:
    """NaN never enters a journal, and the refused line leaves no trace in it."""
    journal = Journal(tmp_path / JOURNAL)
    journal.append("a", {"value": 1})
    with pytest.raises(ValueError, match="Out of range float values"):
        journal.append("b", {"value": float("nan")})
    assert Journal(tmp_path / JOURNAL).done == {"a": {"key": "a", "value": 1}}


def test_a_table_of_a_step_is_found_by_its_kind(tmp_path: Path) -> None:
    """A step's folder stands for its table of a kind; a kind it does not hold is refused by name."""
    step = finished(tmp_path)
    assert table_path(tmp_path, "ranking/1") == tmp_path / "ranking.csv"
    assert find_table(tmp_path, "ranking/1").frame["run"].to_list() == [step.id]
    with pytest.raises(ArtifactError) as caught:
        find_table(tmp_path, "scores/1")
    assert str(caught.value) == f"{tmp_path}: is a rank step and holds ranking/1, not scores/1"


def test_a_folder_that_is_no_step_is_refused(tmp_path: Path) -> None:
    """A missing folder, a broken manifest and a foreign one are refused by name."""
    with pytest.raises(ArtifactError) as caught:
        read_manifest(tmp_path / "nope")
    assert str(caught.value) == f"{tmp_path / 'nope'}: no such folder"
    path = tmp_path / "manifest.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read: Expecting property name"):
        read_manifest(tmp_path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ArtifactError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == f"{path}: is not a manifest of esa"


def test_a_manifest_says_what_a_reader_needs(tmp_path: Path) -> None:
    """The manifest holds versions, kinds, the spec, inputs and outputs by hash, seeds, time, memory and each warning once."""
    step = finished(tmp_path)
    manifest = read_manifest(tmp_path)
    assert set(manifest) == {
        "step", "run", "kinds", "created", "argv", "esa", "python", "packages", "hardware", "git", "spec", "inputs",
        "upstream", "outputs", "sizes", "seeds", "seconds", "peak_memory_bytes", "warnings",
    }  # fmt: skip
    assert (manifest["step"], manifest["run"], manifest["inputs"]) == ("rank", step.id, INPUTS)
    assert manifest["outputs"] == {"ranking.csv": sha256_of(tmp_path / "ranking.csv")}
    assert manifest["sizes"] == {"ranking.csv": (tmp_path / "ranking.csv").stat().st_size}
    assert manifest["warnings"] == ["a", "b"]
    assert spec_from_dict(manifest["spec"]) == spec()
    assert {"torch", "transformers", "polars", "numpy"} <= set(manifest["packages"])
    assert manifest["peak_memory_bytes"] > 1 << 24
    assert manifest["created"].endswith("+00:00")


def words(value: object) -> list[str]:
    """Return every text in nested lists and dicts, keys included."""
    if isinstance(value, dict):
        return [*value, *(word for item in value.values() for word in words(item))]
    if isinstance(value, list):
        return [word for item in value for word in words(item)]
    return [value] if isinstance(value, str) else []


def test_a_manifest_names_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest holds no host name, user, environment variable, or absolute path, also none from the command line."""
    monkeypatch.setattr(socket, "gethostname", lambda: "deep-thought")
    monkeypatch.setattr(platform, "node", lambda: "deep-thought")
    for name in ("USER", "LOGNAME", "HOME", "HF_TOKEN", "HOSTNAME"):
        monkeypatch.setenv(name, "/home/zaphod")
    arguments = ["run", "--spec", "/home/zaphod/s.toml", "--out=/home/zaphod/o", "--set", "model.id=/home/zaphod/m"]
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "esa"), *arguments])
    finished(tmp_path)
    text = (tmp_path / "manifest.json").read_text(encoding="utf-8")
    for name in ("deep-thought", "zaphod", str(tmp_path)):
        assert name not in text
    said = words(json.loads(text))
    assert os.uname().nodename not in said
    assert [word for word in said if word.startswith(("/", "~"))] == []


ARGUMENTS = [
    ("a/b", "a/b"), ("/a/b", "b"), ("--out=/a/b/c.csv", "--out=c.csv"), ("model.id=/a/m", "model.id=m"),
    ("eval.source=file:/a/t.txt", "eval.source=file:t.txt"), ('score.include=["/a/b","c"]', 'score.include=["b","c"]'),
    ("~/s.toml", "s.toml"), ("file:~/t.txt", "file:t.txt"), ("model.x.weight:3,4", "model.x.weight:3,4"), ("-k", "-k"),
    ("owner/model", "owner/model"), ("rank.k=[1, 2]", "rank.k=[1, 2]"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "kept"), ARGUMENTS)
def test_the_command_line_keeps_no_absolute_path(monkeypatch: pytest.MonkeyPatch, given: str, kept: str) -> None:
    """Of an absolute path the command line keeps the last part, and everything else as it was typed."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/esa", given])
    assert command_line() == ["esa", kept]


def test_a_table_in_parquet_names_its_step(tmp_path: Path) -> None:
    """A step's Parquet files carry its id, the keys and inputs it read, and the version of the schemas."""
    step = Step("rank", spec(), INPUTS, folder=tmp_path)
    path = step.write(make_table("ranking/1", [], step.meta(note="n")), "t.parquet")
    meta = read_table(path, "ranking/1").meta
    assert (meta["run"], meta["version"], meta["note"]) == (step.id, "1", "n")
    assert json.loads(meta["spec"]) == {"name": "x", **step.keys}
    assert json.loads(meta["inputs"]) == INPUTS


@pytest.mark.parametrize("override", [key for key in READ_BY if not key.startswith("perturb.")])
def test_the_readers_of_a_key_are_those_whose_ids_it_enters(override: str) -> None:
    """What is said to read a key is what is computed again when the key changes; a name also names every folder."""
    key = override.partition("=")[0]
    assert readers(key) == (list(STEP_KEYS) if key == "name" else READ_BY[override].split())
