"""Read what a person says of the runs: a CSV of family, variant and exclusions, which go before what manifests say."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esa.errors import ArtifactError
from esa.registry import suggest

COLUMNS = ("run", "family", "variant", "exclude")


@dataclass(frozen=True)
class Override:
    """What a line says of one run: None where its field is empty. ``exclude``: why it stands in no fit."""

    family: str | None = None
    variant: str | None = None
    exclude: str | None = None


def read_models(path: Path) -> dict[str, Override]:
    """Return the overrides by the run's label, from a CSV with a header: ``run`` and any of ``family, variant, exclude``.

    ``exclude``: empty to keep the run, else the reason to leave it out. Raises ArtifactError, with file and line, for a file
    that cannot be read, an unknown column, a line without a run or with too many fields, and a run that stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ArtifactError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"cannot be read: {error}", where=str(path)) from None
    try:
        return dict(_overrides(path, text))
    except csv.Error as error:
        raise ArtifactError(f"is no CSV: {error}", where=str(path)) from None


def _overrides(path: Path, text: str) -> Iterator[tuple[str, Override]]:
    rows = csv.reader(text.splitlines())
    header = [name.strip() for name in next(rows, [])]
    for name in header:
        if name not in COLUMNS:
            raise ArtifactError(
                f"column '{name}'{suggest(name, list(COLUMNS))}; known: {', '.join(COLUMNS)}", where=f"{path}:1"
            )
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ArtifactError(f"column '{twice}' stands here a second time", where=f"{path}:1")
    if "run" not in header:
        raise ArtifactError(f"has no column 'run'; known: {', '.join(COLUMNS)}", where=f"{path}:1")
    seen = set()
    for fields in rows:
        where = f"{path}:{rows.line_num}"
        if not any(field.strip() for field in fields):
            continue
        if len(fields) > len(header):
            raise ArtifactError(f"{len(fields)} fields under {len(header)} columns", where=where)
        row = {name: field.strip() for name, field in zip(header, fields, strict=False)}
        if not row["run"]:
            raise ArtifactError("names no run", where=where)
        if row["run"] in seen:
            raise ArtifactError(f"'{row['run']}' stands here a second time", where=where)
        seen.add(row["run"])
        yield row["run"], Override(*(row.get(name) or None for name in COLUMNS[1:]))
