"""A step of a run: its id, its folder, its journal, and when it is complete."""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from esa.artifact.files import replacing, sha256_of, write_text
from esa.artifact.lock import Lock, acquire, busy, holder
from esa.artifact.manifest import MANIFEST as MANIFEST_NAME
from esa.artifact.manifest import command_line, environment, now, peak_memory_bytes, read_manifest, write_manifest
from esa.artifact.schemas import SCHEMA_VERSION
from esa.artifact.tables import Table, read_table, to_json, write_table
from esa.errors import ArtifactError, EsaError
from esa.registry import unread_keys
from esa.spec import Spec, dump_spec

OUTPUTS = Path("outputs")
JOURNAL = "cases.jsonl"
FAILED = "failed.json"
ID = re.compile(r"[0-9a-f]{12}")  # of a step
_MOST_WORDS = 2000  # characters of an error that are kept

# What each step reads of the spec: nothing else enters its id.
STEP_KEYS: dict[str, tuple[str, ...]] = {
    "score": ("model", "calibration", "score"),
    "rank": ("rank", "confirm.metric", "confirm.k", "confirm.draws"),
    "perturb": (
        *("model", "eval", "score.seeds", "rank.k", "rank.seeds", "rank.draws", "perturb"),
        *("confirm", "statistics"),
    ),
    "faults": ("model", "eval", "score.seeds", "faults", "statistics"),
    "truth": ("model", "eval", "score.seeds", "truth", "statistics"),
    "detector": ("model", "eval", "score.seeds", "statistics"),
    "overlap": ("overlap", "score.metrics", "rank.k"),  # the order of the lists, and K where overlap.k is not given
    "curve": ("overlap", "rank.k", "curve"),
    "eval": ("model", "eval"),
    "scale": (),  # what they are asked for enters their ids as inputs
    "arch": (),
    "report": ("name", "question"),
}
_LISTS = ("texts", "lengths", "seeds")  # of what esa eval alone measures
_TASK_KEYS = ("tasks", "task_sources", "task_items", "prompts", "new_tokens")
_NOT_READ = {
    ("rank", "rank"): ("seeds",),
    ("eval", "eval"): ("rewrites",),
    ("perturb", "eval"): ("texts", "lengths", "seeds"),
    ("faults", "eval"): (*_LISTS, *_TASK_KEYS, "rewrites"),
    ("truth", "eval"): (*_LISTS, *_TASK_KEYS),
    ("faults", "statistics"): ("resamples", "permutations", "margin", "fdr", "few_windows"),
    ("detector", "eval"): (*_LISTS, *_TASK_KEYS),
    ("detector", "statistics"): ("permutations", "fdr"),
    ("truth", "statistics"): ("permutations", "margin", "fdr", "few_windows"),
    ("eval", "model"): ("memory_budget",),
    ("perturb", "model"): ("memory_budget",),
    ("faults", "model"): ("memory_budget",),
    ("truth", "model"): ("memory_budget",),
    ("detector", "model"): ("memory_budget",),
}
_NEVER_READ = ("shape", "residency", "device_map")  # of the model: what predicts and is checked, and where weights are


def step_keys(step: str, spec: Spec) -> dict[str, Any]:
    """Return the resolved keys of ``spec`` that ``step`` reads."""
    tree = spec.model_dump(mode="json", exclude_none=True)
    keys: dict[str, Any] = {}
    unread = unread_keys(spec.score.metrics) if step == "score" else []
    if "probe_groups" in unread or spec.score.probe_groups != "auto":
        unread = [*unread, "memory_budget"]  # it sets the number of groups, and nothing else
    for dotted in STEP_KEYS[step]:
        section, _, key = dotted.partition(".")
        value = tree.get(section)
        if key:
            value = tree[section].get(key)  # none where it is not set
        elif isinstance(value, dict):
            value = {
                name: item
                for name, item in value.items()
                if name not in (*_NOT_READ.get((step, section), ()), *_NEVER_READ, *unread)
            }
        keys[dotted] = value
    return keys


def readers(dotted: str) -> list[str]:
    """Return the steps that read a key of the spec, such as ``rank.k``; all of them for ``name``, which names their folder."""
    section, _, key = dotted.partition(".")
    if dotted == "name":
        return list(STEP_KEYS)
    if key in _NEVER_READ:
        return []
    return [
        step
        for step, keys in STEP_KEYS.items()
        if dotted in keys or (section in keys and key not in _NOT_READ.get((step, section), ()))
    ]


