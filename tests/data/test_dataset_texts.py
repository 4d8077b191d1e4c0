"""``hf:`` texts from folders and from a stand-in of the hub: pinned to a commit, whole, and never another text."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from esa.artifact.hub import without_network
from esa.data import check_source, eval_windows, read_source, source_hash
from esa.data.sources import load_text
from esa.errors import ArtifactError, DataError
from esa.progress import Silent
from esa.spec.sections import Eval
from tests.conftest import make_tokenizer
from tests.hub import StandIn, point_at, serving

pytest.importorskip("datasets", reason="datasets is not installed: pip install 'esa[eval]'")

ROWS = ["first row", "", "ünïcode: 日本語", "two\nlines", "last"]
README = """\
---
configs:
- config_name: small
  data_files:
  - {split: train, path: small/train-*}
  - {split: test, path: small/test-*}
- config_name: large
  data_files:
  - {split: train, path: large/train-*}
---
A text.
"""


def write_rows(path: Path, rows: list[str | None]) -> None:
    """Write rows as Parquet: the text under two names, a number, and a field with a null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = len(rows)
    columns: dict[str, Any] = {"text": rows, "body": [f"b{row}" for row in rows], "number": list(range(size))}
    pl.DataFrame({**columns, "holes": ["x"] * (size - 1) + [None]}).write_parquet(path)


def make_dataset(folder: Path, rows: list[str] = ROWS) -> Path:
    """Make a dataset of two configs, three files, and a README that names them."""
    write_rows(folder / "small/train-0.parquet", [f"small {row}" for row in rows])
    write_rows(folder / "small/test-0.parquet", list(rows))
    write_rows(folder / "large/train-0.parquet", [f"large {row}" for row in rows])
    (folder / "README.md").write_text(README, encoding="utf-8")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Serve a hub with the dataset ``org/texts``, and work in a folder with the dataset's own as ``data``."""
    monkeypatch.chdir(tmp_path)
    with serving() as found:
        online(monkeypatch, found, tmp_path)
        found.dataset("org/texts").commit(make_dataset(tmp_path / "data"))
        yield found


def online(monkeypatch: pytest.MonkeyPatch, hub: StandIn, home: Path, *, offline: bool = False) -> None:
    """Start as a new process does: nothing is known yet but what lies in the caches under ``home``."""
    import datasets

    point_at(monkeypatch, hub.url, home, offline=offline)
    monkeypatch.setattr("esa.data.dataset_texts._held", {})
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)


def refusal(source: str) -> str:
    """Return what a person reads when a source is refused."""
    with pytest.raises(DataError) as caught:
        read_source(source)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_rows_are_joined_by_newlines(hub: StandIn) -> None:
    """The text is every row of the split in its order, empty ones too, with one newline between two."""
    assert read_source("hf:org/texts/small:test") == "\n".join(ROWS)
    assert read_source("hf:org/texts/small:test:body") == "\n".join(f"b{row}" for row in ROWS)
    assert read_source("hf:org/texts/large:train") == "\n".join(f"large {row}" for row in ROWS)


def test_a_text_is_identified_by_itself_and_its_commit(hub: StandIn) -> None:
    """The identity is the sha256 of the text; the facts name commit, config and rows, and so does a note."""
    sha, source = hub.dataset("org/texts").names["main"], "hf:org/texts/small:test"
    digest = hashlib.sha256("\n".join(ROWS).encode()).hexdigest()
    assert source_hash(source) == digest
    assert load_text(source).facts == {
        "revision": sha, "revision_asked": "main", "without_hub": None, "config": "small", "rows": 5, "text_sha256": digest,
    }  # fmt: skip
    notes: list[str] = []
    progress = Silent()
    progress.note = notes.append  # type: ignore[method-assign]
    windows = eval_windows(Eval(source=source, windows=2, length=4), make_tokenizer(), progress=progress)
    assert windows.facts()["text_sha256"] == digest
    assert windows.facts()["revision"] == sha
    assert notes == [f"{source}: main = commit {sha}"]


def test_only_the_split_is_fetched(hub: StandIn) -> None:
    """Of a dataset's files the split's own are fetched, once; the hub is not asked again in a process."""
    read_source("hf:org/texts/small:test")
    fetched = [path for path in hub.asked if path.startswith("GET") and path.endswith(".parquet")]
    assert [path.rpartition("/")[2] for path in fetched] == ["test-0.parquet"]
    hub.asked.clear()
    assert source_hash("hf:org/texts/small:test")
    assert read_source("hf:org/texts/small:test")
    assert hub.asked == []


