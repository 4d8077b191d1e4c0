"""Turn ranked weights into the members that are compared: weights, outputs, inputs, layers, blocks, components."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from esa.errors import SelectionError
from esa.overlap.anatomy import MODE_COLUMNS, OUTSIDE, Entry, owner
from esa.overlap.keys import index_keys, weight_keys
from esa.overlap.lists import RankedList

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Members:
    """One list's distinct members, each at its best weight; arrays ``(num_members,)``, in order of unit and rank.

    ``unit`` and ``code`` number units and members alike in all lists that were encoded together. ``position`` is the
    place, from 0, of the member's best weight in its unit's list: the members of the first k weights are those with
    ``position < k``. ``rank``, from 1, is the member's place among its unit's members.
    """

    unit: Ints
    code: Ints
    position: Ints
    rank: Ints
    sizes: Mapping[str, int]  # weights listed per unit

    @cached_property
    def size(self) -> int:
        """Return the number of weights in the longest unit: the largest k that the list can give."""
        return max(self.sizes.values())

    def quotas(self, k: int) -> tuple[tuple[str, int], ...]:
        """Return how many weights the first k are in each unit; a unit smaller than k gives all it has."""
        return tuple((unit, min(k, size)) for unit, size in self.sizes.items())


def common_mode(lists: Sequence[RankedList]) -> str:
    """Return the mode that all lists were selected in; older lists follow the others.

    Raises SelectionError for different ones: k would mean k in all in one list, and k per unit in the other.
    """
    known = [ranked for ranked in lists if ranked.mode is not None]
    for ranked in known[1:]:
        if ranked.mode != known[0].mode:
            raise SelectionError(
                f"was ranked {ranked.mode}, and {known[0].label} {known[0].mode}: the same k is not the same selection",
                where=ranked.label,
                hint="rank both in one mode (rank.mode)",
            )
    return known[0].mode or "global" if known else "global"


def encode(lists: Sequence[RankedList], by: str, mode: str) -> list[Members]:
    """Return the members of every list ``by`` weight, output, input, layer, block or component, per unit of ``mode``.

    A weight is (parameter, row-major index), or (parameter, indices) where only those are known in all lists. An output
    is (parameter, index without its input axis), an input (parameter, index without its output axis): row and column of
    an nn.Linear, the reverse of a Conv1D, which is stored transposed; experts stay apart.
    Raises SelectionError, naming the list, where neither its columns nor an anatomy say what is needed.
    """
    known = {entry.parameter: entry for ranked in reversed(lists) for entry in ranked.anatomy or ()}
    columns = ["parameter", "index", "indices", "layer", "block", "component", "unit_name"]
    frame = pl.concat(
        ranked.frame.select(pl.lit(number, pl.Int64).alias("list"), *columns) for number, ranked in enumerate(lists)
    )
    unit = None if mode == "global" else MODE_COLUMNS.get(mode, "unit_name")
    for column in ("layer", "block", "component"):
        if column in (by, unit):
            frame = frame.with_columns(_place(frame, column, lists, known).alias(column))
    if by == "weight":
        keys = weight_keys(frame, lists, known)
    elif by in ("output", "input"):
        keys = index_keys(frame, by, lists, known)
    else:
        keys = frame[by].alias("key")
    frame = frame.with_columns(keys, _units(frame, unit, lists))
    frame = frame.with_columns(pl.int_range(pl.len()).over("list", "unit").alias("position"))
    sizes = frame.group_by("list", "unit").len().sort("list", "unit")
    best = frame.unique(["list", "unit", "key"], keep="first", maintain_order=True).with_columns(
        pl.col("unit").rank("dense").cast(pl.Int64).alias("unit_code"),
        pl.col("key").rank("dense").cast(pl.Int64).alias("code"),
        pl.int_range(1, pl.len() + 1).over("list", "unit").alias("rank"),
    )
    encoded = []
    for number in range(len(lists)):
        part = best.filter(pl.col("list") == number).sort("unit_code", "rank")
        mine = sizes.filter(pl.col("list") == number)
        encoded.append(
            Members(
                unit=part["unit_code"].to_numpy(),
                code=part["code"].to_numpy(),
                position=part["position"].to_numpy(),
                rank=part["rank"].to_numpy(),
                sizes=dict(zip(mine["unit"].to_list(), mine["len"].to_list(), strict=True)),
            )
        )
    return encoded


def _units(frame: pl.DataFrame, column: str | None, lists: Sequence[RankedList]) -> pl.Series:
    """Return the unit of every row, ``""`` where all are in one."""
    if column is None:
        return pl.Series("unit", [""]).new_from_index(0, frame.height)
    missing = frame.filter(pl.col(column).is_null())
    if not missing.is_empty():
        raise SelectionError(
            f"{column} of {missing['parameter'][0]} is empty, and says in which unit it was ranked",
            where=lists[missing["list"][0]].label,
        )
    return frame[column].cast(pl.String).alias("unit")


def _place(frame: pl.DataFrame, column: str, lists: Sequence[RankedList], known: Mapping[str, Entry]) -> pl.Series:
    """Return the layer, block or component of every row as text: its own, else the anatomy's; a layer else by its name.

    A null block means outside any block where the row has a component, as every row of ``ranking/1`` has.
    """
    own = frame[column].cast(pl.String)
    if column == "block":
        outside = own.is_null() & frame["component"].is_not_null()
        own = own.zip_with(~outside, pl.Series([OUTSIDE]))
    names = frame.filter(own.is_null())["parameter"].unique(maintain_order=True).to_list()
    found = {name: known[name].group(column) for name in names if name in known and known[name].component is not None}
    if column == "layer":
        found = {name: found.get(name, owner(name)) for name in names}
    for name in names:
        if name not in found:
            first = frame.filter(own.is_null() & (pl.col("parameter") == name))["list"][0]
            raise SelectionError(
                f"does not say in which {column} {name} is",
                where=lists[first].label,
                hint="older lists do not know it: compare by weight or layer, or beside a rank step of the same model",
            )
    if not names:
        return own
    return own.fill_null(frame["parameter"].replace_strict(found, default=None, return_dtype=pl.String))
