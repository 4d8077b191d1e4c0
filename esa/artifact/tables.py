"""Read and write the standard tables: CSV and Parquet, files and pipes."""

import io
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import polars as pl

from esa.artifact.files import replacing
from esa.artifact.schemas import SCHEMAS
from esa.artifact.space import require_space
from esa.errors import ArtifactError

STDIO = "-"
FORMATS = ("csv", "parquet")
PARQUET = b"PAR1"
_ROW_GROUP = 1 << 18  # rows


@dataclass(frozen=True)
class Table:
    """A frame with the columns of its ``kind``, and what its file carries beside it.

    ``meta`` is text by name: ``run``, ``spec``, ``inputs``, ``version``, and for scores ``anatomy`` (JSON rows of
    parameter, layer, block, component, shape, numel, output_axis, input_axis, expert_axis, uses) and ``zeros`` (JSON rows
    of metric, seed, parameter, num_zero), so that a score table is complete also in a pipe.
    """

    kind: str
    frame: pl.DataFrame
    meta: Mapping[str, str] = field(default_factory=dict)


def make_table(
    kind: str,
    rows: pl.DataFrame | list[dict[str, object]],
    meta: Mapping[str, str] | None = None,
    *,
    source: str | None = None,
) -> Table:
    """Return ``rows`` as a table of ``kind``: its columns in order and typed, missing ones null.

    Raises ArtifactError, naming ``source`` (by default the kind), for a value of another type and for NaN or infinite
    numbers: the contract knows finite numbers and null.
    """
    schema = SCHEMAS[kind]
    place = f"{source}: {kind}" if source else kind
    frame = rows if isinstance(rows, pl.DataFrame) and rows.width else pl.DataFrame(rows, schema=schema, strict=False)
    try:
        frame = frame.select(
            (pl.col(name) if name in frame.columns else pl.lit(None)).cast(dtype).alias(name)
            for name, dtype in schema.items()
        )
    except pl.exceptions.PolarsError as error:
        raise ArtifactError(f"is no table of {kind}: {str(error).splitlines()[0]}", where=source or kind) from None
    for name, dtype in schema.items():
        if dtype in (pl.Float32, pl.Float64) and not frame[name].is_finite().fill_null(True).all():
            row = (~frame[name].is_finite().fill_null(True)).arg_max() or 0
            raise ArtifactError(f"row {row}: {frame[name][row]}; a number is finite or null", where=f"{place}: {name}")
    return Table(kind, frame, dict(meta or {}))


