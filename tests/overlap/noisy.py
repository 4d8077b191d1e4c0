"""Rankings of one true order seen through noise: a seed is a draw of the noise."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from esa.artifact import Table, make_table
from tests.overlap.planted import TENSORS, joined, ranking

ADDRESSES = [(str(tensor["parameter"]), index) for tensor in TENSORS for index in range(int(tensor["numel"]))]
TRUTH = np.random.default_rng(7).standard_exponential(len(ADDRESSES))


def noisy_scores(noise: float, seed: int) -> np.ndarray:
    """Return every weight's score: the truth plus normal noise, kept positive."""
    return np.abs(TRUTH + noise * np.random.default_rng((11, seed)).standard_normal(len(TRUTH))) + 1e-3


def noisy(
    noise: float, seeds: Sequence[int] = range(5), k: int = 20, mode: str = "global", metric: str = "act_mag"
) -> Table:
    """Return a ranking of several seeds: the first ``k`` weights of all, or of each tensor in mode per_layer."""
    tables = []
    for seed in seeds:
        scores = noisy_scores(noise, seed)
        order = np.argsort(-scores, kind="stable")
        if mode == "global":
            chosen = order[:k].tolist()
        else:
            names = [str(tensor["parameter"]) for tensor in TENSORS]
            chosen = [n for name in names for n in [m for m in order.tolist() if ADDRESSES[m][0] == name][:k]]
        table = ranking([ADDRESSES[n] for n in chosen], metric=metric, seed=seed, mode=mode)
        frame = table.frame.with_columns(pl.Series("score", scores[chosen]))
        tables.append(make_table("ranking/1", frame, table.meta))
    return joined(*tables)
