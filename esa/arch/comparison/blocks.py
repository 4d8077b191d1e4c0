"""Scores by block: the sums and weights of the parts in every block, averaged over score seeds, as arrays."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from esa.arch.comparison.sources import Labelled, part_of

Array = npt.NDArray[np.float64]
SCHEMA = {"block": pl.Int64, "part": pl.String, "score": pl.Float64, "numel": pl.Int64}


@dataclass(frozen=True)
class Blocks:
    """Score and weights of each part, block by block: ``(B,)`` arrays by part, 0 where a block has none of it.

    The scores of every seed are divided by their sum over the model, then averaged over the seeds. ``outside``: score
    and weights of the parts outside the blocks. ``number``: the blocks' numbers; ``by_seed``: all parts, ``(seeds, B)``.
    """

    number: tuple[int, ...]
    score: Mapping[str, Array]
    weights: Mapping[str, Array]
    outside: Mapping[str, tuple[float, int]]
    by_seed: Array
    num_seeds: int

    def total(self, *parts: str) -> tuple[Array, Array]:
        """Return score and weights of some parts together by block, of all parts where none is named."""
        chosen = [part for part in (parts or tuple(self.score)) if part in self.score]
        none = np.zeros(len(self.number))
        return sum((self.score[part] for part in chosen), none), sum((self.weights[part] for part in chosen), none)


def blocks_of(run: Labelled, metric: str) -> Blocks | None:
    """Return the blocks of a run by a metric; None where it holds no scores by it, or a seed has none above zero."""
    seeds = [frame for seed in run.seeds(metric) if (frame := run.tensors(metric, seed)) is not None]
    if not seeds or any(not float(frame["sum"].fill_null(0).sum()) > 0 or frame["sum"].null_count() for frame in seeds):
        return None
    of = pl.col("component").map_elements(part_of, return_dtype=pl.String).alias("part")
    parts = [
        frame.select("block", of, score=pl.col("sum") / pl.col("sum").sum(), numel=pl.col("numel"))
        .group_by("block", "part", maintain_order=True)
        .sum()
        for frame in seeds
    ]
    known: dict[tuple[int | None, str], float] = {}
    for row in pl.concat(parts).iter_rows(named=True):
        key = row["block"], row["part"]
        known[key] = known.get(key, 0.0) + row["score"] / len(seeds)
    weights = {(row["block"], row["part"]): row["numel"] for row in parts[0].iter_rows(named=True)}
    number = tuple(sorted({block for block, _ in weights if block is not None}))
    inside = dict.fromkeys(part for block, part in weights if block is not None)
    by_seed = [dict(frame.group_by("block").agg(pl.col("score").sum()).iter_rows()) for frame in parts]
    return Blocks(
        number,
        {part: np.array([known.get((block, part), 0.0) for block in number]) for part in inside},
        {part: np.array([weights.get((block, part), 0) for block in number], dtype=float) for part in inside},
        {part: (known[None, part], weights[None, part]) for block, part in weights if block is None},
        np.array([[shares.get(block, 0.0) for block in number] for shares in by_seed]),
        len(seeds),
    )
