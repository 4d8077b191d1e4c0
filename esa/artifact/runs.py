"""Read the runs of an outputs folder: which steps are complete, incomplete, failed or stale, and why."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from esa.artifact.files import sha256_of
from esa.artifact.lock import Holder, holder
from esa.artifact.manifest import MANIFEST, read_manifest
from esa.artifact.steps import FAILED, ID, OUTPUTS, STEP_KEYS, result_hash
from esa.errors import ArtifactError, EsaError

RUN_FILE = "run.json"
Status = Literal["complete", "incomplete", "failed", "stale"]
Hash = Callable[[str], str]

_OPENING = re.compile(r"# ([a-z]+)-([0-9a-f]{12})\n")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHORT = 12  # digits of a hash that a person is shown


@dataclass(frozen=True)
class StepState:
    """One step folder as it lies on the disk.

    ``when``: finished, failed, or last written to (UTC, ISO). ``why``: what a status other than complete comes from.
    ``writer``: the process that was writing it when it was looked at.
    """

    folder: Path
    step: str
    id: str
    status: Status
    why: str
    num_bytes: int
    when: str
    manifest: Mapping[str, Any] = field(default_factory=dict)
    writer: Holder | None = None

    @property
    def home(self) -> Path:
        """Return the folder of the step's run; of a step that ``-o`` put into a folder of its own, that folder."""
        return self.folder.parent if self.folder.name == f"{self.step}-{self.id}" else self.folder

    @property
    def running(self) -> bool:
        """Tell whether a process was writing the step."""
        return self.writer is not None

    @property
    def seconds(self) -> float | None:
        """Return how long the step took; None where it is not finished."""
        return self.manifest.get("seconds")


@dataclass(frozen=True)
class Check:
    """How closely a step is looked at.

    ``verify`` hashes every table, text and model again; otherwise a file is hashed where its size is as it was and its
    time is not, and models are taken by their time alone. ``text_hash`` gives the sha256 of a text source, ``model_hash``
    what identifies a local model; without them that is not looked at. Both raise EsaError where there is none.
    """

    verify: bool = False
    text_hash: Hash | None = None
    model_hash: Hash | None = None


def read_steps(folder: str | Path, check: Check | None = None) -> list[StepState]:
    """Return every step in ``folder``: an outputs folder, the folder of one run, or of one step.

    Runs come in the order of their last step, the steps of a run in that of the pipeline. A step is *incomplete* where it
    has neither a manifest nor the mark of a failure (``why`` says whether a process is writing it); *failed* where an error
    ended it, or its own check did not hold; *stale* where it is finished, but one of its tables is gone or changed, or
    what it was made from is: an upstream step that is gone, computed again with another result, or not complete itself,
    a text, or a local model. Cost: one look at every file, one read of each text, and of what ``check`` says.
    Raises ArtifactError if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError("no such folder", where=str(folder))
    found = [one for path in _step_folders(folder) if (one := _first_look(path)) is not None]
    judge = _Judge(folder, found, check or Check())
    states = [judge.state(one) for one in found]
    last: dict[Path, str] = {}
    for state in states:
        last[state.folder.parent] = max(state.when, last.get(state.folder.parent, ""))
    order = {step: place for place, step in enumerate(STEP_KEYS)}
    return sorted(
        states,
        key=lambda one: (last[one.folder.parent], str(one.folder.parent), order.get(one.step, 99), one.when, one.id),
    )


def is_step(folder: Path) -> bool:
    """Tell whether a folder is that of a step, finished or only begun."""
    return _identity(folder) is not None


def dependents(states: Iterable[StepState], chosen: Iterable[StepState]) -> list[StepState]:
    """Return the finished steps that were made from a chosen one and are not chosen themselves, also by way of others."""
    chosen, found = list(chosen), list[StepState]()
    rest = [one for one in states if one not in chosen]
    gone = {one.id for one in chosen} - {one.id for one in rest}  # another run may hold the same step
    while more := [one for one in rest if one not in found and gone & set(_inputs(one.manifest).values())]:
        found += more
        gone |= {one.id for one in more}
    return found


def run_file(folder: Path) -> dict[str, Any]:
    """Return what ``run.json`` of a run's folder says; nothing where there is none that can be read."""
    try:
        content = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _step_folders(folder: Path) -> list[Path]:
    if is_step(folder):
        return [folder]
    below = _folders(folder)
    deeper = [inner for path in below if not is_step(path) for inner in _folders(path)]
    return [path for path in (*below, *deeper) if is_step(path)]


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except (PermissionError, FileNotFoundError):  # somebody else's, or taken away just now
        return []