def write_table(table: Table, target: str | Path, format: str | None = None) -> None:
    """Write to a path, or to standard output for ``-``.

    The format follows the suffix, else ``format``, else CSV; scores on standard output default to Parquet.
    Raises ArtifactError, with nothing written, where the disk has less room than the file needs: known to the byte, or,
    of a Parquet file of several row groups, from its first.
    """
    if str(target) == STDIO:
        default = "parquet" if table.kind == "scores/1" else "csv"
        write_stdout(encode(table, format or default))
        return
    path = Path(target)
    suffix = path.suffix.lower().lstrip(".")
    chosen = suffix if suffix in FORMATS else (format or "csv")
    height, whole = table.frame.height, chosen != "parquet" or table.frame.height <= _ROW_GROUP
    data = encode(table if whole else Table(table.kind, table.frame.head(_ROW_GROUP), table.meta), chosen)
    require_space(path.parent, len(data) if whole else len(data) * height // _ROW_GROUP, path.name)
    with replacing(path) as temporary:
        if whole:
            temporary.write_bytes(data)
        else:
            _write_parquet(table, temporary)


def encode(table: Table, format: str) -> bytes:
    """Return the table as the bytes of a CSV (RFC 4180, null empty, shortest exact numbers) or Parquet file."""
    buffer = io.BytesIO()
    if format == "parquet":
        _write_parquet(table, buffer)
    else:
        buffer.write(table.frame.write_csv(line_terminator="\r\n").encode())
    return buffer.getvalue()


def _write_parquet(table: Table, target: BinaryIO | Path) -> None:
    meta = {"esa.kind": table.kind, **{f"esa.{key}": value for key, value in table.meta.items()}}
    table.frame.write_parquet(target, compression="zstd", metadata=meta, statistics=True, row_group_size=_ROW_GROUP)


def write_stdout(data: bytes) -> None:
    """Write bytes to standard output through a buffer, so that a short write cannot lose any."""
    sys.stdout.flush()
    try:
        descriptor = os.dup(sys.stdout.fileno())
    except io.UnsupportedOperation:  # standard output was replaced by an object in memory, which takes all there is
        sys.stdout.buffer.write(data)
        return
    with io.BufferedWriter(io.FileIO(descriptor, "w")) as out:
        out.write(data)


def read_bytes(source: str | Path) -> tuple[bytes, str]:
    """Return the bytes of a file or of standard input, and the name errors call it by."""
    if str(source) == STDIO:
        if sys.stdin is None:
            raise ArtifactError("standard input is closed; a table was expected from a pipe", where="-")
        if sys.stdin.isatty():
            raise ArtifactError("standard input is a terminal; a table was expected from a pipe", where="-")
        return sys.stdin.buffer.read(), "standard input"
    try:
        return Path(source).read_bytes(), str(source)
    except FileNotFoundError:
        raise ArtifactError("no such file", where=str(source)) from None
    except OSError as error:
        raise ArtifactError(f"cannot be read: {error.strerror}", where=str(source)) from None


def read_table(source: str | Path, kind: str, columns: list[str] | None = None) -> Table:
    """Read a table of ``kind`` from a path or ``-``: Parquet by its magic bytes, else CSV by its header.

    Raises ArtifactError if the file is missing, truncated, of another kind, or lacks a column.
    """
    data, name = read_bytes(source)
    return decode(data, kind, name, columns)


def decode(data: bytes, kind: str, name: str, columns: list[str] | None = None) -> Table:
    """Return the table that ``data`` holds. Raises ArtifactError, naming ``name``, if it holds none."""
    if not data:
        raise ArtifactError(f"is empty; a table of {kind} was expected", where=name)
    if data[:4] == PARQUET:
        return _decode_parquet(data, kind, name, columns)
    return _decode_csv(data, kind, name)


def _decode_parquet(data: bytes, kind: str, name: str, columns: list[str] | None) -> Table:
    if data[-4:] != PARQUET:
        raise ArtifactError("is a truncated Parquet file: its footer is missing", where=name)
    try:
        meta = pl.read_parquet_metadata(io.BytesIO(data))
        found = meta.get("esa.kind", kind)
        if found != kind:
            raise ArtifactError(f"holds {found} where {kind} was expected", where=name)
        frame = pl.read_parquet(io.BytesIO(data), columns=columns)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ArtifactError(f"cannot be read as Parquet: {str(error).splitlines()[0]}", where=name) from None
    _require_columns(frame.columns, kind, name, columns)
    carried = {
        key.removeprefix("esa."): value for key, value in meta.items() if key.startswith("esa.") and key != "esa.kind"
    }
    if columns is not None:
        return Table(kind, frame, carried)
    return make_table(kind, frame, carried, source=name)


def _decode_csv(data: bytes, kind: str, name: str) -> Table:
    schema = SCHEMAS[kind]
    header = csv_header(data, name)
    _require_columns(header, kind, name, None)
    if not data.endswith(b"\n"):
        raise ArtifactError("is truncated: its last line does not end", where=name)
    try:
        frame = pl.read_csv(
            io.BytesIO(data), schema_overrides=schema, infer_schema=False
        )  # "" is text, nothing is null
    except pl.exceptions.PolarsError as error:
        raise ArtifactError(f"cannot be read as CSV: {str(error).splitlines()[0]}", where=name) from None
    frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))  # what polars makes of an empty line
    return make_table(kind, frame, source=name)


def csv_header(data: bytes, name: str) -> list[str]:
    """Return the column names of a CSV text."""
    try:
        data.partition(b"\n")[0].decode()
        return pl.read_csv(io.BytesIO(data), n_rows=0, infer_schema=False).columns
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise ArtifactError(f"is neither Parquet nor CSV: {str(error).splitlines()[0]}", where=name) from None


def _require_columns(found: list[str], kind: str, name: str, columns: list[str] | None) -> None:
    missing = [column for column in (columns or SCHEMAS[kind]) if column not in found]
    if missing:
        raise ArtifactError(f"lacks {', '.join(missing)} of {kind}; it has {', '.join(found)}", where=name)


def finite(value: float | None) -> float | None:
    """Return a number, or None where it is NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None


def to_json(value: object) -> str:
    """Return compact JSON with sorted keys: the one text of a value, as ids and metadata need."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
