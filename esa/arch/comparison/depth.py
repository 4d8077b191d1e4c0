"""Where along the depth of a model the score lies: centre of mass, first and last quarter, early against late."""

import math
from collections.abc import Callable, Sequence
from itertools import permutations as all_orders

import numpy as np

from esa.arch.comparison.blocks import Array, blocks_of
from esa.arch.comparison.findings import Found, Options, Row, compared
from esa.arch.comparison.over_blocks import FEWEST, clipped, mean_interval, weighted_interval
from esa.arch.comparison.sources import Labelled
from esa.spec import generator
from esa.statistics.bootstrap import UNKNOWN, Interval
from esa.statistics.permutation import monte_carlo_p, smallest_monte_carlo_p

QUESTION = "depth"
_NULL = "the blocks in any order"
_BLOCK = 2_000_000  # numbers permuted at once


def compare(runs: Sequence[Labelled], options: Options) -> Found:
    """Return ``comparison/1`` rows on the depth profile of each run and metric.

    Block b of B covers the relative depth [b / B, (b + 1) / B], its share s_b of the blocks' score spread over it
    evenly (embedding and head aside), mean over the score seeds::

        centre_of_mass       = sum s_b (b + 0.5) / B
        first, last_quarter  = the share below 0.25, above 0.75
        late_minus_early     = the share above 0.5 less the share below

    Expected: the same of a score spread as the weights are. Interval: Student's t over the score seeds where there are
    three or more, else over the blocks, linearised, each of which keeps its depth (``why`` says which). p,
    two-sided: all orders of the blocks where there are at most ``permutations``, else random ones. The quantities come
    of one profile and are tested apart.
    Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 4.2.
    """
    rows: list[Row] = []
    for run in runs:
        for metric in (name for name in options.metrics if name in run.metrics):
            blocks = blocks_of(run, metric)
            if blocks is None or run.num_blocks is None or not blocks.total()[0].sum() > 0:
                rows.append(
                    compared(QUESTION, run.label, metric, "blocks", "centre_of_mass", why="no scores in blocks")
                )
                continue
            weights = blocks.total()[1]
            at = np.array(blocks.number)
            for quantity, factors in _quantities(at, run.num_blocks).items():
                row = compared(QUESTION, run.label, metric, "blocks", quantity)
                name = f"{QUESTION} {run.label} {metric} {quantity}"
                rows.append(row | measured(blocks.by_seed, weights, factors, name, options))
    return Found({"comparison/1": rows}, adjust=frozenset({QUESTION}))


def _quantities(at: Array, num_blocks: int) -> dict[str, Array]:
    """Return what each block's share counts for, ``(B,)``, by quantity."""
    return {
        "centre_of_mass": (at + 0.5) / num_blocks,
        "first_quarter": within(at, num_blocks, 0.0, 0.25),
        "last_quarter": within(at, num_blocks, 0.75, 1.0),
        "late_minus_early": within(at, num_blocks, 0.5, 1.0) - within(at, num_blocks, 0.0, 0.5),
    }


def within(at: Array, num_blocks: int, low: float, high: float) -> Array:
    """Return the share of each block that lies between two relative depths."""
    start, stop = np.maximum(at, low * num_blocks), np.minimum(at + 1, high * num_blocks)
    found: Array = np.clip(stop - start, 0.0, 1.0)
    return found


def measured(by_seed: Array, weights: Array, factors: Array, name: str, options: Options) -> Row:
    """Return value, expectation, interval and p of ``sum s_b f_b / sum s_b`` of the seeds' profiles ``(seeds, B)``."""
    shares = by_seed.mean(axis=0)
    value, number = float(shares @ factors / shares.sum()), len(shares)
    draw = generator(options.seed, "depth", name)
    ends, why = _interval(by_seed, factors, options.level)
    row: Row = {
        "value": value, "low": ends.low, "high": ends.high, "expected": float(weights @ factors / weights.sum()),
        "num": number, "why": why,
    }  # fmt: skip
    if number < 2:
        return row
    p, smallest = _order_p(shares, factors, options.permutations, draw)
    return row | {"null": _NULL, "p_value": p, "smallest_p": smallest}


def _order_p(shares: Array, factors: Array, permutations: int, draw: np.random.Generator) -> tuple[float, float]:
    """Return the two-sided p of ``shares @ factors`` among orders of the shares, all of them where few, and its smallest."""
    observed = float(shares @ factors)
    if math.factorial(len(shares)) <= permutations:
        every = shares[np.array(list(all_orders(range(len(shares)))))] @ factors
        slack = 1e-12 * float(np.abs(every).max())
        ends = ((every >= end - slack).mean() for end in (observed, every.max()))
        others = ((every <= end + slack).mean() for end in (observed, every.min()))
        p, smallest = (min(1.0, 2 * float(min(pair))) for pair in zip(ends, others, strict=True))
        return p, smallest
    drawn = permuted(shares, lambda values: values @ factors, permutations, draw)
    return monte_carlo_p(observed, drawn, "two-sided"), 2 * smallest_monte_carlo_p(permutations)


def _interval(by_seed: Array, factors: Array, level: float) -> tuple[Interval, str]:
    seeds, number = by_seed.shape
    if seeds >= FEWEST:
        return mean_interval(by_seed @ factors / by_seed.sum(axis=1), level), f"interval over {seeds} score seeds"
    ends = weighted_interval(factors, by_seed.mean(axis=0), level)
    if ends == UNKNOWN:
        return UNKNOWN, "fewer than 3 score seeds, and fewer than 3 blocks that carry the score: no interval"
    return clipped(ends, float(factors.min()), float(factors.max())), f"interval over {number} blocks"


def permuted(values: Array, statistic: Callable[[Array], Array], count: int, draw: np.random.Generator) -> Array:
    """Return the statistic ``(count,)`` of random orders of the values, which it takes as rows ``(n, B)``."""
    rows, found = max(1, _BLOCK // len(values)), []
    for start in range(0, count, rows):
        orders = np.tile(values, (min(rows, count - start), 1))
        found.append(statistic(draw.permuted(orders, axis=1, out=orders)))
    return np.concatenate(found)
