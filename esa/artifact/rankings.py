"""Read a ranking: the standard table, or an older list of top weights under its own column names."""

import csv
import io
import math
import re
from pathlib import Path

import polars as pl

from esa.artifact.schemas import SCHEMAS
from esa.artifact.steps import verified_path
from esa.artifact.tables import Table, csv_header, decode, make_table, read_bytes
from esa.errors import ArtifactError

_PARAMETER = ("parameter", "parameter_name", "layer")
_INDEX = ("index", "indices")
_SCORE = ("sensitivity_score", "sensitivity", "score")
_NUMBERS = r"\d+(?:\s*,\s*\d+)*"
_INDICES = re.compile(rf"^\s*(?:\(\s*({_NUMBERS})\s*,?\s*\)|({_NUMBERS}))\s*$")
_AXES = r"(?:\d+|:)(?:\s*,\s*(?:\d+|:))*"  # a colon is a whole axis
_REGION = re.compile(rf"^\s*(?:\(\s*{_AXES}\s*,?\s*\)|{_AXES}|@(?:expert|head)=\d+)\s*$")


def read_ranking(source: str | Path) -> Table:
    """Read ``ranking/1`` from a step folder, a file or ``-``; an older CSV becomes one group ``top_k`` by score.

    Older columns: ``parameter|parameter_name|layer``, ``indices|index`` (``"(128000, 3303)"`` or ``128000,3303``),
    ``sensitivity_score|sensitivity|score``; ``indices`` may also be a row ``(507, :)``, a column ``(:, 90)``, a tensor ``:``,
    ``@expert=3`` or ``@head=3``. Its rank is the order of its scores (of its lines, where it has none); its
    ``index`` is null where only ``indices`` are known: the row-major offset needs the tensor's shape.
    Raises ArtifactError, naming the file and what is missing.
    """
    path = Path(source)
    if str(source) != "-" and path.is_dir():
        source = verified_path(path, "ranking/1")
    data, name = read_bytes(source)
    if not data or data[:4] == b"PAR1":
        return decode(data, "ranking/1", name)
    header = csv_header(data, name)
    if {"stratum", "numel"} <= set(header):
        raise ArtifactError("holds scores/1 where a ranking was expected", where=name, hint="esa rank makes one of it")
    if {"parameter", "index", "group", "rank"} <= set(header):
        return decode(data, "ranking/1", name)
    return make_table("ranking/1", _older(data, header, name), source=name)


def parse_indices(text: str) -> tuple[int, ...] | None:
    """Return the numbers of ``(128000, 3303)`` or ``128000,3303``, or None for any other text."""
    match = _INDICES.match(text)
    return tuple(int(part) for part in (match[1] or match[2]).split(",")) if match else None


def _older(data: bytes, header: list[str], name: str) -> pl.DataFrame:
    parameter = next((column for column in _PARAMETER if column in header), None)
    indices = [column for column in reversed(_INDEX) if column in header]
    score = next((column for column in _SCORE if column in header), None)
    if parameter is None or not indices:
        raise ArtifactError(
            f"has neither the columns of ranking/1 nor of an older list: it needs one of {', '.join(_PARAMETER)} and one"
            f" of {', '.join(_INDEX)}; it has {', '.join(header)}",
            where=name,
        )
    try:
        text = data.decode("utf-8-sig")  # as spreadsheets write it
    except UnicodeDecodeError as error:
        raise ArtifactError(f"is not UTF-8: byte {error.start}", where=name) from None
    rows = []
    for line, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), restval=""), start=2):
        place = _place(row[indices[0]])
        if place is None:
            raise ArtifactError(
                f"{row[indices[0]]!r} is not an index; allowed: 128000,3303 or (128000, 3303)",
                where=f"{name}:{line}: {indices[0]}",
            )
        try:
            value = float(row[score]) if score and row[score] else None
        except ValueError:
            raise ArtifactError(f"{row[score]!r} is not a number", where=f"{name}:{line}: {score}") from None
        if value is not None and not math.isfinite(value):
            raise ArtifactError(f"{value} is not a score; a number is finite or null", where=f"{name}:{line}: {score}")
        rows.append({"parameter": row[parameter], "index": place[0], "indices": place[1], "score": value})
    frame = pl.DataFrame(rows, schema={c: SCHEMAS["ranking/1"][c] for c in ("parameter", "index", "indices", "score")})
    if score is not None:
        frame = frame.sort("score", descending=True, nulls_last=True, maintain_order=True)
    return frame.with_columns(
        pl.lit("global").alias("mode"),
        pl.lit("top_k").alias("group"),
        pl.int_range(1, pl.len() + 1).alias("rank"),
    )


def _place(text: str) -> tuple[int | None, str | None] | None:
    """Return the index, or else the indices, that an older list gives; None where it is neither."""
    numbers = parse_indices(text)
    if numbers is None:
        return (None, text.strip()) if _REGION.match(text) else None
    if max(numbers) >= 1 << 63:
        return None
    return (numbers[0], None) if len(numbers) == 1 else (None, f"({', '.join(map(str, numbers))})")
