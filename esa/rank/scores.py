"""Open what a score step kept, from its folder, a file or a pipe, and read one metric and seed at a time."""

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from esa.artifact import STDIO, Table, read_manifest, read_table, sha256_of
from esa.artifact.schemas import SCHEMAS
from esa.artifact.steps import verified_path
from esa.artifact.tables import decode, read_bytes
from esa.errors import ArtifactError
from esa.rank.order import Array
from esa.spec import Spec, spec_from_dict

STRATA = ("top", "bottom", "sample", "large", "all")
Pair = tuple[str | None, int | None]  # metric and seed
NEEDS_ANATOMY = "rank the score step's folder or its Parquet file: a CSV does not say what its parameters are"


@dataclass(frozen=True)
class Tensor:
    """One eligible parameter; of a CSV only the name and the number of weights are known."""

    parameter: str
    numel: int
    layer: str | None = None
    block: int | None = None
    component: str | None = None
    shape: tuple[int, ...] | None = None
    output_axis: int | None = None
    input_axis: int | None = None
    expert_axis: int | None = None


@dataclass(frozen=True)
class Pool:
    """The kept rows of one metric and seed.

    ``rows``: tensor (its number in ``tensors``), stratum, index, expert, score, signed, weight, in the order of the
    file. ``num_zero``: zero scores by tensor number; None where the source does not tell.
    """

    metric: str | None
    seed: int | None
    tensors: tuple[Tensor, ...]
    rows: pl.DataFrame
    num_zero: dict[int, int] | None = None

    @property
    def label(self) -> str:
        """Return the words a note opens with."""
        return f"{self.metric}, seed {self.seed}" if self.seed is not None else f"{self.metric}"

    def column(self, name: str) -> Array:
        """Return a column of the rows as an array."""
        return self.rows[name].to_numpy()


