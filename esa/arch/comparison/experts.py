"""Experts of a mixture: against the shared weights, score against usage, and how the score is spread over them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from esa.arch.comparison.attention import ratio_of
from esa.arch.comparison.block_ranks import mean_correlation_p, rank_correlation, within_ranks
from esa.arch.comparison.blocks import Array, blocks_of
from esa.arch.comparison.concentration import MEASURES
from esa.arch.comparison.findings import Found, Options, Row, compared
from esa.arch.comparison.over_blocks import clipped, mean_interval, spearman_interval
from esa.arch.comparison.sources import Labelled
from esa.spec import generator

SHARED, USAGE, CONCENTRATION = "expert against shared", "score against usage", "concentration over experts"
WITHIN = "score against usage by block"
USES_INPUTS = ("act_mag", "wanda")  # sums over the tokens of an expert divided by all tokens: they grow with its usage
_ENTERS = "usage enters this score by definition: it sums over an expert's own tokens"
_FEWEST = 4  # experts for a correlation within one block


def compare(runs: Sequence[Labelled], options: Options) -> Found:
    """Return ``experts/1``, and ``comparison/1`` rows on the experts of the runs that have any.

    A row of ``experts/1`` is an expert of a block, all its tensors together: ``usage``, the share of the tokens routed
    to it (of the same seed's activation metrics where the metric itself saw no inputs), ``score``, its share of the
    model's total and its density (share of score over share of weights).

    *Expert against shared*: the density ratio of :mod:`esa.arch.comparison.attention`, the experts over all other
    weights of the same blocks. *Score against usage*: Spearman's correlation over the experts of a block, its mean over the
    blocks (interval: Student's t over blocks), and *by block* (Bonett and Wright's interval), score and usage the means over
    the score seeds; p, two-sided: usage exchanged among the experts of a block. *Concentration*: Gini, normalised entropy, and
    effective number of the experts' shares within a block, mean over blocks (interval over blocks); expected: the uniform's.
    Where a score includes the usage by definition, ``why`` says so.
    Source: Spearman, "The proof and measurement of association between two things", Am. J. Psychology 15, 1904.
    """
    rows: list[Row] = []
    table: list[Row] = []
    warnings: list[str] = []
    for run in runs:
        first = next((name for name in options.metrics if name in run.metrics), None)
        for metric in (name for name in options.metrics if name in run.metrics):
            frames = {seed: frame for seed in run.seeds(metric) if (frame := experts_of(run, metric, seed)) is not None}
            if not frames:
                if "expert" in {component.partition(".")[0] for component in run.components(metric).values()}:
                    warnings.append(f"{run.label}: its tensors do not tell one expert from another")
                continue
            for seed, frame in frames.items():
                top = run.top(metric, options.k, seed) if options.k is not None else None
                table += _rows(run, metric, seed, frame, top)
            blocks = blocks_of(run, metric)
            if blocks is not None:
                row = compared(
                    SHARED, run.label, metric, "expert / other weights of the blocks", "density_ratio", expected=1.0
                )
                others = ("attention", "mlp", "router", "norm", "other")
                name, null = f"{SHARED} {run.label} {metric}", "the two parts exchanged within blocks"
                rows.append(row | ratio_of(blocks, ("expert",), others, name, options, null))
            rows += _against_usage(run, metric, frames, options)
            subjects = ("score", "usage") if metric == first else ("score",)
            for subject in subjects:
                rows += _concentration(run, metric, subject, frames, options)
    return Found(
        {"experts/1": table, "comparison/1": rows}, adjust=frozenset({SHARED, USAGE, WITHIN}), warnings=tuple(warnings)
    )


def experts_of(run: Labelled, metric: str, seed: int | None) -> pl.DataFrame | None:
    """Return block, expert, numel, score and usage of every expert by a metric and seed; None for a dense model."""
    frame = run.experts(metric, seed)
    if frame is None:
        return None
    found = frame.group_by("block", "expert", maintain_order=True).agg(
        pl.col("numel").sum(), pl.col("sum").sum().alias("score"), pl.col("usage").max()
    )
    if found["usage"].null_count():
        found = found.drop("usage").join(_usage(run, seed), on=["block", "expert"], how="left", maintain_order="left")
    return found.sort("block", "expert", maintain_order=True)


def _usage(run: Labelled, seed: int | None) -> pl.DataFrame:
    """Return the usage that another metric recorded under the seed; over all seeds, their mean, for a metric without one."""
    tensors = run.run.tensors
    assert tensors is not None
    known = tensors.filter(pl.col("expert").is_not_null() & pl.col("usage").is_not_null())
    if seed is not None:
        known = known.filter(pl.col("seed") == seed)
    each = known.group_by("block", "expert", "seed", maintain_order=True).agg(pl.col("usage").max())
    return each.group_by("block", "expert", maintain_order=True).agg(pl.col("usage").mean())


def _rows(run: Labelled, metric: str, seed: int | None, frame: pl.DataFrame, top: pl.DataFrame | None) -> Iterator[Row]:
    whole = run.tensors(metric, seed)
    assert whole is not None
    score, weights = float(whole["sum"].sum()), int(whole["numel"].sum())
    counted: dict[tuple[Any, ...], int] = {}
    if top is not None:
        counted = {row[:2]: row[2] for row in top.group_by("block", "expert").len().iter_rows()}
    for row in frame.iter_rows(named=True):
        share = row["score"] / score if score > 0 else None
        yield {
            "label": run.label, "metric": metric, "seed": seed, **row, "score_share": share,
            "density": None if share is None else share / (row["numel"] / weights),
            "num_top": None if top is None else counted.get((row["block"], row["expert"]), 0),
        }  # fmt: skip


def mean_over_seeds(frames: dict[int | None, pl.DataFrame]) -> pl.DataFrame:
    """Return block, expert, score and usage, means over the seeds."""
    every = pl.concat(list(frames.values())).group_by("block", "expert", maintain_order=True)
    return every.agg(pl.col("score").mean(), pl.col("usage").mean()).sort("block", "expert", maintain_order=True)


def _against_usage(
    run: Labelled, metric: str, frames: dict[int | None, pl.DataFrame], options: Options
) -> Iterator[Row]:
    """Yield Spearman's correlation of score and usage per block, and its mean over the blocks."""
    frame = mean_over_seeds(frames)
    note = _ENTERS if metric in USES_INPUTS else None
    if frame["usage"].null_count():
        why = "no metric that sees inputs was scored: usage is not known"
        yield compared(USAGE, run.label, metric, "all blocks", "mean_spearman", why=why)
        return
    pairs = [(int(part["block"][0]), *_ranked(part)) for part in frame.partition_by("block", maintain_order=True)]
    pairs = [one for one in pairs if len(one[1]) >= _FEWEST and len(set(one[1])) > 1 and len(set(one[2])) > 1]
    for block, score, usage in pairs:
        name, size = f"{USAGE} {run.label} {metric} {block}", len(score)

        row = compared(WITHIN, run.label, metric, f"block {block}", "spearman", expected=0.0, num=size, why=note)
        found = _correlated([(score, usage)], name, options)
        yield row | found | spearman_interval(found["value"], size, options.level)._asdict()
    if not pairs:
        why = f"no block has {_FEWEST} experts or more whose scores and usage differ"
        yield compared(USAGE, run.label, metric, "all blocks", "mean_spearman", why=why)
        return
    name = f"{USAGE} {run.label} {metric}"
    each = np.array([float(rank_correlation(score[None], usage[None])[0]) for _, score, usage in pairs])
    row = compared(USAGE, run.label, metric, "all blocks", "mean_spearman", expected=0.0, num=len(pairs), why=note)
    ends = clipped(mean_interval(each, options.level), -1.0, 1.0)
    yield row | _correlated([pair[1:] for pair in pairs], name, options) | ends._asdict()


def _ranked(part: pl.DataFrame) -> tuple[Array, Array]:
    score, usage = (within_ranks(part[name].to_numpy()[None])[0] for name in ("score", "usage"))
    return score, usage


def _correlated(pairs: Sequence[tuple[Array, Array]], name: str, options: Options) -> Row:
    """Return mean correlation and permutation p of the ranks of several blocks."""
    each = [float(rank_correlation(score[None], usage[None])[0]) for score, usage in pairs]
    p, smallest = mean_correlation_p(pairs, generator(options.seed, "permutation", name), options.permutations)
    null = "usage exchanged among the experts of a block"
    return {"value": float(np.mean(each)), "null": null, "p_value": p, "smallest_p": smallest}


def _concentration(
    run: Labelled, metric: str, subject: str, frames: dict[int | None, pl.DataFrame], options: Options
) -> Iterator[Row]:
    """Yield the measures of concentration of score or usage over the experts, means over blocks of two experts or more."""
    parts = mean_over_seeds(frames).partition_by("block", maintain_order=True)
    values = [part[subject].to_numpy() for part in parts if not part[subject].null_count() and part.height > 1]
    shares = [one / one.sum() for one in values if one.sum() > 0]
    for quantity, (measure, uniform) in MEASURES.items():
        of = metric if subject == "score" else None  # usage is the same whatever is scored
        row = compared(CONCENTRATION, run.label, of, subject, quantity, num=len(shares))
        if not shares:
            yield row | {"why": f"{subject} over experts is not known, or nothing"}
            continue
        each = np.array([measure(one) for one in shares])
        expected = float(np.mean([uniform(len(one)) for one in shares]))
        ends = mean_interval(each, options.level)._asdict()
        yield row | {"value": float(each.mean()), "expected": expected, "null": "uniform"} | ends
