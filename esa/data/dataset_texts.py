"""``hf:`` texts: the rows of one field of one split of a dataset, on the hub or in a folder, joined by newlines."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from esa.artifact.hub import OFFLINE_VARIABLE, TOKEN_VARIABLE, Commit, cause, hushed, resolve, silent
from esa.errors import ArtifactError, DataError, EsaError
from esa.registry import suggest
from esa.spec.texts import TextSource

T = TypeVar("T")
_TEXT_TYPES = ("string", "large_string")
_BATCH = 10_000  # rows turned into Python at once
_held: dict[tuple[str, ...], tuple[str, Mapping[str, Any]]] = {}  # texts from the hub, by source, commit and cache


def check_dataset(source: str, parts: TextSource) -> None:
    """Raise DataError if ``datasets`` is not installed or a local folder is not there; the network is not asked."""
    if find_spec("datasets") is None:
        raise DataError("needs the package datasets", where=source, hint="pip install 'esa[eval]'")
    if parts.local:
        _local_folder(source, parts)


def dataset_text(source: str, parts: TextSource) -> tuple[str, Mapping[str, Any]]:
    """Return the rows of a dataset's field, joined by a newline, and what a manifest says of them.

    All rows of the split in their order, empty ones included; none may be null, and the field must hold text. A dataset on
    the hub is taken from one commit: the revision that was named, as the hub means it now (see ``esa.artifact.hub``).
    Only the split's own files are fetched, into the hub's cache, and kept as Arrow in ``datasets``' cache (``esa/``), from
    which they come when the hub does not answer: there is no other text to fall back to. Code of a dataset is never run.
    Raises DataError with what exists, if dataset, config, split or field do not; ArtifactError within ``without_network``.
    Cost: the split on disk twice, and its text in memory, held for the process; tokenising it takes minutes per GB, so prefer
    a small split (validation or test) over the train split of a web corpus.
    """
    check_dataset(source, parts)
    if parts.local:
        return _joined(source, parts, None)
    if silent():
        raise ArtifactError(f"{source} is fetched when the step starts", where=source)
    with _explained(source, parts):
        commit = resolve("dataset", parts.name, parts.revision)
    key = (source, commit.sha, str(_cache()))
    if key not in _held:
        _held[key] = _joined(source, parts, commit)
    return _held[key]


def dataset_rows(source: str, parts: TextSource) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """Return whole rows of a dataset's split, every field of them, and what a manifest says of them.

    For tasks, whose items have several fields; FIELD of the source is not read. ``rows_sha256``: of the rows as JSON, fields in
    the order of their names. Fetched, kept and refused as ``dataset_text``. Memory: the rows of the split.
    """
    check_dataset(source, parts)
    if not parts.local and silent():
        raise ArtifactError(f"{source} is fetched when the step starts", where=source)
    with _explained(source, parts):
        commit = None if parts.local else resolve("dataset", parts.name, parts.revision)
        rows, config = _rows(source, parts, commit, lambda found: [dict(row) for row in found])
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()
    return rows, {**_origin(commit), "config": config, "rows": len(rows), "rows_sha256": digest}


def _origin(commit: Commit | None) -> dict[str, Any]:
    if commit is None:
        return {}
    return {"revision": commit.sha, "revision_asked": commit.asked, "without_hub": commit.unasked}


def _joined(source: str, parts: TextSource, commit: Commit | None) -> tuple[str, Mapping[str, Any]]:
    with _explained(source, parts):
        rows, config = _rows(source, parts, commit, lambda found: _field(source, parts.field, found))
    missing = [number for number, row in enumerate(rows) if row is None]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(rows):,} rows are null, row {missing[0]} first: they are no text",
            where=source, hint="write the rows you mean to a file, and give file:PATH",
        )  # fmt: skip
    text = "\n".join(row for row in rows if row is not None)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text, {**_origin(commit), "config": config, "rows": len(rows), "text_sha256": digest}


def _rows(source: str, parts: TextSource, commit: Commit | None, take: Callable[[Any], T]) -> tuple[T, str]:
    """Return what ``take`` makes of the split, and the name of the config; only that split's files are read."""
    import datasets

    place: AbstractContextManager[str]
    if commit is None:
        folder, config = _local_folder(source, parts)
        path, place, alone = str(folder), TemporaryDirectory(), True
    else:
        config = parts.config
        # One folder per commit, config and split: what was prepared there is this very text, so nobody has to be asked.
        cache = _cache() / "esa" / commit.sha / (f"config-{config}" if config else "no-config") / parts.split
        path, place = f"hf://datasets/{parts.name}", nullcontext(str(cache))
        alone = commit.unasked is not None or next(cache.rglob("dataset_info.json"), None) is not None
    with place as cache_dir, _quiet(alone=alone):
        revision = commit.sha if commit else None
        try:
            builder = datasets.load_dataset_builder(path, config, revision=revision, cache_dir=cache_dir)
        except ValueError as error:
            raise _no_config(source, path, config, revision, error) from error
        if commit is not None and builder.hash != commit.sha:
            raise DataError(f"the cache holds {builder.hash}, not commit {commit.sha}", where=source)
        offered = builder.config.data_files or builder.info.splits or {}
        if parts.split not in offered:
            raise _missing(source, "split", parts.split, [str(name) for name in offered])
        if builder.config.data_files:
            builder.config.data_files = type(builder.config.data_files)({parts.split: offered[parts.split]})
        builder.download_and_prepare(verification_mode="no_checks")  # the sizes stated are those of all splits
        return take(builder.as_dataset(split=parts.split)), builder.config.name


