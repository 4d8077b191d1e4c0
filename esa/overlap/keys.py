"""One text per weight, output or input, equal in two lists exactly where they mean the same one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from esa.artifact import parse_indices
from esa.errors import SelectionError
from esa.overlap.anatomy import Entry, without_axis
from esa.overlap.lists import RankedList

_CARRIED = "a rank step's folder carries the anatomy, and so does its ranking as Parquet"


def weight_keys(frame: pl.DataFrame, lists: Sequence[RankedList], known: Mapping[str, Entry]) -> pl.Series:
    """Return ``parameter:index``, or ``parameter:i,j`` for a parameter whose flat index is not known in every list.

    Raises SelectionError where one list has only the flat index of a parameter and another only its indices, and no
    anatomy says the tensor's shape.
    """
    missing = frame.filter(pl.col("index").is_null() & pl.col("indices").is_null())
    if not missing.is_empty():
        raise SelectionError(
            f"names no weight of {missing['parameter'][0]}: neither index nor indices",
            where=lists[missing["list"][0]].label,
            hint="a ranking of whole tensors is compared by layer, block or component",
        )
    forms = frame.group_by("parameter", maintain_order=True).agg(
        pl.col("index").is_not_null().all().alias("flat"), pl.col("indices").is_not_null().all().alias("full")
    )
    frame = frame.join(forms, on="parameter", how="left", maintain_order="left")
    mixed = forms.filter(~pl.col("flat") & ~pl.col("full"))["parameter"].to_list()
    for name in mixed:
        if name not in known:
            flat = frame.filter((pl.col("parameter") == name) & pl.col("indices").is_null())
            raise SelectionError(
                f"gives {name} by flat index and another list by indices; without the tensor's shape they cannot be"
                " compared",
                where=lists[flat["list"][0]].label,
                hint=_CARRIED,
            )
    index = frame["index"]
    if mixed:
        index = _flat_index(frame, lists, known, pl.col("index").is_null() & ~pl.col("full"))
    address = (
        pl.when(pl.col("flat") | ~pl.col("full"))
        .then(index.cast(pl.String))
        .otherwise(pl.col("indices").str.replace_all(r"[()\s]", "").str.strip_suffix(","))
    )
    return frame.select(pl.concat_str("parameter", pl.lit(":"), address).alias("key")).to_series()


def index_keys(frame: pl.DataFrame, by: str, lists: Sequence[RankedList], known: Mapping[str, Entry]) -> pl.Series:
    """Return ``parameter:number`` of every row's output or input: its index without the other axis.

    Raises SelectionError where a tensor's axes are unknown: storage alone does not tell an output from an input.
    """
    names = frame["parameter"].unique(maintain_order=True).to_list()
    for name in names:
        if name not in known or not known[name].has_axes:
            first = frame.filter(pl.col("parameter") == name)["list"][0]
            raise SelectionError(
                f"does not say which axis of {name} is the {by}; storage does not tell (nn.Linear is stored output by"
                " input, GPT-2's Conv1D input by output, an embedding token by channel)",
                where=lists[first].label,
                hint=_CARRIED,
            )
    numbers = {name: number for number, name in enumerate(names)}
    tensor = frame["parameter"].replace_strict(numbers, return_dtype=pl.Int64).to_numpy()
    whole = frame["indices"].str.contains(":", literal=True).fill_null(False)
    index = _flat_index(frame, lists, known, pl.col("index").is_null() & ~whole).fill_null(0).to_numpy()
    numels = np.asarray([known[name].numel for name in names], dtype=np.int64)
    beyond = np.flatnonzero((index < 0) | (index >= numels[tensor]))
    if len(beyond):
        row = frame.row(int(beyond[0]), named=True)
        raise _no_weight(row["parameter"], row["index"], known, lists[row["list"]])
    sizes = np.asarray([known[name].dropped(by)[0] for name in names], dtype=np.int64)
    strides = np.asarray([known[name].dropped(by)[1] for name in names], dtype=np.int64)
    left = without_axis(index, sizes[tensor], strides[tensor])
    for place in np.flatnonzero(whole.to_numpy()).tolist():
        left[place] = _whole_position(frame.row(place, named=True), by, lists, known)
    return frame.select(
        pl.concat_str("parameter", pl.lit(":"), pl.Series("left", left).cast(pl.String)).alias("key")
    ).to_series()


def _whole_position(row: dict[str, Any], by: str, lists: Sequence[RankedList], known: Mapping[str, Entry]) -> int:
    """Return the position of a ranked output or input, such as 507 of ``(507, :)``, where that is what ``by`` asks."""
    places = [place.strip() for place in row["indices"].strip("() ").split(",")]
    entry = known[row["parameter"]]
    axis = entry.output_axis if by == "output" else entry.input_axis
    if len(places) == len(entry.shape) and axis is not None and [n for n, p in enumerate(places) if p != ":"] == [axis]:
        return int(places[axis])
    raise SelectionError(
        f"ranks {row['parameter']}:{','.join(places)} as a whole, which is no single {by}",
        where=lists[row["list"]].label,
        hint="compare by weight, which takes each row as it is, or by layer, block or component",
    )


def _flat_index(
    frame: pl.DataFrame, lists: Sequence[RankedList], known: Mapping[str, Entry], unknown: pl.Expr
) -> pl.Series:
    """Return the row-major index of every row, from its indices and the tensor's shape where ``unknown``."""
    index = frame["index"].to_list()
    rows = frame.select("list", "parameter", "indices", unknown.alias("unknown"))
    for place, (number, name, indices, wanted) in enumerate(rows.iter_rows()):
        if not wanted:
            continue
        numbers = parse_indices(indices or "")
        shape = known[name].shape
        if numbers is None or len(numbers) != len(shape) or any(i >= n for i, n in zip(numbers, shape, strict=True)):
            raise _no_weight(name, (indices or "").strip("() "), known, lists[number])
        index[place] = int(np.ravel_multi_index(numbers, shape))
    return pl.Series("index", index, dtype=pl.Int64)


def _no_weight(parameter: str, address: object, known: Mapping[str, Entry], ranked: RankedList) -> SelectionError:
    shape = known[parameter].shape
    return SelectionError(f"{parameter}:{address} is not a weight of a tensor of shape {shape}", where=ranked.label)
