"""Rank whole outputs, inputs or tensors: some metrics find the column and not the weight."""

import numpy as np
import polars as pl

from esa.errors import ArtifactError, SelectionError
from esa.rank.order import highest, lowest, split
from esa.rank.scores import NEEDS_ANATOMY, Pair, Scores, Tensor
from esa.rank.selectors import CHOSEN, READS, Selection, top_k
from esa.rank.units import enough, make_units
from esa.spec import generator
from esa.spec.sections import Rank

NEEDS_FOLDER = "rank the score step's folder: its margins and tensors hold the sums over all weights"


def aggregated_groups(rank: Rank) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the groups that a ranking of outputs, inputs or tensors has, and notes on those it drops."""
    groups: list[str] = []
    notes = []
    for group in rank.groups:
        if group in ("random_k", "matched_k"):
            notes.append(f"{group}: is a group of single weights; left out of aggregate = '{rank.aggregate}'")
        elif group == "bottom_k" and rank.statistic == "count":
            notes.append("bottom_k: almost everything counts 0 of the K highest; left out of statistic = 'count'")
        else:
            groups.append(group)
    if not groups:
        raise SelectionError(
            f"none of the groups {', '.join(rank.groups)} goes with aggregate = '{rank.aggregate}'",
            where="rank.groups",
            hint="ask for top_k, or bottom_k with statistic sum or max",
        )
    return tuple(groups), tuple(notes)


def aggregate(scores: Scores, pair: Pair, rank: Rank) -> dict[str, Selection]:
    """Select the K highest (and lowest) outputs, inputs or tensors of each unit by a statistic of their scores.

    ``sum`` and ``max`` run over every score of the output, input or tensor, exactly as the score step accumulated them;
    ``count`` is how many of the K highest weights (largest K, in the mode) lie in it, and only what counts at least one
    is listed. Order as for weights: by the statistic, then (named_parameters order, position); equal lowest ones at
    random by the seed. The frame's ``index`` is the position; ``name_positions`` turns it into text.
    Raises SelectionError where the source holds no margins, or a tensor has no such axis (fused experts have one per
    expert), and where K exceeds what a unit has.
    """
    metric, seed = pair
    units = make_units(scores.tensors, rank.mode)
    groups, _ = aggregated_groups(rank)
    items = _items(scores, pair, rank).sort("tensor", "position")
    tensor, position, value = (items[name].to_numpy() for name in ("tensor", "position", "value"))
    k = max(rank.k)
    if rank.statistic != "count":
        sizes = np.bincount(tensor, minlength=len(scores.tensors))
        enough(units, sizes, k, f"{rank.aggregate}s")
    result = {}
    for group in groups:
        parts = []
        for unit, at in split(units.of[tensor], len(units.names)):
            if group == "top_k":
                chosen = highest(value[at], tensor[at], position[at], k)
            else:
                rng = generator(seed or 0, "bottom_k", str(metric), rank.mode, units.names[unit], rank.aggregate)
                chosen = lowest(value[at], tensor[at], position[at], k, rng=rng)[0]
            parts.append(_part(items[at[chosen]], unit))
        result[group] = Selection(pl.concat(parts))
    return result


def name_positions(frame: pl.DataFrame, tensors: tuple[Tensor, ...], axis: str) -> pl.Series:
    """Return the column ``indices``: ``(507, :)`` or ``(:, 90)`` by the axis in storage, ``:`` for a tensor."""
    texts = []
    for number, position in frame.select("tensor", "index").iter_rows():
        shape, at = tensors[number].shape, _axis(tensors[number], axis)
        if axis == "tensor" or shape is None:
            texts.append(":")
        else:
            texts.append(f"({', '.join(str(position) if place == at else ':' for place in range(len(shape)))})")
    return pl.Series("indices", texts, dtype=pl.String)


def _items(scores: Scores, pair: Pair, rank: Rank) -> pl.DataFrame:
    """Return tensor, position and value of everything that can be ranked."""
    if rank.aggregate != "tensor":
        _require_axis(scores, rank.aggregate)
    if rank.statistic == "count":
        return _counts(scores, pair, rank)
    totals = scores.of_tensors(*pair)
    found = totals if rank.aggregate == "tensor" else scores.of_margins(*pair, rank.aggregate)
    if totals is None or found is None:
        raise SelectionError(
            f"statistic '{rank.statistic}' of a whole {rank.aggregate} needs more than the kept scores",
            where=scores.where,
            hint=f"{NEEDS_FOLDER}; or ask for statistic = 'count'",
        )
    if rank.aggregate == "tensor":
        found = found.with_columns(pl.lit(0, pl.Int64).alias("position"))
    else:
        _require_margins(scores, rank.aggregate, totals, found)
    return found.select("tensor", "position", pl.col(rank.statistic).alias("value"))


def _counts(scores: Scores, pair: Pair, rank: Rank) -> pl.DataFrame:
    top = top_k(scores.pool(*pair, READS["top_k"]), rank).frame
    tensor, index = top["tensor"].to_numpy(), top["index"].to_numpy()
    position = np.zeros(len(top), dtype=np.int64)
    for number, at in split(tensor, len(scores.tensors)):
        shape, axis = scores.tensors[number].shape, _axis(scores.tensors[number], rank.aggregate)
        if shape is not None and axis is not None:
            position[at] = np.unravel_index(index[at], shape)[axis]
    counted = pl.DataFrame({"tensor": tensor, "position": position}).group_by("tensor", "position").len("value")
    return counted.with_columns(pl.col("value").cast(pl.Float64))


def _axis(tensor: Tensor, name: str) -> int | None:
    return {"output": tensor.output_axis, "input": tensor.input_axis}.get(name)


def _require_axis(scores: Scores, axis: str) -> None:
    if scores.anatomy is None:
        raise SelectionError(
            f"aggregate '{axis}' needs what only a score step knows", where="rank.aggregate", hint=NEEDS_ANATOMY
        )
    for tensor in scores.tensors:
        if tensor.expert_axis is not None or _axis(tensor, axis) is None:
            why = "fuses experts, each with its own" if tensor.expert_axis is not None else "has no"
            raise SelectionError(
                f"{tensor.parameter} {why} {axis} axis",
                where="rank.aggregate",
                hint="leave it out with score.exclude, or aggregate by tensor",
            )


def _require_margins(scores: Scores, axis: str, totals: pl.DataFrame, margins: pl.DataFrame) -> None:
    counts = dict(margins.group_by("tensor").len().iter_rows())
    for number in totals["tensor"]:
        tensor = scores.tensors[number]
        at = _axis(tensor, axis)
        expected = tensor.shape[at] if tensor.shape is not None and at is not None else 0
        if counts.get(number, 0) != expected:
            found = f"margins of {tensor.parameter} hold {counts.get(number, 0)} of its {expected} {axis}s"
            raise ArtifactError(found, where=scores.where)


def _part(items: pl.DataFrame, unit: int) -> pl.DataFrame:
    frame = items.with_columns(
        pl.lit(unit).alias("unit"), pl.int_range(1, pl.len() + 1).alias("rank"), pl.col("position").alias("index"),
        pl.col("value").alias("score"),
    )  # fmt: skip
    given = frame.columns
    return frame.select((pl.col(c) if c in given else pl.lit(None)).cast(t).alias(c) for c, t in CHOSEN.items())
