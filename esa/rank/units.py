"""Split the tensors of a model into the units that each get K weights, and name what was chosen."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from esa.errors import SelectionError
from esa.rank.order import Array
from esa.rank.scores import NEEDS_ANATOMY, STRATA, Pool, Tensor

_UNIT: dict[str, Callable[[Tensor], str]] = {
    "global": lambda tensor: "all",
    "per_layer": lambda tensor: tensor.parameter,
    "per_block": lambda tensor: "no block" if tensor.block is None else f"block {tensor.block}",
    "per_component": lambda tensor: str(tensor.component),
}


@dataclass(frozen=True)
class Units:
    """The units of a mode, in the order of their first tensor: ``of[t]`` is the unit of tensor number ``t``."""

    names: list[str]
    of: Array
    numel: Array


def make_units(tensors: tuple[Tensor, ...], mode: str) -> Units:
    """Return the units of ``mode``: all in one (``all``), each tensor, each block (``no block`` outside), or component.

    Raises SelectionError where blocks and components are not known.
    """
    if mode in ("per_block", "per_component") and any(tensor.component is None for tensor in tensors):
        raise SelectionError(f"mode '{mode}' needs what only a score step knows", where="rank.mode", hint=NEEDS_ANATOMY)
    names: dict[str, int] = {}
    of = np.array([names.setdefault(_UNIT[mode](tensor), len(names)) for tensor in tensors], dtype=np.int64)
    numel = np.array([tensor.numel for tensor in tensors], dtype=np.int64)
    return Units(list(names), of, np.bincount(of, weights=numel, minlength=len(names)).astype(np.int64))


def require(pool: Pool, units: Units, k: int, stratum: str) -> None:
    """Raise SelectionError unless the kept rows of ``stratum`` give the exact ``k`` of every unit that is scored."""
    tensor, kind = pool.column("tensor"), pool.rows["stratum"].to_physical().to_numpy()
    num = len(pool.tensors)
    kept = np.bincount(tensor[kind == STRATA.index(stratum)], minlength=num)
    whole = np.bincount(tensor[kind == STRATA.index("all")], minlength=num) > 0
    scored = whole | (kept > 0)
    if not scored.any():
        raise SelectionError(f"{pool.label}: holds no scores of stratum {stratum} or all")
    numel = np.array([entry.numel for entry in pool.tensors])
    enough(units, np.where(scored, numel, 0), k, "weights")
    short = np.flatnonzero(scored & ~whole & (kept < k) & (kept < numel))
    if len(short):
        worst = short[np.argmin(kept[short])]
        raise SelectionError(
            f"K = {k:,} is more than the {kept[worst]:,} scores kept of {pool.tensors[worst].parameter}"
            f" ({numel[worst]:,} weights): keep = {kept[worst]}",
            where="rank.k",
            hint=f"score again with score.keep = {k} or more, or ask for K up to {kept[worst]}",
        )


def enough(units: Units, sizes: Array, k: int, what: str) -> None:
    """Raise SelectionError unless every unit that has any of ``what`` (``sizes`` by tensor) has ``k``."""
    total = np.bincount(units.of, weights=sizes, minlength=len(units.names)).astype(np.int64)
    few = np.flatnonzero((total > 0) & (total < k))
    if len(few):
        worst = few[np.argmin(total[few])]
        raise SelectionError(
            f"K = {k:,} is more than the {total[worst]:,} {what} of unit '{units.names[worst]}'",
            where="rank.k",
            hint=f"ask for K up to {total[worst]}, leave the unit out with score.exclude, or choose another mode",
        )


def name_rows(frame: pl.DataFrame, tensors: tuple[Tensor, ...], indices: pl.Series | None = None) -> pl.DataFrame:
    """Return ``frame`` with what ``tensor`` and ``index`` mean: parameter, layer, block, component, expert, indices."""
    schema = {"parameter": pl.String, "layer": pl.String, "block": pl.Int64, "component": pl.String}
    known = pl.DataFrame({name: [getattr(t, name) for t in tensors] for name in schema}, schema=schema)
    per_expert = pl.Series("per_expert", [_per_expert(tensor) for tensor in tensors], dtype=pl.Int64)
    named = frame.hstack(known.with_columns(per_expert)[frame["tensor"]])
    expert = pl.coalesce(pl.col("index") // pl.col("per_expert"), pl.col("expert"))
    return named.with_columns(expert.alias("expert"), indices if indices is not None else coordinates(frame, tensors))


def coordinates(frame: pl.DataFrame, tensors: tuple[Tensor, ...]) -> pl.Series:
    """Return the column ``indices``: each ``index`` as text, ``(507, 1229)``; null where no shape is known."""
    number, index = frame["tensor"].to_numpy(), frame["index"].to_numpy()
    text = np.full(len(frame), None, dtype=object)
    for one in np.unique(number):
        shape = tensors[one].shape
        if shape is not None:
            at = np.flatnonzero(number == one)
            places = zip(*(axis.tolist() for axis in np.unravel_index(index[at], shape)), strict=True)
            text[at] = [f"({', '.join(map(str, place))})" for place in places]
    return pl.Series("indices", text.tolist(), dtype=pl.String)


def _per_expert(tensor: Tensor) -> int | None:
    """Return the weights of one expert of a fused tensor, whose experts lie along its first axis."""
    if tensor.expert_axis != 0 or tensor.shape is None:
        return None
    return tensor.numel // tensor.shape[0]
