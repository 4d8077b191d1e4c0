"""Damage by region: which cases of a campaign changed weights of a group of tensors one by one, and which all of it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import polars as pl

from esa.arch.comparison.sources import Labelled

METHOD = "zero"
_ONE = re.compile(r"\d+(,\d+)*")  # the indices of a single weight
_GROUPS = ("top_k", "targets")  # of a metric's list, and of targets that a person named
_UNITS = ("single", "joint", "cumulative")  # leave_one_out names what it leaves out


class Harm(NamedTuple):
    """The damage columns of ``shares/1``, nats per token; None where nothing was tested."""

    num_tested: int | None = None
    mean_damage: float | None = None
    max_damage: float | None = None
    joint_damage: float | None = None
    joint_low: float | None = None
    joint_high: float | None = None


@dataclass(frozen=True)
class Harms:
    """``of``: parameters of a group -> its damage; ``warnings``: what a reader must know of it."""

    of: Callable[[frozenset[str]], Harm]
    warnings: tuple[str, ...] = ()


def harms(run: Labelled, metric: str, seed: int | None, tensors: pl.DataFrame) -> Harms:
    """Return the damage by group of tensors that a run's campaign measured by zeroing, of one metric's list and of given targets.

    ``tensors``: rows of ``tensors/1`` (parameter, block, component) that groups are made of. A weight tested several
    times counts once. A region counts for a group where it holds exactly the group's scored tensors.
    """
    damage = run.damage
    if damage is None:
        return Harms(lambda _: Harm())
    alone = pl.col("unit").is_in(_UNITS) & (pl.col("k") == 1) & pl.col("target").is_not_null()
    damage = damage.filter((pl.col("method") == METHOD) & alone)
    own = (pl.col("metric") == metric) & pl.col("seed").eq_missing(pl.lit(seed, pl.Int64))
    mine = damage.filter(pl.col("group").is_in(_GROUPS) & (own | pl.col("metric").is_null()))
    singles: dict[str, tuple[str, float | None]] = {}
    regions: list[tuple[frozenset[str], Harm]] = []
    for target, delta, low, high in mine.select("target", "delta_nll", "delta_low", "delta_high").iter_rows():
        name, _, indices = target.partition(":")
        if _ONE.fullmatch(indices):
            singles.setdefault(target, (name, delta))
        elif (held := tensors_of(target, tensors)) is not None:
            regions.append((held, Harm(joint_damage=delta, joint_low=low, joint_high=high)))
    broken = sum(delta is None for _, delta in singles.values())
    texts = (f"{broken} of {len(singles)} weights zeroed one by one left a nonfinite model: no damage in nats",)
    return Harms(lambda names: _harm(names, singles, regions), texts if broken else ())


def _harm(
    names: frozenset[str], singles: dict[str, tuple[str, float | None]], regions: list[tuple[frozenset[str], Harm]]
) -> Harm:
    inside = [delta for name, delta in singles.values() if name in names and delta is not None]
    whole = next((harm for held, harm in regions if held == names), Harm())
    if not inside:
        return whole
    return whole._replace(num_tested=len(inside), mean_damage=sum(inside) / len(inside), max_damage=max(inside))


def tensors_of(target: str, tensors: pl.DataFrame) -> frozenset[str] | None:
    """Return the scored tensors that a region holds whole, or None where it is a part of one, or names none of them.

    ``component=GLOB``, ``block=GLOB`` and globs of names, joined by commas, as a campaign writes them.
    """
    filters = [part.partition("=") for part in target.split(",")]
    keyed = [(key if equals else "parameter", value if equals else key) for key, equals, value in filters]
    if any(key not in ("parameter", "component", "block") for key, _ in keyed):
        return None
    texts = (
        tensors.select("parameter", "component", pl.col("block").cast(pl.String)).fill_null("").iter_rows(named=True)
    )
    found = {row["parameter"] for row in texts if all(fnmatchcase(row[key], glob) for key, glob in keyed)}
    return frozenset(found) or None
