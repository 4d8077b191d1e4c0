"""Which weights are zeroed to learn the truth: even over every metric's scores, the top ones for certain, chances known."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from esa.errors import SpecError
from esa.spec import generator
from esa.spec.sections import Truth

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
_WEIGHT = ("parameter", "index")


@dataclass(frozen=True)
class Sample:
    """The weights to be zeroed: ``frame`` as ``esa.perturb.truth.scores`` gives it, with two columns more.

    ``sampling_weight``: how many weights of the model one stands for, the inverse of its chance to be drawn. ``certain``: it is
    a top one of some metric, or everything is taken. ``num_weights``: of the model, among which they were drawn.
    """

    frame: pl.DataFrame
    num_weights: int


def draw_sample(
    uniform: pl.DataFrame, tops: pl.DataFrame, num_metrics: int, num_weights: int, rules: Truth, seed: int
) -> Sample:
    """Draw the weights on which the metrics are held against measured damage: at most ``rules.weights``.

    The top ones stand for themselves. Of the rest, of which ``uniform`` holds n_t of tensor t's N_t weights, drawn evenly, a row
    carries the mass q = N_t / n_t (top ones left out of both). For every metric of its own this rest is cut by score, equal ones
    in random order, into ``rules.strata`` strata of equal mass, and of each stratum the same number of rows is drawn without
    replacement, with chances in proportion to q (systematic sampling in random order). A row that several metrics draw
    counts once: metrics draw independently, so that its chance is ``1 - prod_m (1 - chance_m)``, and its sampling weight is
    ``q / chance``. Weighted sums over the sample then estimate sums over the model without bias (Horvitz and Thompson, A
    Generalization of Sampling Without Replacement From a Finite Universe, JASA 1952).
    Where the rest is no larger than what is to be drawn, all of it is taken. Rows come in the order of ``uniform``, top ones
    first. Raises SpecError for fewer draws than strata.
    """
    rest = uniform.join(tops.select(_WEIGHT), on=_WEIGHT, how="anti", maintain_order="left")
    mass = _masses(rest, tops)
    certain = tops.with_columns(pl.lit(1.0).alias("sampling_weight"), pl.lit(True).alias("certain"))
    draws, cells = rules.weights - len(tops), num_metrics * rules.strata
    if len(rest) <= draws and bool((mass <= 1).all()):
        chance, picked = np.ones(len(rest)), np.ones(len(rest), dtype=bool)
    elif draws < cells:
        raise SpecError(
            [
                f"truth.weights: {rules.weights} leave {max(draws, 0)} beside {len(tops)} top ones;"
                f" {rules.strata} strata of {num_metrics} metrics need {cells}"
            ],
            hint=f"truth.weights = {len(tops) + cells} or more, or fewer of truth.strata or truth.top",
        )
    else:
        chance, picked = draw_rows(_scores(rest, num_metrics), mass, draws, rules.strata, seed)
    drawn = rest.with_columns(
        pl.Series("sampling_weight", mass / np.maximum(chance, np.finfo(float).tiny)),
        pl.Series("certain", (chance >= 1) & (mass <= 1)),
    ).filter(pl.Series(picked))
    return Sample(pl.concat([certain, drawn]), num_weights)


def draw_rows(scores: Array, mass: Array, draws: int, strata: int, seed: int) -> tuple[Array, Flags]:
    """Return every row's chance to be drawn and whether it was; scores ``(metrics, rows)``, mass ``(rows,)``."""
    missed, picked = np.ones(len(mass)), np.zeros(len(mass), dtype=bool)
    for number, sizes in enumerate(cell_sizes(draws, len(scores), strata)):
        draw = generator(seed, "truth", number)
        order = np.lexsort((draw.permutation(len(mass)), scores[number]))
        middle = np.cumsum(mass[order]) - mass[order] / 2
        stratum = np.minimum((middle / mass.sum() * strata).astype(int), strata - 1)
        for cell, size in enumerate(sizes):
            members = draw.permutation(order[stratum == cell])
            chance = proportional_chances(mass[members], size)
            missed[members] *= 1 - chance
            picked[members[systematic(chance, draw)]] = True
    return 1 - missed, picked


def cell_sizes(draws: int, metrics: int, strata: int) -> npt.NDArray[np.int64]:
    """Return how many rows each metric draws of each stratum, ``(metrics, strata)``: equal, what is over to the highest ones."""
    least, over = divmod(draws, metrics * strata)
    extra = (np.arange(metrics * strata) < over).reshape(
        strata, metrics
    )  # highest stratum first, a metric after the other
    return least + extra[::-1].T.astype(np.int64)


def proportional_chances(mass: Array, size: int) -> Array:
    """Return chances in proportion to mass that add up to ``size``, none above 1: what would be is taken for certain."""
    chance = np.zeros(len(mass))
    free = np.ones(len(mass), dtype=bool)
    while free.any():
        left = size - np.count_nonzero(~free)
        chance[free] = left * mass[free] / mass[free].sum()
        over = free & (chance >= 1)
        if not over.any():
            break
        chance[over] = 1.0
        free &= ~over
        if np.count_nonzero(~free) >= size:
            chance[free] = 0.0
            break
    return chance


def systematic(chance: Array, draw: np.random.Generator) -> Flags:
    """Return which rows are drawn: a comb of spacing 1, its first tooth random, over the chances laid end to end.

    Every row is drawn with exactly its chance, and their number is the sum of the chances.
    Source: Madow, On the Theory of Systematic Sampling II, Annals of Mathematical Statistics 1949.
    """
    teeth = np.floor(np.cumsum(chance) + draw.random())
    drawn: Flags = np.diff(teeth, prepend=0.0) > 0
    return drawn


def _masses(rest: pl.DataFrame, tops: pl.DataFrame) -> Array:
    """Return how many weights of its tensor, top ones left out, each row stands for."""
    num_top = tops.group_by("parameter").agg(pl.len().alias("num_top"))
    counted = rest.join(num_top, on="parameter", how="left", maintain_order="left")
    mass = (pl.col("numel") - pl.col("num_top").fill_null(0)) / pl.len().over("parameter")
    return counted.select(mass).to_series().to_numpy().astype(np.float64)


def _scores(frame: pl.DataFrame, num_metrics: int) -> Array:
    return frame.select([f"score_{m}" for m in range(num_metrics)]).to_numpy().T.astype(np.float64)