def test_a_second_process_asks_for_the_commit_alone(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched is kept by commit: the next process only asks which commit is meant."""
    read_source("hf:org/texts/small:test")
    online(monkeypatch, hub, Path.cwd())
    hub.asked.clear()
    assert read_source("hf:org/texts/small:test") == "\n".join(ROWS)
    assert {path.rpartition("/")[2] for path in hub.asked} == {"README.md"}


def test_a_branch_that_moved_is_another_text(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new commit gives its own text; branch, tag and commit each name theirs."""
    old, source = hub.dataset("org/texts").names["main"], "hf:org/texts/small:test"
    assert read_source(source) == "\n".join(ROWS)
    new = hub.dataset("org/texts").commit(make_dataset(Path("other"), ["changed"]), "main", "v2")
    assert read_source(source) == "\n".join(ROWS)  # within a process nothing moves
    online(monkeypatch, hub, Path.cwd())
    assert read_source(source) == "changed"
    assert {revision: read_source(f"hf:org/texts/small@{revision}:test") for revision in (old, new, "v2")} == {
        old: "\n".join(ROWS), new: "changed", "v2": "changed",
    }  # fmt: skip


@pytest.mark.parametrize("way", ["offline", "down"])
def test_without_the_hub_the_cache_gives_the_text_or_nothing(
    way: str, hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, and with a hub that answers 503, a fetched text comes from the cache and says so, and no other in its place."""
    sha = hub.dataset("org/texts").names["main"]
    text = read_source("hf:org/texts/small:test")
    online(monkeypatch, hub, Path.cwd(), offline=way == "offline")
    hub.status = 503 if way == "down" else None
    hub.asked.clear()
    found = load_text("hf:org/texts/small:test")
    why = {"offline": "HF_HUB_OFFLINE is set", "down": "it answered 503"}[way]
    assert (found.content, found.facts["revision"], found.facts["without_hub"]) == (text, sha, why)
    assert read_source(f"hf:org/texts/small@{sha}:test") == text
    for source in ("small:train", "large:train", f"small@{'0' * 40}:test", "small@v2:test"):
        assert refusal(f"hf:org/texts/{source}") == (
            f"hf:org/texts/{source}: the hub does not answer, and the local cache does not hold this text\n"
            "hint: check the network and HF_HUB_OFFLINE, or give a folder (hf:./...) or file:PATH"
        )
    assert refusal("hf:org/texts:train").startswith("hf:org/texts:train: the hub does not answer")
    assert len(hub.asked) == (0 if way == "offline" else 4)  # once for each of the revisions named


REFUSED = {
    "hf:org/texts:test": "needs a config: one of small, large\nhint: hf:DATASET/CONFIG:SPLIT",
    "hf:org/texts/smal:test": "has no config 'smal' (did you mean 'small'?); it has small, large",
    "hf:org/texts/small:tst": "has no split 'tst' (did you mean 'test'?); it has train, test",
    "hf:org/texts/small:test:txt": "has no field 'txt' (did you mean 'text'?); it has text, body, holes",
    "hf:org/texts/small:test:number": "field 'number' holds no text, but Value('int64'); fields of text: text, body, holes",
    "hf:org/texts/small:test:holes": "1 of 5 rows are null, row 4 first: they are no text\n"
    "hint: write the rows you mean to a file, and give file:PATH",
    "hf:org/none:test": "the hub knows no dataset 'org/none'\nhint: check the spelling; a private one needs HF_TOKEN",
    "hf:data/small:test": "the hub knows no dataset 'data/small'\nhint: a folder is given as hf:./data/small;"
    " a private one needs HF_TOKEN",
    "hf:org/texts/small@v9:test": "'org/texts' has no branch, tag or commit 'v9' on the hub",
    "hf:./nowhere:test": "'./nowhere': no such folder",
    "hf:./data/smal:test": "has no config 'smal' (did you mean 'small'?); it has small, large",
}


@pytest.mark.parametrize("source", REFUSED)
def test_what_is_not_there_is_named_with_what_is(source: str, hub: StandIn) -> None:
    """An unknown dataset, revision, config, split or field, and one that is no text, are each one error."""
    assert refusal(source) == f"{source}: {REFUSED[source]}"


def test_a_gated_dataset_says_what_to_do(hub: StandIn) -> None:
    """A dataset whose terms were not accepted is refused with the way to it."""
    hub.dataset("org/texts").gated = True
    assert refusal("hf:org/texts/small:test") == (
        "hf:org/texts/small:test: 'org/texts' is gated: its owner asks you to accept its terms\n"
        "hint: accept them on the dataset's page, then set HF_TOKEN to your access token"
    )


def test_a_script_is_never_run(hub: StandIn) -> None:
    """A dataset that is made by its own Python code is refused, and the code is not run."""
    folder = make_dataset(Path("scripted"))
    (folder / "scripted.py").write_text(f"open({str(Path.cwd() / 'mark')!r}, 'w').close()\n", encoding="utf-8")
    hub.dataset("org/scripted").commit(folder)
    for source in ("hf:org/scripted/small:test", "hf:./scripted:test"):
        assert "is made by a Python script of its own, which is never run" in refusal(source)
    assert not Path("mark").exists()


def write_as(path: Path, rows: list[str]) -> None:
    """Write rows in the format of a file's suffix."""
    frame = pl.DataFrame({"text": rows})
    path.parent.mkdir(exist_ok=True)
    match path.suffix:
        case ".parquet":
            frame.write_parquet(path)
        case ".jsonl":
            frame.write_ndjson(path)
        case ".csv":
            frame.write_csv(path)
        case ".txt":
            path.write_text("\n".join(rows), encoding="utf-8")


@pytest.mark.parametrize("file", ["parquet", "jsonl", "csv", "txt"])
def test_a_folder_of_files_is_a_dataset(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder's files are read as they are now, each format, the split by its name; no cache stands between."""
    monkeypatch.chdir(tmp_path)
    for rows in (["a b", "c"], ["changed"]):
        write_as(Path(f"d/validation.{file}"), rows)
        source = f"hf:{tmp_path}/d:validation"
        assert read_source("hf:./d:validation") == read_source(source) == "\n".join(rows)
        assert source_hash(source) == hashlib.sha256("\n".join(rows).encode()).hexdigest()
    assert set(load_text("hf:./d:validation").facts) == {"config", "rows", "text_sha256"}


def test_a_folder_s_config_is_its_last_part(hub: StandIn) -> None:
    """Beside a README that names configs, the last part of a path is a folder if there is one, else a config."""
    folder = make_dataset(Path("repo"))
    (folder / "small").rename(folder / "files")
    (folder / "README.md").write_text(README.replace("path: small/", "path: files/"), encoding="utf-8")
    assert read_source("hf:./repo/small:test") == "\n".join(ROWS)
    assert read_source("hf:./repo/files:test") == "\n".join(ROWS)
    assert load_text("hf:./repo/small:test").facts["config"] == "small"


def test_a_broken_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is cut is one clear error; an empty folder and empty rows are others."""
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    assert refusal("hf:./d:train").startswith("hf:./d:train: cannot be read: ")
    write_rows(Path("d/train.parquet"), ["some text"])
    data = Path("d/train.parquet").read_bytes()
    Path("d/train.parquet").write_bytes(data[: len(data) // 2])
    assert refusal("hf:./d:train").startswith("hf:./d:train: cannot be read: ")
    write_rows(Path("d/train.parquet"), ["", " "])
    assert refusal("hf:./d:train") == "hf:./d:train: holds no text"


def test_loading_is_quiet(hub: StandIn, capfd: pytest.CaptureFixture[str]) -> None:
    """The loading libraries print nothing, and are as talkative afterwards as before."""
    import datasets

    before = (
        datasets.is_progress_bar_enabled(),
        datasets.logging.get_verbosity(),
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS,
    )
    read_source("hf:org/texts/small:test")
    refusal("hf:org/texts/small:tst")
    assert capfd.readouterr() == ("", "")
    after = (
        datasets.is_progress_bar_enabled(),
        datasets.logging.get_verbosity(),
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS,
    )
    assert after == before


def test_nothing_is_asked_where_nothing_may_be(hub: StandIn) -> None:
    """A check and a dry run leave the hub alone; a folder needs no hub."""
    check_source("hf:org/none:test")
    with pytest.raises(DataError, match=r"eval\.source: hf:\./nowhere:test: './nowhere': no such folder"):
        check_source("hf:./nowhere:test", "eval.source")
    with without_network():
        with pytest.raises(ArtifactError, match="is fetched when the step starts"):
            source_hash("hf:org/texts/small:test")
        assert source_hash("hf:./data/large:train") == source_hash("hf:./data/large:train")
    assert hub.asked == []


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without datasets installed an hf: text is refused with the command that installs it; nothing imports it otherwise."""
    monkeypatch.setattr("esa.data.dataset_texts.find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal("hf:org/texts:test") == (
        "hf:org/texts:test: needs the package datasets\nhint: pip install 'esa[eval]'"
    )
    with pytest.raises(DataError, match="needs the package datasets"):
        check_source("hf:./d:test")
    assert read_source("builtin:sentences")


def test_a_split_of_a_folder_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of Parquet files without that split is an error that names the splits it has."""
    monkeypatch.chdir(tmp_path)
    Path("only").mkdir()
    pl.DataFrame({"text": ROWS}).write_parquet("only/train-00000-of-00001.parquet")
    assert "has no split 'nope'; it has train" in refusal("hf:./only:nope")


def test_a_folder_of_two_formats_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library raises here is its own cause; the chain of causes ends all the same, in one error."""
    monkeypatch.chdir(tmp_path)
    Path("mixed").mkdir()
    pl.DataFrame({"text": ROWS}).write_parquet("mixed/train-00000-of-00001.parquet")
    Path("mixed/test.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    assert "Couldn't infer the same data file format for all splits" in refusal("hf:./mixed:train")
