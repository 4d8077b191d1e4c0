"""The joint damage of a list's top K in a run: value, interval, and draws of it from its windows."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from esa.arch.comparison.sources import Labelled
from esa.artifact.gather import Gathered

Array = npt.NDArray[np.float64]
_NORMAL = 1.959963984540054  # half the width of a 95 % interval in standard errors
_SAME = 1e-9  # relative: the intact model's windows add up to nll_base


class Key(NamedTuple):
    """What is compared: a method with its options, at K."""

    method: str
    options: str
    k: int

    @property
    def shown(self) -> str:
        """Return method and options as text: the method alone where it has none."""
        return self.method if self.options in ("", "{}") else f"{self.method} {self.options}"


@dataclass(frozen=True)
class Damaged:
    """The damage of a case, nats per token, its repeats averaged; None and ``nonfinite`` where the model broke.

    ``differences``, ``num_tokens``: per window the summed NLL difference and the predicted tokens, None where unknown.
    """

    value: float | None
    low: float | None
    high: float | None
    outcome: str
    differences: Array | None = None
    num_tokens: Array | None = None

    @property
    def interval(self) -> str | None:
        """Return what :meth:`draws` resamples: ``windows``, ``normal``, or None where nothing is known."""
        if self.value is None:
            return None
        if self.differences is not None:
            return "windows"
        return "normal" if self.low is not None and self.high is not None else None

    @property
    def known(self) -> bool:
        """Tell whether :meth:`draws` says how sure the damage is: a nonfinite model is so for certain."""
        return self.value is None or self.interval is not None

    @property
    def bound(self) -> float:
        """Return the damage, infinite for a nonfinite model."""
        return float("inf") if self.value is None else self.value

    def draws(self, draw: np.random.Generator, resamples: int) -> Array:
        """Return ``resamples`` draws of the damage: of its windows with replacement, of a normal, or the value itself."""
        if self.value is None or self.interval is None:
            return np.full(resamples, self.bound)
        if self.differences is not None and self.num_tokens is not None:
            picks = draw.integers(0, len(self.differences), (resamples, len(self.differences)))
            found: Array = self.differences[picks].sum(axis=1) / self.num_tokens[picks].sum(axis=1)
            return found
        assert self.low is not None
        assert self.high is not None
        return draw.normal(self.value, (self.high - self.low) / (2 * _NORMAL), resamples)


def damages_of(one: Labelled, metric: str) -> dict[Key, Damaged]:
    """Return the joint damages of a run's own top weights by a metric, first score seed, in the order of damage/1."""
    seeds = one.seeds(metric)
    return joint_damages(one.run, metric, seeds[0] if seeds else None)


def joint_damages(run: Gathered, metric: str | None, seed: int | None) -> dict[Key, Damaged]:
    """Return the joint damages of ``top_k`` of a metric and seed by method, options and K; empty without a campaign."""
    if run.damage is None:
        return {}
    own = pl.col("metric").eq_missing(pl.lit(metric, pl.String)) & pl.col("seed").eq_missing(pl.lit(seed, pl.Int64))
    joint = (pl.col("unit") == "joint") & (pl.col("group") == "top_k")
    frame = run.damage.filter(own & joint)
    windows = run.table("perturb", "windows/1")
    base = None if windows is None else _intact(windows, run.damage)
    found: dict[Key, Damaged] = {}
    for (method, options, k), part in frame.group_by("method", "options", "k", maintain_order=True):
        key = Key(str(method), str(options or ""), int(k))
        found[key] = _damaged(part, None if base is None or windows is None else (windows, base))
    return found


def _damaged(part: pl.DataFrame, windows: tuple[pl.DataFrame, pl.DataFrame] | None) -> Damaged:
    """Return the damage of a case from the rows of its repeats."""
    outcomes = part["outcome"].to_list()
    if part["delta_nll"].null_count():
        return Damaged(None, None, None, next((o for o in outcomes if o == "nonfinite"), "unknown"))
    value = float(part["delta_nll"].mean())  # type: ignore[arg-type]
    # Several draws of noise have an interval each; the windows give that of their mean.
    low, high = (part["delta_low"][0], part["delta_high"][0]) if part.height == 1 else (None, None)
    outcome = outcomes[0] if len(set(outcomes)) == 1 else "mixed"
    if windows is None:
        return Damaged(value, low, high, outcome)
    table, base = windows
    mine = table.filter(pl.col("case").is_in(part["case"].to_list())).group_by("window").agg(pl.col("nll").mean())
    pairs = base.join(mine, on="window", suffix="_changed").sort("window").drop_nulls(["nll", "nll_changed"])
    if pairs.height < max(3, base.height):
        return Damaged(value, low, high, outcome)
    differences = (pairs["nll_changed"] - pairs["nll"]).to_numpy()
    return Damaged(value, low, high, outcome, differences, pairs["num_tokens"].to_numpy().astype(float))


def _intact(windows: pl.DataFrame, damage: pl.DataFrame) -> pl.DataFrame | None:
    """Return the intact model's windows: those of no case in damage/1 whose NLL is its ``nll_base``; None without."""
    bases = damage["nll_base"].drop_nulls()
    others = windows.filter(~pl.col("case").is_in(damage["case"].to_list()))
    for _, part in others.group_by("case", maintain_order=True):
        if part["nll"].null_count() or not len(bases):
            continue
        mean = float(part["nll"].sum()) / int(part["num_tokens"].sum())
        if abs(mean - float(bases[0])) <= _SAME * abs(mean):
            return part
    return None