def _field(source: str, field: str, found: Any) -> list[str | None]:
    """Return a field of every row. Raises DataError if there is none of that name, or it holds no text."""
    texts = [name for name, kind in found.features.items() if getattr(kind, "dtype", None) in _TEXT_TYPES]
    if field not in found.features:
        raise _missing(source, "field", field, texts)
    if field not in texts:
        raise DataError(
            f"field '{field}' holds no text, but {found.features[field]}; fields of text: {', '.join(texts) or 'none'}",
            where=source,
        )
    return [row for batch in found.select_columns([field]).iter(batch_size=_BATCH) for row in batch[field]]


def _local_folder(source: str, parts: TextSource) -> tuple[Path, str | None]:
    """Return the folder of a local dataset, and the config that its last part may name. Raises DataError if there is none."""
    path = Path(parts.name).expanduser()
    if path.is_dir():
        return path, None
    if not path.exists() and (path.parent / "README.md").is_file():  # where a dataset names its configs
        return path.parent, path.name
    raise DataError(f"'{parts.name}': no such folder", where=source)


def _missing(source: str, what: str, name: str, known: Sequence[str]) -> DataError:
    return DataError(
        f"has no {what} '{name}'{suggest(name, list(known))}; it has {', '.join(known) or 'none'}", where=source
    )


def _no_config(source: str, path: str, config: str | None, revision: str | None, error: ValueError) -> Exception:
    """Return what an error of a builder says of configs, or the error itself if it is about something else."""
    import datasets

    text = str(error)
    if "BuilderConfig" not in text and "Config name is missing" not in text:
        return error
    known = datasets.get_dataset_config_names(path, revision=revision)
    if config is None:
        return DataError(f"needs a config: one of {', '.join(known)}", where=source, hint="hf:DATASET/CONFIG:SPLIT")
    return _missing(source, "config", config, known)


def _cache() -> Path:
    """Return where ``datasets`` keeps what it prepared."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE).expanduser()


@contextmanager
def _quiet(*, alone: bool) -> Iterator[None]:
    """Silence the loading libraries and the count of downloads that they would send; ``alone``: without the hub."""
    import datasets

    bars, level = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    config = datasets.config
    before = config.HF_UPDATE_DOWNLOAD_COUNTS, config.HF_HUB_OFFLINE
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    config.HF_UPDATE_DOWNLOAD_COUNTS, config.HF_HUB_OFFLINE = False, alone or config.HF_HUB_OFFLINE
    try:
        with hushed():
            yield
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS, config.HF_HUB_OFFLINE = before
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


@contextmanager
def _explained(source: str, parts: TextSource) -> Iterator[None]:
    """Turn what the loading libraries raise over content into one DataError."""
    try:
        yield
    except EsaError:
        raise
    except Exception as error:
        raise _explanation(source, parts, error) from error


def _explanation(source: str, parts: TextSource, error: Exception) -> Exception:
    """Return what an error is about, or the error itself if it is no matter of content."""
    match cause(error):
        case "gated":
            return DataError(
                f"'{parts.name}' is gated: its owner asks you to accept its terms",
                where=source, hint=f"accept them on the dataset's page, then set {TOKEN_VARIABLE} to your access token",
            )  # fmt: skip
        case "revision":
            return DataError(f"'{parts.name}' has no branch, tag or commit '{parts.revision}' on the hub", where=source)
        case "unknown":
            folder = Path(parts.name)
            there = f"a folder is given as hf:./{parts.name}" if folder.is_dir() else "check the spelling"
            return DataError(
                f"the hub knows no dataset '{parts.name}'",
                where=source, hint=f"{there}; a private one needs {TOKEN_VARIABLE}",
            )  # fmt: skip
        case "offline":
            return DataError(
                "the hub does not answer, and the local cache does not hold this text",
                where=source, hint=f"check the network and {OFFLINE_VARIABLE}, or give a folder (hf:./...) or file:PATH",
            )  # fmt: skip
    text = str(error)
    if "scripts are no longer supported" in text:
        return DataError(
            f"'{parts.name}' is made by a Python script of its own, which is never run",
            where=source, hint="its page may offer a Parquet version: a revision such as @refs/convert/parquet",
        )  # fmt: skip
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"DatasetsError", "ArrowException", "OSError", "ValueError", "RuntimeError"}:
        reason = error.__cause__ or error
        first = next((line.strip() for line in str(reason).splitlines() if line.strip()), type(reason).__name__)
        return DataError(f"cannot be read: {first}", where=source)
    return error
