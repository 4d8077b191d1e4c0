"""Models of the hub, on a stand-in for its endpoints and its cache: one commit for every file, and never another silently."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

import esa.eval
from esa.artifact.hub import Commit, without_network
from esa.errors import ArtifactError, ModelError
from esa.eval import eval_step
from esa.model import load_model, source_hashes
from esa.progress import Silent
from esa.spec.sections import Model
from tests.conftest import build, make_tokenizer, model_fingerprint, tiny_spec
from tests.hub import Repo, StandIn, point_at, serving

SEEDS = {"main": 0, "v1": 1}


def section(**keys: Any) -> Model:
    """Return the section that names the stand-in's model."""
    return Model(**{"id": "org/tiny", "device": "cpu", **keys})


def refusal(model_id: str = "org/tiny", **keys: Any) -> str:
    """Return what a person reads when a model is refused, its id as <it>."""
    with pytest.raises(ModelError) as caught:
        load_model(section(id=model_id, **keys))
    assert caught.value.exit_code == 3
    return str(caught.value).replace(model_id, "<it>")


def save(folder: Path, seed: int, **config: Any) -> Path:
    """Save a tiny Llama in several files with an index, as large models lie on the hub."""
    build("llama", seed=seed).save_pretrained(folder, max_shard_size="10KB")
    make_tokenizer().save_pretrained(folder)
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a folder of files for each revision."""
    root = tmp_path_factory.mktemp("models")
    return {name: save(root / name, seed) for name, seed in SEEDS.items()}


@pytest.fixture
def hub(tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Serve a hub with the model ``org/tiny``: a branch main and a tag v1 of other weights."""
    with serving() as found:
        point_at(monkeypatch, found.url, tmp_path)
        for name, folder in folders.items():
            found.model("org/tiny").commit(folder, name)
        yield found


def repo(hub: StandIn) -> Repo:
    """Return the model's repository."""
    return hub.model("org/tiny")


def expected(revision: str) -> str:
    """Return the fingerprint of a revision's weights."""
    return model_fingerprint(build("llama", seed=SEEDS[revision]))


def noted(progress: Silent) -> list[str]:
    """Return the list that the progress puts its notes into."""
    notes: list[str] = []
    progress.note = notes.append  # type: ignore[method-assign]
    return notes


@pytest.mark.parametrize("revision", [None, "main", "v1"])
def test_a_revision_is_one_commit(revision: str | None, hub: StandIn) -> None:
    """Branch, tag or nothing: the weights are that commit's, and it is what facts, note and step inputs name."""
    asked = revision or "main"
    sha = repo(hub).names[asked]
    progress = Silent()
    notes = noted(progress)
    loaded = load_model(section(revision=revision), progress)
    assert loaded.facts["fingerprint"] == expected(asked)
    facts = [loaded.facts[key] for key in ("id", "revision", "revision_asked", "without_hub")]
    assert facts == ["org/tiny", sha, asked, None]
    assert notes == [f"loading org/tiny ({asked} = commit {sha}) as float32 on cpu (named by model.device)"]
    assert source_hashes("org/tiny", revision) == {"model": sha}


def test_every_file_is_of_the_one_commit(hub: StandIn) -> None:
    """Once the branch is resolved, every file is asked for by commit: configuration, shards, tokenizer and what is not there."""
    sha = repo(hub).names["main"]
    load_model(section())
    files = [path.split(" org/tiny/resolve/")[1] for path in hub.asked if "/resolve/" in path]
    by_name = {path for path in files if not path.startswith(f"{sha}/")}
    assert by_name == {"main/config.json"}
    fetched = {path.removeprefix(f"{sha}/") for path in files}
    assert {"model.safetensors.index.json", "model-00004-of-00004.safetensors", "tokenizer.json"} <= fetched