@dataclass(frozen=True)
class Scores:
    """A source of kept scores: what it says of the tensors, and the rows themselves, still unread.

    ``anatomy``: the JSON that a Parquet table carries, None for CSV; ``zeros``: its numbers of zero scores, likewise.
    ``inputs``: what the id of a ranking is made of.
    """

    where: str
    rows: pl.LazyFrame
    tensors: tuple[Tensor, ...]
    anatomy: str | None
    inputs: dict[str, str]
    pairs: tuple[Pair, ...]
    seeds: tuple[int, ...]
    spec: Spec | None = None
    totals: pl.DataFrame | None = None
    margins: pl.LazyFrame | None = None
    zeros: pl.DataFrame | None = None

    def pool(self, metric: str | None, seed: int | None, strata: Collection[str]) -> Pool:
        """Read the rows of one metric and seed. Raises ArtifactError for a parameter that the anatomy lacks."""
        wanted = _of(metric, seed) & pl.col("stratum").is_in(list(strata))
        names = pl.Enum([tensor.parameter for tensor in self.tensors])
        query = self.rows.filter(wanted).select(
            pl.col("parameter").cast(names).to_physical().cast(pl.Int64).alias("tensor"),
            pl.col("stratum").cast(pl.Enum(STRATA)),
            "index", "expert", "score", "signed", "weight",
        )  # fmt: skip
        try:
            rows = query.collect()
        except pl.exceptions.InvalidOperationError:
            raise ArtifactError("scores a parameter that its own list of tensors lacks", where=self.where) from None
        except (pl.exceptions.PolarsError, OSError) as error:
            raise ArtifactError(f"cannot be read: {str(error).splitlines()[0]}", where=self.where) from None
        return Pool(metric, seed, self.tensors, rows, self._num_zero(metric, seed))

    def of_tensors(self, metric: str | None, seed: int | None) -> pl.DataFrame | None:
        """Return the rows of tensors/1 of one metric and seed with the tensor's number, None outside a folder."""
        if self.totals is None:
            return None
        return self.number(self.totals.filter(_of(metric, seed)))

    def of_margins(self, metric: str | None, seed: int | None, axis: str) -> pl.DataFrame | None:
        """Return the rows of margins/1 of one metric, seed and axis with the tensor's number, None outside a folder."""
        if self.margins is None:
            return None
        return self.number(self.margins.filter(_of(metric, seed) & (pl.col("axis") == axis)).collect())

    def number(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the rows of known parameters with the column ``tensor``."""
        numbers = {tensor.parameter: number for number, tensor in enumerate(self.tensors)}
        column = pl.col("parameter").replace_strict(numbers, default=None, return_dtype=pl.Int64)
        return frame.with_columns(column.alias("tensor")).filter(pl.col("tensor").is_not_null())

    def _num_zero(self, metric: str | None, seed: int | None) -> dict[int, int] | None:
        frame = self.of_tensors(metric, seed)
        if frame is None:
            frame = None if self.zeros is None else self.number(self.zeros.filter(_of(metric, seed)))
        if frame is None:
            return None
        return dict(frame.filter(pl.col("num_zero") > 0).select("tensor", "num_zero").iter_rows())


def open_scores(source: str | Path) -> Scores:
    """Open a score step's folder, a table of scores/1 (Parquet or CSV), or ``-`` for standard input.

    Of a Parquet file only the footer and what is asked for are read.
    Raises ArtifactError for a missing, truncated or foreign file, and for a score that is no finite number.
    """
    path = Path(source)
    if str(source) == STDIO:
        data, name = read_bytes(source)
        inputs = {"scores": hashlib.sha256(data).hexdigest()}
        return _opened(name, *_whole(decode(data, "scores/1", name)), inputs=inputs)
    if not path.is_dir():
        rows, meta = _scan(path, "scores/1")
        return _opened(str(path), rows, meta, inputs={"scores": sha256_of(path)})
    manifest = read_manifest(path)
    rows, meta = _scan(verified_path(path, "scores/1"), "scores/1")
    totals, _ = _scan(verified_path(path, "tensors/1"), "tensors/1")
    has_margins = "margins/1" in manifest["kinds"].values()
    return _opened(
        str(path), rows, meta,
        inputs={"score": manifest["run"]},
        spec=spec_from_dict(manifest["spec"], f"{path}/manifest.json"),
        totals=totals.collect(),
        margins=_scan(verified_path(path, "margins/1"), "margins/1")[0] if has_margins else None,
    )  # fmt: skip


def _opened(where: str, rows: pl.LazyFrame, meta: dict[str, str], **more: Any) -> Scores:
    anatomy = meta.get("anatomy")
    try:
        _require_finite(rows)
        spec = more.pop("spec", None) or (spec_from_dict(json.loads(meta["spec"])) if "spec" in meta else None)
        known = rows.select("metric", "seed").unique(maintain_order=True).collect()
        if anatomy is None:
            named = rows.select("parameter", "numel").unique("parameter", maintain_order=True).collect()
            tensors = tuple(Tensor(parameter, numel) for parameter, numel in named.iter_rows())
        else:
            tensors = tuple(_tensor(entry) for entry in json.loads(anatomy))
    except (KeyError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(f"cannot be read as scores/1: {error}", where=where) from None
    if known.is_empty():
        raise ArtifactError("holds no scores", where=where)
    pairs = tuple(known.iter_rows())
    seeds: Sequence[int] = list(dict.fromkeys(seed for _, seed in pairs if seed is not None))
    if not seeds:  # metrics that read no data: the seeds of the spec still name the random groups
        seeds = spec.score.seeds if spec is not None else (0,)
    zeros = _zeros(meta["zeros"]) if "zeros" in meta else None
    return Scores(where, rows, tensors, anatomy, pairs=pairs, seeds=tuple(seeds), spec=spec, zeros=zeros, **more)


def _zeros(text: str) -> pl.DataFrame:
    """Return the numbers of zero scores that a Parquet table of scores carries."""
    names = ("metric", "seed", "parameter", "num_zero")
    schema = {name: SCHEMAS["tensors/1"][name] for name in names}
    return pl.DataFrame(json.loads(text), schema=schema, orient="row")


def _tensor(entry: dict[str, Any]) -> Tensor:
    fields = {name: entry[name] for name in Tensor.__dataclass_fields__}
    return Tensor(**{**fields, "shape": tuple(entry["shape"])})


def _of(metric: str | None, seed: int | None) -> pl.Expr:
    at = pl.col("seed").is_null() if seed is None else pl.col("seed") == seed
    return (pl.col("metric") == metric) & at


def _whole(table: Table) -> tuple[pl.LazyFrame, dict[str, str]]:
    return table.frame.lazy(), dict(table.meta)


def _scan(path: Path, kind: str) -> tuple[pl.LazyFrame, dict[str, str]]:
    """Return rows and metadata of a table without reading it, if it is Parquet; else read it whole."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(-min(4, path.stat().st_size), 2)
            tail = file.read(4)
    except OSError:
        return _whole(read_table(path, kind))  # raises, in the words of every reader
    if head != b"PAR1" or tail != b"PAR1":
        return _whole(read_table(path, kind))
    try:
        meta = pl.read_parquet_metadata(path)
        rows = pl.scan_parquet(path, glob=False)
        columns = rows.collect_schema().names()
        if meta.get("esa.kind", kind) != kind or not set(SCHEMAS[kind]) <= set(columns):
            return _whole(read_table(path, kind))
        if dict(rows.collect_schema()) != SCHEMAS[kind]:
            rows = rows.select(pl.col(name).cast(dtype) for name, dtype in SCHEMAS[kind].items())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ArtifactError(f"cannot be read as Parquet: {str(error).splitlines()[0]}", where=str(path)) from None
    return rows, {re.sub(r"^esa\.", "", key): value for key, value in meta.items()}


def _require_finite(rows: pl.LazyFrame) -> None:
    bad = ~pl.col("score").is_finite().fill_null(False)
    if rows.select(bad.any()).collect().item():
        row, value = rows.select("score").with_row_index().filter(bad).head(1).collect().row(0)
        what = "null where a score was expected" if value is None else f"{value}; a number is finite or null"
        raise ArtifactError(f"row {row}: {what}", where="scores/1: score")
