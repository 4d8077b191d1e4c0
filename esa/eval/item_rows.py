"""The rows of a task: JSON lines of a file, or rows of a dataset's split. Nothing ever falls back to other items."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esa.artifact import sha256_of
from esa.artifact.hub import Commit
from esa.data.dataset_texts import check_dataset, dataset_rows
from esa.data.sources import naming
from esa.errors import DataError
from esa.progress import Progress
from esa.spec.texts import TextSource, parse_source

_LINE = 80  # characters of a line that an error shows


@dataclass(frozen=True)
class Rows:
    """Rows in their order, and what a manifest says of them beside the source."""

    rows: list[dict[str, Any]]
    facts: Mapping[str, Any]


def read_rows(source: str, key: str = "", progress: Progress | None = None) -> Rows:
    """Return the rows of ``file:PATH``, one JSON object a line, or of ``hf:DATASET:SPLIT``, every field of them.

    ``key``: the spec key that names the source, for errors. Raises DataError, with the line, for what is missing, empty, no
    JSON object, or not UTF-8.
    """
    with naming(key):
        parts = _parsed(source)
        if parts.kind == "hf":
            rows, facts = dataset_rows(source, parts)
            if "revision" in facts and progress is not None:
                commit = Commit(facts["revision"], facts["revision_asked"], facts["without_hub"])
                progress.note(f"{source}: {commit.words()}")
            return Rows(rows, facts)
        path = _path(source, parts)
        try:
            # Not splitlines: a string in JSON may hold other line ends, U+2028 and U+0085 among them, as they are.
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"is not UTF-8: byte {error.start}", where=source) from None
        found = [_row(line, source, number) for number, line in enumerate(lines, start=1) if line.strip()]
        if not found:
            raise DataError("holds no item", where=source)
        return Rows(found, {"rows": len(found), "rows_sha256": sha256_of(path)})


def rows_hash(source: str, key: str = "") -> str:
    """Return what identifies rows in a step's id: the sha256 of their file, or of a dataset's rows. Raises as ``read_rows``."""
    with naming(key):
        parts = _parsed(source)
        return (
            str(dataset_rows(source, parts)[1]["rows_sha256"])
            if parts.kind == "hf"
            else sha256_of(_path(source, parts))
        )


def check_rows(source: str, key: str = "") -> None:
    """Raise DataError for a source that cannot work; nothing is read and the network is not asked."""
    with naming(key):
        parts = _parsed(source)
        if parts.kind == "hf":
            check_dataset(source, parts)
        else:
            _path(source, parts)


def _parsed(source: str) -> TextSource:
    try:
        parts = parse_source(source)
    except ValueError as error:
        raise DataError(str(error)) from None
    if parts.kind == "builtin":
        raise DataError(
            "is a text; a task's items come from file:PATH (JSON lines) or hf:DATASET[/CONFIG][@REVISION]:SPLIT",
            where=source,
        )
    return parts


def _path(source: str, parts: TextSource) -> Path:
    path = Path(parts.name).expanduser()
    if not path.is_file():
        raise DataError("no such file", where=source)
    return path


def _row(line: str, source: str, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DataError(
            f"is no JSON object: {line[:_LINE]!r}", where=f"{source}:{number}", hint='one item a line: {"text": "..."}'
        )
    return found
