"""Describe any table: what kind it is, and what each of its columns holds."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from esa.artifact.schemas import SCHEMAS
from esa.artifact.tables import PARQUET, STDIO, csv_header, read_bytes
from esa.errors import ArtifactError
from esa.registry import suggest

_SUFFIXES = (".csv", ".parquet", "")
_TYPES = {
    pl.String: "text", pl.Int64: "int64", pl.Float64: "float64", pl.Float32: "float32", pl.Boolean: "boolean",
}  # fmt: skip
_FEW = 4  # distinct texts that are all named


@dataclass(frozen=True)
class AnyTable:
    """A table as it lies in a file: ``kind`` is None where esa knows none with its columns.

    ``lacks`` names the columns of ``kind`` that the file has not: it was written by another version.
    """

    name: str
    format: str
    kind: str | None
    lacks: tuple[str, ...]
    frame: pl.DataFrame
    meta: Mapping[str, str]
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Column:
    """What a column holds: ``low`` and ``high`` bound its values, ``few`` names them all where they are few texts."""

    name: str
    type: str
    nulls: int
    distinct: int
    low: object = None
    high: object = None
    few: tuple[str, ...] = ()


def read_any(source: str | Path, stated: str | None = None) -> AnyTable:
    """Read a CSV or Parquet table of any kind from a file or ``-``.

    The kind is the one that a Parquet file carries, else ``stated`` (by a manifest), else the one with just its columns.
    Raises ArtifactError for a file that is missing, truncated, or no table. Cost: one read of the whole file.
    """
    data, name = read_bytes(source)
    if not data:
        raise ArtifactError("is empty; a table was expected", where=name)
    parquet = data[: len(PARQUET)] == PARQUET
    suffix = "" if str(source) == STDIO else Path(source).suffix.lower()
    if not parquet and suffix not in _SUFFIXES:
        raise ArtifactError(
            f"'{suffix}' is no table's suffix; allowed: .csv, .parquet, -, the folder of a step or a run", where=name
        )
    frame, kind, meta = _parquet(data, name) if parquet else _csv(data, name, stated)
    kind = kind or stated
    lacks = tuple(column for column in SCHEMAS.get(kind or "", {}) if column not in frame.columns)
    digest = hashlib.sha256(data).hexdigest()
    return AnyTable(name, "Parquet" if parquet else "CSV", kind, lacks, frame, meta, len(data), digest)


def choose_columns(table: AnyTable, names: Sequence[str]) -> pl.DataFrame:
    """Return only the columns ``names``, in that order. Raises ArtifactError for one that the table has not."""
    for name in names:
        if name not in table.frame.columns:
            near = suggest(name, table.frame.columns)
            raise ArtifactError(
                f"'{name}' is no column of {table.name}{near}; it has {', '.join(table.frame.columns)}",
                where="--columns",
            )
    return table.frame.select(list(dict.fromkeys(names)))


def describe_columns(frame: pl.DataFrame) -> list[Column]:
    """Return what each column holds. Cost: one pass over the frame per column, and one hash of every value."""
    return [_column(frame[name]) for name in frame.columns]


def _column(values: pl.Series) -> Column:
    present = values.drop_nulls()
    type_ = _TYPES.get(values.dtype.base_type(), str(values.dtype))
    if values.dtype.is_nested():
        return Column(values.name, type_, values.null_count(), len(present))
    distinct = present.n_unique()
    column = Column(values.name, type_, values.null_count(), distinct, present.min(), present.max())
    if values.dtype != pl.String or distinct > _FEW:
        return column
    few = tuple(present.unique(maintain_order=True).to_list())
    return Column(values.name, type_, column.nulls, distinct, column.low, column.high, few)


def _parquet(data: bytes, name: str) -> tuple[pl.DataFrame, str | None, dict[str, str]]:
    if data[-len(PARQUET) :] != PARQUET:
        raise ArtifactError("is a truncated Parquet file: its footer is missing", where=name)
    try:
        meta = pl.read_parquet_metadata(io.BytesIO(data))
        frame = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ArtifactError(f"cannot be read as Parquet: {str(error).splitlines()[0]}", where=name) from None
    carried = {key.removeprefix("esa."): value for key, value in meta.items() if key.startswith("esa.")}
    return frame, carried.pop("kind", None), carried


def _csv(data: bytes, name: str, stated: str | None) -> tuple[pl.DataFrame, str | None, dict[str, str]]:
    header = csv_header(data, name)
    kind = stated or next((kind for kind, schema in SCHEMAS.items() if list(schema) == header), None)
    types = {name: dtype for name, dtype in SCHEMAS.get(kind or "", {}).items() if name in header}
    if kind is not None and not data.endswith(b"\n"):
        raise ArtifactError("is truncated: its last line does not end", where=name)
    try:
        frame = pl.read_csv(io.BytesIO(data), schema_overrides=types, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise ArtifactError(f"cannot be read as CSV: {str(error).splitlines()[0]}", where=name) from None
    return frame.filter(~pl.all_horizontal(pl.all().is_null())), kind, {}