def _identity(folder: Path) -> tuple[str, str] | None:
    """Return step and id as the manifest gives them, or the opening line of ``spec.toml``."""
    try:
        manifest = read_manifest(folder)
        if isinstance(manifest.get("run"), str):
            return str(manifest["step"]), str(manifest["run"])
    except ArtifactError:  # not finished, or not readable
        pass
    try:
        with (folder / "spec.toml").open(encoding="utf-8") as file:
            opening = _OPENING.fullmatch(file.readline(100))
    except (OSError, UnicodeDecodeError):
        return None
    return (opening[1], opening[2]) if opening else None


def _first_look(folder: Path) -> StepState | None:
    """Return a step by what lies in its own folder, its tables and inputs unchecked; None where it went away meanwhile."""
    if (identity := _identity(folder)) is None:
        return None
    files = _files(folder)
    num_bytes = sum(file.st_size for file in files)
    touched = max((file.st_mtime for file in files), default=0.0)
    when = datetime.fromtimestamp(touched, UTC).isoformat(timespec="seconds")

    def state(status: Status, why: str, when: str = when, manifest: Mapping[str, Any] | None = None) -> StepState:
        return StepState(folder, *identity, status, why, num_bytes, when, manifest or {})

    if not (folder / MANIFEST).exists():
        if (writer := holder(folder)) is not None:
            return replace(state("incomplete", f"running ({writer})"), writer=writer)
        try:
            failure = json.loads((folder / FAILED).read_text(encoding="utf-8"))
            return state("failed", " ".join(str(failure["error"]).split()), str(failure["failed"]))
        except FileNotFoundError:
            return state("incomplete", "stopped before its end; the same command goes on from there")
        except (OSError, ValueError, KeyError, TypeError) as error:
            return state("failed", f"{FAILED} cannot be read: {error}")
    try:
        manifest = read_manifest(folder)
    except ArtifactError as error:
        return state("failed", f"{MANIFEST} {error.what}")
    when = str(manifest.get("created", when))
    checksum = manifest.get("checksum")
    if isinstance(checksum, dict) and checksum.get("restored") is False:
        return state("failed", "its checksum changed: a perturbation was not restored", when, manifest)
    return state("complete", "", when, manifest)


def _files(folder: Path) -> list[os.stat_result]:
    """Return size and time of every file below a folder, but for those that a process is just taking away."""
    found = []
    for home, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found.append((Path(home) / name).lstat())
    return found


def _inputs(manifest: Mapping[str, Any]) -> dict[str, str]:
    found = manifest.get("inputs")
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