def test_a_branch_that_moves_moves_between_processes(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a process a branch stays what it was; the next one takes the new commit, and the step has another id."""
    spec = tiny_spec(model={"id": "org/tiny", "device": "cpu"})
    old, first = repo(hub).names["main"], eval_step(spec).id
    repo(hub).names["main"] = repo(hub).names["v1"]
    assert load_model(section()).facts["revision"] == old
    assert eval_step(spec).id == first
    point_at(monkeypatch, hub.url, tmp_path)
    assert load_model(section()).facts["fingerprint"] == expected("v1")
    assert eval_step(spec).id != first


def test_the_manifest_names_the_commit(hub: StandIn, tmp_path: Path) -> None:
    """An eval step of a hub model has the commit as input and in its manifest, with what was asked for."""
    spec = tiny_spec(model={"id": "org/tiny", "revision": "v1", "device": "cpu"})
    result = esa.eval.run(spec, root=tmp_path)
    manifest = json.loads((result.folder / "manifest.json").read_text())
    sha = repo(hub).names["v1"]
    assert manifest["inputs"]["model"] == sha
    assert (manifest["model"]["revision"], manifest["model"]["revision_asked"]) == (sha, "v1")
    again = esa.eval.run(spec, root=tmp_path, loaded=load_model(spec.model))
    assert again.reused  # a model that is at hand is of the same commit


WHYS = {"offline": "HF_HUB_OFFLINE is set", "down": "it answered 503"}


@pytest.mark.parametrize("way", WHYS)
def test_without_the_hub_the_cache_s_commit_is_named(
    way: str, hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, and with a hub that answers 503, a cached model is loaded, with a note of the commit and of why."""
    load_model(section())
    point_at(monkeypatch, hub.url, tmp_path, offline=way == "offline")
    hub.status = 503 if way == "down" else None
    hub.asked.clear()
    sha = repo(hub).names["main"]
    progress = Silent()
    notes = noted(progress)
    for revision, words in ((None, f"main = commit {sha}"), (sha, f"commit {sha}")):
        loaded = load_model(section(revision=revision), progress)
        assert (loaded.facts["fingerprint"], loaded.facts["without_hub"]) == (expected("main"), WHYS[way])
        assert notes.pop().startswith(
            f"loading org/tiny ({words} by the local cache, without the hub: {WHYS[way]}) as "
        )
    assert refusal(revision="v1") == OFFLINE
    assert refusal("org/other") == OFFLINE
    assert len(hub.asked) == (4 if way == "down" else 0)


def lay_out(home: Path, folders: dict[str, Path]) -> dict[str, str]:
    """Lay a cache out as the hub's library does, by hand: refs, snapshots of links, blobs. Return the commits."""
    home = home / "hub" / "models--org--tiny"
    commits = {"main": "a" * 40, "v1": "b" * 40}
    for name, sha in commits.items():
        for path in folders[name].iterdir():
            blob, link = home / "blobs" / f"{sha[:4]}{path.name}", home / "snapshots" / sha / path.name
            blob.parent.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(path.read_bytes())
            link.symlink_to(os.path.relpath(blob, link.parent))
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / name).write_text(sha, encoding="utf-8")
    return commits


