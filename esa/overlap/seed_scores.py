"""One metric's lists across its seeds as a matrix of scores: what is averaged, resampled and split in halves."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from esa.errors import SelectionError
from esa.overlap.anatomy import MODE_COLUMNS
from esa.overlap.lists import RankedList

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_ADDRESS = ["parameter", "index", "indices"]


@dataclass(frozen=True)
class Group:
    """The lists of one metric and mode, one per seed, ascending."""

    metric: str
    mode: str
    lists: tuple[RankedList, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the seeds."""
        return tuple(ranked.seed for ranked in self.lists if ranked.seed is not None)


@dataclass(frozen=True)
class SeedScores:
    """The weights that any seed of a metric lists, with each seed's score of them.

    ``frame``: a row of ``ranking/1`` per weight, by unit and then in the order in which equal scores rank. ``unit``
    ``(num_weights,)``: the number of its unit. ``scores`` ``(num_seeds, num_weights)``: a weight that a seed does not list
    has the smallest score that the seed lists in its unit, less the last digit of a float32: at most that is what it can
    have had, and it ranks behind all that the seed lists. ``place``, the same shape: its place in the seed's list of its
    unit, from 0; that list's length where it is not listed.
    """

    group: Group
    frame: pl.DataFrame
    unit: Ints
    scores: Floats
    place: Ints

    def places(self, scores: Floats) -> Ints:
        """Return each weight's place in its unit, from 0, by scores ``(num_weights,)``; equal ones in the frame's order."""
        order = np.lexsort((np.arange(len(scores)), -scores, self.unit))
        starts = np.searchsorted(self.unit, self.unit)  # rows lie unit by unit: the first row of each one's unit
        places = np.empty(len(scores), dtype=np.int64)
        places[order] = np.arange(len(scores)) - starts
        return places

    def listed(self, scores: Floats, k: int, label: str) -> RankedList:
        """Return the list of the first ``k`` of each unit by these scores."""
        places = self.places(scores)
        order = np.lexsort((places, self.unit))
        rows = order[places[order] < k]
        frame = self.frame[rows].with_columns(
            pl.Series("score", scores[rows]), pl.Series("rank", places[rows] + 1), pl.lit(None, pl.Int64).alias("seed")
        )
        return replace(self.group.lists[0], label=label, seed=None, frame=frame)


def groups_of(lists: Sequence[RankedList]) -> list[Group]:
    """Return the lists by mode and metric, in order of appearance; those that name no metric or seed are left out.

    Raises SelectionError where a metric has a seed twice: two models or texts, say, which no average may mix.
    """
    found: dict[tuple[str, str], list[RankedList]] = {}
    for ranked in lists:
        if ranked.metric is not None and ranked.seed is not None and ranked.mode is not None:
            found.setdefault((ranked.mode, ranked.metric), []).append(ranked)
    groups = []
    for (mode, metric), members in found.items():
        members.sort(key=lambda one: one.seed or 0)
        for first, second in itertools.pairwise(members):
            if first.seed == second.seed:
                raise SelectionError(
                    f"{metric} from seed {first.seed} is also in {first.label}: which list is the seed's?",
                    where=second.label,
                    hint="give the rankings of one model and one number of windows; --curve windows tells those apart",
                )
        groups.append(Group(metric, mode, tuple(members)))
    return groups


def seed_scores(group: Group) -> SeedScores:
    """Return the matrix of a group's scores. Raises SelectionError, naming the list, for a row without score or unit."""
    parts = []
    for number, ranked in enumerate(group.lists):
        frame = ranked.frame.with_columns(_unit(ranked, group.mode), pl.lit(number, pl.Int64).alias("list"))
        if frame["score"].null_count():
            raise SelectionError("has a row without a score, which an average over seeds needs", where=ranked.label)
        parts.append(frame.with_columns(pl.int_range(pl.len()).over("unit").alias("place")))
    rows = pl.concat(parts)
    order = {entry.parameter: number for number, entry in enumerate(group.lists[0].anatomy or ())}
    last = len(order)
    rows = rows.with_columns(
        pl.col("parameter").replace_strict(order, default=last, return_dtype=pl.Int64).alias("tensor"),
    )
    weights = rows.unique(["unit", *_ADDRESS], keep="first", maintain_order=True)
    weights = weights.sort("unit", "tensor", *_ADDRESS).with_row_index("weight_number")
    unit = weights["unit"].rank("dense").cast(pl.Int64).to_numpy() - 1
    keyed = rows.join(
        weights.select("unit", *_ADDRESS, "weight_number"), on=["unit", *_ADDRESS], nulls_equal=True, how="left",
        maintain_order="left",
    )  # fmt: skip
    shape = len(group.lists), weights.height
    scores, place = np.full(shape, np.nan), np.zeros(shape, dtype=np.int64)
    for number in range(len(group.lists)):
        mine = keyed.filter(pl.col("list") == number)
        at = mine["weight_number"].to_numpy()
        codes = unit[at]
        smallest, length = np.full(unit.max() + 1, np.inf), np.bincount(codes, minlength=unit.max() + 1)
        np.minimum.at(smallest, codes, mine["score"].to_numpy())
        missing = smallest == np.inf  # a unit of which this seed lists nothing
        smallest[missing] = 0.0
        below = np.nextafter(smallest.astype(np.float32), np.float32(-np.inf)).astype(np.float64)
        scores[number], place[number] = below[unit], length[unit]
        scores[number, at], place[number, at] = mine["score"].to_numpy(), mine["place"].to_numpy()
    return SeedScores(group, weights.drop("unit", "list", "place", "tensor", "weight_number"), unit, scores, place)


def _unit(ranked: RankedList, mode: str) -> pl.Series:
    """Return the unit of every row, empty in mode global."""
    if mode == "global":
        return pl.Series("unit", [""]).new_from_index(0, ranked.frame.height)
    column = "unit_name" if not ranked.frame["unit_name"].null_count() else MODE_COLUMNS.get(mode, "unit_name")
    units = ranked.frame[column].cast(pl.String).alias("unit")
    if units.null_count():
        raise SelectionError(f"{column} is empty, and says in which unit a weight was ranked", where=ranked.label)
    return units