class _Judge:
    """Hold finished steps to their tables and to what they were made from; each file and step is looked at once."""

    def __init__(self, folder: Path, found: Iterable[StepState], check: Check) -> None:
        self.check = check
        self.folder = folder
        self.found = list(found)
        self.elsewhere: dict[str, StepState | None] = {}
        self.judged: dict[Path, StepState] = {}
        self.hashed: dict[tuple[Hash, str], str] = {}

    def state(self, one: StepState) -> StepState:
        """Return the step with its last status."""
        if one.status != "complete":
            return one
        if one.folder not in self.judged:
            self.judged[one.folder] = one  # should inputs ever go round in a circle
            why = self._tables(one) or self._made_from(one)
            if why:
                self.judged[one.folder] = replace(one, status="stale", why=why)
        return self.judged[one.folder]

    def _tables(self, one: StepState) -> str:
        """Return which of a step's files is not the one that its manifest vouches for."""
        outputs, sizes = one.manifest.get("outputs"), one.manifest.get("sizes")
        sizes = sizes if isinstance(sizes, dict) else {}
        name = MANIFEST
        try:
            written = (one.folder / MANIFEST).stat().st_mtime_ns
            for name, expected in outputs.items() if isinstance(outputs, dict) else ():
                path = one.folder / str(name)
                state = path.stat()
                if state.st_size != sizes.get(name, state.st_size):
                    return f"{name} was changed: {state.st_size:,} bytes where its step wrote {sizes[name]:,}"
                if (self.check.verify or state.st_mtime_ns > written) and sha256_of(path) != expected:
                    return f"{name} was changed: its sha256 is another"
        except FileNotFoundError:
            return f"{name} is gone"
        return ""

    def _made_from(self, one: StepState) -> str:
        """Return which of a step's inputs is gone or another now."""
        spec = one.manifest.get("spec")
        for name, value in _inputs(one.manifest).items():
            why = ""
            if ID.fullmatch(value):
                why = self._upstream(one, name, value)
            elif _SHA256.fullmatch(value) and isinstance(spec, dict):
                why = self._model(one, spec, value) if name == "model" else self._text(spec, name, value)
            if why:
                return why
        return ""

    def _upstream(self, one: StepState, name: str, run: str) -> str:
        found = self._find(one, run)
        kind = {"ranking": "rank"}.get(name, name.rpartition(":")[2])
        label = f"{kind if kind.endswith(run) else f'{kind}-{run}'}, which it was made from,"
        if found is None:
            return f"{label} is gone"
        if found.status != "complete":
            return f"{label} is {found.status}"
        known = one.manifest.get("upstream")
        if isinstance(known, dict) and run in known:
            return "" if known[run] == result_hash(found.manifest) else f"{label} has another result now"
        return f"{label} was computed again on {found.when[:10]}" if found.when > one.when else ""

    def _find(self, one: StepState, run: str) -> StepState | None:
        """Return a step by its id; where several runs hold it, the one of the same run, then one that is complete."""
        same = [self.state(other) for other in self.found if other.id == run]
        if not same:
            return self._elsewhere(one, run)
        beside = [other for other in same if other.folder.parent == one.folder.parent]
        return next((other for other in (*beside, *same) if other.status == "complete"), (*beside, *same)[0])

    def _elsewhere(self, one: StepState, run: str) -> StepState | None:
        """Return a step outside the folder at hand: beside it, in the outputs folder, or in a folder that its command named."""
        if run in self.elsewhere:
            return self.elsewhere[run]
        near = [self.folder, *(path for path in one.folder.absolute().parents[:2])]
        words = one.manifest.get("argv")
        named = [Path(str(word)) for word in words if os.path.isdir(str(word))] if isinstance(words, list) else []
        homes = [*near, OUTPUTS, *(path.parent / OUTPUTS for path in near), *named]
        paths = [path for home in homes for path in (*home.glob(f"*-{run}"), *home.glob(f"*/*-{run}"))]
        found = None
        for path in (*named, *paths):
            if (one_there := _first_look(path)) is not None and one_there.id == run:
                found = self.state(one_there)
                break
        self.elsewhere[run] = found
        return found

    def _text(self, spec: Mapping[str, Any], name: str, expected: str) -> str:
        section = spec.get(name)
        source = str(section.get("source")) if isinstance(section, dict) else name
        if self.check.text_hash is None or not source.startswith(("file:", "builtin:")):
            return ""
        try:
            found = self._hash(self.check.text_hash, source)
        except EsaError as error:
            return f"its text {source}: {error.what}"
        return "" if found == expected else f"its text {source} is another now: sha256 {found[:_SHORT]}..."

    def _model(self, one: StepState, spec: Mapping[str, Any], expected: str) -> str:
        section = spec.get("model")
        name = str(section.get("id")) if isinstance(section, dict) else ""
        path = Path(name).expanduser()
        if not path.exists() and (path.suffix == ".gguf" or name.startswith((".", "/", "~"))):
            return f"its model {name} is gone"
        if self.check.model_hash is None or not (self.check.verify or _newer(path, one.when)):
            return ""
        try:
            found = self._hash(self.check.model_hash, name)
        except EsaError as error:
            return f"its model {name}: {error.what}"
        return "" if found == expected else f"its model {name} has other files now"

    def _hash(self, hash: Hash, name: str) -> str:
        if (hash, name) not in self.hashed:
            self.hashed[hash, name] = hash(name)
        return self.hashed[hash, name]


def _newer(path: Path, when: str) -> bool:
    """Tell whether a model's files were written to after ``when``."""
    files = [path] if path.is_file() else list(path.iterdir()) if path.is_dir() else []
    latest = max((file.stat().st_mtime for file in files), default=0.0)
    return datetime.fromtimestamp(latest, UTC).isoformat(timespec="seconds") > when
