"""Where text comes from: the built-in corpora, files and datasets. Nothing ever falls back to other text."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from esa.artifact import sha256_of
from esa.data.dataset_texts import check_dataset, dataset_text
from esa.errors import DataError
from esa.registry import suggest
from esa.spec.texts import TextSource, parse_source

CORPORA: dict[str, str] = {
    "sentences": "10 sentences on machine learning",
    "dev_small": "52 sentences on many subjects, for quick runs",
    "prose": "varied prose for calibration: encyclopedic, news, fiction, dialogue, how-to, a little code",
    "prose_eval": "varied prose of the same kinds on other subjects, for evaluation",
}


@dataclass(frozen=True)
class Text:
    """A text, and what a manifest says of it beside its source: of a dataset its commit, config, rows and sha256."""

    content: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def load_text(source: str) -> Text:
    """Return the text of a source (see ``esa.spec.texts`` for the forms).

    Raises DataError, naming the source, if it is missing, out of reach, empty or not UTF-8. Cost: a file is read whole; a
    dataset's split is fetched once, and held in memory whole from then on if it came from the hub.
    """
    parts = _parse(source)
    if parts.kind == "hf":
        content, facts = dataset_text(source, parts)
        text = Text(content, facts)
    else:
        try:
            text = Text(_path(source, parts).read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"is not UTF-8: byte {error.start}", where=source) from None
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", where=source) from None
    if not text.content.strip():
        raise DataError("holds no text", where=source)
    return text


def read_source(source: str) -> str:
    """Return the text of a source alone. Raises DataError as ``load_text``."""
    return load_text(source).content


def source_hash(source: str, key: str = "") -> str:
    """Return what identifies a text in a step's id: the sha256 of its file, or of a dataset's text.

    ``key``: the spec key that names the source, for the error. Raises DataError as ``load_text``; ArtifactError for a
    dataset on the hub within ``esa.artifact.hub.without_network``.
    """
    with naming(key):
        parts = _parse(source)
        if parts.kind == "hf":
            return str(dataset_text(source, parts)[1]["text_sha256"])
        return sha256_of(_path(source, parts))


def check_source(source: str, key: str = "") -> None:
    """Raise DataError for a source that cannot work: no such text, file or folder, or a package that is not installed.

    Nothing is read and the network is not asked: a dataset on the hub may still turn out to be missing.
    """
    with naming(key):
        parts = _parse(source)
        if parts.kind == "hf":
            check_dataset(source, parts)
        else:
            _path(source, parts)


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Put the spec key in front of what a DataError names."""
    try:
        yield
    except DataError as error:
        if key and error.where and not error.where.startswith(f"{key}: "):
            error.where = f"{key}: {error.where}"
        raise


def _parse(source: str) -> TextSource:
    try:
        return parse_source(source)
    except ValueError as error:
        raise DataError(str(error)) from None


def _path(source: str, parts: TextSource) -> Path:
    """Return the file behind ``builtin:NAME`` or ``file:PATH``. Raises DataError if there is none."""
    if parts.kind == "builtin":
        if parts.name not in CORPORA:
            raise DataError(
                f"'{parts.name}' is not a built-in text{suggest(parts.name, list(CORPORA))}; known: {', '.join(CORPORA)}",
                where=source,
            )
        return Path(str(files("esa.data").joinpath("corpora", f"{parts.name}.txt")))
    path = Path(parts.name).expanduser()
    if not path.is_file():
        raise DataError("no such file", where=source)
    return path