def step_id(step: str, keys: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the first 12 hex of sha256 over step, schema version, the keys it reads, and its inputs' hashes or ids."""
    text = to_json({"step": step, "schema": SCHEMA_VERSION, "keys": dict(keys), "inputs": dict(inputs)})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def result_hash(manifest: Mapping[str, Any]) -> str:
    """Return the sha256 over the hashes of a finished step's tables: the same wherever it came out the same."""
    return hashlib.sha256(to_json(manifest.get("outputs")).encode()).hexdigest()


class Step:
    """The folder of one step, from its opening to its manifest.

    ``inputs`` maps a name to the sha256 of a file or the id of an upstream step. ``folder`` defaults to
    ``outputs/<name>/<step>-<id>``. From ``begin`` to ``finish``, ``fail`` or ``abandon`` the folder is locked.
    """

    def __init__(
        self, step: str, spec: Spec, inputs: Mapping[str, str], *, root: Path = OUTPUTS, folder: Path | None = None
    ) -> None:
        self.step, self.spec, self.inputs = step, spec, dict(inputs)
        self.keys = step_keys(step, spec)
        self.id = step_id(step, self.keys, self.inputs)
        self.folder = folder if folder is not None else root / spec.name / f"{step}-{self.id}"
        self._started = time.perf_counter()
        self._lock: Lock | None = None
        self._upstream: dict[str, str] = {}

    @property
    def complete(self) -> bool:
        """Tell whether this very step was finished here before.

        Raises ArtifactError if it was not and another process is writing it, so that a command fails before it loads a
        model, and if the folder was asked for by name and holds another finished step.
        """
        if self._finished():
            return True
        other = holder(self.folder)
        if other is not None and other.pid != os.getpid() and not self._finished():  # finished between the two looks
            raise busy(self.folder, other)
        return self._finished()

    def reusable(self, *, force: bool) -> bool:
        """Tell whether what is there is to be taken over: the step is ``complete``, and not to be computed again.

        Raises ArtifactError as ``complete`` does; with ``force`` only if another process is writing the step.
        """
        if not force:
            return self.complete
        other = holder(self.folder)
        if other is not None and other.pid != os.getpid():
            raise busy(self.folder, other)
        return False

    def _clear(self) -> None:
        """Take away the tables that the manifest names, then the manifest: another step's would stay unnamed."""
        try:
            names = read_manifest(self.folder).get("kinds", {})
        except ArtifactError:  # no manifest, or none that can be read: nothing is named
            names = {}
        (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
        for name in names:
            path = self.folder / name
            if path.resolve().is_relative_to(self.folder.resolve()):
                path.unlink(missing_ok=True)

    def _finished(self) -> bool:
        if not (self.folder / MANIFEST_NAME).exists():
            return False
        found = read_manifest(self.folder)
        if found.get("run") != self.id:
            raise ArtifactError(
                f"holds {found.get('step')}-{found.get('run')}, not {self.step}-{self.id}",
                where=str(self.folder),
                hint="give another folder with -o, or --force to write over it",
            )
        return True

    def begin(self, *, force: bool = False, since: float | None = None) -> bool:
        """Lock the folder, make it this step's, and write the resolved spec.

        Returns False, with nothing touched and nothing locked, where the step is complete: another process finished it
        after ``complete`` was asked for, and what it wrote is to be reused. ``force`` takes away what was there before;
        the journal of another step that was killed here goes anyway, and so does the mark of a failure.
        ``since``: when the work began (``time.perf_counter``), of a step that writes once all is measured; now by default.
        Raises ArtifactError, with nothing touched, if another process writes the step, or the folder cannot be written to.
        """
        lock = acquire(self.folder)
        try:
            if not force and self._finished():
                lock.release()
                return False
            path, opening = self.folder / "spec.toml", f"# {self.step}-{self.id}\n"
            ours = path.is_file() and path.read_text(encoding="utf-8").startswith(opening)
            if force:
                self._clear()
            if force or not ours:
                (self.folder / JOURNAL).unlink(missing_ok=True)
            (self.folder / FAILED).unlink(missing_ok=True)
            write_text(path, opening + dump_spec(self.spec))
        except BaseException:
            lock.release()
            raise
        self._lock, self._started = lock, time.perf_counter() if since is None else since
        self._upstream = self._results_upstream()
        if (begun := _BEGUN.get()) is not None:
            begun.append(self)
        return True

    def _results_upstream(self) -> dict[str, str]:
        """Return what each upstream step holds now, by its id, so that another result of it is noticed later."""
        homes = (self.folder.parent, OUTPUTS / self.spec.name)
        found: dict[str, str] = {}
        for run in (value for value in self.inputs.values() if ID.fullmatch(value)):
            for folder in (path for home in homes for path in home.glob(f"*-{run}")):
                with suppress(ArtifactError):  # not finished: it was not read either
                    found.setdefault(run, result_hash(read_manifest(folder)))
        return found

    def release(self) -> None:
        """Give up the lock; the step stays as it is."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def fail(self, error: Exception) -> None:
        """Mark a step that was begun and not finished as failed, with the error's words, and unlock it."""
        if self._lock is None:
            return
        words = "; ".join(error.lines()) if isinstance(error, EsaError) else f"{type(error).__name__}: {error}"
        content = {"step": self.step, "run": self.id, "failed": now(), "error": words[:_MOST_WORDS]}
        with suppress(EsaError):  # on a full disk, say: the error that is on its way matters more
            write_json(self.folder / FAILED, content)
        self.release()

    def abandon(self, *, unless: Path) -> None:
        """Take the folder away again after an error over content, ``unless`` finished work lies in it.

        Where it stays, so do the lock and the duty to ``fail`` or ``finish``.
        """
        if not unless.exists():
            (self.folder / "spec.toml").unlink(missing_ok=True)
            self.release()
            with suppress(OSError):  # it holds something of somebody's
                self.folder.rmdir()

    def meta(self, **more: str) -> dict[str, str]:
        """Return what the step's Parquet files carry."""
        spec = {"name": self.spec.name, **self.keys}
        return {
            "run": self.id,
            "spec": to_json(spec),
            "inputs": to_json(self.inputs),
            "version": str(SCHEMA_VERSION),
            **more,
        }

    def write(self, table: Table, name: str) -> Path:
        """Write a table of this step and return its path."""
        path = self.folder / name
        write_table(table, path)
        return path

    def finish(self, *, tables: Mapping[str, str], warnings: Iterable[str] = (), **content: Any) -> None:
        """Write the manifest and unlock: ``tables`` maps a file name to its kind."""
        write_manifest(
            self.folder,
            {
                "step": self.step,
                "run": self.id,
                "kinds": dict(tables),
                "created": now(),
                "argv": command_line(),
                **environment(),
                "spec": self.spec.model_dump(mode="json", exclude_none=True),
                "inputs": self.inputs,
                "upstream": self._upstream,
                "outputs": {name: sha256_of(self.folder / name) for name in tables},
                "sizes": {name: (self.folder / name).stat().st_size for name in tables},
                **content,
                "seconds": round(time.perf_counter() - self._started, 3),
                "peak_memory_bytes": peak_memory_bytes(),
                "warnings": list(dict.fromkeys(warnings)),
            },
        )
        self.release()


_BEGUN: ContextVar[list[Step] | None] = ContextVar("begun", default=None)


@contextmanager
def marking_failures() -> Iterator[None]:
    """Mark the steps that are begun within as failed if an error leaves them unfinished; unlock them in any case.

    What a user or the system breaks off (KeyboardInterrupt, SystemExit) is unlocked and not marked: such a step is
    incomplete and goes on where it stopped. ``@marking_failures()`` above a ``run`` covers every call of it.
    """
    begun: list[Step] = []
    token = _BEGUN.set(begun)
    try:
        yield
    except Exception as error:
        for step in begun:
            step.fail(error)
        raise
    finally:
        _BEGUN.reset(token)
        for step in begun:
            step.release()


class Journal:
    """Keep one flushed line of JSON per finished case; a killed step reads it and goes on behind it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        if path.exists():
            whole = []
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n"):
                    break  # the line that was being written when the process died
                whole.append(line)
                try:
                    entry = json.loads(line)
                    self.done[entry["key"]] = entry
                except (ValueError, KeyError, TypeError):
                    raise ArtifactError(
                        "is not a line of the journal",
                        where=f"{path}:{len(whole)}",
                        hint="start the step afresh with --force",
                    ) from None
            write_text(path, "".join(whole))

    def append(self, key: str, entry: dict[str, Any]) -> None:
        """Add a finished case."""
        self.done[key] = {"key": key, **entry}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(self.done[key]) + "\n")
            file.flush()


def find_table(source: str | Path, kind: str, columns: list[str] | None = None) -> Table:
    """Read the table of ``kind`` from a step folder, a table file, or standard input."""
    path = Path(source)
    if str(source) != "-" and path.is_dir():
        return read_table(table_path(path, kind), kind, columns)
    return read_table(source, kind, columns)


def table_path(folder: Path, kind: str) -> Path:
    """Return the path of the finished step's table of ``kind``. Raises ArtifactError if the step has none."""
    manifest = read_manifest(folder)
    for name, found in manifest["kinds"].items():
        if found == kind:
            return folder / str(name)
    raise ArtifactError(
        f"is a {manifest['step']} step and holds {', '.join(manifest['kinds'].values())}, not {kind}", where=str(folder)
    )


def verified_path(folder: Path, kind: str) -> Path:
    """Return the path of a finished step's table, its bytes those that the step wrote.

    Raises ArtifactError if the step has no such table, or the file is missing or was changed since. Cost: one read.
    """
    path = table_path(folder, kind)
    if not path.is_file():
        raise ArtifactError(
            "no such file, though its step is finished", where=str(path), hint="--force computes it again"
        )
    if sha256_of(path) != read_manifest(folder)["outputs"].get(path.name):
        raise ArtifactError(
            "was changed since its step wrote it: its sha256 is another",
            where=str(path),
            hint="--force computes it again",
        )
    return path


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with finite numbers or null, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