def test_a_cache_from_elsewhere_is_enough(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that was copied to a machine without a network gives each revision its own weights, and refuses a third."""
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path, offline=True)
    commits = lay_out(tmp_path, folders)
    for revision in (None, "main", "v1"):
        loaded = load_model(section(revision=revision))
        assert loaded.facts["revision"] == commits[revision or "main"]
        assert loaded.facts["fingerprint"] == expected(revision or "main")
    assert load_model(section(revision="b" * 40)).facts["fingerprint"] == expected("v1")
    assert refusal(revision="v2") == OFFLINE
    (tmp_path / "hub/models--org--tiny/snapshots" / ("a" * 40) / "model-00002-of-00004.safetensors").unlink()
    assert refusal() == (
        "model.id: '<it>' lacks the file model-00002-of-00004.safetensors\nhint: its download may be incomplete"
    )


def test_an_unknown_revision_is_named(hub: StandIn) -> None:
    """A revision that the hub does not know is refused as such, whatever the cache holds."""
    load_model(section())
    assert refusal(revision="v2") == (
        "model.revision: '<it>' has no branch, tag or commit 'v2' on the hub\n"
        "hint: the model's page lists them under 'Files and versions'"
    )


def test_an_unknown_and_a_gated_model(hub: StandIn) -> None:
    """The hub's own answers tell an unknown model from one whose licence was not accepted."""
    assert refusal("org/other") == UNKNOWN
    repo(hub).gated = True
    assert refusal() == GATED


def test_no_weights_are_taken_from_elsewhere(hub: StandIn, tmp_path: Path) -> None:
    """A repository without safetensors is refused; no converted copy of another revision takes their place."""
    folder = save(tmp_path / "bare", 0)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    hub.model("org/bare").commit(folder)
    assert refusal("org/bare").startswith("model.id: '<it>' holds no model.safetensors\n")
    assert {path for path in hub.asked if "refs/pr" in path or "discussions" in path} == set()


def test_a_dry_run_asks_nobody(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing may be asked, a hub model has the commit that the cache or this process knows, or none."""
    with (
        without_network(),
        pytest.raises(ArtifactError, match="org/tiny is on the hub, which is asked when the step starts"),
    ):
        source_hashes("org/tiny")
    assert hub.asked == []
    source_hashes("org/tiny")
    point_at(monkeypatch, hub.url, tmp_path)
    hub.asked.clear()
    with without_network():
        assert source_hashes("org/tiny") == {"model": repo(hub).names["main"]}
        assert source_hashes("org/other", "c" * 40) == {"model": "c" * 40}
    assert hub.asked == []
    repo(hub).names["main"] = repo(hub).names["v1"]
    assert source_hashes("org/tiny") == {"model": repo(hub).names["v1"]}  # the guess was not kept


def test_from_the_shell(hub: StandIn, tmp_path: Path) -> None:
    """A whole command takes a hub model and a dataset from the endpoint, then from the cache with HF_HUB_OFFLINE, alike."""
    pytest.importorskip("datasets", reason="datasets is not installed: pip install 'esa[eval]'")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/test.txt").write_text("A line of the text, number after number.\n" * 30, encoding="utf-8")
    hub.dataset("org/texts").commit(tmp_path / "d")
    (tmp_path / "s.toml").write_text(
        'name = "t"\n[model]\nid = "org/tiny"\nrevision = "v1"\n[eval]\nsource = "hf:org/texts:test"\nwindows = 4\nlength = 16\n'
    )
    root = str(Path(__file__).parents[2])
    base = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**base, "PYTHONPATH": root, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "esa", "eval", "-s", "s.toml"]
    runs = {}
    for way, more in {"online": {"HF_ENDPOINT": hub.url}, "cached": {"HF_HUB_OFFLINE": "1"}}.items():
        done = subprocess.run(
            [*words, "-o", way], cwd=tmp_path, env={**environment, **more}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        runs[way] = (tmp_path / way / "eval.csv").read_bytes()
        assert f"v1 = commit {repo(hub).names['v1']}" in done.stderr
        assert ("without the hub: HF_HUB_OFFLINE is set" in done.stderr) == (way == "cached")
        assert done.stdout == f"{way}\n"
    assert runs["online"] == runs["cached"]


def answer(code: int) -> httpx2.Response:
    """Return an answer of the hub."""
    return httpx2.Response(code, request=httpx2.Request("GET", "https://huggingface.co/owner/model"))


def raised_from(error: Exception) -> Exception:
    """Return the OSError that transformers raises from an error of the hub."""
    outer = OSError("There was a specific connection error when trying to load owner/model")
    outer.__cause__ = error
    return outer


GATED = (
    "model.id: '<it>' is gated: its owner asks you to accept a licence\n"
    "hint: accept it on the model's page, then set HF_TOKEN to your access token"
)
UNKNOWN = (
    "model.id: '<it>' is no local folder, and the hub knows no such model or revision\n"
    "hint: check the spelling; a private model needs HF_TOKEN"
)
OFFLINE = (
    "model.id: '<it>' is no local folder, the hub does not answer, and the local cache does not hold it whole\n"
    "hint: check the network and HF_HUB_OFFLINE, or give a local folder or .gguf file"
)
HUB = {
    "gated": (lambda: GatedRepoError("403", response=answer(403)), GATED),
    "gated, through transformers": (lambda: raised_from(GatedRepoError("403", response=answer(403))), GATED),
    "gated, in words": (lambda: OSError("You are trying to access a gated repo.\nMake sure to have access"), GATED),
    "unknown": (lambda: RepositoryNotFoundError("access a private or gated repo", response=answer(404)), UNKNOWN),
    "unknown, through transformers": (
        lambda: raised_from(RepositoryNotFoundError("404", response=answer(404))),
        UNKNOWN,
    ),
    "down": (lambda: HfHubHTTPError("503", response=answer(503)), OFFLINE),
    "offline": (lambda: LocalEntryNotFoundError("no entry"), OFFLINE),
    "offline, through transformers": (lambda: raised_from(LocalEntryNotFoundError("no entry")), OFFLINE),
    "no network": (lambda: raised_from(httpx2.ConnectError("no route")), OFFLINE),
}


@pytest.mark.parametrize("case", HUB)
def test_the_hub_s_refusals_say_what_to_do(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gated model, an unknown one, and a hub that does not answer are told apart, each with the next action."""
    make, text = HUB[case]

    def refuse(*_: Any, **__: Any) -> None:
        raise make()

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr("esa.model.loading.pinned", lambda *_: Commit("0" * 40, "main"))
    assert refusal("owner/model") == text
    monkeypatch.undo()
    monkeypatch.setattr("esa.artifact.hub._answer", refuse)
    assert refusal("owner/model") == text
    with pytest.raises(ModelError) as caught:
        source_hashes("owner/model")
    assert str(caught.value).replace("owner/model", "<it>") == text
